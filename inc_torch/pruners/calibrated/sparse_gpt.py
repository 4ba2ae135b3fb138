"""SparseGPT: prune a layer column by column, and let the columns behind make up for what was lost."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from inc_torch.core.errors import CalibrationError, ConfigError
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.pruners._base import Pattern
from inc_torch.pruners._select import count_of, keep_largest
from inc_torch.pruners.calibrated._blocks import BlockLayer
from inc_torch.pruners.calibrated._choice import pattern_finding, smallest_in_rows
from inc_torch.pruners.calibrated._statistics import Hessian
from inc_torch.pruners.calibrated._walk import Technique, prune_by_blocks
from inc_torch.pruners.patterns.block import Block
from inc_torch.pruners.patterns.n_in_m import NInM

__all__ = ["SparseGPT", "prune_sparse_gpt"]

STRIPE = 128
DAMPING = 0.01
DAMPING_TRIES = 4


@final
@dataclass(frozen=True, slots=True)
class SparseGPT(Technique[Hessian]):
    """The pruning of one layer ``y = W x`` with the least error on the calibration data, nearly.

    With the Hessian ``H`` of the layer's inputs, damped by ``0.01 * mean(diag H)``, and the upper triangular ``U`` with
    ``U^T U = H^-1``, columns are gone through from left to right in stripes of 128:

        saliency    s_ij = w_ij^2 / U_jj^2
        pruned      the smallest of the stripe, or N of each M columns of a row
        error       e_i = w_ij / U_jj where pruned, else 0
        the others  w_ik <- w_ik - e_i * U_jk   for k > j

    Computed in float32, stored in the weight's dtype. Exactly ``floor(sparsity * values)`` weights of a layer are
    pruned, in each stripe its share; of equal saliencies the first goes first. Inputs that were always 0 have
    saliency 0.

    Source: Frantar and Alistarh 2023, arXiv 2301.00774. INC 2.6.1 differs: it prunes one weight too many in each
    stripe, zeroes all weights of inputs that were always 0, prunes N columns of a last group with fewer than M (here it
    stays dense), and gives up where the Hessian is not positive (here it is damped more).

    Attributes:
        pattern: 1x1 or N:M.
        sparsity: Share of weights to prune with 1x1, in [0, 1). N:M says it itself.
    """

    pattern: Pattern
    sparsity: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, NInM) and self.pattern != Block(1, 1):
            raise ConfigError.field(type(self).__name__, "pattern", self.pattern, "1x1 or N:M")
        if not 0 <= self.sparsity < 1:
            raise ConfigError.field(type(self).__name__, "sparsity", self.sparsity, "a number in [0, 1)")

    def watch(self, width: int, device: torch.device) -> Hessian:
        """What is to be remembered of the inputs of a layer."""
        return Hessian(width, device)

    def prune(self, layer: BlockLayer, seen: Hessian) -> Finding:
        """Prune a layer in place.

        Raises:
            CalibrationError: No damping makes its Hessian positive.
        """
        matrix = layer.matrix()
        try:
            pruned = self.pruned(matrix.float(), seen.matrix())
        except CalibrationError as error:
            error.add_note(f"While pruning layer {layer.name!r}.")
            raise
        matrix.copy_(pruned)
        return pattern_finding(layer.name, matrix, self.pattern, self.sparsity)

    def pruned(self, weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
        """Return the pruned weight.

        Args:
            weight: [out, in], float32.
            hessian: [in, in], float32.

        Raises:
            CalibrationError: No damping makes ``hessian`` positive.

        Example:
            >>> weight = torch.tensor([[1.0, 2.0, -4.0, 3.0]])
            >>> SparseGPT(NInM(2, 4)).pruned(weight, torch.eye(4))
            tensor([[ 0.,  0., -4.,  3.]])
        """
        is_dead = hessian.diagonal() == 0
        factor = inverse_factor(hessian)
        scale = factor.diagonal().square().reciprocal().masked_fill(is_dead, 0.0)
        result = weight.clone()
        columns = weight.shape[1]
        width = STRIPE
        if isinstance(self.pattern, NInM):
            width = max(STRIPE // self.pattern.group, 1) * self.pattern.group
        for start in range(0, columns, width):
            end = min(start + width, columns)
            self._prune_stripe(result, factor, scale, start, end)
        return result

    def _prune_stripe(
        self, result: torch.Tensor, factor: torch.Tensor, scale: torch.Tensor, start: int, end: int
    ) -> None:
        """Prune columns ``start`` to ``end`` in place, and change all behind them."""
        stripe, inner = result[:, start:end], factor[start:end, start:end]
        pruned = self._cheapest(result, scale, start, end)
        errors = torch.zeros_like(stripe)
        for column in range(end - start):
            if isinstance(self.pattern, NInM) and column % self.pattern.group == 0:
                group = slice(column, min(column + self.pattern.group, end - start))
                if group.stop - group.start == self.pattern.group:
                    saliency = stripe[:, group].square() * scale[start:end][group]
                    pruned[:, group] = smallest_in_rows(saliency, self.pattern.pruned)
            error = stripe[:, column].masked_fill(~pruned[:, column], 0.0) / inner[column, column]
            stripe[:, column].masked_fill_(pruned[:, column], 0.0)
            stripe[:, column + 1 :].addr_(error, inner[column, column + 1 :], alpha=-1)
            errors[:, column] = error
        result[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1)

    def _cheapest(self, result: torch.Tensor, scale: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """What 1x1 prunes of a stripe; nothing yet of N:M, which chooses when it comes to a group."""
        stripe = result[:, start:end]
        if isinstance(self.pattern, NInM):
            return torch.zeros_like(stripe, dtype=torch.bool)
        rows = stripe.shape[0]
        count = count_of(self.sparsity, rows * end) - count_of(self.sparsity, rows * start)
        saliency = stripe.square() * scale[start:end]
        return ~keep_largest(saliency.flatten(), count).view(stripe.shape)


def inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular ``U`` with ``U^T U = (H + d I)^-1``, ``d = 0.01 * mean(diag H)``.

    If rounding left ``H + d I`` not positive, ``d`` is taken ten times as large, up to three times. Inputs that were
    always 0 get the mean for their diagonal, and do not count in it.

    Args:
        hessian: [n, n], symmetric.

    Raises:
        CalibrationError: ``H`` is not positive after all that.
    """
    diagonal = hessian.diagonal()
    is_dead = diagonal == 0
    mean = diagonal[~is_dead].mean() if not bool(is_dead.all()) else diagonal.new_ones(())
    damped = hessian.clone()
    damped.diagonal().masked_fill_(is_dead, mean)
    damping = 0.0
    for power in range(DAMPING_TRIES):
        damped.diagonal().add_((DAMPING * 10**power - damping) * mean)
        damping = DAMPING * 10**power
        # H = V V^T with V upper triangular is what Cholesky gives from the other end; then U = V^-1.
        lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not int(info):
            unit = torch.eye(len(damped), dtype=damped.dtype, device=damped.device)
            factor: torch.Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), unit, upper=True)
            return factor
    message = (
        f"SparseGPT cannot invert the Hessian of the inputs, {tuple(hessian.shape)}: not positive even after adding "
        f"{damping:g} of its mean diagonal {float(mean):.3g} to the diagonal. Expected inputs of moderate size; give "
        "more calibration data, or prune with Wanda, which needs no inverse."
    )
    raise CalibrationError(message)


