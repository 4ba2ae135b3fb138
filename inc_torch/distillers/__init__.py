"""Layer 2: what a student learns from its teacher, and how the teacher is asked."""

from __future__ import annotations

from inc_torch.distillers._base import LOSSES, DistillationLoss
from inc_torch.distillers._functional import (
    attention_map,
    cosine_distance,
    kl_divergence,
    soft_cross_entropy,
    soft_squared_error,
)
from inc_torch.distillers._lesson import Lesson
from inc_torch.distillers._outputs import TEACHER_LOGITS, extract_logits
from inc_torch.distillers._projection import Projection
from inc_torch.distillers._select import Selection, selected
from inc_torch.distillers._taps import Taps
from inc_torch.distillers._teacher import Teacher
from inc_torch.distillers.losses.features import FEATURE_TYPES, FeatureDistillation, FeaturePair, Tap
from inc_torch.distillers.losses.knowledge import HARD_TYPES, KL_REDUCTIONS, SOFT_TYPES, KnowledgeDistillation
from inc_torch.distillers.losses.self_knowledge import SELF_TYPES, SelfDistillation

__all__ = [
    "FEATURE_TYPES",
    "HARD_TYPES",
    "KL_REDUCTIONS",
    "LOSSES",
    "SELF_TYPES",
    "SOFT_TYPES",
    "TEACHER_LOGITS",
    "DistillationLoss",
    "FeatureDistillation",
    "FeaturePair",
    "KnowledgeDistillation",
    "Lesson",
    "Projection",
    "Selection",
    "SelfDistillation",
    "Tap",
    "Taps",
    "Teacher",
    "attention_map",
    "cosine_distance",
    "extract_logits",
    "kl_divergence",
    "selected",
    "soft_cross_entropy",
    "soft_squared_error",
]
