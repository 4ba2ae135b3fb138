"""The search for the alpha with which each group of layers loses least by rounding.

Each candidate is tried on inputs that calibration kept, with the very rounding that int8 modules will do:

    loss = sum(|y / m - y_q / m|^0.5),   m = max(max|y|, 1e-5)

``y`` is the output in float and ``y_q`` that under rounding; ``m`` is of the whole output if that is a matrix, else of
each sample. Source: INC 2.6.1, which differs in that it forgets the losses of all batches but the last, feeds layers
what the rounded layers before them give, and rounds the weights of convolutions with a scale for each input channel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from typing import Any, Final

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from inc_torch.core.errors import CalibrationError, ModelError
from inc_torch.core.modes import evaluating
from inc_torch.core.names import named_layers
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule
from inc_torch.quantizers._flow import Flow
from inc_torch.quantizers._prepare import fake_quant_modules
from inc_torch.quantizers._smoothing import (
    SeenInput,
    SmoothingGroup,
    SmoothQuant,
    group_scale,
    smoothed_range,
    smoothing_groups,
)

__all__ = ["alpha_candidates", "block_losses", "chosen_alphas", "layer_losses", "search_alphas"]

Losses = dict[str, dict[float, float]]
"""By layer and alpha, candidates in the order of their trial."""

_EXPONENT: Final = 0.5
_LEAST_NORM: Final = 1e-5
_MATRIX_RANK: Final = 2


def alpha_candidates(spec: SmoothQuant) -> list[float]:
    """The alphas to try: the default one first, then from the least to the greatest.

    Example:
        >>> from inc_torch.quantizers._smoothing import SmoothQuant
        >>> alpha_candidates(SmoothQuant(alpha="auto", alpha_min=0.4, alpha_max=0.7))
        [0.5, 0.4, 0.6, 0.7]
    """
    # In decimal, so that no candidate is 0.30000000000000004.
    low, high, step = (Decimal(str(value)) for value in (spec.alpha_min, spec.alpha_max, spec.alpha_step))
    grid = [float(low + index * step) for index in range(int((high - low) / step) + 1)]
    return [spec.default_alpha, *(alpha for alpha in grid if alpha != spec.default_alpha)]


def search_alphas(
    model: nn.Module,
    inputs: Mapping[str, SeenInput],
    spec: SmoothQuant,
    run: Callable[[nn.Module], object],
    flow: Flow | None = None,
) -> dict[str, float]:
    """Find the best alpha for every layer that can be smoothed; layers of one scale get the same.

    Args:
        model: A prepared model with fake-quant off; not changed.
        inputs: By name, what calibration saw, with a sample.
        spec: The candidates, and how layers agree.
        run: Calls the model on some batches; used with ``do_blockwise`` alone.
        flow: From `trace_flow`, if scales are to be folded.

    Returns:
        By layer name, for `apply_smoothing`.

    Raises:
        CalibrationError: Calibration kept no sample of a layer.
        ModelError: It should be by block, and the model has no blocks.
    """
    groups, _ = smoothing_groups(model, inputs, flow)
    if spec.do_blockwise:
        losses = block_losses(model, inputs, spec, run, groups)
    else:
        losses = layer_losses(model, inputs, spec, groups)
    return chosen_alphas(losses, groups, spec)


def layer_losses(
    model: nn.Module, inputs: Mapping[str, SeenInput], spec: SmoothQuant, groups: Iterable[SmoothingGroup]
) -> Losses:
    """The error of each layer's own output, summed over its sample, for every candidate.

    Raises:
        CalibrationError: Calibration kept no sample of a layer.
    """
    layers = dict(fake_quant_modules(model))
    losses: Losses = {}
    with evaluating(model), torch.no_grad():
        for group in groups:
            scales = {alpha: _scale(group, layers, inputs, alpha) for alpha in alpha_candidates(spec)}
            for name in group.layers:
                sample = _sample(name, inputs[name])
                losses[name] = _losses_of_layer(layers[name], inputs[name], sample, scales)
    return losses


def _losses_of_layer(
    layer: FakeQuantModule, seen: SeenInput, sample: Iterable[torch.Tensor], scales: Mapping[float, torch.Tensor]
) -> dict[float, float]:
    losses = dict.fromkeys(scales, 0.0)
    for batch in sample:
        expected = layer.forward(batch)
        for alpha, scale in scales.items():
            with _rounding(layer, seen, scale):
                losses[alpha] += _loss(expected, layer.forward(batch))
    return losses


def block_losses(
    model: nn.Module,
    inputs: Mapping[str, SeenInput],
    spec: SmoothQuant,
    run: Callable[[nn.Module], object],
    groups: Sequence[SmoothingGroup],
) -> Losses:
    """The error of the output of each block with all its layers rounded, for every candidate; its layers share it.

    Blocks are the children of the first `torch.nn.ModuleList`. Layers outside of blocks have no losses.

    Raises:
        ModelError: There is no list of blocks.
    """
    layers, losses = dict(fake_quant_modules(model)), Losses()
    with evaluating(model), torch.no_grad(), ExitStack() as hooks:
        for prefix, block in _blocks(model):
            inside = [(group, name) for group in groups for name in group.layers if _is_inside(name, prefix)]
            shared = dict.fromkeys(alpha_candidates(spec), 0.0)
            losses |= {name: shared for _, name in inside}
            trial = _BlockTrial(block, layers, inputs, inside, shared)
            hooks.callback(block.register_forward_pre_hook(trial.keep_input, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(trial.add_losses, prepend=True).remove)
        run(model)
    return losses


def _is_inside(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


class _BlockTrial:
    """Repeats the forward of one block for each candidate, whenever it ran."""

    def __init__(
        self,
        block: nn.Module,
        layers: Mapping[str, FakeQuantModule],
        inputs: Mapping[str, SeenInput],
        inside: Sequence[tuple[SmoothingGroup, str]],
        losses: dict[float, float],
    ) -> None:
        self._block, self._layers, self._inputs = block, layers, inputs
        self._inside, self._losses = inside, losses
        self._kept: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def keep_input(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward may write into what it is given, such as a cache of keys and values."""
        self._kept = copy.deepcopy((args, kwargs))

    def add_losses(self, _module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        expected = _first_tensor(output)
        for alpha in self._losses:
            args, kwargs = copy.deepcopy(self._kept)
            with ExitStack() as rounding:
                for group, name in self._inside:
                    scale = _scale(group, self._layers, self._inputs, alpha)
                    rounding.enter_context(_rounding(self._layers[name], self._inputs[name], scale))
                self._losses[alpha] += _loss(expected, _first_tensor(self._block.forward(*args, **kwargs)))


def chosen_alphas(losses: Losses, groups: Iterable[SmoothingGroup], spec: SmoothQuant) -> dict[str, float]:
    """Choose one alpha for each group; of equal losses that of the candidate tried first.

    Args:
        losses: By layer and alpha. A group without any keeps the default.
        groups: Layers of one scale.
        spec: How they agree, see `SmoothQuant`.

    Example:
        >>> losses = {"q": {0.5: 3.0, 0.0: 1.0, 1.0: 2.0}, "k": {0.5: 1.5, 0.0: 4.0, 1.0: 1.0}}
        >>> chosen_alphas(losses, [SmoothingGroup(("q", "k"))], SmoothQuant(alpha="auto"))
        {'q': 1.0, 'k': 1.0}
    """
    chosen: dict[str, float] = {}
    for group in groups:
        known = [losses[name] for name in group.layers if name in losses]
        best = _agreed(known, spec.shared_criterion) if known else spec.default_alpha
        chosen |= dict.fromkeys(group.layers, best)
    return chosen


def _agreed(losses: Sequence[Mapping[float, float]], criterion: str) -> float:
    if criterion == "mean":
        sums = {alpha: sum(of_layer[alpha] for of_layer in losses) for alpha in losses[0]}
        return _best(sums)
    bests = [_best(of_layer) for of_layer in losses]
    return min(bests) if criterion == "min" else max(bests)


def _best(losses: Mapping[float, float]) -> float:
    return min(losses, key=lambda alpha: losses[alpha])


def _loss(expected: torch.Tensor, rounded: torch.Tensor) -> float:
    expected, rounded = expected.float(), rounded.float()
    magnitude = expected.abs()
    if expected.dim() <= _MATRIX_RANK:
        norm = magnitude.max()
    else:
        norm = magnitude.flatten(1).amax(1).view(-1, *[1] * (expected.dim() - 1))
    norm = norm.clamp(min=_LEAST_NORM)
    return float((expected / norm - rounded / norm).abs().pow(_EXPONENT).sum())


def _scale(
    group: SmoothingGroup, layers: Mapping[str, FakeQuantModule], inputs: Mapping[str, SeenInput], alpha: float
) -> torch.Tensor:
    return group_scale([layers[name] for name in group.layers], [inputs[name] for name in group.layers], alpha)


@contextmanager
def _rounding(layer: FakeQuantModule, seen: SeenInput, scale: torch.Tensor) -> Iterator[None]:
    """Let one layer compute as it will in int8 with ``scale``."""
    before = layer._smoothing, layer._input_range, layer._fake_quant
    layer.smooth(scale)
    if layer.observes:
        layer.set_range(*smoothed_range(seen, scale))
    layer._fake_quant = True
    try:
        yield
    finally:
        layer._smoothing, layer._input_range, layer._fake_quant = before


def _sample(name: str, seen: SeenInput) -> Sequence[torch.Tensor]:
    if not seen.sample:
        message = (
            f"The search for alpha tries candidates on inputs of {name!r}, but calibration kept none of them: "
            "calibrate with a sample, or give alpha as a number."
        )
        raise CalibrationError(message)
    return seen.sample


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    modules = dict(named_layers(model))
    for module in modules.values():
        if isinstance(module, nn.ModuleList):
            children = {id(child) for child in module.children()}
            return [(inner, block) for inner, block in modules.items() if id(block) in children]
    message = (
        f"{type(model).__name__} has no torch.nn.ModuleList, whose children would be the blocks that alpha is searched "
        "for. Search it layer by layer, with do_blockwise=False."
    )
    raise ModelError(message)


def _first_tensor(output: object) -> torch.Tensor:
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        message = f"A block returned {type(output).__name__} without a tensor, so its error cannot be measured."
        raise ModelError(message)
    return tensors[0]
