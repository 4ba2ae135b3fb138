"""This package: as `quantization.fit` leaves the model, and made ready for inference."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from benchmarks.int8_peers.job import Inputs, Job, Runner


def converted(job: Job) -> Runner:
    return job.once("served", lambda: job.model.served(_quantized(job)))


def optimized(job: Job) -> Runner:
    from inc_torch import optimize_for_inference

    def ready() -> nn.Module:
        model = optimize_for_inference(_quantized(job), example_inputs=_batch(job, job.example))
        return job.model.served(model)

    return job.once("served", ready)


def _quantized(job: Job) -> nn.Module:
    """Static ranges, except that decoders get dynamic ones: their inputs have outliers that differ by token."""
    from inc_torch import PostTrainingQuantConfig, quantization

    if job.model.kind == "decoder":
        return _present(quantization.fit(job.core, PostTrainingQuantConfig(approach="dynamic")))
    batches = [_batch(job, inputs) for inputs in job.calibration]
    return _present(quantization.fit(job.core, PostTrainingQuantConfig(), calib_dataloader=batches))


def _batch(job: Job, inputs: Inputs) -> Tensor | dict[str, Tensor]:
    """Inputs as the model's own library takes them."""
    if job.model.kind == "vision":
        return inputs[0]
    if job.model.kind == "encoder":
        return dict(zip(("input_ids", "attention_mask"), inputs, strict=True))
    return {"input_ids": inputs[0]}


def _present(model: nn.Module | None) -> Any:
    if model is None:
        message = "quantization.fit returned no model"
        raise RuntimeError(message)
    return model
