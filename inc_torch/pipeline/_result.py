"""What a pipeline has made: the model, and the report of every stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from torch import nn

from inc_torch.core.errors import ArtifactError
from inc_torch.core.report import CompressionReport
from inc_torch.pipeline import _result_view

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["PipelineResult", "StageResult"]


@final
@dataclass(frozen=True, slots=True)
class StageResult:
    """What one stage has done.

    Attributes:
        name: Of the stage.
        techniques: What it did, a word for each technique.
        report: Measured when it was through.
        seconds: How long it took, in the process that finished it.
        steps: Optimizer steps; 0 where nothing was trained.
        locked: Layers whose zeros of earlier stages were locked in it.
        is_loaded: It was through before, and only loaded.
    """

    name: str
    techniques: tuple[str, ...]
    report: CompressionReport
    seconds: float
    steps: int
    locked: tuple[str, ...] = ()
    is_loaded: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the report, which has a `to_dict` of its own."""
        return {
            "name": self.name,
            "techniques": list(self.techniques),
            "seconds": self.seconds,
            "steps": self.steps,
            "locked": list(self.locked),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], report: Mapping[str, Any]) -> StageResult:
        """Read what `to_dict`, and that of the report, wrote.

        Raises:
            ArtifactError: Something is missing.
        """
        try:
            return cls(
                name=str(data["name"]),
                techniques=tuple(map(str, data["techniques"])),
                report=CompressionReport.from_dict(report),
                seconds=float(data["seconds"]),
                steps=int(data["steps"]),
                locked=tuple(map(str, data["locked"])),
                is_loaded=True,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            message = f"The record of a stage is damaged: got {error!r}. Remove its directory to run the stage again."
            raise ArtifactError(message) from error


@final
@dataclass(frozen=True, slots=True)
class PipelineResult:
    """The compressed model, and how it became so.

    Attributes:
        model: In evaluation mode.
        stages: In order.
    """

    model: nn.Module
    stages: tuple[StageResult, ...]

    @property
    def reports(self) -> dict[str, CompressionReport]:
        """The report of each stage, by its name."""
        return {stage.name: stage.report for stage in self.stages}

    def to_dict(self) -> dict[str, Any]:
        """All but the model as plain values, for JSON."""
        return {"stages": [stage.to_dict() | {"report": stage.report.to_dict()} for stage in self.stages]}

    def print(self) -> None:
        """Show the stages on the screen."""
        from rich.console import Console

        Console().print(self)

    def __repr__(self) -> str:
        return f"PipelineResult({type(self.model).__name__}, {[stage.name for stage in self.stages]})"

    def __str__(self) -> str:
        """A row for each stage, in plain characters that a log file can hold."""
        return _result_view.as_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The same for ``rich``'s ``print``."""
        yield _result_view.as_rich(self)
