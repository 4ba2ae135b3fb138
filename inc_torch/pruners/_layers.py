"""Which layers a pruner takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from inc_torch.core.errors import ConfigError, InexactWarning, ModelError, did_you_mean
from inc_torch.core.merged import merged_over
from inc_torch.core.names import named_layers
from inc_torch.core.report import Finding
from inc_torch.core.sharding import plain_class
from inc_torch.core.user_warning import warn_user
from inc_torch.pruners._base import Grid, PrunerSpec
from inc_torch.pruners._matrix import MatrixView

__all__ = ["Layer", "Selection", "hindrance", "select_layers", "warn_left_dense"]

LEAST_RANK = 2


@final
@dataclass(frozen=True, slots=True)
class Layer:
    """One weight under pruning, found again by the name of its module."""

    name: str
    grid: Grid

    @property
    def parameter_name(self) -> str:
        """Fully qualified name of the weight."""
        return f"{self.name}.weight" if self.name else "weight"


@final
@dataclass(frozen=True, slots=True)
class Selection:
    """The layers of one pruner, and what was left dense and why.

    Attributes:
        layers: What is pruned.
        left_dense: What is not.
        bonds: Layers of which the same units are pruned, by index; none where each layer is for itself.
    """

    layers: tuple[Layer, ...]
    left_dense: tuple[Finding, ...] = field(default=())
    bonds: tuple[tuple[int, ...], ...] = ()


def select_layers(model: nn.Module, spec: PrunerSpec) -> Selection:
    """Find the layers that ``spec`` names, in the order of its expressions, then of the model.

    Names, classes and shapes are those that the layers have without wrappers, adapters and sharding, so all processes
    find the same.

    A module is taken if some ``op_names`` expression is found in its name, its class name contains one of
    ``op_types``, it has a ``weight``, no ``excluded_op_names`` expression is found in its name, and it is not the
    classifier head: the last module of the model, dropouts apart, if that is a Linear or Conv2d. Layers that the
    pattern does not divide, whose weight is no Parameter, or which are frozen while the criterion needs gradients,
    stay dense, with one warning for all of them.

    Raises:
        ConfigError: Nothing is left, or a layer was named outright that cannot carry the pattern.
        ModelError: A lazy layer has no weight yet.
    """
    if spec.pattern.binds_layers:
        from inc_torch.pruners._head_layers import select_heads  # it knows of layers itself

        return select_heads(model, spec)
    head = _classifier_head(model)
    head_weight = None if head is None else head._parameters.get("weight")
    left_dense: list[Finding] = []
    layers: list[Layer] = []
    unfit: list[str] = []
    owners: dict[int, str] = {}
    for name, module in _candidates(model, spec):
        weight = module._parameters.get("weight")
        if module is head or (weight is not None and weight is head_weight):
            left_dense.append(Finding(name, note="classifier head, not pruned"))
        elif weight is not None and (owner := owners.setdefault(id(weight), name)) != name:
            left_dense.append(Finding(name, note=f"shares its weight with {owner}"))
        else:
            grid = _grid(name, module, weight, spec)
            if isinstance(grid, str):
                _refuse_if_named(name, grid, spec)
                unfit.append(f"{name!r}: {grid}")
                left_dense.append(Finding(name, note=f"left dense: {grid}"))
            else:
                layers.append(Layer(name, grid))
    if not layers:
        raise ConfigError(_nothing_selected(model, spec, left_dense))
    if unfit:
        warn_left_dense(unfit, spec)
    return Selection(tuple(layers), tuple(left_dense))


def _classifier_head(model: nn.Module) -> nn.Module | None:
    last = [module for _, module in named_layers(model) if _class_name(module) != "Dropout"][-1]
    return last if _class_name(last) in ("Linear", "Conv2d") else None


def _class_name(module: nn.Module) -> str:
    return plain_class(type(module)).__name__


def _candidates(model: nn.Module, spec: PrunerSpec) -> Iterable[tuple[str, nn.Module]]:
    named = [
        (name, module)
        for name, module in named_layers(model)
        if any(word in _class_name(module) for word in spec.op_types)
        and isinstance(getattr(module, "weight", None), torch.Tensor)
        and not any(re.search(expression, name) for expression in spec.excluded_op_names)
    ]
    found = {
        name: module for expression in spec.op_names or (".*",) for name, module in named if re.search(expression, name)
    }
    return found.items()


def _grid(name: str, module: nn.Module, weight: nn.Parameter | None, spec: PrunerSpec) -> Grid | str:
    reason = hindrance(name, module, weight, spec)
    return reason or spec.pattern.grid(MatrixView.of(module, module.get_parameter("weight").shape), spec.reduction)


def hindrance(name: str, module: nn.Module, weight: nn.Parameter | None, spec: PrunerSpec) -> str | None:
    """Why a weight cannot be pruned whatever the pattern, or None."""
    if weight is None:
        return "its weight is computed from other tensors"
    if isinstance(weight, UninitializedParameter):
        message = (
            f"Layer {name!r} ({_class_name(module)}) has no weight yet; run one batch through the model "
            "before it is prepared for pruning."
        )
        raise ModelError(message)
    if weight.numel() == 0:
        return "its weight is empty"
    learns = weight.requires_grad or merged_over(module) is not None
    if spec.criterion.needs_gradient and not spec.locks_zeros and not learns:
        return f"its weight is frozen, and {type(spec.criterion).__name__} needs gradients"
    if weight.dim() < LEAST_RANK:
        return f"a weight of rank {weight.dim()} is no matrix"
    return None


def _refuse_if_named(name: str, reason: str, spec: PrunerSpec) -> None:
    if name in spec.op_names:
        message = (
            f"Layer {name!r} cannot carry the pruning pattern {spec.pattern_text!r}: {reason}. "
            "Take it out of op_names, or use a pattern whose sides divide."
        )
        raise ConfigError(message)


def warn_left_dense(reasons: Sequence[str], spec: PrunerSpec) -> None:
    """Say which of the selected layers are not pruned, and why."""
    shown = "; ".join(reasons[:3]) + ("; ..." if reasons[3:] else "")
    message = (
        f"Pruning {spec.pattern_text!r} leaves {len(reasons)} of the selected layers dense: {shown}. Take them out "
        "with excluded_op_names, or mend what the reason says: a pattern that divides, a weight that learns (or "
        "pruning_type='magnitude', which needs no gradients)."
    )
    warn_user(message, InexactWarning)


def _nothing_selected(model: nn.Module, spec: PrunerSpec, left_dense: Sequence[Finding]) -> str:
    wanted = f"op_names={list(spec.op_names)!r}, pruning_op_types={list(spec.op_types)!r}"
    if spec.excluded_op_names:
        wanted += f", excluded_op_names={list(spec.excluded_op_names)!r}"
    if left_dense:
        reasons = "; ".join(f"{finding.module or '(root)'}: {finding.note}" for finding in left_dense[:5])
        return f"WeightPruningConfig with {wanted} leaves no layer to prune: {reasons}."
    names = [name for name, module in named_layers(model) if "weight" in module._parameters]
    nearest = did_you_mean(spec.op_names[0], names) if spec.op_names else ""
    return f"WeightPruningConfig with {wanted} matches no layer.{nearest} Layers with weights: {', '.join(names[:12])}."
