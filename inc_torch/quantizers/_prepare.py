"""From a float model to one that trains under int8 rounding, and the state of its observers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import nn

from inc_torch.core.errors import ConfigError, InexactWarning, ModelError, StateError
from inc_torch.core.user_warning import warn_user
from inc_torch.quantizers._eligibility import close_fast_paths, matrix_modules, reason_for_float
from inc_torch.quantizers._int8_modules import Int8Module
from inc_torch.quantizers._observer import InputRange
from inc_torch.quantizers._qat_modules import QATModule, qat_class
from inc_torch.quantizers._spec import QATSpec

__all__ = [
    "Prepared",
    "disable_fake_quant",
    "enable_fake_quant",
    "load_observer_state",
    "observer_state",
    "prepare_qat",
    "qat_modules",
]


class Prepared(NamedTuple):
    """What was decided for one module: a scheme, or the reason for float.

    Attributes:
        scheme: ``"w8a8-static"`` and the like; None if it stays in float.
        reason: Why it stays in float; None if it does not.
    """

    scheme: str | None
    reason: str | None = None


def prepare_qat(model: nn.Module, spec: QATSpec) -> dict[str, Prepared]:
    """Exchange the class of every module that can be int8, in place; fake-quant is off until enabled.

    Parameters, names, hooks, ``isinstance`` and the keys of the state dict stay as they are. Only modules of
    exactly a known class are taken, because a subclass, or its owner, may use the weight in another way.
    Weights that several modules share stay shared; each module rounds them for its own use (an output layer tied
    to an embedding rounds the same rows by the same scales).

    Args:
        model: Any module, also a single layer.
        spec: What to quantize how.

    Returns:
        The decision for every module that owns a weight of rank 2 or more, by name.

    Raises:
        ModelError: The model was prepared or converted before.
        ConfigError: Nothing is left to quantize.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ConvTranspose1d(4, 4, 1))
        >>> prepare_qat(model, QATSpec())["0"]
        Prepared(scheme='w8a8-static', reason=None)
        >>> type(model[0]).__name__, isinstance(model[0], nn.Linear), list(model.state_dict())[:2]
        ('QATLinear', True, ['0.weight', '0.bias'])
    """
    _refuse_second_preparation(model)
    decisions = {name: _decide(name, module, spec) for name, module in matrix_modules(model)}
    _warn_of_idle_rules(model, spec)
    if not any(scheme for scheme, _ in decisions.values()):
        message = f"Quantization would leave all of {type(model).__name__} in float: {_reasons(decisions)}."
        raise ConfigError(message)
    for name, module in list(matrix_modules(model)):
        scheme = spec.scheme_for(name, type(module).__name__)
        exchanged = qat_class(type(module))
        if decisions[name].scheme is not None and scheme is not None and exchanged is not None:
            exchanged.adopt(module, scheme)
    close_fast_paths(model)
    return decisions


def _decide(name: str, module: nn.Module, spec: QATSpec) -> Prepared:
    reason = reason_for_float(module)
    scheme = spec.scheme_for(name, type(module).__name__)
    kind = qat_class(type(module))
    if reason is not None or kind is None:
        return Prepared(None, reason)
    if scheme is None:
        return Prepared(None, "left in float by the configuration")
    return Prepared(kind.name_of(scheme))


def _refuse_second_preparation(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, (QATModule, Int8Module)):
            done = "prepared for quantization" if isinstance(module, QATModule) else "converted to int8"
            message = f"Module {name!r} is already {done}. Give one quantization config, and the float model."
            raise ModelError(message)


def _warn_of_idle_rules(model: nn.Module, spec: QATSpec) -> None:
    names = [name for name, _ in model.named_modules()]
    for rule in spec.rules:
        if rule.subject == "name" and not any(rule.catches(name, "") for name in names):
            message = f"The quantization rule {rule.pattern!r} matches no module: a pattern must match the whole name."
            warn_user(message, InexactWarning)


def _reasons(decisions: Mapping[str, Prepared]) -> str:
    shown = [f"{name or '(root)'}: {decision.reason}" for name, decision in list(decisions.items())[:5]]
    more = len(decisions) - len(shown)
    listed = "; ".join(shown) or "it has no module with a matrix weight"
    return f"{listed}; and {more} more" if more else listed


def qat_modules(model: nn.Module) -> Iterator[tuple[str, QATModule]]:
    """Yield name and module of everything that `prepare_qat` exchanged."""
    for name, module in model.named_modules():
        if isinstance(module, QATModule):
            yield name, module


def enable_fake_quant(model: nn.Module, observe: bool) -> None:
    """Let the prepared modules round, and if ``observe`` follow the ranges of their inputs.

    Ranges are followed only in training mode, and not while gradient checkpointing repeats a forward.
    """
    for _, module in qat_modules(model):
        module._fake_quant, module._observing = True, observe


def disable_fake_quant(model: nn.Module) -> None:
    """Let the prepared modules compute exactly as in float again; ranges are kept."""
    for _, module in qat_modules(model):
        module._fake_quant = module._observing = False


def observer_state(model: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """Return what the observers know, by module name: ``range`` (float64: least, greatest) and ``batches`` (int64)."""
    return {
        name: {
            "range": torch.tensor([module._input_range.low, module._input_range.high], dtype=torch.float64),
            "batches": torch.tensor(module._input_range.batches),
        }
        for name, module in qat_modules(model)
        if module.has_input_grid
    }


def load_observer_state(model: nn.Module, state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Continue from `observer_state`.

    Raises:
        StateError: The state is of other modules than those of ``model``.
    """
    observed = {name: module for name, module in qat_modules(model) if module.has_input_grid}
    for name in observed.keys() ^ state.keys():
        where = "the saved state, but not the model" if name in state else "the model, but not the saved state"
        message = (
            f"Observer {name!r} is in {where}. Prepare the model with the configuration that the state was saved under."
        )
        raise StateError(message)
    for name, module in observed.items():
        if missing := {"range", "batches"} ^ state[name].keys():
            message = (
                f"The state of observer {name!r} must have the keys 'batches' and 'range'; {sorted(missing)} differ."
            )
            raise StateError(message)
        low, high = state[name]["range"].tolist()
        module._input_range = InputRange(low, high, int(state[name]["batches"]))
