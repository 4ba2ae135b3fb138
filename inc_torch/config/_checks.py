"""Checks of single values: each takes what the user wrote, and returns it in stored form or raises.

A check states its rule in words that complete the sentence "expected ...", so that one message form
serves all fields: ``WeightPruningConfig.target_sparsity=1.5: expected a number in [0, 1).``
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Protocol, TypeVar, final

from inc_torch.config._readonly import FrozenDict
from inc_torch.core.errors import ConfigError, ConfigTypeError, did_you_mean

__all__ = [
    "Check",
    "Place",
    "choice",
    "flag",
    "instance_of",
    "integer",
    "items_of",
    "list_of",
    "mapping",
    "names",
    "number",
    "optional",
    "regular_expressions",
    "text",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands in what the user wrote; builds the errors about it."""

    owner: str
    name: str

    def error(self, got: object, want: str, hint: str = "") -> ConfigError:
        """The value has the right type, but breaks the rule ``want``."""
        return ConfigError(f"{ConfigError.field(self.owner, self.name, got, want)}{hint}")

    def type_error(self, got: object, want: str, hint: str = "") -> ConfigTypeError:
        """The value has the wrong type."""
        want = f"{want}, not {_a(type(got).__name__)}"
        return ConfigTypeError(f"{ConfigError.field(self.owner, self.name, got, want)}{hint}")

    def item(self, key: object) -> Place:
        """The place of one entry of a list or dict that stands here."""
        return Place(self.owner, f"{self.name}[{key!r}]")

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"


_PERCENT = 100


class Check(Protocol[T_co]):
    """Turns what the user wrote into the stored value, or raises a ConfigError that names the place."""

    def __call__(self, value: object, place: Place, /) -> T_co: ...


def number(want: str, accepts: Callable[[float], bool]) -> Check[float]:
    """A finite real number; no bool, no string."""

    def check(value: object, place: Place) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise place.type_error(value, want)
        try:
            found = float(value)
        except OverflowError:  # an integer of hundreds of digits
            found = math.inf
        if not math.isfinite(found) or not accepts(found):
            is_percentage = found > 1 and found.is_integer() and accepts(found / _PERCENT)
            raise place.error(value, want, f" {found:g} % is {found / _PERCENT:g}." if is_percentage else "")
        return found

    return check


def integer(want: str, accepts: Callable[[int], bool]) -> Check[int]:
    """An integer; no bool, no string, no float."""

    def check(value: object, place: Place) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise place.type_error(value, want)
        if not accepts(int(value)):
            raise place.error(value, want)
        return int(value)

    return check


def flag(value: object, place: Place) -> bool:
    """True or False, and no string that means one of them."""
    if not isinstance(value, bool):
        raise place.type_error(value, "True or False")
    return value


def text(value: object, place: Place) -> str:
    """Any string."""
    if not isinstance(value, str):
        raise place.type_error(value, "a string")
    return value


def choice(words: Iterable[str] | Callable[[], Iterable[str]]) -> Check[str]:
    """One of ``words``; a function, such as a registry's ``names``, is asked at every check, so that plug-ins count."""

    def check(value: object, place: Place) -> str:
        known = list(words() if callable(words) else words)
        want = f"one of {', '.join(map(repr, known))}"
        if not isinstance(value, str):
            raise place.type_error(value, want)
        if value not in known:
            raise place.error(value, want, did_you_mean(value, known))
        return value

    return check


def optional(check: Check[T]) -> Check[T | None]:
    """None, or what ``check`` accepts."""

    def check_unless_none(value: object, place: Place) -> T | None:
        return None if value is None else check(value, place)

    return check_unless_none


def list_of(want: str, check: Check[T]) -> Check[tuple[T, ...]]:
    """A list or tuple of what ``check`` accepts; copied into a tuple, a bare string is a list of one."""

    def check_all(value: object, place: Place) -> tuple[T, ...]:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise place.type_error(value, want)
        return tuple(check(item, place.item(index)) for index, item in enumerate(items))

    return check_all


def _regular_expression(value: object, place: Place) -> str:
    pattern = text(value, place)
    try:
        re.compile(pattern)
    except re.error as error:
        hint = f" It is wrong here: {error}. Use re.escape for a literal name."
        raise place.error(value, "a regular expression", hint) from error
    return pattern


names: Check[tuple[str, ...]] = list_of("a list of strings", text)
regular_expressions: Check[tuple[str, ...]] = list_of("a list of regular expressions", _regular_expression)


def mapping(value: object, place: Place) -> FrozenDict:
    """A dict with string keys; copied all the way down."""
    return FrozenDict(items_of(value, place, "a dict"))


def items_of(value: object, place: Place, want: str, known: Sequence[str] = ()) -> Mapping[str, object]:
    """A dict with string keys, all among ``known`` if that is given."""
    if not isinstance(value, Mapping):
        raise place.type_error(value, want)
    for key in value:
        if not isinstance(key, str):
            message = f"{place} has the key {key!r}: expected keys that are strings."
            raise ConfigTypeError(message)
        if known and key not in known:
            nearest = did_you_mean(key, known) or f" Known: {', '.join(known)}."
            message = f"{place} has no option {key!r}.{nearest}"
            raise ConfigTypeError(message)
    return value


def instance_of(kind: type[T]) -> Check[T]:
    """An object of class ``kind``."""

    def check(value: object, place: Place) -> T:
        if not isinstance(value, kind):
            raise place.type_error(value, f"{_a(kind.__name__)} object")
        return value

    return check


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiouAEIOU" else f"a {noun}"
