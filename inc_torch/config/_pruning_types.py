"""What ``pruning_type`` may be: a criterion, the same in parts, a lock, or a way to prune trained models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, final

from inc_torch.config._checks import Place, text
from inc_torch.core.errors import ConfigError, InexactWarning, did_you_mean
from inc_torch.core.user_warning import warn_user
from inc_torch.pruners import CRITERIA

__all__ = ["LOCK", "PruningType", "check_pruning_type"]

LOCK: Final = "pattern_lock"
_AFTER_TRAINING: Final[tuple[Literal["sparse_gpt", "retrain_free"], ...]] = ("sparse_gpt", "retrain_free")
_IN_PARTS = "_progressive"
_FEWEST_IN_UNIT = 4
_SHORT_WINDOW = 4


def check_pruning_type(value: object, place: Place) -> str:
    """A known name."""
    plain = [*CRITERIA.names(), LOCK, *_AFTER_TRAINING]
    name = text(value, place)
    if name.removesuffix(_IN_PARTS) not in plain:
        known = [*plain, *(f"{criterion}{_IN_PARTS}" for criterion in CRITERIA.names() if not _is_whole(criterion))]
        raise place.error(value, f"one of {', '.join(map(repr, known))}", did_you_mean(name, known))
    return name


def _is_whole(plain: str) -> bool:
    """Whether what is scored can only be pruned as a whole, or is not scored at all."""
    return plain not in CRITERIA.names() or CRITERIA.get(plain).reduction is not None


@final
@dataclass(frozen=True, slots=True)
class PruningType:
    """One such name, taken apart.

    Attributes:
        name: As the user wrote it.
    """

    name: str

    @property
    def plain(self) -> str:
        """Without ``_progressive``."""
        return self.name.removesuffix(_IN_PARTS)

    @property
    def is_progressive(self) -> bool:
        """Whether units are to be pruned in parts."""
        return self.name.endswith(_IN_PARTS)

    @property
    def locks(self) -> bool:
        """Whether zeros are only kept."""
        return self.name == LOCK

    @property
    def after_training(self) -> Literal["sparse_gpt", "retrain_free"] | None:
        """Which way to prune a trained model it is, if it is one."""
        return next((kind for kind in _AFTER_TRAINING if kind == self.name), None)

    @property
    def criterion(self) -> str:
        """Name of what counts; where nothing is scored, of one that needs no gradients."""
        return self.plain if self.plain in CRITERIA.names() else "magnitude"

    def check(self, owner: str, pattern: str, window: int, frequency: int) -> None:
        """Check the type against what it is combined with.

        Args:
            owner: Whose options they are, in messages.
            pattern: As the user wrote it.
            window: Steps from the first at which masks may change to the last.
            frequency: Steps between updates.

        Raises:
            ConfigError: They do not go together.
        """
        place = Place(owner, "pattern")
        if self.plain == "retrain_free" and "channel" not in pattern:
            raise place.error(pattern, "a pattern with 'channel' for 'retrain_free', such as 'channelx1'")
        if not self.is_progressive:
            return
        if _is_whole(self.plain):
            message = f"{Place(owner, 'pruning_type')}={self.name!r}: {self.plain!r} has no progressive form."
            raise ConfigError(message)
        if not self.has_time(window, frequency):
            message = (
                f"{Place(owner, 'pruning_type')}={self.name!r} prunes as {self.plain!r} does: for parts it needs more "
                f"than {_SHORT_WINDOW} steps from start_step to end_step, and a pruning_frequency of 2 or more; they "
                f"are {window} and {frequency}."
            )
            warn_user(message, InexactWarning)
            return
        numbers = [int(number) for number in re.findall(r"\d+", pattern)]
        size = numbers[0] * numbers[-1] if "x" in pattern else next(iter(numbers), 0)
        if "channel" not in pattern and size < _FEWEST_IN_UNIT:
            want = "blocks of 4 or more weights, or N:M with N of 4 or more, for a progressive type"
            raise place.error(pattern, want)

    def has_time(self, window: int, frequency: int) -> bool:
        """Whether there are steps between updates, in which parts can go."""
        return window > _SHORT_WINDOW and frequency > 1
