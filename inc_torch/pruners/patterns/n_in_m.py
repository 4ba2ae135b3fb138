"""N:M pattern: N of every M neighbouring inputs are pruned."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self, final

import torch

from inc_torch.core.errors import ConfigError
from inc_torch.pruners._base import PATTERNS, Grid, Pattern, Reduction
from inc_torch.pruners._matrix import DenseBlocks, MatrixView

_FORM = re.compile(r"(\d+):(\d+)")


@final
@PATTERNS.register("N:M", summary="N of every M neighbouring inputs are pruned")
@dataclass(frozen=True, slots=True)
class NInM(Pattern):
    """``pruned`` of every ``group`` neighbouring inputs of one output go, the least important ones.

    A unit is a group. Below the full target the cheapest groups are N:M and the others dense. The first
    number counts the *pruned* values, as in INC; NVIDIA's notation counts the kept ones (2:4 is both).

    ``2:4`` on the row (3, 1, 2, 4) gives (3, 0, 0, 4).
    """

    pruned: int
    group: int

    @property
    def density(self) -> float:
        """N/M: no more elements can go."""
        return self.pruned / self.group

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read ``"2:4"``."""
        form = _FORM.fullmatch(text)
        if form is None:
            return None
        pruned, group = map(int, form.groups())
        if not 0 < pruned < group:
            message = f"The pruning pattern {text!r} must prune at least one and fewer than all: 0 < N < M in N:M."
            raise ConfigError(message)
        return cls(pruned, group)

    def grid(self, view: MatrixView, reduction: Reduction) -> Grid | str:
        """Lay the groups over a weight; the reason why not if its columns do not divide."""
        if view.width % self.group:
            return f"the {view.width} columns of a weight do not divide into groups of {self.group}"
        return GroupGrid(view, self, reduction)


@final
class GroupGrid:
    """Groups over one weight. Scores and masks have one entry an element, in groups."""

    def __init__(self, view: MatrixView, pattern: NInM, reduction: Reduction) -> None:
        self._view, self._pattern = view, pattern
        self._pruned, self._group = pattern.pruned, pattern.group
        self._reduction = reduction
        self.units = view.height * view.width // pattern.group
        self.mask_shape: tuple[int, ...] = (self.units, pattern.group)
        self.score_shape: tuple[int, ...] = self.mask_shape

    def reduce(self, signed: torch.Tensor, reduction: Reduction | None = None) -> torch.Tensor:
        return self._view.ordered(signed).reshape(self.mask_shape).abs()

    def unit_scores(self, scores: torch.Tensor) -> torch.Tensor:
        from inc_torch.pruners._compiled import group_scores

        compiled = group_scores(scores, self._pruned, self._reduction)
        if compiled is not None:
            return compiled
        cheapest = torch.where(self._candidates(scores), scores, 0)
        if self._reduction == "max":
            return cheapest.amax(-1)
        return cheapest.mean(-1) if self._reduction == "mean" else cheapest.sum(-1)

    def mask(self, scores: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        from inc_torch.pruners._compiled import group_mask

        compiled = group_mask(scores, self._pruned, keep)
        if compiled is not None:
            return compiled
        return self._candidates(scores).logical_not_().logical_or_(keep.unsqueeze(-1))

    def zeros_of(self, scores: torch.Tensor) -> torch.Tensor:
        kept = scores != 0
        is_pattern = self._group - kept.sum(-1, keepdim=True) >= self._pruned
        return kept | ~is_pattern

    def apply_(self, tensor: torch.Tensor, mask: torch.Tensor) -> None:
        tensor.mul_(self.expand(mask))

    def dense_blocks(self, tensor: torch.Tensor) -> DenseBlocks | None:
        values = self._view.ordered(tensor)
        return DenseBlocks(values, self._view.width, 1) if values.is_contiguous() else None

    def expand(self, mask: torch.Tensor) -> torch.Tensor:
        return self._view.restored(mask)

    def pruned_units(self, mask: torch.Tensor) -> int:
        return int(torch.count_nonzero(self._group - mask.reshape(-1, self._group).sum(-1) >= self._pruned))

    def first_axis(self) -> tuple[int, int] | None:
        view = self._view
        if view.has_outputs_first:
            return 1, view.height
        if view.channels % self._group:
            return None
        return view.height * view.width // view.channels, view.channels // self._group

    def resized(self, length: int) -> GroupGrid:
        return GroupGrid(self._view.resized(length), self._pattern, self._reduction)

    def _candidates(self, scores: torch.Tensor) -> torch.Tensor:
        """True at the ``pruned`` smallest of each group; of equal scores the first."""
        columns = scores.t().contiguous()
        rank = torch.zeros(columns.shape, dtype=torch.int16, device=scores.device)
        for later in range(1, self._group):
            for earlier in range(later):
                goes_first = columns[earlier] <= columns[later]
                rank[later] += goes_first
                rank[earlier] += goes_first.logical_not_()
        return (rank < self._pruned).t().contiguous()
