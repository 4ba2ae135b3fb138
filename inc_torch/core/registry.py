"""Plug-in registries: one file in a plug-in folder makes a name usable everywhere."""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from inc_torch.core.errors import ConfigError, did_you_mean

__all__ = ["Entry", "Registry"]

T = TypeVar("T")
Registered = TypeVar("Registered")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """What a registry knows of one plug-in."""

    name: str
    value: T
    summary: str


class Registry(Generic[T]):
    """Names of one kind of plug-in, filled by decorator, loaded at the first look-up.

    Args:
        kind: What one entry is, for messages: ``"pruning criterion"``.
        package: Dotted name of the folder whose modules register themselves on import.

    Example:
        >>> shapes: Registry[type] = Registry("shape")
        >>> @shapes.register("square", summary="four equal sides")
        ... class Square: ...
        >>> shapes.get("square") is Square
        True
        >>> shapes.get("sqare")
        Traceback (most recent call last):
        inc_torch.core.errors.ConfigError: Unknown shape 'sqare'. Did you mean 'square'? Registered: square.
    """

    def __init__(self, kind: str, package: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, Entry[T]] = {}
        self._loading, self._is_loading = threading.RLock(), False

    def register(self, name: str, *, summary: str) -> Callable[[Registered], Registered]:
        """File the decorated object under ``name``; a name can be taken only once."""

        def file(value: Registered) -> Registered:
            taken = self._entries.get(name)
            if taken is not None and getattr(taken.value, "__qualname__", None) != getattr(value, "__qualname__", ""):
                message = f"The {self.kind} {name!r} is already registered by {taken.value!r}."
                raise ConfigError(message)
            self._entries[name] = Entry(name, value, summary)  # type: ignore[arg-type]  # T is what the caller files
            return value

        return file

    def get(self, name: str) -> T:
        """Return the object filed under ``name``.

        Raises:
            ConfigError: No such name; the message lists all and suggests the nearest.
        """
        self._load()
        if name not in self._entries:
            names = ", ".join(self.names())
            message = f"Unknown {self.kind} {name!r}.{did_you_mean(name, self._entries)} Registered: {names}."
            raise ConfigError(message)
        return self._entries[name].value

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[Entry[T]]:
        self._load()
        return iter([self._entries[name] for name in sorted(self._entries)])

    def _load(self) -> None:
        with self._loading:  # other threads wait until all names are there
            name = self._package
            if name is None or self._is_loading:
                return
            self._is_loading = True
            try:
                package = importlib.import_module(name)
                for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
                    importlib.import_module(module.name)
            finally:
                self._is_loading = False
            self._package = None
