"""Progressive pruning: units that were chosen at an update go element by element, in parts, until the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch

from inc_torch.pruners._base import Grid, Pattern, Reduction
from inc_torch.pruners._layout import Layout
from inc_torch.pruners._matrix import MatrixView

__all__ = ["Goal", "InParts"]


@final
@dataclass(frozen=True, slots=True)
class InParts(Pattern):
    """A pattern whose units can be pruned in parts: its masks and scores have one entry an element.

    Attributes:
        whole: The pattern. ``N:M`` is kept by elements in any case.
    """

    whole: Pattern

    @property
    def density(self) -> float:
        """As of the whole."""
        return self.whole.density

    @classmethod
    def parse(cls, text: str) -> None:  # noqa: ARG003  progressive is a pruning type, no pattern
        """There is no such form."""
        return

    def grid(self, view: MatrixView, reduction: Reduction) -> Grid | str:
        """Lay the pattern over a weight, by elements."""
        lay: Callable[[MatrixView, Reduction], Grid | str] = getattr(self.whole, "grid_in_parts", self.whole.grid)
        return lay(view, reduction)


@final
@dataclass(slots=True)
class Goal:
    """Masks that are to be reached in parts.

    Attributes:
        masks: Of each layer.
        elements: How many they prune, in the whole model, that were not pruned when they were chosen.
        since: The step at which that was.
        share: How much of them is pruned by now.
    """

    masks: Sequence[torch.Tensor]
    elements: int
    since: int
    share: float = 0.0

    @classmethod
    def of(cls, layout: Layout, masks: Sequence[torch.Tensor], present: Sequence[torch.Tensor], since: int) -> Goal:
        """Aim at new masks, from those that there are."""
        return cls(masks, _count(layout, _to_go(masks, present)), since)

    def nearer(
        self, layout: Layout, present: Sequence[torch.Tensor], scores: torch.Tensor, share: float
    ) -> list[torch.Tensor]:
        """The present masks with more elements pruned: of those to go, the ones of the least scores.

        Args:
            layout: How layers lie on the processes; this is a collective.
            present: Masks of each layer.
            scores: One an element, flat, layers in order.
            share: How much of what was to go when the goal was set is to be gone.
        """
        self.share = share
        to_go = _to_go(self.masks, present)
        gone = self.elements - _count(layout, to_go)
        candidates = torch.cat([own.flatten() for own in to_go])
        ranking = layout.ranking(torch.where(candidates, scores, torch.inf), of_entries=True)
        more = int(self.elements * share) - gone
        if more > 0:
            ranking.prune([list(range(len(present)))], [more])
        kept = torch.split(ranking.kept(), [mask.numel() for mask in present])
        return [mask & keep.view_as(mask) for mask, keep in zip(present, kept, strict=True)]


def _to_go(masks: Sequence[torch.Tensor], present: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [own & ~mask for mask, own in zip(masks, present, strict=True)]


def _count(layout: Layout, elements: Sequence[torch.Tensor]) -> int:
    """How many elements are marked, in the whole model."""
    return sum(entries for _, entries in layout.counts([~marked for marked in elements]))
