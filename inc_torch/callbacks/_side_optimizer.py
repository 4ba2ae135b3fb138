"""What a loss trains for itself, such as projections, beside the optimizer of the user's loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

from torch import nn
from torch.optim import AdamW
from torch.optim.optimizer import Optimizer

from inc_torch.core.ranks import Ranks
from inc_torch.core.state import check_keys

__all__ = ["SideOptimizer"]


@final
class SideOptimizer:
    """AdamW without weight decay for a few parameters that are in no model and in no other optimizer.

    Its steps follow those of the user's optimizer, and its learning rate the schedule of that one: it is multiplied by
    what a scheduler has made of the first group's (``lr / initial_lr``). Adam does not see by what gradients are
    scaled, so a gradient scaler needs nothing. A step whose gradients are not all finite is left out.

    Args:
        learning_rate: Before the schedule.
    """

    def __init__(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._adam: AdamW | None = None

    def step(self, parameters: Iterable[nn.Parameter], followed: Iterable[Optimizer], ranks: Ranks) -> None:
        """Update ``parameters`` by their gradients, averaged over all ranks, and clear these."""
        trained = self._adopt(tuple(parameters))
        if self._adam is None:
            return
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if gradients and self._learning_rate:
            for gradient in gradients:
                ranks.sum_(gradient).div_(ranks.count)
            if all(bool(gradient.isfinite().all()) for gradient in gradients):
                for group in self._adam.param_groups:
                    group["lr"] = self._learning_rate * _pace(followed)
                self._adam.step()
        self._adam.zero_grad()

    def state_dict(self, parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
        """Moments, and gradients of an update that is not finished."""
        trained = self._adopt(tuple(parameters))
        return {
            "adam": {} if self._adam is None else self._adam.state_dict(),
            "gradients": [None if parameter.grad is None else parameter.grad.clone() for parameter in trained],
        }

    def load_state_dict(self, state: Mapping[str, Any], parameters: Iterable[nn.Parameter]) -> None:
        """Go on from `state_dict`, with parameters that are loaded already."""
        check_keys(type(self).__name__, state, {"adam", "gradients"})
        self._adam = None
        trained = self._adopt(tuple(parameters))
        self._load_moments(state["adam"])
        for parameter, gradient in zip(trained, state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)

    def _load_moments(self, moments: dict[str, Any]) -> None:
        if self._adam is not None and moments:
            self._adam.load_state_dict(moments)

    def _adopt(self, parameters: tuple[nn.Parameter, ...]) -> tuple[nn.Parameter, ...]:
        known = {id(one) for group in self._adam.param_groups for one in group["params"]} if self._adam else set()
        added = [parameter for parameter in parameters if id(parameter) not in known]
        if added and self._adam is None:
            self._adam = AdamW(added, lr=self._learning_rate, weight_decay=0.0)
        elif self._adam is not None and added:
            self._adam.add_param_group({"params": added})
        return parameters


def _pace(followed: Iterable[Optimizer]) -> float:
    """How much of their first learning rate optimizers have now; 1 without a scheduler.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> _ = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.25)
        >>> _pace([optimizer])
        0.25
    """
    groups = [optimizer.param_groups[0] for optimizer in followed]
    return min((group["lr"] / group["initial_lr"] for group in groups if group.get("initial_lr")), default=1.0)
