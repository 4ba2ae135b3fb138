"""The small interfaces that a pruner is composed of, and their registries.

A pruner is a product: what counts (`Criterion`), what goes together (`Pattern`), how much when
(`Schedule`) and how much where (`Allocation`). Each implementation is one frozen dataclass in one
file of the folder of its kind, and registers itself there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self, final

import torch

from inc_torch.core.errors import ConfigError, did_you_mean
from inc_torch.core.registry import Registry
from inc_torch.pruners._matrix import DenseBlocks, MatrixView

__all__ = [
    "ALLOCATIONS",
    "CRITERIA",
    "PATTERNS",
    "REGULARIZERS",
    "SCHEDULES",
    "Allocation",
    "Criterion",
    "Factors",
    "Grid",
    "Limits",
    "Pattern",
    "PrunerSpec",
    "Ranking",
    "Reduction",
    "Regularizer",
    "Schedule",
    "parse_pattern",
]

Reduction = Literal["mean", "sum", "max", "net"]
"""How the magnitudes of a unit's elements become one score; ``net`` is the magnitude of their signed sum."""

Factors = tuple[Literal["weight", "gradient"], ...]
"""Inputs of a criterion whose product is its score."""


class Criterion(Protocol):
    """What makes a weight worth keeping.

    Attributes:
        needs_gradient: Scores are taken from gradients at every step, not from weights at update steps.
        momentum: Share of the previous score that is kept: ``s <- momentum * s + score``.
        reduction: The only way in which scores of elements make sense as that of a unit; None leaves it to the user.
        only_in_window: Scores are taken from the first step at which masks may change to the last.
        factors: The inputs of `score` whose product it returns, so that compiled kernels can form it; none if it
            returns anything else.
    """

    needs_gradient: ClassVar[bool]
    momentum: ClassVar[float]
    reduction: ClassVar[Reduction | None] = None
    only_in_window: ClassVar[bool] = False
    factors: ClassVar[Factors] = ()

    def score(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the importance of every element, shaped like ``weight``; but for ``net`` only its magnitude counts.

        ``gradient`` is ``weight`` itself where `needs_gradient` is False. The result may be an input.
        """
        ...


class Regularizer(Protocol):
    """What draws units towards zero while masks may change, so that pruning them costs less."""

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """Return what the weights of each unit are multiplied with after an optimizer step, in [0, 1].

        Args:
            norms: Euclidean norm of each unit, float32 of any shape.
        """
        ...


class Schedule(Protocol):
    """How much of the target is asked for at a moment of the pruning window."""

    def sparsity(self, progress: float, target: float, initial: float = 0.0) -> float:
        """Return the sparsity at ``progress`` in [0, 1]: ``initial`` at 0, ``target`` at 1, monotone."""
        ...


class Grid(Protocol):
    """A pattern laid over one weight tensor: scores, units and masks in the pattern's own shape.

    A *unit* is what is pruned or kept together. ``score_shape`` is the shape of what is stored
    between steps, ``mask_shape`` that of the stored bool mask (True keeps).

    What is stored of a shard of a weight has the same form: `resized` is the grid over a part of the weight's first
    axis, and `first_axis` says how that axis runs through what is stored.
    """

    units: int
    score_shape: tuple[int, ...]
    mask_shape: tuple[int, ...]

    def reduce(self, signed: torch.Tensor, reduction: Reduction | None = None) -> torch.Tensor:
        """Turn element importances (weight's shape) into scores of ``score_shape``.

        Args:
            signed: The sign is ignored but for ``net``, whose sums keep theirs.
            reduction: Another one than that of the grid.
        """
        ...

    def unit_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """One value a unit, flat, from stored scores; may be a view."""
        ...

    def mask(self, scores: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """The stored mask in which exactly the units not in ``keep`` (flat bool) are pruned."""
        ...

    def zeros_of(self, scores: torch.Tensor) -> torch.Tensor:
        """The stored mask that prunes what has no score, as the zeros of a weight in ``reduce(weight != 0)``."""
        ...

    def apply_(self, tensor: torch.Tensor, mask: torch.Tensor) -> None:
        """Multiply ``tensor`` (weight's shape) by a stored mask, in place; or by any factors in a mask's shape."""
        ...

    def dense_blocks(self, tensor: torch.Tensor) -> DenseBlocks | None:
        """How ``tensor`` (weight's shape) lies under stored scores and masks, if compiled kernels can walk it."""
        ...

    def expand(self, mask: torch.Tensor) -> torch.Tensor:
        """The mask in the weight's shape, bool, True keeps."""
        ...

    def pruned_units(self, mask: torch.Tensor) -> int:
        """How many units ``mask`` prunes: a stored mask, or the entries of some of its units in any shape."""
        ...

    def first_axis(self) -> tuple[int, int] | None:
        """How the first axis of the weight runs through units, scores and masks, flat or in shape.

        Returns:
            ``(outer, along)``: viewed as [outer, along, ...], they go on by one unit along the first axis with
            every entry of the second. None if the units do not lie along that axis.
        """
        ...

    def resized(self, length: int) -> Grid:
        """The same pattern over ``length`` entries of the weight's first axis.

        Args:
            length: Whole units; or, if a unit has one score, less than one. The parts' scores then add up to that
                of the unit; with ``max`` the greatest of them is it.
        """
        ...


class Pattern(Protocol):
    """What is pruned together.

    A pattern may also have ``grid_in_parts``, which is called as `grid` is, and returns a grid with an entry for each
    element, so that progressive types can take its units apart.

    Attributes:
        density: Largest share of elements that the pattern can prune: 1 for blocks, N/M for N:M.
        binds_layers: Units lie in several layers at once: those of an attention.
    """

    binds_layers: ClassVar[bool] = False

    @property
    def density(self) -> float: ...

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the pattern that ``text`` names, or None if it is not of this kind.

        Raises:
            ConfigError: It is of this kind, but its numbers are wrong.
        """
        ...

    def grid(self, view: MatrixView, reduction: Reduction) -> Grid | str:
        """Lay the pattern over a weight.

        Args:
            view: The weight as a matrix.
            reduction: How element scores become unit scores.

        Returns:
            The grid, or the reason why the pattern cannot lie on this shape.
        """
        ...


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """Least and greatest share of units that may be pruned in each layer, both in [0, 1]."""

    least: float = 0.0
    greatest: float = 1.0

    def scaled(self, factor: float) -> Limits:
        """The same limits counted in units of which each holds ``1 / factor`` of the original ones."""
        return Limits(min(1.0, self.least * factor), min(1.0, self.greatest * factor))


class Ranking(Protocol):
    """The units of all layers in the order of their scores, wherever they lie; of equal scores the first goes first."""

    @property
    def sizes(self) -> Sequence[int]:
        """Units of each layer, in the whole model."""
        ...

    @property
    def pruned(self) -> Sequence[int]:
        """Units that each layer gives up so far, in the whole model."""
        ...

    def prune(self, groups: Sequence[Sequence[int]], counts: Sequence[int]) -> list[int]:
        """Prune the cheapest units of each group of layers, and no others of these layers, whatever was said before.

        Args:
            groups: Indices of layers that are ranked together, ascending; no layer is in two groups.
            counts: How many units each group gives up, at most as many as it has.

        Returns:
            How many units each layer gives up, in the order of ``groups``.
        """
        ...

    def kept(self) -> torch.Tensor:
        """Flat bool over the units that this process holds, layers in order, True keeps; all, before any are pruned."""
        ...


class Allocation(Protocol):
    """Where the pruned units are taken from."""

    def prune(self, ranking: Ranking, ratio: float, limits: Limits) -> None:
        """Choose the units to prune.

        Exactly ``floor(ratio * units)`` are pruned as far as limits allow.

        Args:
            ranking: Does the choosing, layer by layer or in groups of layers.
            ratio: Share of all units to prune, in [0, 1].
            limits: Bounds for every layer.
        """
        ...


CRITERIA: Registry[type[Criterion]] = Registry("pruning criterion", "inc_torch.pruners.criteria")
PATTERNS: Registry[type[Pattern]] = Registry("pruning pattern", "inc_torch.pruners.patterns")
SCHEDULES: Registry[type[Schedule]] = Registry("sparsity schedule", "inc_torch.pruners.schedules")
REGULARIZERS: Registry[Callable[[float], Regularizer]] = Registry(
    "pruning regularizer", "inc_torch.pruners.regularizers"
)
"""What makes a regularizer of its strength."""
ALLOCATIONS: Registry[type[Allocation]] = Registry("pruning scope", "inc_torch.pruners.allocations")


def parse_pattern(text: str) -> Pattern:
    """Return the pattern named by ``text``; a prefix such as ``tile_pattern_`` is dropped.

    Raises:
        ConfigError: No pattern has this form; the message lists the forms.

    Example:
        >>> parse_pattern("4x1"), parse_pattern("tile_pattern_2:4")
        (Block(rows=4, columns=1), NInM(pruned=2, group=4))
    """
    name = text.rpartition("_")[2]
    for entry in PATTERNS:
        pattern = entry.value.parse(name)
        if pattern is not None:
            return pattern
    forms = "; ".join(f"{entry.name}: {entry.summary}" for entry in PATTERNS)
    message = f"Unknown pruning pattern {text!r}.{did_you_mean(name, ['4x1', '1x1', '2:4'])} Forms: {forms}."
    raise ConfigError(message)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PrunerSpec:
    """One pruner, parsed: a group of layers that share a pattern, a schedule and a budget.

    Attributes:
        criterion: What counts. Unused when ``locks_zeros`` or ``after_training``.
        pattern: What goes together, and ``pattern_text`` as the user wrote it.
        schedule: How much when.
        allocation: How much where.
        reduction: How element scores become unit scores.
        target: Share of units to prune at the end, in [0, 1); of elements for N:M.
        initial: Share of units that the schedule begins with.
        start: First step at which masks may change.
        end: Last step at which masks may change.
        frequency: Steps between mask updates.
        counts_epochs: ``start``, ``end`` and ``frequency`` are epochs, and masks change as one begins.
        limits: Bounds for every layer, in the unit of ``target``.
        op_names: Regular expressions that find layers by ``re.search``; none finds all.
        excluded_op_names: Regular expressions that take layers out again.
        op_types: Words of which one must occur in the class name.
        keeps_initial_zeros: The zeros of the first step are pruned from then on, and the schedule starts from
            their share. With the ``gradient`` criterion they may come back at a later update, as any zero may.
        locks_zeros: Nothing is chosen: the zeros at ``start`` stay, nothing else (pattern lock).
        regularizer: Draws units towards zero after each optimizer step from ``start`` to ``end``.
        has_short_scores: Scores are kept in bfloat16.
        is_progressive: What an update chooses is pruned in parts until the next one; the pattern is `InParts` then.
        after_training: Not for a `Pruner`: what prunes the layers of a trained model with calibration data.
    """

    criterion: Criterion
    pattern: Pattern
    pattern_text: str
    schedule: Schedule
    allocation: Allocation
    reduction: Reduction = "mean"
    target: float = 0.9
    initial: float = 0.0
    start: int = 0
    end: int = 0
    frequency: int = 1
    counts_epochs: bool = False
    limits: Limits = Limits(0.0, 0.98)
    op_names: tuple[str, ...] = ()
    excluded_op_names: tuple[str, ...] = ()
    op_types: tuple[str, ...] = ("Conv", "Linear")
    keeps_initial_zeros: bool = False
    locks_zeros: bool = False
    regularizer: Regularizer | None = None
    has_short_scores: bool = False
    is_progressive: bool = False
    after_training: Literal["sparse_gpt", "retrain_free"] | None = None
