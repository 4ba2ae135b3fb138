"""What a tuning search may be after besides accuracy; INC's ``neural_compressor.objective``.

A class with ``start()`` and ``end()``, or with ``measure(model, batches)``, becomes an objective that a
``TuningCriterion`` can name by `objective_custom_registry`.
"""

from __future__ import annotations

from inc_torch.tuning import OBJECTIVES, Objective, objective_custom_registry

__all__ = ["OBJECTIVES", "Objective", "objective_custom_registry"]
