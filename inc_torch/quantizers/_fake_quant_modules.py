"""Modules that compute as int8 modules will, on float weights that go on learning.

They are made by ``module.__class__ = FakeQuantLinear``, never constructed: Parameters, names, hooks and
``isinstance`` stay what they were, and nothing enters the state dict.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, ClassVar, Final, final

import torch
import torch.nn.functional as F
from torch import nn

from inc_torch.core.sharding import exchange_class, whole
from inc_torch.quantizers import _padded_conv
from inc_torch.quantizers._batch_norm import fold_factor, folded_bias, trainable_factor
from inc_torch.quantizers._codes import InputGrid, dynamic_grid, quantize_weight, snap_weight
from inc_torch.quantizers._corrections import weight_correction
from inc_torch.quantizers._fake_quant import fake_quantize_input, fake_quantize_input_traced, fake_quantize_weight
from inc_torch.quantizers._input_range import InputRange
from inc_torch.quantizers._scheme_names import ROWS, scheme_name
from inc_torch.quantizers._spec import QuantScheme

__all__ = ["FakeQuantModule", "fake_quant_class", "input_channels"]


class FakeQuantModule(nn.Module):
    """What the modules that simulate int8 share: the switch, the range, and the rounding of both operands.

    Attributes:
        kind: Name of the int8 class that it becomes.
        output_axis: The axis of output channels in the weight.
        has_weight: It has a weight, not a range alone.
        has_input_grid: Inputs are quantized too, not the weight alone.
        can_be_dynamic: There is an int8 version that takes the range of each input from the input itself.
    """

    kind: ClassVar[str]
    output_axis: ClassVar[int] = 0
    has_weight: ClassVar[bool] = True
    has_input_grid: ClassVar[bool] = True
    can_be_dynamic: ClassVar[bool] = False

    _input_range: InputRange
    _fake_quant: bool
    _observing: bool
    _smoothing: torch.Tensor | None
    _corrects_weight: bool
    _bias_correction: torch.Tensor | None
    _norm: nn.Module | None
    _range_owner: FakeQuantModule | None

    @classmethod
    def adopt(cls, module: nn.Module, scheme: QuantScheme) -> None:
        """Turn ``module`` into this class, with fake-quant off."""
        exchange_class(module, cls)
        module.__dict__.update(
            _input_range=InputRange(scheme=scheme),
            _fake_quant=False,
            _observing=False,
            _smoothing=None,
            _corrects_weight=False,
            _bias_correction=None,
            _norm=None,
            _range_owner=None,
        )

    def release(self) -> None:
        """Take away what `adopt` added, before the class is exchanged again."""
        for name in _ADOPTED:
            del self.__dict__[name]

    @classmethod
    def name_of(cls, scheme: QuantScheme) -> str:
        """The name of ``scheme`` as far as this class follows it."""
        return scheme_name(scheme)

    @staticmethod
    def arranged(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:  # noqa: ARG004  some need its geometry
        """The weight of a module of this class, as int8 modules keep it: [out, in / groups, *kernel]."""
        return weight

    @property
    def scheme(self) -> QuantScheme:
        """How the module is quantized."""
        return self._input_range.scheme

    @property
    def weight_axis(self) -> int | None:
        """The axis along which weights have a scale each, or None for one scale."""
        return self.output_axis if self.scheme.per_channel else None

    @property
    def grid(self) -> InputGrid | None:
        """The grid of the inputs, or None as long as no range is known."""
        return self._seen.grid

    @property
    def is_static(self) -> bool:
        """Whether it rounds by a range that was seen before, its own or that of another module."""
        return self.has_input_grid and not self.scheme.dynamic

    @property
    def observes(self) -> bool:
        """Whether it needs a range of its own that was seen before."""
        return self.is_static and self._range_owner is None

    @property
    def needs_range(self) -> bool:
        """Whether it cannot be converted for want of an input range."""
        return self.is_static and self.grid is None

    @property
    def _seen(self) -> InputRange:
        return self._input_range if self._range_owner is None else self._range_owner._seen

    @property
    def range_owner(self) -> FakeQuantModule | None:
        """The module whose range this one rounds by, see `share_range`."""
        return self._range_owner

    def share_range(self, owner: FakeQuantModule | None) -> None:
        """Round inputs by the range of ``owner``, which rounded them before; None ends that.

        Rounding twice to one grid changes nothing; it is done so that the module can be used alone.
        """
        self.__dict__["_range_owner"] = owner  # not as a child

    @property
    def norm(self) -> nn.Module | None:
        """The batch normalization whose factor is in the rounded weight, see `fold_norm`."""
        return self._norm

    def fold_norm(self, norm: nn.Module | None) -> None:
        """Round the weight together with the factor of the batch normalization that reads the output; None ends that.

        With ``f = gamma / sqrt(running_var + eps)`` for each output channel the module computes
        ``(round(x) * round(W * f)) / f + b``, and the normalization goes on as it is: by the statistics of the batch
        in training, by the running ones when frozen or in eval, which then equals the folded int8 module. ``f`` gets no
        gradient here: without rounding it cancels out, and with it the gradient is the rounding error alone.

        Args:
            norm: Reads the output of this module and nothing else does; with running statistics.

        References: Jacob et al., arXiv 1712.05877, section 3.2; Krishnamoorthi, arXiv 1806.08342, section 3.2.2.
        """
        self.__dict__["_norm"] = norm  # not as a child

    @property
    def is_rounding(self) -> bool:
        """Whether a forward rounds the weight, and the input where it has a grid."""
        return self._fake_quant and not self.needs_range

    @property
    def weight_device(self) -> torch.device:
        """Where the weight lies between forwards."""
        return self.get_parameter("weight").device

    def set_scheme(self, scheme: QuantScheme) -> None:
        """Quantize in another way; what was known of the range is forgotten."""
        self._input_range = InputRange(scheme=scheme)

    def restore(self) -> None:
        """Become the float module again that `adopt` took."""
        original = next(base for base in type(self).__mro__ if fake_quant_class(base) is not None)
        self.release()
        exchange_class(self, original)

    def set_range(self, low: float, high: float) -> None:
        """Fix the range of inputs; it contains 0."""
        self._input_range = InputRange(low, high, 1, scheme=self.scheme)

    @property
    def smoothing(self) -> torch.Tensor | None:
        """What input channels are divided by, see `smooth`."""
        return self._smoothing

    def smooth(self, scale: torch.Tensor | None) -> None:
        """Divide input channels by ``scale`` and multiply the weights of these channels by it; None ends that.

        Without rounding both cancel out, so nothing is done as long as fake-quant is off. The range of inputs is that
        after the division.

        Args:
            scale: [in], above 0.
        """
        self._smoothing = scale

    def correct_weight(self, on: bool) -> None:
        """Let rounded weights keep mean and deviation of each output channel, see `weight_correction`."""
        self._corrects_weight = on

    def correct_bias(self, correction: torch.Tensor | None) -> None:
        """Add ``correction`` [out] to the bias while fake-quant is on, also where there is none; None ends that."""
        self._bias_correction = correction

    def _rounded_input(self, values: torch.Tensor) -> torch.Tensor:
        if self._smoothing is not None:
            values = values * self._along_input(self._smoothing.reciprocal()).to(values)
        seen = self._seen
        if self._observing and self.training and not _is_recomputing():
            seen.observe(values)
        if torch.compiler.is_compiling() and seen.grid is not None:
            return fake_quantize_input_traced(values, seen.traced_grid, seen.scheme.top)
        grid = dynamic_grid(values, seen.scheme) if seen.scheme.dynamic else seen.grid
        return values if grid is None else fake_quantize_input(values, grid)

    def _rounded_weight(self, weight: torch.Tensor) -> torch.Tensor:
        return self._rounded_along(self._folded(self._smoothed(weight)), self.weight_axis, self.output_axis)

    def _rounded_along(self, weight: torch.Tensor, axis: int | None, outputs: int) -> torch.Tensor:
        if self._corrects_weight:
            weight = weight_correction(weight, snap_weight(weight, axis, self.scheme.weight_bits), outputs)
        return fake_quantize_weight(weight, axis, self.scheme.weight_bits)

    def _smoothed(self, weight: torch.Tensor) -> torch.Tensor:
        return weight if self._smoothing is None else weight * self._along_weight(self._smoothing).to(weight)

    def _folded(self, weight: torch.Tensor) -> torch.Tensor:
        if self._norm is None:
            return weight
        return (weight * self._along_weight_outputs(trainable_factor(self._norm))).to(weight.dtype)

    def _unfolded(self, result: torch.Tensor) -> torch.Tensor:
        """Take the factor out again, and add the bias that was left out until now."""
        if self._norm is None:
            return result
        result = result / self._along_input(trainable_factor(self._norm)).to(result.dtype)
        bias = self._parameters.get("bias")
        return result if bias is None else result + self._along_input(bias).to(result.dtype)

    def _operation_bias(self) -> torch.Tensor | None:
        """What is added inside the operation."""
        if self._norm is None:
            return self.full_bias()
        return None if self._bias_correction is None else self._bias_correction.to(self.get_parameter("weight"))

    def _along_input(self, channels: torch.Tensor) -> torch.Tensor:
        """Shape a value for each channel so that it multiplies an input, or an output."""
        return channels

    def _along_weight_outputs(self, channels: torch.Tensor) -> torch.Tensor:
        """Shape a value for each output channel so that it multiplies the weight."""
        return channels.view(-1, *[1] * (self.get_parameter("weight").dim() - 1))

    def _along_weight(self, channels: torch.Tensor) -> torch.Tensor:
        """Shape a value for each input channel so that it multiplies the weight."""
        return channels

    def full_bias(self) -> torch.Tensor | None:
        """The bias with its correction, and with the batch normalization that is folded in."""
        bias: torch.Tensor | None = self._parameters.get("bias")
        if self._norm is not None:
            bias = folded_bias(self._norm, bias)
        if self._bias_correction is None:
            return bias
        correction = self._bias_correction.to(self.get_parameter("weight"))
        return correction if bias is None else bias + correction

    def int8_weight(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes, `arranged`, and scales [out] of the weights as they are now; a collective if it is sharded."""
        codes, scale = quantize_weight(self.effective_weight(), self._scale_axis, self.scheme.weight_bits)
        return codes.contiguous(), scale.flatten().expand(len(codes)).contiguous()

    def effective_weight(self) -> torch.Tensor:
        """The float weight that codes are made of: `arranged`, smoothed, folded and corrected."""
        weight = self.arranged(self, self._smoothed(self.folded_weight()))
        if not self._corrects_weight:
            return weight
        return weight_correction(weight, snap_weight(weight, self._scale_axis, self.scheme.weight_bits), 0)

    def folded_weight(self) -> torch.Tensor:
        """The float weight, whole, with the factor of the batch normalization that is folded in."""
        weight = whole(self.get_parameter("weight")).detach()
        if self._norm is None:
            return weight
        return (weight * self._along_weight_outputs(fold_factor(self._norm))).to(weight.dtype)

    @property
    def _scale_axis(self) -> int | None:
        """The axis of the `arranged` weight that has a scale for each slice."""
        return 0 if self.scheme.per_channel else None


