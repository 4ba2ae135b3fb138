"""Layer 5: one callback a technique, and the base class for yours."""

from __future__ import annotations

from inc_torch.callbacks._bfloat16 import left_to_bfloat16
from inc_torch.callbacks._build import TrainingConfig, build_callbacks
from inc_torch.callbacks.distillation import DistillationCallbacks, require_teachers
from inc_torch.callbacks.precision import MixedPrecisionCallbacks
from inc_torch.callbacks.pruning import PruningCallbacks
from inc_torch.callbacks.quantization import QuantizationAwareTrainingCallbacks
from inc_torch.core.callback import Callback
from inc_torch.core.hooks import Phase, Progress, Stage

__all__ = [
    "Callback",
    "DistillationCallbacks",
    "MixedPrecisionCallbacks",
    "Phase",
    "Progress",
    "PruningCallbacks",
    "QuantizationAwareTrainingCallbacks",
    "Stage",
    "TrainingConfig",
    "build_callbacks",
    "left_to_bfloat16",
    "require_teachers",
]
