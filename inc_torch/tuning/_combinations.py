"""All combinations of decisions, made one at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from inc_torch.tuning._space import Choice, Mode, Operation, Recipe, Space

__all__ = ["Combinations", "Decision", "by_kind", "by_operation"]

Decision = Mapping[str, Choice]
"""Choices for some operations, by name."""


@final
@dataclass(frozen=True, slots=True)
class Combinations:
    """The recipes of a product of decisions; iterated as often as one likes, never held all at once.

    Attributes:
        space: What is chosen from.
        bases: Recipes that the decisions are laid over; each comes first, before what is made of it.
        options: The ways to take each decision; those of the last one vary fastest.

    Example:
        >>> kl, minmax = Choice("kl", Mode.STATIC), Choice("minmax", Mode.STATIC)
        >>> space = Space(tuple(Operation(name, "Linear", (kl, minmax)) for name in ("fc1", "fc2")))
        >>> [recipe.labels for recipe in by_operation(space)]
        [('kl', 'kl'), ('kl', 'minmax'), ('minmax', 'kl'), ('minmax', 'minmax')]
        >>> [recipe.labels for recipe in by_kind(space, space.default)]
        [('kl', 'kl'), ('minmax', 'minmax')]
    """

    space: Space
    bases: tuple[Recipe, ...]
    options: tuple[Sequence[Decision], ...]

    def __iter__(self) -> Iterator[Recipe]:
        for base in self.bases:
            yield base
            for decisions in itertools.product(*self.options):
                choices = {name: choice for decision in decisions for name, choice in decision.items()}
                recipe = self.space.changed(base, choices)
                if recipe != base:
                    yield recipe


def by_kind(space: Space, base: Recipe) -> Combinations:
    """All operations of a kind decide together, among the choices that have the mode of their default.

    The choices of a kind are those that any of its operations has; one that lacks what is chosen keeps its default.
    Operations of one kind with defaults of two modes are two kinds.
    """
    kinds: dict[tuple[str, Mode], list[Operation]] = {}
    for operation in space.in_data_order:
        kinds.setdefault((operation.kind, operation.default.mode), []).append(operation)
    return Combinations(space, (base,), tuple(map(_common_options, kinds.values())))


def _common_options(operations: Sequence[Operation]) -> list[Decision]:
    choices_of = {
        operation: {choice.label: choice for choice in operation.of(operation.default.mode)} for operation in operations
    }
    labels = dict.fromkeys(label for choices in choices_of.values() for label in choices)
    return [
        {operation.name: choices.get(label, operation.default) for operation, choices in choices_of.items()}
        for label in labels
    ]


def by_operation(space: Space) -> Combinations:
    """Every operation decides alone, among the same choices; for each number of samples, and each alpha."""
    bases = [
        Recipe(space.default.labels, samples, alpha)
        for samples in space.samples or (None,)
        for alpha in space.alphas or (None,)
    ]
    options: list[list[Decision]] = [
        [{operation.name: choice} for choice in operation.of(operation.default.mode)]
        for operation in space.in_data_order
    ]
    return Combinations(space, tuple(bases), tuple(options))
