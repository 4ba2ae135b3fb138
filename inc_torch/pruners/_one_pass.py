"""Scores of a step, smoothed into those before it, in one pass over weights and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import final

import torch
from torch import nn

from inc_torch.pruners._base import Criterion, Reduction
from inc_torch.pruners._compiled import ScoreSteps
from inc_torch.pruners._matrix import DenseBlocks
from inc_torch.pruners._parts import Part

__all__ = ["OnePass"]

_Layers = Iterable[tuple[torch.Tensor, torch.Tensor]]


@final
class OnePass:
    """Makes new scores by compiled kernels, and leaves the old ones as they are if a value is not finite.

    Where a score stands for two weights or more, new scores go into a second buffer, and the two are exchanged if all
    is finite; it lasts, so that no memory is taken anew in each step. Scores of single weights are too big for that:
    a first pass over weights and gradients finds out whether all is finite, a second one writes in place. That pass
    forms the products as the second one does, so that one which overflows is seen too.

    Args:
        criterion: What counts; whatever is not a product of weight and gradient is left to torch.
        reduction: How elements become scores.
        parts: What this process holds of each layer: all of it.
        sizes: Scores of each layer.
    """

    def __init__(self, criterion: Criterion, reduction: Reduction, parts: Sequence[Part], sizes: Sequence[int]) -> None:
        self._criterion, self._reduction, self._parts, self._sizes = criterion, reduction, parts, sizes
        self._spare: torch.Tensor | None = None

    def smooth(self, layers: Callable[[], _Layers], size: int, scores: torch.Tensor | None) -> torch.Tensor | None:
        """Return ``momentum * scores`` plus the scores of this step.

        Args:
            layers: Gives weight and gradient of each layer, in order; called once or twice.
            size: Values in all weights.
            scores: Those of the steps before, flat float32, or None. Its memory may be used for the result, or again
                at the next call, so nobody else may hold it.

        Returns:
            The new scores, or None if no kernel can make them or they are not finite; ``scores`` is then unchanged.
        """
        if not self._criterion.factors:
            return None
        before = scores if self._criterion.momentum else None
        if 2 * sum(self._sizes) > size:
            if not self._write(layers(), None, None):
                return None
            output = self._new() if scores is None else scores
            self._write(layers(), output, before)
            return output
        output = self._new() if self._spare is None else self._spare
        is_done = self._write(layers(), output, before)
        self._spare = scores if is_done else output
        return output if is_done else None

    def score(self, part: Part, weight: torch.Tensor, gradient: torch.Tensor, output: torch.Tensor) -> bool:
        """Write the scores of one layer at this moment, flat; whether kernels can do that."""
        steps = ScoreSteps(self._reduction)
        can = steps.add(self._factors(part, weight, gradient), output)
        steps.run()
        return can

    def _new(self) -> torch.Tensor:
        return torch.empty(sum(self._sizes), dtype=torch.float32)

    def _write(self, layers: _Layers, output: torch.Tensor | None, before: torch.Tensor | None) -> bool:
        """Whether it was done and all was finite; nothing is written if a layer is not for kernels."""
        steps = ScoreSteps(self._reduction, self._criterion.momentum, len(self._parts))
        is_finite, begin = True, 0
        for part, size, (weight, gradient) in zip(self._parts, self._sizes, layers, strict=True):
            own, old = (None if flat is None else flat[begin : begin + size] for flat in (output, before))
            if not steps.add(self._factors(part, weight, gradient), own, old):
                return False
            if not isinstance(weight, nn.Parameter):  # made for the moment, such as one with adapters added
                is_finite &= steps.run()
            begin += size
        return steps.run() and is_finite

    def _factors(self, part: Part, weight: torch.Tensor, gradient: torch.Tensor) -> list[DenseBlocks | None]:
        """What the criterion multiplies; nothing if it does something else."""
        inputs = {"weight": weight, "gradient": gradient}
        return [part.dense_blocks(inputs[name]) for name in self._criterion.factors]
