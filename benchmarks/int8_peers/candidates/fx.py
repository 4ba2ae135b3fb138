"""torch.ao's graph mode, static int8 with the engine onednn and its default configuration.

Encoders are written in plain PyTorch for it, with the same weights; embeddings stay in float.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping  # noqa: TID251  what is compared
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx  # noqa: TID251

from benchmarks.int8_peers.job import Inputs, Job, NotRunError, Runner
from benchmarks.int8_peers.plain_bert import PlainBert


def static(job: Job) -> Runner:
    torch.backends.quantized.engine = "onednn"
    if job.model.kind == "decoder":
        message = "torch.fx does not trace transformers' decoders"
        raise NotRunError(message)
    if job.model.kind == "vision":
        prepared = job.once("prepared", lambda: _calibrated(job.served, job.calibration))
        return convert_fx(copy.deepcopy(prepared))
    return _encoder(job, PlainBert(job.core))


def _encoder(job: Job, bert: PlainBert) -> Runner:
    class Layers(nn.Sequential):
        """The part that is traced: hidden state to hidden state."""

    layers = Layers(*bert.encoder["layer"])
    calibration = [(bert.embedded(inputs[0]),) for inputs in job.calibration]
    quantized = convert_fx(copy.deepcopy(job.once("prepared", lambda: _calibrated(layers, calibration))))

    def call(ids: Tensor, _: Tensor) -> Tensor:
        return quantized(bert.embedded(ids))

    return call


def _calibrated(module: nn.Module, calibration: list[Inputs]) -> nn.Module:
    prepared = prepare_fx(module.eval(), get_default_qconfig_mapping("onednn"), calibration[0])
    for inputs in calibration:
        prepared(*inputs)
    return prepared
