"""The metrics of torchmetrics by the names of their classes."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from functools import cache
from types import MappingProxyType

__all__ = ["EXTRA", "torchmetrics_classes"]

EXTRA = "metrics"
"""The extra of ``inc_torch`` with torchmetrics and what its metrics need."""

WITHOUT_METRICS = {"functional", "utilities", "wrappers"}
"""Its folders that hold something else; wrappers need a metric to be made."""


def torchmetrics_classes() -> MappingProxyType[str, type]:
    """Return all metrics of torchmetrics by name; none where it is not installed.

    Its aggregators, ``MeanMetric`` and the like, are left out: they would take labels for weights.
    """
    return _classes() if importlib.util.find_spec("torchmetrics") is not None else MappingProxyType({})


@cache
def _classes() -> MappingProxyType[str, type]:
    torchmetrics = importlib.import_module("torchmetrics")
    folders = [folder.name for folder in pkgutil.iter_modules(torchmetrics.__path__) if folder.ispkg]
    modules = [
        importlib.import_module(f"torchmetrics.{name}") for name in sorted(folders) if name not in WITHOUT_METRICS
    ]
    values = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return MappingProxyType({value.__name__: value for value in values if issubclass(value, torchmetrics.Metric)})
