"""Classes of 1.X, written as the functions and configs of 2.X."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

import libcst as cst

import inc_torch
from inc_torch.conf import Note
from inc_torch.conf._evaluation import metric_of
from inc_torch.config import (
    BenchmarkConfig,
    Config,
    DistillationConfig,
    MixedPrecisionConfig,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
)
from inc_torch.migrate._layout import laid_out
from inc_torch.migrate._objects import OldObject, UndecidedError, objects, understood
from inc_torch.migrate._source import Source

__all__ = ["Moves"]

_KINDS: Final[Mapping[str, tuple[type[Config], ...]]] = {
    "Quantization": (PostTrainingQuantConfig, QuantizationAwareTrainingConfig),
    "Pruning": (WeightPruningConfig,),
    "Distillation": (DistillationConfig,),
    "MixedPrecision": (MixedPrecisionConfig,),
    "Graph_Optimization": (MixedPrecisionConfig,),
    "Benchmark": (BenchmarkConfig,),
}
_EVALUATION: Final = ("eval_func", "eval_dataloader", "metric")
_WIDTH: Final = 120
"""How long a line may be before it is written as several."""
_TODO: Final = "It goes on as it is; or write it by hand: docs/migration.md."


@final
class Moves:
    """The objects of 1.X classes in a script that are understood; the others are told.

    Args:
        source: The script.
        folder: Where files lie that it names.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self._source = source
        self._moves: list[_Move] = []
        for name, kind, made, call in objects(source):
            try:
                move = _Move(source, understood(source, name, kind, made, folder))
                move.plan()
                self._moves.append(move)
            except UndecidedError as error:
                source.tell(error.node, error.why, _TODO, f"{name} = {source.shown(call.func)}(...)")
        for call in source.all(cst.Call):
            if source.inc_path(call.func) in {"experimental.Scheduler", "experimental.scheduler.Scheduler"}:
                source.tell(call, "several steps have no one counterpart", "Use Pipeline: docs/orchestration.md.")

    @property
    def managers(self) -> set[str]:
        """Variables of components that become managers."""
        return {move.old.name for move in self._moves if move.old.kind in {"Pruning", "Distillation"}}

    def write(self) -> None:
        """Change the script, whose other changes were made already."""
        for move in self._moves:
            move.write()
        _write_imports(self._source, self._moves)


