"""Searches for a model that is accurate enough: spaces, strategies, objectives, studies, results.

``Space ──Strategy──► Recipe ──run_search──► Trial ──choose──► TuningResult``

Nothing here knows what a recipe does to a model.
"""

from __future__ import annotations

from inc_torch.tuning._blocks import feed_forward_blocks
from inc_torch.tuning._objectives import (
    ACCURACY,
    OBJECTIVES,
    Aim,
    Objective,
    choose,
    measured,
    objective_custom_registry,
)
from inc_torch.tuning._result import Trial, TuningResult
from inc_torch.tuning._result_view import trial_line
from inc_torch.tuning._search import Limits, run_search
from inc_torch.tuning._space import FALLBACKS, QUANTIZED, Choice, Mode, Operation, Recipe, Space
from inc_torch.tuning._strategy import (
    STRATEGIES,
    Goal,
    Outcome,
    PlannedStrategy,
    Probes,
    SampledStrategy,
    Search,
    Stage,
    Stages,
    Strategy,
)
from inc_torch.tuning._study import Measured, TuningStudy

__all__ = [
    "ACCURACY",
    "FALLBACKS",
    "OBJECTIVES",
    "QUANTIZED",
    "STRATEGIES",
    "Aim",
    "Choice",
    "Goal",
    "Limits",
    "Measured",
    "Mode",
    "Objective",
    "Operation",
    "Outcome",
    "PlannedStrategy",
    "Probes",
    "Recipe",
    "SampledStrategy",
    "Search",
    "Space",
    "Stage",
    "Stages",
    "Strategy",
    "Trial",
    "TuningResult",
    "TuningStudy",
    "choose",
    "feed_forward_blocks",
    "measured",
    "objective_custom_registry",
    "run_search",
    "trial_line",
]
