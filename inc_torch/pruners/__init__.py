"""Layer 2: pruning as criterion x pattern x schedule x allocation."""

from __future__ import annotations

from inc_torch.pruners._base import (
    ALLOCATIONS,
    CRITERIA,
    PATTERNS,
    REGULARIZERS,
    SCHEDULES,
    Allocation,
    Criterion,
    Grid,
    Limits,
    Pattern,
    PrunerSpec,
    Ranking,
    Reduction,
    Regularizer,
    Schedule,
    parse_pattern,
)
from inc_torch.pruners._layers import Layer, select_layers
from inc_torch.pruners._matrix import MatrixView
from inc_torch.pruners._pruner import Pruner
from inc_torch.pruners._window import PruningWindow

__all__ = [
    "ALLOCATIONS",
    "CRITERIA",
    "PATTERNS",
    "REGULARIZERS",
    "SCHEDULES",
    "Allocation",
    "Criterion",
    "Grid",
    "Layer",
    "Limits",
    "MatrixView",
    "Pattern",
    "Pruner",
    "PrunerSpec",
    "PruningWindow",
    "Ranking",
    "Reduction",
    "Regularizer",
    "Schedule",
    "parse_pattern",
    "select_layers",
]