@final
@dataclass(slots=True)
class _Move:
    """One object on its way: `plan` reads and raises, `write` changes the script."""

    source: Source
    old: OldObject
    config: str = ""
    arguments: dict[str, str] = field(default_factory=dict)
    run: str = ""
    needed: set[str] = field(default_factory=set)
    notes: tuple[Note, ...] = ()

    def plan(self) -> None:
        """Find out what to write.

        Raises:
            UndecidedError: Something of it has no counterpart.
        """
        translation = self.old.conf.translate()
        kinds = _KINDS[self.old.kind]
        config = next((config for config in translation.configs if isinstance(config, kinds)), None)
        if config is None:
            raise UndecidedError(self.old.made, f"{self.old.conf.name} has no section for it")
        self.notes = translation.notes
        self._refuse_what_the_file_does()
        self.config = repr(config)
        self.arguments = {
            name: self._argument(name, statement)
            for name, statement in zip(self.old.values, self.old.statements, strict=True)
        }
        if "model" not in self.arguments:
            raise UndecidedError(self.old.made, "no model is assigned to it")
        self._plans()[self.old.kind](config)
        if self.arguments:
            raise UndecidedError(self.old.made, f"{next(iter(self.arguments))!r} has no counterpart")
        self._check_names()

    def _plans(self) -> Mapping[str, Callable[[Config], None]]:
        return {
            "Quantization": self._plan_quantization,
            "Pruning": self._plan_training,
            "Distillation": self._plan_training,
            "MixedPrecision": self._plan_mixed_precision,
            "Graph_Optimization": self._plan_mixed_precision,
            "Benchmark": self._plan_benchmark,
        }

    def _refuse_what_the_file_does(self) -> None:
        """Data, trainings and post-processing that a file describes come from code in 2.X."""
        content, values = self.old.conf.usr_cfg, self.old.values
        accuracy = content.evaluation.accuracy
        calibration = None if content.quantization is None else content.quantization.calibration
        described = {
            "calibration data": calibration is not None
            and calibration.dataloader is not None
            and not {"calib_dataloader", "train_func"} & set(values),
            "evaluation data": accuracy is not None
            and accuracy.dataloader is not None
            and not {"eval_func", "eval_dataloader", "b_dataloader"} & set(values),
            "how many batches are evaluated": accuracy is not None
            and accuracy.iteration > 0
            and "eval_func" not in values,
            "a postprocess": accuracy is not None and accuracy.postprocess is not None and "eval_func" not in values,
        }
        for what, is_described in described.items():
            if is_described:
                raise UndecidedError(self.old.made, f"{self.old.conf.name} says {what}, which are in code in 2.X")

    # ---------------------------------------------------------------- what is assigned

    def _argument(self, name: str, statement: cst.Assign) -> str:
        """What stands for the value in the call: itself where it is a name, else a variable."""
        value = _unwrapped(self.source, statement.value)
        if isinstance(value, cst.Name | cst.Attribute):
            self._require_unchanged(self.source.shown(value), statement)
            return self.source.shown(value)
        return f"{self.old.name}_{name}"

    def _require_unchanged(self, name: str, statement: cst.Assign) -> None:
        for later in self.source.all(cst.Assign):
            is_between = self.source.end(statement) < self.source.begin(later) < self.source.begin(self.old.run)
            is_it = any(self.source.shown(target.target) == name for target in later.targets)
            if is_between and is_it and not self.source.inside(self.old.run, later):
                raise UndecidedError(statement, f"{name!r} is set anew before {self.old.name!r} is run")

    def _evaluation(self) -> str:
        """The arguments that say how accurate a model is."""
        given = {name: self.arguments.pop(name) for name in _EVALUATION if name in self.arguments}
        metric = metric_of(self.old.conf.usr_cfg.evaluation)
        if metric is not None and "eval_dataloader" in given and not {"metric", "eval_func"} & set(given):
            plain = {name: dict(value) if isinstance(value, Mapping) else value for name, value in metric.items()}
            given["metric"] = repr(plain)
        return "".join(f", {'eval_metric' if name == 'metric' else name}={value}" for name, value in given.items())

    # ---------------------------------------------------------------- what to call

    @property
    def _conf_name(self) -> str:
        return f"{self.old.name}_conf"

    def _plan_quantization(self, config: Config) -> None:
        model = self.arguments.pop("model")
        train = self.arguments.pop("train_func", None)
        if isinstance(config, QuantizationAwareTrainingConfig):
            if train is None:
                raise UndecidedError(self.old.made, "no function that trains is assigned to it")
            self.needed |= {"prepare_compression", "training"}
            manager = f"prepare_compression({model}, {self._conf_name})"
            self.run = f"training.fit({manager}, {train}{self._evaluation()})"
            return
        self.needed.add("quantization")
        loader = self.arguments.pop("calib_dataloader", None)
        data = f", calib_func={train}" if train is not None else f", calib_dataloader={loader}" if loader else ""
        self.run = f"quantization.fit({model}, {self._conf_name}{data}{self._evaluation()})"

    def _plan_mixed_precision(self, config: Config) -> None:  # noqa: ARG002
        self.needed.add("mix_precision")
        wanted = self.arguments.pop("precisions", None)
        conf = self._conf_name if wanted is None else f"{self._conf_name}.replace(precisions={wanted})"
        self.run = f"mix_precision.fit({self.arguments.pop('model')}, {conf}{self._evaluation()})"

    def _plan_benchmark(self, config: Config) -> None:  # noqa: ARG002
        self.needed.add("benchmark")
        if self.old.run.args and self.source.shown(self.old.run.args[0].value).strip("'\"") != "performance":
            raise UndecidedError(self.old.run, "it measures something else than performance")
        model = self.arguments.pop("model")
        given = [
            f", {name}={self.arguments.pop(name)}"
            for name in ("b_dataloader", "b_func", "metric")
            if name in self.arguments
        ]
        self.run = f"benchmark.fit({model}, {self._conf_name}{''.join(given)})"

    def _plan_training(self, config: Config) -> None:  # noqa: ARG002
        """The variable becomes the manager, so that the hooks that the training function calls are its own."""
        model, train = self.arguments.pop("model"), self.arguments.pop("train_func", None)
        if train is None:
            raise UndecidedError(self.old.made, "no function that trains is assigned to it")
        changes = {
            "teacher_model": self.arguments.pop("teacher_model", None) if self.old.kind == "Distillation" else None,
            "criterion": self._criterion() if self.old.kind == "Distillation" else None,
        }
        changed = ", ".join(f"{name}={value}" for name, value in changes.items() if value is not None)
        conf = f"{self._conf_name}.replace({changed})" if changed else self._conf_name
        self.needed.add("prepare_compression")
        name = self.old.name
        lines = [
            f"{name} = prepare_compression({model}, {conf})",
            f"{name}.on_train_begin()",
            f"{name}.model.train()",
            f"{train}({name}.model)",
            f"{name}.on_train_end()",
        ]
        statement = self.source.statement(self.old.run)
        if isinstance(statement, cst.Assign) and len(statement.targets) == 1:
            lines.append(f"{self.source.shown(statement.targets[0].target)} = {name}.model.eval()")
        elif isinstance(statement, cst.Expr):
            lines.append(f"{name}.model.eval()")
        else:
            raise UndecidedError(self.old.run, "what it returns is used in place")
        self.run = "\n".join(lines)

    def _criterion(self) -> str | None:
        """The config of a loss that is made in the script."""
        if self.arguments.pop("criterion", None) is None:
            return None
        value = self.old.values["criterion"]
        if (
            not isinstance(value, cst.Call)
            or self.source.inc_name(value.func) != "PyTorchKnowledgeDistillationLoss"
            or any(argument.keyword and argument.keyword.value.endswith("_model") for argument in value.args)
        ):
            raise UndecidedError(value, "it is not known which loss it is")
        self.needed.add("KnowledgeDistillationLossConfig")
        return f"KnowledgeDistillationLossConfig({', '.join(self.source.shown(argument) for argument in value.args)})"

    def _check_names(self) -> None:
        calls = [node.func for node in ast.walk(ast.parse(self.config)) if isinstance(node, ast.Call)]
        self.needed |= {function.id for function in calls if isinstance(function, ast.Name)}
        if self.old.conf.usr_cfg.tuning.random_seed is not None:
            self.needed.add("set_random_seed")
        taken = {
            name.value
            for name in self.source.all(cst.Name)
            if name.value in self.needed | {self._conf_name}
            and self.source.inc_path(name) is None
            and not isinstance(self.source.parent(name), cst.Attribute | cst.Arg | cst.ImportAlias)
        }
        if taken:
            raise UndecidedError(self.old.made, f"the script has a {min(taken)!r} of its own")

    # ---------------------------------------------------------------- writing

    @property
    def imported_as(self) -> str:
        """The name in the script through which the class is found."""
        return _root(self.old.made.value.func) if isinstance(self.old.made.value, cst.Call) else ""

    def write(self) -> None:
        """Change the script."""
        source, old = self.source, self.old
        for note in self.notes:
            source.tell(old.made, f"{old.conf.name}, {note}", "Look whether you need it.")
        indent = source.indent(old.made)
        lines = [f"{self._conf_name} = {laid_out(self.config, indent)}"]
        if old.conf.usr_cfg.tuning.random_seed is not None:
            lines.insert(0, f"set_random_seed({old.conf.usr_cfg.tuning.random_seed!r})")
        source.rewrite(old.made, _joined(source, lines, indent))
        for name, statement in zip(old.values, old.statements, strict=True):
            self._write_assignment(name, statement)
        run = source.statement(old.run) if "\n" in self.run else old.run
        code = _joined(source, [_not_too_wide(line, indent) for line in self.run.split("\n")], indent)
        source.rewrite(run, code)

    def _write_assignment(self, name: str, statement: cst.Assign) -> None:
        value = _unwrapped(self.source, statement.value)
        is_criterion = name == "criterion" and self.old.kind == "Distillation"
        if is_criterion or isinstance(value, cst.Name | cst.Attribute):
            self.source.remove_line(statement)
        else:
            self.source.rewrite(statement, f"{self.old.name}_{name} = {self.source.shown_as_changed(value)}")

    def consumes(self, name: cst.Name) -> bool:
        """Whether a use of an imported name is gone when this is written."""
        values = zip(self.old.values.items(), self.old.statements, strict=True)
        gone = [self.old.made]
        for (word, value), statement in values:
            is_criterion = word == "criterion" and self.old.kind == "Distillation"
            if is_criterion or _unwrapped(self.source, value) is not value:
                gone.append(statement)
        return any(self.source.inside(name, statement) for statement in gone)


