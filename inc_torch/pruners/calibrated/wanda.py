"""Wanda: prune the weights of each row that, times the size of their inputs, are smallest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from inc_torch.core.errors import ConfigError
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.pruners._base import Pattern
from inc_torch.pruners._select import count_of, keep_largest
from inc_torch.pruners.calibrated._blocks import BlockLayer
from inc_torch.pruners.calibrated._choice import pattern_finding, smallest_in_groups, smallest_in_rows
from inc_torch.pruners.calibrated._statistics import Moments, SquareSums
from inc_torch.pruners.calibrated._walk import Technique, prune_by_blocks
from inc_torch.pruners.calibrated.dsnot import exchanged
from inc_torch.pruners.patterns.block import Block
from inc_torch.pruners.patterns.n_in_m import NInM

__all__ = ["Wanda", "prune_wanda"]


@final
@dataclass(frozen=True, slots=True)
class Wanda(Technique[Moments | SquareSums]):
    """Ranks the weights of each row by ``m_ij = |w_ij| * sqrt(a_j)``, with ``a_j`` the mean square of input j.

    The others stay as they are. Of equal metrics the first goes first. Exactly this many are pruned:

        1x1         ``floor(sparsity * in)`` in each row
        is_varied   ``floor(sparsity * out * in)`` in the layer: of each row those whose sum is the least share of the
                    row's sum, one share for all rows
        N:M         N in each M neighbouring columns of a row; a last group with fewer columns stays dense

    Source: Sun et al. 2024, arXiv 2306.11695. INC 2.6.1 differs: the variant's share is found by bisection between 0
    and 0.8, to within 0.001, a last group of N:M with fewer columns loses N of them too, and DSnoT loses N:M.

    Attributes:
        sparsity: Share of weights to prune, in [0, 1). N:M says it itself.
        pattern: 1x1 or N:M.
        is_varied: Rows may lose different numbers. Without effect on N:M, and with ``exchanges``, as in INC.
        exchanges: DSnoT exchanges weights afterwards, in each row and N:M group as many, see `dsnot.exchanged`.
    """

    sparsity: float
    pattern: Pattern = Block(1, 1)  # noqa: RUF009  frozen
    is_varied: bool = False
    exchanges: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, NInM) and self.pattern != Block(1, 1):
            raise ConfigError.field(type(self).__name__, "pattern", self.pattern, "1x1 or N:M")
        if not 0 <= self.sparsity < 1:
            raise ConfigError.field(type(self).__name__, "sparsity", self.sparsity, "a number in [0, 1)")

    def watch(self, width: int, device: torch.device) -> Moments | SquareSums:
        """What is to be remembered of the inputs of a layer."""
        return (Moments if self.exchanges else SquareSums)(width, device)

    def prune(self, layer: BlockLayer, seen: Moments | SquareSums) -> Finding:
        """Prune a layer in place."""
        matrix = layer.matrix()
        matrix.masked_fill_(self.pruned(matrix.float(), seen), 0.0)
        return pattern_finding(layer.name, matrix, self.pattern, self.sparsity)

    def pruned(self, weight: torch.Tensor, seen: Moments | SquareSums) -> torch.Tensor:
        """Return what is pruned of a weight: bool [out, in].

        Args:
            weight: [out, in], float32.
            seen: What `watch` returned.

        Example:
            >>> seen = SquareSums(4, torch.device("cpu"))
            >>> seen.add(torch.tensor([[9.0, 1.0, 1.0, 1.0]]))
            >>> Wanda(0.5).pruned(torch.tensor([[1.0, 2.0, -4.0, 3.0]]), seen)
            tensor([[False,  True, False,  True]])
        """
        metric = weight.abs() * seen.mean_squares().sqrt()
        if isinstance(self.pattern, NInM):
            pruned = smallest_in_groups(metric, self.pattern)
        elif self.is_varied and not self.exchanges:
            return smallest_shares(metric, count_of(self.sparsity, metric.numel()))
        else:
            pruned = smallest_in_rows(metric, count_of(self.sparsity, metric.shape[1]))
        if not isinstance(seen, Moments):
            return pruned
        groups = self.pattern if isinstance(self.pattern, NInM) else None
        return exchanged(pruned, metric, weight * seen.sums(), seen.variances(), groups)


def smallest_shares(metric: torch.Tensor, count: int) -> torch.Tensor:
    """Mark exactly the ``count`` values before whose end, in ascending order, the least share of their row's sum lies.

    What a bisection finds for the share ``alpha`` with ``count`` values in ``running sum <= alpha * row sum``.

    Args:
        metric: [rows, columns], at least 0.
        count: 0 to all.

    Example:
        >>> smallest_shares(torch.tensor([[1.0, 1.0, 8.0], [3.0, 3.0, 4.0]]), 3)
        tensor([[ True,  True, False],
                [ True, False, False]])
    """
    ordered, columns = metric.sort(dim=1, stable=True)
    running = ordered.cumsum(1)
    shares = (running / running[:, -1:]).nan_to_num(0.0)
    pruned = ~keep_largest(shares.flatten(), count).view(shares.shape)
    return torch.zeros_like(pruned).scatter_(1, columns, pruned)


def prune_wanda(  # noqa: PLR0913, PLR0917  Neural Compressor's arguments
    model: nn.Module,
    dataloader: Iterable[object],
    sparsity_ratio: float,
    prune_n: int = 0,
    prune_m: int = 0,
    nsamples: int = 128,
    use_variant: bool = False,
    device: str | torch.device | None = None,
    low_mem_usage: bool | None = None,
    dsnot: bool = False,
) -> CompressionReport:
    """Prune the blocks of a transformer by Wanda, in place, see `Wanda` and `prune_by_blocks`.

    INC 2.6.1 returns None and asks for ``model.config.use_cache`` and a loader with ``batch_size``; here neither is
    needed. It feeds a block stale inputs if the one before has no layer to prune.

    Args:
        model: A model whose blocks are in an `nn.ModuleList`. All nn.Linear and Conv1D layers in them are pruned.
        dataloader: Batches of inputs. Run through once.
        sparsity_ratio: Share of weights to prune in each row, in [0, 1). N:M says it itself.
        prune_n: Weights to prune in each group of ``prune_m``, below that; 0 for both is no N:M.
        prune_m: Columns in a group.
        nsamples: Batches are taken until they hold this many samples.
        use_variant: Rows may lose different numbers. Without effect on N:M and with ``dsnot``.
        device: Where blocks run; None is where they are.
        low_mem_usage: False moves the whole model to ``device`` at once; else each block goes there and comes back.
        dsnot: Exchange weights afterwards, see `dsnot.exchanged`.

    Returns:
        The report; it is not attached to the model.

    Raises:
        CalibrationError: There is no batch, or the inputs of a layer are not finite.
        ConfigError: An argument is out of its range.
        ModelError: The model has no blocks that run one after the other, or no layer to prune.
    """
    if not 0 <= sparsity_ratio < 1:
        raise ConfigError.field(prune_wanda.__name__, "sparsity_ratio", sparsity_ratio, "a number in [0, 1)")
    if (prune_n, prune_m) != (0, 0) and not 0 < prune_n < prune_m:
        raise ConfigError.field(
            prune_wanda.__name__, "prune_n", prune_n, f"0 < prune_n < prune_m={prune_m}, or 0 for both for no N:M"
        )
    technique = Wanda(
        sparsity_ratio,
        pattern=NInM(prune_n, prune_m) if prune_n else Block(1, 1),
        is_varied=use_variant,
        exchanges=dsnot,
    )
    return prune_by_blocks(model, dataloader, technique, nsamples=nsamples, device=device, low_mem_usage=low_mem_usage)
