"""What 1.X objects are given: models, loaders, metrics, postprocessing, losses and optimizers."""

from __future__ import annotations

from inc_torch.data import DataLoader, Postprocess
from inc_torch.experimental.common.criterion import Criterions
from inc_torch.experimental.common.optimizer import Optimizers
from inc_torch.metric import Metric
from inc_torch.model import Model

__all__ = ["Criterions", "DataLoader", "Metric", "Model", "Optimizers", "Postprocess"]
