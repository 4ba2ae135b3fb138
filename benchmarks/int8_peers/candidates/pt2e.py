"""torchao's PT2E with the quantizer for x86, compiled by Inductor with frozen weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from benchmarks.int8_peers.job import Job, Runner, in_channels_last


def static(job: Job) -> Runner:
    """Static ranges, dynamic ones for decoders."""
    torch._inductor.config.freezing = True
    converted = job.once("converted", lambda: _converted(job))
    torch.compiler.reset()  # compiled code is made for a number of threads
    compiled = torch.compile(converted)

    def call(*inputs: Tensor) -> Any:
        # Frozen graphs were seen to write into an input that a residual connection adds to.
        return compiled(inputs[0].clone(), *inputs[1:])

    return call


def _converted(job: Job) -> Any:
    # strict: without it the quantizer refuses torchvision's ResNet.
    exported = torch.export.export(in_channels_last(job), job.example, strict=job.model.kind == "vision").module()
    dynamic = job.model.kind == "decoder"
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
    prepared = prepare_pt2e(exported, quantizer)
    for inputs in job.calibration:
        prepared(*inputs)
    return convert_pt2e(prepared)
