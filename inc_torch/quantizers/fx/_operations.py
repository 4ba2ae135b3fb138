"""What the nodes of a graph mean for tensors of int8 codes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final, final

import torch
import torch.nn.functional as F
from torch import fx, nn

from inc_torch.quantizers._batch_norm import can_fold
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule

__all__ = ["Meaning", "meaning_of", "writes_input"]


@final
class Meaning(Enum):
    """What an operation does with a tensor, as far as rounding is concerned."""

    INT8 = auto()
    """An int8 module with a range that was seen before; it rounds its input itself."""
    LAYER = auto()
    """Any other linear layer or convolution."""
    NORM = auto()
    """Batch normalization by running statistics: a factor and a shift for each channel."""
    RECTIFIER = auto()
    """An activation that only clips: on codes as good as on floats."""
    ACTIVATION = auto()
    """Any other function of each value alone."""
    ADD = auto()
    MULTIPLY = auto()
    CONCATENATE = auto()
    POOL = auto()
    """Means of values."""
    PASS = auto()
    """Hands its tensor on as it is."""
    SELECT = auto()
    """Gives back values that it got, and zeros at most."""
    SHAPE = auto()
    """Looks at the shape alone."""
    OPAQUE = auto()
    """Anything else, and the output of the model."""


_RECTIFIERS: Final = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
_ACTIVATIONS: Final = (
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.Tanh,
    nn.ELU,
    nn.LeakyReLU,
    nn.Softplus,
)
_POOLS: Final = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE_POOLS: Final = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_PASSING: Final = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_SELECTING: Final = (
    nn.Flatten,
    nn.Unflatten,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
)
_MODULES: Final[tuple[tuple[tuple[type[nn.Module], ...], Meaning], ...]] = (
    (_RECTIFIERS, Meaning.RECTIFIER),
    (_ACTIVATIONS, Meaning.ACTIVATION),
    (_POOLS + _ADAPTIVE_POOLS, Meaning.POOL),
    (_PASSING, Meaning.PASS),
    (_SELECTING, Meaning.SELECT),
)

_FUNCTIONS: Final[dict[Any, Meaning]] = {
    **dict.fromkeys((torch.relu, torch.relu_, F.relu, F.relu6, F.relu_, F.hardtanh, torch.clamp), Meaning.RECTIFIER),
    **dict.fromkeys(
        (F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.sigmoid, torch.sigmoid, torch.tanh, F.elu, F.leaky_relu),
        Meaning.ACTIVATION,
    ),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), Meaning.ADD),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), Meaning.MULTIPLY),
    **dict.fromkeys((torch.cat, torch.concat), Meaning.CONCATENATE),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.mean), Meaning.POOL),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), Meaning.POOL),
    **dict.fromkeys(
        (
            torch.flatten,
            torch.reshape,
            torch.permute,
            torch.transpose,
            torch.squeeze,
            torch.unsqueeze,
            torch.chunk,
            torch.split,
            torch.max_pool1d,
            torch.max_pool2d,
            torch.max_pool3d,
            F.max_pool1d,
            F.max_pool2d,
            F.max_pool3d,
            F.pixel_shuffle,
            operator.getitem,
        ),
        Meaning.SELECT,
    ),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), Meaning.PASS),
    getattr: Meaning.SHAPE,
}
_METHODS: Final[dict[str, Meaning]] = {
    **dict.fromkeys(("relu", "relu_", "clamp"), Meaning.RECTIFIER),
    **dict.fromkeys(("sigmoid", "tanh"), Meaning.ACTIVATION),
    **dict.fromkeys(("add", "add_"), Meaning.ADD),
    **dict.fromkeys(("mul", "mul_"), Meaning.MULTIPLY),
    "mean": Meaning.POOL,
    "contiguous": Meaning.PASS,
    **dict.fromkeys(
        (
            "chunk",
            "flatten",
            "permute",
            "reshape",
            "split",
            "squeeze",
            "transpose",
            "unsqueeze",
            "view",
        ),
        Meaning.SELECT,
    ),
    **dict.fromkeys(("dim", "size"), Meaning.SHAPE),
}
_SHAPE_ATTRIBUTES: Final = frozenset({"shape", "dtype", "device", "ndim"})
_MEANS: Final = frozenset({"mean", torch.mean})
_IN_PLACE: Final = frozenset({operator.iadd, operator.imul, torch.relu_, F.relu_})


def meaning_of(node: fx.Node, model: nn.Module) -> Meaning:
    """What ``node`` does, in evaluation mode.

    Args:
        node: Of a graph of ``model``.
        model: Prepared or not.
    """
    if node.op == "call_module":
        return _meaning_of_module(model.get_submodule(str(node.target)))
    known = {"call_method": _METHODS, "call_function": _FUNCTIONS}.get(node.op, {})
    found = known.get(node.target, Meaning.OPAQUE)
    if found is Meaning.OPAQUE and node.op == "call_function" and _hands_on(node):
        return Meaning.PASS
    return found if _is_meant(node, found) else Meaning.OPAQUE


def _is_meant(node: fx.Node, meaning: Meaning) -> bool:
    """Whether a function that may do several things does what its name says first."""
    if meaning in (Meaning.ADD, Meaning.MULTIPLY):
        return _adds_tensors(node)
    if node.target in _MEANS:  # without axes it is of the whole tensor
        return len(node.args) > 1 or "dim" in node.kwargs
    return node.target is not getattr or node.args[1] in _SHAPE_ATTRIBUTES


def writes_input(node: fx.Node, model: nn.Module) -> bool:
    """Whether ``node`` writes its result into what it reads."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return node.target in _IN_PLACE or node.kwargs.get("inplace") is True


