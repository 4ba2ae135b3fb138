"""Quantization-aware training as a search: every trial trains the model from its float weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from inc_torch.callbacks import (
    Callback,
    QuantizationAwareTrainingCallbacks,
    Stage,
    TrainingConfig,
    build_callbacks,
    left_to_bfloat16,
)
from inc_torch.config import QuantizationAwareTrainingConfig
from inc_torch.core.batches import Inputs
from inc_torch.core.borrowing import Snapshot, borrowing_copy, own_parameters_
from inc_torch.core.dispatcher import Dispatcher
from inc_torch.core.errors import ConfigError, ConfigTypeError, HookOrderError, ModelError
from inc_torch.core.names import unwrapped
from inc_torch.core.ranks import Ranks
from inc_torch.core.report import Finding
from inc_torch.core.state import random_state, set_random_state
from inc_torch.quantizers import LEFT_BY_SEARCH, FloatType, Prepared, Treatment, ungraft
from inc_torch.tuner import QuantizedOperations, Tuning, read_evaluator, spec_with
from inc_torch.tuning import Recipe, Space

if TYPE_CHECKING:
    from inc_torch.training import CompressionManager

__all__ = ["fit"]


def fit(
    compression_manager: CompressionManager,
    train_func: Callable[[nn.Module], nn.Module | None],
    eval_func: Callable[[nn.Module], float] | None = None,
    eval_dataloader: Iterable[Any] | None = None,
    eval_metric: object = None,
) -> nn.Module | None:
    """Search for the quantization under which the model still is accurate enough after training.

    Each trial begins with the float weights and the random numbers that there are now, trains the whole model by
    ``train_func``, converts it to int8, and evaluates that. What else the manager was given, such as pruning and
    distillation, begins anew with each trial too. Without an evaluation there is one training, as configured.

    Args:
        compression_manager: Of `prepare_compression`, with a `QuantizationAwareTrainingConfig`; not in training yet.
            Its ``model`` is the one that is returned.
        train_func: Trains the model that it is given, in place, with an optimizer of its own. Hooks of the manager may
            be called in it; none has to be.
        eval_func: Returns the accuracy of the model that it is given.
        eval_dataloader: Labelled batches to evaluate on, together with ``eval_metric``.
        eval_metric: A `Metric`, a dict such as ``{"topk": 1}``, or an object with ``reset``, ``update``, ``result``.

    Returns:
        The user's own model object, int8, with ``save``, ``report`` and ``tuning``. None only if the goal was missed
        and ``TuningCriterion(on_miss="none")`` asks for None; the model is in float then, as it was before.

    Raises:
        ConfigError: There is no quantization-aware training to search in, or an argument is wrong.
        HookOrderError: The training has begun already.
        ModelError: ``train_func`` returned another model than it was given.
        GoalMissedError: The goal was missed and ``on_miss="raise"``.

    Example:
        >>> from inc_torch import QuantizationAwareTrainingConfig, prepare_compression, training
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> manager = prepare_compression(model, QuantizationAwareTrainingConfig())
        >>> def train(model):
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        ...     for _ in range(3):
        ...         model(torch.ones(8, 4)).square().mean().backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> int8 = training.fit(manager, train, eval_func=lambda model: 1.0)
        >>> int8 is model, int8.tuning.reason
        (True, 'trial 1 meets the goal')

    Source: INC 2.6.1, ``training.fit``; differs in that the model is trained in place, and that all callbacks of the
    manager take part, not those of quantization alone.
    """
    trainings = _Trainings(compression_manager, train_func)
    evaluator = read_evaluator("training.fit", trainings.reference, eval_func, eval_dataloader, eval_metric)
    try:
        if evaluator is None:
            return trainings.finished()
        fitted = Tuning(trainings.config, evaluator).run(trainings)
    except BaseException:
        trainings.give_up()
        raise
    if fitted is None:
        trainings.give_up()
    return fitted


@final
class _Trainings:
    """Makes models of recipes by training; the model of the best one is kept.

    All of them are states of one object, the user's model: what a trial leaves behind is taken out of it as a snapshot,
    and the float state put back.
    """

    kind = "an int8"
    remedy = "train longer"

    def __init__(self, manager: CompressionManager, train: Callable[[nn.Module], nn.Module | None]) -> None:
        self._manager, self._train = manager, _checked(train)
        self.config = _config_of(manager)
        self._spec = self.config.to_spec()
        self._model = unwrapped(manager.model)
        self._original = manager.callbacks
        self._decisions = _quantization_of(self._original).decisions
        self._before = _float_state(manager)
        self._restore_float()
        self._random = random_state()
        tensors = [*self._model.parameters(), *self._model.buffers()]
        self._values = [(tensor, tensor.detach().clone(), tensor.requires_grad) for tensor in tensors]
        self.reference = borrowing_copy(self._model)
        own_parameters_(self.reference, self._model)
        self._operations = QuantizedOperations.of(
            self.reference, self._decisions, self._spec, with_bfloat16="bf16" not in self.config.excluded_precisions
        )
        self._latest: tuple[Recipe, Snapshot, Dispatcher] | None = None
        self._best: tuple[Recipe, Snapshot, Dispatcher] | None = None

    @property
    def space(self) -> Space:
        """What may be chosen for each module."""
        return self._operations.space

    def labelled_batches(self, most: int) -> list[tuple[Inputs, object]]:  # noqa: ARG002  there are none
        """None: only the user's function sees the data."""
        return []

    watched = None

    def candidate(self, recipe: Recipe) -> nn.Module:
        """Train by a recipe; the int8 model is there until the next one is asked for."""
        self._latest = None
        self._trained(self._operations.treatments_of(recipe))
        _own_tensors_(self._model, self._before)
        self._latest = recipe, Snapshot(self._model), self._manager.callbacks
        return self._model

    def keep(self, recipe: Recipe) -> None:
        """Keep the latest model if it is of this recipe."""
        if self._latest is not None and self._latest[0] == recipe:
            self._best = self._latest

    def finished(self, recipe: Recipe | None = None) -> nn.Module:
        """The model that was kept; trained now if there is none, as after a search that another process finished."""
        if recipe is None or self._best is None or self._best[0] != recipe:
            self._trained({} if recipe is None else self._operations.treatments_of(recipe))
        else:
            _, state, callbacks = self._best
            self._restore_float()
            state.restore_()
            self._manager.adopt_callbacks(callbacks)
        self._manager.present()
        self._manager.before = None
        return self._model

    def give_up(self) -> None:
        """Leave the model in float, with its weights as they were."""
        self._restore_float()
        self._load_values()
        self._manager.adopt_callbacks(self._original)

    def _trained(self, treatments: Mapping[str, Treatment]) -> None:
        """Train, from the float weights, and convert."""
        self._restore_float()
        self._load_values()
        set_random_state(self._random)
        callbacks = Dispatcher(build_callbacks(self._configs(treatments), self._model), self._model, Ranks())
        callbacks.prepare()
        self._hand_on_hooks(callbacks)
        self._manager.adopt_callbacks(callbacks)
        self._model.train()
        callbacks.on_train_begin()
        returned = self._train(self._model)
        if returned is not None and unwrapped(returned) is not self._model:
            message = (
                f"train_func returned another {type(returned).__name__} than it was given: expected the same object, "
                "trained in place. To return the best epoch, load its state_dict into the model."
            )
            raise ModelError(message)
        if not self._manager.callbacks.has_ended:
            self._manager.callbacks.on_train_end()
        self._model.eval()
        self._give_reasons(treatments)

    def _hand_on_hooks(self, callbacks: Dispatcher) -> None:
        """Let hooks that the user registered before be called in each trial."""
        for scope, entries in self._original._extra.items():
            for entry in entries:
                if entry.hook != self._manager._begin:
                    callbacks.register_hook(scope, entry.hook, entry.args, entry.kwargs)

    def _configs(self, treatments: Mapping[str, Treatment]) -> list[TrainingConfig | Callback]:
        """Those of the manager, with quantization as a trial wants it; without, if all is to stay in float."""
        others = [conf for conf in self._manager.configs if conf is not self.config]
        if treatments and all(isinstance(treatment, FloatType) for treatment in treatments.values()):
            return [*others, _LeftInFloat(self._decisions, treatments)]
        quantization = QuantizationAwareTrainingCallbacks(
            spec_with(self._spec, treatments),
            start_step=self.config.start_step,
            freeze_observers_step=self.config.freeze_observers_step,
            freeze_batch_norm_step=self.config.freeze_batch_norm_step,
            as_graph=self.config.as_graph,
            on_extension=self.config.backend == "ipex",
        )
        return [*others, quantization]

    def _give_reasons(self, treatments: Mapping[str, Treatment]) -> None:
        """Let the report say that the search, and no rule of the user, left modules in float."""
        for callback in self._manager.callbacks.callbacks_list:
            if isinstance(callback, _LeftInFloat | QuantizationAwareTrainingCallbacks):
                callback._decisions = {
                    name: made._replace(reason=LEFT_BY_SEARCH) if isinstance(treatments.get(name), FloatType) else made
                    for name, made in callback.decisions.items()
                }

    def _restore_float(self) -> None:
        if not self._manager.callbacks.has_ended:
            self._manager.callbacks.give_up()
        ungraft(self._model)
        self._before.restore_()

    def _load_values(self) -> None:
        """Give the float tensors the values that they had, and the dtype: a trial may have cast them."""
        with torch.no_grad():
            for tensor, value, requires_grad in self._values:
                if tensor.dtype != value.dtype:
                    tensor.data = torch.empty_like(value, device=tensor.device)
                tensor.grad = None
                tensor.requires_grad_(requires_grad)
                tensor.copy_(value)


