"""Intel Extension for PyTorch: static int8, traced and frozen. Its last release needs torch 2.8."""

from __future__ import annotations

import torch
from intel_extension_for_pytorch.quantization import convert, default_static_qconfig_mapping, prepare
from torch import nn

from benchmarks.int8_peers.job import Job, Runner, in_channels_last

SETTLING_RUNS = 3  # the profiling executor optimizes in its first calls


def static(job: Job) -> Runner:
    converted = job.once("converted", lambda: _converted(job))
    traced = torch.jit.freeze(torch.jit.trace(converted, job.example, strict=False).eval())
    for _ in range(SETTLING_RUNS):
        traced(*job.example)
    return traced


def _converted(job: Job) -> nn.Module:
    prepared = prepare(in_channels_last(job), default_static_qconfig_mapping, example_inputs=job.example, inplace=False)
    for inputs in job.calibration:
        prepared(*inputs)
    return convert(prepared)
