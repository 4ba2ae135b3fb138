"""What calibration would know of the inputs of a prepared model, gathered in the plainest way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from inc_torch.quantizers._prepare import fake_quant_modules


@dataclass
class Seen:
    """The record of one module."""

    channel_low: torch.Tensor
    channel_high: torch.Tensor
    sources: tuple[int, ...] = ()
    sample: list[torch.Tensor] = field(default_factory=list)


def seen_inputs(model: nn.Module, batches: Iterable[object]) -> dict[str, Seen]:
    """Run ``batches`` through ``model``; a mapping is given as keywords."""
    kept: dict[str, list[torch.Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _module, args, name=name: kept.setdefault(name, []).append(args[0]))
        for name, module in fake_quant_modules(model)
        if module.has_input_grid
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch) if isinstance(batch, dict) else model(batch)
    for handle in handles:
        handle.remove()
    modules = dict(fake_quant_modules(model))
    numbers: dict[int, int] = {}
    return {name: _record(modules[name], inputs, numbers) for name, inputs in kept.items()}


def _record(module: nn.Module, inputs: list[torch.Tensor], numbers: dict[int, int]) -> Seen:
    spatial = len(getattr(module, "kernel_size", ()))
    rows = torch.cat([values.movedim(values.dim() - 1 - spatial, 0).flatten(1) for values in inputs], 1).double()
    sources = tuple(numbers.setdefault(id(values), len(numbers)) for values in inputs)
    return Seen(rows.amin(1), rows.amax(1), sources, inputs)
