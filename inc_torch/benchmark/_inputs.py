"""A batch made up for a model that comes without data, from what the model says of itself.

| model | input |
|---|---|
| of transformers | by its ``main_input_name`` and its configuration: random tokens, or random pixels |
| any other that requires one argument | random values of the shape that the first layer with weights takes |

The first that the model runs on is taken.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn

from inc_torch.core.batches import Inputs, described, on_device, output_of
from inc_torch.core.errors import ModelError
from inc_torch.core.names import unwrapped

__all__ = ["made_up_inputs"]

_TOKENS: Final = 128
"""Length of a made-up text, where the model takes as many."""
_SIDES: Final = (224, 32, 28, 64, 299)
"""Heights and widths of images to try, the most usual first."""
_LENGTH: Final = 16
"""Of a sequence, or of an axis that is convolved over, where nothing says it."""
_SEED: Final = 9973
_CONVOLVED_IMAGE: Final = 2
_DATA: Final = "Give data: b_dataloader=[a batch], or a b_func that runs the model."


def made_up_inputs(model: nn.Module, batch_size: int) -> Inputs:
    """Return random inputs that ``model`` runs on; the same in every call.

    Raises:
        ModelError: Nothing says what the model takes, or it fails on what was tried.

    Example:
        >>> made_up_inputs(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), 4).args[0].shape
        torch.Size([4, 3])
    """
    inner = unwrapped(model)
    generator = torch.Generator().manual_seed(_SEED)
    device = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
    candidates = _of_transformers(inner, batch_size, generator) if _is_of_transformers(inner) else None
    if candidates is None:
        candidates = _of_first_layer(inner, batch_size, generator)
    reason = "no layer says what it takes"
    cause: Exception | None = None
    for made in candidates:
        inputs = Inputs(on_device(made.args, device), on_device(dict(made.kwargs), device))
        try:
            output_of(model, inputs)
        except Exception as error:  # noqa: BLE001  the next one may fit
            given = [*made.args, *made.kwargs.values()]
            reason, cause = f"it fails on {', '.join(map(described, given))}: {type(error).__name__}: {error}", error
        else:
            return inputs
    message = f"No input could be made up for {type(inner).__name__}: {reason}. {_DATA}"
    raise ModelError(message) from cause


def _is_of_transformers(model: nn.Module) -> bool:
    return hasattr(model, "main_input_name") and hasattr(model, "config")


def _of_transformers(model: Any, batch_size: int, generator: torch.Generator) -> Iterator[Inputs]:  # noqa: ANN401
    config, name = model.config, model.main_input_name
    if name == "input_ids":
        vocabulary = int(getattr(config, "vocab_size", 0) or model.get_input_embeddings().num_embeddings)
        longest = int(getattr(config, "max_position_embeddings", _TOKENS) or _TOKENS)
        # Some models keep two positions for padding.
        for length in (min(_TOKENS, longest), max(1, min(_TOKENS, longest) - 2)):
            tokens = torch.randint(0, vocabulary, (batch_size, length), generator=generator)
            given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            if getattr(config, "is_encoder_decoder", False):
                given["decoder_input_ids"] = tokens[:, :1]
            takes = inspect.signature(model.forward).parameters
            yield Inputs(kwargs={key: value for key, value in given.items() if key in takes})
    elif name == "pixel_values":
        size = getattr(config, "image_size", None)
        channels = int(getattr(config, "num_channels", 3))
        for side in [size] if size else _SIDES:
            height, width = side if isinstance(side, list | tuple) else (side, side)
            yield Inputs(kwargs={name: torch.randn(batch_size, channels, height, width, generator=generator)})


def _of_first_layer(model: nn.Module, batch_size: int, generator: torch.Generator) -> Iterator[Inputs]:
    _require_one_argument(model)
    for layer in model.modules():
        shapes = list(_shapes(layer))
        if not shapes:
            continue
        for shape in shapes:
            if (rows := getattr(layer, "num_embeddings", None)) is not None:
                yield Inputs((torch.randint(0, rows, (batch_size, *shape), generator=generator),))
            else:
                yield Inputs((torch.randn(batch_size, *shape, generator=generator).to(_dtype(model)),))
        return


def _shapes(layer: Any) -> Iterator[tuple[int, ...]]:  # noqa: ANN401  a module, asked for what only some have
    """Shapes of one sample for a layer, the likeliest first; none for what takes any."""
    if hasattr(layer, "num_embeddings"):
        yield (_LENGTH,)
    elif hasattr(layer, "in_channels") and hasattr(layer, "kernel_size"):
        axes = len(layer.kernel_size)
        sides = _SIDES if axes == _CONVOLVED_IMAGE else (_LENGTH, _SIDES[0])
        yield from ((layer.in_channels, *[side] * axes) for side in sides)
    elif hasattr(layer, "in_features"):
        yield (layer.in_features,)
        yield (_LENGTH, layer.in_features)
    elif isinstance(layer, nn.RNNBase):
        yield (_LENGTH, layer.input_size)
    elif isinstance(layer, nn.MultiheadAttention | nn.TransformerEncoderLayer):
        width = layer.embed_dim if isinstance(layer, nn.MultiheadAttention) else layer.linear1.in_features
        yield (_LENGTH, width)


def _dtype(model: nn.Module) -> torch.dtype:
    """That of the first floating Parameter: a model in bfloat16 takes no float32."""
    return next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)


def _require_one_argument(model: nn.Module) -> None:
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except ValueError:  # a builtin, such as that of TorchScript
        return
    kinds = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    required = [one.name for one in parameters if one.kind in kinds and one.default is one.empty]
    if len(required) > 1:
        message = (
            f"No input could be made up for {type(model).__name__}: its forward requires {', '.join(required)}, and "
            f"only models with one input are guessed. {_DATA}"
        )
        raise ModelError(message)
