"""What the samplers of Optuna have in common."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from inc_torch.core.user_warning import ignored
from inc_torch.tuning._strategy import Search

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["SHORTFALL", "constraints_accepted", "seed_of", "shortfall"]

SHORTFALL = "shortfall"
"""The user attribute of a trial that says by how much it misses the goal; 0 or less where it meets it."""


def seed_of(search: Search, number: int) -> int:
    """The seed of trial ``number``: 32 bits that have nothing to do with those of its neighbours."""
    return random.Random(f"{search.seed} {number}").getrandbits(32)


def shortfall(trial: FrozenTrial) -> list[float]:
    """By how much a trial misses the goal, as a constraint; what is not known counts as met, NaN as missed by far."""
    value = float(trial.user_attrs.get(SHORTFALL, 0.0))
    return [math.inf if math.isnan(value) else value]


@contextmanager
def constraints_accepted() -> Iterator[None]:
    """Let a sampler be built with a ``constraints_func``, which Optuna 4 calls experimental and Optuna 5 deprecated."""
    with ignored(message=".*constraints_func"):
        yield
