"""What a quantizer is told to do, as typed values: no strings or dicts of the user below this line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from itertools import product
from typing import Any, Literal, final

from inc_torch.quantizers._observers import Observer
from inc_torch.quantizers.observers.minmax import MinMax

__all__ = [
    "AwqSettings",
    "Codes",
    "FloatType",
    "GptqSettings",
    "QuantRule",
    "QuantScheme",
    "QuantSpec",
    "Scheme",
    "TeqSettings",
    "Treatment",
    "WeightOnlyScheme",
]


Codes = Literal["int", "nf4", "fp4_e2m1", "fp4_e2m1_bnb"]
"""What the codes of a weight are: integers in even steps, or places of four bits in a table of floats."""


@final
class FloatType(Enum):
    """What a module computes in that is not quantized."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@final
@dataclass(frozen=True, slots=True)
class QuantScheme:
    """How one module is quantized to integers of at most 8 bits.

    Weights are always symmetric around the code 0, so that a pruned zero stays a zero.

    Attributes:
        per_channel: One weight scale for each output channel instead of one for the tensor.
        symmetric_input: Input zero point fixed in the middle instead of fitted to the observed range.
        dynamic: The range of an input is that of the very tensor that comes, not one observed before.
        weight_bits: 2 to 8.
        input_bits: 2 to 8; 7 for CPUs whose int8 products saturate.
        input_observer: Finds the range of inputs in what calibration saw; training has a moving average of its own.
    """

    per_channel: bool = True
    symmetric_input: bool = False
    dynamic: bool = False
    weight_bits: int = 8
    input_bits: int = 8
    input_observer: Observer = field(default_factory=MinMax)

    @property
    def top(self) -> int:
        """Greatest code of an input; the least is 0."""
        return int(2**self.input_bits) - 1


@final
@dataclass(frozen=True, slots=True)
class GptqSettings:
    """How GPTQ goes about a weight, see `inc_torch.quantizers.round_by_gptq`.

    Attributes:
        damping: Share of the Hessian's mean diagonal that is added to it.
        act_order: Take columns by the size of their inputs, the largest first.
        block_size: Columns whose errors are handed on together; a grid is fitted to the weights as they are when its
            block begins. None is those of a group, at most 128, so that every grid knows all errors before it.
        static_groups: Fit the grids of all groups before anything is rounded.
        samples: How many samples of the calibration data are run.
    """

    damping: float = 0.01
    act_order: bool = False
    block_size: int | None = None
    static_groups: bool = False
    samples: int = 128


@final
@dataclass(frozen=True, slots=True)
class AwqSettings:
    """How AWQ goes about the layers of a block, see `inc_torch.quantizers.search_scale`.

    Attributes:
        scale: Multiply weights of input channels that carry much, and divide these inputs.
        clip: Narrow the range of each output's weights where that makes the error of the output less.
        folding: Scale only where the module before can divide its output itself. Else layers that have no such
            module before them multiply their inputs.
    """

    scale: bool = True
    clip: bool = True
    folding: bool = False


@final
@dataclass(frozen=True, slots=True)
class TeqSettings:
    """How TEQ learns scales, see `inc_torch.quantizers.learn_scales`.

    Attributes:
        folding: As in `AwqSettings`.
        steps: Optimizer steps.
        learning_rate: The greatest; it rises over the first twentieth of the steps, and falls to 0 over the others.
    """

    folding: bool = True
    steps: int = 1000
    learning_rate: float = 1e-3


@final
@dataclass(frozen=True, slots=True)
class WeightOnlyScheme:
    """How the weight of one linear layer is rounded to a few bits, while its input stays in float.

    Attributes:
        bits: 2 to 8.
        group_size: How many neighbouring weights of a row share a scale; -1 gives the whole row one.
        symmetric: Codes are signed and lie around zero; otherwise they begin at 0, and each group has a zero point.
        codes: Integers, or four bits for a number of a table, see `_float_codes`. Those are symmetric, have four bits
            and know no full range, whatever the other fields were given as.
        full_range: Symmetric codes use the least one too, which has no counterpart above zero.
        clip_search: Ranges are narrowed by the ratio that makes the error of the weight least.
        algorithm: ``"rtn"``, `round_to_nearest`, which needs no data; ``"gptq"``, `round_by_gptq`; ``"awq"``,
            `search_scale` and `search_clips`; or ``"teq"``, `learn_scales`.
        gptq: How, where the algorithm is that; None is with its defaults. So with the others.
    """

    bits: int = 4
    group_size: int = 32
    symmetric: bool = True
    codes: Codes = "int"
    full_range: bool = False
    clip_search: bool = False
    algorithm: Literal["rtn", "gptq", "awq", "teq"] = "rtn"
    gptq: GptqSettings | None = None
    awq: AwqSettings | None = None
    teq: TeqSettings | None = None

    def __post_init__(self) -> None:
        if self.codes != "int":  # so that a search over fields makes one scheme of what is one
            for name, value in (("bits", 4), ("symmetric", True), ("full_range", False)):
                object.__setattr__(self, name, value)


