"""Objects that users ask for by a name and arguments, such as metrics, data sets and transforms."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from inc_torch.core.errors import ConfigError, did_you_mean

__all__ = ["check_arguments", "made", "read_arguments"]

Made = TypeVar("Made")


def made(
    subject: str, kind: Callable[..., Made], args: tuple[object, ...] = (), kwargs: Mapping[str, Any] | None = None
) -> Made:
    """Return ``kind(*args, **kwargs)``; an error of the constructor gets a note on where.

    Args:
        subject: What it is to the user, such as ``"metric 'topk'"``.
        kind: The class.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Raises:
        ConfigError: ``kind`` does not take the arguments.

    Example:
        >>> made("number 'n'", complex, (1,), {"imag": 2})
        (1+2j)
    """
    kwargs = kwargs or {}
    check_arguments(subject, kind, args, kwargs)
    try:
        return kind(*args, **kwargs)
    except Exception as error:
        given = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())])
        error.add_note(f"While making the {subject} with ({given}).")
        raise


def check_arguments(
    subject: str, kind: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> None:
    """Refuse arguments that ``kind`` does not take, as `made` does, without making anything."""
    try:
        signature = inspect.signature(kind)
    except ValueError:  # a class of C
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        unknown = next((key for key in kwargs if key not in signature.parameters), "")
        hint = did_you_mean(unknown, signature.parameters) if unknown else ""
        known = ", ".join(signature.parameters) or "none"
        message = f"The {subject} cannot be made: {error}. Expected arguments: {known}.{hint}"
        raise ConfigError(message) from None


def read_arguments(value: object) -> tuple[tuple[object, ...], dict[str, Any]]:
    """What stands behind a name in a file of settings: keyword arguments, none, or the one argument.

    Example:
        >>> read_arguments({"k": 5}), read_arguments(None), read_arguments(5)
        (((), {'k': 5}), ((), {}), ((5,), {}))
    """
    if value is None:
        return (), {}
    return ((), dict(value)) if isinstance(value, Mapping) else ((value,), {})
