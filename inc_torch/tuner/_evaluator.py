"""How accurate a model is, by whatever the user gave to find out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, final

from torch import nn

from inc_torch.core.batches import Inputs, run, split
from inc_torch.core.errors import ConfigError, ConfigTypeError, InexactWarning, ModelError
from inc_torch.core.evaluation import evaluate, why_no_bound
from inc_torch.core.modes import evaluating
from inc_torch.core.user_warning import warn_user
from inc_torch.metric import Measure, read_metric

__all__ = ["Evaluator", "read_evaluator"]

Hopeless = Callable[[float], bool]


@final
@dataclass(frozen=True, slots=True)
class Evaluator:
    """Measures models by a function of the user, or by a loader and a metric.

    Attributes:
        owner: The function that the user called, for messages.
        function: Returns the accuracy of a model; None if a loader is evaluated.
        dataloader: Labelled batches.
        measure: What is measured on them.
        reference: The float model, whose outputs some metrics compare with.
    """

    owner: str
    function: Callable[[nn.Module], object] | None
    dataloader: Iterable[Any] | None
    measure: Measure | None
    reference: nn.Module = field(repr=False)

    @property
    def higher_is_better(self) -> bool | None:
        """Which of two scores is the better one; None if only the user knows."""
        return None if self.measure is None else self.measure.higher_is_better

    def score(self, model: nn.Module, hopeless: Hopeless | None = None) -> float:
        """Return the accuracy of ``model``, in evaluation mode.

        Args:
            model: Any model that computes what the reference does.
            hopeless: Whether a bound on the score says that the rest need not be evaluated; only with a loader.

        Raises:
            GoalOutOfReach: ``hopeless`` said so.
            ConfigTypeError: ``eval_func`` returned no number.
        """
        with evaluating(model):
            if self.function is not None:
                return self._number(self.function(model))
            if self.dataloader is None or self.measure is None:
                message = f"{self.owner} has nothing to evaluate with."
                raise ConfigError(message)
            return evaluate(model, self.dataloader, self.measure, reference=self._reference_output, hopeless=hopeless)

    def baseline(self) -> float:
        """Return the score of the float model.

        Raises:
            ModelError: It is not finite.
        """
        reached = self.score(self.reference)
        if not math.isfinite(reached):
            name = type(self.reference).__name__
            message = f"{name} scores {reached} in float: expected a finite number to measure int8 against."
            raise ModelError(message)
        return reached

    def labelled_batches(self, most: int) -> list[tuple[Inputs, object]]:
        """The first batches of the loader, with their labels; none if a function evaluates."""
        return [split(batch, self.reference) for batch in islice(self.dataloader or (), most)]

    def require_bound(self) -> None:
        """Refuse to end evaluations early where nothing can be said of a score before its end.

        Raises:
            ConfigError: It says why.
        """
        reason = (
            "eval_func evaluates, and nothing is known of its score before it returns"
            if self.dataloader is None or self.measure is None
            else why_no_bound(self.dataloader, self.measure)
        )
        if reason is not None:
            message = f"TuningCriterion.early_stop=True cannot work: {reason}. Leave it out."
            raise ConfigError(message)

    def _number(self, value: Any) -> float:  # noqa: ANN401  whatever the user's function returned
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            message = f"eval_func returned {value!r}: expected a number, the accuracy of the model it was given."
            raise ConfigTypeError(message) from error

    def _reference_output(self, inputs: Inputs) -> object:
        with evaluating(self.reference):
            return run(self.reference, inputs)


def read_evaluator(
    owner: str,
    model: nn.Module,
    function: object,
    dataloader: Iterable[Any] | None,
    metric: object,
    *,
    keeps_reference: bool = True,
) -> Evaluator | None:
    """Check what the user gave to evaluate with; None if that is nothing.

    Args:
        owner: The function that the user called.
        model: The float model.
        function: ``eval_func``.
        dataloader: ``eval_dataloader``.
        metric: ``eval_metric``, in any form that `read_metric` knows.
        keeps_reference: Whether the float model is still there when others are evaluated.

    Raises:
        ConfigError: A loader without a metric, or the other way round, or a metric that cannot work.
        ConfigTypeError: Something is of a type that cannot be.
    """
    if function is not None:
        if not callable(function):
            message = f"{owner} got eval_func of type {type(function).__name__}: expected a function of a model."
            raise ConfigTypeError(message)
        if dataloader is not None or metric is not None:
            warn_user("eval_func is given: eval_dataloader and eval_metric are not used.", InexactWarning)
        return Evaluator(owner, function, None, None, model)
    if (dataloader is None) != (metric is None):
        given, missing = ("eval_dataloader", "eval_metric") if metric is None else ("eval_metric", "eval_dataloader")
        message = f"{owner} got {given} without {missing}: expected both, or an eval_func."
        raise ConfigError(message)
    if dataloader is None:
        return None
    if isinstance(dataloader, Iterator):
        message = (
            f"{owner} got eval_dataloader of type {type(dataloader).__name__}, which can be read only once: "
            "it is read for the float model and again for the int8 model. Pass a list or a DataLoader."
        )
        raise ConfigTypeError(message)
    measure = read_metric(metric)
    if not keeps_reference and measure.needs_reference:
        message = (
            f"{owner} got inplace=True and an eval_metric with compare_label=False, which compares with the "
            "outputs of the float model: there is none any more once its weights are int8. Pass inplace=False."
        )
        raise ConfigError(message)
    return Evaluator(owner, None, dataloader, measure, model)
