"""Three ways from a float model of the zoo to an int8 one, and what is looked at afterwards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from inc_torch import CompressionReport, PostTrainingQuantConfig, QuantizationAwareTrainingConfig, prepare_compression
from inc_torch.quantization import fit
from inc_torch.quantizers import describe_int8
from tests.architectures.zoo import ZOO, Architecture, Batch

__all__ = [
    "CONVOLUTIONS",
    "LEAST_COSINE",
    "MATRICES",
    "WAYS",
    "Compressed",
    "by_pattern",
    "compressed",
    "cosine",
    "float_reasons",
    "int8_kinds",
    "scores",
]

WAYS = ("static", "dynamic", "qat")
STEPS = 3
SHARED = "shares its weight with"
LEAST_COSINE = {"static": 0.996, "dynamic": 0.997, "qat": 0.999}
"""The least that were measured are 0.9974 (ConvNeXt), 0.9983 (T5) and 0.99997 (DeBERTa)."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
MATRICES = (nn.Linear, nn.Embedding, Conv1D, *CONVOLUTIONS)
"""Modules of exactly these classes become int8, convolutions if the ranges of their inputs are known."""

Call = tuple[torch.Tensor, torch.Tensor]
"""Input and output of a module."""


@dataclass(frozen=True, slots=True)
class Compressed:
    """An int8 model, and what it should compute.

    Attributes:
        source: The float model that was given to `fit`; for training one that is as the model was before.
        model: The int8 model.
        report: What it says of itself.
        expected: Scores for the batch of the third shape: of the float model, or of the simulation that was trained.
        calls: What the modules of that simulation were given and gave, by name.
    """

    source: PreTrainedModel
    model: PreTrainedModel
    report: CompressionReport
    expected: torch.Tensor
    calls: Mapping[str, list[Call]] = field(default_factory=dict)


@cache
def compressed(name: str, way: str) -> Compressed:
    """Compress one architecture one way; tests must not change the result."""
    torch.manual_seed(0)
    return _trained(ZOO[name]) if way == "qat" else _fitted(ZOO[name], way)


def _fitted(architecture: Architecture, approach: str) -> Compressed:
    source = architecture.build()
    batches = architecture.training_batches() if approach == "static" else None
    # What stays in float computes in float32 on every processor.
    config = PostTrainingQuantConfig(approach=approach, excluded_precisions=["bf16"])
    model = fit(source, config, calib_dataloader=batches)
    return Compressed(source, model, model.report(), scores(source, architecture.other_batch()))


def _trained(architecture: Architecture) -> Compressed:
    model = architecture.build()
    manager = prepare_compression(model, QuantizationAwareTrainingConfig())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches = architecture.training_batches()
    manager.on_train_begin()
    for index in range(STEPS):
        manager.on_step_begin(index)
        loss = model.train()(**batches[index % len(batches)]).loss
        loss.backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        optimizer.zero_grad()
        manager.on_step_end()
    calls: dict[str, list[Call]] = {}
    with recording(model, calls):
        expected = scores(model.eval(), architecture.other_batch())
    manager.on_train_end()
    return Compressed(architecture.build(), model, manager.report(), expected, calls)


@contextmanager
def recording(model: nn.Module, calls: dict[str, list[Call]]) -> Iterator[None]:
    """Note in ``calls`` what modules with matrices are given, and what they give."""

    def recorder(name: str) -> Callable[..., None]:
        def note(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            calls.setdefault(name, []).append((inputs[0], output))

        return note

    hooks = [
        module.register_forward_hook(recorder(name))
        for name, module in model.named_modules()
        if isinstance(module, MATRICES)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def scores(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The logits of every position, class, or pair of image and text."""
    with torch.no_grad():
        output = model(**batch)
    return output["logits_per_image" if "logits_per_image" in output else "logits"]


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """Cosine of the angle between all logits of a batch."""
    return F.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0).item()


def int8_kinds(model: nn.Module) -> dict[str, int]:
    """How many int8 modules of each kind there are."""
    return dict(Counter(str(entry["kind"]) for entry in describe_int8(model).values()))


def by_pattern(findings: Mapping[str, str]) -> dict[str, str]:
    """The same by names with numbers as ``*``."""
    return {re.sub(r"\.\d+", ".*", name): reason for name, reason in findings.items()}


def float_reasons(report: CompressionReport) -> dict[str, str]:
    """Why modules stay in float, as `by_pattern`."""
    rows = [row for row in report.modules if row.scheme is None]
    return by_pattern({row.name: "; ".join(note for note in row.notes if not note.startswith(SHARED)) for row in rows})
