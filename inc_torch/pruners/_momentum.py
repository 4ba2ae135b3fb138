"""When the momentum of pruned weights has to be cleared."""

from __future__ import annotations

import torch

__all__ = ["moves_values_alone"]

_KINDS = frozenset(
    {
        torch.optim.ASGD,
        torch.optim.Adagrad,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adamax,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.RMSprop,
        torch.optim.SGD,
    }
)


def moves_values_alone(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step of each value depends on its own gradient, weight and state alone.

    The momentum of a pruned weight is then of no effect as long as the weight stays pruned. Optimizers that norm,
    factor or orthogonalise whole tensors, and those not known here, have to be given clean momentum at each step.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> moves_values_alone(torch.optim.SGD([weight], momentum=0.9))
        True
    """
    return type(optimizer) in _KINDS
