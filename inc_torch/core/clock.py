"""The clock of a run: it counts real weight updates, whatever the loop forgets to say."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, final
from weakref import WeakSet

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from inc_torch.core.observed import leave_to_others, remove_leftovers
from inc_torch.core.sharding import held

__all__ = ["UpdateClock"]

Result = TypeVar("Result")
_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]
_Arguments = tuple[_Args, _Kwargs]
_Hook = Callable[[Optimizer, _Args, _Kwargs], Result | None]

SAMPLES = 1024
"""How many values of a Parameter are compared to see whether an update took place."""


@final
class UpdateClock:
    """Watches every torch optimizer that holds one of the given Parameters.

    A step that a gradient scaler skips is no update: the optimizer is not stepped, or (fused optimizers) it is
    handed a ``found_inf`` above zero. As long as no such optimizer was seen, the weights themselves tell: they are
    sampled by `mark`, and differ after an update.

    Torch keeps the hooks of optimizers globally. They hold the clock weakly, so that a run that is given up
    without `stop` does not keep its model alive.

    Args:
        parameters: Gives the Parameters to watch in optimizers; asked at each event, since wrappers exchange
            Parameters.
        weights: Gives the Parameters to sample.
        on_optimizer: Called with an optimizer that is about to step, and whether it steps for the second time
            since the last claim, that is, whether a step went by that nobody claimed.
        on_stepped: Called with an optimizer that has stepped.
    """

    def __init__(
        self,
        parameters: Callable[[], Iterable[nn.Parameter]],
        weights: Callable[[], Iterable[nn.Parameter]],
        on_optimizer: Callable[[Optimizer, bool], None],
        on_stepped: Callable[[Optimizer], None],
    ) -> None:
        self._parameters = parameters
        self._weights = weights
        self._on_optimizer = on_optimizer
        self._on_stepped = on_stepped
        self._handles: list[RemovableHandle] = []
        self._stepped: WeakSet[Optimizer] = WeakSet()
        self._stepped_before_cut: frozenset[int] = frozenset()
        self._unclaimed = False
        self._mark: list[torch.Tensor] | None = None
        self.has_seen_optimizer = False

    @property
    def is_running(self) -> bool:
        """Whether it watches at the moment."""
        return bool(self._handles)

    def start(self) -> None:
        """Begin to watch; starting twice is harmless."""
        if not self._handles:
            self._handles += (
                register_optimizer_step_pre_hook(_weakly(self, UpdateClock._before)),
                register_optimizer_step_post_hook(_weakly(self, UpdateClock._after)),
            )
            leave_to_others(self, self._handles)
        remove_leftovers()

    def stop(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        remove_leftovers()
        self._mark = None

    def mark(self) -> None:
        """Remember the weights as they are, if no optimizer tells of updates."""
        if not self.has_seen_optimizer:
            self._mark = self._sampled()

    def claim(self) -> bool:
        """Whether weights were really updated since the last claim."""
        claimed = self._has_update()
        self._unclaimed = False
        self._stepped.clear()
        self._stepped_before_cut = frozenset()
        return claimed

    def state_dict(self) -> dict[str, Any]:
        """What is not claimed yet, in plain values; optimizers by the first Parameter of ours that they hold."""
        stepped = {self._first_of_ours(optimizer) for optimizer in self._stepped} | self._stepped_before_cut
        return {
            "has_seen_optimizer": self.has_seen_optimizer,
            "has_update": self._has_update(),
            "stepped": sorted(index for index in stepped if index is not None),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; the weights are to be marked afterwards."""
        self.has_seen_optimizer = bool(state["has_seen_optimizer"])
        self._unclaimed = bool(state["has_update"])
        self._stepped_before_cut = frozenset(state["stepped"])
        self._mark = None

    def _has_update(self) -> bool:
        if self._unclaimed or self._mark is None:
            return self._unclaimed
        sampled = self._sampled()
        return len(sampled) != len(self._mark) or not all(map(torch.equal, sampled, self._mark))

    def _sampled(self) -> list[torch.Tensor]:
        """Evenly spread values of each Parameter that is trained; an update changes some, if only a little."""
        trained = [held(parameter.detach()) for parameter in self._weights() if parameter.requires_grad]
        flat = [values.reshape(-1) for values in trained]
        return [values[:: -(-len(values) // SAMPLES) or 1].clone() for values in flat]

    def _first_of_ours(self, optimizer: Optimizer) -> int | None:
        """Position of the first watched Parameter that ``optimizer`` holds, or None if it is another's."""
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        return next((index for index, parameter in enumerate(self._parameters()) if id(parameter) in held), None)

    def _before(self, optimizer: Optimizer, args: _Args, kwargs: _Kwargs) -> _Arguments | None:
        """Tell that ``optimizer`` is about to step: once its gradients are there, which a closure first computes."""
        first = self._first_of_ours(optimizer)
        if first is None:
            return None
        a_step_went_by = optimizer in self._stepped or first in self._stepped_before_cut
        tell = functools.partial(self._on_optimizer, optimizer, a_step_went_by)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            tell()
            return None
        return args[:1], {**kwargs, "closure": _once_after(closure, tell)}

    def _after(self, optimizer: Optimizer, _args: _Args, _kwargs: _Kwargs) -> None:
        if self._first_of_ours(optimizer) is None:
            return
        self.has_seen_optimizer = True
        self._mark = None
        self._stepped.add(optimizer)
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not bool(found_inf):
            self._unclaimed = True
        self._on_stepped(optimizer)


def _weakly(clock: UpdateClock, method: Callable[[UpdateClock, Optimizer, _Args, _Kwargs], Result]) -> _Hook[Result]:
    reference = weakref.ref(clock)

    def hook(optimizer: Optimizer, args: _Args, kwargs: _Kwargs) -> Result | None:
        alive = reference()
        return None if alive is None else method(alive, optimizer, args, kwargs)

    return hook


def _once_after(closure: Callable[[], Any], tell: Callable[[], None]) -> Callable[[], Any]:
    """``closure``, followed by ``tell`` where it is called first."""
    waiting = [tell]

    def evaluate() -> Any:  # noqa: ANN401  a loss
        loss = closure()
        if waiting:
            waiting.pop()()
        return loss

    return evaluate
