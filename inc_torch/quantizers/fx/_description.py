"""What was decided on a graph, in values that JSON knows, and the way back on the float model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from inc_torch.core.errors import ArtifactError
from inc_torch.quantizers._batch_norm import can_fold, take_away_norm
from inc_torch.quantizers._codes import InputGrid
from inc_torch.quantizers._snap import Int8Snap
from inc_torch.quantizers._spec import QuantScheme
from inc_torch.quantizers.fx._capture import Captured, Refused, capture
from inc_torch.quantizers.fx._graft import SNAPS, Graft, graft_of, snaps_of
from inc_torch.quantizers.fx._patterns import GraphPlan, Snapped
from inc_torch.quantizers.fx._subclasses import adopt_paddings, padding_convolutions

__all__ = ["capture_described", "describe_graph", "graft_grids", "rebuild_graph"]

_KEYS: Final = frozenset({"digest", "folds", "snaps", "paddings"})
_SNAP_KEYS: Final = frozenset({"top", "layer", "readers"})
_MOST_CODES: Final = 255


def describe_graph(model: nn.Module) -> dict[str, Any]:
    """Describe the graph of an int8 model in values that JSON knows, for `rebuild_int8`.

    Returns:
        ``digest`` of the graph as it was traced; ``folds``: by the name of a batch normalization, the layer that took
        it in; ``snaps``: by the name of a node, the greatest code, the layer whose result it is, and the layers that
        share its grid; ``paddings``: by the name of a convolution of somebody's own, the zeros around its input.
        Empty if the model was not quantized as a graph.

    Example:
        >>> describe_graph(nn.Linear(2, 2))
        {}
    """
    graft = graft_of(model)
    if graft is None:
        return {}
    snaps = snaps_of(model)
    return {
        "digest": graft.captured.digest,
        "folds": dict(graft.plan.folds),
        "snaps": {
            name: {"top": snap.top, "layer": graft.plan.snaps[name].layer, "readers": [*graft.plan.snaps[name].readers]}
            for name, snap in snaps.items()
            if isinstance(snap, Int8Snap)
        },
        "paddings": {name: [*around] for name, around in graft.captured.paddings.items()},
    }


def capture_described(model: nn.Module, description: Mapping[str, Any]) -> Captured:
    """Trace a float model and make sure that it is the one that was described; see `rebuild_graph`.

    Raises:
        ArtifactError: The description is damaged, or the model is another one.
    """
    _check(description)
    own = f"{type(model).__name__} was quantized as a graph, and cannot be rebuilt from this model"
    paddings = {name: tuple(around) for name, around in description["paddings"].items()}
    found = padding_convolutions(model)
    for name, around in paddings.items():
        if found.get(name) != around:
            message = f"{own}: its convolution {name!r} was saved with zeros {around} around it. {_BUILD}"
            raise ArtifactError(message)
    try:
        captured = capture(model, paddings)
    except Refused as refusal:
        message = f"{own}: {refusal}. {_BUILD}"
        raise ArtifactError(message) from refusal
    if captured.digest != description["digest"]:
        message = f"{own}: its code is not what it was, so that nodes of the graph cannot be told. {_BUILD}"
        raise ArtifactError(message)
    adopt_paddings(model, paddings)
    return captured


def rebuild_graph(model: nn.Module, captured: Captured, description: Mapping[str, Any]) -> None:
    """Let a model whose layers are empty int8 modules compute by its graph, ready for ``load_state_dict``.

    Args:
        model: Its float modules are int8 already.
        captured: Of `capture_described`.
        description: Of `describe_graph`.
    """
    snaps = {
        name: Snapped(QuantScheme(), entry["layer"], tuple(entry["readers"]))
        for name, entry in description["snaps"].items()
    }
    modules = dict(model.named_modules())
    for norm in description["folds"]:
        module = modules.get(norm)
        if module is None or not can_fold(module):
            found = "is not there" if module is None else f"is a {type(module).__name__}"
            message = f"The description says that {norm!r} was folded, but it {found}. {_BUILD}"
            raise ArtifactError(message)
        take_away_norm(module)
    grids = {name: InputGrid(1.0, 0, entry["top"]) for name, entry in description["snaps"].items()}
    graft_grids(model, captured, GraphPlan(dict(description["folds"]), snaps), grids)


def graft_grids(model: nn.Module, captured: Captured, plan: GraphPlan, grids: Mapping[str, InputGrid]) -> None:
    """Let a model whose layers are int8 modules compute by its graph.

    Args:
        model: The model.
        captured: Its graph.
        plan: What is folded and snapped in it.
        grids: Of each snap of the plan.
    """
    Graft(captured, plan).attach(model)
    if not grids:
        return
    holder = nn.Module()
    device = next((tensor.device for tensor in model.buffers()), None)
    for name, grid in grids.items():
        snap = Int8Snap()
        snap.set_grid(grid, device)
        holder.add_module(name, snap)
    model.add_module(SNAPS, holder)


_BUILD: Final = "Build the model exactly as it was built when it was quantized, by the same versions of its packages."


def _check(description: Mapping[str, Any]) -> None:
    wrong = _KEYS ^ description.keys()
    tables = all(isinstance(description.get(key), Mapping) for key in _KEYS - {"digest"})
    if wrong or not tables or not all(map(_is_snap, description["snaps"].values())):
        message = (
            f"The description of the graph has the keys {sorted(description)}, expected tables {sorted(_KEYS)}, and of "
            f"each snap {sorted(_SNAP_KEYS)}. It is damaged, or of a newer version of inc_torch. Save the model again."
        )
        raise ArtifactError(message)
    names, sizes = description["folds"].values(), description["paddings"].values()
    if not all(isinstance(name, str) for name in names) or not all(isinstance(around, list) for around in sizes):
        message = (
            "The description of the graph folds what is no name, or pads by what is no list. It is damaged. Save the "
            "model again."
        )
        raise ArtifactError(message)


def _is_snap(entry: object) -> bool:
    if not isinstance(entry, Mapping) or _SNAP_KEYS ^ entry.keys():
        return False
    top, layer, readers = entry["top"], entry["layer"], entry["readers"]
    is_grid = isinstance(top, int) and not isinstance(top, bool) and 0 < top <= _MOST_CODES
    is_named = layer is None or isinstance(layer, str)
    return is_grid and is_named and isinstance(readers, list) and all(isinstance(name, str) for name in readers)