def _write_imports(source: Source, moves: list[_Move]) -> None:
    """Import what is used now, in place of the classes if nothing else is taken through their import."""
    for statement in source.all(cst.ImportFrom, cst.Import):
        bound = _bound(statement)
        uses = [name for name in source.all(cst.Name) if name.value in bound and source.inc_path(name) is not None]
        uses = [name for name in uses if not source.is_in_import(name)]
        is_done = bool(uses) and all(any(move.consumes(name) for move in moves) for name in uses)
        needed = {name for move in moves if move.imported_as in bound for name in move.needed}
        at_top = sorted(name for name in needed if hasattr(inc_torch, name) or name == "training")
        others = sorted(needed - set(at_top))
        lines = [] if is_done else [source.shown_as_changed(statement)]
        lines += [f"from inc_torch import {', '.join(at_top)}"] if at_top else []
        lines += [f"from inc_torch.config import {', '.join(others)}"] if others else []
        if not lines:
            source.remove_line(statement)
        elif is_done or needed:
            source.rewrite(statement, _joined(source, lines, source.indent(statement)))


def _not_too_wide(line: str, indent: str) -> str:
    if len(indent) + len(line) <= _WIDTH:
        return line
    target, equals, call = line.partition(" = ") if line.partition(" = ")[0].isidentifier() else ("", "", line)
    return f"{target}{equals}{laid_out(call, indent)}"


def _joined(source: Source, lines: list[str], indent: str) -> str:
    """Lines of a block, the first of which stands where it is put."""
    return f"\n{indent}".join(lines).replace("\n", source.newline)


def _unwrapped(source: Source, value: cst.BaseExpression) -> cst.BaseExpression:
    """The model in a ``common.Model(model)``, which is the model itself here."""
    is_model = isinstance(value, cst.Call) and source.inc_name(value.func) == "Model" and len(value.args) == 1
    return value.args[0].value if is_model and isinstance(value, cst.Call) else value


def _bound(statement: cst.ImportFrom | cst.Import) -> set[str]:
    """The names that an import gives to the script."""
    if isinstance(statement.names, cst.ImportStar):
        return set()
    return {_root(alias.asname.name if alias.asname is not None else alias.name) for alias in statement.names}


def _root(node: cst.CSTNode) -> str:
    while isinstance(node, cst.Attribute):
        node = node.value
    return node.value if isinstance(node, cst.Name) else ""
