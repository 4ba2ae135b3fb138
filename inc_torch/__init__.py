"""Prune, quantize and distil PyTorch models inside your own training loop.

The successor of Intel Neural Compressor's training-time API: `prepare_compression` takes a model and configs, and
returns a `CompressionManager` whose hooks the loop calls. After ``import inc_torch``, transformers' ``from_pretrained``
opens compressed directories.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from inc_torch import huggingface as _huggingface
from inc_torch import lightning as _lightning
from inc_torch.callbacks import Callback
from inc_torch.config import (
    AccuracyCriterion,
    BenchmarkConfig,
    DistillationConfig,
    IntermediateLayersKnowledgeDistillationLossConfig,
    KnowledgeDistillationLossConfig,
    MixedPrecisionConfig,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    SelfKnowledgeDistillationLossConfig,
    TuningCriterion,
    WeightPruningConfig,
    options,
    set_random_seed,
    set_resume_from,
    set_tensorboard,
    set_workspace,
)
from inc_torch.core.report import CompressionReport
from inc_torch.export import load
from inc_torch.huggingface import OptimizedModel, save_for_huggingface_upstream
from inc_torch.huggingface.registration import install as _register_with_transformers
from inc_torch.training import CompressionManager, prepare_compression

if TYPE_CHECKING:
    from inc_torch import benchmark, mix_precision, quantization

    # Not in __all__: "import *" has to work without transformers and Lightning.
    from inc_torch.huggingface import INCCallback as INCCallback
    from inc_torch.inference import optimize_for_inference
    from inc_torch.lightning import INCLightningCallback as INCLightningCallback
    from inc_torch.metric import METRICS, Metric
    from inc_torch.pipeline import Pipeline
    from inc_torch.training import prepare_pruning

__all__ = [
    "METRICS",
    "AccuracyCriterion",
    "BenchmarkConfig",
    "Callback",
    "CompressionManager",
    "CompressionReport",
    "DistillationConfig",
    "IntermediateLayersKnowledgeDistillationLossConfig",
    "KnowledgeDistillationLossConfig",
    "Metric",
    "MixedPrecisionConfig",
    "OptimizedModel",
    "Pipeline",
    "PostTrainingQuantConfig",
    "QuantizationAwareTrainingConfig",
    "SelfKnowledgeDistillationLossConfig",
    "TuningCriterion",
    "WeightPruningConfig",
    "__version__",
    "benchmark",
    "load",
    "mix_precision",
    "optimize_for_inference",
    "options",
    "prepare_compression",
    "prepare_pruning",
    "quantization",
    "save_for_huggingface_upstream",
    "set_random_seed",
    "set_resume_from",
    "set_tensorboard",
    "set_workspace",
]

__version__ = "0.1.0.dev0"

_SUBMODULES = (
    "benchmark",
    "compat",
    "compression",
    "conf",
    "data",
    "experimental",
    "metric",
    "migrate",
    "mix_precision",
    "model",
    "objective",
    "quantization",
    "utils",
)
_LATER = {
    "METRICS": "metric",
    "Metric": "metric",
    "Pipeline": "pipeline",
    "optimize_for_inference": "inference",
    "prepare_pruning": "training",
}

_register_with_transformers()


def __getattr__(name: str) -> object:
    """Import what needs an optional package, or is not needed in a training loop, when it is asked for."""
    if name in _SUBMODULES:
        return importlib.import_module(f"inc_torch.{name}")
    if name in _LATER:
        return getattr(importlib.import_module(f"inc_torch.{_LATER[name]}"), name)
    if name == "INCCallback":
        return _huggingface.INCCallback
    if name == "INCLightningCallback":
        return _lightning.INCLightningCallback
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
