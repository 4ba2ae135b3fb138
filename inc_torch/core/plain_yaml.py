"""Reads YAML into plain values, and remembers on which line each of them stands."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Final, final

import yaml

from inc_torch.core.errors import ConfigError

__all__ = ["Path", "Text", "read_text"]

Path = tuple[str | int, ...]

_MOST_VALUES: Final = 100_000
"""In a file, so that a few lines of aliases cannot stand for billions of values."""

_STANDARD: Final = ("null", "bool", "int", "float", "str", "timestamp", "binary", "map", "seq")
_TAGS: Final = frozenset({"!Pruner", "!PrunerV2", *(f"tag:yaml.org,2002:{kind}" for kind in _STANDARD)})
"""Plain values, and what INC marks the entries of ``pruners`` with; they are mappings like any other."""


@final
@dataclass(slots=True)
class Text:
    """What a text says, as plain values.

    Attributes:
        value: Dicts, lists, strings, numbers, booleans and None.
        lines: Where each value stands, counted from 1, by its path from the top.
    """

    value: object = None
    lines: dict[Path, int] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """A loader of its own, so that nothing done to it is seen by other users of the library."""


def read_text(text: str, name: str) -> Text:
    r"""Read one document of YAML.

    Nothing is built but plain values. A key that stands twice is refused, where YAML keeps the last; so are tags other
    than INC's ``!Pruner``, and files with more than 100,000 values once aliases are followed.

    Args:
        text: The document.
        name: Of the file, for messages.

    Raises:
        ConfigError: It is no YAML, or is refused; the message has the line.

    Example:
        >>> read = read_text("model:\n  name: net\n", "conf.yaml")
        >>> read.value, read.lines["model", "name"]
        ({'model': {'name': 'net'}}, 2)
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        reader = _Reader(loader, name)
        return Text() if node is None else Text(reader.read(node, ()), reader.lines)
    except yaml.YAMLError as error:
        raise _unreadable(error, name) from error
    except RecursionError as error:
        message = f"{name}: lists and mappings are nested too deeply: expected a few dozen levels at most."
        raise ConfigError(message) from error


def _unreadable(error: yaml.YAMLError, name: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f", line {mark.line + 1}"
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    hint = " YAML is indented by spaces, not by tabs." if "\\t" in problem else ""
    return ConfigError(f"{name}{where}: this is no YAML: {problem}.{hint}")


@final
class _Reader:
    def __init__(self, loader: _Loader, name: str) -> None:
        self._loader, self._name = loader, name
        self._open: list[yaml.Node] = []
        self._count = 0
        self.lines: dict[Path, int] = {}

    def read(self, node: yaml.Node, path: Path) -> object:
        """Return the value of ``node``, and note the lines of all that it holds."""
        self.lines.setdefault(path, node.start_mark.line + 1)
        self._count += 1
        if self._count > _MOST_VALUES:
            raise self._error(node, f"there are more than {_MOST_VALUES:,} values once aliases are followed")
        if any(node is outer for outer in self._open):
            raise self._error(node, "an alias stands inside of what it stands for")
        if node.tag not in _TAGS:
            raise self._error(node, f"unknown tag {node.tag!r}: expected plain values, or !Pruner {{...}}")
        self._open.append(node)
        try:
            return self._content(node, path)
        finally:
            self._open.pop()

    def _content(self, node: yaml.Node, path: Path) -> object:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(entry, (*path, place)) for place, entry in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> Mapping[str, object]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        names = [self._key(key) for key in own]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise self._error(own[place], f"the key {name!r} stands here a second time")
        self._loader.flatten_mapping(node)  # what << names comes first, the node's own keys after it
        found: dict[str, object] = {}
        for key, value in node.value:
            name = self._key(key)
            self.lines[*path, name] = key.start_mark.line + 1
            found[name] = self.read(value, (*path, name))
        return found

    def _key(self, node: yaml.Node) -> str:
        name = self._scalar(node) if isinstance(node, yaml.ScalarNode) else None
        if name is None or not isinstance(name, Hashable):
            raise self._error(node, "this key is no word")
        return str(name)

    def _scalar(self, node: yaml.Node) -> object:
        """A word, number or switch; a date stays the word that it is written as."""
        if node.tag in {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:binary"}:
            return str(node.value)
        try:
            value: object = self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError, IndexError) as error:  # "!!int" of nothing is an IndexError
            raise self._error(node, f"{node.value!r} cannot be read: {error}") from error
        return value

    def _error(self, node: yaml.Node, problem: str) -> ConfigError:
        return ConfigError(f"{self._name}, line {node.start_mark.line + 1}: {problem}.")
