"""Make a pruned model smaller: dead channels go out of pairs of linear layers, dead heads out of attentions."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, final

import torch
from torch import nn

from inc_torch.core.errors import ConfigError, InexactWarning, ModelError
from inc_torch.core.names import unwrapped
from inc_torch.core.user_warning import warn_user
from inc_torch.pruners._matrix import matrix_of
from inc_torch.pruners.slimming._channels import Sink, find_sinks, linear_layers
from inc_torch.pruners.slimming._heads import find_dead_heads, take_out_heads
from inc_torch.pruners.slimming._inputs import example_inputs
from inc_torch.pruners.slimming._removal import describes, keep_channels, undone_on_error, with_equal_outputs

__all__ = ["model_slim"]

logger = logging.getLogger(__name__)
ModelT = TypeVar("ModelT", bound=nn.Module)

_NOT_WIDTHS = ("vocab_size", "hidden_size", "max_position_embeddings", "n_positions", "n_embd", "d_model")
_UNSET_WIDTHS = ("n_inner", "intermediate_size", "ffn_dim")
"""Attributes of configurations that stand for a multiple of another width where they are None."""


def model_slim(
    model: ModelT, dataloader: Iterable[object] | None = None, round_multiplier: int = 32, *, loadable: bool = True
) -> ModelT:
    """Make a pruned model smaller, in place, with the same outputs.

    Where all weights that look at a channel are zero, and linear layers in front make that channel by itself (the
    feed-forward parts of transformers, gated or not; perceptrons), the channel goes: the inputs of the one, the
    outputs and biases of the others. Layers whose names differ in numbers alone stay equally wide, and the width in a
    transformers configuration (``intermediate_size``, ``n_inner``, ...) is set, so that ``save_pretrained`` and
    ``from_pretrained`` work as before. Attention heads that the output layer does not look at (``pattern="mha"``) go
    too, at least one in each attention stays.

    The model is run before and after; if an output differs it is left as it was. Weights are new Parameters: make
    optimizers anew.

    Args:
        model: Any model, pruned by whole inputs (``pattern="channelx1"``), see `parse_auto_slim_config`.
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
    layers = linear_layers(inner)
    heads = find_dead_heads(inner, layers)
    cuts = _cuts(find_sinks(model, inputs), layers, max(1, round_multiplier))
    if not (heads or cuts):
        warn_user(_nothing_dead(inner, round_multiplier), InexactWarning)
    if heads:
        take_out_heads(inner, layers, heads, inputs, loadable=loadable)
    if cuts:
        with undone_on_error(inner):
            with_equal_outputs(inner, inputs, lambda: _carry_out(cuts, layers))
            _set_width(inner, cuts)
        logger.info("Took %d channels out of %d layers.", sum(len(cut.dead) for cut in cuts), len(cuts))
    return model


@final
@dataclass(frozen=True, slots=True)
class _Cut:
    """Channels to be taken out of a layer's inputs, and of the outputs of those that make them.

    Attributes:
        sink: The layer, and those others.
        dead: Indices of the channels, ascending.
        width: How many there were.
    """

    sink: Sink
    dead: tuple[int, ...]
    width: int

    def carry_out(self, layers: Mapping[str, nn.Module]) -> None:
        """Exchange the weights."""
        gone = set(self.dead)
        kept = torch.tensor([channel for channel in range(self.width) if channel not in gone])
        keep_channels(layers[self.sink.name], kept, of_outputs=False)
        for name in self.sink.sources:
            keep_channels(layers[name], kept, of_outputs=True)


def _carry_out(cuts: Sequence[_Cut], layers: Mapping[str, nn.Module]) -> None:
    for cut in cuts:
        cut.carry_out(layers)


def _cuts(sinks: Sequence[Sink], layers: Mapping[str, nn.Module], multiple: int) -> list[_Cut]:
    """What can go; of layers whose names differ in numbers alone equally much, as one number describes their width."""
    makers = [name for sink in sinks for name in sink.sources]
    alike: dict[tuple[str, int], list[tuple[Sink, list[int]]]] = defaultdict(list)
    for sink in sinks:
        if any(makers.count(name) > 1 for name in sink.sources):
            continue  # several layers look at these channels
        matrix = matrix_of(layers[sink.name])
        dead = torch.nonzero(matrix.count_nonzero(0) == 0).flatten().tolist()
        alike[re.sub(r"\d+", "#", sink.name), matrix.shape[1]].append((sink, dead))
    cuts: list[_Cut] = []
    for (_, width), members in alike.items():
        count = min(len(dead) for _, dead in members) // multiple * multiple
        if 0 < count < width:
            cuts += [_Cut(sink, tuple(dead[:count]), width) for sink, dead in members]
    return cuts


def _set_width(model: nn.Module, cuts: Sequence[_Cut]) -> None:
    """Write new widths into a configuration of transformers, so that it describes the weights that there are."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return
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
        f"zero (pattern='channelx1'), {max(1, multiple)} or more in each layer of a kind, or attentions with heads "
        "that are zero (pattern='mha'). Prune what parse_auto_slim_config names, or lower round_multiplier."
    )
