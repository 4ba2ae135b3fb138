"""From a language model with weights of a few bits to one that is written as a directory of GPTQ."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

import inc_torch
from inc_torch.core.errors import InexactWarning, ModelError, listed
from inc_torch.core.report import CompressionReport
from inc_torch.core.user_warning import warn_user
from inc_torch.export import attach_report, attached_report
from inc_torch.export._packed import packed_copy, refuse_layers
from inc_torch.export._tensors import int8_modules
from inc_torch.huggingface._float import to_float
from inc_torch.huggingface._gptq_tensors import FORMATS
from inc_torch.huggingface._layout import untie
from inc_torch.precision import describe_bfloat16
from inc_torch.quantizers import OPTIMUM, WeightOnlyLinear, group_of_each, named_weight_only, quantized_kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["gptq_copy"]

_MULTIPLE: Final = 32
"""Of inputs and outputs: readers have no kernels for layers of other sizes."""
_FLOAT: Final = "float: directories of GPTQ have codes in the blocks alone"
_MARKS: Final = ("hf_quantizer", "is_quantized", "quantization_method")
"""What a model of transformers has that was quantized, so that its ``save_pretrained`` asks the quantizer."""


def gptq_copy(model: PreTrainedModel) -> Any:  # noqa: ANN401  a PreTrainedModel
    """Copy a model so that its ``save_pretrained`` writes what readers of GPTQ open; the copy is for that alone.

    Layers in the blocks hold the tensors of AutoGPTQ, in the format "gptq", or "gptq_v2" where a zero point is 0, of
    which "gptq" keeps one less. Layers outside of the blocks, such as the head, are float again, with the values of
    their codes: readers look for codes in the blocks alone.

    Args:
        model: Quantized with ``approach="weight_only"``; it stays as it is.

    Raises:
        ModelError: The format has no place for a layer, or layers differ in what is said once for all of them.

    Warns:
        InexactWarning: Layers outside of the blocks are written in float.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, WeightOnlyLinear)}
    blocks = _blocks_of(model, layers)
    inside = {name: layer for name, layer in layers.items() if _lies_in(name, blocks)}
    outside = {name: layer for name, layer in layers.items() if name not in inside}
    refuse_layers(inside, _obstacle, "GPTQ")
    _refuse_unequal(inside)
    copy: Any = packed_copy(model, OPTIMUM, inside)
    untie(copy, int8_modules(copy))
    _leave_float(model, copy, outside)
    form = FORMATS[1] if any(_has_zero(layer) for layer in inside.values()) else FORMATS[0]
    for name in inside:
        _complete(copy.get_submodule(name), form)
    for name in _MARKS:
        copy.__dict__.pop(name, None)
    copy.__dict__["_weight_conversions"] = []
    copy.config.quantization_config = _description(copy, inside, blocks, form)
    return copy


def _blocks_of(model: PreTrainedModel, layers: Collection[str]) -> str:
    """The name of the list of blocks.

    Raises:
        ModelError: There is none, or the model holds what the format does not know.
    """
    name = type(model).__name__
    others = [other for other in int8_modules(model) if other not in layers] + list(describe_bfloat16(model))
    if others:
        message = f"GPTQ has no place for {listed(others)} of {name}: expected float layers and weight-only ones."
        raise ModelError(message)
    if model.main_input_name != "input_ids":
        message = f"GPTQ has no place for {name}: its readers open language models, whose input is input_ids."
        raise ModelError(message)
    found = Counter(match[1] for layer in layers if (match := re.match(r"(.+?)\.\d+\.", layer)))
    if not found:
        message = (
            f"{name} has no weight-only layer in a list of blocks: expected one, quantized with "
            'PostTrainingQuantConfig(approach="weight_only"), as directories of GPTQ have codes there.'
        )
        raise ModelError(message)
    return found.most_common(1)[0][0]


def _lies_in(name: str, blocks: str) -> bool:
    return name.startswith(f"{blocks}.")


def _obstacle(layer: WeightOnlyLinear) -> str | None:
    """Why readers have no kernel for a layer; what its layout forbids is said by `packed_copy`."""
    scheme, (outputs, inputs) = named_weight_only(layer.scheme), layer.weight_shape
    if outputs % _MULTIPLE or inputs % _MULTIPLE:
        return (
            f"{outputs} outputs and {inputs} inputs are no multiples of {_MULTIPLE}. Leave it in float by op_name_dict"
        )
    if scheme.group_size != -1 and scheme.group_size < inputs and inputs % scheme.group_size:
        return f"{inputs} inputs are no multiple of its group size, {scheme.group_size}"
    return None


