"""What is told and never rewritten: modules named in strings, and other packages for the same purpose."""

from __future__ import annotations

import re
from typing import Final

import libcst as cst

from inc_torch.migrate._source import PACKAGES, Source

__all__ = ["tell_of_other_packages", "tell_of_strings"]

_MODULE_PATH = re.compile(rf"{PACKAGES[0]}(\.\w+)*")

_TRAINER: Final = "Use transformers' Trainer with INCCallback: docs/training_loops.md."
_OTHERS: Final = {
    "optimum.intel": (
        "INCTrainer and INCQuantizer stand on neural_compressor 2.X",
        f"{_TRAINER} For INCQuantizer use quantization.fit: docs/quantization.md.",
    ),
    "optimum.habana": ("its quantization stands on neural_compressor", "See docs/quantization.md."),
    "intel_extension_for_transformers": (
        "it stands on neural_compressor 2.X",
        f"{_TRAINER} For weights of a few bits: docs/quantization.md.",
    ),
    "sparseml": (
        "a recipe says in epochs what a WeightPruningConfig says in optimizer steps",
        "Write the recipe as configs: docs/pruning.md and docs/distillation.md.",
    ),
    "nncf": (
        "its configuration has other units than that of inc_torch",
        "Write it as configs: docs/quantization.md and docs/pruning.md.",
    ),
}
"""Packages whose training-time compression was given up, and where the same is done here."""


def tell_of_strings(source: Source) -> None:
    """Tell of strings that are paths of INC's modules, as for `importlib.import_module` or a mock."""
    for node in source.all(cst.SimpleString):
        value = node.evaluated_value
        if isinstance(value, str) and _MODULE_PATH.fullmatch(value):
            why = "a string may be the name of a module or anything else"
            todo = f"If it names the module: {PACKAGES[1] + value.removeprefix(PACKAGES[0])!r}."
            source.tell(node, why, todo)


def tell_of_other_packages(source: Source) -> None:
    """Tell of imports from packages whose users come here too."""
    for statement in source.all(cst.Import, cst.ImportFrom):
        for name in _imported(statement):
            known = next((entry for entry in _OTHERS if f"{name}.".startswith(f"{entry}.")), None)
            if known is not None:
                source.tell(statement, *_OTHERS[known])
                break


def _imported(statement: cst.Import | cst.ImportFrom) -> list[str]:
    if isinstance(statement, cst.Import):
        return [_dotted(alias.name) for alias in statement.names]
    if statement.module is None or statement.relative or isinstance(statement.names, cst.ImportStar):
        return [] if statement.module is None or statement.relative else [_dotted(statement.module)]
    return [f"{_dotted(statement.module)}.{_dotted(alias.name)}" for alias in statement.names]


def _dotted(node: cst.CSTNode) -> str:
    if isinstance(node, cst.Attribute):
        return f"{_dotted(node.value)}.{node.attr.value}"
    return node.value if isinstance(node, cst.Name) else ""
