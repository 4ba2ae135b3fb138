"""Rounding a weight column by column, so that what is rounded later makes up for what was rounded before."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

from inc_torch.core.errors import ModelError
from inc_torch.quantizers._codes import SMALLEST_SCALE
from inc_torch.quantizers._float_codes import float_codes, float_values, greatest_value
from inc_torch.quantizers._spec import GptqSettings, WeightOnlyScheme
from inc_torch.quantizers._weight_only import RoundedWeight

__all__ = ["GptqWeight", "round_by_gptq"]

_BLOCK: Final = 128
"""Columns whose errors are handed on together, at most, unless settings say otherwise."""
_ATTEMPTS: Final = 8
"""How often the damping is multiplied by ten before a Hessian is given up."""


class GptqWeight(NamedTuple):
    """A weight as codes, and which group each column belongs to.

    Attributes:
        rounded: Codes ``[out, in]``, scales and zero points ``[out, groups]``.
        group_of: ``[in]``, int64: the group of each column. Neighbours share one, unless columns were taken in the
            order of their importance and groups were fitted on the way.
        values: ``[out, in]``, float32: what the codes stand for.
    """

    rounded: RoundedWeight
    group_of: torch.Tensor
    values: torch.Tensor


class _Grid(NamedTuple):
    scale: torch.Tensor
    zero: torch.Tensor


def round_by_gptq(
    weight: torch.Tensor, hessian: torch.Tensor, scheme: WeightOnlyScheme, settings: GptqSettings
) -> GptqWeight:
    """Round ``weight`` for inputs of this ``hessian``.

    Column after column is rounded; the error, over the diagonal of the inverse Hessian's Cholesky factor, is taken from
    the columns that are still to come, so that the output of the layer changes least. Grids are those of
    `round_to_nearest`, but symmetric integers have ``scale = 2 * max|w| / (2**bits - 1)``. A group's grid is fitted to
    its weights as they stand when its block of columns begins. A weight that is exactly 0 stays 0: a pruned layer keeps
    its zeros, but what is handed on to them is lost, so there may be little to win.

    Args:
        weight: ``[out, in]``, any floating dtype; it stays.
        hessian: ``[in, in]``: of inputs x the mean of x x^T, times any factor. An input that is always 0 makes its
            column 0.
        scheme: Bits, groups and symmetry.
        settings: Order, damping and blocks.

    Raises:
        ModelError: The Hessian has no Cholesky factor, even with more damping.

    Source: Frantar et al., GPTQ, arXiv:2210.17323; INC 2.6.1 ``gptq_args``, which reads ``percdamp`` under another
    name, so that it is always 0.01, has grids of half the width for rows without a negative weight, and fills zeros.

    Example:
        >>> weight = torch.tensor([[0.9, 0.4]])
        >>> hessian = torch.tensor([[1.0, 0.9], [0.9, 1.0]])  # two inputs that are nearly the same
        >>> scheme = WeightOnlyScheme(bits=2, group_size=-1)
        >>> round_by_gptq(weight, hessian, scheme, GptqSettings()).values
        tensor([[0.6000, 0.6000]])
    """
    work, second = weight.detach().to(torch.float32, copy=True), hessian.to(torch.float32, copy=True)
    columns = work.shape[1]
    dead = second.diagonal() == 0
    second.diagonal()[dead] = 1.0
    is_zero = work == 0  # pruned: zero it stays, and its error is handed on too
    work[:, dead] = 0.0
    length = columns if scheme.group_size == -1 else min(scheme.group_size, columns)
    fitted = {start: _fit(work[:, start : start + length], scheme) for start in range(0, columns, length)}
    order = torch.argsort(second.diagonal(), descending=True) if settings.act_order else torch.arange(columns)
    order = order.to(work.device)
    work, second, is_zero = work[:, order], second[order][:, order], is_zero[:, order]
    factor = _factor(second, settings.damping)
    places: list[int] = order.tolist()
    grids: list[_Grid] = []
    group_of = torch.zeros(columns, dtype=torch.int64)
    codes, values = torch.zeros_like(work), torch.zeros_like(work)
    size = settings.block_size or min(length, _BLOCK)
    for begin in range(0, columns, size):
        end = min(begin + size, columns)
        block, own = work[:, begin:end].clone(), factor[begin:end, begin:end]
        errors = torch.zeros_like(block)
        for column in range(begin, end):
            if settings.static_groups:
                group = places[column] // length
                grid = fitted[group * length]
            else:
                group = column // length
                if column % length == 0:
                    grids.append(_fit(work[:, column : column + length], scheme))
                grid = grids[group]
            group_of[places[column]] = group
            here = column - begin
            code = torch.where(is_zero[:, column], grid.zero, _encode(block[:, here], grid, scheme))
            value = (code - grid.zero) * grid.scale
            error = (block[:, here] - value) / own[here, here]
            block[:, here:] -= error.unsqueeze(1) * own[here, here:]
            codes[:, column], values[:, column], errors[:, here] = code, value, error
        work[:, end:] -= errors @ factor[begin:end, end:]
    back = torch.argsort(order)
    kept = list(fitted.values()) if settings.static_groups else grids
    return GptqWeight(_rounded(codes[:, back], kept, scheme), group_of.to(work.device), values[:, back])


def _fit(values: torch.Tensor, scheme: WeightOnlyScheme) -> _Grid:
    low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
    if scheme.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    is_zero = high - low < SMALLEST_SCALE
    low, high = torch.where(is_zero, -1.0, low), torch.where(is_zero, 1.0, high)
    if scheme.codes != "int":
        return _Grid(high / greatest_value(scheme.codes), torch.zeros_like(high))
    scale = (high - low) / (2**scheme.bits - 1)
    zero = torch.full_like(scale, 2 ** (scheme.bits - 1)) if scheme.symmetric else torch.round(-low / scale)
    return _Grid(scale, zero)


def _encode(values: torch.Tensor, grid: _Grid, scheme: WeightOnlyScheme) -> torch.Tensor:
    """Codes as floats; of a table the numbers themselves."""
    if scheme.codes != "int":
        return float_values(float_codes(values / grid.scale, scheme.codes), scheme.codes)
    return (torch.round(values / grid.scale) + grid.zero).clamp_(0, 2**scheme.bits - 1)


def _factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the damped Hessian."""
    diagonal = hessian.diagonal().mean()
    for attempt in range(_ATTEMPTS):
        damped = hessian.clone()
        damped.diagonal().add_(damping * 10**attempt * diagonal)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper: torch.Tensor
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
    message = (
        "The inputs of a layer have a Hessian without a Cholesky factor: expected finite inputs that differ. Give more "
        "calibration data, or a greater percdamp in gptq_args."
    )
    raise ModelError(message)


def _rounded(codes: torch.Tensor, grids: list[_Grid], scheme: WeightOnlyScheme) -> RoundedWeight:
    scales, zeros = (torch.stack([grid[place] for grid in grids], dim=1) for place in (0, 1))
    if scheme.codes != "int":
        return RoundedWeight(float_codes(codes, scheme.codes), scales, None)
    if scheme.symmetric:
        return RoundedWeight((codes - 2 ** (scheme.bits - 1)).to(torch.int8), scales, None)
    return RoundedWeight(codes.to(torch.uint8), scales, zeros.to(torch.uint8))
