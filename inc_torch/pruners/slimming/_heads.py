"""Attention heads that nothing looks at are taken out of all layers of their attention."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import nn

from inc_torch.core.batches import Inputs
from inc_torch.core.errors import InexactWarning, ModelError
from inc_torch.core.user_warning import warn_user
from inc_torch.pruners._attention import HEAD_COUNTS, Attention, find_attentions
from inc_torch.pruners.slimming._removal import describes, is_read, keep_channels, undone_on_error, with_equal_outputs

__all__ = ["HeadCut", "find_dead_heads", "take_out_heads"]

logger = logging.getLogger(__name__)

_SHARED_COUNTS: Final = ("num_key_value_heads", "num_kv_heads")
_WIDTHS: Final = ("all_head_size", "split_size", "inner_dim")
"""Attributes of attentions that are the channels of all heads together."""


@final
@dataclass(frozen=True, slots=True)
class HeadCut:
    """Heads to be taken out of an attention.

    Attributes:
        attention: Where.
        dead: Indices of the heads, ascending.
    """

    attention: Attention
    dead: tuple[int, ...]

    def carry_out(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        """Exchange the weights, and set what the module knows of its heads."""
        heads = self.attention.heads
        kept = [head for head in range(heads) if head not in self.dead]
        for member in self.attention.members:
            channels = torch.cat([_channels(start, size, kept) for start, size in member.runs(heads)])
            keep_channels(layers[member.layer], channels, of_outputs=member.of_outputs)
        core = model.get_submodule(self.attention.core)
        for name in (*HEAD_COUNTS, *_SHARED_COUNTS, *_WIDTHS):
            if isinstance(value := vars(core).get(name), int):
                setattr(core, name, value * len(kept) // heads)


def _channels(start: int, size: int, heads: list[int]) -> torch.Tensor:
    return torch.tensor([start + head * size + channel for head in heads for channel in range(size)])


def find_dead_heads(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[HeadCut]:
    """Find heads whose values the output layer does not look at.

    Of attentions whose names differ in numbers alone equally many, as one number describes them; at least one head
    stays.

    Args:
        model: Any model.
        layers: Its linear layers, by name; an attention with a layer that is not among them keeps its heads.
    """
    alike: dict[tuple[str, int], list[HeadCut]] = defaultdict(list)
    for attention in find_attentions(model)[0]:
        if all(member.layer in layers for member in attention.members):
            *_, output = attention.members
            heads_read = is_read(layers[output.layer]).view(attention.heads, -1).any(1)
            dead = tuple(torch.nonzero(~heads_read).flatten().tolist())
            alike[re.sub(r"\d+", "#", attention.name), attention.heads].append(HeadCut(attention, dead))
    cuts: list[HeadCut] = []
    for (_, heads), members in alike.items():
        count = min(*(len(cut.dead) for cut in members), heads - 1)
        if count:
            cuts += [HeadCut(cut.attention, cut.dead[:count]) for cut in members]
    return cuts


def take_out_heads(
    model: nn.Module, layers: Mapping[str, nn.Module], cuts: Sequence[HeadCut], inputs: Inputs, *, loadable: bool
) -> None:
    """Take heads out of a model, unless it then computes something else or, if ``loadable``, cannot be loaded again."""
    try:
        with undone_on_error(model):
            with_equal_outputs(model, inputs, lambda: _carry_out(cuts, model, layers))
            _describe(model, cuts, loadable=loadable)
    except (ModelError, RuntimeError) as error:
        message = (
            f"The {sum(len(cut.dead) for cut in cuts)} dead heads of {type(model).__name__} stay in, as zeros: {error}"
        )
        warn_user(message, InexactWarning)
        return
    logger.info("Took %d heads out of %d attentions.", sum(len(cut.dead) for cut in cuts), len(cuts))


def _carry_out(cuts: Sequence[HeadCut], model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    for cut in cuts:
        cut.carry_out(model, layers)


def _describe(model: nn.Module, cuts: Sequence[HeadCut], *, loadable: bool) -> None:
    """Write numbers of heads into a configuration of transformers, so that it describes the weights that there are."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return
    ratios = {(cut.attention.heads - len(cut.dead), cut.attention.heads) for cut in cuts}
    before = dict(vars(config))
    if len(ratios) == 1:
        ((kept, heads),) = ratios
        for name in (*HEAD_COUNTS, *_SHARED_COUNTS):
            if isinstance(value := vars(config).get(name), int) and value % heads == 0:
                setattr(config, name, value * kept // heads)
        config.head_dim = cuts[0].attention.size
    changed = [member.layer for cut in cuts for member in cut.attention.members]
    if describes(model, changed):
        return
    vars(config).clear()
    vars(config).update(before)
    if loadable:
        message = (
            f"its configuration cannot say that there are fewer heads of the same size ({type(config).__name__} takes "
            "the size of a head from the width), so that from_pretrained could not open the result. "
            "model_slim(..., loadable=False) takes them out all the same."
        )
        raise ModelError(message)
