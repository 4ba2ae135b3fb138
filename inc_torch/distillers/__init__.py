"""Layer 1: what a student learns from its teacher, and how the teacher is asked."""

from __future__ import annotations

from inc_torch.distillers._base import LOSSES, DistillationLoss
from inc_torch.distillers._functional import kl_divergence, soft_cross_entropy, soft_squared_error
from inc_torch.distillers._outputs import extract_logits
from inc_torch.distillers._teacher import Teacher
from inc_torch.distillers.losses.knowledge import HARD_TYPES, KL_REDUCTIONS, SOFT_TYPES, KnowledgeDistillation
from inc_torch.distillers.losses.self_knowledge import SELF_TYPES, SelfDistillation

__all__ = [
    "HARD_TYPES",
    "KL_REDUCTIONS",
    "LOSSES",
    "SELF_TYPES",
    "SOFT_TYPES",
    "DistillationLoss",
    "KnowledgeDistillation",
    "SelfDistillation",
    "Teacher",
    "extract_logits",
    "kl_divergence",
    "soft_cross_entropy",
    "soft_squared_error",
]
