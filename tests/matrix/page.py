"""The page of the matrix, made from what the cells reported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import transformers

from tests.matrix.cells import NO_LOOP, Cell, cells

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "support_matrix.md"

INTRODUCTION = """\
# Support matrix

Written by `make matrix`, which runs every cell. Seventeen architectures of transformers are built small, with random
weights, and so are seven families of torchvision; EfficientNet-Lite0 has its trained weights. In each cell of the first
three tables the model is

1. compressed in a training of six steps, with a checkpoint after the third;
2. looked at: at least 48 % zeros where half of the weights are asked for, int8 modules, a distance from the teacher in
   each step, matrices multiplied in bfloat16;
3. trained again from the checkpoint, in fresh objects, and has to end with the same tensors, bit for bit;
4. saved and loaded, by `from_pretrained` or by `inc_torch.load`, and has to answer the same, bit for bit.

After training, logits have to point where those of the float model do. `n int8` counts modules, and the number behind
is the cosine of the angle between both logits. Weights are random, so it says that int8 computes what float does, not
how accurate a trained model stays. A cell that is refused has the number of the reason: the message that a user gets.
"""
TITLES = {
    "hand-written": "A loop written by hand",
    "Trainer": "transformers' Trainer with INCCallback",
    "accelerate": "A loop with accelerate",
    NO_LOOP: "After training",
}


def page(outcomes: Mapping[Cell, str], refusals: Mapping[Cell, str]) -> str:
    """The whole page; ``outcomes`` and ``refusals`` have a cell each, or the page would claim what was not run."""
    missing = [str(cell) for cell in cells() if cell not in outcomes and cell not in refusals]
    if missing:
        message = f"{len(missing)} cells were not run or failed, such as {missing[0]}: the page stays as it was."
        raise ValueError(message)
    reasons = list(dict.fromkeys(refusals.values()))
    texts = dict(outcomes) | {cell: f"refused ({reasons.index(reason) + 1})" for cell, reason in refusals.items()}
    parts = [INTRODUCTION, *(_section(loop, title, texts) for loop, title in TITLES.items())]
    if reasons:
        parts.append("\n".join(f"({number}) {reason}  " for number, reason in enumerate(reasons, 1)) + "\n")
    counted = f"{len(outcomes)} cells pass, {len(refusals)} are refused."
    parts.append(f"{counted} Run with torch {torch.__version__} and transformers {transformers.__version__}.\n")
    return "\n".join(parts)


def _section(loop: str, title: str, texts: Mapping[Cell, str]) -> str:
    own = [cell for cell in cells() if cell.loop == loop]
    techniques = list(dict.fromkeys(cell.technique for cell in own))
    rows = [("model", *techniques), ("---",) * (len(techniques) + 1)]
    for subject in dict.fromkeys(cell.subject for cell in own):
        name = subject.replace("transformers-", "").replace("graph-", "graph of ")
        rows.append((name, *(texts[Cell(loop, subject, technique)] for technique in techniques)))
    return f"## {title}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)
