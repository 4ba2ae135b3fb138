"""Saved training states: their outer shape, and the random number generators in them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from inc_torch.core.errors import StateError

__all__ = ["FORMAT", "check_keys", "random_state", "set_random_state"]

FORMAT = "inc_torch/1"


def check_keys(owner: str, state: Mapping[str, Any], expected: set[str]) -> None:
    """Refuse a state whose keys are not exactly ``expected``.

    Raises:
        StateError: Keys are missing or unknown; both are listed.
    """
    missing, unknown = sorted(expected - set(state)), sorted(set(state) - expected)
    if missing or unknown:
        message = f"The saved state of {owner} does not fit: missing {missing}, unexpected {unknown}."
        raise StateError(message)


def random_state() -> dict[str, Any]:
    """The state of the generators of torch (all devices), numpy and Python, as tensors and plain values."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss_next],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators back to what `random_state` returned."""
    check_keys("the random number generators", state, {"torch", "cuda", "numpy", "python"})
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss_next))
