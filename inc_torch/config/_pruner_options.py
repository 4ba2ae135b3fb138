"""The options of one pruner, global and local ones merged: how they go together, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from inc_torch.config._checks import Place, text
from inc_torch.config._pruning_types import LOCK, PruningType
from inc_torch.core.errors import ConfigError
from inc_torch.pruners import ALLOCATIONS, CRITERIA, REGULARIZERS, SCHEDULES, Limits, PrunerSpec, parse_pattern
from inc_torch.pruners._progressive import InParts

__all__ = ["PrunerOptions", "check_pattern", "default_pattern"]


def check_pattern(value: object, place: Place) -> str:
    """The name of a pattern, as it is written; a prefix such as ``tile_pattern_`` does not count."""
    name = text(value, place)
    try:
        parse_pattern(name)
    except ConfigError as error:
        message = f"{place}={value!r}: {error}"
        raise ConfigError(message) from error
    return name


def _bare(pattern: str) -> str:
    return pattern.rpartition("_")[2]


def default_pattern(pruning_type: str) -> str:
    """Where no pattern is named: blocks, except that a lock keeps every single zero."""
    return "1x1" if pruning_type == LOCK else "4x1"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PrunerOptions:
    """The options that one pruner is made of, under the names and meanings of `WeightPruningConfig`.

    Each value is known to be right by itself.
    """

    target_sparsity: float
    pruning_type: str
    pattern: str | None
    op_names: tuple[str, ...]
    excluded_op_names: tuple[str, ...]
    start_step: int
    end_step: int
    pruning_scope: str
    pruning_frequency: int
    min_sparsity_ratio_per_op: float
    max_sparsity_ratio_per_op: float
    sparsity_decay_type: str
    pruning_op_types: tuple[str, ...]
    low_memory_usage: bool
    criterion_reduce_type: Literal["mean", "sum", "max"]
    criterion_type: str | None
    reg_type: str | None
    reg_coeff: float
    initial_sparsity: float
    clock: str
    resume_from_pruned_checkpoint: bool
    lock_init_sparsity: bool

    @property
    def pattern_text(self) -> str:
        """The pattern, named or by default."""
        return self.pattern or default_pattern(self.pruning_type)

    @property
    def kind(self) -> PruningType:
        """The type, taken apart."""
        return PruningType(self.pruning_type)

    @property
    def _window(self) -> int:
        return self.end_step - self.start_step

    def check(self, owner: str) -> None:
        """Check the options against each other.

        Raises:
            ConfigError: They do not go together, or ask for what this version cannot do.
        """
        self._check_window(owner)
        self.kind.check(owner, _bare(self.pattern_text), self._window, self.pruning_frequency)
        self._check_criterion(owner)
        self._check_pattern(owner)
        self._check_ratios(owner)

    def _check_window(self, owner: str) -> None:
        if self.end_step < self.start_step:
            want = f"a step not before start_step={self.start_step}"
            raise Place(owner, "end_step").error(self.end_step, want)
        if self.clock == "epoch" and (self.kind.locks or self.kind.after_training or self.kind.is_progressive):
            want = f"'step' for pruning_type={self.pruning_type!r}"
            raise Place(owner, "clock").error(self.clock, want)
        if self.kind.locks and self.end_step != self.start_step:
            want = f"the same step as start_step={self.start_step}, as 'pattern_lock' looks at the weights only once"
            raise Place(owner, "end_step").error(self.end_step, want)

    def _check_criterion(self, owner: str) -> None:
        if self.criterion_type is not None and self.criterion_type != self.pruning_type and not self.kind.locks:
            hint = f" Leave it out, or set pruning_type={self.criterion_type!r}."
            want = f"the same as pruning_type={self.pruning_type!r}, which alone chooses the criterion"
            raise Place(owner, "criterion_type").error(self.criterion_type, want, hint)

    def _check_pattern(self, owner: str) -> None:
        """What is scored or shortened as a whole has to be pruned as a whole."""
        parsed, place = parse_pattern(self.pattern_text), Place(owner, "pattern")
        if self.pruning_type == "sparse_gpt" and parsed.density == 1 and _bare(self.pattern_text) != "1x1":
            raise place.error(self.pattern_text, f"'1x1' or N:M for {self.pruning_type!r}")
        if parsed.density == 1 and not parsed.binds_layers:
            return
        if self.reg_type is not None:
            raise place.error(self.pattern_text, f"a block pattern such as '4x1' for reg_type={self.reg_type!r}")
        if CRITERIA.get(self.kind.criterion).reduction is not None:
            raise place.error(self.pattern_text, f"a block pattern such as '4x1' for {self.pruning_type!r}")

    def _check_ratios(self, owner: str) -> None:
        ceiling = parse_pattern(self.pattern_text).density
        if not self.kind.locks and self.target_sparsity > ceiling:
            hint = " Lower target_sparsity, or choose a pattern that can prune more."
            want = f"a number up to {ceiling:g}, as N/M is the ceiling of pattern {self.pattern_text!r}"
            raise Place(owner, "target_sparsity").error(self.target_sparsity, want, hint)
        if not self.kind.locks and self.initial_sparsity > self.target_sparsity:
            want = f"a number up to target_sparsity={self.target_sparsity:g}"
            raise Place(owner, "initial_sparsity").error(self.initial_sparsity, want)
        least, greatest = self.min_sparsity_ratio_per_op, self._greatest()
        if least > greatest:
            reason = "" if greatest == self.max_sparsity_ratio_per_op else f", the N/M of {self.pattern_text!r}"
            want = f"a number up to max_sparsity_ratio_per_op={greatest:g}{reason}"
            raise Place(owner, "min_sparsity_ratio_per_op").error(least, want)

    def _greatest(self) -> float:
        return min(self.max_sparsity_ratio_per_op, parse_pattern(self.pattern_text).density)

    def to_spec(self) -> PrunerSpec:
        """Return the same as typed values."""
        criterion = CRITERIA.get(self.kind.criterion)()
        pattern = parse_pattern(self.pattern_text)
        is_progressive = self.kind.is_progressive and self.kind.has_time(self._window, self.pruning_frequency)
        return PrunerSpec(
            criterion=criterion,
            pattern=InParts(pattern) if is_progressive else pattern,
            pattern_text=self.pattern_text,
            schedule=SCHEDULES.get(self.sparsity_decay_type)(),
            allocation=ALLOCATIONS.get(self.pruning_scope)(),
            reduction=criterion.reduction or self.criterion_reduce_type,
            target=self.target_sparsity,
            initial=self.initial_sparsity,
            start=self.start_step,
            end=self.end_step,
            frequency=self.pruning_frequency,
            counts_epochs=self.clock == "epoch",
            limits=Limits(self.min_sparsity_ratio_per_op, self._greatest()),
            op_names=self.op_names,
            excluded_op_names=self.excluded_op_names,
            op_types=self.pruning_op_types,
            keeps_initial_zeros=self.resume_from_pruned_checkpoint or self.lock_init_sparsity,
            locks_zeros=self.kind.locks,
            regularizer=None if self.reg_type is None else REGULARIZERS.get(self.reg_type)(self.reg_coeff),
            has_short_scores=self.low_memory_usage,
            is_progressive=is_progressive,
            after_training=self.kind.after_training,
        )
