"""Physical removal of what pruning has made zero: smaller layers, with the same outputs."""

from __future__ import annotations

from inc_torch.pruners.slimming._auto import parse_auto_slim_config
from inc_torch.pruners.slimming._slim import model_slim

__all__ = ["model_slim", "parse_auto_slim_config"]
