"""Values that cannot be changed after they were checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import FrozenInstanceError
from typing import Any, NoReturn, final

from inc_torch.core.errors import ConfigTypeError, IncTorchError, did_you_mean

__all__ = ["FrozenConfigError", "FrozenDict", "freeze", "plain"]


class FrozenConfigError(IncTorchError, FrozenInstanceError):
    """A configuration was assigned to. It is checked once, when built; ``replace`` makes a changed copy."""


@final
class FrozenDict(Mapping[str, object]):
    """A read-only mapping whose string keys can also be read as attributes, all the way down.

    Stands where INC keeps dicts with attribute access.

    Example:
        >>> loss = FrozenDict({"KnowledgeDistillationLoss": {"temperature": 2.0}})
        >>> loss.KnowledgeDistillationLoss.temperature, loss["KnowledgeDistillationLoss"]
        (2.0, {'temperature': 2.0})
    """

    __slots__ = ("_items",)
    _items: dict[str, object]

    def __init__(self, items: Mapping[str, object] | None = None) -> None:
        object.__setattr__(self, "_items", {key: freeze(value) for key, value in (items or {}).items()})

    def __getitem__(self, key: str) -> object:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (attributes are chained: config.Loss.temperature)
        if name.startswith("_") or name not in self._items:
            message = f"There is no value {name!r} here.{did_you_mean(name, self._items)}"
            raise AttributeError(message, name=name, obj=self)
        return self._items[name]

    def __setattr__(self, name: str, value: object) -> NoReturn:
        message = f"This view of a configuration is read-only. Make a changed copy: config.replace({name}={value!r})."
        raise FrozenConfigError(message)

    def __delattr__(self, name: str) -> NoReturn:
        message = f"This view of a configuration is read-only; {name!r} cannot be taken out."
        raise FrozenConfigError(message)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, object]]]:
        return FrozenDict, (self._items,)


def freeze(value: object) -> object:
    """Copy dicts and lists, also nested ones, into read-only ones; anything else is returned as it is."""
    if isinstance(value, Mapping):
        return value if isinstance(value, FrozenDict) else FrozenDict(value)
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item) for item in value)
    return value


def plain(value: object, where: str) -> object:
    """Undo `freeze`: fresh dicts and lists, as JSON wants them.

    Raises:
        ConfigTypeError: There is an object inside, such as a function, that plain values cannot stand for.
    """
    if isinstance(value, Mapping):
        return {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    message = f"{where}={value!r} cannot be written as a plain value. Take it out with replace() before to_dict()."
    raise ConfigTypeError(message)
