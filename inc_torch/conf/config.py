"""The classes that say what 1.X objects are to do, under INC's import path.

Example:
    >>> QuantConf({"tuning": {"accuracy_criterion": {"relative": "2%"}}}).translate().configs[0].accuracy_criterion
    AccuracyCriterion(tolerable_loss=0.02)
"""

from __future__ import annotations

from typing import Any, ClassVar, final

from inc_torch.conf._attributes import AttributeTree
from inc_torch.conf._conf import Conf
from inc_torch.conf._pruning import ENTRY_KEYS
from inc_torch.core.errors import ConfigTypeError, did_you_mean

__all__ = [
    "BenchmarkConf",
    "Benchmark_Conf",
    "Conf",
    "DistillationConf",
    "Distillation_Conf",
    "GraphOptConf",
    "Graph_Optimization_Conf",
    "MixedPrecisionConf",
    "MixedPrecision_Conf",
    "Pruner",
    "PrunerV2",
    "PruningConf",
    "Pruning_Conf",
    "QuantConf",
    "Quantization_Conf",
    "conf",
]


@final
class QuantConf(Conf):
    """What a `inc_torch.experimental.Quantization` is to do."""

    technique: ClassVar[str | None] = "quantization"


@final
class PruningConf(Conf):
    """What a `inc_torch.experimental.Pruning` is to do."""

    technique: ClassVar[str | None] = "pruning"


@final
class DistillationConf(Conf):
    """What a `inc_torch.experimental.Distillation` is to do."""

    technique: ClassVar[str | None] = "distillation"


@final
class MixedPrecisionConf(Conf):
    """What a `inc_torch.experimental.MixedPrecision` is to do."""

    technique: ClassVar[str | None] = "mixed_precision"


@final
class BenchmarkConf(Conf):
    """What a `inc_torch.experimental.Benchmark` is to do."""


GraphOptConf = MixedPrecisionConf
Quantization_Conf, Pruning_Conf, Distillation_Conf = QuantConf, PruningConf, DistillationConf
Benchmark_Conf, MixedPrecision_Conf, Graph_Optimization_Conf = BenchmarkConf, MixedPrecisionConf, GraphOptConf


@final
class Pruner(dict[str, object]):
    """An entry of ``pruners``, written in Python.

    Args:
        options: The keys that an entry may have in YAML; what is left out is said by the section around it.

    Raises:
        ConfigTypeError: A key is unknown.

    Example:
        >>> Pruner(names=["fc.weight"], target_sparsity=0.5)
        {'names': ['fc.weight'], 'target_sparsity': 0.5}
    """

    def __init__(self, **options: object) -> None:
        for name in options:
            if name not in ENTRY_KEYS:
                message = f"Pruner has no option {name!r}.{did_you_mean(name, ENTRY_KEYS)}"
                raise ConfigTypeError(message)
        super().__init__({name: value for name, value in options.items() if value is not None})


PrunerV2 = Pruner


conf: Any = AttributeTree()
"""A file written by assignments, of the whole process: ``conf.tuning.accuracy_criterion.relative = 0.02``, and then
``QuantConf(conf)``. What is misspelt is found there."""
