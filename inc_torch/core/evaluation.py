"""The loop that measures a model on the batches of a loader.

batch --split, run--> output, label --prepare--> prediction, label --update--> metric
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from inc_torch.core.batches import Inputs, described, on_device, run, split
from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.core.modes import evaluating
from inc_torch.core.progress import with_progress

__all__ = ["Score", "evaluate", "single_number"]


class Score(Protocol):
    """What `evaluate` feeds: a metric.

    Two attributes count where they exist: ``compare_label``, False where predictions are to be compared with those of
    a reference instead of labels, and ``parts``, the metrics that this one consists of.
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


def evaluate(
    model: nn.Module,
    dataloader: Iterable[object],
    metric: Score,
    prepare: Callable[[Any, Any], tuple[object, object]] | None = None,
    reference: Callable[[Inputs], object] | None = None,
) -> float:
    """Return the ``metric`` of ``model`` over all batches of ``dataloader``.

    The model runs in evaluation mode and without gradients; afterwards every submodule has its mode back. The metric
    is reset first. It is given the logits of Hugging Face outputs, the first item of tuples (the second where the
    first is a loss, a single number), anything else as it is, always on the CPU.

    Args:
        model: The model.
        dataloader: Its batches, in any form that `split` knows.
        metric: What is measured.
        prepare: Makes of ``(prediction, label)`` what the metric is given; INC's ``postprocess``.
        reference: Returns the output that predictions are compared with where the metric's ``compare_label`` is
            False: the float model's, ``lambda inputs: run(float_model, inputs)``. Not called for any other metric.

    Raises:
        ConfigError: There is no batch, a batch has no label, or ``reference`` is needed and missing.
        ConfigTypeError: The result is no single number.
        ModelError: ``forward`` cannot take a batch.

    Example:
        >>> from inc_torch.metric import METRICS
        >>> loader = [(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))]
        >>> evaluate(nn.Identity(), loader, METRICS("pytorch")["Accuracy"]())
        0.5
    """
    parts: Sequence[Score] = getattr(metric, "parts", (metric,))
    if all(map(_compares_label, parts)):
        reference = None
    elif reference is None:
        raise _no_reference(parts)
    metric.reset()
    is_empty = True
    with evaluating(model), torch.no_grad():
        for batch in with_progress(dataloader, "Evaluating"):
            is_empty = False
            inputs, label = split(batch, model)
            prediction, truth = _pair(run(model, inputs), label, prepare)
            if any(map(_compares_label, parts)) and truth is None:
                raise _no_label(batch)
            expected = None if reference is None else _pair(reference(inputs), label, prepare)[0]
            for part in parts:
                _update(part, prediction, truth if _compares_label(part) else expected)
    if is_empty:
        message = (
            f"The dataloader of type {type(dataloader).__name__} gave no batch: expected at least one. A generator can "
            "be read only once; pass a DataLoader or a list."
        )
        raise ConfigError(message)
    return single_number(metric.result(), type(metric).__name__)


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


def _prediction(output: object) -> object:
    """What a metric is given of the output of a model."""
    if isinstance(output, Mapping):
        return output.get("logits", output)
    if isinstance(output, tuple) and output:
        starts_with_loss = isinstance(output[0], torch.Tensor) and output[0].dim() == 0 and len(output) > 1
        return output[1] if starts_with_loss else output[0]
    return getattr(output, "logits", output)


def _pair(
    output: object, label: object, prepare: Callable[[Any, Any], tuple[object, object]] | None
) -> tuple[object, object]:
    """Prediction and label for the metric, on the CPU."""
    cpu = torch.device("cpu")
    pair = on_device(_prediction(output), cpu), on_device(label, cpu)
    return pair if prepare is None else prepare(*pair)


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
