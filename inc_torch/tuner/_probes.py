"""What strategies may measure besides accuracy, on real models; dear answers are remembered by the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, final

import torch.nn.functional as F
from torch import nn

from inc_torch.core.batches import Inputs, described
from inc_torch.core.errors import ConfigError
from inc_torch.core.evaluation import prediction_of
from inc_torch.quantizers import ModelErrors, folded_norms, hessian_traces, output_errors
from inc_torch.tuning import QUANTIZED, Recipe, Space

__all__ = ["ModelProbes"]

_HESSIAN_SAMPLES, _HESSIAN_ERROR = 100, 0.1
"""Enough to rank operations by; each sample takes as long as two backward passes."""


class Memory(Protocol):
    """What keeps plain values between runs and among processes."""

    def remembered(self, key: str) -> Any:  # noqa: ANN401  a plain value
        """The value; None if there is none."""
        ...

    def remember(self, key: str, value: object) -> None:
        """Keep it."""
        ...


@final
class ModelProbes:
    """Measures models of recipes on a few batches.

    Args:
        space: What recipes are of.
        reference: The float model.
        candidate: Makes the model of a recipe, whose modules are called one by one; None where models are trained, of
            which nothing but the Hessian in float can be measured.
        batches: Reads inputs with labels, or None for those that have none; called once, when something is measured.
        loss: Of output and labels, for the Hessian; None is the model's own, or cross entropy.
        seed: Of random numbers.
        memory: Where answers are kept.
    """

    def __init__(
        self,
        space: Space,
        reference: nn.Module,
        candidate: Callable[[Recipe], nn.Module] | None,
        batches: Callable[[], Sequence[tuple[Inputs, object]]],
        loss: Callable[[Any, Any], Any] | None,
        seed: int,
        memory: Memory,
    ) -> None:
        self._space, self._reference, self._candidate = space, reference, candidate
        self._read, self._loss, self._seed, self._memory = batches, loss, seed, memory
        self._errors: dict[int, ModelErrors] = {}

    @cached_property
    def _batches(self) -> Sequence[tuple[Inputs, object]]:
        return self._read()

    def output_errors(self, recipe: Recipe) -> Mapping[str, float]:
        """For each operation that ``recipe`` quantizes, the normalised squared error of its output.

        Functions of a backend, which are no modules, cannot be watched, and count as the least sensitive.
        """
        measured = {name: pair[0] for name, pair in self._noise(recipe).items()}
        quantized = [operation.name for operation in self._space.in_modes(recipe, *QUANTIZED)]
        return {name: measured.get(name, 0.0) for name in quantized}

    def signal_to_noise(self, recipe: Recipe) -> dict[str, float]:
        """For each operation that ``recipe`` quantizes, signal to rounding noise in its output, in dB."""
        can_measure = self._candidate is not None and self._batches
        return {name: pair[1] for name, pair in self._noise(recipe).items()} if can_measure else {}

    def model_errors(self, recipe: Recipe, batches: int) -> Sequence[float]:
        """The squared error of the model's output on each of the first batches."""
        found = self._memory.remembered(key := f"model errors {batches} {_named(recipe)}")
        if found is None:
            model = self._made(recipe)
            if batches not in self._errors:
                self._errors[batches] = ModelErrors(self._reference, self._inputs()[:batches])
            found = list(self._errors[batches].of(model))
            self._memory.remember(key, found)
        return list(found)

    def hessian_traces(self) -> Mapping[str, float]:
        """For each operation, the mean of the diagonal of the Hessian of the loss for its weight."""
        found = self._memory.remembered("hessian traces")
        if found is None:
            labelled = next(((inputs, label) for inputs, label in self._batches if label is not None), None)
            if labelled is None:
                message = (
                    "The strategy 'hawq_v2' needs the loss of a batch, and no batch has a label: expected a "
                    "calib_dataloader or an eval_dataloader that yields (input, label), or 'labels' in its dicts."
                )
                raise ConfigError(message)
            modules = dict(self._reference.named_modules())
            every = [operation.name for operation in self._space.operations]
            names = [name for name in every if name in modules and "weight" in modules[name]._parameters]
            loss = self._loss or _usual_loss
            found = hessian_traces(
                self._reference,
                names,
                *labelled,
                loss,
                seed=self._seed,
                iterations=_HESSIAN_SAMPLES,
                tolerance=_HESSIAN_ERROR,
            )
            found = {name: found.get(name, 0.0) for name in every}
            self._memory.remember("hessian traces", found)
        return dict(found)

    def _noise(self, recipe: Recipe) -> dict[str, list[float]]:
        found: dict[str, list[float]] | None = self._memory.remembered(key := f"output errors {_named(recipe)}")
        if found is None:
            modules = dict(self._reference.named_modules())
            names = [entry.name for entry in self._space.in_modes(recipe, *QUANTIZED) if entry.name in modules]
            model = self._made(recipe)
            norms = folded_norms(model)
            places = {norms.get(name, name): name for name in names}
            errors = output_errors(self._reference, model, list(places), self._inputs())
            found = {places[at]: [error.normalised_mse, error.signal_to_noise] for at, error in errors.items()}
            self._memory.remember(key, found)
        return found

    def _made(self, recipe: Recipe) -> nn.Module:
        if self._candidate is None:
            message = (
                "The strategy measures how far rounding moves the model's outputs, for which each model would have to "
                "be trained: choose one that does not, such as 'auto', 'basic', 'hawq_v2' or 'tpe'."
            )
            raise ConfigError(message)
        return self._candidate(recipe)

    def _inputs(self) -> list[Inputs]:
        if not self._batches:
            message = (
                "The strategy measures how far rounding moves the model's outputs, and there are no batches to "
                "measure on: expected a calib_dataloader or an eval_dataloader."
            )
            raise ConfigError(message)
        return [inputs for inputs, _ in self._batches]


def _named(recipe: Recipe) -> str:
    """A short name of a recipe, as keys of a study."""
    import hashlib

    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]


def _usual_loss(output: Any, labels: Any) -> Any:  # noqa: ANN401  whatever models return and loaders yield
    """The loss that the model has computed itself, else the cross entropy of its logits."""
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if own is not None:
        return own
    logits: Any = prediction_of(output)
    try:
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten())
    except (AttributeError, RuntimeError, ValueError, IndexError) as error:
        message = (
            f"The strategy 'hawq_v2' cannot compute the cross entropy of {described(output)} and {described(labels)}: "
            f"{error}. Pass a loss of your own: strategy_kwargs={{'hawq_v2_loss': loss}}, a function of output and "
            "labels."
        )
        raise ConfigError(message) from error
