"""DSnoT: exchange pruned weights for kept ones, until each row's mean error on the calibration data is small."""

from __future__ import annotations

from typing import final

import torch

from inc_torch.pruners.patterns.n_in_m import NInM

__all__ = ["exchanged"]

ROUNDS = 100
SMALL_ERROR = 0.1
AT_ONCE = 2**22
"""Weights."""


def exchanged(
    pruned: torch.Tensor,
    metric: torch.Tensor,
    effect: torch.Tensor,
    variances: torch.Tensor,
    pattern: NInM | None = None,
) -> torch.Tensor:
    """Return a mask with as many pruned weights in each row, and in each N:M group, some of them exchanged.

        effect    D_ij = w_ij * mu_j       what the output of row i loses in the mean if w_ij is pruned
        error     eps_i = sum of D_ij over the pruned j

    Up to 100 times in each row, while ``|eps| > 0.1``: the pruned weight with the sign of ``eps`` and the greatest
    ``|D| / var`` comes back, and of the kept weights with the other sign the one with the least metric goes. That
    may overshoot. A row stops when it has no such weights left. None is moved twice.

    Source: Zhang et al. 2024, arXiv 2310.08915. INC 2.6.1 differs: its cursors run into weights that are kept already
    or have the wrong sign, and past the end of the row (an error on narrow layers), and N:M is lost.

    Args:
        pruned: Bool [out, in], True where pruned.
        metric: What pruning ranked weights by, [out, in].
        effect: ``D``, [out, in].
        variances: ``var`` of the inputs, [in], at least 0.
        pattern: Exchanges stay inside its groups; None lets them go through the whole row.

    Example:
        >>> pruned, effect = torch.tensor([[True, True, False, False]]), torch.tensor([[1.0, 0.2, -0.2, 3.0]])
        >>> exchanged(pruned, effect.abs(), effect, torch.ones(4))
        tensor([[False,  True,  True, False]])
    """
    # Rows know nothing of each other: a few at a time, as their queues take some times the memory of a weight.
    rows = max(1, AT_ONCE // pruned.shape[1])
    parts = [slice(start, start + rows) for start in range(0, len(pruned), rows)]
    return torch.cat([_exchanged(pruned[part], metric[part], effect[part], variances, pattern) for part in parts])


def _exchanged(
    pruned: torch.Tensor,
    metric: torch.Tensor,
    effect: torch.Tensor,
    variances: torch.Tensor,
    pattern: NInM | None,
) -> torch.Tensor:
    """`exchanged` for some rows."""
    result = pruned.clone()
    error = (effect * pruned).sum(1)
    regrowth = _Queues(pruned, effect, (effect / variances).nan_to_num(0.0, torch.inf, -torch.inf).abs().neg())
    removal: _Queues | _Groups = (
        _Queues(~pruned, effect, metric) if pattern is None else _Groups(~pruned, effect, metric, pattern)
    )
    is_active = error.abs() > SMALL_ERROR
    for _ in range(ROUNDS):
        if not bool(is_active.any()):
            break
        is_positive = error > 0
        back, has_back = regrowth.first(is_positive, is_active)
        gone, has_gone = removal.first(~is_positive, is_active & has_back, back)
        if pattern is None:
            has_back &= has_gone
        moves = is_active & has_back & has_gone
        result.scatter_(1, back, result.gather(1, back) & ~moves[:, None])
        result.scatter_(1, gone, result.gather(1, gone) | moves[:, None])
        change = (effect.gather(1, gone) - effect.gather(1, back)).squeeze(1)
        error = torch.where(moves, error + change, error)
        is_active &= has_back & (error.abs() > SMALL_ERROR)
    return result


@final
class _Queues:
    """For each row its candidates of each sign, in ascending order; each is handed out once.

    Args:
        candidates: Bool [rows, columns].
        effect: [rows, columns], for the sign; candidates without effect are none.
        order: [rows, columns], finite or infinite; of equal values the first goes first.
    """

    def __init__(self, candidates: torch.Tensor, effect: torch.Tensor, order: torch.Tensor) -> None:
        of_sign = torch.stack([candidates & (effect < 0), candidates & (effect > 0)])
        by_order = order.argsort(dim=1, stable=True).expand_as(of_sign)
        is_other = of_sign.gather(2, by_order).logical_not_()
        self._columns = by_order.gather(2, is_other.to(torch.uint8).argsort(dim=2, stable=True))
        self._counts = of_sign.sum(2)
        self._next = torch.zeros_like(self._counts)

    def first(
        self, is_positive: torch.Tensor, is_taken: torch.Tensor, _near: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next candidate of a sign in each row, [rows, 1], and whether there is one, [rows]; gone where taken."""
        sign = is_positive.long()[None]
        place = self._next.gather(0, sign)
        has = (place < self._counts.gather(0, sign))[0]
        rows = torch.arange(len(has), device=has.device)
        column = self._columns[sign[0], rows, place[0].clamp(max=self._columns.shape[2] - 1)]
        self._next.scatter_add_(0, sign, (has & is_taken).long()[None])
        return column[:, None], has


@final
class _Groups:
    """The same for candidates that lie in one N:M group with a given column."""

    def __init__(self, candidates: torch.Tensor, effect: torch.Tensor, order: torch.Tensor, pattern: NInM) -> None:
        self._candidates = candidates.clone()
        self._effect, self._order, self._size = effect, order, pattern.group

    def first(
        self, is_positive: torch.Tensor, is_taken: torch.Tensor, near: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The least candidate of a sign in the group of column ``near``, [rows, 1]; else as `_Queues.first`."""
        inside = near // self._size * self._size + torch.arange(self._size, device=near.device)
        inside = inside.clamp(max=self._order.shape[1] - 1)
        effect = self._effect.gather(1, inside)
        fits = self._candidates.gather(1, inside) & torch.where(is_positive[:, None], effect > 0, effect < 0)
        order = self._order.gather(1, inside).masked_fill(~fits, torch.inf)
        column = inside.gather(1, order.argmin(1, keepdim=True))
        has = fits.any(1)
        free = self._candidates.gather(1, column) & ~(has & is_taken)[:, None]
        self._candidates.scatter_(1, column, free)
        return column, has
