"""The classes of Neural Compressor 1.X: thin, over the engine that everything else uses.

::

    file ──► inc_torch.conf ──► configurations ──► prepare_compression, quantization.fit,
                                     ▲             mix_precision.fit, benchmark.fit
    attributes: model, functions, ───┘
    loaders, metric, hooks
"""

from __future__ import annotations

from inc_torch.experimental import common
from inc_torch.experimental.benchmark import Benchmark
from inc_torch.experimental.component import Component
from inc_torch.experimental.distillation import Distillation
from inc_torch.experimental.mixed_precision import MixedPrecision
from inc_torch.experimental.pruning import Pruning
from inc_torch.experimental.quantization import Quantization
from inc_torch.experimental.scheduler import Scheduler

Graph_Optimization = MixedPrecision

__all__ = [
    "Benchmark",
    "Component",
    "Distillation",
    "Graph_Optimization",
    "MixedPrecision",
    "Pruning",
    "Quantization",
    "Scheduler",
    "common",
]
