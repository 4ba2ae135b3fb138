"""Chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from inc_torch.tuning._sampling import seed_of
from inc_torch.tuning._strategy import STRATEGIES, SampledStrategy, Search

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@final
@STRATEGIES.register("random", summary="each choice by chance, whatever the scores so far")
@dataclass(frozen=True, slots=True)
class Random(SampledStrategy):
    """Every choice of every operation is as likely as any other of it.

    Reference: Optuna's ``RandomSampler``. INC 2.6.1 ``random`` proposes one recipe again and again.
    """

    def sampler(self, search: Search, number: int) -> BaseSampler:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed_of(search, number))
