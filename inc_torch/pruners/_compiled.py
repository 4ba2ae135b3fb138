"""What compiled kernels do of pruning, for float32 on the CPU that lies in memory as the units of a pattern do.

Each function does all of its work or none of it, and says so: where no kernel can, the caller goes on with torch, to
the same end. Kernels run on as many threads as torch's own operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inc_torch import kernels
from inc_torch.pruners._base import Reduction
from inc_torch.pruners._dense import DenseBlocks, can_run, is_plain

__all__ = ["group_mask", "group_scores", "score_blocks"]


def score_blocks(
    factors: Sequence[DenseBlocks | None],
    reduction: Reduction,
    output: torch.Tensor | None,
    before: torch.Tensor | None = None,
    decay: float = 0.0,
) -> bool | None:
    """Compute ``output = decay * before + scores``, where scores are reduced from the product of ``factors``.

    Args:
        factors: One or two tensors that lie alike; None for one that does not lie in blocks.
        reduction: How the product becomes one score a unit.
        output: Flat float32, one a unit, may be ``before``; None to find out what is returned alone.
        before: Scores of the past.
        decay: What they are multiplied with.

    Returns:
        Whether all scores, without those of the past, are finite; None if no kernel can do it.
    """
    known = [blocks for blocks in factors if blocks is not None]
    first, second = known[0] if known else None, known[1] if len(known) > 1 else None
    if first is None or not 0 < len(factors) == len(known) <= 2:  # noqa: PLR2004
        return None
    if second is not None and (second.columns, second.rows) != (first.columns, first.rows):
        return None
    others = [tensor for tensor in (output, before) if tensor is not None]
    if not can_run(*(blocks.values for blocks in known), *others):
        return None
    finite = torch.empty(1, dtype=torch.int64)
    step = kernels.block_scores(
        first.values,
        None if second is None else second.values,
        output,
        finite,
        reduction,
        columns=first.columns,
        block=first.rows,
        before=before,
        decay=decay,
    )
    kernels.Program([step]).run()
    return bool(finite)


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
