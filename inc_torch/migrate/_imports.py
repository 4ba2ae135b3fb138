"""The package's name: in imports, and where it is spelled out.

An import is renamed only if everything that is taken through it is there. So what a script gets is either ours or
INC's, and never a name that fails later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import libcst as cst

from inc_torch.migrate._names import missing
from inc_torch.migrate._source import PACKAGES, Source

__all__ = ["rename_imports"]

OLD, NEW = PACKAGES
_TAKE_OUT: Final = "The import is left as it is until then."


def rename_imports(source: Source) -> None:
    """Rename the package in the imports of a script, and tell of what it takes from INC that is not there."""
    uses = _uses(source)
    for statement in source.all(cst.Import):
        for alias in statement.names:
            if _root(alias.name).value in PACKAGES:
                _rename_module(source, alias, uses)
    for taking in source.all(cst.ImportFrom):
        if taking.module is not None and _root(taking.module).value in PACKAGES and not taking.relative:
            _rename_from(source, taking, uses)


def _rename_module(source: Source, alias: cst.ImportAlias, uses: dict[str, list[cst.Attribute]]) -> None:
    path = _dotted(alias.name).partition(".")[2]
    local = alias.asname.name.value if alias.asname is not None and isinstance(alias.asname.name, cst.Name) else None
    bound = uses[local or _root(alias.name).value]
    if (bool(path) and _tell_missing(source, alias, path)) | _tell_uses(source, bound):
        return
    if _root(alias.name).value == OLD:
        source.rewrite(_root(alias.name), NEW)
        if local is None and not path and _is_assigned(source):
            source.edits.replace(source.end(alias), source.end(alias), f" as {OLD}")
        elif local is None:
            _rename_uses(source)


def _rename_uses(source: Source) -> None:
    """Rename the package where it is spelled out, alone or before a dot."""
    for name in source.all(cst.Name):
        is_package = any(origin.partition(".")[0] == OLD for origin in source.origins(name))
        if name.value == OLD and is_package and not source.is_in_import(name):
            source.rewrite(name, NEW)


def _is_assigned(source: Source) -> bool:
    """Whether the script also sets the name itself, such as to None where the package is not installed."""
    return any(
        isinstance(target.target, cst.Name) and target.target.value == OLD
        for assigned in source.all(cst.Assign)
        for target in assigned.targets
    )


def _rename_from(source: Source, statement: cst.ImportFrom, uses: dict[str, list[cst.Attribute]]) -> None:
    if statement.module is None:
        return
    below = _dotted(statement.module).partition(".")[2]
    if isinstance(statement.names, cst.ImportStar):
        if _root(statement.module).value == OLD:
            why = "what a star brings is another set of names"
            source.tell(statement, why, f"Import by name what is used. {_TAKE_OUT}")
        return
    failed = bool(below) and _tell_missing(source, statement, below)
    for alias in [] if failed else statement.names:
        path = f"{below}.{_dotted(alias.name)}".lstrip(".")
        failed |= _tell_missing(source, alias, path)
        name = alias.asname.name if alias.asname is not None else alias.name
        if isinstance(name, cst.Name):
            failed |= _tell_uses(source, uses[name.value])
    if not failed and _root(statement.module).value == OLD:
        source.rewrite(_root(statement.module), NEW)


def _tell_missing(source: Source, node: cst.CSTNode, path: str) -> bool:
    """Whether ``path`` is not there, which is told."""
    reason = missing(path)
    if reason is None:
        return False
    source.tell(node, reason[0], f"{reason[1]} {_TAKE_OUT}")
    return True


def _tell_uses(source: Source, chains: list[cst.Attribute]) -> bool:
    """Whether something that is used through an imported module is not there, which is told."""
    failed = False
    for chain in chains:
        path = source.inc_path(chain)
        failed |= path is not None and _tell_missing(source, chain, path)
    return failed


def _uses(source: Source) -> dict[str, list[cst.Attribute]]:
    """The longest chains of attributes that begin at something imported from the package, by the name in the script."""
    found: dict[str, list[cst.Attribute]] = defaultdict(list)
    for chain in _longest_chains(source):
        if source.inc_path(chain) is not None:
            found[_root(chain).value].append(chain)
    return found


def _longest_chains(source: Source) -> Iterator[cst.Attribute]:
    for node in source.all(cst.Attribute):
        if isinstance(source.parent(node), cst.Attribute) or source.is_in_import(node):
            continue
        inner: cst.BaseExpression = node
        while isinstance(inner, cst.Attribute):
            inner = inner.value
        if isinstance(inner, cst.Name):
            yield node


def _root(node: cst.CSTNode) -> cst.Name:
    while isinstance(node, cst.Attribute):
        node = node.value
    if not isinstance(node, cst.Name):  # what an import names is a chain of names, and chains were looked at
        message = f"expected a chain of names, found {type(node).__name__}"
        raise TypeError(message)
    return node


def _dotted(node: cst.CSTNode) -> str:
    return f"{_dotted(node.value)}.{node.attr.value}" if isinstance(node, cst.Attribute) else _root(node).value
