"""One script: its text, its tree, and where in the text the nodes of the tree stand.

Nothing is ever printed from the tree. What changes is written into the text at the places that the tree gives, so all
else stays as it is, byte for byte, and every line that is told is a line of the file as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar, final, overload

import libcst as cst
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider, QualifiedNameSource, ScopeProvider

from inc_torch.migrate._findings import Finding

__all__ = ["PACKAGES", "Edits", "Source", "walk"]

PACKAGES: Final = ("neural_compressor", "inc_torch")
"""Both are read, so that a script that was migrated before, or by hand, is understood too."""
KEPT: Final = "inc-torch: keep"
"""A comment that says of its line: looked at, leave it as it is, and do not ask again."""

_NEWLINE = re.compile(r"\r\n?|\n")
_Node = TypeVar("_Node", bound=cst.CSTNode)
_Other = TypeVar("_Other", bound=cst.CSTNode)


def walk(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Yield the node and all below it, in the order of the text."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack += reversed(node.children)


@final
@dataclass(slots=True)
class Edits:
    """Changes to a text, and what was found beside them."""

    changes: list[tuple[int, int, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def replace(self, begin: int, end: int, new: str) -> None:
        """Write ``new`` in place of the characters from ``begin`` to ``end``; where these are none, it is inserted."""
        change = (begin, end, new)
        if begin == end or change not in self.changes:  # a name that two imports bind is renamed once
            self.changes.append(change)

    def applied_to(self, text: str) -> str:
        """Return the changed text.

        Insertions at one place stand in the order in which they were made. What is replaced as a whole takes the
        changes inside of it away.
        """
        pieces, at = [], 0
        for begin, end, new in sorted(self.changes, key=lambda change: (change[0], change[0] != change[1], -change[1])):
            if begin >= at:
                pieces += [text[at:begin], new]
                at = end
        return "".join([*pieces, text[at:]])

    def within(self, begin: int, end: int) -> Edits:
        """The changes between two places, counted from the first."""
        inner = [(a - begin, b - begin, new) for a, b, new in self.changes if begin <= a and b <= end]
        return Edits(inner)


@final
class Source:
    """A parsed script.

    Args:
        text: The script, with the newlines that it has.

    Raises:
        libcst.ParserSyntaxError: It is no Python that can be read.

    Attributes:
        text: The script.
        edits: What is to change in it, and what was found.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.edits = Edits()
        wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
        self.module = wrapper.module
        self._positions = wrapper.resolve(PositionProvider)
        self._scopes = wrapper.resolve(ScopeProvider)
        self._parents = wrapper.resolve(ParentNodeProvider)
        self._starts = [0, *(match.end() for match in _NEWLINE.finditer(text))]
        self._nodes = tuple(walk(self.module))

    @overload
    def all(self, kind: type[_Node], /) -> Iterator[_Node]: ...

    @overload
    def all(self, kind: type[_Node], other: type[_Other], /) -> Iterator[_Node | _Other]: ...

    def all(self, *kinds: type[cst.CSTNode]) -> Iterator[cst.CSTNode]:
        """Yield the nodes of these classes, in the order of the text."""
        return (node for node in self._nodes if isinstance(node, kinds))

    # ---------------------------------------------------------------- places

    def begin(self, node: cst.CSTNode) -> int:
        """Where the node begins in the text."""
        place = self._positions[node].start
        return self._starts[place.line - 1] + place.column

    def end(self, node: cst.CSTNode) -> int:
        """Where the node ends in the text."""
        place = self._positions[node].end
        return self._starts[place.line - 1] + place.column

    def line(self, node: cst.CSTNode) -> int:
        """Number of the line on which the node begins, from 1."""
        return self._positions[node].start.line

    def shown(self, node: cst.CSTNode) -> str:
        """The code of the node, as it stands in the text."""
        return self.text[self.begin(node) : self.end(node)]

    def line_end(self, at: int) -> int:
        """Where the line ends that has the character ``at``, before its newline."""
        match = _NEWLINE.search(self.text, at)
        return len(self.text) if match is None else match.start()

    def indent(self, node: cst.CSTNode) -> str:
        """The white space before the line of the node, or before the statement on it."""
        start = self._starts[self.line(node) - 1]
        found = re.match(r"[ \t\f]*", self.text[start:])
        return "" if found is None else found[0]

    @property
    def newline(self) -> str:
        """What ends most lines."""
        return self.module.default_newline

    # ---------------------------------------------------------------- relations

    def parent(self, node: cst.CSTNode) -> cst.CSTNode | None:
        """The node around it."""
        return self._parents.get(node)

    def around(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        """Yield the nodes around it, from the nearest to the module."""
        above = self.parent(node)
        while above is not None:
            yield above
            above = self.parent(above)

    def function(self, node: cst.CSTNode) -> cst.FunctionDef | cst.Lambda | cst.Module:
        """The innermost function around the node, or the module."""
        kinds = (cst.FunctionDef, cst.Lambda, cst.Module)
        return next(above for above in self.around(node) if isinstance(above, kinds))

    def is_in_loop(self, node: cst.CSTNode) -> bool:
        """Whether a loop of the node's own function is around it."""
        function = self.function(node)
        return any(
            isinstance(above, cst.For | cst.While) and self.function(above) is function for above in self.around(node)
        )

    def is_in_import(self, node: cst.CSTNode) -> bool:
        """Whether it is a part of an import."""
        return any(isinstance(above, cst.Import | cst.ImportFrom) for above in self.around(node))

    def statement(self, node: cst.CSTNode) -> cst.BaseSmallStatement | cst.BaseCompoundStatement:
        """The innermost statement that the node is a part of."""
        kinds = (cst.BaseSmallStatement, cst.BaseCompoundStatement)
        return next(near for near in (node, *self.around(node)) if isinstance(near, kinds))

    def inside(self, node: cst.CSTNode, outer: cst.CSTNode) -> bool:
        """Whether ``outer`` is around the node."""
        return any(above is outer for above in self.around(node))

    # ---------------------------------------------------------------- names

    def origins(self, node: cst.CSTNode) -> list[str]:
        """What an expression may name, as dotted paths of what was imported."""
        scope = self._scopes.get(node)
        if scope is None:
            return []
        found = scope.get_qualified_names_for(node)
        return sorted(name.name for name in found if name.source is QualifiedNameSource.IMPORT)

    def inc_path(self, node: cst.CSTNode) -> str | None:
        """The path below INC's package, or below this one, that an expression names: ``"training.fit"``; else None."""
        for origin in self.origins(node):
            package, _, path = origin.partition(".")
            if package in PACKAGES and path:
                return path
        return None

    def inc_name(self, node: cst.CSTNode) -> str | None:
        """The last part of `inc_path`."""
        path = self.inc_path(node)
        return None if path is None else path.rpartition(".")[2]

    def is_defined(self, name: cst.Name) -> bool:
        """Whether anything gives the name a value where it is used."""
        scope = self._scopes.get(name)
        return scope is not None and name.value in scope

    # ---------------------------------------------------------------- changes

    def rewrite(self, node: cst.CSTNode, new: str) -> None:
        """Write ``new`` where the node stands."""
        self.edits.replace(self.begin(node), self.end(node), new)

    def shown_as_changed(self, node: cst.CSTNode) -> str:
        """The code of the node, with what was changed in it so far."""
        begin, end = self.begin(node), self.end(node)
        return self.edits.within(begin, end).applied_to(self.text[begin:end])

    def remove_line(self, statement: cst.CSTNode) -> None:
        """Take a statement away that has its lines for itself; a comment behind it stays, on a line of its own."""
        begin, end = self.begin(statement), self.end(statement)
        line_end = self.line_end(end)
        comment = self.text[end:line_end].lstrip()
        if comment:
            self.edits.replace(begin, line_end, comment)
            return
        newline = _NEWLINE.match(self.text, line_end)
        start = self._starts[self.line(statement) - 1]
        self.edits.replace(start, line_end if newline is None else newline.end(), "")

    def tell(self, node: cst.CSTNode, why: str, todo: str, what: str | None = None) -> None:
        """Note a place that a person has to decide, unless a comment on its line says that one has."""
        start = self._starts[self.line(node) - 1]
        if KEPT not in self.text[start : self.line_end(start)]:
            shown = what or " ".join(self.shown(node).split())
            self.edits.findings.append(Finding(self.line(node), shown, why, todo))
