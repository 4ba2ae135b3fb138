"""The operations of a model as a search sees them, and back: from its choices to schemes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, final

import torch
from torch import nn

from inc_torch.core.names import named_layers
from inc_torch.core.sharding import plain_class
from inc_torch.precision import has_bfloat16, reasons_against_bfloat16
from inc_torch.quantizers import (
    OBSERVERS,
    FloatType,
    Prepared,
    QuantRule,
    QuantScheme,
    QuantSpec,
    Scheme,
    Treatment,
    WeightOnlyScheme,
    quantized_kind,
    weight_only_name,
)
from inc_torch.tuning import Choice, Mode, Operation, Recipe, Space, feed_forward_blocks

__all__ = ["QuantizedOperations", "spec_with"]

_LOWER_BITS = 4


@final
@dataclass(frozen=True, slots=True)
class QuantizedOperations:
    """What a search may make of the modules of a model.

    Attributes:
        space: The same in the words of a search.
        treatments: By name of operation and label.
    """

    space: Space
    treatments: Mapping[str, Mapping[str, Treatment]]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        decisions: Mapping[str, Prepared],
        spec: QuantSpec,
        *,
        with_dynamic: bool = False,
        with_bfloat16: bool = True,
        samples: Sequence[int] = (),
        alphas: Sequence[float] = (),
    ) -> QuantizedOperations:
        """List what may be chosen for the modules that would be quantized.

        Args:
            model: Before anything was done to it.
            decisions: Of `prepare_fake_quant` or `quantize_weights`.
            spec: What these were made by.
            with_dynamic: Ranges of inputs may also be those of each batch.
            with_bfloat16: Modules may also compute in bfloat16, where the processor has it.
            samples: Numbers of calibration samples to choose from.
            alphas: Of smoothing, to choose from.
        """
        kinds = {name: plain_class(type(module)) for name, module in named_layers(model)}
        names = [name for name, made in decisions.items() if made.scheme is not None]
        halves = _able_to_bfloat16(model, names) if with_bfloat16 else frozenset()
        treatments: dict[str, dict[str, Treatment]] = {}
        modes: dict[str, dict[str, Mode]] = {}
        for name in names:
            ways = _ways(name, kinds[name], spec, with_dynamic=with_dynamic, halves=halves)
            treatments[name] = {label: treatment for label, _, treatment in ways}
            modes[name] = {label: mode for label, mode, _ in ways}
        operations = tuple(
            Operation(name, kinds[name].__name__, tuple(Choice(*entry) for entry in modes[name].items()))
            for name in names
        )
        blocks = tuple(
            kept for block in feed_forward_blocks(model) if (kept := tuple(name for name in block if name in modes))
        )
        return cls(Space(operations, tuple(samples), tuple(alphas), blocks), treatments)

    def treatments_of(self, recipe: Recipe) -> dict[str, Treatment]:
        """What a recipe makes of each module."""
        chosen = self.space.chosen(recipe)
        return {operation.name: self.treatments[operation.name][choice.label] for operation, choice in chosen}


def spec_with(spec: QuantSpec, treatments: Mapping[str, Treatment]) -> QuantSpec:
    """A copy of ``spec`` in which these modules, by name, are treated so, whatever its rules say."""
    rules = (
        QuantRule("name", re.escape(name), treatment if isinstance(treatment, FloatType) else _fields(treatment))
        for name, treatment in treatments.items()
    )
    return replace(spec, rules=(*spec.rules, *rules))


def _fields(scheme: Scheme) -> dict[str, Any]:
    return {field.name: getattr(scheme, field.name) for field in fields(scheme)}


_Way = tuple[str, Mode, Treatment]


def _ways(
    name: str, kind: type[nn.Module], spec: QuantSpec, *, with_dynamic: bool, halves: Collection[str]
) -> list[_Way]:
    """All ways to compute a module, the default first."""
    exchanged = quantized_kind(kind)
    schemes = [scheme for scheme in spec.choices_of(name, kind.__name__) if not isinstance(scheme, FloatType)]
    first = schemes[0]
    if exchanged is not None and not exchanged.has_input_grid and isinstance(first, QuantScheme):
        ways: list[_Way] = [("int8 rows", Mode.STATIC, first)]
    else:
        ways = [_way(scheme) for scheme in schemes]
    if isinstance(first, QuantScheme) and exchanged is not None:
        if with_dynamic and exchanged.can_be_dynamic and not first.dynamic:
            ways.append(_way(replace(first, dynamic=True)))
        if exchanged.has_input_grid and first.weight_bits > _LOWER_BITS:
            ways += _lower(replace(first, weight_bits=_LOWER_BITS), ways)
    elif isinstance(first, WeightOnlyScheme) and first.bits > _LOWER_BITS:
        ways += _lower(replace(first, bits=_LOWER_BITS), ways)
    if name in halves:
        ways.append(("bf16", Mode.BFLOAT16, FloatType.BFLOAT16))
    return [*ways, ("fp32", Mode.FLOAT32, FloatType.FLOAT32)]


def _lower(scheme: Scheme, others: Sequence[_Way]) -> list[_Way]:
    """Fewer bits; nothing where they are a choice like others, as a rule may say."""
    label, _, treatment = _way(scheme)
    return [] if label in {known for known, _, _ in others} else [(label, Mode.LOWER, treatment)]


def _way(scheme: QuantScheme | WeightOnlyScheme) -> _Way:
    if isinstance(scheme, WeightOnlyScheme):
        return weight_only_name(scheme), Mode.WEIGHT_ONLY, scheme
    symmetry = "sym" if scheme.symmetric_input else "asym"
    granularity = "" if scheme.per_channel else " per tensor"
    if scheme.dynamic:
        return f"int{scheme.weight_bits} dynamic {symmetry}{granularity}", Mode.DYNAMIC, scheme
    observer = next(entry.name for entry in OBSERVERS if entry.value is type(scheme.input_observer))
    return f"int{scheme.weight_bits} {symmetry}/{observer}{granularity}", Mode.STATIC, scheme


def _able_to_bfloat16(model: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Those that may go to bfloat16 each on its own: tied weights cannot."""
    device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    if not has_bfloat16(device):
        return frozenset()
    return frozenset(name for name in names if not reasons_against_bfloat16(model, [name]))
