"""What a search and a model have in common: how accuracy is measured, what there is to choose, how a search is run."""

from __future__ import annotations

from inc_torch.tuner._evaluator import Evaluator, read_evaluator
from inc_torch.tuner._space import QuantizedOperations, spec_with
from inc_torch.tuner._tune import Candidates, Tuning

__all__ = ["Candidates", "Evaluator", "QuantizedOperations", "Tuning", "read_evaluator", "spec_with"]
