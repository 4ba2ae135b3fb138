"""Layer 4: the user's words, checked once and parsed into typed specs.

Every configuration is frozen: ``replace`` makes a changed copy, ``to_dict`` and ``from_dict`` carry it
through JSON, and ``to_spec`` (``to_specs`` for pruning) turns it into what the layer below understands.
"""

from __future__ import annotations

from inc_torch.config._base import Config
from inc_torch.config._benchmark import BenchmarkConfig
from inc_torch.config._criteria import AccuracyCriterion, TuningCriterion
from inc_torch.config._distillation import DistillationConfig
from inc_torch.config._distillation_losses import (
    IntermediateLayersKnowledgeDistillationLossConfig,
    KnowledgeDistillationLossConfig,
    SelfKnowledgeDistillationLossConfig,
)
from inc_torch.config._mixed_precision import MixedPrecisionConfig
from inc_torch.config._onnx import WRITTEN_OPSET, Torch2ONNXConfig
from inc_torch.config._options import (
    Options,
    options,
    set_random_seed,
    set_resume_from,
    set_tensorboard,
    set_workspace,
)
from inc_torch.config._post_training import PostTrainingQuantConfig
from inc_torch.config._pruning import WeightPruningConfig
from inc_torch.config._quantization import QuantizationAwareTrainingConfig
from inc_torch.config._read import read_configs
from inc_torch.config._readonly import FrozenConfigError

__all__ = [
    "WRITTEN_OPSET",
    "AccuracyCriterion",
    "BenchmarkConfig",
    "Config",
    "DistillationConfig",
    "FrozenConfigError",
    "IntermediateLayersKnowledgeDistillationLoss",
    "IntermediateLayersKnowledgeDistillationLossConfig",
    "KnowledgeDistillationLoss",
    "KnowledgeDistillationLossConfig",
    "MixedPrecisionConfig",
    "Options",
    "PostTrainingQuantConfig",
    "QuantizationAwareTrainingConfig",
    "SelfKnowledgeDistillationLoss",
    "SelfKnowledgeDistillationLossConfig",
    "Torch2ONNXConfig",
    "TuningCriterion",
    "WeightPruningConfig",
    "options",
    "read_configs",
    "set_random_seed",
    "set_resume_from",
    "set_tensorboard",
    "set_workspace",
]

KnowledgeDistillationLoss = KnowledgeDistillationLossConfig
"""The same class by the name that INC's documents use."""
IntermediateLayersKnowledgeDistillationLoss = IntermediateLayersKnowledgeDistillationLossConfig
"""The same class by the name that INC's documents use."""
SelfKnowledgeDistillationLoss = SelfKnowledgeDistillationLossConfig
"""The same class by the name that INC's documents use."""
