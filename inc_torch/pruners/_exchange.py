"""What the processes that share sharded weights send each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from inc_torch.core.ranks import Ranks

__all__ = ["Exchange"]


@final
@dataclass(frozen=True, slots=True)
class Exchange:
    """Collectives that return their result where the values were: shards may be kept on the CPU and reduced on a GPU.

    Attributes:
        ranks: The processes among which weights are sharded.
        device: Where their process group can reduce.
    """

    ranks: Ranks
    device: torch.device

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks; ``values`` may be overwritten."""
        return self.ranks.sum_(values.to(self.device)).to(values.device)

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        """The greatest of all ranks, entry by entry; ``values`` may be overwritten."""
        return self.ranks.maximum_(values.to(self.device)).to(values.device)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """What every rank holds, of one shape everywhere, stacked in the order of ranks."""
        return torch.stack(self.ranks.gather(values.to(self.device))).to(values.device)
