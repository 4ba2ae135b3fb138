"""Models in half precision whose convolutions normalize and rectify too, where that can be seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import fx, nn

from inc_torch.core.sharding import exchange_class
from inc_torch.precision import Bfloat16Module
from inc_torch.quantizers.fx import Refused, capture

__all__ = ["fuse_half_precision"]

_Chain = tuple[nn.Module, nn.Module, nn.Module | None]


def fuse_half_precision(model: nn.Module) -> None:
    """Let convolutions of parts that compute in half precision do what follows them, in evaluation on the CPU.

    These are batch normalizations, and the ReLU after. Only parts that `torch.fx` traces whole are looked at; nothing
    in their state changes.

    Example:
        >>> import torch
        >>> from inc_torch.precision import compute_regions
        >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU()).eval()
        >>> compute_regions(model, [""])
        >>> fuse_half_precision(model)
        >>> model(torch.ones(1, 3, 8, 8)).dtype
        torch.float32
    """
    for module in model.modules():
        if isinstance(module, Bfloat16Module) and any(isinstance(inner, nn.BatchNorm2d) for inner in module.modules()):
            module.link(_chains(module))


def _chains(region: Bfloat16Module) -> list[_Chain]:
    converted = type(region)
    exchange_class(region, region.float_class)
    try:
        graph = capture(region).graph_of(region)
    except Refused:
        return []
    finally:
        region.__class__ = converted
    return list(_found(graph, region))


def _found(graph: fx.Graph, region: nn.Module) -> Iterator[_Chain]:
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        norm = _module(node, region, nn.BatchNorm2d)
        source = node.args[0] if norm is not None and node.args else None
        if norm is None or not isinstance(source, fx.Node) or len(source.users) != 1 or not _has_statistics(norm):
            continue
        convolution = _module(source, region, nn.Conv2d)
        if convolution is None or calls[str(node.target)] != 1 or calls[str(source.target)] != 1:
            continue
        (user,) = node.users if len(node.users) == 1 else (None,)
        yield convolution, norm, None if user is None else _module(user, region, nn.ReLU)


def _module(node: fx.Node, region: nn.Module, kind: type[nn.Module]) -> nn.Module | None:
    """The module that ``node`` calls, if it is exactly of this class of torch."""
    if node.op != "call_module":
        return None
    module = region.get_submodule(str(node.target))
    own = getattr(module, "float_class", type(module))
    return module if own is kind else None


def _has_statistics(norm: nn.Module) -> bool:
    return norm._buffers.get("running_var") is not None
