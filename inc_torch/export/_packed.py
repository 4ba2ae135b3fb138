"""Models of a few bits in the layouts that Intel Neural Compressor packs weights in."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping

import torch
from torch import nn

from inc_torch.core.borrowing import borrowing_copy, own_parameters_
from inc_torch.core.errors import ConfigError, InexactWarning, ModelError, listed
from inc_torch.core.names import unwrapped
from inc_torch.core.user_warning import warn_user
from inc_torch.export._proof import attach_report, attached_report, measured_report
from inc_torch.quantizers import (
    CONTAINERS,
    OPTIMUM,
    SCALE_DTYPES,
    Int8Module,
    WeightOnlyLinear,
    WordLayout,
    named_weight_only,
)

__all__ = ["export_compressed_model", "layout_of", "packed_copy", "refuse_layers"]

_NAME = "export_compressed_model"


def export_compressed_model(  # noqa: PLR0913, PLR0917  the arguments of INC, in its order
    model: nn.Module,
    qweight_config_path: str | os.PathLike[str] | None = None,
    enable_full_range: bool = False,
    compression_dtype: torch.dtype = torch.int32,
    compression_dim: int = 1,
    scale_dtype: torch.dtype = torch.float32,
    gptq_config_path: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    use_optimum_format: bool = True,
) -> nn.Module:
    """Copy a weight-only model with its packed weights in optimum's layout, or in another one of INC.

    Every `WeightOnlyLinear` of the copy holds the buffers that INC's layer of that name holds::

        optimum     qweight int32 [words of in, out], scales float16 [groups, out], qzeros int32 [groups, words of out]
        otherwise   qweight [out, words of in], or [words of out, in] with compression_dim 0; scales [out, groups];
                    qzeros where scheme is "asym"

    and ``bias`` and ``g_idx`` where the layer has them. It computes with these, and is saved and loaded like any other.
    Codes are those of the model: nothing is rounded but scales and bias, to 16 bits in optimum's layout.

    Float Parameters, and the buffers of layers that are laid out so already, belong to both models afterwards.

    Args:
        model: Quantized with ``approach="weight_only"``; it stays as it is.
        qweight_config_path: No effect: layers know how they are quantized.
        enable_full_range: No effect, as nothing is rounded again: give it in ``rtn_args`` when you quantize.
        compression_dtype: What words are: int8, int16, int32 or int64; int32 in optimum's layout.
        compression_dim: 1 has neighbouring inputs in one word, 0 neighbouring outputs; 1 in optimum's layout.
        scale_dtype: Of scales and bias: float32, float16 or bfloat16; always float16 in optimum's layout.
        gptq_config_path: No effect: layers that GPTQ rounded hold its codes.
        device: Where the copy is.
        use_optimum_format: The layout of optimum and AutoGPTQ; False for that of INC.

    Raises:
        ConfigError: An argument is not one of these.
        ModelError: There is no layer with packed weights, or one that the layout has no place for.

    Warns:
        InexactWarning: An argument was given that has no effect.

    Source: INC 2.6.1, the method of the same name; the same words. INC rounds the float weights of its model again,
    with the ``enable_full_range`` given here and without the clip ratios of the first time.

    Example:
        >>> from inc_torch import PostTrainingQuantConfig, quantization
        >>> model = nn.Sequential(nn.Linear(64, 8))
        >>> small = quantization.fit(model, PostTrainingQuantConfig(approach="weight_only"))
        >>> packed = small.export_compressed_model()
        >>> {name: tuple(tensor.shape) for name, tensor in packed[0].state_dict().items()}
        {'qweight': (8, 8), 'scales': (2, 8), 'qzeros': (2, 1), 'bias': (8,)}
        >>> packed(torch.zeros(2, 64)).shape
        torch.Size([2, 8])
    """
    layout = layout_of(compression_dtype, compression_dim, scale_dtype, use_optimum_format=use_optimum_format)
    place = _device(device)
    idle = {
        "qweight_config_path": (qweight_config_path, "layers know how they are quantized"),
        "gptq_config_path": (gptq_config_path, "layers that GPTQ rounded hold its codes"),
        "enable_full_range": (enable_full_range, "nothing is rounded again; give it in rtn_args of recipes"),
    }
    for name, (value, reason) in idle.items():
        if value:
            warn_user(f"{_NAME}({name}={value!r}) has no effect: {reason}.", InexactWarning)
    inner = unwrapped(model)
    copy = packed_copy(inner, layout)
    if any(tensor.device != place for tensor in [*copy.parameters(), *copy.buffers()]):
        own_parameters_(copy, inner)
        copy.to(place)
    return copy


def packed_copy(model: nn.Module, layout: WordLayout, names: Collection[str] | None = None) -> nn.Module:
    """Copy a model with the weights of its `WeightOnlyLinear` in this layout.

    Args:
        model: It stays as it is.
        layout: Of all of them.
        names: Of some of them; None is all.

    Raises:
        ModelError: There is none, or one that the layout has no place for.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, WeightOnlyLinear)}
    if not layers:
        message = (
            f"{_NAME} was given a {type(model).__name__} without packed weights: expected a model of "
            'quantization.fit with PostTrainingQuantConfig(approach="weight_only").'
        )
        raise ModelError(message)
    layers = layers if names is None else {name: layers[name] for name in names}
    refuse_layers(layers, lambda layer: _obstacle(layer, layout))
    lent = [
        buffer
        for module in model.modules()
        if isinstance(module, Int8Module)
        for buffer in module._buffers.values()
        if buffer is not None
    ]
    copy = borrowing_copy(model, lent)
    for name, module in copy.named_modules():
        if name in layers and isinstance(module, WeightOnlyLinear):
            module.lay_out(layout)
    attach_report(copy, measured_report(copy, attached_report(model)))
    return copy


