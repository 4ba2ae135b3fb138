"""Codes of four bits that stand for numbers of a table instead of even steps.

A weight divided by its scale takes the nearest number of the table, and of two that are equally near the lower one.
Every table begins and ends with its greatest magnitude, has 0, and gives it the code 0, so a pruned weight stays 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Final

import torch

from inc_torch.quantizers._spec import Codes

__all__ = ["TABLES", "float_codes", "float_values", "greatest_value"]

_NF4: Final = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

TABLES: Final[Mapping[Codes, Mapping[float, int]]] = {
    "nf4": dict(zip(_NF4, (7, 1, 2, 3, 4, 5, 6, 0, -8, -7, -6, -5, -4, -3, -2, -1), strict=True)),
    "fp4_e2m1": dict(
        zip(
            (-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.0625, 0.0, 0.0625, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
            (-1, -2, -3, -4, -5, -6, -7, 0, 1, 2, 3, 4, 5, 6, 7),
            strict=True,
        )
    ),
    "fp4_e2m1_bnb": dict(
        zip(
            (-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -0.0625, 0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0),
            (-5, -6, -3, -4, -1, -2, -7, 0, 1, 6, 7, 4, 5, 2, 3),
            strict=True,
        )
    ),
}
"""By kind: the numbers in their order, and the code of each, as four bits in two's complement.

The constants of ``nf4`` are those of Dettmers et al., QLoRA, arXiv:2305.14314. Source of the codes: INC 2.6.1.
"""

_CODES: Final = 16


def greatest_value(kind: Codes) -> float:
    """The greatest number of a table; the least is that below 0.

    Example:
        >>> greatest_value("nf4"), greatest_value("fp4_e2m1_bnb")
        (1.0, 12.0)
    """
    return max(TABLES[kind])


def float_codes(values: torch.Tensor, kind: Codes) -> torch.Tensor:
    """The codes of the numbers that are nearest to ``values``, int8; what lies outside takes the first or the last.

    Example:
        >>> float_codes(torch.tensor([12.0, 0.01, -2.5, 1.03125]), "fp4_e2m1_bnb").tolist()  # the last is a midpoint
        [3, 0, -1, 1]
    """
    numbers = list(TABLES[kind])
    midpoints = torch.tensor([(low + high) / 2 for low, high in pairwise(numbers)], device=values.device)
    codes = torch.tensor(list(TABLES[kind].values()), dtype=torch.int8, device=values.device)
    return codes[torch.bucketize(values.contiguous(), midpoints)]


def float_values(codes: torch.Tensor, kind: Codes) -> torch.Tensor:
    """The numbers that codes stand for, float32; bits above the fourth do not matter.

    Example:
        >>> float_values(torch.tensor([3, 0, -1, 1]), "fp4_e2m1_bnb").tolist()
        [12.0, 0.0, -3.0, 0.0625]
    """
    numbers = [0.0] * _CODES
    for number, code in TABLES[kind].items():
        numbers[code % _CODES] = number
    return torch.tensor(numbers, device=codes.device)[(codes & (_CODES - 1)).to(torch.int64)]
