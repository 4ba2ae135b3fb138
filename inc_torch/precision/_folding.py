"""Convolutions that also do what comes after them: batch normalization by running statistics, and a ReLU.

Nothing in the state of a model changes. A convolution that knows what follows it multiplies the factor of the
normalization into its reordered weight, and marks the tensor that it returns; modules that find a mark hand the tensor
on. A convolution does so only where no gradient is wanted, in evaluation, within a forward of the model that was looked
at, and as long as nobody's hooks want to see what is between.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import nn
from torch.nn.modules import module as torch_module

__all__ = ["FOLLOWERS", "Followers", "enter", "folded", "is_done", "leave", "mark", "usable"]

FOLLOWERS: Final = "_inc_torch_followers"
"""Where a convolution keeps its `Followers`, and the model that was looked at the sign that some have."""
_MARK: Final = "_inc_torch_done"
_inside = threading.local()


@final
@dataclass(frozen=True, slots=True)
class Followers:
    """What alone reads the result of a convolution, in turn.

    Attributes:
        norm: By running statistics.
        relu: The activation after it, if it is one.
    """

    norm: nn.Module
    relu: nn.Module | None


def enter() -> None:
    """A forward of a model begins in which convolutions may do what follows them."""
    _inside.depth = getattr(_inside, "depth", 0) + 1


def leave() -> None:
    """It ends."""
    _inside.depth -= 1


def usable(module: nn.Module) -> Followers | None:
    """What ``module`` is to do besides its own work in this call, if anything."""
    followers: Followers | None = module.__dict__.get(FOLLOWERS)
    if followers is None or not getattr(_inside, "depth", 0) or followers.norm.training:
        return None
    if _has_global_hook() or _has_hooks(module) or _has_hooks(followers.norm):
        return None
    return followers


def _has_global_hook() -> bool:
    found: bool = torch_module._has_any_global_hook()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return found


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def folded(weight: torch.Tensor, bias: torch.Tensor | None, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401  any batch normalization
    """Weight and bias of a convolution that normalizes too.

    With the factor ``f = gamma / sqrt(variance + eps)``, which is of float32, of each channel: ``weight * f`` and
    ``(bias - mean) * f + beta``, in the dtype of ``weight``.
    """
    factor = torch.rsqrt(norm.running_var.float() + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.float()
    shift = -norm.running_mean.float() * factor if bias is None else (bias.float() - norm.running_mean.float()) * factor
    if norm.bias is not None:
        shift = shift + norm.bias.float()
    scaled = weight.float() * factor.view(-1, *[1] * (weight.dim() - 1))
    return scaled.to(weight.dtype), shift.to(weight.dtype)


def mark(tensor: torch.Tensor, followers: Followers) -> torch.Tensor:
    """Say of a tensor what was done besides the convolution that made it."""
    setattr(tensor, _MARK, followers)
    return tensor


def is_done(tensor: torch.Tensor, module: nn.Module) -> bool:
    """Whether a convolution has done what ``module`` would do.

    The last one that it has done takes the mark away: tensors may be changed in place afterwards.
    """
    followers: Followers | None = getattr(tensor, _MARK, None)
    if followers is None or module not in (followers.norm, followers.relu):
        return False
    if module is followers.relu or followers.relu is None:
        delattr(tensor, _MARK)
    return True
