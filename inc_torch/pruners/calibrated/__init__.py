"""Pruning of trained models with a little data and no training: transformers block by block, or any by its loss."""

from __future__ import annotations

from inc_torch.pruners.calibrated._blocks import BlockLayer, block_layers
from inc_torch.pruners.calibrated._statistics import Hessian
from inc_torch.pruners.calibrated._walk import Technique, prune_by_blocks
from inc_torch.pruners.calibrated.retrain_free import prune_retrain_free
from inc_torch.pruners.calibrated.sparse_gpt import SparseGPT, prune_sparse_gpt
from inc_torch.pruners.calibrated.wanda import Wanda, prune_wanda

__all__ = [
    "BlockLayer",
    "Hessian",
    "SparseGPT",
    "Technique",
    "Wanda",
    "block_layers",
    "prune_by_blocks",
    "prune_retrain_free",
    "prune_sparse_gpt",
    "prune_wanda",
]
