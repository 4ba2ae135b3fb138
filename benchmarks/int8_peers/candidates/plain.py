"""PyTorch without quantization: eager and compiled, float32 and bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.int8_peers.job import Job, Runner, in_channels_last


def eager(job: Job) -> Runner:
    return job.served


def compiled(job: Job) -> Runner:
    return _compile(in_channels_last(job))


def eager_bfloat16(job: Job) -> Runner:
    return _with_casts(in_channels_last(job).bfloat16())


def compiled_bfloat16(job: Job) -> Runner:
    return _with_casts(_compile(in_channels_last(job).bfloat16()))


def _compile(module: nn.Module) -> Any:
    torch.compiler.reset()  # compiled code is made for a number of threads
    # The option of torch.compile of this name does not reach the tracer: only the global setting freezes.
    torch._inductor.config.freezing = True
    return torch.compile(module)


def _with_casts(run: Runner) -> Runner:
    """Take and give float32, as the other candidates do."""

    def cast(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(cast(item) for item in value)
        return value.float()

    def call(*inputs: Tensor) -> Any:
        return cast(run(*(x.bfloat16() if x.is_floating_point() else x for x in inputs)))

    return call