_ADOPTED: Final = (
    "_input_range",
    "_fake_quant",
    "_observing",
    "_smoothing",
    "_corrects_weight",
    "_bias_correction",
    "_norm",
    "_range_owner",
)
"""Attributes that `FakeQuantModule.adopt` adds."""

_NORM_EPSILON = 1e-7
"""What torch adds to a norm before it divides by it."""


def _is_recomputing() -> bool:
    """Whether a backward pass is running: gradient checkpointing repeats a forward whose batch was seen already."""
    # torch.compile has a way of its own to recompute, without running this again.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@final
class FakeQuantLinear(FakeQuantModule, nn.Linear):
    """`torch.nn.Linear` on rounded inputs and weights."""

    kind = "linear"
    can_be_dynamic = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Compute ``round(x) @ round(W).T + b``."""
        if not self._fake_quant:
            return super().forward(input)
        result = F.linear(self._rounded_input(input), self._rounded_weight(self.weight), self._operation_bias())
        return self._unfolded(result)


class _FakeQuantConv(FakeQuantModule):
    groups: int
    kernel_size: tuple[int, ...]

    def _along_input(self, channels: torch.Tensor) -> torch.Tensor:
        return _with_kernel(channels, self.kernel_size)

    def _along_weight(self, channels: torch.Tensor) -> torch.Tensor:
        rows = channels.view(self.groups, -1)  # every output of a group reads the same inputs
        return _with_kernel(
            rows.repeat_interleave(len(self.get_parameter("weight")) // self.groups, 0), self.kernel_size
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Convolve rounded inputs with rounded weights; padding puts in exact zeros, or rounded border values."""
        if not self._fake_quant:
            plain: torch.Tensor = super().forward(input)
            return plain
        weight = self._rounded_weight(self.get_parameter("weight"))
        convolve: Any = self._conv_forward
        return self._unfolded(convolve(self._rounded_input(input), weight, self._operation_bias()))


