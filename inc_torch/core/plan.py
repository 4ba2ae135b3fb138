"""What happens at which optimizer step: the plan that the phases of a run make together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, final

from inc_torch.core import plan_view
from inc_torch.core.hooks import Phase

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Plan"]


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """All phases of a run in the order in which they begin, and what is wrong with them together.

    Attributes:
        phases: By their first step.
        steps: Optimizer steps of the whole training; None if nobody said.
        notes: What will not come to its end, or hinders something else.

    Example:
        >>> phases = [Phase("quantization", "int8 rounding", 60), Phase("pruning", "4x1 to 50 %", 0, 49)]
        >>> print(Plan.of(phases, steps=100))
        technique     phase          steps     0                                     100
        ------------  -------------  --------  -----------------------------------------
        pruning       4x1 to 50 %    0 - 49    #####################
        quantization  int8 rounding  60 - end                          #################
    """

    phases: tuple[Phase, ...]
    steps: int | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, phases: Iterable[Phase], steps: int | None = None, notes: Iterable[str] = ()) -> Plan:
        """Put phases in order, and note what a training of so many steps does not reach.

        Args:
            phases: In any order; what begins at one step stays in the order given.
            steps: Optimizer steps of the whole training.
            notes: What else is to be said.
        """
        ordered = tuple(sorted(phases, key=lambda phase: phase.begin))
        unreached = [] if steps is None else _unreached(ordered, steps)
        return cls(ordered, steps, (*unreached, *notes))

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "steps": self.steps,
            "phases": [asdict(phase) for phase in self.phases],
            "notes": list(self.notes),
        }

    def print(self) -> None:
        """Show the plan on the screen, in colours where there are some."""
        from rich.console import Console

        Console().print(self)

    def __str__(self) -> str:
        """A table of 80 columns in plain characters, that a log file can hold."""
        return plan_view.as_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The same for ``rich``'s ``print``, as wide as the screen."""
        yield plan_view.as_rich(self, options.max_width, is_plain=options.ascii_only)


def _unreached(phases: Sequence[Phase], steps: int) -> list[str]:
    """Which phases end or begin too late; what only follows one of the former is not worth a word."""
    followers = {(phase.technique, phase.end + 1) for phase in phases if phase.end is not None}
    short = [f"{phase.what} (to {phase.end})" for phase in phases if phase.begin < steps <= (phase.end or 0)]
    never = [
        f"{phase.what} (from {phase.begin})"
        for phase in phases
        if phase.begin >= steps and (phase.technique, phase.begin) not in followers
    ]
    last = f"the last step is {steps - 1}"
    notes = [f"Cut short, as {last}: {', '.join(short)}."] if short else []
    return notes + ([f"Never reached, as {last}: {', '.join(never)}."] if never else [])
