"""One pruner at work: scores, masks and the moment to change them. Knows no hooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import nn

from inc_torch.core.errors import InexactWarning, LoopWarning, StateError
from inc_torch.core.report import Finding
from inc_torch.core.state import check_keys
from inc_torch.core.user_warning import warn_user
from inc_torch.pruners._base import PrunerSpec
from inc_torch.pruners._layers import Layer, select_layers
from inc_torch.pruners._select import count_of
from inc_torch.pruners._window import PruningWindow

__all__ = ["Pruner"]


@final
class Pruner:
    """The layers that share one `PrunerSpec`.

    Scores of all layers lie in one flat buffer, so that smoothing, ranking and the check for finite values are
    one operation each. Masks are bool, one entry a pattern unit (an element for N:M), and are multiplied into the
    weights in place.

    Args:
        spec: What to prune, how, and when.
        model: The model before anything in it is rewritten.
        group: Number of the pruner, for the report.
    """

    def __init__(self, spec: PrunerSpec, model: nn.Module, group: int = 0) -> None:
        self.spec = spec
        self.group = group
        self.window = PruningWindow(spec)
        selection = select_layers(model, spec)
        self.layers: tuple[Layer, ...] = selection.layers
        self.left_dense = selection.left_dense
        self.bind(model)
        self.stored_masks: dict[str, torch.Tensor] = {}
        self._score_sizes = [_numel(layer.grid.score_shape) for layer in self.layers]
        self._scores: torch.Tensor | None = None
        self._initial = 0.0
        self._last_step = -1
        self._postponed: float | None = None
        self._told: set[str] = set()

    def __repr__(self) -> str:
        spec = self.spec
        return f"Pruner({type(spec.criterion).__name__}, {spec.pattern_text}, {spec.target}, {len(self.layers)} layers)"

    def bind(self, model: nn.Module) -> None:
        """Find the layers' modules again by name, after others may have been exchanged."""
        self.modules: dict[str, nn.Module] = {layer.name: model.get_submodule(layer.name) for layer in self.layers}

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Masks shaped like the weights, bool, True keeps, by layer name; layers never pruned are all True."""
        return {
            layer.name: layer.grid.expand(self.stored_masks[layer.name])
            if layer.name in self.stored_masks
            else torch.ones_like(self.weight(layer), dtype=torch.bool)
            for layer in self.layers
        }

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """Current scores in the pattern's shape, by layer name; empty before the first were taken."""
        if self._scores is None:
            return {}
        parts = torch.split(self._scores, self._score_sizes)
        return {layer.name: part.view(layer.grid.score_shape) for layer, part in zip(self.layers, parts, strict=True)}

    @property
    def sparsity(self) -> float:
        """Share of units pruned by the current masks (of elements for N:M)."""
        units = sum(layer.grid.units for layer in self.layers)
        return self._pruned_units() * self.spec.pattern.density / units

    def weight(self, layer: Layer) -> torch.Tensor:
        """The Parameter under pruning; looked up afresh because wrappers exchange Parameters."""
        weight = self.modules[layer.name].weight
        if not isinstance(weight, torch.Tensor):
            message = f"Layer {layer.name!r} lost its weight Parameter during pruning; it holds {type(weight)!r} now."
            raise StateError(message)
        return weight

    @torch.no_grad()
    def begin_step(self, step: int) -> float | None:
        """Change masks if ``step`` is an update step; masked at once, before the forward.

        Returns:
            The share asked for, or None if nothing was to change. Asking again at the same step changes nothing.
        """
        if step == self._last_step:
            return None
        is_first, self._last_step = self._last_step < 0, step
        if (self.spec.locks_zeros and step == self.spec.start) or (self.spec.keeps_initial_zeros and is_first):
            self._lock_zeros()
        if self.spec.locks_zeros:
            return None
        ratio = self.window.ratio_at(step, self._initial)
        if ratio is None:
            return None
        pruned = self._pruned_units()
        has_enough = self.spec.keeps_initial_zeros and pruned >= self._units_in(ratio)
        if has_enough or pruned > self._units_in(self.spec.target):
            return ratio
        self._postponed = None
        if self.spec.criterion.needs_gradient and not self._has_scores():
            self._postpone(ratio, step)
        else:
            self._update_masks(ratio)
            self.mask_weights()
        return ratio

    @torch.no_grad()
    def collect_scores(self) -> None:
        """Take the scores of this step from complete gradients; carry out an update that waited for them.

        Steps with non-finite gradients leave the scores as they were.
        """
        if not self.spec.criterion.needs_gradient or self.spec.locks_zeros:
            return
        fresh = self._fresh_scores(self._gradients())
        if fresh is None:
            return
        momentum = self.spec.criterion.momentum
        self._scores = fresh if self._scores is None or momentum == 0 else self._scores.mul_(momentum).add_(fresh)
        if self._postponed is not None and self._has_scores():
            self._update_masks(self._postponed)
            self._postponed = None

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Write the zeros of the masks into the weights, in place."""
        for layer in self.layers:
            mask = self.stored_masks.get(layer.name)
            if mask is not None:
                layer.grid.apply_(self.weight(layer), mask)

    @torch.no_grad()
    def mask_momentum(self, optimizer: torch.optim.Optimizer) -> None:
        """Clear the momentum of pruned weights, so that it cannot push a weight that comes back."""
        for layer in self.layers:
            mask = self.stored_masks.get(layer.name)
            if mask is None:
                continue
            weight = self.weight(layer)
            state = optimizer.state.get(weight, {})
            for key in ("momentum_buffer", "exp_avg"):
                # Optimizers that keep their momentum in another space (low rank, packed) keep it as it is.
                if isinstance(buffer := state.get(key), torch.Tensor) and buffer.shape == weight.shape:
                    layer.grid.apply_(buffer, mask)

    def warn_if_missed(self, steps: int) -> None:
        """Say once that training ended before the goal was reached."""
        # Caps and the local scope round down layer by layer.
        share = self.window.goal / self.spec.pattern.density
        wanted = sum(count_of(share, layer.grid.units) for layer in self.layers)
        if self.spec.locks_zeros or self._pruned_units() >= wanted:
            return
        message = (
            f"Pruning reached {self.sparsity:.4f} instead of {self.window.goal} ({self!r}): training ended after "
            f"{steps} optimizer steps, and the last mask update is due at step {self.spec.end} "
            f"(start_step={self.spec.start}, pruning_frequency={self.spec.frequency})."
        )
        warn_user(message, InexactWarning)

    def findings(self) -> Iterable[Finding]:
        """What was asked of each layer, counted as the target is: in units, in elements for N:M.

        A lock asks for the zeros that it found.
        """
        for layer in self.layers:
            mask = self.stored_masks.get(layer.name)
            units = _numel(layer.grid.mask_shape)
            pruned = 0 if mask is None else units - int(torch.count_nonzero(mask))
            yield Finding(
                layer.name,
                pattern=self.spec.pattern_text,
                sparsity=pruned / units if self.spec.locks_zeros else self.spec.target,
                group=self.group,
                units=units,
                pruned_units=pruned,
                note="zeros locked" if self.spec.locks_zeros else None,
            )
        yield from self.left_dense

    def state_dict(self) -> dict[str, Any]:
        """Masks and scores by parameter name, and how far the schedule is."""
        scores = self.scores
        return {
            "masks": {
                layer.parameter_name: self.stored_masks[layer.name].clone()
                for layer in self.layers
                if layer.name in self.stored_masks
            },
            "scores": {layer.parameter_name: scores[layer.name].clone() for layer in self.layers if scores},
            "initial": self._initial,
            "last_step": self._last_step,
            "postponed": self._postponed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            StateError: Another set of layers, or a shape or dtype that does not fit.
        """
        check_keys(repr(self), state, {"masks", "scores", "initial", "last_step", "postponed"})
        masks, scores = state["masks"], state["scores"]
        by_parameter = {layer.parameter_name: layer for layer in self.layers}
        for kind, tensors in (("mask", masks), ("score", scores)):
            for name, tensor in tensors.items():
                _check_tensor(kind, name, tensor, by_parameter.get(name))
            if tensors and len(tensors) != len(self.layers):
                missing = sorted(set(by_parameter) - set(tensors))
                message = f"The saved state has no pruning {kind} for {missing}; it is of another run or damaged."
                raise StateError(message)
        device = self.weight(self.layers[0]).device
        self.stored_masks = {
            by_parameter[name].name: mask.to(self.weight(by_parameter[name]).device).clone()
            for name, mask in masks.items()
        }
        parts = [scores[layer.parameter_name].flatten().to(device) for layer in self.layers] if scores else []
        self._scores = torch.cat(parts) if parts else None
        self._initial = float(state["initial"])
        self._last_step = int(state["last_step"])
        self._postponed = state["postponed"]

    def _pruned_units(self) -> int:
        return sum(
            layer.grid.pruned_units(self.stored_masks[layer.name])
            for layer in self.layers
            if layer.name in self.stored_masks
        )

    def _units_in(self, share: float) -> int:
        """Whole units in a share of all of them (of their elements for N:M)."""
        return count_of(share / self.spec.pattern.density, sum(layer.grid.units for layer in self.layers))

    def _has_scores(self) -> bool:
        """Whether scores were taken that say anything: where all gradients were zero, any unit is like any other."""
        return self._scores is not None and bool(self._scores.amax() > 0)

    def _lock_zeros(self) -> None:
        for layer in self.layers:
            self.stored_masks[layer.name] = layer.grid.zeros_of(self.weight(layer))
        self._initial = self.sparsity

    def _update_masks(self, ratio: float) -> None:
        if not self.spec.criterion.needs_gradient:
            self._scores = self._fresh_scores([self.weight(layer) for layer in self.layers])
        if self._scores is None:
            return
        parts = torch.split(self._scores, self._score_sizes)
        shaped = [part.view(layer.grid.score_shape) for layer, part in zip(self.layers, parts, strict=True)]
        sizes = [layer.grid.units for layer in self.layers]
        units = self._scores
        if sizes != self._score_sizes:
            units = torch.cat([layer.grid.unit_scores(own) for layer, own in zip(self.layers, shaped, strict=True)])
        density = self.spec.pattern.density
        keep = self.spec.allocation.keep(units, sizes, ratio / density, self.spec.limits.scaled(1 / density))
        for layer, own, chosen in zip(self.layers, shaped, torch.split(keep, sizes), strict=True):
            self.stored_masks[layer.name] = layer.grid.mask(own, chosen).to(self.weight(layer).device)
        if not self.spec.criterion.needs_gradient:
            self._scores = None

    def _gradients(self) -> list[torch.Tensor | None]:
        gradients = [self.weight(layer).grad for layer in self.layers]
        missing = [layer.name for layer, gradient in zip(self.layers, gradients, strict=True) if gradient is None]
        if missing:
            self._warn_once(
                "gradient",
                f"No gradient for {missing[0]!r} ({len(missing)} of {len(gradients)} pruned layers) when scores were "
                "taken: it counts as zero in that step. Call on_before_optimizer_step between backward and "
                "zero_grad, and do not freeze layers that are pruned.",
            )
        return gradients

    def _fresh_scores(self, gradients: list[torch.Tensor | None]) -> torch.Tensor | None:
        """Scores of this moment for all layers, flat float32, or None if they are of no use."""
        if all(gradient is None for gradient in gradients):
            return None
        device = self.weight(self.layers[0]).device
        fresh = torch.empty(sum(self._score_sizes), dtype=torch.float32, device=device)
        for layer, gradient, out in zip(self.layers, gradients, torch.split(fresh, self._score_sizes), strict=True):
            if gradient is None:
                out.zero_()
                continue
            importance = self.spec.criterion.score(self.weight(layer).float(), gradient.float())
            out.view(layer.grid.score_shape).copy_(layer.grid.reduce(importance))
        if not torch.isfinite(fresh.sum()) and not torch.isfinite(fresh).all():
            bad = [part.isfinite().all().item() for part in torch.split(fresh, self._score_sizes)].index(False)
            self._warn_once(
                "finite",
                f"Non-finite values in the gradient or weight of {self.layers[bad].name!r}: this step does not enter "
                "the pruning scores. With a gradient scaler that is expected now and then.",
            )
            return None
        return fresh

    def _postpone(self, ratio: float, step: int) -> None:
        if ratio == 0:
            return
        self._postponed = ratio
        self._warn_once(
            "postponed",
            f"Pruning criterion {type(self.spec.criterion).__name__} has seen no gradient yet, or only zeros, at step "
            f"{step}, where {ratio:.3f} is to be pruned: it will be at the first update that has gradients. "
            "Set start_step to 1 or more to silence this, and call on_before_optimizer_step in every step.",
        )

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._told:
            self._told.add(topic)
            warn_user(message, LoopWarning)


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _check_tensor(kind: str, name: str, tensor: torch.Tensor, layer: Layer | None) -> None:
    if layer is None:
        message = f"The saved state has a pruning {kind} for {name!r}, which this run does not prune."
        raise StateError(message)
    is_mask = kind == "mask"
    shape = layer.grid.mask_shape if is_mask else layer.grid.score_shape
    if tuple(tensor.shape) != shape:
        message = f"The saved pruning {kind} of {name!r} has shape {tuple(tensor.shape)}; this run needs {shape}."
        raise StateError(message)
    dtype = torch.bool if is_mask else torch.float32
    if tensor.dtype != dtype:
        message = f"The saved pruning {kind} of {name!r} has dtype {tensor.dtype}; this run needs {dtype}."
        raise StateError(message)