def _with_kernel(channels: torch.Tensor, kernel_size: tuple[int, ...]) -> torch.Tensor:
    return channels.view(*channels.shape, *[1] * len(kernel_size))


@final
class FakeQuantConv1d(_FakeQuantConv, nn.Conv1d):
    """`torch.nn.Conv1d` on rounded inputs and weights."""

    kind = "conv1d"


@final
class FakeQuantConv2d(_FakeQuantConv, nn.Conv2d):
    """`torch.nn.Conv2d` on rounded inputs and weights."""

    kind = "conv2d"


@final
class FakeQuantConv3d(_FakeQuantConv, nn.Conv3d):
    """`torch.nn.Conv3d` on rounded inputs and weights."""

    kind = "conv3d"


@final
class FakeQuantPaddedConv1d(_FakeQuantConv, _padded_conv.Conv1d):
    """`FakeQuantConv1d` with as many zeros on each side as it likes."""

    kind = "conv1d"


@final
class FakeQuantPaddedConv2d(_FakeQuantConv, _padded_conv.Conv2d):
    """`FakeQuantConv2d` with as many zeros on each side as it likes."""

    kind = "conv2d"


@final
class FakeQuantPaddedConv3d(_FakeQuantConv, _padded_conv.Conv3d):
    """`FakeQuantConv3d` with as many zeros on each side as it likes."""

    kind = "conv3d"


