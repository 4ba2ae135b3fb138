"""Several steps: one training that does them all at once, or one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, final

from torch import nn

from inc_torch.callbacks import TrainingConfig
from inc_torch.config import QuantizationAwareTrainingConfig
from inc_torch.core.errors import ConfigError, ConfigTypeError, InexactWarning
from inc_torch.core.names import unwrapped
from inc_torch.core.user_warning import warn_user
from inc_torch.experimental._settings import OnlyKnown, Setting, function, opened
from inc_torch.experimental.component import Component
from inc_torch.experimental.distillation import Distillation
from inc_torch.experimental.pruning import Pruning
from inc_torch.experimental.quantization import Quantization
from inc_torch.export import attached_report
from inc_torch.pipeline._zeros import CarriedZeros, layers_pruned_by, pruned_layers
from inc_torch.training import CompressionManager

__all__ = ["Scheduler"]

_COMBINED: Final = (Quantization, Pruning, Distillation)
_FEWEST: Final = 2
_ASSIGNED: Final = (
    "train_func",
    "eval_func",
    "train_dataloader",
    "_eval_dataloader",
    "criterion",
    "optimizer",
    "metric",
    "postprocess",
)
"""What a combination takes from its parts; loaders only where they are no matter of a file."""


@final
class _Combination(Component):
    """One training that does what several components say; made by `Scheduler.combine`."""

    def __init__(self, components: Sequence[Component]) -> None:
        super().__init__()
        self._components = _flat(components)
        _check_combined(self._components)
        leader = next((each for each in self._components if isinstance(each, Distillation)), self._components[0])
        self._leader = leader
        for name in _ASSIGNED:
            self._take(name)
        model = next((each.model for each in self._components if each.model is not None), None)
        if model is not None:
            self.model = model

    def __repr__(self) -> str:
        return f"Combination of {','.join(map(repr, self._components))}"

    @property
    def _cfg(self) -> Any:  # noqa: ANN401
        return self._leader.conf.usr_cfg

    def _take(self, name: str) -> None:
        """What a component was assigned; the first one counts, that which leads before all."""
        given = [getattr(each, name) for each in (self._leader, *self._components)]
        found = [value for value in given if value is not None]
        if found:
            setattr(self, name, found[0])
            if any(value is not found[0] for value in found):
                warn_user(f"{self!r}: several {name.lstrip('_')} are assigned, the first one counts.", InexactWarning)

    def _training_configs(self) -> Sequence[TrainingConfig]:
        return [config for each in self._components for config in each._training_configs()]

    def _train_section(self) -> Any:  # noqa: ANN401
        sections = [each._train_section() for each in (self._leader, *self._components)]
        return next((section for section in sections if section is not None), None)

    def _task_loss(self) -> Callable[[Any, Any], Any] | None:
        return self._leader._task_loss()

    def _begun(self, manager: CompressionManager) -> None:
        for each in self._components:
            each._model, each._manager = self._model, manager  # so that its hooks are those of the whole


def _flat(components: Sequence[Component]) -> list[Component]:
    """Parts, those of combinations too."""
    return [part for each in components for part in (each._components if isinstance(each, _Combination) else [each])]


def _check_combined(components: Sequence[Component]) -> None:
    for each in components:
        if not isinstance(each, _COMBINED):
            known = ", ".join(kind.__name__ for kind in _COMBINED)
            message = f"Scheduler.combine got {each!r}: expected {known}, which one training can do. Append it instead."
            raise ConfigError(message)
        if isinstance(each, Quantization) and not isinstance(each._config(), QuantizationAwareTrainingConfig):
            message = (
                f"Scheduler.combine got a Quantization whose file asks for {each._config().approach!r}: expected "
                "'quant_aware_training', which takes part in a training. Append it, to quantize what that leaves."
            )
            raise ConfigError(message)
    kinds = Counter(type(each).__name__ for each in components)
    for kind, count in kinds.items():
        if count > 1:
            message = f"Scheduler.combine got {count} components {kind}: expected each kind once."
            raise ConfigError(message)
    devices = dict.fromkeys(each.conf.usr_cfg.device for each in components if each.conf.is_given)
    if len(devices) > 1:
        message = f"Scheduler.combine got components with the devices {', '.join(devices)}: expected one for all."
        raise ConfigError(message)


@final
class Scheduler(OnlyKnown):
    """Runs components one after the other, each on the model that the one before left.

    Zeros that a step pruned stay: a later training locks them, and a quantization leaves them zero.

    Example:
        >>> import torch
        >>> prune, quantizer = Pruning(), Quantization()
        >>> quantizer.calib_dataloader = [torch.randn(4, 8) for _ in range(4)]
        >>> def train(model):
        ...     for epoch in range(5):
        ...         prune.on_epoch_begin(epoch)
        ...         prune.on_epoch_end()
        >>> prune.train_func = train
        >>> scheduler = Scheduler()
        >>> scheduler.model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> scheduler.append(prune, quantizer)
        >>> int8 = scheduler.fit()
        >>> type(int8[0]).__name__, int((int8[0].qweight == 0).sum())
        ('Int8Linear', 62)

    Source: INC 2.6.1 ``experimental.scheduler.Scheduler``; differs in that zeros are kept, that wrong combinations are
    refused, and that it is exported from ``experimental``.
    """

    model = Setting("The model that the first component begins with.", opened)
    train_func = Setting("Handed to every component before it runs.", function)
    eval_func = Setting("Handed to every component before it runs.", function)

    def __init__(self) -> None:
        self._components: list[Component] = []

    def __repr__(self) -> str:
        return f"Scheduler({self._components})"

    def __call__(self) -> Any:  # noqa: ANN401
        """The same as `fit`."""
        return self.fit()

    @property
    def components(self) -> tuple[Component, ...]:
        """What `fit` runs, in this order."""
        return tuple(self._components)

    def append(self, *components: Component) -> None:
        """Add steps.

        Raises:
            ConfigTypeError: One is no component.
        """
        for each in components:
            _check_component("append", each)
        self._components += components

    def combine(self, *components: Component) -> Component:
        """Return one step that does what several say in one training; it is to be appended.

        Raises:
            ConfigError: There are fewer than two, two of a kind, or one that is no part of a training.
            ConfigTypeError: One is no component.
        """
        for each in components:
            _check_component("combine", each)
        if len(components) < _FEWEST:
            message = f"Scheduler.combine got {len(components)} component: expected two or more."
            raise ConfigError(message)
        return _Combination(components)

    def fit(self) -> Any:  # noqa: ANN401  a module, whose own attributes are used
        """Run all steps.

        Returns:
            The model that the last one returned.

        Raises:
            ConfigError: There is no model or no step.
            ModelError: A step lost zeros that an earlier one pruned.
        """
        if self.model is None:
            message = "Scheduler has no model: assign one, scheduler.model = model."
            raise ConfigError(message)
        if not self._components:
            message = "Scheduler has nothing to do: append components, scheduler.append(prune, quantizer)."
            raise ConfigError(message)
        model: Any = self.model
        pruned: set[str] = set()
        for number, component in enumerate(self._components):
            for name in ("train_func", "eval_func"):
                if getattr(self, name) is not None:
                    setattr(component, name, getattr(self, name))
            component.model = model
            component._to_lock = frozenset(pruned)
            kept = pruned - _layers_of(component) if pruned else set()
            zeros = CarriedZeros.of(unwrapped(model), kept)
            try:
                result = component()
            except Exception as error:
                error.add_note(f"In step {number}, {component!r}, of {len(self._components)} of the scheduler.")
                raise
            if isinstance(result, nn.Module):  # a benchmark returns what it measured
                model = result
                zeros.require(unwrapped(model), repr(component))
                report = attached_report(unwrapped(model))
                pruned = pruned_layers(report) if report is not None else pruned
        return model


def _layers_of(component: Component) -> set[str]:
    """Layers that the step prunes by itself."""
    return layers_pruned_by(component._training_configs(), unwrapped(component._required_model()))


def _check_component(owner: str, given: object) -> None:
    if not isinstance(given, Component):
        hint = " Give an object, not its class." if isinstance(given, type) and issubclass(given, Component) else ""
        message = f"Scheduler.{owner} got {given!r}: expected components such as Pruning, Quantization.{hint}"
        raise ConfigTypeError(message)
