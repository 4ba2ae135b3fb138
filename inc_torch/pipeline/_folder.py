"""The directory of a pipeline: which one it is of, what is finished, and the state of what is not."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import nn

from inc_torch.config import DistillationConfig
from inc_torch.core.errors import ArtifactError, StateError
from inc_torch.core.files import made_directory, write_state
from inc_torch.core.state import random_state
from inc_torch.export import load, save
from inc_torch.export._files import read_json, write_json
from inc_torch.pipeline._result import StageResult
from inc_torch.pipeline._stages import Stage

__all__ = ["RunFolder", "fingerprint_of"]

FORMAT: Final = "inc_torch.pipeline/1"
_ABOUT: Final = "pipeline.json"
_START: Final = "start.pt"
_STAGE: Final = "stage.json"
_REPORT: Final = "report.json"
_RANDOM: Final = "random.pt"
_ANEW: Final = "Give another directory, or remove this one to begin anew."


def fingerprint_of(stages: Sequence[Stage], model: nn.Module) -> dict[str, Any]:
    """What makes a pipeline on a model this one and no other, in plain values.

    Names and configs of all stages, and a hash of all weights of the model and of teachers. Functions and data are not
    in it.
    """
    described = [stage.describe() | {"teachers": list(map(_digest, _teachers(stage)))} for stage in stages]
    return {"format": FORMAT, "model": {"class": _class_name(model), "weights": _digest(model)}, "stages": described}


def _teachers(stage: Stage) -> list[nn.Module]:
    """The modules that teach in a stage; a config may have one, several or none."""
    given: list[object] = [
        conf.teacher_model for conf in getattr(stage, "configs", ()) if isinstance(conf, DistillationConfig)
    ]
    listed = [each for one in given for each in (one if isinstance(one, list | tuple) else [one])]
    return [teacher for teacher in listed if isinstance(teacher, nn.Module)]


def _class_name(model: nn.Module) -> str:
    return type(model).__qualname__


def _digest(model: nn.Module) -> str:
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            data = tensor.detach().cpu().contiguous().flatten()
            total.update(data.view(torch.uint8).numpy().data if data.numel() else b"")
    return total.hexdigest()[:16]


@final
class RunFolder:
    """The files of one pipeline. Everything is written aside and renamed, so what is there is whole.

    ``<number>-<name>`` is the directory of a finished stage: the model, as ``inc_torch.load`` reads it, its report, and
    the state of the random generators. ``<number>-<name>.pt`` is what ``run.save`` wrote last in an unfinished one.

    Args:
        path: Made if it does not exist.
        stages: Of the pipeline.
    """

    def __init__(self, path: str | os.PathLike[str], stages: Sequence[Stage]) -> None:
        self.path = Path(path)
        self._names = [f"{number}-{stage.name}" for number, stage in enumerate(stages, start=1)]

    def open(self, fingerprint: Mapping[str, Any]) -> None:
        """Make the directory, or see that it is of this pipeline.

        Raises:
            StateError: It is of another one; what differs is named.
            ArtifactError: It is a file, holds something else, or is damaged.
        """
        if self.path.exists() and not self.path.is_dir():
            message = f"{os.fspath(self.path)!r} is a file: expected a directory for the pipeline. Give another path."
            raise ArtifactError(message)
        about = self.path / _ABOUT
        if not about.exists():
            self._begin(fingerprint)
            return
        saved = read_json(about, _ANEW)
        if differences := list(_differences(saved, fingerprint)):
            is_trained = saved.get("model") != fingerprint["model"]
            hint = "Build the model with the weights that the run began with. Or give" if is_trained else "Give"
            start = f"{os.fspath(self.path)!r} is of another pipeline: {'; '.join(differences)}."
            message = f"{start} {hint} another directory, or remove this one to begin anew."
            raise StateError(message)

    def _begin(self, fingerprint: Mapping[str, Any]) -> None:
        names = sorted(entry.name for entry in self.path.iterdir()) if self.path.exists() else []
        others = [name for name in names if name != _START and not name.endswith(".unfinished")]
        if others:
            message = (
                f"{os.fspath(self.path)!r} holds {others[0]!r} and no {_ABOUT}: expected an empty directory, or one "
                "that a pipeline wrote. Give another path."
            )
            raise ArtifactError(message)
        made_directory(self.path)
        write_state(self.path / _START, random_state())
        write_json(self.path / _ABOUT, fingerprint)

    def finished(self) -> int:
        """How many stages are through.

        Raises:
            ArtifactError: One is missing before one that is there.
        """
        there = [self._of(number).is_dir() for number in range(len(self._names))]
        done = sum(there)
        if not all(there[:done]):
            missing = self._names[there.index(False)]
            message = (
                f"{os.fspath(self.path / missing)!r} is missing, though a later stage is there. Put it back, or remove "
                "the later stages to run them again."
            )
            raise ArtifactError(message)
        return done

    def result(self, number: int) -> StageResult:
        """What was noted of a finished stage."""
        place = self._of(number)
        return StageResult.from_dict(read_json(place / _STAGE, _ANEW), read_json(place / _REPORT, _ANEW))

    def load_model(self, number: int, model: nn.Module) -> None:
        """Make ``model`` the one that a finished stage left."""
        load(self._of(number), model)

    def random_state(self, finished: int) -> dict[str, Any]:
        """The random generators after so many stages."""
        path = self._of(finished - 1) / _RANDOM if finished else self.path / _START
        return _read_state(path)

    def finish(self, number: int, model: nn.Module, result: StageResult) -> None:
        """Keep what a stage has made, and drop what it was to go on from."""
        aside = self.path / f".{self._names[number]}.unfinished"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            save(model, aside, result.report)
            write_json(aside / _STAGE, result.to_dict())
            write_json(aside / _REPORT, result.report.to_dict())
            write_state(aside / _RANDOM, random_state())
            aside.replace(self._of(number))
        finally:
            shutil.rmtree(aside, ignore_errors=True)  # gone after the rename
        self._saved(number).unlink(missing_ok=True)

    def save_state(self, number: int, state: Mapping[str, Any]) -> None:
        """Keep from what an unfinished stage goes on."""
        write_state(self._saved(number), state)

    def saved_state(self, number: int) -> dict[str, Any]:
        """From what an unfinished stage goes on; it has to be there."""
        return _read_state(self._saved(number))

    def has_state(self, number: int) -> bool:
        """Whether an unfinished stage was saved."""
        return self._saved(number).exists()

    def _of(self, number: int) -> Path:
        return self.path / self._names[number]

    def _saved(self, number: int) -> Path:
        return self.path / f"{self._names[number]}.pt"


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damaged bytes lead to
        message = f"{os.fspath(path)!r} is damaged: got {error}, expected a state that a pipeline wrote. {_ANEW}"
        raise ArtifactError(message) from error
    return state


def _differences(saved: object, now: object, where: str = "") -> Iterator[str]:
    """A line for each value in which two descriptions differ, with the place of it."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*saved, *now]):
            inner = f"{where}.{key}" if where else str(key)
            yield from _differences(saved.get(key), now.get(key), inner)
    elif isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        for index, (before, after) in enumerate(zip(saved, now, strict=True)):
            yield from _differences(before, after, f"{where}[{index}]")
    elif saved != now:
        yield f"{where}: saved {_short(saved)}, now {_short(now)}"


def _short(value: object) -> str:
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
        return str([item["name"] for item in value])
    return repr(value)
