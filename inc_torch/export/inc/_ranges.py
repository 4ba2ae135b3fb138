"""Where INC's int8 model rounds, and by which ranges.

INC's int8 layers return codes, so the range of a layer's input is that of the output that it comes from. A range stands
in the file under the name of the reader only where codes are made of floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import fx, nn

from inc_torch.export.inc._layers import IncModel, Range, flat
from inc_torch.quantizers import InputGrid, QuantScheme
from inc_torch.quantizers.fx import Captured, GraphPlan, Meaning, Snapped, meaning_of

__all__ = ["Rounding"]

_PASSED = frozenset({Meaning.PASS, Meaning.SELECT})
_ABSORBED = frozenset({Meaning.NORM, Meaning.RECTIFIER})
"""What INC fuses into the layer before, or computes on its codes."""
_TOP = QuantScheme().top


@final
@dataclass(frozen=True, slots=True)
class Rounding:
    """What the graph of a model says of the ranges in INC's file.

    Attributes:
        inputs: The range of each layer's input, by its name, as far as it is that of an earlier output.
        plan: Which normalizations are folded, and which nodes are rounded.
        grids: Of these nodes.
    """

    inputs: dict[str, Range]
    plan: GraphPlan
    grids: dict[str, InputGrid]

    @classmethod
    def along(cls, captured: Captured, model: nn.Module, stored: IncModel, norms: list[str]) -> Rounding:
        """Follow codes through the graph of the float model ``model``.

        Args:
            captured: Its graph.
            model: The model, before anything in it is int8.
            stored: What was in the file.
            norms: The normalizations that INC has folded into the layers before them.
        """
        graph = captured.graph_of(model)
        meanings = {node: meaning_of(node, model) for node in graph.nodes}
        ranges: dict[fx.Node, Range] = {}
        for node in graph.nodes:
            known = _stored_range(node, stored)
            if known is None and meanings[node] in _PASSED | _ABSORBED | {Meaning.POOL} and node.all_input_nodes:
                known = ranges.get(node.all_input_nodes[0])
            if known is not None:
                ranges[node] = known
        made = {_end(node, meanings) for node in ranges if _stored_range(node, stored) is not None}
        made |= {node for node in ranges if meanings[node] is Meaning.POOL}
        layers = {node: str(node.target) for node in graph.nodes if str(node.target) in stored.layers}
        snaps = {
            node.name: Snapped(QuantScheme(), _maker(node, layers, meanings), _readers(node, layers, meanings))
            for node in made
        }
        return cls(
            {name: ranges[node.args[0]] for node, name in layers.items() if node.args and node.args[0] in ranges},
            GraphPlan({norm: layer for norm in norms if (layer := _before(norm, graph, layers)) is not None}, snaps),
            {node.name: InputGrid(*ranges[node], _TOP) for node in made},
        )


def _stored_range(node: fx.Node, stored: IncModel) -> Range | None:
    """The range that the file has for what ``node`` returns."""
    names = [str(node.target), flat(str(node.target))] if node.op == "call_module" else [node.name]
    found = (stored.outputs.get(name) for name in names)
    return None if node.op == "placeholder" else next((one for one in found if one is not None), None)


def _end(node: fx.Node, meanings: dict[fx.Node, Meaning]) -> fx.Node:
    """Where the result of ``node`` is rounded: after what INC has fused into it."""
    while len(node.users) == 1:
        (user,) = node.users
        if meanings[user] not in _ABSORBED:
            break
        node = user
    return node


def _maker(node: fx.Node, layers: dict[fx.Node, str], meanings: dict[fx.Node, Meaning]) -> str | None:
    while meanings[node] in _ABSORBED and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return layers.get(node)


def _readers(node: fx.Node, layers: dict[fx.Node, str], meanings: dict[fx.Node, Meaning]) -> tuple[str, ...]:
    found: list[str] = []
    for user in node.users:
        if user in layers:
            found.append(layers[user])
        elif meanings[user] in _PASSED:
            found.extend(_readers(user, layers, meanings))
    return tuple(dict.fromkeys(found))


def _before(norm: str, graph: fx.Graph, layers: dict[fx.Node, str]) -> str | None:
    """The layer that a normalization is folded into."""
    nodes = [node for node in graph.nodes if node.op == "call_module" and str(node.target) == norm]
    return next((layers[node.args[0]] for node in nodes if node.args and node.args[0] in layers), None)
