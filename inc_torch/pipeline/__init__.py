"""Compression in several stages, one after the other: trainings and a quantization, kept and continued.

Prune, then quantize; distil, then quantize; distil, prune, quantize: each stage begins with the model that the stage
before left, zeros stay zeros, and with a directory a run that is killed goes on where it was.
"""

from __future__ import annotations

from inc_torch.pipeline._pipeline import Pipeline
from inc_torch.pipeline._result import PipelineResult, StageResult
from inc_torch.pipeline._run import TrainingRun
from inc_torch.pipeline._stages import Quantize, Train

__all__ = ["Pipeline", "PipelineResult", "Quantize", "StageResult", "Train", "TrainingRun"]
