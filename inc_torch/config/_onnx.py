"""The configuration of an export to ONNX."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from inc_torch.config._base import Config, config, option
from inc_torch.config._checks import Place, choice, integer, items_of, names, optional
from inc_torch.config._readonly import FrozenDict

__all__ = ["WRITTEN_OPSET", "Torch2ONNXConfig"]

WRITTEN_OPSET = 18
"""The least set of operators that torch's exporter writes."""
LEAST_OPSET = 13
"""The first in which a weight has a scale for each channel."""


def _dtype(value: object, place: Place) -> str:
    return choice(("int8", "fp32"))(value, place)


def _quant_format(value: object, place: Place) -> str:
    if isinstance(value, str) and value.lower() in {"qlinear", "qoperator"}:
        hint = " Runtimes fuse such pairs into their int8 operators when they load the file."
        raise place.error(value, "'QDQ'", hint)
    return choice(("QDQ",))(value.upper() if isinstance(value, str) else value, place)


def _axes(value: object, place: Place) -> FrozenDict:
    """By name of an input or output ``{axis: name}``, or a list of axes, as torch.onnx has them."""
    made: dict[str, object] = {}
    for name, axes in items_of(value, place, "a dict from names of inputs to axes").items():
        entries = axes.items() if isinstance(axes, Mapping) else axes
        if not isinstance(entries, Iterable) or isinstance(entries, str):
            raise place.item(name).type_error(axes, _AXES)
        pairs = [entry if isinstance(entry, (list, tuple)) else (entry, f"{name}_{entry}") for entry in entries]
        if not all(len(pair) == _PAIR and isinstance(pair[0], int) and isinstance(pair[1], str) for pair in pairs):
            raise place.item(name).type_error(axes, _AXES)
        made[name] = tuple((axis, label) for axis, label in pairs)
    return FrozenDict(made)


_AXES = "a dict {axis: name} or a list of axes"
_PAIR = 2


def _anything(value: object, place: Place) -> object:  # noqa: ARG001  a check
    return value


@final
@config
class Torch2ONNXConfig(Config):
    """How a model is written as ONNX.

    Args:
        dtype: ``"int8"``, with QuantizeLinear and DequantizeLinear where the model rounds, or ``"fp32"``.
        opset_version: Set of operators. torch's exporter writes 18 and later; where less is asked, as by INC's default
            of 14, it is 18, with a warning.
        quant_format: ``"QDQ"``. INC's ``"QLinear"`` is not written.
        example_inputs: A batch to trace the model with: a mapping of keyword arguments, a tuple or list of positional
            ones, or the only one.
        input_names: Of the inputs in the file, in order.
        output_names: Of the outputs.
        dynamic_axes: Which axes may have other sizes: ``{"input_ids": {0: "batch", 1: "tokens"}}``; those of outputs
            follow by themselves. Without it the first axis of each input may.
        weight_type: ``"S8"``: weights are int8.
        recipe: INC's; of no effect, as it is with INC.

    Raises:
        ConfigError: An option is unknown or wrong.

    Example:
        >>> Torch2ONNXConfig(dynamic_axes={"x": [0]}).dynamic_axes
        {'x': ((0, 'x_0'),)}
    """

    dtype: str = option(_dtype, default="int8")
    opset_version: int = option(
        integer(f"a number of {LEAST_OPSET} or more", lambda x: x >= LEAST_OPSET), default=WRITTEN_OPSET
    )
    quant_format: str = option(_quant_format, default="QDQ")
    example_inputs: Any = option(_anything, default=None)
    input_names: Sequence[str] | None = option(optional(names), default=None)
    output_names: Sequence[str] | None = option(optional(names), default=None)
    dynamic_axes: Mapping[str, Any] | None = option(optional(_axes), default=None)
    weight_type: str = option(choice(("S8",)), default="S8", kw_only=True)
    recipe: Any = option(_anything, default=None, kw_only=True)
