"""Compile the kernels now, not at their first use: ``python -m inc_torch.kernels``, for images and shared machines."""

from __future__ import annotations

import sys

from inc_torch.kernels._library import reason

__all__: list[str] = []

if __name__ == "__main__":
    missing = reason()
    print("inc_torch.kernels are ready." if missing is None else f"inc_torch.kernels cannot be used: {missing}")  # noqa: T201
    sys.exit(missing is not None)
