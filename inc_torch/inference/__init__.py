"""Int8 models that run as fast as the machine allows.

`optimize_for_inference` captures what a model computes with `torch.compile`, and runs it fused: by compiled kernels
over memory that is used again where there is a compiler and a processor for them, by operators of torch otherwise.
"""

from __future__ import annotations

from inc_torch.inference._graph_executor import run_graph_fused
from inc_torch.inference._optimize import optimize_for_inference

__all__ = ["optimize_for_inference", "run_graph_fused"]