class _FakeQuantConvTranspose(FakeQuantModule):
    output_axis = 1
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    @staticmethod
    def arranged(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        groups: Any = module.groups
        inputs, outputs, *kernel = weight.shape
        grouped = weight.reshape(groups, inputs // groups, outputs, *kernel)
        return grouped.transpose(1, 2).reshape(groups * outputs, inputs // groups, *kernel)

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:  # noqa: A002
        """Convolve rounded inputs, transposed, with rounded weights."""
        if not self._fake_quant:
            result: torch.Tensor = super().forward(input, output_size)
            return result
        rank = len(self.kernel_size)
        find_padding: Any = self._output_padding
        padding: Any = self.padding
        output_padding = find_padding(input, output_size, self.stride, padding, self.kernel_size, rank, self.dilation)
        convolve: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
        rounded: torch.Tensor = convolve(
            self._rounded_input(input),
            self._rounded_weight(self.get_parameter("weight")),
            self._operation_bias(),
            self.stride,
            padding,
            output_padding,
            self.groups,
            self.dilation,
        )
        return self._unfolded(rounded)

    def _rounded_weight(self, weight: torch.Tensor) -> torch.Tensor:
        if self.groups == 1 or not self.scheme.per_channel:
            return super()._rounded_weight(weight)
        # Output channels lie along two axes: the groups within the first one, and the second.
        inputs, outputs, *kernel = weight.shape
        arranged = self._rounded_along(self.arranged(self, self._folded(self._smoothed(weight))), 0, 0)
        grouped = arranged.view(self.groups, outputs, inputs // self.groups, *kernel)
        return grouped.transpose(1, 2).reshape(weight.shape)

    def _along_input(self, channels: torch.Tensor) -> torch.Tensor:
        return _with_kernel(channels, self.kernel_size)

    def _along_weight(self, channels: torch.Tensor) -> torch.Tensor:
        return _with_kernel(channels.unsqueeze(1), self.kernel_size)

    def _along_weight_outputs(self, channels: torch.Tensor) -> torch.Tensor:
        inputs = len(self.get_parameter("weight"))  # a row for each: its group decides which outputs it has
        rows = channels.view(self.groups, -1).repeat_interleave(inputs // self.groups, 0)
        return _with_kernel(rows, self.kernel_size)


@final
class FakeQuantConvTranspose1d(_FakeQuantConvTranspose, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` on rounded inputs and weights."""

    kind = "conv_transpose1d"


@final
class FakeQuantConvTranspose2d(_FakeQuantConvTranspose, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` on rounded inputs and weights."""

    kind = "conv_transpose2d"


@final
class FakeQuantConvTranspose3d(_FakeQuantConvTranspose, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` on rounded inputs and weights."""

    kind = "conv_transpose3d"


@final
class FakeQuantEmbedding(FakeQuantModule, nn.Embedding):
    """`torch.nn.Embedding` with every row rounded to int8 by its own scale, whatever the scheme says.

    Only the rows that were looked up are rounded, unless the batch looks up more rows than there are.
    """

    kind = "embedding"
    has_input_grid = False
    can_be_dynamic = True

    @classmethod
    def name_of(cls, scheme: QuantScheme) -> str:  # noqa: ARG003  one scheme fits all tables
        """Rows, always."""
        return ROWS

    @property
    def weight_axis(self) -> int:
        """Rows, always."""
        return 0

    def _rounded_weight(self, weight: torch.Tensor) -> torch.Tensor:
        return fake_quantize_weight(weight, 0)

    def int8_weight(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scales; with ``max_norm`` of the shortened rows, which is what a look-up gives."""
        weight = whole(self.weight)
        if self.max_norm is not None:
            norms = weight.norm(self.norm_type, dim=1, keepdim=True)
            weight = torch.where(norms > self.max_norm, weight * (self.max_norm / (norms + _NORM_EPSILON)), weight)
        codes, scale = quantize_weight(weight, 0)
        return codes.contiguous(), scale.flatten()

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Look rows up and round them."""
        if not self._fake_quant:
            return super().forward(input)
        if input.numel() < self.num_embeddings or self.max_norm is not None:  # max_norm shortens rows of the Parameter
            rows = super().forward(input)
            return self._rounded_weight(rows.view(-1, self.embedding_dim)).view_as(rows)
        return F.embedding(
            input,
            self._rounded_weight(self.weight),
            self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
            sparse=self.sparse,
        )


class _FakeQuantTransposedLinear(FakeQuantModule):
    """The linear layer of GPT-2 in transformers, ``Conv1D``: its weight is [in, out], its bias always there."""

    kind = "linear"
    output_axis = 1
    can_be_dynamic = True
    nf: int

    @staticmethod
    def arranged(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:  # noqa: ARG004  see the base
        return weight.t()

    def _along_weight(self, channels: torch.Tensor) -> torch.Tensor:
        return channels.unsqueeze(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute ``round(x) @ round(W) + b``."""
        if not self._fake_quant:
            result: torch.Tensor = super().forward(x)
            return result
        weight: Any = self.weight
        bias: Any = self.full_bias()
        rows = self._rounded_input(x).view(-1, x.size(-1))
        return torch.addmm(bias, rows, self._rounded_weight(weight)).view(*x.shape[:-1], self.nf)


_TRANSPOSED: Final = "FakeQuantTransposedLinear"
_HUGGING_FACE_LAYERS: Final = "transformers.pytorch_utils"


def _transposed_linear_class() -> type[nn.Module] | None:
    """The ``Conv1D`` of transformers, or None as long as nobody has imported transformers."""
    layers = sys.modules.get(_HUGGING_FACE_LAYERS)
    return getattr(layers, "Conv1D", None)


def __getattr__(name: str) -> type[FakeQuantModule]:
    """Make `FakeQuantTransposedLinear` when we or pickle first ask for it: its base is in an optional package."""
    if name != _TRANSPOSED:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    base = importlib.import_module(_HUGGING_FACE_LAYERS).Conv1D
    made = type(
        name,
        (_FakeQuantTransposedLinear, base),
        {"__module__": __name__, "__doc__": _FakeQuantTransposedLinear.__doc__},
    )
    exchanged: type[FakeQuantModule] = globals().setdefault(name, made)
    return exchanged


def input_channels(module: nn.Module) -> int:
    """How many input channels a linear layer or convolution has."""
    for name in ("in_features", "in_channels", "nx"):  # the last is that of transformers' Conv1D
        if isinstance(count := getattr(module, name, None), int):
            return count
    return int(module.get_parameter("weight").shape[0])


_CLASSES: Final[dict[type[nn.Module], type[FakeQuantModule]]] = {
    nn.Linear: FakeQuantLinear,
    nn.Conv1d: FakeQuantConv1d,
    nn.Conv2d: FakeQuantConv2d,
    nn.Conv3d: FakeQuantConv3d,
    _padded_conv.Conv1d: FakeQuantPaddedConv1d,
    _padded_conv.Conv2d: FakeQuantPaddedConv2d,
    _padded_conv.Conv3d: FakeQuantPaddedConv3d,
    nn.ConvTranspose1d: FakeQuantConvTranspose1d,
    nn.ConvTranspose2d: FakeQuantConvTranspose2d,
    nn.ConvTranspose3d: FakeQuantConvTranspose3d,
    nn.Embedding: FakeQuantEmbedding,
}


def fake_quant_class(module_type: type[nn.Module]) -> type[FakeQuantModule] | None:
    """The class that stands for exactly ``module_type``, or None: subclasses may compute anything."""
    if module_type is _transposed_linear_class():
        made: type[FakeQuantModule] = getattr(sys.modules[__name__], _TRANSPOSED)
        return made
    return _CLASSES.get(module_type)
