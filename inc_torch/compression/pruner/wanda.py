"""INC's import path for Wanda."""

from __future__ import annotations

from inc_torch.pruners.calibrated import prune_wanda

__all__ = ["prune_wanda"]