def _refuse_unequal(layers: Mapping[str, WeightOnlyLinear]) -> None:
    """Refuse layers of other bits or group sizes than most have: both are said once for the directory."""
    kinds = {name: (scheme.bits, scheme.group_size) for name, scheme in _schemes(layers).items()}
    (bits, group_size), _ = Counter(kinds.values()).most_common(1)[0]
    others = [name for name, kind in kinds.items() if kind != (bits, group_size)]
    if others:
        other = kinds[others[0]]
        message = (
            f"Directories of GPTQ have one number of bits and one group size for all layers: {listed(others)} has "
            f"{other[0]} bits and group size {other[1]}, the others {bits} and {group_size}. Quantize all alike, leave "
            "some in float, or save with quant_method='inc_torch'."
        )
        raise ModelError(message)


def _schemes(layers: Mapping[str, WeightOnlyLinear]) -> dict[str, Any]:
    return {name: named_weight_only(layer.scheme) for name, layer in layers.items()}


def _leave_float(model: PreTrainedModel, copy: Any, outside: Mapping[str, WeightOnlyLinear]) -> None:  # noqa: ANN401
    """Make layers of the copy float again, and say so in its report."""
    refuse_layers(outside, lambda layer: "it lies outside of the blocks" if hasattr(layer, "nx") else None, "GPTQ")
    report = attached_report(copy) or CompressionReport.measure(copy)
    for name in outside:
        to_float(copy.get_submodule(name), WeightOnlyLinear.kind)
    if outside:
        message = f"{listed([*outside])} of {type(model).__name__} is written in {_FLOAT}; the values stay the same."
        warn_user(message, InexactWarning)
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # of transformers
    if any(layer is head for layer in outside.values()):
        for config in {id(config): config for config in (copy.config, copy.config.get_text_config())}.values():
            config.tie_word_embeddings = False
    findings = [
        replace(finding, scheme=None, note=_FLOAT) if finding.module in outside else finding
        for finding in report.findings()
    ]
    attach_report(copy, CompressionReport.measure(copy, findings, report.sparsity_over_steps))


def _has_zero(layer: WeightOnlyLinear) -> bool:
    zero_points = layer.rounded().zero_points
    return zero_points is not None and bool((zero_points == 0).any())


def _complete(layer: WeightOnlyLinear, form: str) -> None:
    """Give a layer the group of each input, and zero points as this format stores them."""
    scheme, inputs = named_weight_only(layer.scheme), layer.weight_shape[1]
    if layer.g_idx is None:
        layer.g_idx = group_of_each(scheme, inputs).to(layer.qweight.device, torch.int32)
    if form != FORMATS[0]:
        one_less = OPTIMUM.unpacked(layer._buffers, replace(scheme, symmetric=False), inputs)
        zeros = None if one_less.zero_points is None else one_less.zero_points + 1
        layer.qzeros = OPTIMUM.packed(one_less._replace(zero_points=zeros), scheme, None)["qzeros"]


def _description(copy: Any, inside: Collection[str], blocks: str, form: str) -> dict[str, object]:  # noqa: ANN401
    """What ``config.json`` says of the layers, in the words of transformers, AutoGPTQ and GPTQModel."""
    modules = dict(copy.named_modules())
    schemes = _schemes({name: modules[name] for name in inside})
    scheme = next(iter(schemes.values()))
    reordered = [name for name in inside if not torch.equal(modules[name].g_idx.sort().values, modules[name].g_idx)]
    floats = [
        name for name, module in modules.items() if _lies_in(name, blocks) and name not in inside and _is_linear(module)
    ]
    described = {
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "sym": all(scheme.symmetric for scheme in schemes.values()),
        "desc_act": bool(reordered),
        "checkpoint_format": form,
        "lm_head": False,
        "block_name_to_quantize": blocks,
        "meta": {"quantizer": [f"inc_torch:{inc_torch.__version__}"]},
    }
    if floats:
        ending = blocks.rpartition(".")[0]
        described["modules_in_block_to_quantize"] = [[name.removeprefix(f"{ending}.") for name in inside]]
        described["dynamic"] = {f"-:^{re.escape(name)}$": {} for name in floats}
    return described


def _is_linear(module: nn.Module) -> bool:
    kind = quantized_kind(type(module))
    return kind is not None and kind.kind == WeightOnlyLinear.replaces
