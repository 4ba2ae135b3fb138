"""YAML of 1.X, written as a module of Python with the configurations of today."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from inc_torch.conf import read_conf
from inc_torch.conf._evaluation import metric_of
from inc_torch.config import Config
from inc_torch.core.errors import ConfigError
from inc_torch.migrate._findings import Finding
from inc_torch.migrate._layout import WIDTH, laid_out

__all__ = ["is_conf", "migrate_yaml", "module_path"]

_IS_CONF: Final = re.compile(
    r"^(quantization|pruning|distillation|mixed_precision|graph_optimization|evaluation)\s*:", re.MULTILINE
)
_IN_CODE: Final = {
    "dataloader": (
        "data come from code now",
        "Give a loader to the function that takes it: calib_dataloader, eval_dataloader, b_dataloader, or your loop's.",
    ),
    "postprocess": ("there is no postprocess now", "Do it in eval_func, or in the update of a metric of your own."),
    "train": ("training loops are written in code now", "Write the loop with hooks: docs/training_loops.md."),
}
_OF_A_LOOP: Final = ("dataloader", "optimizer", "end_epoch", "iteration")
"""Sections that configurations have no place for."""


def is_conf(text: str) -> bool:
    """Whether a text looks like a configuration of INC 1.X, and not like YAML for something else."""
    return _IS_CONF.search(text) is not None


def module_path(path: Path) -> Path:
    """Where the module goes: beside the file, under a name that can be imported.

    Example:
        >>> module_path(Path("conf/ptq-bert.yaml")).as_posix()
        'conf/ptq_bert.py'
    """
    name = re.sub(r"\W", "_", path.stem)
    return path.with_name(f"_{name}.py" if name[:1].isdigit() else f"{name}.py")


def migrate_yaml(path: Path) -> tuple[str, tuple[Finding, ...]]:
    """Return the text of a module that says what the file says, and what is left to decide.

    The module has ``conf``, or the list ``confs`` where the file speaks of several techniques, and ``eval_metric`` if
    the file names a metric. A seed and a workspace are set when the module is imported.

    Raises:
        ConfigError: The file is wrong; the message has the line.
    """
    conf = read_conf(path)
    translation = conf.translate()
    if not translation.configs:
        message = f"{path}: it asks for what a float model does anyway, so there is nothing to configure. Leave it out."
        raise ConfigError(message)
    findings = [
        Finding(note.line or 0, path.name, note.text, "Look whether you need it.") for note in translation.notes
    ]
    findings += [
        finding
        for finding in _left_in_code(path.read_text(encoding="utf-8"))
        if not finding.what.startswith("train:") or _describes_a_loop(conf.usr_cfg)
    ]
    return _module(path.name, conf.usr_cfg, translation.configs, findings), tuple(sorted(findings))


def _describes_a_loop(content: Any) -> bool:  # noqa: ANN401
    """Whether a section ``train`` says more than the loss, which a configuration has."""
    sections = (content.quantization, content.pruning, content.distillation)
    trains = [section.train for section in sections if section is not None and section.train is not None]
    return any(train[name] is not None for train in trains for name in _OF_A_LOOP)


def _left_in_code(text: str) -> list[Finding]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        key = line.strip().partition(":")[0]
        if key in _IN_CODE and line.strip().startswith(f"{key}:"):
            found.append(Finding(number, line.strip(), *_IN_CODE[key]))
    return found


def _module(name: str, content: Any, configs: tuple[Config, ...], findings: list[Finding]) -> str:  # noqa: ANN401
    statements = []
    if content.tuning.random_seed is not None:
        statements.append(f"set_random_seed({content.tuning.random_seed!r})")
    if content.tuning.workspace.path is not None:
        statements.append(f"set_workspace({content.tuning.workspace.path!r})")
    if content.tuning.workspace.resume is not None:
        statements.append(f"set_resume_from({content.tuning.workspace.resume!r})")
    if len(configs) == 1:
        statements.append(f"conf = {laid_out(repr(configs[0]))}")
    else:
        parts = [f"    {laid_out(repr(config), '    ')}," for config in configs]
        statements.append("\n".join(["confs = [", *parts, "]"]))
    metric = metric_of(content.evaluation)
    if metric is not None:
        plain = {name: dict(value) if isinstance(value, Mapping) else value for name, value in metric.items()}
        statements.append(f"eval_metric = {laid_out(repr(plain))}")
    body = "\n".join(statements)
    comments = [f"# {name}, line {finding.line}: {finding.why}" for finding in sorted(findings) if finding.line]
    head = [f'"""What {name} said."""', "", "from __future__ import annotations", "", _imports(body), ""]
    return "\n".join([*head, *comments, *([""] if comments else []), body, ""])


def _imports(body: str) -> str:
    calls = [node.func for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Call)]
    names = sorted({function.id for function in calls if isinstance(function, ast.Name)})
    line = f"from inc_torch.config import {', '.join(names)}"
    if len(line) <= WIDTH:
        return line
    return "\n".join(["from inc_torch.config import (", *(f"    {name}," for name in names), ")"])
