"""Operations back to float by the error of the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from inc_torch.tuning._arguments import check_count
from inc_torch.tuning._plan import Part, by_samples, cumulative, last_first, least_first, tune_alpha, tune_kinds
from inc_torch.tuning._space import FALLBACKS, QUANTIZED, Mode, Recipe
from inc_torch.tuning._strategy import STRATEGIES, PlannedStrategy, Search, Stage, Stages

_OPTIONS = 2
_FLAT = 0.8
"""Errors are flat where the least one is at least this part of the greatest."""
_MOST_AGAIN = 5


@final
@STRATEGIES.register("mse_v2", summary="operations back to float by the error of the model, then as many int8 as hold")
@dataclass(frozen=True, slots=True)
class MseV2(PlannedStrategy):
    """Falls back the operation that helps the output of the model most, again and again, then takes back what it can.

    For each number of calibration samples, until the goal is met:

    1. Two options as in ``basic``, and dynamic in place of static.
    2. From the best so far, for bf16, fp16 and fp32: of the quantized operations, the one that leaves the least error
       of the model's output falls back, one more each time.
    3. Once the goal is met: of the operations that fell back, the one that costs the least error is quantized again,
       one more each time, as long as the goal is met, one is left, and the recipe is new. The model to take is the
       last one that meets the goal.

    Operations are ranked on each batch by itself, and by the sum of their places on all of them. Where the errors on a
    batch in step 2 are flat, the best tenth of the operations and one more, 5 at most, are ranked again with the
    operation of the greatest error in float too.

    Reference: INC 2.6.1 ``mse_v2``; differs in that the number of trials can be limited, that errors are those of the
    mode that is fallen back to, that of flat errors the other operations keep their places, and that only what could
    be quantized again is ranked for it.

    Attributes:
        confidence_batches: So many batches of calibration data are looked at.
    """

    confidence_batches: int = 2

    def __post_init__(self) -> None:
        check_count("mse_v2", "confidence_batches", self.confidence_batches)

    def stages(self, search: Search) -> Stages:
        for default in by_samples(search.space):
            base = yield from tune_alpha(search, default)
            found = yield from tune_kinds(search, base, most=_OPTIONS)
            if found.is_met:
                return
            for mode in FALLBACKS:
                fallen = yield from self._fall_back(search, found.recipe, mode)
                if fallen:
                    yield from self._quantize_again(search, found.recipe, fallen, mode)
                    return

    def _fall_back(self, search: Search, recipe: Recipe, mode: Mode) -> Part[list[str]]:
        """Leave one more operation in ``mode`` each time; return those that meet the goal, none if they never do."""
        space = search.space
        quantized = last_first(space, recipe, *QUANTIZED)
        able = [name for name in quantized if space.operation(name).first(mode) is not None]
        fallen: list[str] = []
        while able:
            moves = {name: space.fallen_back(recipe, [name], mode) for name in able}
            name = self._most_sensitive(search, moves, mode)
            able.remove(name)
            fallen.append(name)
            recipe = moves[name]
            (outcome,) = yield Stage([recipe], ends_at_goal=len(fallen) == 1)
            if outcome.is_met:
                return fallen
        return []

    def _quantize_again(self, search: Search, base: Recipe, fallen: list[str], mode: Mode) -> Part[None]:
        """Give one operation more each time what ``base`` has for it."""
        space = search.space
        choices = {operation.name: choice for operation, choice in space.chosen(base)}
        path = cumulative(space, base, [[name] for name in fallen], mode)
        recipe, tried = path[-1], {base, *path}
        while True:
            moves = {name: space.changed(recipe, {name: choices[name]}) for name in fallen}
            moves = {name: move for name, move in moves.items() if move not in tried}
            if not moves:
                return
            name = self._least_harmful(search, moves)
            fallen.remove(name)
            recipe = moves[name]
            tried.add(recipe)
            (outcome,) = yield Stage([recipe], ends_at_goal=len(fallen) == 1)
            if not outcome.is_met:
                return

    def _most_sensitive(self, search: Search, moves: Mapping[str, Recipe], mode: Mode) -> str:
        """The operation whose fall back to ``mode`` leaves the least error."""
        if len(moves) == 1:
            return next(iter(moves))
        orders = []
        for batch, errors in enumerate(self._errors(search, moves)):
            order = least_first(errors)
            again = order[: min(len(order) // 10 + 1, _MOST_AGAIN)]
            if len(again) > 1 and errors[order[0]] >= _FLAT * errors[order[-1]]:
                without_worst = {name: search.space.fallen_back(moves[name], order[-1:], mode) for name in again}
                order[: len(again)] = least_first(self._errors(search, without_worst)[batch])
            orders.append(order)
        return _first_by_places(orders)

    def _least_harmful(self, search: Search, moves: Mapping[str, Recipe]) -> str:
        """The operation that adds the least error when it is quantized again."""
        if len(moves) == 1:
            return next(iter(moves))
        return _first_by_places([least_first(errors) for errors in self._errors(search, moves)])

    def _errors(self, search: Search, moves: Mapping[str, Recipe]) -> list[dict[str, float]]:
        """For each batch, the error of each recipe."""
        errors = [search.probes.model_errors(recipe, self.confidence_batches) for recipe in moves.values()]
        return [dict(zip(moves, of_batch, strict=True)) for of_batch in zip(*errors, strict=True)]


def _first_by_places(orders: Sequence[Sequence[str]]) -> str:
    """The name with the least sum of places; of equal ones the first in the first order."""
    return min(orders[0], key=lambda name: sum(order.index(name) for order in orders))
