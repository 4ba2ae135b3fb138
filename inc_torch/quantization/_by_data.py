"""Rounding weights for the data that they see: by GPTQ and AWQ block by block, by TEQ in the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import nn

from inc_torch.core.batches import run, split
from inc_torch.core.errors import ModelError
from inc_torch.core.report import Finding
from inc_torch.core.sharding import plain_class
from inc_torch.pruners.calibrated import BlockLayer, Technique, block_layers, prune_by_blocks
from inc_torch.quantization._activation_aware import round_activation_aware
from inc_torch.quantization._equivalent import round_by_equivalence
from inc_torch.quantization._seen import SeenInputs
from inc_torch.quantizers import (
    Flow,
    GptqSettings,
    Prepared,
    QuantSpec,
    WeightOnlyScheme,
    adopt_rounded,
    decide,
    group_of_each,
    output_changes,
    round_by_gptq,
    round_to_nearest,
    round_weights,
    rounded_values,
    trace_flow,
    weight_only_name,
)

__all__ = ["quantize_weights_by_data", "samples_wanted"]

_NEARER = "rounded to the nearest, which changes its outputs less than GPTQ"
_OUTSIDE = "rounded to the nearest: it is in none of the blocks that run one after the other"
_IN_BLOCKS = ("gptq", "awq")


def samples_wanted(spec: QuantSpec, model: nn.Module, decisions: Mapping[str, Prepared], usual: int) -> int:
    """How many samples algorithms are to see, those that a search may choose too; 0 where nothing needs any.

    Args:
        spec: What to quantize how.
        model: The model.
        decisions: Of ``spec`` on it.
        usual: What those take that have no number of their own.
    """
    schemes = [
        choice
        for name, type_name in _decided(model, decisions)
        for choice in spec.choices_of(name, type_name)
        if isinstance(choice, WeightOnlyScheme) and choice.algorithm != "rtn"
    ]
    return max(
        ((scheme.gptq or GptqSettings()).samples if scheme.algorithm == "gptq" else usual for scheme in schemes),
        default=0,
    )


def quantize_weights_by_data(
    model: nn.Module, spec: QuantSpec, batches: Sequence[Any], train: Callable[[nn.Module], object] | None = None
) -> dict[str, Prepared]:
    """Round the weights of linear layers in place, each by the algorithm of its scheme.

    TEQ comes first. Then each block is rounded by GPTQ and AWQ for what the rounded blocks before it make of the data.
    Layers outside of the blocks, and layers that no data reached, are rounded to the nearest.

    Args:
        model: The model; in evaluation mode afterwards.
        spec: What to quantize how.
        batches: Of calibration.
        train: Learns the scales of TEQ, see `round_by_equivalence`.

    Returns:
        As `quantize_weights`.

    Raises:
        ModelError: The model has no blocks, see `inc_torch.pruners.calibrated.prune_by_blocks`, or no loss.
    """
    decisions = decide(model, spec)
    wanted = _wanted(spec, model, decisions)
    flow = _flow(model, wanted, batches)
    learned = {name: scheme for name, scheme in wanted.items() if scheme.algorithm == "teq"}
    notes = round_by_equivalence(model, learned, flow, batches, train) if learned else {}
    in_blocks = {name: scheme for name, scheme in wanted.items() if scheme.algorithm in _IN_BLOCKS}
    if in_blocks:
        inside = [name for name in _in_blocks(model, in_blocks) if name in in_blocks]
        technique = _Rounding(in_blocks, dict(model.named_modules()), flow)
        words = ("Rounding", "rounded to the nearest")
        report = prune_by_blocks(model, batches, technique, layers=inside, words=words)
        notes |= {row.name: "; ".join(row.notes) for row in report.modules if row.name in in_blocks and row.notes}
        notes |= {name: _OUTSIDE for name in in_blocks if name not in inside}
    round_weights(model, spec, decisions)
    return {name: made._replace(reason=_joined(made.reason, notes.get(name))) for name, made in decisions.items()}


def _joined(*notes: str | None) -> str | None:
    return "; ".join(filter(None, notes)) or None


def _in_blocks(model: nn.Module, wanted: Mapping[str, WeightOnlyScheme]) -> list[str]:
    try:
        return block_layers(model)
    except ModelError as error:
        algorithm = next(iter(wanted.values())).algorithm.upper()
        message = (
            f"{algorithm} rounds a transformer block by block, and {type(model).__name__} has no blocks: expected "
            "layers in the items of a torch.nn.ModuleList that run one after the other. Take the algorithm 'RTN'."
        )
        raise ModelError(message) from error


def _flow(model: nn.Module, wanted: Mapping[str, WeightOnlyScheme], batches: Sequence[Any]) -> Flow:
    """Where scales can be folded; nowhere if nobody asks."""
    scaled = [name for name, scheme in wanted.items() if scheme.algorithm in {"awq", "teq"}]
    if not scaled:
        return Flow({}, {})
    inputs = split(batches[0], model)[0]
    return trace_flow(model, lambda model: run(model, inputs), scaled)


def _decided(model: nn.Module, decisions: Mapping[str, Prepared]) -> list[tuple[str, str]]:
    """The modules that are quantized, and their classes by name."""
    modules = dict(model.named_modules())
    return [
        (name, plain_class(type(modules[name])).__name__)
        for name, made in decisions.items()
        if made.scheme is not None and name in modules
    ]


def _wanted(spec: QuantSpec, model: nn.Module, decisions: Mapping[str, Prepared]) -> dict[str, WeightOnlyScheme]:
    """The layers that are to be rounded for data, and how."""
    treatments = {name: spec.treatment_of(name, type_name) for name, type_name in _decided(model, decisions)}
    return {
        name: treatment
        for name, treatment in treatments.items()
        if isinstance(treatment, WeightOnlyScheme) and treatment.algorithm != "rtn"
    }


@final
class _Rounding(Technique[SeenInputs]):
    """What is done to the layers of a block.

    Args:
        schemes: By name of the layer.
        modules: All of the model, by name.
        flow: Where scales can be folded.
    """

    def __init__(self, schemes: dict[str, WeightOnlyScheme], modules: dict[str, nn.Module], flow: Flow) -> None:
        self._schemes, self._modules, self._flow = schemes, modules, flow

    def watch(self, width: int, device: torch.device) -> SeenInputs:
        """Remember the products of inputs, and their magnitudes."""
        return SeenInputs(width, device)

    def prune_block(self, block: Sequence[tuple[BlockLayer, SeenInputs]]) -> list[Finding]:
        """Round the layers of a block, in place."""
        by_awq, by_gptq = (
            [(layer, seen) for layer, seen in block if self._schemes[layer.name].algorithm == algorithm]
            for algorithm in ("awq", "gptq")
        )
        findings = round_activation_aware(by_awq, self._schemes, self._modules, self._flow)
        return findings + [self.prune(layer, seen) for layer, seen in by_gptq]

    def prune(self, layer: BlockLayer, seen: SeenInputs) -> Finding:
        """Round a layer by GPTQ, in place."""
        scheme = self._schemes[layer.name]
        matrix, moments = layer.matrix(), seen.moments()
        made = round_by_gptq(matrix, moments, scheme, scheme.gptq or GptqSettings())
        nearest = round_to_nearest(matrix, scheme)
        values = rounded_values(nearest, scheme)
        weight = matrix.to(torch.float32)
        if output_changes(values - weight, moments).sum() < output_changes(made.values - weight, moments).sum():
            adopt_rounded(layer.module, nearest, scheme)
            return Finding(layer.name, scheme=weight_only_name(scheme), note=_NEARER)
        usual = group_of_each(scheme, matrix.shape[1]).to(made.group_of.device)
        group_of = None if torch.equal(made.group_of, usual) else made.group_of
        adopt_rounded(layer.module, made.rounded, scheme, group_of=group_of)
        return Finding(layer.name, scheme=weight_only_name(scheme), note=f"GPTQ, {seen.tokens} tokens")
