"""What a training function is given, and how its run is saved and goes on."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, final, runtime_checkable

import torch
from torch import nn

from inc_torch.core.errors import ConfigTypeError, HookOrderError, LoopWarning, StateError
from inc_torch.core.names import unwrapped
from inc_torch.core.state import check_keys
from inc_torch.core.user_warning import warn_user

if TYPE_CHECKING:
    from inc_torch.pipeline._folder import RunFolder
    from inc_torch.training import CompressionManager

__all__ = ["TrainingRun"]

_KEYS: Final = {"stage", "model", "gradients", "objects", "values", "manager"}
_PLAIN: Final = (type(None), bool, int, float, complex, str, bytes, torch.Tensor, nn.Parameter, torch.Size, torch.dtype)


@runtime_checkable
class _Stateful(Protocol):
    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> object: ...  # noqa: ANN401  as each class has it


@final
class TrainingRun:
    """One stage of training while it runs.

    Attributes:
        model: What to train, in whatever wraps it; prepared by ``manager``.
        manager: Its hooks are called by your loop.
        name: Of the stage.
        is_resumed: There was something to go on from when the stage began.
        has_asked: `restore` was called.
    """

    def __init__(
        self, manager: CompressionManager, name: str, folder: RunFolder | None = None, number: int = 0
    ) -> None:
        self.model = manager.model
        self.manager = manager
        self.name = name
        self._folder = folder
        self._number = number
        self.is_resumed = folder is not None and folder.has_state(number)
        self.has_asked = False

    def __repr__(self) -> str:
        return f"TrainingRun({self.name!r}, {self.manager!r})"

    def save(self, **things: object) -> None:
        """Keep the run as it is now, so that it goes on from here if it is interrupted.

        Model, gradients, the state of the manager and all random generators are kept anyway. Nothing is written where
        the pipeline has no directory.

        Args:
            **things: What else the loop needs: objects with ``state_dict`` and ``load_state_dict``, such as optimizer
                and scheduler, or plain values and tensors, such as the number of the next step.

        Raises:
            ConfigTypeError: Something is neither.
        """
        if self._folder is None:
            return
        if self.manager.callbacks.has_ended:
            message = f"run.save was called after on_train_end of stage {self.name!r}, which is kept as a whole anyway."
            warn_user(message, LoopWarning)
            return
        objects = {name: thing.state_dict() for name, thing in things.items() if isinstance(thing, _Stateful)}
        values = {name: thing for name, thing in things.items() if name not in objects}
        for name, thing in {**objects, **values}.items():
            _require_plain(thing, name, is_state=name in objects)
        inner = unwrapped(self.model)
        gradients = {name: parameter.grad for name, parameter in inner.named_parameters() if parameter.grad is not None}
        state = {
            "stage": self.name,
            "model": inner.state_dict(),
            "gradients": gradients,
            "objects": objects,
            "values": values,
            "manager": self.manager.state_dict(),
        }
        self._folder.save_state(self._number, state)

    def restore(self, **objects: Any) -> dict[str, Any]:  # noqa: ANN401  whatever has load_state_dict
        """Go on from the last `save`, if there is one; called before ``on_train_begin``.

        Args:
            **objects: Those that were given to `save`, under the same names, to be filled.

        Returns:
            The plain values that were given to `save`; empty if the stage begins now.

        Raises:
            StateError: Other objects were saved.
            HookOrderError: The training has begun already.
        """
        self.has_asked = True
        if self.manager.callbacks.is_training or self.manager.callbacks.has_ended:
            message = f"run.restore was called after on_train_begin of stage {self.name!r}: expected before it."
            raise HookOrderError(message)
        if self._folder is None or not self.is_resumed:
            return {}
        state = self._folder.saved_state(self._number)
        check_keys(f"stage {self.name!r}", state, _KEYS)
        if objects.keys() != state["objects"].keys():
            message = (
                f"run.restore of stage {self.name!r} got {sorted(objects)}, and run.save was given the objects "
                f"{sorted(state['objects'])}: expected the same. Plain values are returned, not given."
            )
            raise StateError(message)
        inner = unwrapped(self.model)
        inner.load_state_dict(state["model"])
        for name, parameter in inner.named_parameters():
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        for name, thing in objects.items():
            thing.load_state_dict(state["objects"][name])
        self.manager.load_state_dict(state["manager"])  # last: it sets the random generators
        values: dict[str, Any] = state["values"]
        return values


def _require_plain(value: object, where: str, *, is_state: bool) -> None:
    """Refuse now what could not be read again without running its code."""
    if type(value) in (dict, OrderedDict, Counter):
        entries: Any = value
        for key, item in entries.items():
            _require_plain(key, f"{where}[{key!r}]", is_state=is_state)
            _require_plain(item, f"{where}[{key!r}]", is_state=is_state)
    elif type(value) in (list, tuple):
        listed: Any = value
        for index, item in enumerate(listed):
            _require_plain(item, f"{where}[{index}]", is_state=is_state)
    elif type(value) not in _PLAIN:
        whose = "the state of it holds" if is_state else "it is"
        message = (
            f"run.save got {where}: {whose} {value!r} of type {type(value).__name__}, expected tensors, numbers, "
            "strings, lists and dicts of them, or an object with state_dict and load_state_dict."
        )
        raise ConfigTypeError(message)
