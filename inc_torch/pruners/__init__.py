"""Layer 1: pruning as criterion x pattern x schedule x allocation."""

from inc_torch.pruners._base import (
    ALLOCATIONS,
    CRITERIA,
    PATTERNS,
    SCHEDULES,
    Allocation,
    Criterion,
    Grid,
    Limits,
    Pattern,
    PrunerSpec,
    Reduction,
    Schedule,
    parse_pattern,
)
from inc_torch.pruners._layers import Layer, matrix_axes, select_layers
from inc_torch.pruners._pruner import Pruner
from inc_torch.pruners._window import PruningWindow

__all__ = [
    "ALLOCATIONS",
    "CRITERIA",
    "PATTERNS",
    "SCHEDULES",
    "Allocation",
    "Criterion",
    "Grid",
    "Layer",
    "Limits",
    "Pattern",
    "Pruner",
    "PrunerSpec",
    "PruningWindow",
    "Reduction",
    "Schedule",
    "matrix_axes",
    "parse_pattern",
    "select_layers",
]
