"""What a section may hold, and how the user's values are held against it.

A schema is a tree of `Section`, `Field` and `Named`. Reading by it gives a tree in which every known key is there, with
its default if the user left it out, so that a misspelt attribute is an error and no None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, final

from inc_torch.config._checks import Check, Place
from inc_torch.config._readonly import FrozenDict
from inc_torch.core.errors import ConfigError, ConfigTypeError, did_you_mean
from inc_torch.core.plain_yaml import Path

__all__ = ["Alternatives", "Field", "ListOf", "Named", "Note", "Reading", "Section"]

_NOTHING: Final = (None, "...")
"""What stands where a section is left out: nothing, or the dots of a document that leaves it to the reader."""


@final
@dataclass(frozen=True, slots=True)
class Note:
    """Something that is read, but does not do what it did.

    Attributes:
        text: What, and why.
        line: Where in the file, counted from 1; None for a dict.
    """

    text: str
    line: int | None = None

    def __str__(self) -> str:
        return self.text if self.line is None else f"line {self.line}: {self.text}"


@final
@dataclass(slots=True)
class Reading:
    """One reading of one source: where things stand, and what there is to say about them.

    Attributes:
        name: Of the file, or of the object that a dict was given to.
        lines: Where values stand; empty for a dict.
        notes: What was found worth telling.
        elsewhere: Every key of the whole schema with the sections it belongs to, to guess at a wrong indentation.
    """

    name: str
    lines: Mapping[Path, int] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    elsewhere: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def line_of(self, path: Path) -> int | None:
        """Where the value stands, or what it would stand in."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def note(self, path: Path, text: str) -> None:
        """Remember something about the value at ``path``."""
        self.notes.append(Note(f"{shown(path)} {text}", self.line_of(path)))

    def error(self, path: Path, problem: str, kind: type[ConfigError] = ConfigError) -> ConfigError:
        """An error about the value at ``path``."""
        line = self.line_of(path)
        where = self.name if line is None else f"{self.name}, line {line}"
        return kind(f"{where}: {problem}")


def shown(path: Path) -> str:
    """Return a path as users write it.

    Example:
        >>> shown(("pruning", "approach", "pruners", 0, "names"))
        'pruning.approach.pruners[0].names'
    """
    words = ""
    for key in path:
        words += f"[{key}]" if isinstance(key, int) else f".{key}" if words else key
    return words


class Schema(Protocol):
    """Reads the value at ``path``; None is a key that is not there."""

    def read(self, value: object, path: Path, reading: Reading) -> Any: ...  # noqa: ANN401


@final
@dataclass(frozen=True, slots=True)
class Field:
    """One value.

    Attributes:
        check: What it has to be.
        default: What it is if it is left out.
        idle: Why it does nothing here; told if it is given.
        remark: Says of a value what has to be told about it; None is nothing.
    """

    check: Check[Any]
    default: Any = None
    idle: str | None = None
    remark: Callable[[object], str | None] | None = None

    def read(self, value: object, path: Path, reading: Reading) -> Any:  # noqa: ANN401
        if value is None:
            return self.default
        try:
            checked = self.check(value, Place(shown(path[:-1]) or "conf", str(path[-1])))
        except ConfigError as error:
            raise reading.error(path, str(error), type(error)) from error
        if self.idle is not None:
            reading.note(path, f"has no effect: {self.idle}.")
        if self.remark is not None and (text := self.remark(value)) is not None:
            reading.note(path, text)
        return checked


