"""Tree-structured Parzen estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from inc_torch.tuning._arguments import check_count
from inc_torch.tuning._sampling import constraints_accepted, seed_of, shortfall
from inc_torch.tuning._strategy import STRATEGIES, SampledStrategy, Search

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@final
@STRATEGIES.register("tpe", summary="choices that are frequent in good recipes and rare in bad ones")
@dataclass(frozen=True, slots=True)
class Tpe(SampledStrategy):
    """Samples recipes where the density of good ones so far, divided by that of bad ones, is greatest.

    Recipes that meet the goal are better than all that miss it, and of these the nearer one is better.

    Reference: Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011; Optuna's ``TPESampler``.
    INC 2.6.1 ``tpe`` takes static quantization only, and folds accuracy and duration into one loss.

    Attributes:
        n_startup_trials: So many trials are random.
        n_ei_candidates: So many samples are drawn for each, and the best is taken.

    Example:
        >>> Tpe(n_startup_trials=0)
        Traceback (most recent call last):
        inc_torch.core.errors.ConfigError: tpe.n_startup_trials=0: expected an integer of 1 or more.
    """

    n_startup_trials: int = 10
    n_ei_candidates: int = 24

    def __post_init__(self) -> None:
        check_count("tpe", "n_startup_trials", self.n_startup_trials)
        check_count("tpe", "n_ei_candidates", self.n_ei_candidates)

    def sampler(self, search: Search, number: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        with constraints_accepted():
            return TPESampler(
                n_startup_trials=self.n_startup_trials,
                n_ei_candidates=self.n_ei_candidates,
                seed=seed_of(search, number),
                constraints_func=shortfall,
            )
