"""Ranges in summaries that Intel Neural Compressor wrote, by names of layers."""

from __future__ import annotations

from typing import NamedTuple, final

from inc_torch.ipex._summary import LAYERS, Summary, _entries, _is_int8, operations_of

__all__ = ["SummaryRange", "ranges_of"]


@final
class SummaryRange(NamedTuple):
    """How a layer reads its input.

    Attributes:
        scale: Distance of neighbouring codes.
        zero_point: Code of 0, in [0, 255].
        factor: What input channels were multiplied with first; None if they were not.
        weight_scale: Of each output channel; None if it is not there.
    """

    scale: float
    zero_point: int
    factor: tuple[float, ...] | None = None
    weight_scale: tuple[float, ...] | None = None


def ranges_of(summary: Summary) -> dict[str, SummaryRange]:
    """The ranges of the layers that a summary computes in int8.

    Example:
        >>> seen = {"id": 0, "force_dtype": "torch.quint8", "scale": [0.5], "zero_point": [3]}
        >>> entry = {"op_type": "<class 'torch.nn.modules.linear.Linear'>", "op_type_is_module": True, "fqn": "fc"}
        >>> ranges_of({" ": {"q_op_infos": {"0": entry | {"input_tensor_infos": [seen]}}}})
        {'fc': SummaryRange(scale=0.5, zero_point=3, factor=None, weight_scale=None)}
    """
    found = {}
    for operation, (_, index, entry) in zip(operations_of(summary), _entries(summary), strict=True):
        if operation.kind not in LAYERS or not _is_int8(entry):
            continue
        tensor = entry["input_tensor_infos"][0]
        key = f"{index}_0"
        scale, zero = (
            value.get(key, next(iter(value.values()))) if isinstance(value, dict) else value
            for value in (tensor["scale"], tensor["zero_point"])
        )
        factors = tensor.get("smooth_quant_scaling_factor")
        if isinstance(factors, dict):
            factors = factors.get(key, next(iter(factors.values())))
        # Signed codes lie 128 below.
        shift = 128 if tensor["force_dtype"] == "torch.qint8" else 0
        factor = None if factors is None else tuple(float(value) for value in factors)
        stored: list[dict[str, list[float]]] = entry.get("weight_tensor_infos", [])
        weights = stored[0].get("scale") if stored else None
        per_channel = None if weights is None else tuple(map(float, weights))
        found[operation.name] = SummaryRange(float(scale[0]), int(zero[0]) + shift, factor, per_channel)
    return found
