"""What is known of each finished training, kept as lines of JSON so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

RecordT = TypeVar("RecordT", bound="Record")


@dataclass(frozen=True)
class Record:
    """What came out of a training; a subclass names what identifies one, and adds figures.

    Attributes:
        RUN: The class of ``run``, whose fields are plain values.
        run: Which training.
        right: For each item of the test set, whether the answer was right.
        zeros: The share of zeros in the layers that are pruned.
        seconds: Processor time of training and test.
    """

    RUN: ClassVar[type[Any]]

    run: Any
    right: np.ndarray
    zeros: float
    seconds: float

    @property
    def accuracy(self) -> float:
        """In points, 0 to 100."""
        return 100 * float(self.right.mean())

    def to_line(self) -> str:
        """One line of JSON; the answers are hexadecimal digits, eight answers in two of them."""
        figures = {name: getattr(self, name) for name in self._figures()}
        packed = np.packbits(self.right).tobytes().hex()
        facts = {"accuracy": self.accuracy, **figures, "items": len(self.right), "right": packed}
        return json.dumps({**asdict(self.run), **facts})

    @classmethod
    def of_line(cls: type[RecordT], line: str) -> RecordT:
        """The way back."""
        facts = json.loads(line)
        bits = np.frombuffer(bytes.fromhex(facts["right"]), np.uint8)
        run = cls.RUN(**{entry.name: facts[entry.name] for entry in fields(cls.RUN) if entry.name in facts})
        right = np.unpackbits(bits, count=facts["items"]).astype(bool)
        return cls(run, right, **{name: facts[name] for name in cls._figures()})

    @classmethod
    def _figures(cls) -> Sequence[str]:
        return [entry.name for entry in fields(cls) if entry.name not in {"run", "right"}]


class Records(Generic[RecordT]):
    """The finished trainings in a file; a last line that was cut by the end of its process is dropped."""

    def __init__(self, file: Path, kind: type[RecordT]) -> None:
        self._file = file
        self._found: dict[Hashable, RecordT] = {}
        text = file.read_text() if file.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            file.write_text(whole)
        for line in whole.splitlines():
            record = kind.of_line(line)
            self._found[record.run] = record

    def __contains__(self, run: Hashable) -> bool:
        return run in self._found

    def __getitem__(self, run: Hashable) -> RecordT:
        return self._found[run]

    def add(self, record: RecordT) -> None:
        """Keep what came out of a run."""
        self._found[record.run] = record
        with self._file.open("a") as file:
            file.write(record.to_line() + "\n")
