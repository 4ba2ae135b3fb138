"""Which kernels a model really runs: operators as torch's profiler sees them, and the compiled kernels of this package.

The older profiler of torch is asked first: it works in a forked process without a word, where the newer one prints
errors of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from inc_torch import kernels
from inc_torch.core.batches import Inputs, run

__all__ = ["OWN", "dispatched_kernels", "is_low_precision", "profile_rows"]

OWN: Final = "inc_torch."
"""What names of this package's kernels begin with."""

_LOW: Final = re.compile(
    r"qlinear|qconv|qadd|qmul|quantized::|_int_mm|int8pack_mm|int4pack_mm|_scaled_mm|fbgemm"
    r"|^inc_torch\.(linear|conv2d|few_bits_product)$|^dequantize\+"
)
_PRODUCTS: Final = re.compile(
    r"^aten::(addmm|mm|bmm|baddbmm|addbmm|addmv|mv|dot|_int_mm|_scaled_mm|_addmm_activation|_weight_int\w+"
    r"|mkldnn_\w*(conv|linear|rnn)\w*|\w*mkldnn_rnn\w*|cudnn_conv\w*|miopen_conv\w*|thnn_conv\w*|_slow_conv\w*|slow_conv\w*"
    r"|_conv_depthwise2d|_scaled_dot_product_\w*(flash|efficient|cudnn)\w*|lstm|gru|embedding|embedding_bag)$"
    r"|^(onednn|quantized|mkldnn|mkl|fbgemm|ipex_prepack)::|prepacked::|^dequantize\+.*(linear|conv|matmul)"
)
_HELPERS: Final = re.compile(r"prepack$|_wrapper$|::(size|stride|dim)$")


def is_low_precision(name: str) -> bool:
    """Whether a kernel multiplies codes of 8 bits or less.

    Example:
        >>> is_low_precision("onednn::qlinear_pointwise"), is_low_precision("aten::addmm")
        (True, False)
    """
    return bool(_LOW.search(name))


def dispatched_kernels(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """How often one forward calls each kernel that multiplies or looks up, most often first.

    Args:
        model: In evaluation mode.
        inputs: Of the forward.

    Example:
        >>> with torch.no_grad():
        ...     dispatched_kernels(nn.Linear(2, 2), Inputs((torch.ones(1, 2),)))
        {'aten::addmm': 1}
    """
    with kernels.counting_steps() as steps, _profiling(_device_of(inputs)) as events:
        run(model, inputs)
    found = Counter({f"{OWN}{kind}": calls for kind, calls in steps.items()})
    for event in events:
        if _PRODUCTS.search(event.key) and not _HELPERS.search(event.key):
            found[event.key] += event.count
    return dict(found.most_common())


def profile_rows(model: nn.Module, inputs: Inputs) -> list[dict[str, Any]]:
    """Time of every operator in one forward, the slowest first: a row each, in the columns of INC's profile.

    Example:
        >>> with torch.no_grad():
        ...     rows = profile_rows(nn.Linear(2, 2), Inputs((torch.ones(1, 2),)))
        >>> sorted(rows[0])[:3]
        ['accelerator_execution_time', 'cpu_execution_time', 'node_name']
    """
    with _profiling(_device_of(inputs)) as events:
        run(model, inputs)
    rows = [
        {
            "node_name": event.key,
            "total_execution_time": round(event.self_cpu_time_total + _on_device(event), 1),
            "accelerator_execution_time": round(_on_device(event), 1),
            "cpu_execution_time": round(event.self_cpu_time_total, 1),
            "op_run": event.count,
            "op_defined": event.count,
        }
        for event in events
    ]
    return sorted(rows, key=lambda row: row["total_execution_time"], reverse=True)


def _on_device(event: Any) -> float:  # noqa: ANN401  of torch's profiler
    return float(getattr(event, "self_device_time_total", 0.0) or 0.0)


def _device_of(inputs: Inputs) -> str:
    values: Iterable[object] = (*inputs.args, *inputs.kwargs.values())
    return next((value.device.type for value in values if isinstance(value, torch.Tensor)), "cpu")


@contextmanager
def _profiling(device: str) -> Iterator[list[Any]]:
    """Fill the list with torch's averages, one for each operator, when the block is through."""
    events: list[Any] = []
    if device == "cpu" and hasattr(torch.autograd, "profiler_legacy"):
        legacy: Any = torch.autograd.profiler_legacy
        profiler: Any = legacy.profile()
    else:
        profiler = torch.profiler.profile()
    with profiler:
        yield events
    events += profiler.key_averages()
