"""One pruner at work: scores, masks and the moment to change them. Knows no hooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import nn

from inc_torch.core.errors import InexactWarning, LoopWarning, StateError
from inc_torch.core.hooks import Phase, Progress
from inc_torch.core.ranks import Ranks
from inc_torch.core.report import Finding
from inc_torch.core.sharding import held
from inc_torch.core.state import check_keys
from inc_torch.core.user_warning import warn_user
from inc_torch.pruners._base import PrunerSpec, Ranking
from inc_torch.pruners._bonds import Bonds
from inc_torch.pruners._layers import Layer, select_layers
from inc_torch.pruners._layout import CopiesLayout, Layout
from inc_torch.pruners._momentum import moves_values_alone
from inc_torch.pruners._parts import Part
from inc_torch.pruners._progressive import Goal
from inc_torch.pruners._select import count_of
from inc_torch.pruners._weights import Weights, is_sharded
from inc_torch.pruners._window import PruningWindow

__all__ = ["Pruner"]

_ALL_RANKS = Ranks()


@final
class Pruner:
    """The layers that share one `PrunerSpec`.

    Scores of all layers lie in one flat buffer, so that smoothing, ranking and the check for finite values are
    one operation each. Masks are bool, one entry a pattern unit (an element for N:M), and are multiplied into the
    weights in place. `Scoring` makes scores, a `Layout` knows who holds what, a `Goal` is come nearer to in parts.

    Under FSDP2 every process has scores and masks of its shards only; what is said of all layers (`sparsity`,
    `findings`, `state_dict`) is the same on every process. Of the methods, `bind`, `begin_step`, `collect_scores`,
    `regularize_weights` and `state_dict` are collectives then.

    Args:
        spec: What to prune, how, and when.
        model: The model before anything in it is rewritten.
        group: Number of the pruner, for the report.

    Attributes:
        layers: What it prunes.
        left_dense: What it does not, and why.
        layout: How the layers lie on the processes; set anew by `bind`.
        size: Values in the weights of all layers.
        stored_masks: Masks in the pattern's shape, by layer name; empty before the first update.
    """

    def __init__(self, spec: PrunerSpec, model: nn.Module, group: int = 0) -> None:
        self.spec = spec
        self.group = group
        self.window = PruningWindow(spec)
        selection = select_layers(model, spec)
        self.layers: tuple[Layer, ...] = selection.layers
        self._bonds = Bonds(selection.bonds) if selection.bonds else None
        # Of layers that are bound together, the units of the first are counted.
        self._counted = [bond[0] for bond in selection.bonds] or list(range(len(self.layers)))
        self.left_dense = selection.left_dense
        self.stored_masks: dict[str, torch.Tensor] = {}
        self._goal: Goal | None = None
        self._scores: torch.Tensor | None = None
        self.layout: Layout = CopiesLayout(self.layers, _ALL_RANKS)
        self.bind(model)
        self.size = sum(self.weight(layer).numel() for layer in self.layers)
        self._initial = 0.0
        self._last_step = -1
        self._postponed: float | None = None
        self._told: set[str] = set()

    def __repr__(self) -> str:
        spec = self.spec
        return f"Pruner({type(spec.criterion).__name__}, {spec.pattern_text}, {spec.target}, {len(self.layers)} layers)"

    def bind(self, model: nn.Module, ranks: Ranks = _ALL_RANKS) -> None:
        """Find the layers again by name, after modules may have been exchanged, wrapped, moved or sharded.

        Masks and scores are moved to where the weights are.

        Args:
            model: The model.
            ranks: The processes that train it together.

        Raises:
            ModelError: A layer is gone, or its weight is sharded in a way that cannot be pruned.
            StateError: The processes have different masks.
        """
        from inc_torch.pruners._scoring import Scoring

        masks, scores, goal = self._gathered(), self._gathered_scores(), self._gathered_goal()
        self._weights = Weights(model, self.layers)
        weights = [self._weights.of(layer) for layer in self.layers]
        has_shards = any(is_sharded(weight) for weight in weights)
        self.layout = self._sharded(weights) if has_shards else CopiesLayout(self.layers, ranks)
        self._scoring = Scoring(self.spec, self.layers, self._weights, self.layout, self._warn_once)
        self._take(masks, scores, goal)
        if masks:
            self.layout.require_equal(list(self.stored_masks.values()))

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Masks shaped like the weights, bool, True keeps, by layer name; layers never pruned are all True.

        Under FSDP2 of the shard that is here, shaped like ``weight.to_local()``.
        """
        return {
            layer.name: part.expand(
                self.stored_masks[layer.name]
                if layer.name in self.stored_masks
                else torch.ones(part.grid.mask_shape, dtype=torch.bool, device=self.weight(layer).device)
            )
            for layer, part in zip(self.layers, self.layout.parts, strict=True)
        }

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """Current scores in the pattern's shape, by layer name; empty before the first were taken.

        They are views of memory that is used again when scores are next taken.

        Under FSDP2 of the units that are here, those at the ends of the shard complete.
        """
        if self._scores is None:
            return {}
        return dict(zip((layer.name for layer in self.layers), self._shaped(self._scores), strict=True))

    @property
    def sparsity(self) -> float:
        """Share of units pruned by the current masks (of elements for N:M)."""
        return self._pruned_units() * self.spec.pattern.density / sum(self._units())

    @property
    def is_finished(self) -> bool:
        """Whether masks have changed for the last time."""
        return self._last_step >= self.window.last_update and self._postponed is None and self._goal is None

    def weight(self, layer: Layer) -> torch.Tensor:
        """The Parameter under pruning; looked up afresh because wrappers exchange Parameters."""
        return self._weights.of(layer)

    def now(self, progress: Progress) -> int:
        """Where the run is, in what the schedule counts."""
        return progress.epoch if self.spec.counts_epochs else progress.step

    @torch.no_grad()
    def begin_step(self, step: int) -> float | None:
        """Change masks if ``step``, an epoch where epochs are counted, is one to update them; masked at once.

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
            if self._goal is not None:
                self._come_nearer(self._goal, self.window.part_at(step, self._goal.since))
            return None
        self.finish()
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
    def finish(self) -> None:
        """Prune whole units where only a part of them is pruned so far."""
        if self._goal is not None:
            self._come_nearer(self._goal, 1.0)

    @torch.no_grad()
    def collect_scores(self) -> None:
        """Take the scores of this step from complete gradients; carry out an update that waited for them.

        Steps with non-finite gradients leave the scores as they were.
        """
        criterion = self.spec.criterion
        is_idle = criterion.only_in_window and not self._is_in_window
        if not criterion.needs_gradient or self.spec.locks_zeros or is_idle:
            return
        smoothed = self._scoring.smoothed(self._scores)
        if smoothed is None:
            return
        self._scores = smoothed
        self._forget_lost_units()
        if self._postponed is not None and self._has_scores():
            self._update_masks(self._postponed)
            self._postponed = None

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Write the zeros of the masks into the weights, in place."""
        self._write_zeros((part, self._weights.here(layer), mask) for layer, part, mask in self._masked())

    @torch.no_grad()
    def regularize_weights(self) -> None:
        """Draw units towards zero by the regularizer, if there is one, while masks may change. A collective."""
        if self.spec.regularizer is None or not self._is_in_window:
            return
        squares = self._scoring.reduced((self._weights.here(layer).float().square() for layer in self.layers), "sum")
        self.layout.join_scores_(squares, [], "sum")
        factors = self._shaped(self.spec.regularizer.factors(squares.sqrt_()))
        for layer, part, own in zip(self.layers, self.layout.parts, factors, strict=True):
            part.apply_(self._weights.here(layer), own)

    def needs_clean_momentum(self, optimizer: torch.optim.Optimizer, step: int) -> bool:
        """Whether `mask_momentum` has to be called before ``step``, the next one, as weights may come back in it.

        Where epochs are counted that is known only when one begins.
        """
        is_pending = self._postponed is not None or self._goal is not None
        is_due = not self.spec.counts_epochs and self.window.ratio_at(step) is not None
        return is_pending or is_due or not moves_values_alone(optimizer)

    @torch.no_grad()
    def mask_momentum(self, optimizer: torch.optim.Optimizer) -> None:
        """Clear the momentum of pruned weights, so that it cannot push a weight that comes back."""
        pruned: list[tuple[Part, torch.Tensor, torch.Tensor]] = []
        for layer, part, mask in self._masked():
            weight = self.weight(layer)
            state = optimizer.state.get(weight, {})
            buffers = [state[key] for key in ("momentum_buffer", "exp_avg") if isinstance(state.get(key), torch.Tensor)]
            # Optimizers that keep their momentum in another space (low rank, packed) keep it as it is.
            pruned += [(part, held(buffer), mask) for buffer in buffers if buffer.shape == weight.shape]
        self._write_zeros(pruned)

    def warn_if_missed(self, progress: Progress) -> None:
        """Say once that training ended before the goal was reached."""
        # Caps and the local scope round down layer by layer.
        share = self.window.goal / self.spec.pattern.density
        wanted = sum(count_of(share, units) for units in self._units())
        if self.spec.locks_zeros or self._pruned_units() >= wanted:
            return
        done, unit = f"{progress.step} optimizer steps", "step"
        if self.spec.counts_epochs:
            done, unit = f"epoch {progress.epoch}", "epoch"
            if progress.epoch < 0:
                done = "no epoch, as on_epoch_begin(epoch) was never called"
        message = (
            f"Pruning reached {self.sparsity:.4f} instead of {self.window.goal} ({self!r}): training ended after "
            f"{done}, and the last mask update is due at {unit} {self.spec.end} "
            f"(start_step={self.spec.start}, pruning_frequency={self.spec.frequency})."
        )
        warn_user(message, InexactWarning)

    def phases(self) -> Iterable[Phase]:
        """From when to when masks change, and from when on they stay."""
        spec = self.spec
        if spec.locks_zeros:
            yield Phase("pruning", "zeros locked", spec.start)
            return
        growth = f"{spec.pattern_text} to {100 * spec.target:.4g} %"
        if spec.counts_epochs:  # how many steps they have is not known before
            yield Phase("pruning", f"{growth}, epochs {spec.start} - {spec.end}", 0)
            return
        yield Phase("pruning", growth, spec.start, spec.end)
        yield Phase("pruning", "masks locked", spec.end + 1)

    def findings(self) -> Iterable[Finding]:
        """What was asked of each layer, counted as the target is: in units, in elements for N:M.

        A lock asks for the zeros that it found.
        """
        for layer, (_, pruned) in zip(self.layers, self._counts, strict=True):
            units = _numel(layer.grid.mask_shape)
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
        """Masks and scores of whole layers by parameter name, and how far the schedule is.

        Equal on every process, and the same whatever their number.
        """
        return {
            "masks": self._gathered(),
            "scores": self._gathered_scores(),
            "goal": self._gathered_goal(),
            "initial": self._initial,
            "last_step": self._last_step,
            "postponed": self._postponed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, saved by any number of processes, before or after the model is sharded.

        Raises:
            StateError: Another set of layers, or a shape or dtype that does not fit.
        """
        check_keys(repr(self), state, {"masks", "scores", "goal", "initial", "last_step", "postponed"})
        masks, scores, goal = state["masks"], state["scores"], state["goal"]
        by_parameter = {layer.parameter_name: layer for layer in self.layers}
        for kind, tensors in (("mask", masks), ("score", scores), ("mask", goal.get("masks", {}))):
            for name, tensor in tensors.items():
                _check_tensor(kind, name, tensor, by_parameter.get(name), self._score_dtype)
            if tensors and len(tensors) != len(self.layers):
                missing = sorted(set(by_parameter) - set(tensors))
                message = f"The saved state has no pruning {kind} for {missing}; it is of another run or damaged."
                raise StateError(message)
        self._take(masks, scores, goal)
        self._initial = float(state["initial"])
        self._last_step = int(state["last_step"])
        self._postponed = state["postponed"]

    @property
    def _is_in_window(self) -> bool:
        """Whether this is a step from the first at which masks may change to the last."""
        return self.spec.start <= self._last_step <= self.spec.end

    @property
    def _score_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.spec.has_short_scores else torch.float32

    def _masked(self) -> Iterable[tuple[Layer, Part, torch.Tensor]]:
        """Each layer that has a mask, what is here of it, and its stored mask."""
        return [
            (layer, part, self.stored_masks[layer.name])
            for layer, part in zip(self.layers, self.layout.parts, strict=True)
            if layer.name in self.stored_masks
        ]

    def _sharded(self, weights: Sequence[torch.Tensor]) -> Layout:
        from inc_torch.pruners._sharded_layout import ShardedLayout

        return ShardedLayout(self.layers, weights)

    def _write_zeros(self, pruned: Iterable[tuple[Part, torch.Tensor, torch.Tensor]]) -> None:
        from inc_torch.pruners._zeros import write_zeros

        write_zeros(pruned)

    def _units(self) -> list[int]:
        return [self.layers[index].grid.units for index in self._counted]

    def _pruned_units(self) -> int:
        return sum(self._counts[index][0] for index in self._counted)

    def _units_in(self, share: float) -> int:
        """Whole units in a share of all of them (of their elements for N:M)."""
        return count_of(share / self.spec.pattern.density, sum(self._units()))

    def _has_scores(self) -> bool:
        """Whether scores were taken that say anything: where all gradients were zero, any unit is like any other."""
        return self._scores is not None and self.layout.has_positive(self._scores)

    def _gathered(self) -> dict[str, torch.Tensor]:
        """Copies of the masks of whole layers, by parameter name."""
        return self._gather(list(self.stored_masks.values()), of_masks=True)

    def _gathered_scores(self) -> dict[str, torch.Tensor]:
        """Copies of the scores of whole layers, by parameter name."""
        return self._gather(list(self.scores.values()), of_masks=False)

    def _gathered_goal(self) -> dict[str, Any]:
        """Copies of the masks to be reached, and what else is known of them; empty if there are none."""
        goal = self._goal
        if goal is None:
            return {}
        known = {"elements": goal.elements, "since": goal.since, "share": goal.share}
        return {"masks": self._gather(goal.masks, of_masks=True), **known}

    def _gather(self, stored: Sequence[torch.Tensor], *, of_masks: bool) -> dict[str, torch.Tensor]:
        here = zip(self.layers, self.layout.parts, stored, strict=True) if stored else ()
        return {
            layer.parameter_name: self.layout.gather(
                part, own, layer.grid.mask_shape if of_masks else layer.grid.score_shape
            )
            for layer, part, own in here
        }

    def _take(
        self, masks: Mapping[str, torch.Tensor], scores: Mapping[str, torch.Tensor], goal: Mapping[str, Any]
    ) -> None:
        """Hold from now on what is here of the masks and scores of whole layers, by parameter name."""
        here = [(layer.parameter_name, layer, part) for layer, part in zip(self.layers, self.layout.parts, strict=True)]
        device = self.weight(self.layers[0]).device
        self.stored_masks = self._cut(masks)
        self._goal = Goal(**{**goal, "masks": list(self._cut(goal["masks"]).values())}) if goal else None
        self._scores = (
            torch.cat([part.cut(scores[name], part.grid.score_shape).flatten().to(device) for name, _, part in here])
            if scores
            else None
        )
        self._counts = [
            (layer.grid.pruned_units(masks[name]), int(torch.count_nonzero(~masks[name]))) if masks else (0, 0)
            for name, layer, _ in here
        ]

    def _cut(self, masks: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is here of the masks of whole layers, by layer name."""
        here = zip(self.layers, self.layout.parts, strict=True) if masks else ()
        return {
            layer.name: part.cut(masks[layer.parameter_name], part.grid.mask_shape).to(self.weight(layer).device)
            for layer, part in here
        }

    def _lock_zeros(self) -> None:
        present = self._scoring.reduced((self._weights.here(layer) != 0).float() for layer in self.layers)
        self.layout.join_scores_(present, [], self.spec.reduction)
        parts = zip(self.layout.parts, self._shaped(present), strict=True)
        masks = [part.grid.zeros_of(scores) for part, scores in parts]
        self._set_masks(masks if self._bonds is None else self._of_whole(self._bonds.joined(self._whole(masks))))
        self._initial = self.sparsity

    def _update_masks(self, ratio: float) -> None:
        scores = self._current_scores()
        if scores is None:
            return
        masks, ranking = self._chosen(scores, ratio)
        if not self.spec.is_progressive:
            self._set_masks(masks, ranking)
            return
        self._goal = Goal.of(self.layout, self._placed(masks), self._present_masks(), self._last_step)
        self._come_nearer(self._goal, self.window.part_at(self._last_step, self._last_step), scores)

    def _current_scores(self) -> torch.Tensor | None:
        """Scores of this moment, flat: of the weights, or those that were collected."""
        return self._scores if self.spec.criterion.needs_gradient else self._scoring.of_weights()

    def _present_masks(self) -> list[torch.Tensor]:
        if self.stored_masks:
            return list(self.stored_masks.values())
        return self._placed(torch.ones(part.grid.mask_shape, dtype=torch.bool) for part in self.layout.parts)

    def _come_nearer(self, goal: Goal, share: float, scores: torch.Tensor | None = None) -> None:
        """Prune more of what was chosen, up to this share of it."""
        if share == goal.share:
            return
        if share == 1.0:
            self._set_masks(goal.masks)
            self._goal = None
        else:
            scores = self._current_scores() if scores is None else scores
            if scores is None:  # they are not finite; the next part takes this one along
                return
            self._set_masks(goal.nearer(self.layout, self._present_masks(), scores.float(), share))
        self.mask_weights()

    def _placed(self, masks: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Masks of all layers, where the weights are."""
        return [mask.to(self.weight(layer).device) for layer, mask in zip(self.layers, masks, strict=True)]

    def _chosen(self, scores: torch.Tensor, ratio: float) -> tuple[list[torch.Tensor], Ranking | None]:
        """Masks of all layers in which a share of the units is pruned, those of the least scores; who ranked these."""
        shaped = self._shaped(scores)
        density = self.spec.pattern.density
        limits = self.spec.limits.scaled(1 / density)
        if self._bonds is not None:
            choose = partial(self.spec.allocation.prune, ratio=ratio, limits=limits)
            return self._of_whole(self._bonds.kept(self._whole(shaped), choose)), None
        grids = [part.grid for part in self.layout.parts]
        sizes = [grid.units for grid in grids]
        units = scores.float()
        if sizes != self._scoring.sizes:
            units = units.new_empty(sum(sizes))
            for grid, own, unit in zip(grids, shaped, torch.split(units, sizes), strict=True):
                unit.copy_(grid.unit_scores(own))
        ranking = self.layout.ranking(units)
        self.spec.allocation.prune(ranking, ratio / density, limits)
        kept = torch.split(ranking.kept(), sizes)
        masks = [grid.mask(own, keep) for grid, own, keep in zip(grids, shaped, kept, strict=True)]
        return masks, ranking

    def _whole(self, stored: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """One entry a unit of whole layers, from what is here of each."""
        here = zip(self.layers, self.layout.parts, stored, strict=True)
        return [self.layout.gather(part, own, layer.grid.score_shape).flatten() for layer, part, own in here]

    def _of_whole(self, kept: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What is here of the masks of whole layers."""
        here = zip(self.layers, self.layout.parts, kept, strict=True)
        return [part.cut(keep.view(layer.grid.mask_shape), part.grid.mask_shape) for layer, part, keep in here]

    def _set_masks(self, masks: Iterable[torch.Tensor], ranking: Ranking | None = None) -> None:
        """Hold ``masks`` from now on; where a ``ranking`` chose them, it knows how many units they prune."""
        here = self._placed(masks)
        self.stored_masks = dict(zip((layer.name for layer in self.layers), here, strict=True))
        self._counts = self.layout.counts(here) if ranking is None else self._counts_of(ranking)
        self.layout.require_equal(here)

    def _counts_of(self, ranking: Ranking) -> list[tuple[int, int]]:
        """Units and entries that the masks of all layers prune, by the ranking that chose the units."""
        density = self.spec.pattern.density
        return [
            (pruned, pruned * round(density * _numel(layer.grid.mask_shape) / layer.grid.units))
            for layer, pruned in zip(self.layers, ranking.pruned, strict=True)
        ]

    def _shaped(self, scores: torch.Tensor) -> list[torch.Tensor]:
        """Views of the flat ``scores`` for each layer, in the pattern's shape."""
        parts = zip(self.layout.parts, torch.split(scores, self._scoring.sizes), strict=True)
        return [own.view(part.grid.score_shape) for part, own in parts]

    def _forget_lost_units(self) -> None:
        """Let pruned units of frozen weights stay pruned: what was masked there is not learned again."""
        if self._scores is None:
            return
        for layer, scores in zip(self.layers, self._shaped(self._scores), strict=True):
            mask = self.stored_masks.get(layer.name)
            if mask is not None and not self.weight(layer).requires_grad:
                scores.mul_(mask.to(scores.device))

    def _postpone(self, ratio: float, step: int) -> None:
        if ratio == 0:
            return
        self._postponed = ratio
        if self.spec.counts_epochs:  # as the first epoch begins there can be none; its first step brings them
            return
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


def _check_tensor(kind: str, name: str, tensor: torch.Tensor, layer: Layer | None, score_dtype: torch.dtype) -> None:
    if layer is None:
        message = f"The saved state has a pruning {kind} for {name!r}, which this run does not prune."
        raise StateError(message)
    is_mask = kind == "mask"
    shape = layer.grid.mask_shape if is_mask else layer.grid.score_shape
    if tuple(tensor.shape) != shape:
        message = f"The saved pruning {kind} of {name!r} has shape {tuple(tensor.shape)}; this run needs {shape}."
        raise StateError(message)
    dtype = torch.bool if is_mask else score_dtype
    if tensor.dtype != dtype:
        message = f"The saved pruning {kind} of {name!r} has dtype {tensor.dtype}; this run needs {dtype}."
        raise StateError(message)
