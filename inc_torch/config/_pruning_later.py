"""Options of INC that come with a later version: known by name, and refused with a way out.

A combination that would be wrong in any version is refused as such first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

from inc_torch.config._checks import Place
from inc_torch.core.errors import ConfigError

__all__ = ["LaterOptions", "base_type", "is_later_type"]

_PROGRESSIVE = "_progressive"
_INSTEAD = {
    "retrain_free": "Use 'magnitude' with the same pattern, and train for some steps after it.",
}
_AT_ONCE = ("block_mask", "sparse_gpt")
"""Types that score blocks alone, or prune once, so that nothing can be taken apart."""
_FEWEST_IN_PROGRESSIVE_UNIT = 4
_PROGRESSIVE_SUB_STEPS = 4


def base_type(pruning_type: str) -> str:
    """The type without ``_progressive``."""
    return pruning_type.removesuffix(_PROGRESSIVE)


def is_later_type(pruning_type: str, available: list[str]) -> bool:
    """Whether INC has this type and this version has not."""
    known = [*available, *_INSTEAD]
    return pruning_type not in available and base_type(pruning_type) in known


@final
@dataclass(frozen=True, slots=True)
class LaterOptions:
    """The options of one pruner that may ask for something later, and what they are combined with."""

    owner: str
    pruning_type: str
    pattern: str
    window: int
    frequency: int

    def refuse(self) -> None:
        """Raise for the first option that this version cannot do.

        Raises:
            ConfigError: Says whether the combination is wrong, or comes later, and what to use instead.
        """
        option = self._option_to_come()
        if option is not None:
            name, value, way_out = option
            message = f"{Place(self.owner, name)}={value!r}: this version of inc_torch cannot do it yet. {way_out}"
            raise ConfigError(message)

    def _option_to_come(self) -> tuple[str, object, str] | None:
        """The first such option: its name, its value, what to do instead."""
        plain = base_type(self.pruning_type)
        if plain in _INSTEAD:
            self._check_type()
            return "pruning_type", self.pruning_type, _INSTEAD[plain]
        if self.pruning_type.endswith(_PROGRESSIVE):
            self._check_progressive()
            return "pruning_type", self.pruning_type, f"Use {plain!r}, which ends at the same sparsity."
        return None

    def _check_type(self) -> None:
        kind, place = base_type(self.pruning_type), Place(self.owner, "pattern")
        if kind != self.pruning_type:
            message = f"{Place(self.owner, 'pruning_type')}={self.pruning_type!r}: {kind!r} has no progressive form."
            raise ConfigError(message)
        if kind == "retrain_free" and ":" in self.pattern:
            raise place.error(
                self.pattern, "a block pattern such as 'channelx1' for 'retrain_free': it has no N:M form"
            )
        if kind == "retrain_free" and "channel" not in self.pattern:
            raise place.error(self.pattern, "a pattern with 'channel' for 'retrain_free', such as 'channelx1'")

    def _check_progressive(self) -> None:
        """Units must be large enough to be taken apart, unless the window is too short for that to happen."""
        if (kind := base_type(self.pruning_type)) in _AT_ONCE:
            message = f"{Place(self.owner, 'pruning_type')}={self.pruning_type!r}: {kind!r} has no progressive form."
            raise ConfigError(message)
        if self.window <= _PROGRESSIVE_SUB_STEPS or self.frequency == 1:
            return
        numbers = [int(number) for number in re.findall(r"\d+", self.pattern)]
        is_block = "x" in self.pattern
        size = numbers[0] * numbers[-1] if is_block else numbers[0]
        if "channel" not in self.pattern and size < _FEWEST_IN_PROGRESSIVE_UNIT:
            want = "blocks of 4 or more weights, or N:M with N of 4 or more, for a progressive type"
            raise Place(self.owner, "pattern").error(self.pattern, want)
