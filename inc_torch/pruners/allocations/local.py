"""Every layer alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from inc_torch.pruners._base import ALLOCATIONS, Limits
from inc_torch.pruners._select import count_of, keep_largest


@final
@ALLOCATIONS.register("local", summary="the same share in every layer")
@dataclass(frozen=True, slots=True)
class Local:
    """Every layer gives up the same share of its units, within the limits."""

    def keep(self, scores: torch.Tensor, sizes: Sequence[int], ratio: float, limits: Limits) -> torch.Tensor:
        share = min(ratio, limits.greatest)
        return torch.cat(
            [keep_largest(part, count_of(share, part.numel())) for part in torch.split(scores, list(sizes))]
        )
