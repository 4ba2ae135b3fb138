"""Modules that compute as int8 modules will, on float weights that go on learning.

They are made by ``module.__class__ = QATLinear``, never constructed: Parameters, names, hooks and
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
from inc_torch.quantizers._codes import InputGrid, quantize_weight
from inc_torch.quantizers._fake_quant import fake_quantize_input, fake_quantize_input_traced, fake_quantize_weight
from inc_torch.quantizers._observer import InputRange
from inc_torch.quantizers._scheme_names import ROWS, scheme_name
from inc_torch.quantizers._spec import QuantScheme

__all__ = ["QATModule", "qat_class"]


class QATModule(nn.Module):
    """What the modules under training share: the switch, the observer, and the rounding of both operands.

    Attributes:
        kind: Name of the int8 class that it becomes.
        output_axis: The axis of output channels in the weight.
        has_input_grid: Inputs are quantized too, not the weight alone.
    """

    kind: ClassVar[str]
    output_axis: ClassVar[int] = 0
    has_input_grid: ClassVar[bool] = True

    _input_range: InputRange
    _fake_quant: bool
    _observing: bool

    @classmethod
    def adopt(cls, module: nn.Module, scheme: QuantScheme) -> None:
        """Turn ``module`` into this class, with fake-quant off."""
        exchange_class(module, cls)
        added = {"_input_range": InputRange(scheme=scheme), "_fake_quant": False, "_observing": False}
        module.__dict__.update(added)

    def release(self) -> None:
        """Take away what `adopt` added, before the class is exchanged again."""
        for name in ("_input_range", "_fake_quant", "_observing"):
            del self.__dict__[name]

    @classmethod
    def name_of(cls, scheme: QuantScheme) -> str:
        """The name of ``scheme`` as far as this class follows it."""
        return scheme_name(scheme)

    @property
    def scheme(self) -> str:
        """The name of the module's scheme."""
        return self.name_of(self._input_range.scheme)

    @property
    def weight_axis(self) -> int | None:
        """The axis along which weights have a scale each, or None for one scale."""
        return self.output_axis if self._input_range.scheme.per_channel else None

    @property
    def grid(self) -> InputGrid | None:
        """The grid of the inputs, or None as long as no range was folded."""
        return self._input_range.grid

    @property
    def is_rounding(self) -> bool:
        """Whether a forward rounds the weight, and the input where it has a grid."""
        return self._fake_quant and (self.grid is not None or not self.has_input_grid)

    @property
    def weight_device(self) -> torch.device:
        """Where the weight lies between forwards."""
        return self.get_parameter("weight").device

    def _rounded_input(self, values: torch.Tensor) -> torch.Tensor:
        if self.training and self._observing and not _is_recomputing():
            self._input_range.observe(values)
        seen = self._input_range
        if seen.grid is None:
            return values
        if torch.compiler.is_compiling():
            return fake_quantize_input_traced(values, seen.traced_grid, seen.scheme.top)
        return fake_quantize_input(values, seen.grid)

    def _rounded_weight(self, weight: torch.Tensor) -> torch.Tensor:
        return fake_quantize_weight(weight, self.weight_axis)

    def int8_weight(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [out, in, *kernel] and scales [out] of the weights as they are now; a collective if it is sharded."""
        codes, scale = quantize_weight(whole(self.get_parameter("weight")), self.weight_axis)
        codes = codes.movedim(self.output_axis, 0).contiguous()
        return codes, scale.flatten().expand(len(codes)).contiguous()


_NORM_EPSILON = 1e-7
"""What torch adds to a norm before it divides by it."""


def _is_recomputing() -> bool:
    """Whether a backward pass is running: gradient checkpointing repeats a forward whose batch was seen already."""
    # torch.compile has a way of its own to recompute, without running this again.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@final
class QATLinear(QATModule, nn.Linear):
    """`torch.nn.Linear` on rounded inputs and weights."""

    kind = "linear"

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Compute ``round(x) @ round(W).T + b``."""
        if not self._fake_quant:
            return super().forward(input)
        return F.linear(self._rounded_input(input), self._rounded_weight(self.weight), self.bias)


class _QATConv(QATModule):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Convolve rounded inputs with rounded weights; padding puts in exact zeros, or rounded border values."""
        weight: Any = self.weight
        if self._fake_quant:
            input, weight = self._rounded_input(input), self._rounded_weight(weight)  # noqa: A001
        convolve: Any = self._conv_forward
        result: torch.Tensor = convolve(input, weight, self.bias)
        return result


@final
class QATConv1d(_QATConv, nn.Conv1d):
    """`torch.nn.Conv1d` on rounded inputs and weights."""

    kind = "conv1d"


@final
class QATConv2d(_QATConv, nn.Conv2d):
    """`torch.nn.Conv2d` on rounded inputs and weights."""

    kind = "conv2d"


@final
class QATConv3d(_QATConv, nn.Conv3d):
    """`torch.nn.Conv3d` on rounded inputs and weights."""

    kind = "conv3d"


@final
class QATEmbedding(QATModule, nn.Embedding):
    """`torch.nn.Embedding` with every row rounded to int8 by its own scale, whatever the scheme says.

    Only the rows that were looked up are rounded, unless the batch looks up more rows than there are.
    """

    kind = "embedding"
    has_input_grid = False

    @classmethod
    def name_of(cls, scheme: QuantScheme) -> str:  # noqa: ARG003  one scheme fits all tables
        """Rows, always."""
        return ROWS

    @property
    def weight_axis(self) -> int:
        """Rows, always."""
        return 0

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


class _QATTransposedLinear(QATModule):
    """The linear layer of GPT-2 in transformers, ``Conv1D``: its weight is [in, out], its bias always there."""

    kind = "linear"
    output_axis = 1
    nf: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute ``round(x) @ round(W) + b``."""
        if not self._fake_quant:
            result: torch.Tensor = super().forward(x)
            return result
        weight: Any = self.weight
        bias: Any = self.bias
        rows = self._rounded_input(x).view(-1, x.size(-1))
        return torch.addmm(bias, rows, self._rounded_weight(weight)).view(*x.shape[:-1], self.nf)


_TRANSPOSED: Final = "QATTransposedLinear"
_HUGGING_FACE_LAYERS: Final = "transformers.pytorch_utils"


def _transposed_linear_class() -> type[nn.Module] | None:
    """The ``Conv1D`` of transformers, or None as long as nobody has imported transformers."""
    layers = sys.modules.get(_HUGGING_FACE_LAYERS)
    return getattr(layers, "Conv1D", None)


def __getattr__(name: str) -> type[QATModule]:
    """Make `QATTransposedLinear` when it is first asked for, by us or by pickle: its base is in an optional package."""
    if name != _TRANSPOSED:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    base = importlib.import_module(_HUGGING_FACE_LAYERS).Conv1D
    made = type(name, (_QATTransposedLinear, base), {"__module__": __name__, "__doc__": _QATTransposedLinear.__doc__})
    exchanged: type[QATModule] = globals().setdefault(name, made)
    return exchanged


_CLASSES: Final[dict[type[nn.Module], type[QATModule]]] = {
    nn.Linear: QATLinear,
    nn.Conv1d: QATConv1d,
    nn.Conv2d: QATConv2d,
    nn.Conv3d: QATConv3d,
    nn.Embedding: QATEmbedding,
}


def qat_class(module_type: type[nn.Module]) -> type[QATModule] | None:
    """The class that stands for exactly ``module_type``, or None: subclasses may compute anything."""
    if module_type is _transposed_linear_class():
        made: type[QATModule] = getattr(sys.modules[__name__], _TRANSPOSED)
        return made
    return _CLASSES.get(module_type)
