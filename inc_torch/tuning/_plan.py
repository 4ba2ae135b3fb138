"""What planned strategies have in common: the parts that their plans are made of.

A part is a generator that yields stages as a plan does, and returns what it found::

    found = yield from tune_kinds(search, base)
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from inc_torch.tuning._combinations import by_kind
from inc_torch.tuning._space import FALLBACKS, QUANTIZED, Mode, Recipe, Space
from inc_torch.tuning._strategy import Goal, Outcome, Search, Stage

__all__ = [
    "Part",
    "alone_then_together",
    "best",
    "best_first",
    "by_samples",
    "cumulative",
    "fall_back",
    "greatest_first",
    "in_first_mode",
    "last_first",
    "least_first",
    "quantize_kinds",
    "tune_alpha",
    "tune_kinds",
    "with_alphas",
]

_CONSERVATIVE = ("conv", "matmul", "bmm", "linear")
"""How the kinds begin that are quantized one after another, in lower case."""

Found = TypeVar("Found")
Part = Generator[Stage, Sequence[Outcome], Found]
"""A part of a plan."""


# ---------------------------------------------------------------------------- orders


def best(goal: Goal, outcomes: Sequence[Outcome]) -> Outcome:
    """The best outcome, whether it meets the goal or not; of equal ones the last."""
    return max(reversed(outcomes), key=lambda outcome: goal.rank(outcome.score))


def best_first(goal: Goal, outcomes: Iterable[Outcome], recipes: Mapping[str, Recipe]) -> list[str]:
    """The names of recipes by what came of them; of equal ones the order given stays."""
    ranks = {outcome.recipe: goal.rank(outcome.score) for outcome in outcomes}
    return sorted(recipes, key=lambda name: ranks[recipes[name]], reverse=True)


def least_first(errors: Mapping[str, float]) -> list[str]:
    """Names by their errors, NaN last; of equal ones the order given stays.

    Example:
        >>> least_first({"a": 0.5, "b": float("nan"), "c": 0.5, "d": 0.1})
        ['d', 'a', 'c', 'b']
    """
    return sorted(errors, key=lambda name: _nan_greatest(errors[name]))


def greatest_first(errors: Mapping[str, float]) -> list[str]:
    """Names by their errors, NaN first; of equal ones the order given stays."""
    return sorted(errors, key=lambda name: _nan_greatest(errors[name]), reverse=True)


def _nan_greatest(error: float) -> float:
    return math.inf if math.isnan(error) else error


def last_first(space: Space, recipe: Recipe, *modes: Mode) -> list[str]:
    """Names of the operations that ``recipe`` computes in one of these modes, the last in data order first."""
    names = {operation.name for operation in space.in_modes(recipe, *modes)}
    return [operation.name for operation in reversed(space.in_data_order) if operation.name in names]


# ---------------------------------------------------------------------------- recipes


def by_samples(space: Space) -> Iterator[Recipe]:
    """The default for each number of calibration samples."""
    return (replace(space.default, samples=samples) for samples in space.samples or (None,))


def with_alphas(space: Space, base: Recipe) -> list[Recipe]:
    """A recipe with each alpha that there is to choose; itself where there is none."""
    return [replace(base, alpha=alpha) for alpha in space.alphas] or [base]


def in_first_mode(space: Space, recipe: Recipe, names: Sequence[str], modes: Sequence[Mode]) -> Recipe:
    """A copy of ``recipe`` in which these operations compute in the first of these modes that each of them has."""
    for mode in reversed(modes):
        recipe = space.fallen_back(recipe, names, mode)
    return recipe


def cumulative(space: Space, base: Recipe, groups: Iterable[Sequence[str]], mode: Mode) -> list[Recipe]:
    """Recipes with one more of these groups of operations in ``mode`` each."""
    recipes = []
    for names in groups:
        base = space.fallen_back(base, names, mode)
        recipes.append(base)
    return recipes


# ---------------------------------------------------------------------------- parts


def tune_alpha(search: Search, base: Recipe) -> Part[Recipe]:
    """Try ``base`` with each alpha, if there are several; return it with the best one."""
    recipes = with_alphas(search.space, base)
    if len(recipes) == 1:
        return base
    outcomes = yield Stage(recipes)
    return best(search.goal, outcomes).recipe


def tune_kinds(search: Search, base: Recipe, most: int | None = None) -> Part[Outcome]:
    """Try the choices of every kind of operation, then dynamic in place of static; return the best outcome.

    Args:
        search: What is known.
        base: What is tried first.
        most: How many choices are tried; all of them by default.
    """
    recipes = by_kind(search.space, base)
    outcomes = yield Stage(recipes if most is None else list(islice(recipes, most)))
    found = best(search.goal, outcomes)
    static = last_first(search.space, found.recipe, Mode.STATIC)
    dynamic = search.space.fallen_back(found.recipe, static, Mode.DYNAMIC)
    if dynamic == found.recipe:
        return found
    return best(search.goal, [found, *(yield Stage([dynamic]))])


def fall_back(search: Search, base: Recipe, names: Sequence[str], blocks: Sequence[Sequence[str]] = ()) -> Part[None]:
    """Leave operations in float, in the fastest mode first: blocks one after another, operations alone, then together.

    Args:
        search: What is known.
        base: Recipe that quantizes the operations.
        names: Of the operations, in the order in which they are tried alone.
        blocks: Names of operations that fall back together, in the order in which they do.
    """
    for mode in FALLBACKS:
        able = [name for name in names if search.space.operation(name).first(mode) is not None]
        groups = ([name for name in block if name in able] for block in blocks)
        of_blocks = cumulative(search.space, base, filter(None, groups), mode)
        yield from alone_then_together(search, base, able, mode, before=of_blocks)


def alone_then_together(
    search: Search, base: Recipe, names: Sequence[str], mode: Mode, before: Sequence[Recipe] = ()
) -> Part[None]:
    """Try each operation alone in ``mode``, then one more each time, those that did best alone first.

    Args:
        search: What is known.
        base: Recipe that all of them start from.
        names: Of operations that have this mode, in the order in which they are tried alone.
        mode: What they are to compute in.
        before: Recipes to try first.
    """
    alone = {name: search.space.fallen_back(base, [name], mode) for name in names}
    if not alone and not before:
        return
    outcomes = yield Stage([*before, *alone.values()])
    order = best_first(search.goal, outcomes, alone)
    together = cumulative(search.space, base, [[name] for name in order], mode)[1:]
    if together:
        yield Stage(together)


def quantize_kinds(search: Search, base: Recipe) -> Part[bool]:
    """Start in float, and quantize one group of kinds after another; each is kept if the goal is still met with it.

    Args:
        search: What is known.
        base: Its number of samples and its alpha are used.

    Returns:
        Whether any group was kept.
    """
    space = search.space
    recipe = in_first_mode(space, base, [operation.name for operation in space.operations], FALLBACKS)
    able = [operation for operation in space.operations if operation.first(*QUANTIZED) is not None]
    of_kinds = ([one.name for one in able if one.kind.lower().startswith(start)] for start in _CONSERVATIVE)
    groups = list(filter(None, of_kinds))
    any_kept = False
    for number, names in enumerate(groups, start=1):
        quantized = in_first_mode(space, recipe, names, QUANTIZED)
        (outcome,) = yield Stage([quantized], ends_at_goal=number == len(groups))
        if outcome.is_met:
            recipe, any_kept = quantized, True
    return any_kept
