"""What is known of each finished training, kept as lines of JSON so that a run that was stopped goes on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

CRITERIA = ("magnitude", "gradient", "snip", "snip_momentum")
BASELINE, DENSE = "baseline", "dense"
"""In place of a criterion: before the second phase, and after one without pruning."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        task: Name of the model and the data.
        phases: Steps and learning rates of both phases.
        seed: Of the head or all weights, and of the order of the data.
        criterion: What decided which weights go, or `BASELINE`, or `DENSE`.
        pattern: What went together; none where nothing was pruned.
        sparsity: Which share of them was to go.
        scope: Whether layers were ranked together.
    """

    task: str
    phases: str
    seed: int
    criterion: str
    pattern: str = ""
    sparsity: float = 0.0
    scope: str = "global"


@dataclass(frozen=True)
class Record:
    """What came out of a training.

    Attributes:
        run: Which one.
        right: For each item of the test set, whether the answer was right.
        zeros: The share of zeros in the pruned layers.
        seconds: Processor time of training and test.
    """

    run: Run
    right: np.ndarray
    zeros: float
    seconds: float

    @property
    def accuracy(self) -> float:
        """In points, 0 to 100."""
        return 100 * float(self.right.mean())

    def to_line(self) -> str:
        """One line of JSON; the answers are hexadecimal digits, eight answers in two of them.

        Example:
            >>> line = Record(Run("task", "1x1", 0, "dense"), np.array([True, False, True]), 0.0, 1.5).to_line()
            >>> Record.of_line(line).right.tolist()
            [True, False, True]
        """
        packed = np.packbits(self.right).tobytes().hex()
        facts = {"accuracy": self.accuracy, "zeros": self.zeros, "seconds": self.seconds}
        return json.dumps({**asdict(self.run), **facts, "items": len(self.right), "right": packed})

    @classmethod
    def of_line(cls, line: str) -> Record:
        """The way back."""
        facts = json.loads(line)
        bits = np.frombuffer(bytes.fromhex(facts["right"]), np.uint8)
        run = Run(**{entry.name: facts[entry.name] for entry in fields(Run) if entry.name in facts})
        return cls(run, np.unpackbits(bits, count=facts["items"]).astype(bool), facts["zeros"], facts["seconds"])


class Records:
    """The finished trainings in a file; a last line that was cut by the end of its process is dropped."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: dict[Run, Record] = {}
        text = file.read_text() if file.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            file.write_text(whole)
        for line in whole.splitlines():
            record = Record.of_line(line)
            self._found[record.run] = record

    def __contains__(self, run: Run) -> bool:
        return run in self._found

    def __getitem__(self, run: Run) -> Record:
        return self._found[run]

    def add(self, run: Run, right: torch.Tensor, zeros: float, seconds: float) -> None:
        """Keep what came out of a run."""
        record = self._found[run] = Record(run, right.numpy(), zeros, seconds)
        with self._file.open("a") as file:
            file.write(record.to_line() + "\n")
