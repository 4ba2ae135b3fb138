"""What grids have in common whose scores and masks have one entry a unit."""

from __future__ import annotations

import torch

from inc_torch.pruners._matrix import DenseBlocks

__all__ = ["UnitGrid"]


class UnitGrid:
    """Half of a `Grid`: units are scored, pruned and kept by their entry alone."""

    mask_shape: tuple[int, ...]

    def unit_scores(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.reshape(-1)

    def mask(self, scores: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:  # noqa: ARG002  they do not matter
        return keep.view(self.mask_shape)

    def zeros_of(self, scores: torch.Tensor) -> torch.Tensor:
        return scores != 0

    def pruned_units(self, mask: torch.Tensor) -> int:
        return mask.numel() - int(torch.count_nonzero(mask))

    def dense_blocks(self, tensor: torch.Tensor) -> DenseBlocks | None:  # noqa: ARG002  kernels walk blocks alone
        return None
