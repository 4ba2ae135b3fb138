"""The processes that train one model together, and what they have to agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import distributed
from torch.distributed import ProcessGroup

from inc_torch.core.errors import StateError

__all__ = ["Ranks"]

_MIXERS = (-0x61C8864680B583EB, -0x40A7B892E31B1A47)
"""The odd constants of splitmix64, as signed numbers."""


@final
@dataclass(frozen=True, slots=True)
class Ranks:
    """A process group, or the single process of a run that is not distributed.

    Looked up at each use, because a training script may set up `torch.distributed` after the model is prepared.
    What reduces is a collective: every rank of the group has to call it.

    Attributes:
        group: The ranks that train the model; None is all of them.
    """

    group: ProcessGroup | None = None

    @property
    def count(self) -> int:
        """How many processes there are; 1 without `torch.distributed`."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return 1
        return distributed.get_world_size(self.group)

    @property
    def index(self) -> int:
        """Number of this process in the group."""
        return distributed.get_rank(self.group) if self.count > 1 else 0

    def maximum_(self, values: torch.Tensor) -> torch.Tensor:
        """Replace every value by the greatest that any rank has there; returns ``values``."""
        if self.count > 1:
            distributed.all_reduce(values, op=distributed.ReduceOp.MAX, group=self.group)
        return values

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        """Replace every value by its sum over all ranks; returns ``values``."""
        if self.count > 1:
            distributed.all_reduce(values, op=distributed.ReduceOp.SUM, group=self.group)
        return values

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        """What every rank holds in ``values``, of one shape everywhere, in the order of ranks."""
        if self.count == 1:
            return [values]
        gathered = [torch.empty_like(values) for _ in range(self.count)]
        distributed.all_gather(gathered, values.contiguous(), group=self.group)
        return gathered

    def require_equal(self, what: str, tensors: list[torch.Tensor]) -> None:
        """Make sure that bool tensors are the same on all ranks, by a hash of 8 bytes.

        Raises:
            StateError: They differ; raised on every rank.
        """
        if self.count == 1 or not tensors:
            return
        digest = _mixed(torch.stack([_mixed(_words(tensor)) for tensor in tensors]))
        greatest = self.maximum_(torch.stack([digest, -digest]))
        if greatest[0] != -greatest[1]:
            message = (
                f"{what} differ between the {self.count} processes, so they no longer train one model. The gradients "
                "were not the same everywhere: call on_before_optimizer_step after they are synchronised (under "
                "gradient accumulation only at the last micro-batch), and start all ranks from the same weights. "
                "Processes that train different models need prepare_compression(..., process_group=...)."
            )
            raise StateError(message)


def _words(mask: torch.Tensor) -> torch.Tensor:
    """A bool tensor as int64, eight values a word, flat."""
    flat = mask.reshape(-1).view(torch.uint8)
    return F.pad(flat, (0, -len(flat) % 8)).view(torch.int64)


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """A hash of int64 words and their places, 0-d: of each word as splitmix64 does it, added up.

    Reference: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    step, factor = _MIXERS
    mixed = words ^ (torch.arange(1, len(words) + 1, device=words.device) * step)
    mixed = (mixed ^ (mixed >> 30)) * factor
    return (mixed ^ (mixed >> 27)).sum()
