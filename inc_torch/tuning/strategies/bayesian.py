"""Bayesian optimization with Gaussian processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from inc_torch.core.optional import require
from inc_torch.tuning._arguments import check_count
from inc_torch.tuning._sampling import constraints_accepted, seed_of, shortfall
from inc_torch.tuning._strategy import STRATEGIES, SampledStrategy, Search

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@final
@STRATEGIES.register("bayesian", summary="where a Gaussian process expects most; few trials, each well considered")
@dataclass(frozen=True, slots=True)
class Bayesian(SampledStrategy):
    """Samples the recipe from which a Gaussian process over all trials so far expects the greatest improvement.

    Choices have no order, so the process sees how many choices two recipes share. That the goal is to be met is a
    constraint with a process of its own.

    Reference: Optuna's ``GPSampler``. INC 2.6.1 ``bayesian`` lays the choices of an operation on a line, and looks for
    the greatest score even where less is better.

    Attributes:
        n_startup_trials: So many trials are random.
    """

    n_startup_trials: int = 10

    def __post_init__(self) -> None:
        check_count("bayesian", "n_startup_trials", self.n_startup_trials)

    def sampler(self, search: Search, number: int) -> BaseSampler:
        require("scipy", "tune", "The tuning strategy 'bayesian'")
        from optuna.samplers import GPSampler

        with constraints_accepted():
            return GPSampler(
                seed=seed_of(search, number), n_startup_trials=self.n_startup_trials, constraints_func=shortfall
            )
