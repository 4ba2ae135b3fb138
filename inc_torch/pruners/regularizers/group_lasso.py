"""Group lasso."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from inc_torch.pruners._base import REGULARIZERS


@final
@REGULARIZERS.register("group_lasso", summary="shortens each block by a constant")
@dataclass(frozen=True, slots=True)
class GroupLasso:
    """``w <- w * max(0, 1 - strength / ||w||)`` for each block: its norm shrinks by ``strength``, at most to 0.

    This is the proximal step of the penalty ``strength * sum of ||w||`` over blocks, which no weight grows by.

    Attributes:
        strength: Norm that a block loses at a step, 0 or more; not multiplied by a learning rate.

    Reference: Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006; Parikh and Boyd,
    Proximal Algorithms, 2014, section 6.5.4. INC 2.6.1 ``group_lasso`` divides by the norm of the gradient, so that
    weights without a gradient grow without bound.
    """

    strength: float

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        return (1 - self.strength / norms).clamp_(min=0).nan_to_num_()
