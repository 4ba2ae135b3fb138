"""What a quantizer is told to do, as typed values: no strings or dicts of the user below this line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, final

__all__ = ["QATSpec", "QuantRule", "QuantScheme"]


@final
@dataclass(frozen=True, slots=True)
class QuantScheme:
    """How one module is quantized to int8.

    Weights are always symmetric int8 in [-127, 127], so that a pruned zero is the code 0.

    Attributes:
        per_channel: One weight scale for each output channel instead of one for the tensor.
        symmetric_input: Input zero point fixed at 128 instead of fitted to the observed range.
        reduced_range: Inputs take 7 bits instead of 8, for CPUs whose int8 products saturate.
    """

    per_channel: bool = True
    symmetric_input: bool = False
    reduced_range: bool = False

    @property
    def top(self) -> int:
        """Greatest code of an input."""
        return 127 if self.reduced_range else 255


@final
@dataclass(frozen=True, slots=True)
class QuantRule:
    """One ordered rule: which modules, and what happens to them. Later rules win.

    Attributes:
        subject: What the pattern is matched with: the class name, or the fully qualified module name.
        pattern: Regular expression that must match the whole subject.
        scheme: How to quantize, or None to leave the module in float.
    """

    subject: Literal["type", "name"]
    pattern: str
    scheme: QuantScheme | None

    def catches(self, name: str, type_name: str) -> bool:
        """Whether the rule speaks of the module ``name`` of class ``type_name``."""
        return re.fullmatch(self.pattern, type_name if self.subject == "type" else name) is not None


@final
@dataclass(frozen=True, slots=True)
class QATSpec:
    """Quantization-aware training of a whole model.

    Attributes:
        default: The scheme of modules that no rule catches.
        rules: Ordered exceptions.
    """

    default: QuantScheme = QuantScheme()
    rules: tuple[QuantRule, ...] = ()

    def scheme_for(self, name: str, type_name: str) -> QuantScheme | None:
        """The scheme that the last catching rule, or the default, gives to a module; None is float."""
        caught = [rule for rule in self.rules if rule.catches(name, type_name)]
        return caught[-1].scheme if caught else self.default
