"""Pruning of trained transformers with a little data and no training, one block after the other."""

from __future__ import annotations

from inc_torch.pruners.calibrated._walk import Technique, prune_by_blocks
from inc_torch.pruners.calibrated.sparse_gpt import SparseGPT, prune_sparse_gpt
from inc_torch.pruners.calibrated.wanda import Wanda, prune_wanda

__all__ = ["SparseGPT", "Technique", "Wanda", "prune_by_blocks", "prune_sparse_gpt", "prune_wanda"]
