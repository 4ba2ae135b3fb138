"""In what mode a model is run for a while: to evaluate it, or to watch it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["evaluating", "without_cache", "without_compiling"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into evaluation mode, and every submodule back into the mode that it had.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(model):
        ...     [module.training for module in model]
        [False, False]
        >>> [module.training for module in model]
        [True, False]
    """
    modes = [(submodule, submodule.training) for submodule in model.modules()]
    if not any(training for _, training in modes):
        yield
        return
    is_training = model.training
    model.eval()
    try:
        yield
    finally:
        if is_training:
            model.train()  # for modules that do more there than to set a flag
        for submodule, training in modes:
            submodule.training = training


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Let models of transformers give back no cache of keys and values, for a while.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
        >>> with without_cache(model):
        ...     model(torch.tensor([[1, 2]])).past_key_values is None
        True
    """
    configs = {id(config): config for module in model.modules() if hasattr(config := _config_of(module), "use_cache")}
    before = [(config, config.use_cache) for config in configs.values()]
    try:
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for config, value in before:
            config.use_cache = value


def _config_of(module: nn.Module) -> Any:  # noqa: ANN401  of transformers
    return getattr(module, "config", None)


@contextmanager
def without_compiling() -> Iterator[None]:
    """Let everything that `torch.compile` wraps run as it is written, hooks included.

    Hooks that only watch a few batches are not worth a compilation, and not all that they do can be traced.

    Example:
        >>> with without_compiling():
        ...     torch.nn.ReLU()(torch.tensor([-1.0, 1.0]))
        tensor([0., 1.])
    """
    if "torch._dynamo" not in sys.modules:  # nothing is compiled yet; importing it takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