Scheme = QuantScheme | WeightOnlyScheme
"""How a module is quantized; all modules of a model take the same kind of scheme."""

Treatment = Scheme | FloatType
"""What is done to one module."""


@final
@dataclass(frozen=True, slots=True)
class QuantRule:
    """One ordered rule: which modules, and what happens to them.

    Attributes:
        subject: What the pattern is matched with: the class name, or the fully qualified module name.
        pattern: Regular expression that must match the whole subject.
        outcome: The fields of the scheme that the rule sets, over what earlier rules set; or the float type that
            the module stays in.
        options: For fields of which the rule leaves a choice to a search, all values; that of ``outcome`` is the
            first.
    """

    subject: Literal["type", "name"]
    pattern: str
    outcome: Mapping[str, Any] | FloatType
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def catches(self, name: str, type_name: str) -> bool:
        """Whether the rule speaks of the module ``name`` of class ``type_name``."""
        return re.fullmatch(self.pattern, type_name if self.subject == "type" else name) is not None


@final
@dataclass(frozen=True, slots=True)
class QuantSpec:
    """Which modules of a model are quantized how.

    Attributes:
        default: The scheme of modules that no rule catches.
        rules: Applied in order, each on top of those before it. A rule that sets a scheme after one that asked for
            float begins with the default again.
        options: For fields of the default that a search may choose, all values; that of the default is the first.
    """

    default: Scheme = QuantScheme()
    rules: tuple[QuantRule, ...] = ()
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def treatment_of(self, name: str, type_name: str) -> Treatment:
        """What the default and all catching rules make of a module."""
        treatment: Treatment = self.default
        for rule in self.rules:
            if rule.catches(name, type_name):
                treatment = self._changed(treatment, rule.outcome)
        return treatment

    def choices_of(self, name: str, type_name: str) -> tuple[Treatment, ...]:
        """Everything that a search may make of a module; the first is that of `treatment_of`.

        Of several fields with a choice the last one of the scheme varies fastest.

        Example:
            >>> spec = QuantSpec(options={"symmetric_input": (False, True)})
            >>> [scheme.symmetric_input for scheme in spec.choices_of("fc", "Linear")]
            [False, True]
        """
        treatment, options = self.treatment_of(name, type_name), dict(self.options)
        if isinstance(treatment, FloatType):
            return (treatment,)
        for rule in self.rules:
            if not rule.catches(name, type_name):
                continue
            if isinstance(rule.outcome, FloatType):
                options = dict(self.options)
            else:
                options |= {field: (value,) for field, value in rule.outcome.items()} | dict(rule.options)
        ordered = [field.name for field in fields(treatment) if field.name in options]
        choices = product(*(options[name] for name in ordered))
        return tuple(dict.fromkeys(replace(treatment, **dict(zip(ordered, values, strict=True))) for values in choices))

    def all_of(self, field: str) -> set[object]:
        """Every value of a field of schemes that the default or a rule names.

        Example:
            >>> rule = QuantRule("type", "Linear", {"algorithm": "awq"})
            >>> sorted(QuantSpec(WeightOnlyScheme(), (rule,)).all_of("algorithm"))
            ['awq', 'rtn']
        """
        named: set[object] = {getattr(self.default, field, None), *self.options.get(field, ())}
        for rule in self.rules:
            outcome = {} if isinstance(rule.outcome, FloatType) else rule.outcome
            named |= {outcome.get(field), *rule.options.get(field, ())}
        return named - {None}

    def _changed(self, before: Treatment, outcome: Mapping[str, Any] | FloatType) -> Treatment:
        if isinstance(outcome, FloatType):
            return outcome
        return replace(self.default if isinstance(before, FloatType) else before, **outcome)
