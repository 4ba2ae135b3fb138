"""The cells of the matrix, and what each has to stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tests.matrix.loops import LOOPS
from tests.matrix.subjects import SUBJECTS, Subject
from tests.matrix.techniques import (
    AFTER_TRAINING,
    WHILE_TRAINING,
    at_work,
    fitted,
    small_and_near,
)

__all__ = ["NO_LOOP", "Cell", "cells"]

NO_LOOP = "after training"


@dataclass(frozen=True, slots=True)
class Cell:
    """One technique on one model in one loop; ``NO_LOOP`` for those that need no training."""

    loop: str
    subject: str
    technique: str

    def __str__(self) -> str:
        return f"{self.loop}-{self.subject}-{self.technique}".replace(" ", "_")

    def run(self, folder: Path) -> str:
        """Compress, save, load; if it was trained, resume as well. Asserts that all of it gives the same.

        Returns:
            What was found, for the page.
        """
        subject = SUBJECTS[self.subject]
        if self.loop == NO_LOOP:
            model = fitted(self.technique, subject)
            found = small_and_near(self.technique, subject, model)
        else:
            model, found = self._trained(subject, folder / "run")
        subject.save(model, folder / "saved")
        loaded = subject.load(folder / "saved")
        assert torch.equal(subject.answer(loaded), subject.answer(model)), "the loaded model answers differently"
        return found

    def _trained(self, subject: Subject, folder: Path) -> tuple[nn.Module, str]:
        folder.mkdir()
        train = LOOPS[self.loop]
        whole = train(subject, self.technique, folder, resume=False)
        found = at_work(self.technique, whole)
        resumed = train(subject, self.technique, folder, resume=True)
        left, right = whole.model.state_dict(), resumed.model.state_dict()
        assert left.keys() == right.keys()
        different = [name for name, tensor in left.items() if not torch.equal(tensor, right[name])]
        assert not different, f"the resumed run ends with another {different[0]}"
        return whole.model, found


def cells() -> Iterator[Cell]:
    """All of them, in the order of the page."""
    for loop in (*LOOPS, NO_LOOP):
        for subject in SUBJECTS:
            for technique in AFTER_TRAINING if loop == NO_LOOP else WHILE_TRAINING:
                yield Cell(loop, subject, technique)
