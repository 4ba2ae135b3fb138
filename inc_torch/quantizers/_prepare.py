"""From a float model to one that trains under int8 rounding, and the state of its observers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import nn

from inc_torch.core.errors import ConfigError, InexactWarning, ModelError, StateError, did_you_mean, listed
from inc_torch.core.names import named_layers
from inc_torch.core.ranks import Ranks
from inc_torch.core.sharding import plain_class
from inc_torch.core.user_warning import warn_user
from inc_torch.quantizers._eligibility import close_fast_paths, matrix_modules, reason_for_float
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule, fake_quant_class
from inc_torch.quantizers._input_range import InputRange, fold_pending, pending_extremes
from inc_torch.quantizers._int8_module import Int8Module
from inc_torch.quantizers._scheme_names import code_name, weight_only_name
from inc_torch.quantizers._spec import FloatType, QuantRule, QuantScheme, QuantSpec, WeightOnlyScheme
from inc_torch.quantizers._weight_only_linear import WeightOnlyLinear

__all__ = [
    "Prepared",
    "decide",
    "disable_fake_quant",
    "enable_fake_quant",
    "fake_quant_modules",
    "fold_ranges",
    "load_observer_state",
    "observer_state",
    "prepare_fake_quant",
    "reasons_of",
    "rounding_share",
    "stop_observing",
]


class Prepared(NamedTuple):
    """What was decided for one module: a scheme, or the reason for float.

    Attributes:
        scheme: ``"w8a8-static"`` and the like; None if it stays in float.
        reason: Why it stays in float, or what there is to say of how it is quantized.
        float_type: What it is to compute in, if it stays in float because somebody asked for that; None if there is
            no int8 version of it.
    """

    scheme: str | None
    reason: str | None = None
    float_type: FloatType | None = None


def prepare_fake_quant(model: nn.Module, spec: QuantSpec) -> dict[str, Prepared]:
    """Exchange the class of every module that can be int8, in place; fake-quant is off until enabled.

    Parameters, names, hooks, ``isinstance`` and the keys of the state dict stay as they are. Only modules of
    exactly a known class are taken, because a subclass, or its owner, may use the weight in another way.
    Weights that several modules share stay shared; each module rounds them for its own use (an output layer tied
    to an embedding rounds the same rows by the same scales).

    Args:
        model: Any module, also a single layer.
        spec: What to quantize how.

    Returns:
        The decision for every module that owns a weight of rank 2 or more, by the name that it has without wrappers
        (see `named_layers`).

    Raises:
        ModelError: The model was prepared or converted before.
        ConfigError: Nothing is left to quantize, or a rule speaks of no module that can be.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> prepare_fake_quant(model, QuantSpec())["0"]
        Prepared(scheme='w8a8-static', reason=None, float_type=None)
        >>> type(model[0]).__name__, isinstance(model[0], nn.Linear), list(model.state_dict())[:2]
        ('FakeQuantLinear', True, ['0.weight', '0.bias'])
    """
    decisions = decide(model, spec)
    for name, module in list(matrix_modules(model)):
        own = plain_class(type(module))
        treatment, exchanged = spec.treatment_of(name, own.__name__), fake_quant_class(own)
        if decisions[name].scheme is not None and isinstance(treatment, QuantScheme) and exchanged is not None:
            exchanged.adopt(module, treatment)
    close_fast_paths(model)
    return decisions


def decide(model: nn.Module, spec: QuantSpec) -> dict[str, Prepared]:
    """Decide for every module what becomes of it, without changing any; see `prepare_fake_quant`."""
    _refuse_second_preparation(model)
    decisions = {name: _decide(name, module, spec) for name, module in matrix_modules(model)}
    _check_rules(model, spec, decisions)
    if not any(decision.scheme for decision in decisions.values()):
        message = f"Quantization would leave all of {type(model).__name__} in float: {reasons_of(decisions)}."
        raise ConfigError(message)
    return decisions


def _decide(name: str, module: nn.Module, spec: QuantSpec) -> Prepared:
    reason = reason_for_float(module)
    own = plain_class(type(module))
    treatment, kind = spec.treatment_of(name, own.__name__), fake_quant_class(own)
    if reason is not None or kind is None:
        return Prepared(None, reason)
    if isinstance(treatment, FloatType):
        return Prepared(None, _LEFT_IN_FLOAT[treatment], treatment)
    if isinstance(treatment, WeightOnlyScheme):
        if kind.kind != WeightOnlyLinear.replaces:
            return Prepared(None, "weights alone are quantized in linear layers only", FloatType.FLOAT32)
        weight = kind.arranged(module, module.get_parameter("weight"))
        return Prepared(weight_only_name(treatment), _one_group(treatment, weight))
    if treatment.dynamic and not kind.can_be_dynamic:
        return Prepared(None, f"{own.__name__} has no int8 version with dynamic ranges")
    return Prepared(kind.name_of(treatment))


def _one_group(scheme: WeightOnlyScheme, weight: torch.Tensor) -> str | None:
    """Say that groups are longer than rows, where they are; None where they are not."""
    inputs = weight.shape[1]
    return f"each row of {inputs} is one group" if scheme.group_size > inputs else None


_LEFT_IN_FLOAT = {
    FloatType.FLOAT32: "left in float by the configuration",
    FloatType.BFLOAT16: "left in float; the configuration asks for bfloat16",
}


def _refuse_second_preparation(model: nn.Module) -> None:
    for name, module in named_layers(model):
        if isinstance(module, (FakeQuantModule, Int8Module)):
            done = (
                "prepared for quantization"
                if isinstance(module, FakeQuantModule)
                else f"converted to {code_name(module.scheme)}"
            )
            message = f"Module {name!r} is already {done}. Give one quantization config, and the float model."
            raise ModelError(message)


def _check_rules(model: nn.Module, spec: QuantSpec, decided: Collection[str]) -> None:
    """Refuse rules that are lost, and warn of those that ask for what is never done.

    Args:
        model: The model.
        spec: The rules.
        decided: Names of all modules with a matrix weight.
    """
    types = {name: plain_class(type(module)).__name__ for name, module in named_layers(model)}
    for rule in spec.rules:
        caught = [name for name, kind in types.items() if rule.catches(name, kind)]
        if any(name in decided for name in caught):
            continue
        if not caught:
            _refuse_unmatched(rule, types, decided)
        elif around := [name for name in caught if any(_lies_in(inner, name) for inner in decided)]:
            raise ConfigError(_container_message(rule, around[0]))
        elif not isinstance(rule.outcome, FloatType):
            kinds = ", ".join(sorted({types[name] for name in caught}))
            message = f"The quantization rule {rule.pattern!r} has no effect: {kinds} has no matrix weight to quantize."
            warn_user(message, InexactWarning)


def _lies_in(name: str, outer: str) -> bool:
    return name != outer and name.startswith(f"{outer}." if outer else "")


def _refuse_unmatched(rule: QuantRule, types: Mapping[str, str], decided: Collection[str]) -> None:
    if rule.subject == "type" and any(rule.catches("", known) for known in _known_types()):
        return
    present = sorted({types[name] for name in decided}) if rule.subject == "type" else [*decided]
    nearest = did_you_mean(rule.pattern, present) or f" There are {listed(present)}."
    whole = "class name" if rule.subject == "type" else "module name"
    message = (
        f"The quantization rule {rule.pattern!r} of op_{rule.subject}_dict matches no module: a pattern must match the "
        f"whole {whole}.{nearest}"
    )
    raise ConfigError(message)


def _container_message(rule: QuantRule, name: str) -> str:
    inside = re.escape(name) + r"\..*" if name else ".*"
    return (
        f"The quantization rule {rule.pattern!r} of op_{rule.subject}_dict matches {name or 'the model'!r}, which has "
        f"no weight of its own: rules are for single layers. Use the pattern {inside!r} in op_name_dict for all in it."
    )


def _known_types() -> Iterator[str]:
    """Classes of layers that a model may lack without the rule being a typing error."""
    yield from _TYPES_OF_INC
    yield from (name for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, nn.Module))


_TYPES_OF_INC = (
    "Conv1D",
    "QuantStub",
    "DeQuantStub",
    "FloatFunctional",
    "NonDynamicallyQuantizableLinear",
    "BNReLU2d",
    "BNReLU3d",
    "ConvBn1d",
    "ConvBn2d",
    "ConvBn3d",
    "ConvBnReLU1d",
    "ConvBnReLU2d",
    "ConvBnReLU3d",
    "ConvReLU1d",
    "ConvReLU2d",
    "ConvReLU3d",
    "LinearReLU",
)
"""Operation types that INC knows besides the modules of torch.nn, and the linear layer of GPT-2 in transformers."""


def reasons_of(decisions: Mapping[str, Prepared]) -> str:
    """Why modules stay in float, as a part of a sentence."""
    shown = [f"{name or '(root)'}: {decision.reason}" for name, decision in list(decisions.items())[:5]]
    more = len(decisions) - len(shown)
    told = "; ".join(shown) or "it has no module with a matrix weight"
    return f"{told}; and {more} more" if more else told


def fake_quant_modules(model: nn.Module) -> Iterator[tuple[str, FakeQuantModule]]:
    """Yield name and module of everything that `prepare_fake_quant` exchanged."""
    for name, module in named_layers(model):
        if isinstance(module, FakeQuantModule):
            yield name, module


def _observers(model: nn.Module) -> dict[str, FakeQuantModule]:
    return {name: module for name, module in fake_quant_modules(model) if module.observes}


def enable_fake_quant(model: nn.Module, observe: bool) -> None:
    """Let the prepared modules round, and if ``observe`` note the extremes of their inputs for `fold_ranges`.

    Extremes are noted only in training mode, and not while gradient checkpointing repeats a forward. Inputs are
    rounded by the range folded so far; before the first fold they pass as they are.
    """
    for _, module in fake_quant_modules(model):
        module._fake_quant, module._observing = True, observe and module.observes


def disable_fake_quant(model: nn.Module) -> None:
    """Let the prepared modules compute exactly as in float again; ranges are kept."""
    for _, module in fake_quant_modules(model):
        module._fake_quant = module._observing = False


def rounding_share(model: nn.Module) -> float:
    """Share of the prepared modules whose weights, and inputs where they are quantized, are rounded in a forward."""
    rounding = [module.is_rounding for _, module in fake_quant_modules(model)]
    return sum(rounding) / len(rounding) if rounding else 0.0


def stop_observing(model: nn.Module) -> None:
    """Let ranges stay as they are: what was noted since they were last folded is dropped, and nothing more is noted."""
    for module in model.modules():
        if isinstance(module, FakeQuantModule):
            module._observing = False
            module._input_range.pending = None


def fold_ranges(model: nn.Module, ranks: Ranks | None = None) -> None:
    """Take what was observed since the last call into the ranges, as one step; called once for an optimizer step.

    With several ranks this is a collective, one for the whole model.

    Args:
        model: A prepared model.
        ranks: Who trains it together; None is all processes.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = prepare_fake_quant(layer, QuantSpec())
        >>> enable_fake_quant(layer, observe=True)
        >>> for batch in ([[-3.0, 1.0]], [[0.0, 2.0]]):
        ...     _ = layer(torch.tensor(batch))
        >>> fold_ranges(layer)
        >>> observer_state(layer)[""]["range"].tolist()
        [-3.0, 2.0]
    """
    # Not _observers: names take longer than all the rest, and this runs at every step.
    observers = [module for module in model.modules() if isinstance(module, FakeQuantModule) and module.observes]
    if observers:
        fold_pending([module._input_range for module in observers], ranks or Ranks(), observers[0].weight_device)


def observer_state(model: nn.Module, ranks: Ranks | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """Return what the observers of all ranks know; the same on each of them, and a collective.

    Returns:
        By module name: ``range`` (float64: least, greatest), ``steps`` that were folded into it (int64), and
        ``pending``, what was observed since (float32: least, greatest; inf, -inf if nothing was).
    """
    observers = _observers(model)
    if not observers:
        return {}
    ranges = [module._input_range for module in observers.values()]
    device = next(iter(observers.values())).weight_device
    pending = pending_extremes(ranges, ranks or Ranks(), device).cpu() * _SIGNS
    return {
        name: {
            "range": torch.tensor([seen.low, seen.high], dtype=torch.float64),
            "steps": torch.tensor(seen.steps),
            "pending": extremes.clone(),
        }
        for name, seen, extremes in zip(observers, ranges, pending, strict=True)
    }


_SIGNS = torch.tensor([-1.0, 1.0])
"""Between ``[-least, greatest]`` and ``[least, greatest]``."""
_STATE_KEYS = frozenset({"range", "steps", "pending"})


def load_observer_state(model: nn.Module, state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Continue from `observer_state`, on any number of ranks.

    Raises:
        StateError: The state is of other modules than those of ``model``.
    """
    observers = _observers(model)
    for name in observers.keys() ^ state.keys():
        where = "the saved state, but not the model" if name in state else "the model, but not the saved state"
        message = (
            f"Observer {name!r} is in {where}. Prepare the model with the configuration that the state was saved under."
        )
        raise StateError(message)
    for name, module in observers.items():
        if wrong := _STATE_KEYS ^ state[name].keys():
            message = (
                f"The state of observer {name!r} must have the keys {sorted(_STATE_KEYS)}; {sorted(wrong)} differ."
            )
            raise StateError(message)
        low, high = state[name]["range"].tolist()
        pending = state[name]["pending"].cpu() * _SIGNS
        is_empty = bool(pending.isneginf().all())
        steps, scheme = int(state[name]["steps"]), module._input_range.scheme
        module._input_range = InputRange(low, high, steps, None if is_empty else pending, scheme)
