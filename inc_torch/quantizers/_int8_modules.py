"""Modules that hold int8 codes and compute on them.

They are made by exchanging the class of a float module (`Int8Module.adopt`), so the object, its name, its hooks and
its geometry (``in_features``, ``stride`` ...) stay. What they hold are plain buffers:

    qweight           int8     [out, in, *kernel], or [rows, dimension]
    weight_scale      float32  [out], or [rows]
    bias              float32  [out], or None
    input_scale       float32  scalar            not for embeddings
    input_zero_point  int32    scalar            not for embeddings

The packed weight of the kernel is derived from them at the first forward; it is never saved, copied or moved.
Nothing here is differentiable: outputs do not require a gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self, final

import torch
import torch.nn.functional as F
from torch import nn

from inc_torch.quantizers._codes import InputGrid, decode, encode
from inc_torch.quantizers._scheme_names import input_top

__all__ = [
    "INT8_CLASSES",
    "Int8Conv1d",
    "Int8Conv2d",
    "Int8Conv3d",
    "Int8Embedding",
    "Int8Linear",
    "Int8Module",
    "onednn_operator",
]

_NATIVE_DTYPES: Final = frozenset({torch.float32, torch.bfloat16, torch.float16})
_WRITTEN_DTYPES: Final = {torch.float16: torch.float32}
"""What the kernel is told to write instead: asked for float16, that of torch 2.8 gives uint8."""
_CHANNELS_LAST: Final = {4: torch.channels_last, 5: torch.channels_last_3d}
_AUTOCAST_DEVICES: Final = frozenset({"cpu", "cuda"})
"""Devices that surely have autocast; asking torch takes time that counts in small layers."""
_PLAIN_OUTPUT: Final = (1.0, 0)
"""Scale and zero point of an output that is not quantized."""
_NO_POST_OPERATION: Final[tuple[str, list[float | None], str]] = ("none", [], "")


def onednn_operator(name: str) -> Callable[..., torch.Tensor] | None:
    """The default overload of ``torch.ops.onednn.<name>``, or None where this build of torch has none."""
    packet = getattr(torch.ops.onednn, name, None)
    return None if packet is None else packet.default


@final
@dataclass(slots=True)
class _Plan:
    """Everything that a forward needs, out of the module's slow attribute look-up. Derived, never saved."""

    source: torch.Tensor
    operator: Callable[..., torch.Tensor] | None
    grid: InputGrid
    shift: torch.Tensor
    weight_scale: torch.Tensor
    weight_zero_point: torch.Tensor
    bias: torch.Tensor | None
    packed: torch.Tensor | None = None
    packed_for: tuple[int, ...] = ()
    last_seen: tuple[int, ...] = ()