@final
class _LeftInFloat(Callback):
    """Stands in the place of quantization where a trial leaves all in float: some may compute in bfloat16.

    Args:
        decisions: What would become of each module.
        treatments: What the trial asks for, float types alone.
    """

    stage = Stage.REWRITE

    def __init__(self, decisions: Mapping[str, Prepared], treatments: Mapping[str, Treatment]) -> None:
        self._decisions = dict(decisions)
        for name, treatment in treatments.items():
            self._decisions[name] = Prepared(None, None, treatment if isinstance(treatment, FloatType) else None)

    @property
    def decisions(self) -> Mapping[str, Prepared]:
        """What becomes of each module."""
        return self._decisions

    def findings(self) -> Iterable[Finding]:
        for name, made in self._decisions.items():
            yield Finding(name, scheme=made.scheme, note=made.reason)

    def on_train_end(self) -> None:
        self._decisions = left_to_bfloat16(self.model, self._decisions, unasked=False)


def _checked(train: object) -> Callable[[nn.Module], nn.Module | None]:
    if not callable(train):
        message = f"training.fit got train_func of type {type(train).__name__}: expected a function of a model."
        raise ConfigTypeError(message)
    return train


def _config_of(manager: CompressionManager) -> QuantizationAwareTrainingConfig:
    """The one that is searched in."""
    own = [conf for conf in manager.configs if isinstance(conf, QuantizationAwareTrainingConfig)]
    stateful = [conf for conf in manager.configs if isinstance(conf, Callback)]
    if not own:
        shown = ", ".join(type(conf).__name__ for conf in manager.configs)
        message = (
            f"training.fit got a manager with {shown}: expected a QuantizationAwareTrainingConfig, whose trials it "
            "searches. For other techniques call the hooks in a loop of your own."
        )
        raise ConfigError(message)
    if stateful:
        message = (
            f"training.fit got a manager with the callback {stateful[0]!r}: each trial trains anew, and an object that "
            "was prepared cannot begin again. Give its config instead, or train in a loop of your own."
        )
        raise ConfigError(message)
    if Ranks().count > 1:
        message = (
            "training.fit was called in a distributed run: expected one process, as each trial trains the whole model. "
            "Share a search among processes by set_workspace with the URL of a database, one search in each."
        )
        raise ConfigError(message)
    return own[0]


def _quantization_of(callbacks: Dispatcher) -> QuantizationAwareTrainingCallbacks:
    return next(
        callback for callback in callbacks.callbacks_list if isinstance(callback, QuantizationAwareTrainingCallbacks)
    )


def _float_state(manager: CompressionManager) -> Snapshot:
    before = manager.before
    if before is None:
        message = "training.fit was called after on_train_begin: it trains from the start, so expected a new manager."
        raise HookOrderError(message)
    return before


def _own_tensors_(model: nn.Module, before: Snapshot) -> None:
    """Give what a trial has left in float tensors of its own: the next trial trains the ones that there were."""
    known = before.tensors()
    own: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or id(tensor) not in known:
                    continue
                if id(tensor) not in own:
                    copied = tensor.detach().clone()
                    is_parameter = isinstance(tensor, nn.Parameter)
                    own[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
                tensors[name] = own[id(tensor)]  # type: ignore[assignment]  # of the kind that it was
