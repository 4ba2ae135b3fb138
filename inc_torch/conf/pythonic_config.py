"""Configurations of 2.X for the classes of 1.X, under INC's import path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from inc_torch.conf._conf import Config2X
from inc_torch.config import (
    BenchmarkConfig,
    DistillationConfig,
    MixedPrecisionConfig,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
)

__all__ = [
    "BenchmarkConfig",
    "Config",
    "DistillationConfig",
    "MixedPrecisionConfig",
    "PostTrainingQuantConfig",
    "QuantizationAwareTrainingConfig",
    "WeightPruningConfig",
]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a class of `inc_torch.experimental` is to do, instead of a file.

    Attributes:
        quantization: For `inc_torch.experimental.Quantization`; so are the others for the class of their name.
        pruning: For pruning.
        distillation: For distillation.
        mixed_precision: For half precision.
        benchmark: For a benchmark.

    Example:
        >>> [type(config).__name__ for config in Config(pruning=WeightPruningConfig())]
        ['WeightPruningConfig']
    """

    quantization: PostTrainingQuantConfig | QuantizationAwareTrainingConfig | None = None
    pruning: WeightPruningConfig | None = None
    distillation: DistillationConfig | None = None
    mixed_precision: MixedPrecisionConfig | None = None
    benchmark: BenchmarkConfig | None = None

    def __iter__(self) -> Iterator[Config2X]:
        """All that there are."""
        for config in (self.quantization, self.pruning, self.distillation, self.mixed_precision, self.benchmark):
            if config is not None:
                yield config
