"""Hand a 2:4 pruned model over to torch's sparse kernels for NVIDIA GPUs."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import torch
from torch import nn

from inc_torch.core.errors import InexactWarning, ModelError, listed
from inc_torch.core.names import named_layers, unwrapped
from inc_torch.core.user_warning import warn_user

__all__ = ["to_sparse_semi_structured"]

ModelT = TypeVar("ModelT", bound=nn.Module)
_GROUP, _KEPT = 4, 2
_DTYPES: Final = (torch.float16, torch.bfloat16)


def to_sparse_semi_structured(model: ModelT) -> ModelT:
    """Compress the weights of all Linear layers that are 2:4, in place, for inference on a GPU.

    The result takes 9/16 of the memory of the weights, and GPUs of compute capability 8.0 or more multiply with it at
    up to twice the speed. Train first: compressed weights cannot be trained, and gain nothing on CPUs.

    Args:
        model: Pruned with ``pattern="2:4"``, on a CUDA device, in float16 or bfloat16.

    Returns:
        The model.

    Raises:
        ModelError: No layer is 2:4, or none can be compressed; it says why.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 64))
        >>> _ = model[0].weight.data.view(-1, 4)[:, :2].zero_()
        >>> to_sparse_semi_structured(model)
        Traceback (most recent call last):
        inc_torch.core.errors.ModelError: 1 of 1 2:4 layers cannot be compressed: '0'; '0': its weight is on cpu: ...

    Source: `torch.sparse.to_sparse_semi_structured`; Mishra et al. 2021, Accelerating Sparse Deep Neural Networks.
    """
    linear = {name: module for name, module in named_layers(unwrapped(model)) if isinstance(module, nn.Linear)}
    sparse = {name: module for name, module in linear.items() if _is_two_in_four(module.weight)}
    if not sparse:
        message = (
            f"{type(model).__name__} has no Linear with two zeros in each four inputs: prune it with pattern='2:4' and "
            "target_sparsity=0.5."
        )
        raise ModelError(message)
    left: dict[str, str] = {}
    for name, module in sparse.items():
        reason = _hindrance(module.weight)
        if reason is None:
            try:
                compressed: Any = torch.sparse.to_sparse_semi_structured(module.weight.detach())
            except RuntimeError as error:  # sides that the kernels do not take
                reason = str(error)
            else:
                module.weight = nn.Parameter(compressed, requires_grad=False)
        if reason is not None:
            left[name] = reason
    if left:
        name, reason = next(iter(left.items()))
        message = (
            f"{len(left)} of {len(sparse)} 2:4 layers cannot be compressed: {listed(list(left))}; {name!r}: {reason}"
        )
        if len(left) == len(sparse):
            raise ModelError(message)
        warn_user(message, InexactWarning)
    return model


def _is_two_in_four(weight: torch.Tensor) -> bool:
    if weight.shape[-1] % _GROUP or not weight.numel():
        return False
    return bool(((weight.detach() != 0).view(-1, _GROUP).sum(1) <= _KEPT).all())


def _hindrance(weight: torch.Tensor) -> str | None:
    if not weight.is_cuda:
        return f"its weight is on {weight.device}: expected a CUDA device. Call model.to('cuda') first."
    if weight.dtype not in _DTYPES:
        return (
            f"its weight is {weight.dtype}: expected float16 or bfloat16. Call model.half() or model.bfloat16() first."
        )
    return None
