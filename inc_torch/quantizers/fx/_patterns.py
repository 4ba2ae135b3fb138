"""What can be done with a graph: which batch normalizations are folded, and which tensors are kept as int8 codes.

A *group* is a layer or an operation with what follows it and reads nothing else: its batch normalization, its
activation. The result of a group is *snapped*, rounded once to a grid that its readers share, if

- something other than int8 modules reads it, which round their input themselves anyway, and
- everything that reads it can work on codes: int8 modules, residual sums and products, concatenations, poolings,
  normalizations by running statistics, activations that only clip; directly or through operations that only select
  values, such as views, slices, and the greatest of a window.

Not snapped is the operand of a sum that comes last and is read there alone: it is the accumulator that the other one
is added to, and would only be rounded once too often. The same holds for what nothing but one concatenation reads
that has a grid of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple, final

from torch import fx, nn

from inc_torch.quantizers._fake_quant_modules import FakeQuantModule
from inc_torch.quantizers._spec import QuantScheme
from inc_torch.quantizers.fx._operations import Meaning, meaning_of, writes_input

__all__ = ["GraphPlan", "Snapped", "plan_graph"]


@final
class Snapped(NamedTuple):
    """A tensor that is kept as codes.

    Attributes:
        scheme: How it is rounded.
        layer: The int8 module whose result it is, if it is of one.
        readers: Names of the int8 modules that share its grid.
    """

    scheme: QuantScheme
    layer: str | None
    readers: tuple[str, ...]


@final
class GraphPlan(NamedTuple):
    """What is to be done with a graph.

    Attributes:
        folds: By the name of a batch normalization, the layer that takes it in.
        snaps: By the name of a node of the graph, what becomes of its result.
    """

    folds: dict[str, str]
    snaps: dict[str, Snapped]


_ON_CODES: Final = frozenset(
    {Meaning.INT8, Meaning.ADD, Meaning.MULTIPLY, Meaning.CONCATENATE, Meaning.POOL, Meaning.NORM, Meaning.RECTIFIER}
)
_LOOKED_THROUGH: Final = frozenset({Meaning.PASS, Meaning.SELECT})
_ACTIVATIONS: Final = frozenset({Meaning.RECTIFIER, Meaning.ACTIVATION})
_PAIRED: Final = frozenset({Meaning.ADD, Meaning.MULTIPLY})
_GROUPS: Final = frozenset({Meaning.INT8, Meaning.ADD, Meaning.MULTIPLY, Meaning.CONCATENATE, Meaning.POOL})


def plan_graph(graph: fx.Graph, model: nn.Module) -> GraphPlan:
    """Look for patterns in the graph of a prepared model."""
    return _Planner(graph, model).plan()


class _Reader(NamedTuple):
    node: fx.Node
    meaning: Meaning
    whole: bool
    """It reads the tensor as it is, not what an operation selected of it."""


class _Planner:
    def __init__(self, graph: fx.Graph, model: nn.Module) -> None:
        self._graph, self._model = graph, model
        self._meanings = {node: meaning_of(node, model) for node in graph.nodes}
        self._order = {node: index for index, node in enumerate(graph.nodes)}
        self._calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        self._read_by_name = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
        self._folds: dict[fx.Node, fx.Node] = {}
        self._origins: dict[fx.Node, bool] = {}

    def plan(self) -> GraphPlan:
        """Fold first: a layer and its folded normalization are one group."""
        self._folds = {norm: layer for norm, layer in self._foldable()}
        candidates = {node: self._readers(node) for node in self._graph.nodes if self._ends_group(node)}
        snapped = self._settled(candidates)
        snaps = {node.name: self._snap(node, candidates[node]) for node in candidates if node in snapped}
        return GraphPlan({str(norm.target): str(layer.target) for norm, layer in self._folds.items()}, snaps)

    def _foldable(self) -> Iterator[tuple[fx.Node, fx.Node]]:
        for node, meaning in self._meanings.items():
            layer = node.args[0] if meaning is Meaning.NORM and node.args else None
            if not isinstance(layer, fx.Node) or len(layer.users) != 1 or layer.op != "call_module":
                continue
            module = self._module(layer)
            if not isinstance(module, FakeQuantModule) or not module.has_weight or module.kind == "embedding":
                continue
            if self._is_called_once(layer) and self._is_called_once(node) and _fits(module, self._module(node)):
                yield node, layer

    def _is_called_once(self, node: fx.Node) -> bool:
        return self._calls[str(node.target)] == 1 and str(node.target) not in self._read_by_name

    def _module(self, node: fx.Node) -> nn.Module:
        return self._model.get_submodule(str(node.target))

    def _ends_group(self, node: fx.Node) -> bool:
        if self._root_of_group(node) is None:
            return False
        users = list(node.users)
        return not (len(users) == 1 and (users[0] in self._folds or self._meanings[users[0]] in _ACTIVATIONS))

    def _root_of_group(self, node: fx.Node) -> fx.Node | None:
        """The operation whose result ``node`` is after normalization and activation; None if that is no group."""
        while True:
            if self._meanings[node] in _GROUPS:
                return node
            source = node.args[0] if node.args else None
            extends = node in self._folds or self._meanings[node] in _ACTIVATIONS
            if not extends or not isinstance(source, fx.Node) or len(source.users) != 1:
                return None
            node = source

    def _readers(self, node: fx.Node, *, whole: bool = True) -> list[_Reader]:
        found: list[_Reader] = []
        for user in node.users:
            meaning = self._meanings[user]
            if meaning in _LOOKED_THROUGH:
                found += self._readers(user, whole=whole and meaning is Meaning.PASS)
            elif meaning is not Meaning.SHAPE:
                found.append(_Reader(user, meaning, whole))
        return found

    def _end_of_group(self, node: fx.Node) -> fx.Node:
        """The node that ends the group which ``node`` is in."""
        while not self._ends_group(node):
            node = next(iter(node.users))
        return node

    def _settled(self, candidates: dict[fx.Node, list[_Reader]]) -> set[fx.Node]:
        """The tensors to snap; concatenations first, as it depends on them what becomes of their pieces."""
        able: set[fx.Node] = set()
        for node in reversed(candidates):  # who reads comes before what is read
            if candidates[node] and self._can_snap(node, candidates[node], able):
                able.add(node)
        snapped = {node for node in able if self._has_others(candidates[node])}
        merging = {node for node in candidates if self._is_merged(node, candidates[node], snapped)}
        return {
            node
            for node in snapped
            if not self._is_accumulator(node, candidates[node], candidates)
            and not self._goes_into(node, candidates[node], merging)
            and not (self._meanings[node] is Meaning.CONCATENATE and node not in merging)
        }

    def _can_snap(self, node: fx.Node, readers: list[_Reader], able: set[fx.Node]) -> bool:
        if any(reader.meaning not in _ON_CODES for reader in readers):
            return False
        joined = [reader.node for reader in readers if reader.meaning is Meaning.CONCATENATE]
        if any(self._end_of_group(join) not in able for join in joined):
            return False
        if len(readers) > 1 and any(writes_input(reader.node, self._model) for reader in readers):
            return False
        layers = [reader.node for reader in readers if reader.meaning is Meaning.INT8]
        if any(self._calls[str(layer.target)] > 1 for layer in layers):
            return False
        return len({_grid_of(self._scheme(layer)) for layer in layers}) <= 1 and self._touches_int8(node, readers)

    def _touches_int8(self, node: fx.Node, readers: list[_Reader]) -> bool:
        """Whether an int8 module reads the tensor, or made what it is made of."""
        return any(reader.meaning is Meaning.INT8 for reader in readers) or self._comes_from_int8(node)

    def _comes_from_int8(self, node: fx.Node) -> bool:
        if node not in self._origins:
            root = self._root_of_group(self._seen_through(node, _LOOKED_THROUGH))
            self._origins[node] = root is not None and (
                self._meanings[root] is Meaning.INT8
                or any(self._comes_from_int8(source) for source in root.all_input_nodes)
            )
        return self._origins[node]

    def _seen_through(self, node: fx.Node, meanings: frozenset[Meaning]) -> fx.Node:
        while self._meanings[node] in meanings and node.all_input_nodes:
            node = node.all_input_nodes[0]
        return node

    def _has_others(self, readers: list[_Reader]) -> bool:
        return any(reader.meaning is not Meaning.INT8 for reader in readers)

    def _is_merged(self, node: fx.Node, readers: list[_Reader], snapped: set[fx.Node]) -> bool:
        """Whether a concatenation gets one grid: not where normalizations alone read it, a channel at a time."""
        root = self._root_of_group(node)
        if root is None or self._meanings[root] is not Meaning.CONCATENATE:
            return False
        if all(reader.meaning is Meaning.NORM for reader in readers):
            return False
        return node in snapped or all(reader.meaning is Meaning.INT8 for reader in readers)

    def _goes_into(self, node: fx.Node, readers: list[_Reader], merging: set[fx.Node]) -> bool:
        """Whether one concatenation with a grid of its own is all that reads the tensor, whole."""
        if len(readers) != 1 or not readers[0].whole or readers[0].meaning is not Meaning.CONCATENATE:
            return False
        return any(self._root_of_group(merged) is readers[0].node for merged in merging)

    def _is_accumulator(self, node: fx.Node, readers: list[_Reader], candidates: dict[fx.Node, list[_Reader]]) -> bool:
        """Whether the tensor is added to another one that was there before, and read nowhere else."""
        if len(readers) != 1 or readers[0].meaning not in _PAIRED or not readers[0].whole:
            return False
        sources = [self._seen_through(source, frozenset({Meaning.PASS})) for source in readers[0].node.all_input_nodes]
        operands = [source for source in sources if self._may_accumulate(source, candidates)]
        return bool(operands) and max(operands, key=self._order.__getitem__) is node

    def _may_accumulate(self, node: fx.Node, candidates: dict[fx.Node, list[_Reader]]) -> bool:
        root = self._root_of_group(node)
        if root is None or self._meanings[root] is not Meaning.INT8 or node not in candidates:
            return False
        return len(candidates[node]) == 1

    def _snap(self, node: fx.Node, readers: list[_Reader]) -> Snapped:
        layers = [reader.node for reader in readers if reader.meaning is Meaning.INT8]
        root = self._root_of_group(node)
        own = root if root is not None and self._meanings[root] is Meaning.INT8 else None
        first = next((other for other, kind in self._meanings.items() if kind is Meaning.INT8), None)
        model = next((layer for layer in (*layers, own, first) if layer is not None), None)
        scheme = QuantScheme() if model is None else self._scheme(model)
        return Snapped(scheme, None if own is None else str(own.target), tuple(str(layer.target) for layer in layers))

    def _scheme(self, layer: fx.Node) -> QuantScheme:
        module = self._module(layer)
        return module.scheme if isinstance(module, FakeQuantModule) else QuantScheme()


def _grid_of(scheme: QuantScheme) -> tuple[object, ...]:
    return scheme.symmetric_input, scheme.input_bits, scheme.input_observer


def _fits(layer: FakeQuantModule, norm: nn.Module) -> bool:
    """Whether the normalization is over the output channels of the layer."""
    weight = layer.get_parameter("weight")
    channels = weight.shape[layer.output_axis] * (int(getattr(layer, "groups", 1)) if layer.output_axis else 1)
    return bool(getattr(norm, "num_features", None) == channels)
