"""What compiled kernels do of pruning, for float32 on the CPU that lies in memory as the units of a pattern do.

Each function does all of its work or none of it, and says so: where no kernel can, the caller goes on with torch, to
the same end. Kernels run on as many threads as torch's own operations. This module, and those that are built on it, are
imported where a pruner begins to work: ``import inc_torch`` does without kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from inc_torch import kernels
from inc_torch.pruners._base import Reduction
from inc_torch.pruners._matrix import DenseBlocks

__all__ = ["ScoreSteps", "can_run", "group_mask", "group_scores", "is_plain"]


def can_run(*tensors: torch.Tensor) -> bool:
    """Whether kernels can work on these."""
    return all(tensor.dtype == torch.float32 and is_plain(tensor) for tensor in tensors) and kernels.available()


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has values, on the CPU and without gaps."""
    return tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.numel() > 0


@final
class ScoreSteps:
    """Scores of several layers, computed by one call: ``output = decay * before + scores``.

    Scores are reduced from the product of factors. What is added is computed at `run`, so its memory has to last.

    Args:
        reduction: How the product becomes one score a unit.
        decay: What scores of the past are multiplied with.
        layers: How many are added between two runs at most.
    """

    def __init__(self, reduction: Reduction, decay: float = 0.0, layers: int = 1) -> None:
        self._reduction, self._decay = reduction, decay
        self._finite = torch.empty(layers, dtype=torch.int64)
        self._steps: list[kernels.Step] = []

    def add(
        self,
        factors: Sequence[DenseBlocks | None],
        output: torch.Tensor | None,
        before: torch.Tensor | None = None,
    ) -> bool:
        """Add a layer.

        Args:
            factors: One or two tensors that lie alike; None for one that does not lie in blocks.
            output: Flat float32, one a unit, may be ``before``; None if only `run`'s answer is wanted.
            before: Scores of the past.

        Returns:
            Whether that was possible.
        """
        known = [blocks for blocks in factors if blocks is not None]
        if not 0 < len(factors) == len(known) <= 2:  # noqa: PLR2004  kernels multiply two
            return False
        first, second = known[0], known[1] if len(known) > 1 else None
        if second is not None and (second.columns, second.rows) != (first.columns, first.rows):
            return False
        tensors = [first.values, None if second is None else second.values, output, before]
        if not can_run(*(tensor for tensor in tensors if tensor is not None)):
            return False
        step = kernels.block_scores(
            first.values,
            tensors[1],
            output,
            self._finite[len(self._steps) :][:1],
            self._reduction,
            columns=first.columns,
            block=first.rows,
            before=before,
            decay=self._decay,
        )
        self._steps.append(step)
        return True

    def run(self) -> bool:
        """Compute what was added; return whether all scores, without those of the past, are finite."""
        if self._steps:
            kernels.Program(self._steps).run()
        is_finite = bool(self._finite[: len(self._steps)].all())
        self._steps = []
        return is_finite


def group_scores(scores: torch.Tensor, pruned: int, reduction: Reduction) -> torch.Tensor | None:
    """The sum, mean or maximum of the ``pruned`` smallest scores of each group and zeros for the others.

    Args:
        scores: [groups, size].
        pruned: How many of each group.
        reduction: ``net`` is a sum here.

    Returns:
        [groups], or None if no kernel can do it.
    """
    if not can_run(scores):
        return None
    output = scores.new_empty(len(scores))
    kind = "sum" if reduction == "net" else reduction
    kernels.Program([kernels.pick_in_groups(scores, pruned, group_scores=output, reduction=kind)]).run()
    return output


def group_mask(scores: torch.Tensor, pruned: int, keep: torch.Tensor) -> torch.Tensor | None:
    """The mask that prunes the ``pruned`` smallest scores of each group, of equal ones the first.

    Args:
        scores: [groups, size].
        pruned: How many of each group.
        keep: bool [groups]: groups of which nothing is pruned.

    Returns:
        bool [groups, size], or None if no kernel can do it.
    """
    if not (can_run(scores) and keep.dtype == torch.bool and is_plain(keep)):
        return None
    mask = torch.empty_like(scores, dtype=torch.bool)
    kernels.Program([kernels.pick_in_groups(scores, pruned, keep=keep, mask=mask)]).run()
    return mask
