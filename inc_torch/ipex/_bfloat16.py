"""Parts of a float model that compute in bfloat16 on the extension: whole parts, or layers beside int8 ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn

from inc_torch.core.errors import ModelError
from inc_torch.ipex._extension import extension
from inc_torch.ipex._observation import quiet
from inc_torch.precision import Bfloat16Module, cast

__all__ = ["bfloat16_parts", "cast_around", "optimized_parts"]

_WITHOUT_AUTOCAST: Final = (nn.RNN, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell, nn.Bilinear, nn.EmbeddingBag)
"""Layers that the default backend computes in bfloat16 and autocast does not: in between they compute in float32."""


def bfloat16_parts(model: nn.Module) -> dict[str, torch.dtype]:
    """The outermost modules that compute in bfloat16, by name, with the dtype that they give."""
    return {name: each.float_dtype for name, each in model.named_modules() if isinstance(each, Bfloat16Module)}


def optimized_parts(counterpart: nn.Module, parts: Mapping[str, torch.dtype], owner: str) -> nn.Module:
    """Let parts of a float model compute in bfloat16 by `ipex.optimize` and under autocast.

    Args:
        counterpart: The model; it is used up.
        parts: By name, what they give.
        owner: Name of the model, for messages.

    Raises:
        ModelError: The extension refuses.
    """
    root = nn.ModuleList([counterpart])
    for name, dtype in parts.items():
        part = root[0].get_submodule(name)
        made = _optimized(part, owner)
        for module in made.modules():
            if isinstance(module, _WITHOUT_AUTOCAST):
                _surround(module, dtype, bfloat16=False)
        _surround(made, dtype, bfloat16=True)
        for holder in list(root.modules()):
            for key, child in holder._modules.items():
                if child is part:
                    holder._modules[key] = made
    return root[0]


def _optimized(part: nn.Module, owner: str) -> nn.Module:
    """What `ipex.optimize` makes of a part.

    Normalizations are folded when the program is frozen: `ipex.optimize` would need a trace by `torch.fx` for that,
    for which all arguments of a call are given.
    """
    holder = nn.ModuleList([part]).eval()  # recurrent layers are exchanged where they are held
    off = {"conv_bn_folding": False, "linear_bn_folding": False}
    with quiet():
        try:
            made: nn.Module = extension().optimize(holder, dtype=torch.bfloat16, inplace=True, **off)[0]
        except (RuntimeError, TypeError, AttributeError, AssertionError, KeyError) as error:
            message = (
                f"The extension cannot compute {owner} in bfloat16: {type(error).__name__}: {error}. Leave "
                "backend='ipex' out: the default backend computes in bfloat16 on any processor."
            )
            raise ModelError(message) from error
    return made


def _surround(module: nn.Module, dtype: torch.dtype, *, bfloat16: bool) -> None:
    compute = module.forward

    @functools.wraps(compute)
    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  those of the module
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return cast(compute(*cast(args, dtype), **cast(kwargs, dtype)), dtype)

    module.__dict__["forward"] = forward


def cast_around(converted: Any, parts: Mapping[str, torch.dtype]) -> None:  # noqa: ANN401  a class that the extension makes
    """Let layers beside int8 ones compute in bfloat16, in place: what they are given and give is cast.

    Of layers that it knows in int8 the extension calls a function between two hooks, and no ``forward``.

    Args:
        converted: What the extension made of an int8 model.
        parts: By name, what the layers give.
    """
    layers = {converted.get_submodule(name).to(torch.bfloat16): dtype for name, dtype in parts.items()}
    for layer, dtype in layers.items():
        layer.__dict__["forward"] = _casting(layer.forward, dtype)
    for state in converted._fqn_to_auto_quant_state_map.values() if layers else ():
        state.op_convert_before_hook = _casting_arguments(state.op_convert_before_hook, layers)
        state.op_convert_after_hook = _casting_results(state.op_convert_after_hook, layers)


_Layers = Mapping[Any, torch.dtype]


def _casting(compute: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  those of the layer
        return cast(compute(*cast(args, torch.bfloat16), **cast(kwargs, torch.bfloat16)), dtype)

    return forward


def _casting_arguments(before: Callable[..., Any], layers: _Layers) -> Callable[..., Any]:
    def hook(operation: Any, args: Any, kwargs: Any, module: nn.Module) -> Any:  # noqa: ANN401  those of the extension
        changed, args, kwargs = before(operation, args, kwargs, module)
        return changed, (cast(args, torch.bfloat16) if operation in layers else args), kwargs

    return hook


def _casting_results(after: Callable[..., Any], layers: _Layers) -> Callable[..., Any]:
    def hook(operation: Any, outputs: Any) -> Any:  # noqa: ANN401  those of the extension
        return after(operation, cast(outputs, layers[operation]) if operation in layers else outputs)

    return hook
