"""Modules that hold int8 codes and compute on them.

They are made by exchanging the class of a float module (`Int8Module.adopt`), so the object, its name, its hooks and
its geometry (``in_features``, ``stride`` ...) stay. What they hold are plain buffers:

    qweight           int8     [out, in, *kernel], or [rows, dimension]
    weight_scale      float32  [out], or [rows]
    bias              float32  [out], or None
    input_scale       float32  scalar            not for embeddings, nor for dynamic ranges
    input_zero_point  int32    scalar            not for embeddings, nor for dynamic ranges
    input_factor      float32  [in], or None     what input channels are multiplied with first: smoothing

The packed weight of the kernel is derived from them at the first forward; it is never saved, copied or moved.
Nothing here is differentiable: outputs do not require a gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, final

import torch
from torch import nn

from inc_torch.quantizers._codes import InputGrid, decode, encode
from inc_torch.quantizers._paths import allows
from inc_torch.quantizers._scheme_names import named_scheme
from inc_torch.quantizers._spec import QuantScheme

if TYPE_CHECKING:
    from inc_torch.quantizers._arithmetic import Arithmetic

__all__ = [
    "NO_POST_OPERATION",
    "PLAIN_OUTPUT",
    "WRITTEN_DTYPES",
    "Int8Module",
    "Int8Operator",
    "Plan",
    "fits_kernel",
    "onednn_operator",
    "output_dtype",
]

_NATIVE_DTYPES: Final = frozenset({torch.float32, torch.bfloat16, torch.float16})
WRITTEN_DTYPES: Final = {torch.float16: torch.float32}
"""What the kernel is told to write instead: asked for float16, that of torch 2.8 gives uint8."""
_AUTOCAST_DEVICES: Final = frozenset({"cpu", "cuda"})
"""Devices that surely have autocast; asking torch takes time that counts in small layers."""
PLAIN_OUTPUT: Final = (1.0, 0)
"""Scale and zero point of an output that is not quantized."""
NO_POST_OPERATION: Final[tuple[str, list[float | None], str]] = ("none", [], "")


def onednn_operator(name: str) -> Callable[..., torch.Tensor] | None:
    """The default overload of ``torch.ops.onednn.<name>``, or None where this build of torch has none."""
    packet = getattr(torch.ops.onednn, name, None)
    return None if packet is None else packet.default


@final
@dataclass(slots=True)
class Plan:
    """Everything that a forward needs, out of the module's slow attribute look-up. Derived, never saved.

    Attributes:
        source: The codes that it was derived from.
        weight: The codes as the kernel wants them; ``weight_scale`` and ``bias`` belong to them.
        packed: What the kernel made of the codes, for inputs of the spatial shape ``packed_for``.
        last_seen: Spatial shape of the last input.
    """

    source: torch.Tensor
    weight: torch.Tensor
    operator: Callable[..., torch.Tensor] | None
    scheme: QuantScheme
    grid: InputGrid
    shift: torch.Tensor
    factor: torch.Tensor | None
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
        replaces: Kind of the float module that it is made of, see `FakeQuantModule`.
        scheme: Name of the scheme.
        float_dtype: What the module counts as in a model of mixed dtypes; follows ``.to(dtype)``.
    """

    kind: ClassVar[str]
    replaces: ClassVar[str]

    scheme: str
    float_dtype: torch.dtype
    qweight: torch.Tensor
    weight_scale: torch.Tensor
    _plan: Plan | None
    _arithmetic: Arithmetic | None = None

    def compute_with(self, arithmetic: Arithmetic | None) -> None:
        """Compute in float with ``arithmetic`` where codes are made or read; None computes as ever."""
        self.__dict__["_arithmetic"] = arithmetic
        self._plan = None

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
    def weight_shape(self) -> torch.Size:
        """The shape of the weight; that of the codes, unless they are packed."""
        return self.qweight.shape

    @property
    def kernel(self) -> str:
        """What computes on the CPU: ``"onednn"``, or ``"float"`` and the reason."""
        return "float: rows are looked up and scaled"

    def _float_weight(self) -> torch.Tensor:
        if self._arithmetic is not None:
            return self._arithmetic.weight(self.qweight, self.weight_scale)
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
        return {**self.__dict__, "_plan": None, "_arithmetic": None}

    def extra_repr(self) -> str:
        """Shape and scheme."""
        return f"{tuple(self.weight_shape)}, scheme={self.scheme!r}"


