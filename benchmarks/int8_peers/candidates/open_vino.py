"""OpenVINO, int8 by NNCF: static by default, weights only for decoders, as its own pages advise for them."""

from __future__ import annotations

from typing import Any

import nncf
import openvino
import torch
from torch import Tensor

from benchmarks.int8_peers.job import Job, Runner


def static(job: Job) -> Runner:
    path = job.scratch / "int8.xml"
    if not path.exists():
        openvino.save_model(_quantized(job), path, compress_to_fp16=False)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    request = compiled.create_infer_request()
    outputs = len(compiled.outputs)

    def call(*inputs: Tensor) -> Any:
        request.infer([x.numpy() for x in inputs], share_inputs=True, share_outputs=True)
        got = tuple(torch.from_numpy(request.get_output_tensor(index).data) for index in range(outputs))
        return got[0] if outputs == 1 else got

    return call


def _quantized(job: Job) -> openvino.Model:
    if job.model.kind == "decoder":
        # By way of ONNX: from torch.export OpenVINO does not read a cache that appends to an empty tensor.
        path = job.scratch / "float.onnx"
        torch.onnx.export(job.served, job.example, dynamo=True).save(path)
        return nncf.compress_weights(openvino.convert_model(path), mode=nncf.CompressWeightsMode.INT8_ASYM)
    model = openvino.convert_model(torch.export.export(job.served, job.example))
    batches = nncf.Dataset(job.calibration, lambda inputs: tuple(x.numpy() for x in inputs))
    kind = nncf.ModelType.TRANSFORMER if job.model.kind == "encoder" else None
    return nncf.quantize(model, batches, model_type=kind, subset_size=len(job.calibration))
