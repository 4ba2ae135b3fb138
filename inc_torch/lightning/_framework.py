"""Which of Lightning's two packages is used, and whether it trains in a way that can be compressed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

from inc_torch.core.errors import ModelError

__all__ = ["check_strategy", "framework"]

_REFUSED = {
    "FSDPStrategy": "flattens weights, so that no pruning pattern and no int8 channel is seen in them",
    "DeepSpeedStrategy": "keeps weights and gradients in buffers of its own, where no mask reaches them",
}


def framework() -> ModuleType:
    """``lightning.pytorch``, or ``pytorch_lightning`` where it alone is installed, or imported so far.

    They are one code under two names; a Trainer of the one takes no callback of the other.
    """
    is_new_missing = importlib.util.find_spec("lightning") is None
    is_old_there = importlib.util.find_spec("pytorch_lightning") is not None
    is_old_in_use = "pytorch_lightning" in sys.modules and "lightning" not in sys.modules
    is_old = is_old_in_use or (is_new_missing and is_old_there)
    return importlib.import_module("pytorch_lightning" if is_old else "lightning.pytorch")


def check_strategy(trainer: Any) -> None:
    """Refuse to train where the weights are out of reach.

    Raises:
        ModelError: FSDP1 or DeepSpeed; what to use instead is named.
    """
    for kind in type(trainer.strategy).__mro__:
        if kind.__name__ in _REFUSED:
            message = (
                f"The Trainer uses {kind.__name__}, which {_REFUSED[kind.__name__]}. Use Trainer(strategy='ddp'), "
                "which trains in several processes and leaves the weights whole."
            )
            raise ModelError(message)