def _meaning_of_module(module: nn.Module) -> Meaning:
    if isinstance(module, FakeQuantModule) and module.has_weight and module.has_input_grid:
        return Meaning.INT8 if module.is_static else Meaning.LAYER
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return Meaning.LAYER
    if can_fold(module):
        return Meaning.NORM
    for kinds, meaning in _MODULES:
        if type(module) in kinds:
            return Meaning.OPAQUE if getattr(module, "return_indices", False) else meaning
    return Meaning.PASS if _is_identity(module) else Meaning.OPAQUE


def _adds_tensors(node: fx.Node) -> bool:
    """Whether two computed tensors meet, neither a number nor a Parameter."""
    operands = node.args[:2]
    computed = [value for value in operands if isinstance(value, fx.Node) and value.op in _COMPUTED]
    return len(computed) == len(operands) == _PAIR and not node.kwargs and not any(map(_is_number, computed))


def _is_number(node: fx.Node) -> bool:
    """Whether the value is of a shape, as far as the graph tells."""
    if node.op == "call_method" and _METHODS.get(str(node.target)) is Meaning.SHAPE:
        return True
    if node.op == "call_function" and node.target in _ARITHMETIC:
        return any(isinstance(value, fx.Node) and _is_number(value) for value in node.args)
    return node.op == "call_function" and node.target is getattr


_PAIR: Final = 2
_COMPUTED: Final = frozenset({"call_module", "call_function", "call_method", "placeholder"})
_ARITHMETIC: Final = frozenset({operator.getitem, operator.floordiv, operator.sub, operator.mul, operator.add})


def _hands_on(node: fx.Node) -> bool:
    """Whether a function that is told the mode hands its tensor on in evaluation, as stochastic depth does."""
    values = [*node.args, *node.kwargs.values()]
    tensors = [value for value in values if isinstance(value, fx.Node) and value.op != "get_attr"]
    flags = [value for value in values if isinstance(value, fx.Node) and str(value.target).endswith("training")]
    if len(tensors) != 1 or len(flags) != 1 or not callable(node.target):
        return False
    probe = torch.ones(1, 1, 1, 1)

    def filled(value: fx.Node) -> Any:  # noqa: ANN401  any argument
        return probe if value is tensors[0] else False

    arguments: Any = fx.map_arg(node.args, filled)
    keywords: Any = fx.map_arg(node.kwargs, filled)
    return _returns(lambda: node.target(*arguments, **keywords), probe)  # type: ignore[operator]  # looked above


def _is_identity(module: nn.Module) -> bool:
    """Whether a module of somebody's own hands its tensor on in evaluation."""
    if module._modules or module._parameters or module._buffers or type(module).__module__.startswith("torch."):
        return False
    probe, before = torch.ones(1, 1, 1, 1), module.training
    module.training = False
    try:
        return _returns(lambda: module.forward(probe), probe)
    finally:
        module.training = before


def _returns(function: Callable[[], object], probe: torch.Tensor) -> bool:
    try:
        return function() is probe
    except Exception:  # noqa: BLE001  it wants something else, and is no identity then
        return False
