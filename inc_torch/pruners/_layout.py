"""How the layers of a pruner lie on the processes that train the model, and what these tell each other for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, final

import torch

from inc_torch.core.ranks import Ranks
from inc_torch.pruners._base import Ranking, Reduction
from inc_torch.pruners._layers import Layer
from inc_torch.pruners._parts import Part
from inc_torch.pruners._ranking import LocalRanking

__all__ = ["CopiesLayout", "Layout"]

_FIRST_LOOK = 4096
"""How many scores are looked at before all are, to find one above 0."""


class Layout(Protocol):
    """Where the units of all layers lie. Methods are collectives: every rank calls them, in the same order."""

    @property
    def parts(self) -> Sequence[Part]:
        """What this process holds of each layer, in order."""
        ...

    def join_scores_(self, scores: torch.Tensor, flags: Sequence[bool], reduction: Reduction) -> Sequence[bool]:
        """Complete the scores of units that lie on several processes.

        Args:
            scores: Of all layers, flat; changed in place.
            flags: Anything to be known of all ranks.
            reduction: How element scores became unit scores.

        Returns:
            Each flag, True if it is on any rank.
        """
        ...

    def has_positive(self, scores: torch.Tensor) -> bool:
        """Whether any score is above 0."""
        ...

    def ranking(self, scores: torch.Tensor, *, of_entries: bool = False) -> Ranking:
        """Rank all units, or all entries of scores; the ranking is used by every rank in the same way.

        Args:
            scores: Of all layers, flat, one a unit or an entry.
            of_entries: Rank entries, not units.
        """
        ...

    def counts(self, masks: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
        """Units and entries that the masks of all layers prune in the whole model."""
        ...

    def require_equal(self, masks: Sequence[torch.Tensor]) -> None:
        """Make sure that copies of the masks of all layers are equal on all processes.

        Raises:
            StateError: They differ.
        """
        ...

    def gather(self, part: Part, stored: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """A copy of the whole layer's mask or scores, of ``shape``."""
        ...


@final
class CopiesLayout:
    """Every process holds everything: a single one, or the ranks of data parallelism. Nothing is exchanged.

    Args:
        layers: The layers.
        ranks: The processes that train the model together.
    """

    def __init__(self, layers: Sequence[Layer], ranks: Ranks) -> None:
        self.parts = [Part.of_copy(layer.grid) for layer in layers]
        self._ranks = ranks

    def join_scores_(
        self,
        scores: torch.Tensor,  # noqa: ARG002  complete as they are
        flags: Sequence[bool],
        reduction: Reduction,  # noqa: ARG002
    ) -> Sequence[bool]:
        """See `Layout`."""
        return flags

    def has_positive(self, scores: torch.Tensor) -> bool:
        """See `Layout`."""
        return bool(scores[:_FIRST_LOOK].amax() > 0) or bool(scores.amax() > 0)

    def ranking(self, scores: torch.Tensor, *, of_entries: bool = False) -> Ranking:
        """See `Layout`."""
        from inc_torch.pruners._digit_ranking import DigitRanking

        sizes = [math.prod(part.whole.score_shape) if of_entries else part.whole.units for part in self.parts]
        kind = DigitRanking if DigitRanking.can_rank(scores) else LocalRanking
        return kind(scores, sizes)

    def counts(self, masks: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
        """See `Layout`."""
        return [
            (part.whole.pruned_units(mask), math.prod(mask.shape) - int(torch.count_nonzero(mask)))
            for part, mask in zip(self.parts, masks, strict=True)
        ]

    def require_equal(self, masks: Sequence[torch.Tensor]) -> None:
        """See `Layout`."""
        self._ranks.require_equal("Pruning masks", list(masks))

    def gather(
        self,
        part: Part,  # noqa: ARG002  all of the layer
        stored: torch.Tensor,
        shape: tuple[int, ...],  # noqa: ARG002
    ) -> torch.Tensor:
        """See `Layout`."""
        return stored.clone()