def prune_sparse_gpt(
    model: nn.Module,
    dataloader: Iterable[object],
    pattern: Pattern,
    sparsity: float = 0.5,
    *,
    layers: Collection[str] | None = None,
    nsamples: int | None = None,
    device: str | torch.device | None = None,
    low_mem_usage: bool | None = None,
) -> CompressionReport:
    """Prune the blocks of a transformer by SparseGPT, in place, see `SparseGPT` and `prune_by_blocks`.

    Args:
        model: A model whose blocks are in an `nn.ModuleList`.
        dataloader: Batches of inputs, about 128 sequences in all. Run through once.
        pattern: 1x1 or N:M, see `inc_torch.pruners.parse_pattern`.
        sparsity: Share of weights to prune in each layer with 1x1, in [0, 1). N:M says it itself.
        layers: Names of the layers to prune; None is all nn.Linear and Conv1D layers in the blocks.
        nsamples: Batches are taken until they hold this many samples; None takes all.
        device: Where blocks run; None is where they are.
        low_mem_usage: False moves the whole model to ``device`` at once; else each block goes there and comes back.

    Returns:
        The report; it is not attached to the model.

    Raises:
        CalibrationError: There is no batch, or the inputs of a layer are not finite or have no usable Hessian.
        ConfigError: An argument is out of its range.
        ModelError: The model has no blocks that run one after the other, or no layer to prune.
    """
    return prune_by_blocks(
        model,
        dataloader,
        SparseGPT(pattern, sparsity),
        layers=layers,
        nsamples=nsamples,
        device=device,
        low_mem_usage=low_mem_usage,
    )
