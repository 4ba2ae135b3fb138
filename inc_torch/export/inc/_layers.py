"""What the state of an INC model says of each layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch

from inc_torch.core.errors import ArtifactError

__all__ = ["IncLayer", "IncModel", "Range", "flat", "parse"]

_PACKED: Final = "._packed_params."
_RANGE: Final = re.compile(r"(?P<place>.+?)(?P<dot>[._])(?P<what>scale|zero_point)(_(?P<index>\d+))?")
_DYNAMIC: Final = "dynamic"

Range = tuple[float, int]
"""Scale and zero point of a tensor that is held as uint8."""


@final
@dataclass(frozen=True, slots=True)
class IncLayer:
    """A layer with an int8 weight.

    Attributes:
        codes: int8, as the layer's own weight is shaped.
        scale: float32, one for each index of ``axis``.
        axis: Of the channels that have scales of their own.
        bias: float32, or None.
        is_dynamic: Its input gets a range in every forward.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    axis: int
    bias: torch.Tensor | None
    is_dynamic: bool

    def values(self) -> torch.Tensor:
        """The weight in float."""
        shape = [-1 if axis == self.axis else 1 for axis in range(self.codes.dim())]
        return self.codes.float() * self.scale.view(shape)


@final
@dataclass(slots=True)
class IncModel:
    """A parsed state.

    Attributes:
        layers: By module name.
        floats: Tensors that stay in float, by their names in the float model.
        outputs: The ranges of what modules and functions return, by module name, or the `flat` name of a place.
        inputs: The ranges of the inputs that are rounded just before a module, by its `flat` name.
    """

    layers: dict[str, IncLayer] = field(default_factory=dict)
    floats: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: dict[str, Range] = field(default_factory=dict)
    inputs: dict[str, Range] = field(default_factory=dict)


def flat(name: str) -> str:
    """A module name as torch.fx writes it into names of attributes.

    Example:
        >>> flat("encoder.layer.0.query.module")
        'encoder_layer_0_query'
    """
    return plain(name).replace(".", "_").removesuffix("_module")


def plain(name: str) -> str:
    """A name without the wrappers that INC puts around modules.

    Example:
        >>> plain("pooler.dense.module.scale"), plain("classifier.module")
        ('pooler.dense.scale', 'classifier')
    """
    return ".".join(part for part in name.split(".") if part != "module")


def parse(state: Mapping[str, Any], configure: Mapping[str, Any]) -> IncModel:
    """Sort the state of an INC model.

    Raises:
        ArtifactError: There is something in it that has no meaning here.
    """
    model = IncModel()
    numbers: dict[tuple[str, bool], dict[str, float]] = {}
    dynamic = _dynamic_layers(configure)
    for name, value in state.items():
        if _PACKED in name:
            _take_packed(model, name, value, dynamic)
        elif isinstance(value, torch.Tensor) and value.is_quantized:
            owner = plain(name).removesuffix(".weight")
            _take_weight(model, owner, value, state.get(name.removesuffix("weight") + "bias"), dynamic)
        elif isinstance(value, torch.Tensor):
            number = _RANGE.fullmatch(name) if value.numel() == 1 else None
            if number is None:
                model.floats[plain(name)] = value
            else:
                place = number["place"]
                numbers.setdefault((place, number["dot"] == "_"), {})[number["what"]] = value.item()
        else:
            message = f"INC's state holds {name!r} of type {type(value).__name__}, which inc_torch cannot take over."
            raise ArtifactError(message)
    for (place, is_attribute), found in numbers.items():
        _take_range(model, place, found, is_attribute=is_attribute)
    for name, layer in model.layers.items():
        model.floats.pop(f"{name}.bias", None)
        if layer.is_dynamic:
            model.outputs.pop(name, None)  # a scale of 1 that means nothing
    return model


def _dynamic_layers(configure: Mapping[str, Any]) -> set[str]:
    """Which operations get the range of their input in every forward, by module name."""
    operations = configure.get("op")
    if not isinstance(operations, Mapping):
        message = f"INC's configuration has op={operations!r}: expected a dict of operations."
        raise ArtifactError(message)
    return {
        plain(str(key[0] if isinstance(key, tuple) else key))
        for key, options in operations.items()
        if isinstance(options, Mapping)
        and isinstance(options.get("activation"), Mapping)
        and options["activation"].get("quant_mode") == _DYNAMIC
    }


def _take_packed(model: IncModel, name: str, value: object, dynamic: set[str]) -> None:
    owner, _, leaf = name.partition(_PACKED)
    owner = plain(owner)
    match leaf, value:
        case ("dtype", torch.dtype()):
            return
        case ("_packed_weight", torch.Tensor()):  # an embedding: rows with an offset each have no int8 form here
            model.floats[f"{owner}.weight"] = value.dequantize()
        case ("_packed_params", (torch.Tensor() as weight, bias)) if weight.is_quantized:
            _take_weight(model, owner, weight, bias, dynamic)
        case _:
            message = (
                f"INC's state holds {name!r}, which is no packed weight of a linear layer or an embedding: layers such "
                "as LSTM cannot be taken over. Quantize the float model again with inc_torch."
            )
            raise ArtifactError(message)


def _take_weight(model: IncModel, owner: str, weight: torch.Tensor, bias: object, dynamic: set[str]) -> None:
    floats = bias.detach().float() if isinstance(bias, torch.Tensor) else None
    if weight.dtype != torch.qint8 or not _is_symmetric(weight):
        model.floats[f"{owner}.weight"] = weight.dequantize()
        if floats is not None:
            model.floats[f"{owner}.bias"] = floats
        return
    if weight.qscheme() == torch.per_tensor_affine:
        axis, scale = 0, torch.full((weight.shape[0],), weight.q_scale())
    else:
        axis, scale = weight.q_per_channel_axis(), weight.q_per_channel_scales().float()
    model.layers[owner] = IncLayer(weight.int_repr(), scale, axis, floats, owner in dynamic)


def _is_symmetric(weight: torch.Tensor) -> bool:
    if weight.qscheme() == torch.per_tensor_affine:
        return weight.q_zero_point() == 0
    is_affine = weight.qscheme() in {torch.per_channel_affine, torch.per_channel_symmetric}
    return is_affine and not weight.q_per_channel_zero_points().any()


def _take_range(model: IncModel, place: str, found: Mapping[str, float], *, is_attribute: bool) -> None:
    if set(found) != {"scale", "zero_point"}:
        message = f"INC's state has only {sorted(found)} for {place!r}: expected a scale and a zero point."
        raise ArtifactError(message)
    limits = float(found["scale"]), int(found["zero_point"])
    if not is_attribute:
        model.outputs[plain(place)] = limits
    elif place.endswith("_input"):
        model.inputs[flat(place.removesuffix("_input"))] = limits
    else:
        model.outputs[flat(place)] = limits
