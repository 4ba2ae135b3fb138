"""One object of a 1.X class in a script: how it is made, what is assigned to it, and the call that runs it.

It is understood only if that is all that happens to it, in one block, in this order. Anything else is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import libcst as cst

from inc_torch.conf import Conf
from inc_torch.conf.config import BenchmarkConf, DistillationConf, MixedPrecisionConf, PruningConf, QuantConf
from inc_torch.core.errors import ConfigError
from inc_torch.core.hooks import HOOKS
from inc_torch.migrate._handles import OLD_HOOKS
from inc_torch.migrate._source import Source

__all__ = ["CLASSES", "OldObject", "UndecidedError", "objects", "understood"]

CLASSES: Final[Mapping[str, type[Conf]]] = {
    "Quantization": QuantConf,
    "Pruning": PruningConf,
    "Distillation": DistillationConf,
    "MixedPrecision": MixedPrecisionConf,
    "Graph_Optimization": MixedPrecisionConf,
    "Benchmark": BenchmarkConf,
}
"""What each class is configured by."""

_WORDS: Final = {
    "Quantization": {"calib_func": "train_func", "q_func": "train_func"},
    "Pruning": {"pruning_func": "train_func", "q_func": "train_func"},
    "Distillation": {"student_model": "model"},
    "Benchmark": {"dataloader": "b_dataloader", "eval_dataloader": "b_dataloader"},
}
"""Attributes that are other words for one."""


class UndecidedError(Exception):
    """Something about an object is not understood.

    Args:
        node: Where.
        why: Why.
    """

    def __init__(self, node: cst.CSTNode, why: str) -> None:
        super().__init__(why)
        self.node, self.why = node, why


@final
@dataclass(frozen=True, slots=True)
class OldObject:
    """An object that is understood.

    Attributes:
        name: Of the variable.
        kind: Of the class, a key of `CLASSES`.
        made: The statement that makes it.
        conf: What it is configured by.
        values: What is assigned to its attributes, each under its first word.
        statements: The statements that do so, in the same order.
        run: The call that runs it.
    """

    name: str
    kind: str
    made: cst.Assign
    conf: Conf
    values: Mapping[str, cst.BaseExpression]
    statements: tuple[cst.Assign, ...]
    run: cst.Call


def objects(source: Source) -> Iterator[tuple[str, str, cst.Assign, cst.Call]]:
    """Yield the objects of a script: variable, class, the statement, and the call in it."""
    for assigned in source.all(cst.Assign):
        target, value = assigned.targets[0].target, assigned.value
        if not isinstance(value, cst.Call) or not isinstance(target, cst.Name):
            continue
        path = source.inc_path(value.func) or ""
        name = path.rpartition(".")[2]
        if name in CLASSES and path.startswith("experimental"):
            yield target.value, name, assigned, value


def understood(source: Source, name: str, kind: str, made: cst.Assign, folder: Path) -> OldObject:
    """Read all that a script does with one object.

    Raises:
        UndecidedError: It does something else with it too.
    """
    values: dict[str, cst.BaseExpression] = {}
    statements: list[cst.Assign] = []
    runs: list[cst.Call] = []
    for use in source.all(cst.Name):
        if use.value != name or source.inside(use, made) or _is_attribute(source, use):
            continue
        above = source.parent(use)
        if isinstance(above, cst.Call) and above.func is use:
            runs.append(above)
        elif isinstance(above, cst.Attribute) and above.value is use:
            _read_attribute(source, kind, above, values, statements, runs)
        else:
            raise UndecidedError(use, f"{name!r} is given to something else, or set twice")
    if len(runs) != 1:
        raise UndecidedError(made, f"{name!r} is run {len(runs)} times in this script")
    order = [made, *statements, source.statement(runs[0])]
    blocks = {id(_block(source, statement)) for statement in order}
    if len(blocks) != 1:
        raise UndecidedError(made, f"{name!r} is made, filled and run in different blocks")
    if [source.begin(statement) for statement in order] != sorted(source.begin(statement) for statement in order):
        raise UndecidedError(made, f"something is assigned to {name!r} after it is run")
    conf = _conf(source, kind, made.value, folder)
    return OldObject(name, kind, made, conf, values, tuple(statements), runs[0])


def _is_attribute(source: Source, use: cst.Name) -> bool:
    """Whether the name is that of an attribute of something else, or of an argument."""
    above = source.parent(use)
    is_keyword = isinstance(above, cst.Arg) and above.keyword is use
    return is_keyword or (isinstance(above, cst.Attribute) and above.attr is use)


def _read_attribute(
    source: Source,
    kind: str,
    attribute: cst.Attribute,
    values: dict[str, cst.BaseExpression],
    statements: list[cst.Assign],
    runs: list[cst.Call],
) -> None:
    name, above = attribute.attr.value, source.parent(attribute)
    if isinstance(above, cst.Call) and above.func is attribute and name in {"fit", *HOOKS, *OLD_HOOKS}:
        if name == "fit":
            runs.append(above)
        return
    statement = source.parent(above) if isinstance(above, cst.AssignTarget) else None
    if not isinstance(statement, cst.Assign) or len(statement.targets) > 1:
        raise UndecidedError(attribute, f"{name!r} is used in a way that a function has no counterpart of")
    word = _WORDS.get(kind, {}).get(name, name)
    if word in values:
        raise UndecidedError(statement, f"{word!r} is assigned twice")
    values[word] = statement.value
    statements.append(statement)


def _block(source: Source, statement: cst.CSTNode) -> cst.CSTNode | None:
    line = source.parent(statement)
    if not isinstance(line, cst.SimpleStatementLine) or len(line.body) > 1:
        raise UndecidedError(statement, "it shares its line with other statements")
    return source.parent(line)


def _conf(source: Source, kind: str, call: cst.BaseExpression, folder: Path) -> Conf:
    arguments = call.args if isinstance(call, cst.Call) else ()
    given = arguments[0].value if len(arguments) == 1 else None
    if isinstance(given, cst.Call) and source.inc_name(given.func) in {entry.__name__ for entry in CLASSES.values()}:
        given = given.args[0].value if len(given.args) == 1 else given
    if not arguments:
        return CLASSES[kind](None)
    named = given.evaluated_value if isinstance(given, cst.SimpleString) else None
    if not isinstance(named, str):
        raise UndecidedError(call, "what it is configured by is no file that is named here")
    path = next((path for path in (folder / named, Path(named)) if path.is_file()), None)
    if path is None:
        raise UndecidedError(call, f"there is no {named!r} beside the script, nor in the working directory")
    try:
        return CLASSES[kind](path)
    except ConfigError as error:
        raise UndecidedError(call, str(error)) from error
