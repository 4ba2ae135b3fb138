"""The loop that measures a model on the batches of a loader.

batch --split, run--> output, label --prepare--> prediction, label --update--> metric
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from numbers import Real
from typing import Any, Protocol, final

import numpy as np
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader

from inc_torch.core.batches import Inputs, count_samples, described, on_device, run, split
from inc_torch.core.errors import ConfigError, ConfigTypeError, ModelError
from inc_torch.core.modes import evaluating
from inc_torch.core.progress import with_progress

__all__ = ["GoalOutOfReach", "Score", "evaluate", "prediction_of", "single_number", "why_no_bound"]


class Score(Protocol):
    """What `evaluate` feeds: a metric.

    Some attributes count where they exist:

    - ``compare_label``: False where predictions are to be compared with those of a reference instead of labels.
    - ``parts``: the metrics that this one consists of.
    - ``whole_output``: True to be given all that the model returns, not its logits or first item.
    - ``bound(remaining)``: the best value that ``result()`` can have after ``remaining`` more samples. An attribute
      that is None is no bound.
    - ``samples``: how many samples were counted since ``reset``. Where these are not those of the loader, as
      ``prepare`` drops or divides some, the bound means something else and is not used.
    """

    def reset(self) -> None:
        """Forget everything."""
        ...

    def update(self, preds: Any, labels: Any) -> object:  # noqa: ANN401  whatever the model and the loader give
        """Take in one batch."""
        ...

    def result(self) -> object:
        """Return one number for all batches since `reset`."""
        ...


class GoalOutOfReach(Exception):  # noqa: N818  it ends a loop, nothing went wrong
    """Ends `evaluate` before all batches are read, as the goal cannot be reached any more.

    Attributes:
        score: The result of the samples that were read.
        bound: The best result that all samples could have had.
        batches: How many batches were read.
    """

    def __init__(self, score: float, bound: float, batches: int) -> None:
        super().__init__(f"After {batches} batches the score is {score}, and {bound} at best.")
        self.score = score
        self.bound = bound
        self.batches = batches


def evaluate(
    model: nn.Module,
    dataloader: Iterable[object],
    metric: Score,
    prepare: Callable[[Any, Any], tuple[object, object]] | None = None,
    reference: Callable[[Inputs], object] | None = None,
    hopeless: Callable[[float], bool] | None = None,
) -> float:
    """Return the ``metric`` of ``model`` over all batches of ``dataloader``.

    The model runs in evaluation mode and without gradients; afterwards every submodule has its mode back. The metric
    is reset first. It is given the logits of Hugging Face outputs, the first item of tuples (the second where the
    first is a loss, a single number), anything else as it is, always on the CPU. A metric whose ``whole_output`` is
    True, and those beside it, are given all of it.

    Args:
        model: The model.
        dataloader: Its batches, in any form that `split` knows.
        metric: What is measured.
        prepare: Makes of ``(prediction, label)`` what the metric is given; INC's ``postprocess``.
        reference: Returns the output that predictions are compared with where the metric's ``compare_label`` is
            False: the float model's, ``lambda inputs: run(float_model, inputs)``. Not called for any other metric.
        hopeless: Says of the best result that is still possible whether it is too bad to go on; asked before each
            batch but the first. Never asked where `why_no_bound` has a reason.

    Raises:
        ConfigError: There is no batch, a batch has no label, or ``reference`` is needed and missing.
        ConfigTypeError: The result is no single number.
        GoalOutOfReach: ``hopeless`` said so.
        ModelError: ``forward`` cannot take a batch.

    Example:
        >>> from inc_torch.metric import METRICS
        >>> loader = [(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))]
        >>> evaluate(nn.Identity(), loader, METRICS("pytorch")["Accuracy"]())
        0.5
    """
    parts = _parts(metric)
    if all(map(_compares_label, parts)):
        reference = None
    elif reference is None:
        raise _no_reference(parts)
    prepared = _Preparation(any(getattr(part, "whole_output", False) for part in parts), prepare)
    remaining = None if hopeless is None else _samples_to_come(dataloader)
    metric.reset()
    batches = 0
    with evaluating(model), torch.no_grad():
        for batches, batch in enumerate(with_progress(dataloader, "Evaluating"), 1):
            inputs, label = split(batch, model)
            prediction, truth = prepared(run(model, inputs), label)
            if any(map(_compares_label, parts)) and truth is None:
                raise _no_label(batch)
            expected = None if reference is None else prepared(reference(inputs), label)[0]
            for part in parts:
                _update(part, prediction, truth if _compares_label(part) else expected)
            if hopeless is not None and remaining is not None:
                _check_goal(metric, batches, remaining, hopeless)
    if not batches:
        message = (
            f"The dataloader of type {type(dataloader).__name__} gave no batch: expected at least one. A generator can "
            "be read only once; pass a DataLoader or a list."
        )
        raise ConfigError(message)
    return single_number(metric.result(), type(metric).__name__)


def why_no_bound(dataloader: object, metric: Score) -> str | None:
    """Return why `evaluate` could not tell that a goal is out of reach before the last batch; None if it can.

    Args:
        dataloader: As for `evaluate`.
        metric: As for `evaluate`.

    Example:
        >>> from inc_torch.metric import read_metric
        >>> loader = [(torch.zeros(2, 3), torch.zeros(2))]
        >>> why_no_bound(loader, read_metric("topk")) is None
        True
        >>> print(why_no_bound(loader, read_metric("F1")))
        the metric F1() has no bound(remaining), which topk, Accuracy, MSE, MAE and RMSE have
    """
    without = [part for part in _parts(metric) if getattr(part, "bound", None) is None]
    if without:
        return f"the metric {without[0]!r} has no bound(remaining), which topk, Accuracy, MSE, MAE and RMSE have"
    if getattr(metric, "bound", None) is None:
        return "higher_is_better of a metric is the opposite of what the metric itself says"
    if _samples_to_come(dataloader) is None:
        return (
            f"the dataloader of type {type(dataloader).__name__} does not tell how many samples are to come, as a "
            "DataLoader with a batch_size and a data set with a length does, or a list of batches of tensors"
        )
    return None


def single_number(value: object, owner: str) -> float:
    """Return the result of a metric as a float.

    Args:
        value: A number, or a tensor or array with one element.
        owner: The metric's name, for the message.

    Raises:
        ConfigTypeError: It is anything else.

    Example:
        >>> single_number(torch.tensor([0.5]), "topk")
        0.5
    """
    if isinstance(value, torch.Tensor | np.ndarray) and math.prod(value.shape) == 1:
        return float(value.item())
    if isinstance(value, Real):
        return float(value)
    message = (
        f"The metric {owner} has the result {described(value)}: expected a single number. Let its result() return one, "
        "or give several metrics as a dict."
    )
    raise ConfigTypeError(message)


def prediction_of(output: object) -> object:
    """Return what a metric is given of the output of a model, see `evaluate`.

    Example:
        >>> prediction_of({"loss": 0.5, "logits": [1.0, 2.0]})
        [1.0, 2.0]
    """
    if isinstance(output, Mapping):
        return output.get("logits", output)
    if isinstance(output, tuple) and output:
        starts_with_loss = isinstance(output[0], torch.Tensor) and output[0].dim() == 0 and len(output) > 1
        return output[1] if starts_with_loss else output[0]
    return getattr(output, "logits", output)


def _parts(metric: Score) -> Sequence[Score]:
    """The metrics that ``metric`` consists of; itself, of one that says nothing of parts."""
    parts: Sequence[Score] = getattr(metric, "parts", (metric,))
    return parts


def _samples_to_come(dataloader: object) -> list[int] | None:
    """How many samples come after each number of batches, from none to all; None if that is not known."""
    if isinstance(dataloader, DataLoader):
        return _samples_to_come_of(dataloader)
    if not isinstance(dataloader, Sequence):
        return None
    try:
        sizes = [count_samples(on_device(batch, None)) for batch in dataloader]
    except ModelError:  # there is no tensor to count by
        return None
    return list(accumulate(reversed(sizes), initial=0))[::-1]


def _samples_to_come_of(loader: DataLoader[Any]) -> list[int] | None:
    if type(loader.batch_sampler) is not BatchSampler or loader.batch_size is None:
        return None  # somebody else forms the batches
    try:
        count = len(loader.sampler)  # type: ignore[arg-type]  # what has no length is caught
    except TypeError:
        return None
    size = loader.batch_size
    if loader.drop_last:
        count -= count % size
    return [*range(count, 0, -size), 0]


def _check_goal(metric: Score, batches: int, remaining: Sequence[int], hopeless: Callable[[float], bool]) -> None:
    """End the evaluation where the rest cannot help."""
    bound: Callable[[int], float] | None = getattr(metric, "bound", None)
    if bound is None or batches >= len(remaining) or not remaining[batches]:
        return
    seen = remaining[0] - remaining[batches]
    if any(getattr(part, "samples", None) not in (None, seen) for part in _parts(metric)):
        return
    best = bound(remaining[batches])
    if hopeless(best):
        raise GoalOutOfReach(single_number(metric.result(), type(metric).__name__), best, batches)


@final
@dataclass(frozen=True, slots=True)
class _Preparation:
    """What becomes of an output and a label before a metric is given them.

    Attributes:
        is_whole: Whether all of the output is used.
        prepare: What the user does with them.
    """

    is_whole: bool
    prepare: Callable[[Any, Any], tuple[object, object]] | None

    def __call__(self, output: object, label: object) -> tuple[object, object]:
        """Return prediction and label for the metric, on the CPU."""
        cpu = torch.device("cpu")
        pair = on_device(output if self.is_whole else prediction_of(output), cpu), on_device(label, cpu)
        return pair if self.prepare is None else self.prepare(*pair)


def _compares_label(metric: Score) -> bool:
    return bool(getattr(metric, "compare_label", True))


def _no_reference(metrics: Sequence[Score]) -> ConfigError:
    needing = next(metric for metric in metrics if not _compares_label(metric))
    return ConfigError(
        f"The metric {needing!r} has compare_label=False, so it compares with the predictions of the float model: "
        "expected a reference that gives them. Pass reference, or compare_label=True."
    )


def _no_label(batch: object) -> ConfigError:
    return ConfigError(
        f"A batch of type {described(batch)} has no label: expected (input, label), or a mapping with 'labels' or "
        "'label'. Let the loader give one, or pass an eval_func."
    )


def _update(metric: Score, prediction: object, label: object) -> None:
    try:
        metric.update(prediction, label)
    except Exception as error:
        given = f"predictions of type {described(prediction)} and labels of type {described(label)}"
        error.add_note(f"While updating the metric {metric!r} with {given}.")
        raise
