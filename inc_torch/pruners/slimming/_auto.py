"""The pruning configuration after which a model can be made smaller."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.core.names import named_layers, unwrapped
from inc_torch.pruners._attention import find_attentions
from inc_torch.pruners._matrix import is_linear
from inc_torch.pruners.slimming._channels import Channels
from inc_torch.pruners.slimming._cuts import removable_sinks
from inc_torch.pruners.slimming._inputs import example_inputs

__all__ = ["parse_auto_slim_config"]


def parse_auto_slim_config(
    model: nn.Module,
    dataloader: Iterable[object] | None = None,
    ffn2_sparsity: float = 0.0,
    mha_sparsity: float = 0.0,
    *,
    conv_sparsity: float = 0.0,
    **kwargs: object,
) -> list[dict[str, Any]]:
    """Return the ``pruning_configs`` that prune what `model_slim` can take out.

    The second layer of each feed-forward part loses whole inputs (``channelx1``), for which nothing in front of it has
    to be computed any more, convolutions behind others lose whole inputs at all kernel positions (``channel``), and
    attentions lose whole heads (``mha``).

    Args:
        model: Any model with pairs of linear layers, between which channels are not mixed.
        dataloader: Its first batch is what the model is run on; None takes the model's own ``dummy_inputs``.
        ffn2_sparsity: Share of inputs to prune, in [0, 1); 0 prunes none.
        mha_sparsity: Share of attention heads to prune, in [0, 1); 0 prunes none.
        conv_sparsity: Share of the inputs of convolutions that other convolutions make, in [0, 1); 0 prunes none.
        kwargs: Other options of these dicts, such as ``start_step``. ``pruning_scope="local"`` keeps layers equally
            wide, as the configurations of transformers need it.

    Returns:
        A list of dicts for ``WeightPruningConfig``.

    Raises:
        ConfigError: A sparsity is out of its range.
        ModelError: There is no such layer, or nothing to run the model on.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> parse_auto_slim_config(model, [torch.ones(3, 4)], ffn2_sparsity=0.5, pruning_scope="local")
        [{'op_names': ['2'], 'pattern': 'channelx1', 'target_sparsity': 0.5, 'pruning_scope': 'local'}]

    Source: INC 2.6.1, which prunes all layers where it finds none.
    """
    for name, value in (
        ("ffn2_sparsity", ffn2_sparsity),
        ("mha_sparsity", mha_sparsity),
        ("conv_sparsity", conv_sparsity),
    ):
        if not 0 <= value < 1:
            raise ConfigError.field(parse_auto_slim_config.__name__, name, value, "a number in [0, 1)")
    configs: list[dict[str, Any]] = []
    if ffn2_sparsity or conv_sparsity:
        inner = unwrapped(model)
        sinks = removable_sinks(model, Channels.of(inner), example_inputs(model, dataloader))
        modules = dict(named_layers(inner))
        linear = [sink.name for sink in sinks if is_linear(modules[sink.name])]
        convolutions = [sink.name for sink in sinks if sink.name not in linear]
        for names, pattern, sparsity in (
            (linear, "channelx1", ffn2_sparsity),
            (convolutions, "channel", conv_sparsity),
        ):
            if sparsity:
                expressions = _expressions(names, model)
                configs.append({"op_names": expressions, "pattern": pattern, "target_sparsity": sparsity})
    if mha_sparsity:
        if not find_attentions(model)[0]:
            message = f"{type(model).__name__} has no attention of which heads could be pruned: leave mha_sparsity out."
            raise ModelError(message)
        configs.append({"pattern": "mha", "target_sparsity": mha_sparsity})
    return [config | kwargs for config in configs]


def _expressions(names: Sequence[str], model: nn.Module) -> list[str]:
    """Regular expressions that find these layers and no others."""
    if not names:
        message = (
            f"{type(model).__name__} has no such layer whose inputs other layers make channel by channel: there is "
            "nothing that pruning could make smaller. Prune it without parse_auto_slim_config, or ask for "
            "ffn2_sparsity of linear layers, conv_sparsity of convolutions."
        )
        raise ModelError(message)
    others = [name for name, _ in named_layers(unwrapped(model)) if name not in names]
    return [_found_alone(name, others) for name in names]


def _found_alone(name: str, others: Sequence[str]) -> str:
    """A name as a regular expression that finds no other layer: as it is, if that is so already."""
    return f"^{re.escape(name)}$" if any(re.search(name, other) for other in others) else name
