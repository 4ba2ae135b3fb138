"""Exact selection of the smallest among many scores, without sorting, moving or joining them."""

from __future__ import annotations

import torch

from inc_torch.kernels._arguments import (
    CollectPrefixArguments,
    CountDigitsArguments,
    KeepLargestArguments,
    Operation,
)
from inc_torch.kernels._checks import check, dense
from inc_torch.kernels._program import Step

__all__ = ["collect_prefix", "count_digits", "keep_largest"]

_SCORES, _INTEGER, _BOOL = (torch.float32, torch.int32), (torch.int64,), (torch.bool,)
MOST_WIDTH, BITS = 11, 31


def count_digits(
    scores: torch.Tensor,
    pieces: torch.Tensor,
    prefixes: torch.Tensor,
    counts: torch.Tensor,
    *,
    shift: int,
) -> Step:
    """Build how often each digit occurs in the bits of the scores of each piece.

    Scores are not negative, so they are ordered as their 31 bits below the sign are. The digit of a score is
    ``(bits >> shift) % 2**width``, and what lies above it is its prefix: with shift 20 and width 11 there is none.

    Args:
        scores: float32, or int32 that has the bits of such; dense.
        pieces: int64 [pieces, 2]: the first score and the one behind the last, within ``scores``.
        prefixes: int64 [pieces]: a score counts if its prefix is this.
        counts: int64 [pieces, 2**width], of width 1 to 11.
        shift: Bits below the digit.

    Returns:
        A step with the roles "scores", "pieces", "prefixes" and "counts".

    Raises:
        OperandError: An operand has the wrong dtype, size, device or layout.
    """
    step = "count_digits"
    count = _pieces(scores, pieces, step)
    dense(prefixes, step, "prefixes", _INTEGER, count)
    dense(counts, step, "counts", _INTEGER)
    width = (counts.numel() // count).bit_length() - 1
    is_table = counts.numel() == count << width and 1 <= width <= MOST_WIDTH and 0 <= shift <= BITS - width
    check(is_table, step, "counts", f"of shape {tuple(counts.shape)} at {shift=}", "[pieces, 2**width], width 1 to 11")
    arguments = CountDigitsArguments(operation=Operation.COUNT_DIGITS, count=count, shift=shift, width=width)
    return Step(step, arguments, {"scores": scores, "pieces": pieces, "prefixes": prefixes, "counts": counts})


def collect_prefix(
    scores: torch.Tensor,
    pieces: torch.Tensor,
    prefixes: torch.Tensor,
    places: torch.Tensor,
    output: torch.Tensor,
    *,
    shift: int,
) -> Step:
    """Build the copy of all scores whose ``bits >> shift`` is the prefix of their piece, in order.

    Args:
        scores: As for `count_digits`.
        pieces: As for `count_digits`.
        prefixes: int64 [pieces].
        places: int64 [pieces]: where in ``output`` the scores of each piece begin. There has to be room for all of
            them up to the next place, which `count_digits` tells.
        output: int32, becomes their bits.
        shift: Bits below the prefix.

    Returns:
        A step with the roles "scores", "pieces", "prefixes", "places" and "output".

    Raises:
        OperandError: An operand has the wrong dtype, size, device or layout.
    """
    step = "collect_prefix"
    count = _pieces(scores, pieces, step)
    dense(prefixes, step, "prefixes", _INTEGER, count)
    dense(places, step, "places", _INTEGER, count)
    dense(output, step, "output", (torch.int32,))
    check(0 <= shift < BITS, step, "shift", shift, "0 to 30")
    arguments = CollectPrefixArguments(operation=Operation.COLLECT_PREFIX, count=count, shift=shift)
    roles = {"scores": scores, "pieces": pieces, "prefixes": prefixes, "places": places, "output": output}
    return Step(step, arguments, roles)


def keep_largest(
    scores: torch.Tensor,
    pieces: torch.Tensor,
    thresholds: torch.Tensor,
    ties: torch.Tensor,
    keep: torch.Tensor,
) -> Step:
    """Build which scores are above the threshold of their piece, or equal to it and not among the first of these.

    Args:
        scores: As for `count_digits`.
        pieces: As for `count_digits`.
        thresholds: int64 [pieces]: bits of a score.
        ties: int64 [pieces]: how many of those that equal the threshold are not kept, the first ones.
        keep: bool, of the size of ``scores``; written within the pieces.

    Returns:
        A step with the roles "scores", "pieces", "thresholds", "ties" and "keep".

    Raises:
        OperandError: An operand has the wrong dtype, size, device or layout.
    """
    step = "keep_largest"
    count = _pieces(scores, pieces, step)
    dense(thresholds, step, "thresholds", _INTEGER, count)
    dense(ties, step, "ties", _INTEGER, count)
    dense(keep, step, "keep", _BOOL, scores.numel())
    arguments = KeepLargestArguments(operation=Operation.KEEP_LARGEST, count=count)
    roles = {"scores": scores, "pieces": pieces, "thresholds": thresholds, "ties": ties, "keep": keep}
    return Step(step, arguments, roles)


def _pieces(scores: torch.Tensor, pieces: torch.Tensor, step: str) -> int:
    """Check scores and pieces; return how many pieces there are."""
    dense(scores, step, "scores", _SCORES)
    dense(pieces, step, "pieces", _INTEGER)
    check(pieces.dim() == 2 and pieces.shape[1] == 2, step, "pieces", tuple(pieces.shape), "[pieces, 2]")  # noqa: PLR2004
    begins, ends = pieces.unbind(1)
    is_within = bool((begins >= 0).all() and (begins <= ends).all() and (ends <= scores.numel()).all())
    check(is_within, step, "pieces", "outside the scores", f"0 <= begin <= end <= {scores.numel()}")
    return len(pieces)
