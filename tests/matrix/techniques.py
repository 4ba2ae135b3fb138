"""The techniques of the matrix, and how one sees in the result that each was at work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from inc_torch import (
    CompressionReport,
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    MixedPrecisionConfig,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
    mix_precision,
    quantization,
)
from tests.matrix.subjects import Subject

__all__ = ["AFTER_TRAINING", "WHILE_TRAINING", "Run", "at_work", "confs_of", "fitted", "small_and_near"]

TARGET, LEAST_SPARSITY = 0.5, 0.48
BITS = {"static": 8, "dynamic": 8, "weight-only": 4}
WHILE_TRAINING = ("prune", "QAT", "KD", "all three", "bf16")
LEAST_COSINE = {"static": 0.98, "dynamic": 0.98, "weight-only": 0.85, "bf16": 0.999}
AFTER_TRAINING = tuple(LEAST_COSINE)


def confs_of(technique: str, subject: Subject) -> list[Any]:
    """Configs for `prepare_compression` and `INCCallback`."""
    pruning = {"target_sparsity": TARGET, "pattern": "4x1", "start_step": 0, "end_step": 4}
    criterion = KnowledgeDistillationLossConfig(temperature=2.0, loss_types=["CE", "KL"], loss_weights=[0.5, 0.5])
    made: dict[str, Callable[[], list[Any]]] = {
        "prune": lambda: [WeightPruningConfig(**pruning)],
        "QAT": lambda: [QuantizationAwareTrainingConfig()],
        "KD": lambda: [DistillationConfig(subject.teacher(), criterion)],
        "bf16": lambda: [MixedPrecisionConfig()],
    }
    names = ("prune", "QAT", "KD") if technique == "all three" else (technique,)
    return [conf for name in names for conf in made[name]()]


@dataclass(slots=True)
class Run:
    """What a loop leaves behind.

    Attributes:
        model: The compressed model.
        report: What the manager says of it.
        distances: From the teacher, one for each step that was logged.
        dtypes: In which modules with a matrix computed while they were trained.
    """

    model: nn.Module
    report: CompressionReport
    distances: list[float]
    dtypes: set[torch.dtype]


def at_work(technique: str, run: Run) -> str:
    """Assert that each technique left its mark, and none that was not asked for; say what there is to see."""
    has = {name: technique in (name, "all three") for name in ("prune", "QAT", "KD")}
    sparsity, int8 = run.report.sparsity or 0.0, int8_modules(run.report)
    assert (sparsity >= LEAST_SPARSITY) is has["prune"], sparsity
    assert (int8 > 0) is has["QAT"]
    assert bool(run.distances and min(run.distances) > 0) is has["KD"], run.distances
    assert (torch.bfloat16 in run.dtypes) is (technique == "bf16"), run.dtypes
    found = [f"{sparsity:.0%}"] * has["prune"] + [f"{int8} int8"] * has["QAT"]
    return ", ".join(found) or "yes"


def int8_modules(report: CompressionReport) -> int:
    return sum(row.bits == BITS["static"] for row in report.modules)


def fitted(technique: str, subject: Subject) -> nn.Module:
    """The model, made smaller without training."""
    if technique == "bf16":
        return mix_precision.fit(subject.build(), MixedPrecisionConfig())
    # What stays in float computes in float32 on every processor.
    config = PostTrainingQuantConfig(approach=technique.replace("-", "_"), excluded_precisions=["bf16"])
    data = subject.calibration() if technique == "static" else None
    return quantization.fit(subject.build(), config, calib_dataloader=data)


def small_and_near(technique: str, subject: Subject, model: nn.Module) -> str:
    """Assert that it has fewer bits and logits near those in float; say how many, and how near."""
    if technique == "bf16":
        assert any(parameter.dtype is torch.bfloat16 for parameter in model.parameters())
        found = "bf16"
    else:
        count = sum(row.bits == BITS[technique] for row in model.report().modules)
        assert count > 0
        found = f"{count} int{BITS[technique]}"
    expected, got = subject.answer(subject.build()), subject.answer(model)
    cosine = F.cosine_similarity(expected.flatten().double(), got.flatten().double(), dim=0).item()
    assert cosine > LEAST_COSINE[technique], cosine
    return f"{found}, {cosine:.4f}"
