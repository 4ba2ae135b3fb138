"""Values of a JSON file that somebody else may have written: taken only as what they have to be."""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn, final

from inc_torch.core.errors import ArtifactError

__all__ = ["Stored", "plain_number"]

_NOT_FINITE: Final = {str(value): value for value in (math.nan, math.inf, -math.inf)}
"""Numbers that JSON has no word for, by what is written instead."""


def plain_number(value: float) -> float | str:
    """A number for JSON: ``"nan"``, ``"inf"`` and ``"-inf"`` are written as text."""
    return value if math.isfinite(value) else str(value)


@final
@dataclass(frozen=True, slots=True)
class Stored:
    """A value, and where it stands.

    Every method raises `ArtifactError` where the value is not what is asked for.

    Example:
        >>> Stored({"trials": [{"number": "one"}]}, "tuning.json")["trials"].items()[0]["number"].integer()
        Traceback (most recent call last):
        inc_torch.core.errors.ArtifactError: tuning.json: trials[0].number is 'one', expected an integer. The file ...
    """

    value: object
    file: str
    place: str = ""

    def __getitem__(self, key: str) -> Stored:
        """The entry of an object."""
        if not isinstance(self.value, dict):
            self.refuse("an object")
        if key not in self.value:
            self.refuse(f"an object with {key!r}")
        return Stored(self.value[key], self.file, f"{self.place}.{key}".lstrip("."))

    def entries(self) -> dict[str, Stored]:
        """All entries of an object."""
        if not isinstance(self.value, dict):
            self.refuse("an object")
        return {key: self[key] for key in self.value}

    def items(self) -> list[Stored]:
        """All items of a list."""
        if not isinstance(self.value, list):
            self.refuse("a list")
        return [Stored(item, self.file, f"{self.place}[{index}]") for index, item in enumerate(self.value)]

    def optional(self) -> Iterator[Stored]:
        """Itself, or nothing if it is null."""
        if self.value is not None:
            yield self

    def text(self) -> str:
        """Some text."""
        if not isinstance(self.value, str):
            self.refuse("text")
        return self.value

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            self.refuse("true or false")
        return self.value

    def integer(self) -> int:
        """A whole number."""
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            self.refuse("an integer")
        return self.value

    def number(self) -> float:
        """Any number, as `plain_number` wrote it."""
        if isinstance(self.value, str) and self.value in _NOT_FINITE:
            return _NOT_FINITE[self.value]
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            self.refuse("a number")
        if abs(self.value) > sys.float_info.max:
            self.refuse("a number of 64 bits")
        return float(self.value)

    def refuse(self, expected: str) -> NoReturn:
        """Say that it is not what was expected."""
        message = (
            f"{self.file}: {self.place or 'the whole'} is {reprlib.repr(self.value)}, expected {expected}. The file is "
            "damaged, or another program's. Save the result again with result.save(path)."
        )
        raise ArtifactError(message)
