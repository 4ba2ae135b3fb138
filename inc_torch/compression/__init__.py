"""INC's import path for pruning: ``compression.pruner``."""

from __future__ import annotations

__all__: list[str] = []
