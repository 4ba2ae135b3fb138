"""Scales of input channels that are learned, so that a model with rounded weights does its task best.

Source: Cheng et al., *TEQ: Trainable Equivalent Transformation for Quantization of LLMs*, arXiv:2310.10944. A linear
layer gives the same if its weights are multiplied with a scale for each input, and the inputs are divided by it; once
the scaled weights are rounded, it does not, and how much it differs depends on the scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from inc_torch.quantizers._spec import TeqSettings, WeightOnlyScheme
from inc_torch.quantizers._weight_only import straight_through

__all__ = ["learn_scales", "learnable_scales"]

_LEAST_SCALE: Final = 1e-4
_WARM_UP: Final = 0.05
_BETAS: Final = (0.9, 0.9)
_PARAMETER: Final = "scale_of_inputs"
"""What a scale is called among the Parameters of its layers, as long as it is learned."""


@contextmanager
def learnable_scales(
    layers: Mapping[str, tuple[nn.Module, torch.Tensor, WeightOnlyScheme]], groups: Sequence[Sequence[str]]
) -> Iterator[list[nn.Parameter]]:
    """Let linear layers compute with weights that are scaled and rounded, for a while, and yield the scales.

    Each group of layers shares one, a Parameter of its layers, which begins at 1. Weights get no gradient by it.

    Args:
        layers: By name: the layer, its weight as [out, in], and how it is rounded.
        groups: Names of the layers that share a scale.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[7.0, 0.4]])
        >>> with learnable_scales({"": (layer, layer.weight, WeightOnlyScheme())}, [("",)]) as scales:
        ...     scales[0].data = torch.tensor([1.0, 2.5])
        ...     layer(torch.tensor([[0.0, 1.0]]))
        tensor([[0.4000]], grad_fn=<MmBackward0>)
    """
    with ExitStack() as undo:
        scales: list[nn.Parameter] = []
        for names in groups:
            weight = layers[names[0]][1]
            scale = nn.Parameter(torch.ones(weight.shape[1], device=weight.device))
            scales.append(scale)
            for name in names:
                module, matrix, scheme = layers[name]
                module.register_parameter(_PARAMETER, scale)
                undo.callback(module._parameters.pop, _PARAMETER)
                module.__dict__["forward"] = _scaled_forward(module, matrix.detach(), scheme, scale)
                undo.callback(module.__dict__.pop, "forward")
        yield scales


def learn_scales(
    scales: Sequence[nn.Parameter], losses: Callable[[int], torch.Tensor], settings: TeqSettings, steps: Iterator[int]
) -> None:
    """Bring down a loss by Adam, changing scales alone.

    The learning rate rises over the first twentieth of the steps and falls to 0 over the others.

    Args:
        scales: Of `learnable_scales`.
        losses: The loss of the batch of a step.
        settings: Steps and learning rate.
        steps: Their numbers.

    Source: INC 2.6.1, ``teq_args``: Adam, learning rate 0.001, betas 0.9 and 0.9, 1000 steps.
    """
    optimizer = torch.optim.Adam(scales, settings.learning_rate, betas=_BETAS)
    rising = max(1, round(_WARM_UP * settings.steps))
    pace = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / rising, max(0.0, (settings.steps - step) / max(1, settings.steps - rising))),
    )
    for step in steps:
        gradients = torch.autograd.grad(losses(step), scales, allow_unused=True)
        for scale, gradient in zip(scales, gradients, strict=True):
            scale.grad = gradient
        optimizer.step()
        pace.step()
        with torch.no_grad():
            for scale in scales:
                scale.clamp_(min=_LEAST_SCALE)


def _scaled_forward(
    module: nn.Module, matrix: torch.Tensor, scheme: WeightOnlyScheme, scale: nn.Parameter
) -> Callable[[torch.Tensor], torch.Tensor]:
    def rounded(scale: torch.Tensor) -> torch.Tensor:
        return straight_through(matrix.to(torch.float32) * scale, scheme)

    def forward(input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        # Rounded again in the backward, as a copy of all weights would not fit.
        weight = checkpoint(rounded, scale, use_reentrant=False) if torch.is_grad_enabled() else rounded(scale)
        bias = module._parameters.get("bias")
        return F.linear(input / scale.to(input.dtype), weight.to(input.dtype), bias)

    return forward
