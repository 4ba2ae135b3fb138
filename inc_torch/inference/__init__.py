"""Int8 models that run as fast as the machine allows.

`optimize_for_inference` captures what a model computes with `torch.compile`, and runs it fused: by compiled kernels
over memory that is used again where there is a compiler and a processor for them, by operators of torch otherwise.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from inc_torch.inference._graphs import run_graph_fused

if TYPE_CHECKING:
    from inc_torch.inference._half_precision import fuse_half_precision
    from inc_torch.inference._optimize import optimize_for_inference

__all__ = ["fuse_half_precision", "optimize_for_inference", "run_graph_fused"]


def __getattr__(name: str) -> object:
    """Import what captures graphs when it is asked for."""
    if name == "fuse_half_precision":
        return importlib.import_module("inc_torch.inference._half_precision").fuse_half_precision
    if name == "optimize_for_inference":
        return importlib.import_module("inc_torch.inference._optimize").optimize_for_inference
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
