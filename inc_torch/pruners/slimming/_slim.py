"""Make a pruned model smaller: dead channels go out of pairs of linear layers, dead heads out of attentions."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from inc_torch.core.errors import ConfigError, InexactWarning, ModelError
from inc_torch.core.names import unwrapped
from inc_torch.core.user_warning import warn_user
from inc_torch.pruners.slimming._channels import Channels, Sink
from inc_torch.pruners.slimming._cuts import Cut, removable_sinks
from inc_torch.pruners.slimming._heads import find_dead_heads, take_out_heads
from inc_torch.pruners.slimming._inputs import example_inputs
from inc_torch.pruners.slimming._removal import (
    describes,
    is_read,
    undone_on_error,
    with_equal_outputs,
)

__all__ = ["model_slim"]

logger = logging.getLogger(__name__)
ModelT = TypeVar("ModelT", bound=nn.Module)

_NUMBER = r"\d+"
_NOT_WIDTHS = ("vocab_size", "hidden_size", "max_position_embeddings", "n_positions", "n_embd", "d_model")
_UNSET_WIDTHS = ("n_inner", "intermediate_size", "ffn_dim")
"""Attributes of configurations that stand for a multiple of another width where they are None."""


def model_slim(
    model: ModelT, dataloader: Iterable[object] | None = None, round_multiplier: int = 32, *, loadable: bool = True
) -> ModelT:
    """Make a pruned model smaller, in place, with the same outputs.

    Where all weights that look at a channel are zero, and layers in front make that channel by itself (the feed-forward
    parts of transformers, gated or not; perceptrons; chains of convolutions, batch norms and depthwise convolutions),
    the channel goes: the inputs of the one, the outputs and biases of the others, and what hands it on between them.
    With a transformers configuration layers whose names differ in numbers alone stay equally wide, and the width in it
    (``intermediate_size``, ``n_inner``, ...) is set, so that ``save_pretrained`` and ``from_pretrained`` work as
    before. Attention heads that the output layer does not look at (``pattern="mha"``) go too, at least one in each
    attention stays.

    The model is run before and after; if an output differs it is left as it was. Weights are new Parameters: make
    optimizers anew.

    Args:
        model: Any model, pruned by whole inputs (``pattern="channelx1"``, ``"channel"`` for convolutions), see
            `parse_auto_slim_config`.
        dataloader: Its first batch is what the model is run on; None takes the model's own ``dummy_inputs``.
        round_multiplier: As many channels, or a multiple, are taken out of a layer, so that widths stay good for
            kernels; 0 and 1 take out all. Heads are taken out whole.
        loadable: Leave heads in where the configuration cannot say that some are gone, with a warning: so it is with
            BERT, RoBERTa, DistilBERT and GPT-2, which take the size of a head from the width and their number. Llama
            and ViT can. False takes them out; ``from_pretrained`` cannot open such a model.

    Returns:
        The model.

    Raises:
        ConfigError: ``round_multiplier`` is negative.
        ModelError: There is nothing to run the model on, or it computes something else without these channels.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = model[2].weight.data[:, 2:5].zero_()
        >>> model_slim(model, [torch.ones(3, 4)], round_multiplier=1)
        Sequential(
          (0): Linear(in_features=4, out_features=5, bias=True)
          (1): ReLU()
          (2): Linear(in_features=5, out_features=2, bias=True)
        )

    Source: INC 2.6.1 ``model_slim``, which finds layers by a trace, chooses by chance which dead channels stay, and
    turns errors into warnings.
    """
    if round_multiplier < 0:
        raise ConfigError.field(model_slim.__name__, "round_multiplier", round_multiplier, "an integer of 0 or more")
    inner = unwrapped(model)
    inputs = example_inputs(model, dataloader)
    channels = Channels.of(inner)
    heads = find_dead_heads(inner, channels.mixing)
    cuts = _cuts(inner, removable_sinks(model, channels, inputs), channels, max(1, round_multiplier))
    if not (heads or cuts):
        warn_user(_nothing_dead(inner, round_multiplier), InexactWarning)
    if heads:
        take_out_heads(inner, channels.mixing, heads, inputs, loadable=loadable)
    if cuts:
        with undone_on_error(inner):
            with_equal_outputs(inner, inputs, lambda: _carry_out(cuts, channels))
            _set_width(inner, cuts)
        logger.info("Took %d channels out of %d layers.", sum(len(cut.dead) for cut in cuts), len(cuts))
    return model


def _carry_out(cuts: Sequence[Cut], channels: Channels) -> None:
    for cut in cuts:
        cut.carry_out(channels)


def _cuts(model: nn.Module, sinks: Sequence[Sink], channels: Channels, multiple: int) -> list[Cut]:
    """What can go; equally much of layers that one number of a configuration describes."""
    alike: dict[str, list[tuple[Sink, list[int], int]]] = defaultdict(list)
    for sink in sinks:
        read = is_read(channels.mixing[sink.name])
        kind = f"{re.sub(_NUMBER, '#', sink.name)} {len(read)}" if _has_config(model) else sink.name
        alike[kind].append((sink, torch.nonzero(~read).flatten().tolist(), len(read)))
    cuts: list[Cut] = []
    for members in alike.values():
        count = min(len(dead) for _, dead, _ in members) // multiple * multiple
        cuts += [Cut(sink, tuple(dead[:count]), width) for sink, dead, width in members if 0 < count < width]
    return cuts


def _has_config(model: nn.Module) -> bool:
    return hasattr(getattr(model, "config", None), "to_dict")


def _set_width(model: nn.Module, cuts: Sequence[Cut]) -> None:
    """Write new widths into a configuration of transformers, so that it describes the weights that there are."""
    if not _has_config(model):
        return
    config: Any = model.config
    for width in {cut.width for cut in cuts}:
        remaining = {cut.width - len(cut.dead) for cut in cuts if cut.width == width}
        names = [name for name, value in vars(config).items() if value == width and name not in _NOT_WIDTHS]
        names += [name for name in _UNSET_WIDTHS if getattr(config, name, width) is None]
        if len(remaining) == 1 and names:
            for name in names:
                setattr(config, name, *remaining)
    if not describes(model, [name for cut in cuts for name in (cut.sink.name, *cut.sink.sources)]):
        message = (
            f"The configuration of {type(model).__name__} cannot describe its weights without their dead channels: "
            "layers would be of several widths, or no attribute of it is the width. Prune layers of one kind equally "
            "(pruning_scope='local'); the model is as it was."
        )
        raise ModelError(message)


def _nothing_dead(model: nn.Module, multiple: int) -> str:
    return (
        f"model_slim found nothing to take out of {type(model).__name__}: expected layers of which whole inputs are "
        f"zero (pattern='channelx1', 'channel'), {max(1, multiple)} or more in each layer of a kind, or attentions "
        "with heads that are zero (pattern='mha'). Prune what parse_auto_slim_config names, or lower round_multiplier."
    )
