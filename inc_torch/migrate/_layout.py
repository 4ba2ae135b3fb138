"""The text of a configuration, on as many lines as it needs."""

from __future__ import annotations

import ast
from typing import Final

__all__ = ["WIDTH", "laid_out"]

WIDTH: Final = 100
_INDENT: Final = "    "


def laid_out(code: str, indent: str = "", width: int = WIDTH) -> str:
    """Return an expression of calls and displays with one part a line, wherever it would be too wide.

    Args:
        code: The expression, such as the ``repr`` of a configuration.
        indent: The white space before the lines that follow the first.
        width: How wide a line may be.

    Example:
        >>> print(laid_out("Config(rules={'a': (1, 2)}, trials=10)", width=24))
        Config(
            rules={'a': (1, 2)},
            trials=10,
        )
    """
    return _laid_out(ast.parse(code, mode="eval").body, indent, width)


def _laid_out(node: ast.expr, indent: str, width: int) -> str:
    plain = ast.unparse(node)
    parts = _parts(node)
    if len(indent) + len(plain) <= width or not parts:
        return plain
    deeper = indent + _INDENT
    lines = [f"{deeper}{head}{_laid_out(value, deeper, width)}," for head, value in parts]
    begin, end = _brackets(node)
    return "\n".join([begin, *lines, indent + end])


def _parts(node: ast.expr) -> list[tuple[str, ast.expr]]:
    """What stands in the brackets of an expression, each with what is written before it."""
    if isinstance(node, ast.Call):
        named = [(f"{keyword.arg}=" if keyword.arg else "**", keyword.value) for keyword in node.keywords]
        return [*(("", argument) for argument in node.args), *named]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return [("**" if key is None else f"{ast.unparse(key)}: ", value) for key, value in pairs]
    return [("", value) for value in node.elts] if isinstance(node, ast.List | ast.Tuple) else []


def _brackets(node: ast.expr) -> tuple[str, str]:
    if isinstance(node, ast.Call):
        return f"{ast.unparse(node.func)}(", ")"
    return {ast.Dict: ("{", "}"), ast.List: ("[", "]")}.get(type(node), ("(", ")"))
