"""What a search chooses from, and what it chose: operations, the ways to compute each of them, recipes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import final

from inc_torch.core.errors import ConfigError, did_you_mean

__all__ = ["FALLBACKS", "QUANTIZED", "Choice", "Mode", "Operation", "Recipe", "Space"]


@final
class Mode(Enum):
    """What an operation computes in."""

    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight_only"
    LOWER = "lower"
    BFLOAT16 = "bf16"
    FLOAT16 = "fp16"
    FLOAT32 = "fp32"


QUANTIZED = (Mode.STATIC, Mode.DYNAMIC, Mode.WEIGHT_ONLY)
"""Modes that compute on integers, in the order in which an operation prefers them."""
FALLBACKS = (Mode.BFLOAT16, Mode.FLOAT16, Mode.FLOAT32)
"""Modes that an operation is left in which loses too much, the fastest first."""


@final
@dataclass(frozen=True, slots=True)
class Choice:
    """One way to compute an operation.

    Attributes:
        label: What people and files call it, unique within the operation: ``"int8 asym/kl"``.
        mode: What kind of way it is.
    """

    label: str
    mode: Mode


@final
@dataclass(frozen=True, slots=True)
class Operation:
    """A module that can be computed in several ways.

    Attributes:
        name: Fully qualified name of the module.
        kind: Name of its class.
        choices: At least one; the first of each mode is the default of that mode, the first of all that of the
            operation.
    """

    name: str
    kind: str
    choices: tuple[Choice, ...]

    @property
    def default(self) -> Choice:
        """What it is computed in unless a search says otherwise."""
        return self.choices[0]

    def first(self, *modes: Mode) -> Choice | None:
        """The default of the first of these modes that it has; None if it has none of them."""
        return next((choice for mode in modes for choice in self.choices if choice.mode is mode), None)

    def of(self, *modes: Mode) -> tuple[Choice, ...]:
        """All choices of these modes, in the order of the operation."""
        return tuple(choice for choice in self.choices if choice.mode in modes)

    def labelled(self, label: str) -> Choice:
        """The choice of this label.

        Raises:
            ConfigError: There is none.
        """
        for choice in self.choices:
            if choice.label == label:
                return choice
        known = [choice.label for choice in self.choices]
        message = (
            f"{self.name!r} ({self.kind}) cannot be computed in {label!r}: expected one of "
            f"{', '.join(map(repr, known))}.{did_you_mean(label, known)}"
        )
        raise ConfigError(message)


@final
@dataclass(frozen=True, slots=True)
class Recipe:
    """A complete decision: what one trial tries.

    Attributes:
        labels: Of the choice of each operation, in the order of the space.
        samples: How many samples the ranges of inputs are taken from; None where there are no such ranges.
        alpha: How much difficulty smoothing moves into weights; None is what the configuration says.
    """

    labels: tuple[str, ...]
    samples: int | None = None
    alpha: float | None = None


@final
@dataclass(frozen=True, slots=True)
class Space:
    """All that a search may choose.

    Attributes:
        operations: In the order of the model.
        samples: Numbers of calibration samples, the default first; empty where there are no ranges to find.
        alphas: Of smoothing, the default first; empty where there is no choice.
        blocks: Names of operations that may go back to float together, such as the two layers of a feed-forward
            network; in the order of the model.

    Example:
        >>> int8, fp32 = Choice("int8 asym/kl", Mode.STATIC), Choice("fp32", Mode.FLOAT32)
        >>> space = Space((Operation("fc1", "Linear", (int8, fp32)), Operation("fc2", "Linear", (int8, fp32))))
        >>> space.changed(space.default, {"fc2": fp32}).labels
        ('int8 asym/kl', 'fp32')
    """

    operations: tuple[Operation, ...]
    samples: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    blocks: tuple[tuple[str, ...], ...] = ()

    @property
    def default(self) -> Recipe:
        """Every operation in its default."""
        labels = tuple(operation.default.label for operation in self.operations)
        return Recipe(labels, next(iter(self.samples), None), next(iter(self.alphas), None))

    @property
    def in_data_order(self) -> list[Operation]:
        """The operations by the mode of their default, in the order of `Mode`; within a mode in that of the model."""
        modes = list(Mode)
        return sorted(self.operations, key=lambda operation: modes.index(operation.default.mode))

    def of(self, choices: Mapping[str, Choice], base: Recipe | None = None) -> Recipe:
        """The recipe with these choices by operation, and those of ``base``, or the default, elsewhere."""
        return self.changed(self.default if base is None else base, choices)

    def changed(self, recipe: Recipe, choices: Mapping[str, Choice]) -> Recipe:
        """A copy of ``recipe`` in which these operations, by name, have other choices.

        Raises:
            ConfigError: There is no such operation.
        """
        names = [operation.name for operation in self.operations]
        for name in choices:
            if name not in names:
                message = f"There is no operation {name!r} to choose for.{did_you_mean(name, names)}"
                raise ConfigError(message)
        labels = (
            choices[name].label if name in choices else label for name, label in zip(names, recipe.labels, strict=True)
        )
        return replace(recipe, labels=tuple(labels))

    def fallen_back(self, recipe: Recipe, names: Iterable[str], mode: Mode) -> Recipe:
        """A copy of ``recipe`` in which these operations compute in ``mode``, as far as they can."""
        wanted = {name: self.operation(name).first(mode) for name in names}
        return self.changed(recipe, {name: choice for name, choice in wanted.items() if choice is not None})

    def operation(self, name: str) -> Operation:
        """The operation of this name."""
        for operation in self.operations:
            if operation.name == name:
                return operation
        message = f"There is no operation {name!r}.{did_you_mean(name, [known.name for known in self.operations])}"
        raise ConfigError(message)

    def chosen(self, recipe: Recipe) -> Iterator[tuple[Operation, Choice]]:
        """Each operation with what ``recipe`` chooses for it."""
        for operation, label in zip(self.operations, recipe.labels, strict=True):
            yield operation, operation.labelled(label)

    def in_modes(self, recipe: Recipe, *modes: Mode) -> list[Operation]:
        """The operations that ``recipe`` computes in one of these modes."""
        return [operation for operation, choice in self.chosen(recipe) if choice.mode in modes]
