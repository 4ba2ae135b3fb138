"""Rounding weights for the inputs that they see: transformers block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import nn

from inc_torch.core.errors import ModelError
from inc_torch.core.report import Finding
from inc_torch.core.sharding import plain_class
from inc_torch.pruners.calibrated import BlockLayer, Hessian, block_layers, prune_by_blocks
from inc_torch.quantizers import (
    GptqSettings,
    Prepared,
    QuantSpec,
    WeightOnlyScheme,
    adopt_rounded,
    decide,
    group_of_each,
    round_by_gptq,
    round_to_nearest,
    round_weights,
    rounded_values,
    weight_only_name,
)

__all__ = ["quantize_weights_by_blocks", "samples_for_gptq"]

_NEARER = "rounded to the nearest, which changes its outputs less than GPTQ"
_OUTSIDE = "rounded to the nearest: it is in none of the blocks that run one after the other"


def samples_for_gptq(spec: QuantSpec, model: nn.Module, decisions: Mapping[str, Prepared]) -> int:
    """How many samples GPTQ is to see; 0 where no module of ``model`` is rounded by it."""
    schemes = _wanted(spec, model, decisions).values()
    settings = [(scheme.gptq or GptqSettings()).samples for scheme in schemes]
    return max(settings, default=0)


def quantize_weights_by_blocks(model: nn.Module, spec: QuantSpec, batches: Sequence[Any]) -> dict[str, Prepared]:
    """Round the weights of linear layers, those by GPTQ that are asked for and lie in blocks, in place.

    Each block is rounded for what the rounded blocks before it make of the data. Layers outside of the blocks, and
    layers that no data reached, are rounded to the nearest.

    Args:
        model: The model; in evaluation mode afterwards.
        spec: What to quantize how.
        batches: Of calibration.

    Returns:
        As `quantize_weights`.

    Raises:
        ModelError: The model has no blocks, see `inc_torch.pruners.calibrated.prune_by_blocks`.
    """
    decisions = decide(model, spec)
    wanted = _wanted(spec, model, decisions)
    inside = [name for name in _in_blocks(model) if name in wanted]
    report = prune_by_blocks(model, batches, _Gptq(wanted), layers=inside, words=("Rounding", "rounded to the nearest"))
    notes = {row.name: "; ".join(row.notes) for row in report.modules if row.name in wanted and row.notes}
    notes |= {name: _OUTSIDE for name in wanted if name not in inside}
    round_weights(model, spec, decisions)
    return {name: made._replace(reason=_joined(made.reason, notes.get(name))) for name, made in decisions.items()}


def _joined(*notes: str | None) -> str | None:
    return "; ".join(filter(None, notes)) or None


def _in_blocks(model: nn.Module) -> list[str]:
    try:
        return block_layers(model)
    except ModelError as error:
        message = (
            f"GPTQ rounds a transformer block by block, and {type(model).__name__} has no blocks: expected layers in "
            "the items of a torch.nn.ModuleList that run one after the other. Take the algorithm 'RTN'."
        )
        raise ModelError(message) from error


def _wanted(spec: QuantSpec, model: nn.Module, decisions: Mapping[str, Prepared]) -> dict[str, WeightOnlyScheme]:
    """The layers that are to be rounded by GPTQ, and how."""
    modules = dict(model.named_modules())
    treatments = {
        name: spec.treatment_of(name, plain_class(type(modules[name])).__name__)
        for name, made in decisions.items()
        if made.scheme is not None and name in modules
    }
    return {
        name: treatment
        for name, treatment in treatments.items()
        if isinstance(treatment, WeightOnlyScheme) and treatment.algorithm == "gptq"
    }


@final
class _Gptq:
    """`round_by_gptq` as a technique for blocks.

    Args:
        schemes: By name of the layer.
    """

    def __init__(self, schemes: dict[str, WeightOnlyScheme]) -> None:
        self._schemes = schemes

    def watch(self, width: int, device: torch.device) -> Hessian:
        """Remember the products of inputs."""
        return Hessian(width, device)

    def prune(self, layer: BlockLayer, seen: Hessian) -> Finding:
        """Round the layer, in place."""
        scheme = self._schemes[layer.name]
        matrix = layer.matrix()
        hessian = seen.matrix()
        made = round_by_gptq(matrix, hessian, scheme, scheme.gptq or GptqSettings())
        nearest = round_to_nearest(matrix, scheme)
        values = rounded_values(nearest, scheme)
        if _output_error(values, matrix, hessian) < _output_error(made.values, matrix, hessian):
            adopt_rounded(layer.module, nearest, scheme)
            return Finding(layer.name, scheme=weight_only_name(scheme), note=_NEARER)
        usual = group_of_each(scheme, matrix.shape[1]).to(made.group_of.device)
        group_of = None if torch.equal(made.group_of, usual) else made.group_of
        adopt_rounded(layer.module, made.rounded, scheme, group_of)
        return Finding(layer.name, scheme=weight_only_name(scheme), note=f"GPTQ, {seen.tokens} tokens")


def _output_error(values: torch.Tensor, weight: torch.Tensor, hessian: torch.Tensor) -> float:
    """The mean square by which outputs change, up to a factor."""
    difference = values - weight.to(torch.float32)
    return float(((difference @ hessian) * difference).sum())
