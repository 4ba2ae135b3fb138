"""Checks for values as they stand in YAML: numbers in words, lists with commas, shares in percent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from inc_torch.config._checks import Check, Place, choice, integer, number, text

__all__ = [
    "all_or_some",
    "any_case",
    "as_it_is",
    "count",
    "one_or_more",
    "positive",
    "share",
    "split",
    "whole_numbers",
]

positive = integer("a number of 1 or more", lambda x: x >= 1)
count = integer("a number of 0 or more", lambda x: x >= 0)
all_or_some = integer("a number of 1 or more, or -1 for all", lambda x: x >= 1 or x == -1)


def split(value: object) -> list[object]:
    """Return the entries of a list, of words with commas between them, or of one value.

    Example:
        >>> split("1000, 2000"), split([1, 2]), split(3)
        (['1000', '2000'], [1, 2], [3])
    """
    if isinstance(value, str):
        return [part for part in (part.strip() for part in value.split(",")) if part]
    return list(value) if isinstance(value, list | tuple) else [value]


def one_or_more(check: Check[Any]) -> Check[tuple[Any, ...]]:
    """A tuple of what ``check`` accepts, from any of the forms that `split` takes."""

    def check_all(value: object, place: Place) -> tuple[Any, ...]:
        return tuple(check(entry, place) for entry in split(value))

    return check_all


def _whole(value: object, place: Place) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return integer("a number of 1 or more, or several", lambda x: x >= 1)(value, place)


whole_numbers: Check[tuple[int, ...]] = one_or_more(_whole)


def share(value: object, place: Place) -> float:
    """A number, or ``"1%"``."""
    want = "a number, or a share such as '1%'"
    if isinstance(value, str):
        try:
            value = float(value.strip().removesuffix("%")) / (100 if value.strip().endswith("%") else 1)
        except ValueError as error:
            raise place.type_error(value, want) from error
    return number(want, lambda _: True)(value, place)


def any_case(words: Iterable[str]) -> Check[str]:
    """One of ``words``, however it is capitalised."""
    known = list(words)
    check = choice(known)

    def check_word(value: object, place: Place) -> str:
        lowered = {word.lower(): word for word in known}
        word = text(value, place)
        return lowered.get(word.lower()) or check(word, place)

    return check_word


def as_it_is(value: object, place: Place) -> Any:  # noqa: ANN401, ARG001  a check
    """Anything; whoever builds something of it knows what it takes."""
    return value
