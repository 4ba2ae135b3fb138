"""Which attention heads a pruner takes, and in which layers they lie."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from inc_torch.core.errors import ConfigError, did_you_mean, listed
from inc_torch.core.names import named_layers
from inc_torch.core.report import Finding
from inc_torch.pruners._attention import Attention, HeadChannels, find_attentions
from inc_torch.pruners._base import PrunerSpec
from inc_torch.pruners._layers import Layer, Selection, hindrance, warn_left_dense
from inc_torch.pruners._matrix import MatrixView
from inc_torch.pruners.patterns.heads import HeadGrid

__all__ = ["select_heads"]


def select_heads(model: nn.Module, spec: PrunerSpec) -> Selection:
    """Find the layers of all attentions that ``spec`` names, those of each bound together.

    An attention is named by its module or by one of its layers. Of one that ``excluded_op_names`` finds, or with a
    layer that cannot be pruned, nothing is pruned; ``op_types`` do not matter.

    Raises:
        ConfigError: Nothing is left.
        ModelError: A lazy layer has no weight yet.
    """
    attentions, unknown = find_attentions(model)
    modules = dict(named_layers(model))
    unfit = {name: reason for name, reason in unknown.items() if _is_wanted([name], spec)}
    layers: list[Layer] = []
    bonds: list[tuple[int, ...]] = []
    for attention in attentions:
        if not _is_wanted([attention.name, *(member.layer for member in attention.members)], spec):
            continue
        own = [_head_layer(member, attention, modules[member.layer], spec) for member in attention.members]
        reasons = [reason for reason in own if isinstance(reason, str)]
        if reasons:
            unfit[attention.name] = reasons[0]
        else:
            bonds.append(tuple(range(len(layers), len(layers) + len(own))))
            layers += [layer for layer in own if isinstance(layer, Layer)]
    left_dense = tuple(Finding(name, note=f"left dense: {reason}") for name, reason in unfit.items())
    if not layers:
        raise ConfigError(_no_heads(model, spec, attentions, unfit))
    if unfit:
        warn_left_dense([f"{name!r}: {reason}" for name, reason in unfit.items()], spec)
    return Selection(tuple(layers), left_dense, tuple(bonds))


def _is_wanted(names: Sequence[str], spec: PrunerSpec) -> bool:
    """Whether ``op_names`` finds one of the names, and ``excluded_op_names`` none."""

    def finds(expressions: Iterable[str]) -> bool:
        return any(re.search(expression, name) for expression in expressions for name in names)

    return finds(spec.op_names or (".*",)) and not finds(spec.excluded_op_names)


def _head_layer(member: HeadChannels, attention: Attention, module: nn.Module, spec: PrunerSpec) -> Layer | str:
    weight = module.get_parameter("weight")
    reason = hindrance(member.layer, module, weight, spec)
    if reason is not None:
        return f"of {member.layer!r}, {reason}"
    view = MatrixView.of(module, weight.shape)
    grid = HeadGrid.over(view, attention.heads, member.sizes, spec.reduction, of_outputs=member.of_outputs)
    return Layer(member.layer, grid)


def _no_heads(model: nn.Module, spec: PrunerSpec, attentions: Sequence[Attention], unfit: Mapping[str, str]) -> str:
    wanted = f"op_names={list(spec.op_names)!r}, excluded_op_names={list(spec.excluded_op_names)!r}"
    if unfit:
        reasons = "; ".join(f"{name or '(root)'}: {reason}" for name, reason in list(unfit.items())[:3])
        return f"WeightPruningConfig with pattern='mha', {wanted} leaves no attention to prune: {reasons}."
    if attentions:
        names = [attention.name for attention in attentions]
        nearest = did_you_mean(spec.op_names[0], names) if spec.op_names else ""
        return f"WeightPruningConfig with pattern='mha', {wanted} matches no attention of {listed(names)}.{nearest}"
    return (
        f"pattern='mha' finds no attention in {type(model).__name__}: expected modules with a number or a size of "
        "heads (num_heads, head_dim, ...) and linear layers for queries, keys, values and the output. Use another "
        "pattern."
    )
