"""What all 1.X objects share: a model, functions, loaders, hooks, and one call that does it all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from inc_torch.callbacks import TrainingConfig
from inc_torch.conf import Conf, Config2X
from inc_torch.conf._evaluation import metric_of
from inc_torch.conf.pythonic_config import Config
from inc_torch.core.dispatcher import Dispatcher
from inc_torch.core.errors import ConfigError, ConfigTypeError, InexactWarning, ModelError
from inc_torch.core.names import unwrapped
from inc_torch.core.user_warning import warn_user
from inc_torch.experimental._evaluation import (
    FirstBatches,
    loader_in,
    postprocessed,
    postprocessing_in,
)
from inc_torch.experimental._hooks import Hooks
from inc_torch.experimental._loop import built_in_training
from inc_torch.experimental._settings import OnlyKnown, Setting, function, loader
from inc_torch.model import Model
from inc_torch.pipeline._zeros import layers_pruned_by, lock_of
from inc_torch.training import CompressionManager, prepare_compression
from inc_torch.tuner import Evaluator, read_evaluator

__all__ = ["Component"]

_OLD: set[type] = set()
"""Classes that were said to be old already."""


class Component(OnlyKnown, Hooks):
    """A step that trains and evaluates a model; base of all 1.X classes.

    `fit`, or calling the object, is all of it: evaluate, train by ``train_func`` or as the file says, evaluate again.
    While it runs, the hooks of the object are those of the training. Hooks that are called without `fit` begin a
    training, too.

    Args:
        conf_fname_or_obj: A path to YAML, a dict, an object of `inc_torch.conf.config`, one of the configurations in
            `inc_torch.config`, or None for the defaults.

    Attributes:
        conf: What the file says.
        baseline_score: Of the last evaluation before the training.
        last_score: Of the one after it.

    Raises:
        ConfigError: The file is wrong; the message has the line.

    Example:
        >>> component = Component()
        >>> component.model = nn.Linear(2, 1)
        >>> component.train_func = lambda model: model.requires_grad_(False).weight.fill_(1.0)
        >>> component.eval_func = lambda model: model.weight.detach().sum()
        >>> component.fit() is component.model, component.last_score
        (True, 2.0)

    Source: INC 2.6.1 ``experimental.Component``; differs in that attributes can be read, that unknown ones are refused,
    that errors are raised, and that nothing needs an evaluation.
    """

    conf_class: ClassVar[type[Conf]] = Conf
    """What reads the file."""

    train_func = Setting("Trains the model that it is given, in place.", function)
    eval_func = Setting("Returns the accuracy of the model that it is given.", function)
    train_dataloader = Setting("``(input, label)`` batches for the training that the file describes.", loader)
    metric = Setting("A `Metric`, or an object with ``update`` and ``result``, in place of the file's.")
    postprocess = Setting("A `Postprocess`, or what is called with ``(output, label)``, in place of the file's.")
    criterion = Setting("The loss, in place of the file's.")
    optimizer = Setting("A function of parameters that makes an optimizer, in place of the file's.")
    conf = Setting("What the file says, an object of `inc_torch.conf`.")
    baseline_score = Setting("The score before the training.")
    last_score = Setting("The score after it.")

    def __init__(self, conf_fname_or_obj: Any = None) -> None:  # noqa: ANN401  all that `Conf` takes
        _say_old(type(self))
        given = _in_python(conf_fname_or_obj)
        self.conf = self.conf_class(None if given else conf_fname_or_obj)
        translation = self.conf.translate()
        self._configs = given or translation.configs
        self._is_in_python = bool(given)
        if translation.notes:
            told = "; ".join(map(str, translation.notes))
            warn_user(f"{self.conf.name}: {told}", InexactWarning)
        self._model: nn.Module | None = None
        self._manager: CompressionManager | None = None
        self._eval_dataloader: Iterable[Any] | None = None
        self._is_fitting = False
        self._to_lock: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return type(self).__name__

    def __call__(self) -> Any:  # noqa: ANN401
        """The same as `fit`."""
        return self.fit()

    @property
    def model(self) -> Any:  # noqa: ANN401  a module, whose own attributes are used
        """The model: a module, or a path to one that was saved."""
        return self._model

    @model.setter
    def model(self, given: Any) -> None:  # noqa: ANN401  a module, or a path to one
        model: nn.Module = Model(given)
        self._model, self._manager = model, None

    @property
    def eval_dataloader(self) -> Iterable[Any] | None:
        """Labelled batches to evaluate on: those assigned, or those that the file describes."""
        if self._eval_dataloader is None:
            section = self._cfg.evaluation.accuracy
            self._eval_dataloader = None if section is None else loader_in(section.dataloader)
        return self._eval_dataloader

    @eval_dataloader.setter
    def eval_dataloader(self, given: object) -> None:
        self._eval_dataloader = loader(given, type(self).__name__, "eval_dataloader")  # type: ignore[assignment]

    def fit(self) -> Any:  # noqa: ANN401  a module, whose own attributes are used
        """Evaluate, train, evaluate.

        Returns:
            The model, the same object that was assigned.

        Raises:
            ConfigError: There is no model, or nothing to train with.
            ModelError: ``train_func`` returned another model.
        """
        model = self._required_model()
        train = self._required_training()
        evaluator = self._evaluator(model)
        self.baseline_score = None if evaluator is None else evaluator.score(model)
        self._manager = None
        self._is_fitting = True
        try:
            self._callbacks()
            model.train()
            self._check_returned(train(model))
            self._end()
        except BaseException:
            self._give_up()
            raise
        finally:
            self._is_fitting = False
        self._finish(model)
        model.eval()
        self.last_score = None if evaluator is None else evaluator.score(model)
        return model

    # ------------------------------------------------------------------ what subclasses say

    def _training_configs(self) -> Sequence[TrainingConfig]:
        """What the training compresses by; nothing here."""
        return ()

    def _train_section(self) -> Any:  # noqa: ANN401
        """The section of the file that describes a training; None if there is none."""
        return None

    def _begun(self, manager: CompressionManager) -> None:
        """Called with the manager of a training, before it begins."""

    def _finish(self, model: nn.Module) -> None:
        """Called when a training of `fit` is through."""

    # ------------------------------------------------------------------ what they share

    @property
    def _cfg(self) -> Any:  # noqa: ANN401
        return self.conf.usr_cfg

    def _callbacks(self) -> Dispatcher | None:
        if self._manager is None or (self._manager.callbacks.has_ended and not self._is_fitting):
            configs = list(self._training_configs())
            model = self._required_model()
            if self._to_lock:
                kept = self._to_lock - layers_pruned_by(configs, unwrapped(model))
                configs += [lock_of(kept, unwrapped(model))] if kept else []
            if not configs:
                return None
            self._manager = prepare_compression(model, configs)
            self._begun(self._manager)
            self._manager.callbacks.on_train_begin()  # loops of 1.X need not say so
        return self._manager.callbacks

    def _end(self) -> None:
        """End the training, if the user's function has not."""
        callbacks = self._callbacks()
        if callbacks is not None and not callbacks.has_ended:
            callbacks.on_train_end()

    def _give_up(self) -> None:
        """End a training that raised."""
        if self._manager is not None and not self._manager.callbacks.has_ended:
            self._manager.callbacks.give_up()

    def _required_model(self) -> nn.Module:
        if self._model is None:
            message = f"{type(self).__name__} has no model: assign one, {type(self).__name__.lower()}.model = model."
            raise ConfigError(message)
        return self._model

    def _required_training(self) -> Callable[[nn.Module], object]:
        """The user's function, or the loop that the file describes."""
        if self.train_func is not None:
            chosen: Callable[[nn.Module], object] = self.train_func
            return chosen
        owner, section = type(self).__name__, self._train_section()
        if section is None:
            message = (
                f"{owner} has nothing to train with: assign train_func, a function of the model, or describe the "
                "training in the file, in a section 'train'."
            )
            raise ConfigError(message)
        batches: Iterable[Any] | None = self.train_dataloader
        if batches is None:
            batches = loader_in(section.dataloader)
        if batches is None:
            message = f"{owner} has no data to train with: assign train_dataloader, or train_func."
            raise ConfigError(message)
        return built_in_training(
            owner,
            section,
            self,
            batches,
            criterion=self._task_loss(),
            optimizer=self.optimizer,
            device=self._cfg.device,
        )

    def _task_loss(self) -> Callable[[Any, Any], Any] | None:
        """What the user assigned as the loss against labels."""
        given: Callable[[Any, Any], Any] | None = self.criterion
        return given

    def _config_of(self, *kinds: type[Any]) -> Any:  # noqa: ANN401  one of them
        """The configuration for this class.

        Raises:
            ConfigError: Those that were given are for other ones.
        """
        for config in self._configs:
            if isinstance(config, kinds):
                return config
        got = ", ".join(type(config).__name__ for config in self._configs) or "nothing"
        known = " or ".join(kind.__name__ for kind in kinds)
        message = f"{type(self).__name__} got {got}: expected a {known}, or a file that says the same."
        raise ConfigTypeError(message)

    def _evaluator(self, model: nn.Module) -> Evaluator | None:
        arguments = self._evaluation()
        return read_evaluator(
            type(self).__name__,
            model,
            arguments["eval_func"],
            arguments["eval_dataloader"],
            arguments["eval_metric"],
            keeps_reference=False,
        )

    def _evaluation(self) -> Mapping[str, Any]:
        """What `inc_torch.quantization.fit` and its like take to evaluate with."""
        nothing = dict.fromkeys(("eval_func", "eval_dataloader", "eval_metric"))
        if self.eval_func is not None:
            return nothing | {"eval_func": self.eval_func}
        batches, section = self.eval_dataloader, self._cfg.evaluation.accuracy
        metric = self._chosen("metric", metric_of(self._cfg.evaluation))
        if batches is not None and metric is None and not self.conf.is_given:
            metric = {"topk": 1}
        if batches is None:
            return nothing | {"eval_metric": self.metric}  # of no use alone, which is said
        if section is not None and section.iteration > 0 and not isinstance(batches, FirstBatches):
            batches = FirstBatches(batches, section.iteration)
        change = self._chosen("postprocess", postprocessing_in(section))
        return nothing | {"eval_dataloader": batches, "eval_metric": postprocessed(metric, change)}

    def _chosen(self, name: str, in_file: object) -> object:
        """What was assigned; else what the file says."""
        assigned: object = getattr(self, name)
        if assigned is None:
            return in_file
        if in_file is not None and self.conf.is_given:
            warn_user(
                f"{type(self).__name__}.{name} is assigned, that of {self.conf.name} is not used.", InexactWarning
            )
        return assigned

    def _check_returned(self, returned: object) -> None:
        model = self._required_model()
        if isinstance(returned, nn.Module) and unwrapped(returned) is not unwrapped(model):
            message = (
                f"The training function of {type(self).__name__} returned another {type(returned).__name__} than the "
                "model that it was given: expected that it is trained in place. To go on with the best epoch, load its "
                "state_dict into the model."
            )
            raise ModelError(message)


def _in_python(given: object) -> tuple[Config2X, ...]:
    """Configurations that were given in place of a file."""
    if isinstance(given, Config):
        return tuple(given)
    return (given,) if isinstance(given, Config2X) else ()


def _say_old(kind: type) -> None:
    is_public = kind.__module__.startswith(f"{__package__}.") and not kind.__name__.startswith("_")
    if is_public and kind not in _OLD:
        _OLD.add(kind)
        message = (
            f"inc_torch.experimental.{kind.__name__} has the interface of Neural Compressor 1.X and goes on working; "
            "'inc-torch migrate' turns scripts into today's."
        )
        warnings.warn(message, DeprecationWarning, stacklevel=3)
