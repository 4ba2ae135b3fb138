"""Scores of all layers of a pruner, from weights and gradients as they are at this moment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import final

import torch

from inc_torch.pruners._base import PrunerSpec, Reduction
from inc_torch.pruners._layers import Layer
from inc_torch.pruners._layout import CopiesLayout, Layout
from inc_torch.pruners._one_pass import OnePass
from inc_torch.pruners._parts import Part
from inc_torch.pruners._weights import Weights

__all__ = ["Scoring"]


@final
class Scoring:
    """Computes scores: flat float32, layer by layer. Calls are collectives where weights are sharded.

    Args:
        spec: What counts, and how elements become units.
        layers: The layers.
        weights: Where their weights and gradients are found.
        layout: How they lie on the processes.
        warn_once: Called with a topic and a message.

    Attributes:
        sizes: Scores of each layer that are here.
    """

    def __init__(
        self,
        spec: PrunerSpec,
        layers: Sequence[Layer],
        weights: Weights,
        layout: Layout,
        warn_once: Callable[[str, str], None],
    ) -> None:
        self._spec, self._layers, self._weights, self._layout = spec, layers, weights, layout
        self._warn_once = warn_once
        self.sizes = [math.prod(part.grid.score_shape) for part in layout.parts]
        self._one_pass = OnePass(spec.criterion, spec.reduction, layout.parts, self.sizes)
        self._size = sum(weights.of(layer).numel() for layer in layers)

    def smoothed(self, before: torch.Tensor | None) -> torch.Tensor | None:
        """Scores of the gradients that there are, with what is kept of those ``before``.

        Returns:
            The scores, in whose place ``before`` may lie; None, and ``before`` is unchanged, if they are of no use.
        """
        gradients = self._gradients()
        smoothed = self._smoothed_in_one_pass(gradients, before)
        if smoothed is not None:
            return smoothed
        fresh = self._fresh(gradients)
        if fresh is None:
            return None
        if before is not None and self._spec.criterion.momentum:
            fresh.add_(before, alpha=self._spec.criterion.momentum)
        return fresh.to(torch.bfloat16) if self._spec.has_short_scores else fresh

    def of_weights(self) -> torch.Tensor | None:
        """Scores of the weights, for a criterion that needs no gradient; None if they are not finite."""
        return self._fresh([self._weights.used(layer) for layer in self._layers])

    def reduced(self, importances: Iterable[torch.Tensor], reduction: Reduction | None = None) -> torch.Tensor:
        """Scores from element importances, layer by layer, flat float32."""
        fresh = self._empty()
        parts = zip(self._layout.parts, importances, torch.split(fresh, self.sizes), strict=True)
        for part, importance, out in parts:
            out.view(part.grid.score_shape).copy_(part.reduce(importance, reduction))
        return fresh

    def _gradients(self) -> list[torch.Tensor | None]:
        gradients = [self._weights.gradient(layer) for layer in self._layers]
        missing = [layer.name for layer, gradient in zip(self._layers, gradients, strict=True) if gradient is None]
        if missing:
            self._warn_once(
                "gradient",
                f"No gradient for {missing[0]!r} ({len(missing)} of {len(gradients)} pruned layers) when scores were "
                "taken: it counts as zero in that step. Call on_before_optimizer_step between backward and "
                "zero_grad, and do not freeze layers that are pruned.",
            )
        return gradients

    def _smoothed_in_one_pass(
        self, gradients: Sequence[torch.Tensor | None], before: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Scores with those of this step, by compiled kernels; None where they cannot, or a value is not finite."""
        known = [gradient for gradient in gradients if gradient is not None]
        if not isinstance(self._layout, CopiesLayout) or self._spec.has_short_scores or len(known) < len(gradients):
            return None
        used = self._weights.used
        return self._one_pass.smooth(lambda: zip(map(used, self._layers), known, strict=True), self._size, before)

    def _fresh(self, gradients: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        """Scores of this moment for all layers, flat float32, or None if they are of no use."""
        fresh = self._empty()
        own = zip(self._layers, self._layout.parts, gradients, torch.split(fresh, self.sizes), strict=True)
        for layer, part, gradient, out in own:
            self._score(layer, part, gradient, out)
        is_finite = bool(torch.isfinite(fresh.sum())) or bool(torch.isfinite(fresh).all())
        has_gradient = any(gradient is not None for gradient in gradients)
        has_gradient, is_spoilt = self._layout.join_scores_(fresh, [has_gradient, not is_finite], self._spec.reduction)
        if is_spoilt:
            scored = zip(self._layers, torch.split(fresh, self.sizes), strict=True)
            bad = next(
                (repr(layer.name) for layer, part in scored if not part.isfinite().all()), "another process's shard"
            )
            self._warn_once(
                "finite",
                f"Non-finite values in the gradient or weight of {bad}: this step does not enter "
                "the pruning scores. With a gradient scaler that is expected now and then.",
            )
        if self._spec.reduction == "net":
            fresh.abs_()
        return fresh if has_gradient and not is_spoilt else None

    def _score(self, layer: Layer, part: Part, gradient: torch.Tensor | None, out: torch.Tensor) -> None:
        """Write the scores of one layer at this moment, flat; a gradient that is missing counts as zero."""
        if gradient is None:
            out.zero_()
            return
        criterion, weight = self._spec.criterion, self._weights.used(layer)
        if not self._one_pass.score(part, weight, gradient, out):
            importance = criterion.score(weight.float(), gradient.float())
            out.view(part.grid.score_shape).copy_(part.reduce(importance))

    def _empty(self) -> torch.Tensor:
        """Memory for the scores of all layers, flat float32."""
        return torch.empty(sum(self.sizes), dtype=torch.float32, device=self._weights.of(self._layers[0]).device)
