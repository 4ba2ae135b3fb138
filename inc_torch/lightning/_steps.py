"""The moments right before and right after an optimizer steps, which Lightning does not tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, final

import torch
from torch.optim import Optimizer

__all__ = ["StepSeam"]

Closure = Callable[[], Any]


@final
class StepSeam:
    """Stands in for ``optimizer.step`` of some optimizers, as torch's learning rate schedulers do.

    Lightning computes the gradients inside ``optimizer.step(closure)``: forward, backward, its own event
    ``on_before_optimizer_step``, and only then clipping. Here the closure is evaluated first, so that ``before`` sees
    the gradients that the optimizer sees, and torch's hooks run when they are complete. A step that a gradient scaler
    skips never comes here.

    Args:
        optimizers: Whose steps are meant.
        before: Called with an optimizer that steps next; its gradients are complete, unscaled and clipped.
        after: Called with an optimizer that has stepped.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        before: Callable[[Optimizer], None],
        after: Callable[[Optimizer], None],
    ) -> None:
        self._before = before
        self._after = after
        self._optimizers = optimizers
        self._own: list[Any] = [vars(optimizer).get("step") for optimizer in optimizers]
        self._installed: list[Any] = []

    def install(self) -> None:
        """Take the place of every optimizer's ``step``."""
        for optimizer in self._optimizers:
            self._installed.append(self._around(optimizer))
            vars(optimizer)["step"] = self._installed[-1]

    def remove(self) -> None:
        """Give every optimizer its own back."""
        for optimizer, own, installed in zip(self._optimizers, self._own, self._installed, strict=False):
            if vars(optimizer).get("step") is installed:
                if own is None:
                    del vars(optimizer)["step"]
                else:
                    vars(optimizer)["step"] = own
        self._installed.clear()

    def _around(self, optimizer: Optimizer) -> MethodType:
        step: Any = optimizer.step

        def stepping(optimizer: Optimizer, closure: Closure | None = None, **options: object) -> object:
            if closure is not None:
                options["closure"] = _Evaluated(closure)
            self._before(optimizer)
            result = step(**options)
            self._after(optimizer)
            return result

        stepping.__dict__.update(step.__dict__)  # by a mark in it, schedulers know that they count its calls
        return MethodType(stepping, optimizer)


@final
class _Evaluated:
    """A closure that has been called; its first caller gets that result, later ones (LBFGS) a new one."""

    def __init__(self, closure: Closure) -> None:
        self._closure = closure
        with torch.enable_grad():
            self._results = [closure()]

    def __call__(self) -> object:
        return self._results.pop() if self._results else self._closure()
