"""Subclasses of convolutions that pad by themselves: what they do is read from their graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import fx, nn

from inc_torch.quantizers._fake_quant_modules import FakeQuantModule
from inc_torch.quantizers._padded_conv import PADDED_CONVS, adopt_padding
from inc_torch.quantizers._spec import QuantSpec
from inc_torch.quantizers.fx._capture import Refused, capture
from inc_torch.quantizers.fx._operations import Meaning, meaning_of

__all__ = ["adopt_paddings", "padding_convolutions"]

_CONVOLUTIONS: Final[dict[type[nn.Module], Callable[..., torch.Tensor]]] = {
    nn.Conv1d: torch.conv1d,
    nn.Conv2d: torch.conv2d,
    nn.Conv3d: torch.conv3d,
}
_KNOWN: Final = frozenset({*PADDED_CONVS, *PADDED_CONVS.values()})
_ZERO_PADS: Final = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)


def padding_convolutions(model: nn.Module, spec: QuantSpec | None = None) -> dict[str, tuple[int, ...]]:
    """Find the subclasses of convolutions that do nothing but pad with zeros and convolve.

    Args:
        model: Any module, not prepared.
        spec: Those that one of its rules names by their own class, and not by that of torch, are left out.

    Returns:
        By name, the zeros around the input, as in `torch.nn.functional.pad`.

    Example:
        >>> class Causal(nn.Conv1d):
        ...     def forward(self, x):
        ...         return super().forward(F.pad(x, (2, 0)))
        >>> padding_convolutions(nn.Sequential(Causal(4, 4, 3)))
        {'0': (2, 0)}
    """
    found: dict[str, tuple[int, ...]] = {}
    rules = () if spec is None else tuple(rule for rule in spec.rules if rule.subject == "type")
    for name, module in model.named_modules():
        kind = type(module)
        if not isinstance(module, nn.modules.conv._ConvNd) or not isinstance(module, tuple(PADDED_CONVS)):
            continue
        if kind in _KNOWN or isinstance(module, FakeQuantModule) or module.padding_mode != "zeros":
            continue
        plain = next(base.__name__ for base in PADDED_CONVS if isinstance(module, base))
        if any(rule.catches(name, kind.__name__) and not rule.catches(name, plain) for rule in rules):
            continue
        if (around := _padding_of(module)) is not None:
            found[name] = around
    return found


def adopt_paddings(model: nn.Module, paddings: Mapping[str, tuple[int, ...]]) -> None:
    """Give the modules that `padding_convolutions` found a class that says what they do, in place."""
    for name, around in paddings.items():
        adopt_padding(model.get_submodule(name), around)


def _padding_of(module: nn.Module) -> tuple[int, ...] | None:
    try:
        graph = capture(module).graph_of(module)
    except Refused:
        return None
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    *before, last = nodes or [None]
    if last is None or not _is_own_convolution(module, last):
        return None
    pads = [_padded(node, module) for node in before]
    if any(pad is None for pad in pads) or not _is_chain([*before, last]):
        return None
    own: Any = module._reversed_padding_repeated_twice
    known = [*(pad for pad in pads if pad), tuple(own)]
    return reduce(lambda first, second: tuple(map(operator.add, first, second)), known)


def _is_chain(nodes: list[fx.Node]) -> bool:
    sources = [node.args[0] for node in nodes]
    first = sources[0]
    return isinstance(first, fx.Node) and first.op == "placeholder" and sources[1:] == nodes[:-1]


def _padded(node: fx.Node, module: nn.Module) -> tuple[int, ...] | None:
    """The zeros that ``node`` puts around its input, as many as the rank needs; None if it does something else."""
    rank = len(module._reversed_padding_repeated_twice)  # type: ignore[arg-type]  # of any convolution
    around: Any = None
    if node.op == "call_module":
        child = node.graph.owning_module or module
        padder = child.get_submodule(str(node.target))
        around = padder.padding if type(padder) in _ZERO_PADS else None
    elif node.target is F.pad:
        given = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | node.kwargs
        is_zero = given.get("mode", "constant") == "constant" and given.get("value") in (None, 0)
        around = given.get("pad") if is_zero else None
    if around is None:
        return (0,) * rank if meaning_of(node, module) is Meaning.PASS else None
    fits = isinstance(around, tuple | list) and all(isinstance(size, int) for size in around) and len(around) <= rank
    return (*around, *(0,) * (rank - len(around))) if fits else None


def _is_own_convolution(module: nn.Module, node: fx.Node) -> bool:
    """Whether ``node`` convolves by the Parameters and the geometry of ``module``."""
    base = next(kind for kind in _CONVOLUTIONS if isinstance(module, kind))
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    own: Any = module
    expected = {name: getattr(own, name) for name in ("stride", "padding", "dilation", "groups")}
    tensors = {name: given.get(name) for name in ("weight", "bias")}
    read = {name: value.target for name, value in tensors.items() if isinstance(value, fx.Node)}
    wanted = {"weight": "weight"} | ({} if own.bias is None else {"bias": "bias"})
    return (
        node.target is _CONVOLUTIONS[base]
        and read == wanted
        and all(_as_tuple(given.get(name)) == _as_tuple(value) for name, value in expected.items())
    )


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else value
