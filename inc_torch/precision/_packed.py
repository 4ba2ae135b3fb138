"""Weights in the order in which the processor's matrix instructions read them, made once instead of at each call.

oneDNN puts a bfloat16 weight into such an order in every call of ``F.linear`` and ``F.conv2d``. For a few rows that
takes longer than the product. Where no gradient is wanted, the reordered copy is kept beside the weight; it is no part
of the state, is dropped with copies and files, and is made anew when the weight changes, but for changes through
``.data``, which torch does not count.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, final

import torch
from torch import nn
from torch.nn import functional as F

from inc_torch.precision._folding import Followers, folded

__all__ = ["SLOT", "linear", "pack_of_convolution", "with_packed_weight"]

_mkldnn: Any = torch.backends.mkldnn
SLOT: Final = "_inc_torch_packed"
_LEAST: Final = 4096
"""Values of a weight from which on reordering it takes time that is worth keeping a copy for."""


@final
class Packed:
    """A reordered weight; what it was made of is known by place and version.

    A copy, and what pickle restores, is empty: it will be made again.
    """

    __slots__ = ("bias", "key", "weight")

    def __init__(self) -> None:
        self.key: tuple[int, ...] = ()
        self.weight: Any = None
        self.bias: torch.Tensor | None = None

    def __reduce__(self) -> tuple[type[Packed], tuple[()]]:
        return Packed, ()


@cache
def _is_supported() -> bool:
    return _mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def with_packed_weight(module: nn.Module, value: torch.Tensor) -> bool:
    """Whether the next product may use a reordered weight: on the CPU, in bfloat16, without gradients, not traced."""
    weight = module._parameters.get("weight")
    return (
        not torch.compiler.is_compiling()
        and weight is not None
        and value.is_cpu
        and value.dtype is torch.bfloat16
        and type(value) in _PLAIN
        and type(weight) in _PLAIN
        and weight.dtype is torch.bfloat16
        and not (torch.is_grad_enabled() and (weight.requires_grad or value.requires_grad))
        and not weight.is_inference()
        and weight.numel() >= _LEAST
        and value.numel() > 0
        and torch._C._get_tracing_state() is None
        and torch._C._functorch.maybe_current_level() is None
        and bool(_mkldnn.enabled)
        and _is_supported()
    )


_PLAIN: Final = frozenset({torch.Tensor, nn.Parameter})


def _slot(module: nn.Module, *tensors: torch.Tensor | None) -> Packed:
    packed: Packed | None = module.__dict__.get(SLOT)
    if packed is None:
        packed = module.__dict__[SLOT] = Packed()
    key: tuple[int, ...] = ()
    for tensor in tensors:
        key += (0, 0) if tensor is None else (tensor.data_ptr(), tensor._version)
    if packed.key != key:
        packed.key, packed.weight = key, None
    return packed


def pack_of_linear(module: nn.Module) -> Any:  # noqa: ANN401  a tensor that torch's stubs do not know
    """The reordered weight of an ``nn.Linear``."""
    weight: Any = module._parameters["weight"]
    packed = _slot(module, weight)
    if packed.weight is None:
        packed.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return packed.weight


def pack_of_convolution(module: nn.Conv2d, shape: torch.Size, followers: Followers | None) -> Packed:
    """The reordered weight of an ``nn.Conv2d``, and its bias.

    Args:
        module: The convolution.
        shape: Of an input; the order is the best for it, and right for all others.
        followers: Whose normalization is folded in.
    """
    weight: Any = module._parameters["weight"]
    bias = module._parameters.get("bias")
    if followers is None:
        packed = _slot(module, weight, bias)
    else:
        norm = followers.norm
        packed = _slot(module, weight, bias, *norm._parameters.values(), *norm._buffers.values())
    if packed.weight is None:
        with torch.no_grad():
            whole, packed.bias = (weight, bias) if followers is None else folded(weight, bias, followers.norm)
            geometry = (module.padding, module.stride, module.dilation, module.groups)
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            packed.weight = reorder(whole.detach().to_mkldnn(), *geometry, list(shape))
    return packed


def linear(module: nn.Linear, value: torch.Tensor) -> torch.Tensor:
    """``F.linear`` with the module's weight, which may be reordered; ``value`` has the dtype of the weight."""
    bias = module._parameters.get("bias")
    if not with_packed_weight(module, value):
        return F.linear(value, module.weight, bias)
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(value, pack_of_linear(module), bias, "none", [], "")
    return result
