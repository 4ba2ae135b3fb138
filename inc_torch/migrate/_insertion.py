"""Statements put beside those of a script, in its own white space."""

from __future__ import annotations

import re

import libcst as cst

from inc_torch.migrate._source import Source

__all__ = ["insert_after", "insert_at_the_top", "insert_before", "is_alone"]


def is_alone(source: Source, statement: cst.CSTNode) -> bool:
    """Whether nothing stands on the statement's lines but itself, so that lines can be put beside it."""
    above = source.parent(statement)
    return not isinstance(statement, cst.BaseSmallStatement) or (
        isinstance(above, cst.SimpleStatementLine) and len(above.body) == 1
    )


def insert_before(source: Source, statement: cst.CSTNode, code: str, condition: str = "") -> None:
    """Put a statement before another one, under ``condition`` if one is given; on its line where it shares that.

    Args:
        source: The script.
        statement: What it is put beside. With a condition it has to stand alone.
        code: One line of Python.
        condition: What stands between ``if`` and the colon; empty if it is always to run.
    """
    at = source.begin(statement)
    if not is_alone(source, statement):
        source.edits.replace(at, at, f"{code}; ")
        return
    indent = source.indent(statement)
    lines = _lines(source, code, condition)
    source.edits.replace(at, at, "".join(f"{line}{source.newline}{indent}" for line in lines))


def insert_after(source: Source, statement: cst.CSTNode, code: str, condition: str = "") -> None:
    """Put a statement after another one; see `insert_before`. Comments that belong to a block stay in it."""
    end = source.end(statement)
    if not is_alone(source, statement):
        source.edits.replace(end, end, f"; {code}")
        return
    indent = source.indent(statement)
    at = source.line_end(end)
    if isinstance(statement, cst.BaseCompoundStatement):
        at = _after_comments(source.text, at, indent)
    lines = _lines(source, code, condition)
    source.edits.replace(at, at, "".join(f"{source.newline}{indent}{line}" for line in lines))


def insert_at_the_top(source: Source, block: cst.BaseSuite, code: str, condition: str = "") -> bool:
    """Put a statement first into the body of a loop; whether that could be done."""
    first = block.body[0]
    if isinstance(block, cst.SimpleStatementSuite) and condition:
        return False
    insert_before(source, first.body[0] if isinstance(first, cst.SimpleStatementLine) else first, code, condition)
    return True


def _lines(source: Source, code: str, condition: str) -> list[str]:
    return [f"if {condition}:", f"{source.module.default_indent}{code}"] if condition else [code]


def _after_comments(text: str, at: int, indent: str) -> int:
    """Go past comments that are indented deeper than the statement whose block they close."""
    comment = re.compile(rf"(?:(?:\r\n?|\n)[ \t\f]*(?=[\r\n]))*(?:\r\n?|\n){re.escape(indent)}[ \t]+#[^\r\n]*")
    while (match := comment.match(text, at)) is not None:
        at = match.end()
    return at