def layout_of(
    compression_dtype: torch.dtype, compression_dim: int, scale_dtype: torch.dtype, *, use_optimum_format: bool
) -> WordLayout:
    """The layout that these arguments of INC ask for.

    Raises:
        ConfigError: There is none.

    Example:
        >>> layout_of(torch.int8, 0, torch.float16, use_optimum_format=False).name
        'int8-dim0-float16'
    """
    if use_optimum_format not in {True, False}:
        wrong = _wrong("use_optimum_format", use_optimum_format, "True or False")
        raise wrong
    given = {
        "compression_dtype": (compression_dtype, CONTAINERS, (torch.int32,)),
        "compression_dim": (compression_dim, (0, 1), (1,)),
        "scale_dtype": (scale_dtype, SCALE_DTYPES, (torch.float32, torch.float16)),
    }
    for name, (value, known, of_optimum) in given.items():
        if isinstance(value, bool) or value not in known:
            want = f"one of {', '.join(map(str, known))}"
            raise _wrong(name, value, want)
        if use_optimum_format and value not in of_optimum:
            want = f"{of_optimum[-1]}, as optimum's layout has it. Leave it out, or give use_optimum_format=False"
            raise _wrong(name, value, want)
    return OPTIMUM if use_optimum_format else WordLayout(compression_dtype, compression_dim, scale_dtype)


def _obstacle(layer: WeightOnlyLinear, layout: WordLayout) -> str | None:
    """Why a layer has no place in a layout, as part of a sentence; None if it has."""
    if (reason := layout.reason_against(named_weight_only(layer.scheme))) is not None:
        return f"{reason}: quantize it otherwise, or give use_optimum_format=False"
    if layer._buffers.get("input_factor") is not None:
        return (
            "its inputs are multiplied with a factor, for which there is no place: give "
            "recipes={'awq_args': {'folding': True}} when you quantize"
        )
    for name in ("scales", "bias"):
        tensor = layer._buffers.get(name)
        if tensor is not None and _is_lost(tensor, layout.scale_dtype):
            return (
                f"{str(layout.scale_dtype).removeprefix('torch.')} cannot hold its {name}: give "
                "use_optimum_format=False with scale_dtype=torch.float32"
            )
    return None


def _is_lost(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a finite value becomes infinite, or all of them 0."""
    cast = tensor.to(dtype)
    overflows = tensor.isfinite() & ~cast.isfinite()
    return bool(overflows.any()) or bool(tensor.any()) > bool(cast.any())


def refuse_layers(
    layers: Mapping[str, WeightOnlyLinear], obstacle: Callable[[WeightOnlyLinear], str | None], asked: str = _NAME
) -> None:
    """Refuse all layers at once that there is the same obstacle for as for the first.

    Args:
        layers: By name.
        obstacle: Gives a reason as part of a sentence, and the way out; None where there is none.
        asked: What has no place for them.

    Raises:
        ModelError: There is an obstacle.
    """
    reasons = {name: reason for name, layer in layers.items() if (reason := obstacle(layer)) is not None}
    if reasons:
        first = next(iter(reasons.values()))
        same = [name or "(root)" for name, reason in reasons.items() if reason == first]
        message = f"{asked} has no place for {listed(same)}: {first}."
        raise ModelError(message)


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        first = str(error).partition("\n")[0]
        want = f"a device of this machine ({first})"
        wrong = _wrong("device", device, want)
        raise wrong from error


def _wrong(name: str, value: object, want: str) -> ConfigError:
    return ConfigError(f"{_NAME}({name}={value!r}): expected {want}.")
