"""ONNX Runtime: static int8 in QDQ form, unsigned inputs and signed weights by channel; dynamic for decoders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from benchmarks.int8_peers.job import Inputs, Job, Runner


def static(job: Job) -> Runner:
    path = job.scratch / "int8.onnx"
    if not path.exists():
        _quantize(job, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def call(*inputs: Tensor) -> Any:
        feed = _by_name(names, inputs)
        got = tuple(torch.from_numpy(array) for array in session.run(None, feed))
        return got[0] if len(got) == 1 else got

    return call


class _Batches(CalibrationDataReader):
    def __init__(self, names: list[str], batches: list[Inputs]) -> None:
        self.left: Iterator[dict[str, np.ndarray]] = iter([_by_name(names, batch) for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def _by_name(names: list[str], inputs: Inputs) -> dict[str, np.ndarray]:
    """Name the inputs; the exporter leaves out those that do not matter, such as a mask of ones."""
    return {name: x.numpy() for x, name in zip(inputs, ORDER[len(inputs)], strict=True) if name in names}


# Names by number of inputs: pictures; encoders; decoders.
ORDER = {1: ("pictures",), 2: ("ids", "mask"), 4: ("token", "position", "keys", "values")}


def _quantize(job: Job, path: Path) -> None:
    plain, ready = job.scratch / "float.onnx", job.scratch / "prepared.onnx"
    program = torch.onnx.export(job.served, job.example, dynamo=True, input_names=list(ORDER[len(job.example)]))
    program.save(plain)
    quant_pre_process(plain, ready, skip_symbolic_shape=True)
    if job.model.kind == "decoder":
        quantize_dynamic(ready, path, per_channel=True, weight_type=QuantType.QInt8)
        return
    names = [entry.name for entry in onnxruntime.InferenceSession(ready).get_inputs()]
    quantize_static(
        ready,
        path,
        _Batches(names, job.calibration),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
