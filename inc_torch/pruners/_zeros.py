"""Writing the zeros of masks into weights and momentum."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from inc_torch import kernels
from inc_torch.pruners._compiled import can_run, is_plain
from inc_torch.pruners._parts import Part

__all__ = ["write_zeros"]


def write_zeros(pruned: Iterable[tuple[Part, torch.Tensor, torch.Tensor]]) -> None:
    """Make zero, in place, what masks prune.

    Compiled kernels write zeros, so that an infinity goes too; where they cannot, torch multiplies.

    Args:
        pruned: A part of a layer, a tensor shaped like its local weight, and its stored mask. Tensors of several
            layers are in different memory.
    """
    steps = []
    for part, tensor, keep in pruned:
        blocks = part.dense_blocks(tensor)
        if blocks is not None and is_plain(keep) and can_run(blocks.values):
            steps.append(kernels.zero_blocks(blocks.values, keep, columns=blocks.columns, block=blocks.rows))
        else:
            part.apply_(tensor, keep)
    if steps:
        kernels.Program(steps).run()
