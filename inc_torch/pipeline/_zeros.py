"""Zeros that a stage pruned, carried by name through the stages behind it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from inc_torch.callbacks import Callback, PruningCallbacks, TrainingConfig
from inc_torch.config import WeightPruningConfig
from inc_torch.core.errors import InexactWarning, ModelError
from inc_torch.core.names import named_layers
from inc_torch.core.report import CompressionReport
from inc_torch.core.sharding import plain_class
from inc_torch.core.user_warning import ignored
from inc_torch.pruners import Pruner
from inc_torch.quantizers import Int8Module, WeightOnlyLinear, quantized_kind

__all__ = ["CarriedZeros", "layers_pruned_by", "lock_of", "pruned_layers"]


def pruned_layers(report: CompressionReport) -> set[str]:
    """Names of the layers whose zeros somebody asked for."""
    return {row.name for row in report.modules if row.asked_sparsity is not None}


def layers_pruned_by(confs: Iterable[TrainingConfig | Callback], model: nn.Module) -> set[str]:
    """Names of the layers that ``confs`` prune or lock by themselves."""
    pruners: list[Pruner] = []
    with ignored(InexactWarning):  # said again when the stage is prepared
        for conf in confs:
            if isinstance(conf, WeightPruningConfig):
                pruners += [Pruner(spec, model) for spec in conf.to_specs()]
            elif isinstance(conf, PruningCallbacks):
                pruners += conf.pruners
    return {layer.name for pruner in pruners for layer in pruner.layers}


def lock_of(names: Iterable[str], model: nn.Module) -> WeightPruningConfig:
    """The config that keeps every zero of the named layers, and does nothing else."""
    listed = sorted(names)
    kinds = {plain_class(type(module)).__name__ for name, module in named_layers(model) if name in listed}
    return WeightPruningConfig(
        pruning_type="pattern_lock",
        op_names=[f"^{re.escape(name)}$" for name in listed],
        pruning_op_types=sorted(kinds),
    )


@final
@dataclass(frozen=True, slots=True)
class CarriedZeros:
    """Where the weights of some layers are zero, to be looked at again when a stage is through.

    Attributes:
        masks: By layer name, True where a weight is zero, in the shape of the weight.
        arranged: The same as int8 modules keep their codes.
    """

    masks: dict[str, torch.Tensor]
    arranged: dict[str, torch.Tensor]

    @classmethod
    def of(cls, model: nn.Module, names: Iterable[str]) -> CarriedZeros:
        """Look at the float weights of the layers ``names``; those without a zero are left out."""
        wanted, masks, arranged = set(names), {}, {}
        for name, module in named_layers(model):
            weight = getattr(module, "weight", None) if name in wanted else None
            if not isinstance(weight, torch.Tensor) or not bool((weight == 0).any()):
                continue
            masks[name] = weight.detach() == 0
            kind = quantized_kind(plain_class(type(module)))
            arranged[name] = masks[name] if kind is None else kind.arranged(module, masks[name])
        return cls(masks, arranged)

    def require(self, model: nn.Module, stage: str) -> None:
        """Make sure that every one of them is zero in ``model`` too, float or int8.

        Raises:
            ModelError: One is not; stage and layer are named.
        """
        modules = dict(named_layers(model))
        for name, mask in self.masks.items():
            module = modules.get(name)
            values = None if module is None else _values(module)
            if values is None:
                lost = f"left no layer {name!r}, whose {int(mask.sum())} zeros it was to keep"
                raise _loss(stage, lost)
            zero = self.arranged[name] if isinstance(module, Int8Module) else mask
            if count := int(torch.count_nonzero(values[zero.to(values.device)])):
                lost = f"lost {count} of the {int(mask.sum())} zeros in layer {name!r} that an earlier stage pruned"
                raise _loss(stage, lost)


def _loss(stage: str, lost: str) -> ModelError:
    return ModelError(
        f"Stage {stage!r} {lost}. Leave out what moves weights of pruned layers, such as the recipe weight_correction "
        "or a weight-only algorithm that makes up for errors, or let the stage have keep_zeros=False."
    )


def _values(module: nn.Module) -> torch.Tensor | None:
    """What is zero exactly where the weight is."""
    if isinstance(module, WeightOnlyLinear):
        return module.signed_codes()
    if isinstance(module, Int8Module):
        return module.qweight
    weight = getattr(module, "weight", None)
    return weight.detach() if isinstance(weight, torch.Tensor) else None
