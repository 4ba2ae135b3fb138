"""What is known to keep a compressed model from being faster, said of a model that was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import nn

from inc_torch import kernels
from inc_torch.benchmark._dispatch import OWN, is_low_precision
from inc_torch.core.errors import listed
from inc_torch.core.names import named_layers
from inc_torch.core.program import program_of
from inc_torch.quantizers import (
    Int8DynamicLinear,
    Int8Embedding,
    Int8Linear,
    Int8Module,
    WeightOnlyLinear,
    fake_quant_modules,
)

__all__ = ["advice_on", "count_classes"]

_NOTABLE: Final = 0.3
"""Share of zeros from which somebody has pruned."""
_SMALL: Final = 2**14
"""Values of a weight below which rounding the input costs as much as an int8 product saves."""
_MATRIX: Final = 2


def count_classes(model: nn.Module) -> dict[str, int]:
    """How many modules of each class have weights of their own, most first.

    Example:
        >>> count_classes(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
        {'Linear': 2}
    """
    found = Counter(type(module).__name__ for _, module in named_layers(model) if _has_weights(module))
    return dict(found.most_common())


def advice_on(model: nn.Module, dispatched: Mapping[str, int]) -> list[str]:
    """A sentence for each known reason why ``model`` is not as fast as one may expect.

    Args:
        model: The model.
        dispatched: Kernels that it ran, see `dispatched_kernels`; empty if nobody looked.

    Example:
        >>> pruned = nn.Linear(64, 64)
        >>> _ = pruned.weight.data[:32].zero_()
        >>> advice_on(pruned, {})[0][:52]
        "50.0% of the weights of 1 float layer ('') are zeros"
    """
    return [
        *_of_fake_quant(model),
        *_of_zeros(model),
        *_of_weight_only(model, dispatched),
        *(_of_int8(model, dispatched) if program_of(model) is None else ()),
    ]


def _of_fake_quant(model: nn.Module) -> Iterator[str]:
    names = [name for name, _ in fake_quant_modules(model)]
    # Those of torch.ao, whose classes are not imported for that.
    others = [name for name, module in model.named_modules() if "FakeQuant" in type(module).__name__]
    names += [name for name in others if name not in names]
    if names:
        yield (
            f"Fake-quant is left in {_layers(names)}: rounding is computed beside float, which is slower than float. "
            "Measure the model after on_train_end, which makes it int8."
        )


def _of_zeros(model: nn.Module) -> Iterator[str]:
    zeros = total = 0
    names = []
    for name, module in named_layers(model):
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if weight is None or weight.dim() < _MATRIX or weight.is_meta or weight.layout is not torch.strided:
            continue
        own = weight.numel() - int(torch.count_nonzero(weight.detach()))
        if type(weight.detach()) in (torch.Tensor, nn.Parameter) and own >= _NOTABLE * weight.numel():
            names.append(name)
            zeros, total = zeros + own, total + weight.numel()
    if names:
        yield (
            f"{zeros / total:.1%} of the weights of {_layers(names, 'float layer')} are zeros, which dense kernels "
            "multiply like any other value: masks alone make nothing faster. Take channels out "
            "(inc_torch.pruners.slimming), use 2:4 on a GPU (to_sparse_semi_structured), or quantize."
        )


def _of_weight_only(model: nn.Module, dispatched: Mapping[str, int]) -> Iterator[str]:
    names = [name for name, module in named_layers(model) if isinstance(module, WeightOnlyLinear)]
    if names and not any(map(is_low_precision, dispatched)):
        yield (
            f"Weights of {_layers(names)} are codes of a few bits that are unpacked in each forward: that saves "
            "memory, and takes time. Only few rows of inputs are multiplied with codes, as when a text is written."
        )


def _of_int8(model: nn.Module, dispatched: Mapping[str, int]) -> Iterator[str]:
    layers = {
        name: module
        for name, module in named_layers(model)
        if isinstance(module, Int8Module) and not isinstance(module, WeightOnlyLinear | Int8Embedding)
    }
    if not layers:
        return
    # On GPUs linear layers have a product of codes.
    elsewhere = [
        name
        for name, module in layers.items()
        if module.qweight.device.type != "cpu"
        and not (module.qweight.is_cuda and isinstance(module, Int8Linear | Int8DynamicLinear))
    ]
    without = {name: module.kernel for name, module in layers.items() if module.kernel.startswith("float")}
    if elsewhere:
        yield f"{_layers(elsewhere)} on a device without int8 kernels for them compute in float from codes."
    elif without:
        yield f"{_layers(list(without))} compute in float: {next(iter(without.values()))}."
    elif dispatched and not any(map(is_low_precision, dispatched)):
        yield f"No int8 kernel was seen, though {_layers(list(layers))} hold int8 codes: they compute in float."
    small = [name for name, module in layers.items() if module.qweight.numel() < _SMALL]
    if len(small) > len(layers) / 2:
        yield (
            f"{len(small)} of {len(layers)} int8 layers have less than {_SMALL} weights: rounding what goes in costs "
            "as much as the product saves. Leave small layers in float, or give larger batches."
        )
    if dispatched and not any(name.startswith(OWN) for name in dispatched) and not elsewhere:
        if kernels.available():
            yield "The model runs layer by layer: inc_torch.optimize_for_inference(model) fuses what lies between."
        else:
            yield f"The compiled int8 kernels of inc_torch are not used: {kernels.reason()}"


def _layers(names: list[str], kind: str = "layer") -> str:
    return f"{len(names)} {kind}{'s' * (len(names) != 1)} ({listed(names, most=2)})"


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False)) or "qweight" in dict(module.named_buffers(recurse=False))
