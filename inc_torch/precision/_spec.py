"""What a user says of precisions, in types."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, final

__all__ = ["SCHEME", "SCHEMES", "PrecisionRule", "PrecisionSpec"]

SCHEME: Final = "bfloat16"
"""The name under which these modules stand in reports."""
SCHEMES: Final = (SCHEME, "float16")
"""All names of half precision in reports."""


@final
@dataclass(frozen=True, slots=True)
class PrecisionRule:
    """One ordered rule: which modules, and what they may compute in.

    Attributes:
        subject: What the pattern is matched with: the class name, or the fully qualified module name.
        pattern: Regular expression that must match the whole subject.
        words: Of ``"bf16"``, ``"fp16"`` and ``"fp32"``, the preferred one first.
    """

    subject: Literal["type", "name"]
    pattern: str
    words: tuple[str, ...]

    def catches(self, name: str, kind: str) -> bool:
        """Whether the rule speaks of the module ``name`` of class ``kind``."""
        return re.fullmatch(self.pattern, kind if self.subject == "type" else name) is not None


@final
@dataclass(frozen=True, slots=True)
class PrecisionSpec:
    """Which modules of a model may compute in what.

    Attributes:
        precisions: Of ``"bf16"`` and ``"fp16"``, those that are wanted, the preferred one first.
        rules: The last that catches a module counts.

    Example:
        >>> spec = PrecisionSpec(("bf16",), (PrecisionRule("name", "head", ("fp32",)),))
        >>> spec.words_of("head", "Linear"), spec.words_of("body", "Linear")
        (('fp32',), ('bf16', 'fp32'))
    """

    precisions: tuple[str, ...]
    rules: tuple[PrecisionRule, ...] = ()

    def words_of(self, name: str, kind: str) -> tuple[str, ...]:
        """What a module may compute in, the preferred one first; only what is wanted, and ``"fp32"``."""
        words: tuple[str, ...] = (*self.precisions, "fp32")
        for rule in self.rules:
            if rule.catches(name, kind):
                words = tuple(word for word in rule.words if word in (*self.precisions, "fp32")) or ("fp32",)
        return words