class Int8Module(nn.Module):
    """What the int8 modules share: their buffers and how these travel.

    Attributes:
        kind: Name of the class in saved descriptions.
        scheme: Name of the scheme.
        float_dtype: What the module counts as in a model of mixed dtypes; follows ``.to(dtype)``.
    """

    kind: ClassVar[str]

    scheme: str
    float_dtype: torch.dtype
    qweight: torch.Tensor
    weight_scale: torch.Tensor
    _plan: _Plan | None

    @classmethod
    def adopt(cls, module: nn.Module, scheme: str, buffers: Mapping[str, torch.Tensor | None]) -> None:
        """Turn ``module`` into this class: float Parameters go, ``buffers`` come.

        Args:
            module: A float module with the geometry that this class reads.
            scheme: Name of the scheme.
            buffers: By name, see the head of this file.
        """
        weight = module.get_parameter("weight")
        module._parameters.clear()
        module.__class__ = cls
        module.__dict__.update(scheme=scheme, float_dtype=weight.dtype, _plan=None)
        for name, buffer in buffers.items():
            module.register_buffer(name, buffer)

    @property
    def weight(self) -> torch.Tensor:
        """The weight as float, computed at each access, for code that asks for its dtype or device."""
        return self._float_weight().to(self.float_dtype)

    @property
    def kernel(self) -> str:
        """What computes on the CPU: ``"onednn"``, or ``"float"`` and the reason."""
        return "float: rows are looked up and scaled"

    def _float_weight(self) -> torch.Tensor:
        scale = self.weight_scale.view(-1, *[1] * (self.qweight.dim() - 1))
        return self.qweight.to(torch.float32).mul_(scale)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move, but keep dtypes: ``.half()`` and ``.bfloat16()`` change what goes in and out, not codes and scales."""
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for name, buffer in before.items():
            after = self._buffers[name]
            if after is not None and after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        self.float_dtype = fn(torch.empty(0, dtype=self.float_dtype, device=before["qweight"].device)).dtype
        self._plan = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  seven arguments of torch
        self._plan = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None}

    def extra_repr(self) -> str:
        """Shape and scheme."""
        return f"{tuple(self.qweight.shape)}, scheme={self.scheme!r}"


class _Int8Operator(Int8Module):
    """An int8 module whose input is quantized too."""

    operator_name: ClassVar[str]

    bias: torch.Tensor | None
    input_scale: torch.Tensor
    input_zero_point: torch.Tensor

    @property
    def kernel(self) -> str:
        if onednn_operator(self.operator_name) is not None:
            return "onednn"
        return f"float: this build of torch has no onednn.{self.operator_name}"

    def _current_plan(self) -> _Plan:
        plan = self._plan
        if plan is None or plan.source is not self._buffers["qweight"]:
            plan = self._plan = self._new_plan()
        return plan

    def _new_plan(self) -> _Plan:
        has_values = not self.input_scale.is_meta
        scale, zero_point = (self.input_scale.item(), self.input_zero_point.item()) if has_values else (1.0, 0)
        grid = InputGrid(scale, int(zero_point), input_top(self.scheme))
        return _Plan(
            source=self.qweight,
            operator=onednn_operator(self.operator_name),
            grid=grid,
            shift=grid.shift,
            weight_scale=self.weight_scale,
            weight_zero_point=torch.zeros_like(self.weight_scale, dtype=torch.int32),
            bias=self.bias,
        )

    def _in_float(self, input: torch.Tensor, dtype: torch.dtype, padding: Sequence[int] = ()) -> torch.Tensor:  # noqa: A002
        """The same numbers from codes as floats, where no int8 kernel can run."""
        plan = self._current_plan()
        device = input.device.type
        with torch.autocast(device, enabled=False) if _has_autocast(device) else nullcontext():
            values = decode(encode(input, plan.grid, plan.shift), plan.grid)
            return self._float_operation(values, self._float_weight(), padding).to(dtype)

    @abstractmethod
    def _float_operation(self, values: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
        """The operation on floats."""


def _output_dtype(input: torch.Tensor) -> torch.dtype:  # noqa: A002  as in forward
    device = input.device.type
    is_on = _has_autocast(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_on else input.dtype


def _has_autocast(device: str) -> bool:
    return device in _AUTOCAST_DEVICES or torch.amp.is_autocast_available(device)


def _fits_kernel(input: torch.Tensor, dtype: torch.dtype) -> bool:  # noqa: A002  as in forward
    """Whether the kernel takes such a tensor; what is not even a valid input gets torch's own error in float."""
    return input.device.type == "cpu" and dtype in _NATIVE_DTYPES and input.numel() > 0


