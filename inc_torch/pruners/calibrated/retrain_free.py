"""Channels of a trained model pruned by the gradient of its loss, without training it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import torch
from torch import nn

from inc_torch.core.batches import copied, run, split
from inc_torch.core.errors import CalibrationError, ConfigError, InexactWarning, ModelError
from inc_torch.core.modes import evaluating, without_compiling
from inc_torch.core.names import named_layers, unwrapped
from inc_torch.core.report import Finding
from inc_torch.core.user_warning import warn_user
from inc_torch.pruners._base import Grid, PrunerSpec
from inc_torch.pruners._layers import select_layers
from inc_torch.pruners._ranking import LocalRanking
from inc_torch.pruners._window import PruningWindow
from inc_torch.pruners.calibrated._walk import moved

__all__ = ["LossFunction", "least_missed", "prune_retrain_free"]

LossFunction = Callable[[Any, Any], torch.Tensor]
_NO_PART = "The loss depends on none of the weights to prune: expected that the selected layers take part in it."


def prune_retrain_free(
    model: nn.Module,
    spec: PrunerSpec,
    dataloader: Iterable[object],
    loss_func: LossFunction | None = None,
    device: str | torch.device | None = None,
) -> list[Finding]:
    """Prune channels of a trained model, in place, by what the loss of some batches says of each.

    Each channel (unit of the pattern) gets a factor ``m``, 1 or 0, before its weights. With the gradients ``g`` of the
    loss with respect to the factors, one for each batch, the channels of the least ``sum g**2`` are pruned at each
    update; which of a layer then go is settled by `least_missed`. Gradients are taken with the factors of the last
    update. Batches are the steps of the schedule; of one shot (``start == end``) all batches are seen before it.

    Args:
        model: The model, in which gradients and modes are afterwards what they were.
        spec: What to prune, and how much at which batch.
        dataloader: Batches; see `inc_torch.core.batches` for their forms.
        loss_func: Called with the output and the label of a batch; None takes the ``loss`` of the model's output, as
            models of transformers have it if the batch has labels.
        device: Where the model runs meanwhile; None is where it is.

    Returns:
        What was asked of each layer and what was reached.

    Raises:
        CalibrationError: There is no batch, or gradients are not finite.
        ConfigError: No layer is selected, or a batch has no label for ``loss_func``.
        ModelError: There is no loss, or it depends on none of the weights.

    Source: Kwon et al. 2022, A Fast Post-Training Pruning Framework for Transformers. INC 2.6.1 prunes all channels if
    ``start == end``, leaves the model unpruned if the data end before the schedule, and the weights frozen.
    """
    selection = select_layers(unwrapped(model), replace(spec, reduction="net"))
    modules = dict(named_layers(model))
    names = [layer.name for layer in selection.layers]
    with moved(model, None if device is None else torch.device(device)):
        weights = [modules[name].get_parameter("weight") for name in names]
        factors = _Factors(weights, [layer.grid for layer in selection.layers], spec)
        try:
            with evaluating(model), without_compiling(), _learning(model, weights):
                _follow(PruningWindow(spec), factors, dataloader, lambda batch: _loss(model, batch, loss_func))
        except BaseException:
            factors.restore_()
            raise
    return [*factors.findings(names), *selection.left_dense]


def _follow(
    window: PruningWindow, factors: _Factors, dataloader: Iterable[object], loss_of: Callable[[object], torch.Tensor]
) -> None:
    """Take gradients batch by batch, and prune when the schedule says so."""
    spec, seen = window.spec, 0
    is_one_shot = spec.end - spec.start < spec.frequency
    first, last = (spec.start, spec.end) if spec.start < spec.end else (0, None)
    for index, batch in enumerate(dataloader):
        if not is_one_shot and index >= window.last_update:
            factors.prune(window.goal)
            return
        if not is_one_shot and factors.has_gradients and (ratio := window.ratio_at(index)):
            factors.prune(ratio)
        seen += 1
        if index >= first:
            factors.see(loss_of(batch))
        if is_one_shot and index == last:
            break
    if not factors.has_gradients:
        message = (
            f"Pruning by 'retrain_free' saw {seen} batches and took no gradient of them: expected more than "
            f"start_step={first}. Give more batches, or begin earlier."
        )
        raise CalibrationError(message)
    if not is_one_shot:
        warn_user(_ended_early(seen, window), InexactWarning)
    factors.prune(window.goal)


def least_missed(gradients: torch.Tensor, count: int) -> torch.Tensor:
    """Choose the channels without which the loss changes least, if it changes as a sum over channels.

    Starts from the ``count`` channels of the least ``sum g**2``. Each other channel, in the same order, joins them, and
    the one leaves without which the sum of the others' gradients is shortest: what two channels do against each other
    is not missed.

    Args:
        gradients: [channels, batches].
        count: How many to choose.

    Returns:
        Flat bool over the channels, True for the chosen ones.

    Example:
        >>> least_missed(torch.tensor([[1.0, 0.0], [0.0, 1.2], [-1.3, 0.1]]), 2).tolist()
        [True, False, True]
    """
    chosen = torch.zeros(len(gradients), dtype=torch.bool)
    if not 0 < count < len(gradients):
        return chosen.fill_(count > 0)
    squares = gradients.square().sum(1)
    order = squares.sort(stable=True).indices
    members = order[:count].clone()
    total = gradients[members].sum(0)
    for channel in order[count:].tolist():
        candidates = torch.cat([members, torch.tensor([channel])])
        with_it = total + gradients[channel]
        # |total - g|^2 = |total|^2 - 2 total.g + |g|^2, of which the first is the same for all.
        leaving = int((squares[candidates] - 2 * (gradients[candidates] @ with_it)).argmin())
        total = with_it - gradients[candidates[leaving]]
        if leaving < count:
            members[leaving] = channel
    return chosen.index_fill_(0, members, True)


@final
class _Factors:
    """A factor, 1 or 0, before each unit of some weights, and the gradients of the loss with respect to them.

    Args:
        weights: The Parameters, into which products are written.
        grids: The units of each.
        spec: Where units are taken from, and within which limits.
    """

    def __init__(self, weights: Sequence[nn.Parameter], grids: Sequence[Grid], spec: PrunerSpec) -> None:
        self._weights, self._grids, self._spec = weights, grids, spec
        self._originals = [weight.detach().clone() for weight in weights]
        self._sizes = [grid.units for grid in grids]
        self._keeps = [torch.ones(size, dtype=torch.bool) for size in self._sizes]
        self._gradients: list[torch.Tensor] = []

    @property
    def has_gradients(self) -> bool:
        """Whether a batch was seen."""
        return bool(self._gradients)

    def see(self, loss: torch.Tensor) -> None:
        """Take the gradients of a batch's loss."""
        if not loss.requires_grad:
            raise ModelError(_NO_PART)
        gradients: Sequence[torch.Tensor | None] = torch.autograd.grad(loss, self._weights, allow_unused=True)
        if all(gradient is None for gradient in gradients):
            raise ModelError(_NO_PART)
        of_units = [
            torch.zeros(grid.units)
            if gradient is None
            else grid.reduce(original.float() * gradient.float()).flatten().cpu()
            for grid, original, gradient in zip(self._grids, self._originals, gradients, strict=True)
        ]
        flat = torch.cat(of_units)
        if not bool(flat.isfinite().all()):
            message = (
                f"The gradients of batch {len(self._gradients) + 1} are not finite: expected a finite loss. Look at "
                "the data, or load the model in float32 or bfloat16 instead of float16."
            )
            raise CalibrationError(message)
        self._gradients.append(flat)

    @torch.no_grad()
    def prune(self, ratio: float) -> None:
        """Set this share of all factors to zero."""
        gradients = torch.stack(self._gradients, 1)
        ranking = LocalRanking(gradients.square().sum(1), self._sizes)
        self._spec.allocation.prune(ranking, ratio, self._spec.limits)
        counts = [size - int(keep.sum()) for size, keep in zip(self._sizes, self._split(ranking.kept()), strict=True)]
        of_layers = torch.split(gradients, self._sizes)
        self._keeps = [~least_missed(own, count) for own, count in zip(of_layers, counts, strict=True)]
        layers = zip(self._weights, self._originals, self._grids, self._keeps, strict=True)
        for weight, original, grid, keep in layers:
            weight.copy_(original)
            grid.apply_(weight, keep.view(grid.mask_shape).to(weight.device))

    @torch.no_grad()
    def restore_(self) -> None:
        """Write the original weights back."""
        for weight, original in zip(self._weights, self._originals, strict=True):
            weight.copy_(original)

    def findings(self, names: Sequence[str]) -> Iterator[Finding]:
        """What was asked of each layer."""
        for name, keep in zip(names, self._keeps, strict=True):
            yield Finding(
                name,
                pattern=self._spec.pattern_text,
                sparsity=self._spec.target,
                group=0,
                units=len(keep),
                pruned_units=len(keep) - int(keep.sum()),
            )

    def _split(self, flat: torch.Tensor) -> Sequence[torch.Tensor]:
        return torch.split(flat, self._sizes)


def _loss(model: nn.Module, batch: object, loss_func: LossFunction | None) -> torch.Tensor:
    inputs, label = split(batch, model)
    output = run(model, copied(inputs))
    if loss_func is None:
        found = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if not isinstance(found, torch.Tensor):
            message = (
                f"{type(unwrapped(model)).__name__} returns no loss for a batch: expected batches with labels that its "
                "forward takes. Pass loss_func, which is called with the output and the label of (inputs, label)."
            )
            raise ModelError(message)
        return found
    if label is None:
        message = "loss_func is given, and a batch has no label: expected (inputs, label), or a dict with labels."
        raise ConfigError(message)
    return loss_func(output, label)


@contextmanager
def _learning(model: nn.Module, weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let these weights alone have gradients for a while."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, had in before:
            parameter.requires_grad_(had)


def _ended_early(seen: int, window: PruningWindow) -> str:
    return (
        f"The data of 'retrain_free' ended after {seen} batches, and the last update is due at batch "
        f"{window.last_update}: all that is left was pruned at once, by what was seen. Give more batches, or lower "
        "end_step."
    )
