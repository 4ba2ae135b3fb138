"""How good a model is, as one number for a whole data set.

A metric has ``reset()``, ``update(preds, labels)`` for each batch, and ``result()``. Predictions and labels may be
tensors, arrays, lists or numbers. `read_metric` makes one object of all forms in which users say what they want
measured.
"""

from __future__ import annotations

from inc_torch.metric._base import METRICS, BaseMetric, metric_registry
from inc_torch.metric._read import Measure, Metric, read_metric, register_customer_metric

__all__ = ["METRICS", "BaseMetric", "Measure", "Metric", "metric_registry", "read_metric", "register_customer_metric"]