class Int8Operator(Int8Module):
    """An int8 module whose input is quantized too."""

    operator_name: ClassVar[str]

    bias: torch.Tensor | None
    input_scale: torch.Tensor
    input_zero_point: torch.Tensor
    input_factor: torch.Tensor | None

    @property
    def kernel(self) -> str:
        if onednn_operator(self.operator_name) is not None:
            return "onednn"
        return f"float: this build of torch has no onednn.{self.operator_name}"

    def compute_with(self, arithmetic: Arithmetic | None) -> None:
        """As in the base; what is read from tensors is read now, as who traces the module cannot."""
        super().compute_with(arithmetic)
        if arithmetic is not None:
            self._current_plan()

    def _current_plan(self) -> Plan:
        plan = self._plan
        is_stale = plan is not None and plan.source is not self._buffers["qweight"] and self._arithmetic is None
        if plan is None or is_stale:
            plan = self._plan = self._new_plan()
        return plan

    def _new_plan(self) -> Plan:
        scheme = named_scheme(self.scheme)
        grid = self._fixed_grid(scheme.top)
        factor = self._buffers.get("input_factor")
        return Plan(
            source=self.qweight,
            weight=self.qweight,
            operator=None if self._arithmetic is not None else onednn_operator(self.operator_name),
            scheme=scheme,
            grid=grid,
            shift=grid.shift,
            factor=None if factor is None else self._along_input(factor),
            weight_scale=self.weight_scale,
            weight_zero_point=torch.zeros_like(self.weight_scale, dtype=torch.int32),
            bias=self.bias,
        )

    def _fixed_grid(self, top: int) -> InputGrid:
        if self.input_scale.is_meta:
            return InputGrid(1.0, 0, top)
        return InputGrid(self.input_scale.item(), int(self.input_zero_point.item()), top)

    def _along_input(self, channels: torch.Tensor) -> torch.Tensor:
        """Shape a value for each input channel so that it multiplies an input."""
        return channels

    def _smoothed(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  as in forward
        factor = self._current_plan().factor
        return input if factor is None else input * factor.to(input.dtype)

    def _in_float(self, input: torch.Tensor, dtype: torch.dtype, padding: Sequence[int] = ()) -> torch.Tensor:  # noqa: A002
        """The same numbers from codes as floats, where no int8 kernel can run."""
        plan = self._current_plan()
        device = input.device.type
        with torch.autocast(device, enabled=False) if _has_autocast(device) else nullcontext():
            values = self._rounded(input, plan)
            return self._float_operation(values, self._float_weight(), padding).to(dtype)

    def _rounded(self, input: torch.Tensor, plan: Plan) -> torch.Tensor:  # noqa: A002  as in forward
        if self._arithmetic is not None:
            return self._arithmetic.rounded(input, plan.grid)
        return decode(encode(input, plan.grid, plan.shift), plan.grid)

    @abstractmethod
    def _float_operation(self, values: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
        """The operation on floats."""


def output_dtype(input: torch.Tensor) -> torch.dtype:  # noqa: A002  as in forward
    device = input.device.type
    is_on = _has_autocast(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_on else input.dtype


def _has_autocast(device: str) -> bool:
    return device in _AUTOCAST_DEVICES or torch.amp.is_autocast_available(device)


def fits_kernel(input: torch.Tensor, dtype: torch.dtype) -> bool:  # noqa: A002  as in forward
    """Whether the kernel takes such a tensor; what is not even a valid input gets torch's own error in float."""
    return input.device.type == "cpu" and dtype in _NATIVE_DTYPES and input.numel() > 0 and allows("onednn")
