"""Attributes that users assign to 1.X objects: known ones, checked as they are assigned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from inc_torch.core.errors import ConfigTypeError, did_you_mean
from inc_torch.model import Model

__all__ = ["OnlyKnown", "Setting", "function", "loader", "opened"]


def function(value: object, owner: str, name: str) -> object:
    """Something that can be called, or None."""
    if value is not None and not callable(value):
        message = f"{owner}.{name}={value!r}: expected a function of the model, not {type(value).__name__}."
        raise ConfigTypeError(message)
    return value


def loader(value: object, owner: str, name: str) -> object:
    """Something that can be read more than once, or None."""
    if value is not None and not hasattr(value, "__iter__"):
        message = (
            f"{owner}.{name}={value!r}: expected a loader of batches, such as common.DataLoader(dataset), not "
            f"{type(value).__name__}."
        )
        raise ConfigTypeError(message)
    return value


def opened(value: Any, owner: str, name: str) -> object:  # noqa: ANN401, ARG001  a check
    """A module, or the saved one that a path leads to."""
    return Model(value)


@final
class Setting:
    """An attribute to be read and assigned; None until then.

    Args:
        doc: What it is.
        check: Returns what is kept, or raises.
        also: The name of the setting that this one is another word for.
    """

    def __init__(
        self, doc: str, check: Callable[[object, str, str], object] | None = None, *, also: str | None = None
    ) -> None:
        self.__doc__ = doc
        self._check, self._also = check, also

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> Any:  # noqa: ANN401  whatever was assigned
        if instance is None:
            return self
        return getattr(instance, self._also) if self._also else instance.__dict__.get(self._name)

    def __set__(self, instance: object, value: object) -> None:
        if self._also:
            setattr(instance, self._also, value)
            return
        owner = type(instance).__name__
        instance.__dict__[self._name] = value if self._check is None else self._check(value, owner, self._name)


class OnlyKnown:
    """Refuses to be given an attribute that its class does not have, where INC takes every typo."""

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):
            known = [known for known in dir(type(self)) if not known.startswith("_")]
            message = f"{type(self).__name__} has no attribute {name!r}.{did_you_mean(name, known)}"
            raise AttributeError(message, name=name, obj=self)
        super().__setattr__(name, value)
