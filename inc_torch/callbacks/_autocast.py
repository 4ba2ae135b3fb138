"""Hooks that run each forward of a module under autocast, and nothing else."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch import nn

from inc_torch.core.observed import leave_to_others
from inc_torch.precision import cast

__all__ = ["AutocastHooks"]


@final
class AutocastHooks:
    """Enters autocast before each forward of a module and leaves it after, also when the forward raises.

    Nothing is entered between forwards, so a loop that breaks, an exception and a generation leave nothing behind, and
    none where autocast is on already, as with a Trainer's ``bf16=True``. What the module returns is cast to float32, so
    that losses are computed in it. A copy of the module computes without.

    Args:
        module: The module; autocast is that of the device that it is on at each forward.
        dtype: ``torch.bfloat16`` or ``torch.float16``.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> seen = []
        >>> handle = layer.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        >>> hooks = AutocastHooks(layer, torch.bfloat16)
        >>> handle = layer.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        >>> layer(torch.ones(1, 2)).dtype, seen, torch.is_autocast_enabled("cpu")
        (torch.float32, [False, True], False)
        >>> hooks.remove()
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._entered: list[tuple[str, torch.dtype] | None] = []
        hooks = _Hooks(self)
        self._handles = [
            module.register_forward_pre_hook(hooks.before, with_kwargs=True),
            module.register_forward_hook(hooks.after, always_call=True, prepend=False),
        ]
        leave_to_others(self, self._handles)

    def enter(self, module: nn.Module) -> None:
        """Enter autocast, unless it is on."""
        device = next((tensor.device.type for tensor in module.parameters()), "cpu")
        is_on = torch.is_autocast_enabled(device)
        self._entered.append(None if is_on else (device, torch.get_autocast_dtype(device)))
        if not is_on:
            # Not as a context manager: torch.compile cannot keep one from one hook to the other.
            torch.set_autocast_dtype(device, self._dtype)
            torch.set_autocast_enabled(device, True)
            torch.autocast_increment_nesting()

    def leave(self, output: object) -> object:
        """Leave what was entered last, and return the output in float32 where it was entered here."""
        before = self._entered.pop() if self._entered else None
        if before is None:
            return None
        device, dtype = before
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()  # of weights, which change before the next forward
        torch.set_autocast_enabled(device, False)
        torch.set_autocast_dtype(device, dtype)
        return cast(output, torch.float32)

    def remove(self) -> None:
        """Take the hooks away; a forward that was interrupted from the keyboard is left too."""
        for handle in self._handles:
            handle.remove()
        while self._entered:
            self.leave(None)


@final
class _Hooks:
    """What the module holds: it keeps nothing alive, and is silent in a copy."""

    def __init__(self, owner: AutocastHooks | None) -> None:
        self._owner: Callable[[], AutocastHooks | None] = (lambda: None) if owner is None else weakref.ref(owner)

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401  those of the module
        owner = self._owner()
        if owner is not None:
            owner.enter(module)

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ANN401  those of the module
        owner = self._owner()
        return None if owner is None else owner.leave(output)

    def __deepcopy__(self, memo: object) -> Self:
        return type(self)(None)

    def __reduce__(self) -> tuple[type[_Hooks], tuple[None]]:
        return _Hooks, (None,)