@final
class Section:
    """A mapping of known keys.

    Args:
        fields: What each key holds.
        required: Keys that have to be there.
        others: Why keys that INC has for other frameworks are refused.
        present: Whether it reads as a tree of defaults if it is left out; else as None.
    """

    def __init__(
        self,
        fields: Mapping[str, Schema],
        *,
        required: Sequence[str] = (),
        others: Mapping[str, str] | None = None,
        present: bool = False,
    ) -> None:
        self.fields, self.required, self.others, self.present = dict(fields), required, others or {}, present

    def read(self, value: object, path: Path, reading: Reading) -> FrozenDict | None:
        if value in _NOTHING:
            if not self.present:
                return None
            value = {}
        given = _mapping(value, path, reading)
        for key in given:
            if key not in self.fields:
                raise self._unknown(key, path, reading)
        for key in self.required:
            if given.get(key) in _NOTHING:
                raise reading.error(path, f"{shown(path)} has no {key!r}: expected {', '.join(self.required)}.")
        return FrozenDict(
            {key: schema.read(given.get(key), (*path, key), reading) for key, schema in self.fields.items()}
        )

    def _unknown(self, key: str, path: Path, reading: Reading) -> ConfigError:
        if key in self.others:
            at = (*path, key)
            return reading.error(at, f"{shown(at)} is not for PyTorch: {self.others[key]}. Take it out.")
        return _unknown_key(key, self.fields, path, reading)


@final
@dataclass(frozen=True, slots=True)
class Named:
    """A mapping from names to their arguments, such as a metric with its ``k``; read as it stands.

    Attributes:
        most: How many names there may be; None is any number.
        names: Known names; none means that whoever builds it knows.
        beside: Keys that may stand among the names.
    """

    most: int | None = None
    names: Sequence[str] = ()
    beside: Sequence[str] = ()

    def read(self, value: object, path: Path, reading: Reading) -> FrozenDict | None:
        if value in _NOTHING or value == {}:
            return None
        if isinstance(value, str):
            value = {value: None}
        given = _mapping(value, path, reading)
        listed = [key for key in given if key not in self.beside]
        if self.most is not None and len(listed) > self.most:
            want = "one entry" if self.most == 1 else f"at most {self.most} entries"
            raise reading.error(path, f"{shown(path)} has {len(listed)} entries, {listed}: expected {want}.")
        for key in listed:
            if self.names and key not in self.names:
                known = ", ".join(self.names)
                hint = did_you_mean(key, self.names)
                raise reading.error((*path, key), f"{shown(path)} has {key!r}: expected one of {known}.{hint}")
        return FrozenDict(given)


@final
@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of entries that are alike; one that is no list is a list of one."""

    entry: Schema

    def read(self, value: object, path: Path, reading: Reading) -> tuple[Any, ...]:
        if value in _NOTHING or value == {}:
            return ()
        entries = value if isinstance(value, list | tuple) else [value]
        return tuple(self.entry.read(entry, (*path, place), reading) for place, entry in enumerate(entries))


@final
@dataclass(frozen=True, slots=True)
class Alternatives:
    """A mapping with one of several keys, under which its value is read."""

    entries: Mapping[str, Schema]

    def read(self, value: object, path: Path, reading: Reading) -> FrozenDict | None:
        if value in _NOTHING or value == {}:
            return None
        given = _mapping(value, path, reading)
        for key in given:
            if key not in self.entries:
                raise _unknown_key(key, self.entries, path, reading)
        if len(given) != 1:
            known = ", ".join(self.entries)
            raise reading.error(path, f"{shown(path)} has {len(given)} entries: expected one of {known}.")
        ((name, content),) = given.items()
        return FrozenDict({name: self.entries[name].read(content, (*path, name), reading)})


def _mapping(value: object, path: Path, reading: Reading) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        name = shown(path) or "The content"
        problem = f"{name}={value!r}: expected a mapping, not {type(value).__name__}."
        raise reading.error(path, problem, ConfigTypeError)
    for key in value:
        if not isinstance(key, str):
            raise reading.error(path, f"{shown(path)} has the key {key!r}: expected a word.", ConfigTypeError)
    return value


def _unknown_key(key: str, known: Iterable[str], path: Path, reading: Reading) -> ConfigError:
    hint = did_you_mean(key, known)
    if key in reading.elsewhere:
        places = " or ".join(map(repr, reading.elsewhere[key]))
        hint = f" It belongs under {places}: is the line indented as it should be?"
    where = f"{shown(path)!r}" if path else "The top level"
    return reading.error((*path, key), f"{where} has no key {key!r}.{hint} Known: {', '.join(known)}.", ConfigTypeError)
