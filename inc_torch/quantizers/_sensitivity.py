"""How much rounding changes a tensor, the outputs of modules, and the output of a whole model."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final, final

import torch
from torch import nn

from inc_torch.core.batches import Inputs, described, output_of
from inc_torch.core.errors import ModelError, did_you_mean
from inc_torch.core.names import named_layers

__all__ = ["ModelErrors", "OutputError", "normalised_mse", "output_errors"]

_PIECE: Final = 2**14
"""Values that are compared at a time: few enough to stay in the cache of a core, at 24 bytes each."""


def normalised_mse(reference: torch.Tensor, rounded: torch.Tensor) -> float:
    """Return the mean squared difference of two tensors, each scaled to [0, 1] by its own range.

        n(t) = (t - min t) / (max t - min t), 0 for a constant t
        gap  = mean((n(reference) - n(rounded))**2)

    A pure factor or offset is invisible to it. Computed in float64.

    Args:
        reference: The float values, any shape with an element.
        rounded: The values after rounding, decoded, of the same shape.

    Returns:
        A number in [0, 1]; NaN if a value is not finite.

    Raises:
        ModelError: The shapes differ, or there is no element.

    Example:
        >>> normalised_mse(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 3.0, 4.0]))
        0.020833333333333332

    Source: INC 2.6.1, strategy ``mse``; differs in constant tensors, which divided by zero.
    """
    if reference.shape != rounded.shape or not reference.numel():
        message = (
            f"inc_torch.quantizers.normalised_mse was given shapes {list(reference.shape)} and {list(rounded.shape)}: "
            "expected one shape with an element. Compare the same tensor before and after rounding."
        )
        raise ModelError(message)
    return float((_normalised(reference) - _normalised(rounded)).square().mean())


def _normalised(values: torch.Tensor) -> torch.Tensor:
    values = values.detach().double()
    low, high = torch.aminmax(values)
    return (values - low) / torch.where(high == low, 1.0, high - low)


@final
@dataclasses.dataclass(frozen=True, slots=True)
class OutputError:
    """How far rounding moves the output ``y`` of a module to ``q``, over all batches together.

    Attributes:
        normalised_mse: The mean squared difference of ``y`` and ``q``, each scaled to [0, 1] by its own range, see
            `normalised_mse`.
        signal_to_noise: ``10 log10(sum(y**2) / sum((y - q)**2))`` in dB, 6 more for a bit more; infinite where both are
            equal. Unlike the other number it counts a factor or an offset.

    Both are NaN if a value is not finite.
    """

    normalised_mse: float
    signal_to_noise: float


def output_errors(
    reference: nn.Module, quantized: nn.Module, names: Collection[str], batches: Sequence[Inputs]
) -> dict[str, OutputError]:
    """Measure how far the outputs of modules are from what they are in float.

    Both models run once on each batch, in evaluation mode and without gradients. Of an output that is no tensor, the
    first floating tensor in it counts; of a module that is called several times, every call. The outputs of one batch
    are in memory at a time, not those of the rounded model.

    Args:
        reference: The float model.
        quantized: The same model under rounding: with fake-quant, or int8.
        names: The modules to compare, see `named_layers`.
        batches: What both models are given; not changed.

    Returns:
        By name, in the order of ``names``. Modules that were never called are missing, and those that the models call
        with different shapes, or not equally often, as the experts that a router chooses.

    Raises:
        ModelError: A model has no module of a name.

    Example:
        >>> reference, quantized = nn.Sequential(nn.Identity()), nn.Sequential(nn.Threshold(1, 0))  # 0 for 1 and less
        >>> batches = [Inputs((torch.tensor([0.0, 1.0]),)), Inputs((torch.tensor([4.0]),))]
        >>> error = output_errors(reference, quantized, ["0"], batches)["0"]
        >>> round(error.normalised_mse, 4), round(error.signal_to_noise, 2)  # (1 / 4)**2 / 3, and 17 to 1
        (0.0208, 12.3)

    Source: INC 2.6.1, strategy ``mse``, which ended with an exception on traced models; differs in `normalised_mse`
    and in the signal-to-noise ratio, which INC does not have.
    """
    comparisons = {name: _Comparison() for name in names}
    expected: dict[str, deque[torch.Tensor]] = {name: deque() for name in names}
    different: set[str] = set()

    def keep(name: str, output: torch.Tensor) -> None:
        expected[name].append(output.clone())  # what comes next may write into it

    def compare(name: str, output: torch.Tensor) -> None:
        outputs = expected[name]
        if outputs and outputs[0].shape == output.shape:
            comparisons[name].add(outputs.popleft(), output)
        else:
            different.add(name)

    for inputs in batches:
        with _watching(reference, names, keep):
            output_of(reference, inputs)
        with _watching(quantized, names, compare):
            output_of(quantized, inputs)
        for name, outputs in expected.items():
            if outputs:
                different.add(name)
                outputs.clear()
    return {
        name: comparison.error()
        for name, comparison in comparisons.items()
        if comparison.count and name not in different
    }


@final
class ModelErrors:
    """How far the output of a model is from that of the float model, whose outputs are computed once and kept.

    Args:
        reference: The float model.
        batches: What the models are given; not changed.

    Raises:
        ModelError: There is no floating tensor in an output.

    Example:
        >>> batches = [Inputs((torch.tensor([1.0, 2.0]),)), Inputs((torch.tensor([3.0]),))]
        >>> class Doubled(nn.Module):
        ...     def forward(self, values):
        ...         return {"values": 2 * values}
        >>> class Rounded(nn.Module):
        ...     def forward(self, values):
        ...         return {"values": 2 * values + 1}
        >>> ModelErrors(Doubled(), batches).of(Rounded())
        (2.0, 1.0)

    Source: INC 2.6.1, strategy ``mse_v2``; differs in what is compared: the output of the model, not of the module that
    comes last among those to quantize.
    """

    def __init__(self, reference: nn.Module, batches: Sequence[Inputs]) -> None:
        self._batches = tuple(batches)
        self._expected = [[tensor.clone() for tensor in _outputs(reference, inputs)] for inputs in self._batches]

    def of(self, quantized: nn.Module) -> tuple[float, ...]:
        """Return, for each batch, the sum of the squared differences of all floating tensors in the outputs.

        The model runs in evaluation mode and without gradients; the sum is taken in float64. Equal values do not
        differ, infinite ones included; the sum is NaN if there is another value that is not finite.

        Args:
            quantized: The same model under rounding.

        Raises:
            ModelError: Its outputs have other shapes than those of the float model.
        """
        return tuple(
            _squared_difference(expected, _outputs(quantized, inputs), type(quantized).__name__)
            for inputs, expected in zip(self._batches, self._expected, strict=True)
        )


@final
class _Comparison:
    """Two tensors ``y`` and ``q`` that are seen piece by piece, and what their error can be computed from.

    Attributes:
        moments: ``sum(t t^T)`` over all values, with ``t = (q - y, y, 1)``; float64 [3, 3].
        low: The least value of ``y`` and of ``q``, float64 [2].
        high: The greatest ones.
    """

    def __init__(self) -> None:
        self.moments = torch.zeros(3, 3, dtype=torch.float64)
        self.low = torch.full((2,), math.inf, dtype=torch.float64)
        self.high = -self.low

    @property
    def count(self) -> int:
        """How many values were seen."""
        return int(self.moments[2, 2])

    def add(self, reference: torch.Tensor, rounded: torch.Tensor) -> None:
        """See more values, in equal places of two tensors of one shape."""
        pair = reference.flatten(), rounded.flatten()
        for expected, found in zip(*(torch.split(values, _PIECE) for values in pair), strict=True):
            terms = torch.ones(3, len(expected), dtype=torch.float64, device=expected.device)
            terms[1] = expected
            torch.sub(found, terms[1], out=terms[0])
            self.moments += (terms @ terms.T).cpu()
        if len(pair[0]):
            low, high = (torch.stack(ends).double().cpu() for ends in zip(*map(torch.aminmax, pair), strict=True))
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)

    def error(self) -> OutputError:
        """The error of all that was seen.

        With ``a``, ``b`` the reciprocal ranges of ``y`` and ``q``:

            (q - low_q) b - (y - low_y) a = (q - y) b + y (b - a) + (low_y a - low_q b)

        so the sum of its squares is a quadratic form of the moments, whose terms are as small as the error is.
        """
        if not self.moments.isfinite().all():
            return OutputError(math.nan, math.nan)
        of_reference, of_rounded = torch.where(self.high == self.low, 1.0, self.high - self.low).reciprocal()
        offset = self.low[0] * of_reference - self.low[1] * of_rounded
        weights = torch.stack([of_rounded, of_rounded - of_reference, offset])
        squares = float(weights @ self.moments @ weights)
        return OutputError(max(squares, 0.0) / self.count, _decibels(self.moments[1, 1], self.moments[0, 0]))


def _decibels(signal: torch.Tensor, noise: torch.Tensor) -> float:
    return float(10 * torch.log10(signal / noise)) if noise else math.inf


def _squared_difference(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], owner: str) -> float:
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        message = (
            f"The outputs of the quantized {owner} cannot be compared with those of the float model: expected "
            f"{described(tuple(expected))}, got {described(tuple(found))}. Compare models whose outputs have shapes "
            "that the inputs alone decide, such as logits instead of what was selected by them."
        )
        raise ModelError(message)
    total = 0.0
    for reference, rounded in zip(expected, found, strict=True):
        first, second = reference.double(), rounded.double()
        total += float(torch.where(first == second, 0.0, first - second).square().sum())
    return total


def _outputs(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """All floating tensors in the output of ``model``."""
    output = output_of(model, inputs)
    tensors = list(_floating(output))
    if not tensors:
        message = (
            f"{type(model).__name__} returned {described(output)}: expected a floating tensor, or some in tuples, "
            "lists, mappings or dataclasses, whose error can be measured. Let forward return its logits."
        )
        raise ModelError(message)
    return tensors


def _floating(output: object) -> Iterator[torch.Tensor]:
    """The floating tensors in an output, in order."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output.detach()
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from _floating(item)
    elif isinstance(output, tuple | list):
        for item in output:
            yield from _floating(item)
    elif dataclasses.is_dataclass(output):
        for field in dataclasses.fields(output):
            yield from _floating(getattr(output, field.name))


@contextmanager
def _watching(model: nn.Module, names: Collection[str], see: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Show ``see`` each output of the named modules, as the first floating tensor in it."""

    def hook(name: str, _module: nn.Module, _args: object, output: object) -> None:
        tensor = next(_floating(output), None)
        if tensor is not None:
            see(name, tensor)

    modules = dict(named_layers(model))
    with ExitStack() as hooks:
        for name in names:
            if name not in modules:
                message = (
                    f"{type(model).__name__} has no module {name!r} to measure the output of."
                    f"{did_you_mean(name, modules)} Expected the name of a module of both models."
                )
                raise ModelError(message)
            hooks.callback(modules[name].register_forward_hook(partial(hook, name)).remove)
        yield
