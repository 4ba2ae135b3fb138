"""The clock of a run: it counts real weight updates, whatever the loop forgets to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, final
from weakref import WeakSet

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

__all__ = ["UpdateClock"]


@final
class UpdateClock:
    """Watches every torch optimizer that holds one of the given Parameters.

    A step that a gradient scaler skips is no update: the optimizer is not stepped, or (fused optimizers) it is
    handed a ``found_inf`` above zero. Loops that update weights without a torch optimizer are believed, unless
    their gradients were not finite.

    Args:
        parameters: Gives the Parameters to watch; asked at each event, since wrappers exchange Parameters.
        on_optimizer: Called with an optimizer that is about to step, and whether it steps for the second time
            since the last claim, that is, whether a step went by that nobody claimed.
    """

    def __init__(
        self, parameters: Callable[[], Iterable[nn.Parameter]], on_optimizer: Callable[[Optimizer, bool], None]
    ) -> None:
        self._parameters = parameters
        self._on_optimizer = on_optimizer
        self._handles: Sequence[RemovableHandle] = ()
        self._stepped: WeakSet[Optimizer] = WeakSet()
        self.has_seen_optimizer = False
        self.has_unclaimed_update = False

    @property
    def is_running(self) -> bool:
        """Whether it watches at the moment."""
        return bool(self._handles)

    def start(self) -> None:
        """Begin to watch; starting twice is harmless."""
        if not self._handles:
            self._handles = (
                register_optimizer_step_pre_hook(self._before),
                register_optimizer_step_post_hook(self._after),
            )

    def stop(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles = ()

    def claim(self) -> bool:
        """Whether weights were really updated since the last claim, as far as optimizers tell."""
        claimed, self.has_unclaimed_update = self.has_unclaimed_update, False
        self._stepped.clear()
        return claimed

    def has_finite_gradients(self) -> bool:
        """Whether every gradient at hand is finite; the last resort where no optimizer was seen."""
        gradients = [parameter.grad for parameter in self._parameters() if parameter.grad is not None]
        return all(bool(torch.isfinite(gradient).all()) for gradient in gradients)

    def _holds_ours(self, optimizer: Optimizer) -> bool:
        ours = {id(parameter) for parameter in self._parameters()}
        return any(id(parameter) in ours for group in optimizer.param_groups for parameter in group["params"])

    def _before(self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        if self._holds_ours(optimizer):
            self._on_optimizer(optimizer, optimizer in self._stepped)

    def _after(self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        if not self._holds_ours(optimizer):
            return
        self.has_seen_optimizer = True
        self._stepped.add(optimizer)
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not bool(found_inf):
            self.has_unclaimed_update = True