@final
class Int8Linear(_Int8Operator):
    """``y = x @ W.T + b`` on int8 codes of both; the input may have any rank and floating dtype."""

    kind = "linear"
    operator_name = "qlinear_pointwise"

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Quantize the input, multiply, and return the dtype of the input, or that of autocast."""
        plan = self._current_plan()
        dtype = _output_dtype(input)
        if plan.operator is None or not _fits_kernel(input, dtype) or input.shape[-1:] != plan.source.shape[1:]:
            return self._in_float(input, dtype)
        if plan.packed is None:
            plan.packed = torch.ops.onednn.qlinear_prepack(self.qweight, None)
        return plan.operator(
            encode(input, plan.grid, plan.shift),
            plan.grid.scale,
            plan.grid.zero_point,
            plan.packed,
            plan.weight_scale,
            plan.weight_zero_point,
            plan.bias,
            *_PLAIN_OUTPUT,
            _WRITTEN_DTYPES.get(dtype, dtype),
            *_NO_POST_OPERATION,
        ).to(dtype)

    def _float_operation(self, values: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:  # noqa: ARG002
        return F.linear(values, weight, self.bias)


class _Int8Conv(_Int8Operator):
    """Convolution on int8 codes of input and weight, with every padding that torch has."""

    operator_name = "qconv_pointwise"
    rank: ClassVar[int]

    in_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    _reversed_padding_repeated_twice: Sequence[int]

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Quantize the input, convolve, and return the dtype of the input, or that of autocast."""
        if input.dim() == self.rank + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        plan = self._current_plan()
        dtype = _output_dtype(input)
        values, padding = self._padded(input)
        if plan.operator is None or not _fits_kernel(values, dtype) or not self._is_valid(values, padding):
            return self._in_float(values, dtype, padding)
        codes = encode(values, plan.grid, plan.shift)
        result = plan.operator(
            codes,
            plan.grid.scale,
            plan.grid.zero_point,
            self._packed_weight(plan, codes.shape, padding),
            plan.weight_scale,
            plan.weight_zero_point,
            plan.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            *_PLAIN_OUTPUT,
            _WRITTEN_DTYPES.get(dtype, dtype),
            *_NO_POST_OPERATION,
        ).to(dtype)
        # The kernel writes channels last whatever it reads; who gave rows may call .view() on the result.
        return result if _is_channels_last(input) else result.contiguous()

    def _padded(self, input: torch.Tensor) -> tuple[torch.Tensor, Sequence[int]]:  # noqa: A002  as in forward
        """Put in by hand what the kernel cannot: border values, or zeros on one side more than on the other."""
        around = self._reversed_padding_repeated_twice
        before, after = around[-2::-2], around[-1::-2]
        if self.padding_mode == "zeros" and before == after:
            return input, before
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(input, list(around), mode=mode), [0] * self.rank

    def _is_valid(self, values: torch.Tensor, padding: Sequence[int]) -> bool:
        """Whether torch would take ``values``; the kernel computes something even where the window does not fit."""
        if values.dim() != self.rank + 2 or values.shape[1] != self.in_channels:
            return False
        windows = (dilation * (size - 1) for size, dilation in zip(self.kernel_size, self.dilation, strict=True))
        spaces = zip(values.shape[2:], padding, windows, strict=True)
        return all(size + 2 * around > window for size, around, window in spaces)

    def _packed_weight(self, plan: _Plan, shape: torch.Size, padding: Sequence[int]) -> torch.Tensor:
        """Pack for the first spatial shape, and anew for another one that comes twice in a row.

        A packing gives the right result for every shape and is fastest for its own; making one costs more than
        a forward, so shapes that alternate must not cause it.
        """
        space = tuple(shape[2:])
        came_twice, plan.last_seen = space == plan.last_seen, space
        if plan.packed is None or (came_twice and space != plan.packed_for):
            plan.packed_for = space
            plan.packed = torch.ops.onednn.qconv_prepack(
                self.qweight,
                plan.weight_scale,
                plan.grid.scale,
                plan.grid.zero_point,
                self.stride,
                padding,
                self.dilation,
                self.groups,
                list(shape),
            )
        return plan.packed

    def _float_operation(self, values: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
        # torch.conv1d and its like differ in their type stubs only by the rank of their arguments.
        convolve: Callable[..., torch.Tensor] = (torch.conv1d, torch.conv2d, torch.conv3d)[self.rank - 1]
        return convolve(values, weight, self.bias, self.stride, list(padding), self.dilation, self.groups)


def _is_channels_last(input: torch.Tensor) -> bool:  # noqa: A002  as in forward
    if input.is_contiguous() or input.dim() not in _CHANNELS_LAST:
        return False
    return input.is_contiguous(memory_format=_CHANNELS_LAST[input.dim()])


@final
class Int8Conv1d(_Int8Conv):
    """`torch.nn.Conv1d` on int8 codes."""

    kind = "conv1d"
    rank = 1


@final
class Int8Conv2d(_Int8Conv):
    """`torch.nn.Conv2d` on int8 codes."""

    kind = "conv2d"
    rank = 2


@final
class Int8Conv3d(_Int8Conv):
    """`torch.nn.Conv3d` on int8 codes."""

    kind = "conv3d"
    rank = 3


@final
class Int8Embedding(Int8Module):
    """`torch.nn.Embedding` whose rows are int8 codes with a scale each."""

    kind = "embedding"

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Look up codes and scales, and return their product."""
        rows = F.embedding(input, self.qweight).to(torch.float32)
        scales = F.embedding(input, self.weight_scale.unsqueeze(1))
        return rows.mul_(scales).to(self.float_dtype)


INT8_CLASSES: Final[Mapping[str, type[Int8Module]]] = {
    made.kind: made for made in (Int8Linear, Int8Conv1d, Int8Conv2d, Int8Conv3d, Int8Embedding)
}
"""The class of each kind in a saved description."""
