"""All forms in which users say what they want measured, read into one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.core.evaluation import single_number
from inc_torch.core.made_by_name import check_arguments, made, read_arguments
from inc_torch.metric._base import check_methods, find_metric, metric_registry

__all__ = ["Measure", "Metric", "read_metric", "register_customer_metric"]

OWNER = "eval_metric"
USER_NAME = "user_metric"
WEIGHT, DIRECTION = "weight", "higher_is_better"


@final
class Metric:
    """A description of a metric; nothing is computed before `read_metric` builds it.

    Args:
        name: A registered name, or that of a class of torchmetrics; any name where ``metric_cls`` is given.
        metric_cls: A class with ``update`` and ``result``, and mostly ``reset``. It may stand first, as in INC 1.X.
        arguments: What the class is called with.

    Raises:
        ConfigError: The name is unknown, or the class does not take the arguments.
        ConfigTypeError: The class has no ``update`` or no ``result``.

    Example:
        >>> Metric("topk", k=5)
        Metric('topk', k=5)
        >>> Metric("tokp")
        Traceback (most recent call last):
        inc_torch.core.errors.ConfigError: Unknown metric 'tokp'. Did you mean 'topk'? Registered: Accuracy, BLEU, ...

    Source: INC 2.6.1 ``Metric``; differs in that names and arguments are checked at once.
    """

    def __init__(self, name: str | type = USER_NAME, metric_cls: type | str | None = None, **arguments: object) -> None:
        given, label = (name, metric_cls) if isinstance(name, type) else (metric_cls, name)
        if given is not None and not isinstance(given, type):
            message = f"Metric.metric_cls={given!r}: expected a class. Give an object as eval_metric itself."
            raise ConfigTypeError(message)
        self.name = label if isinstance(label, str) else USER_NAME
        self.metric_cls: type = find_metric(self.name) if given is None else given
        self.kwargs = dict(arguments)
        check_methods(self.metric_cls, f"The metric {self.name!r}")
        check_arguments(f"metric {self.name!r}", self.metric_cls, (), self.kwargs)

    def __repr__(self) -> str:
        arguments = "".join(f", {name}={value!r}" for name, value in self.kwargs.items())
        return f"Metric({self.name!r}{arguments})"


@final
class Measure:
    """One metric or several, to evaluate with any number of times; made by `read_metric`.

    Args:
        metrics: What is measured, by name.
        weights: How much each counts in `result`; None is as much as any other.
        directions: Whether higher is better, for each; None is what the metrics say, True where they say nothing.

    Attributes:
        names: Names of the metrics.
        parts: The metrics, each to be updated with every batch, see `inc_torch.core.evaluation.evaluate`.
        weights: As given.
        directions: Whether higher is better, for each.

    Example:
        >>> measure = read_metric({"topk": 1, "MSE": {}, "weight": [0.75, 0.25]})
        >>> measure.directions, measure.higher_is_better
        ((True, False), True)
        >>> for part in measure.parts:
        ...     part.update([[0.0, 1.0]], [[0.0, 1.0]])
        >>> measure.results(), measure.result()
        ({'topk': 1.0, 'MSE': 0.0}, 0.75)
    """

    def __init__(
        self,
        metrics: Mapping[str, object],
        weights: Sequence[float] | None = None,
        directions: Sequence[bool] | None = None,
    ) -> None:
        self.names = tuple(metrics)
        self.parts = tuple(_Part(metric) for metric in metrics.values())
        self.weights = None if weights is None else tuple(weights)
        self.directions = (
            tuple(part.higher_is_better for part in self.parts) if directions is None else tuple(directions)
        )

    def __repr__(self) -> str:
        return f"Measure({', '.join(self.names)})"

    @property
    def higher_is_better(self) -> bool:
        """Which of two values of `result` is the better one."""
        return any(self.directions)

    @property
    def needs_reference(self) -> bool:
        """Whether a metric compares with the float model's predictions instead of labels."""
        return not all(part.compare_label for part in self.parts)

    @property
    def bound(self) -> Callable[[int], float] | None:
        """Return what `result` can become at best, see `inc_torch.core.evaluation.Score`.

        None unless each metric has a bound and counts in the direction that is its own.
        """
        bounds = [part.bound for part in self.parts if part.bound is not None]
        if len(bounds) < len(self.parts) or self.directions != tuple(part.higher_is_better for part in self.parts):
            return None
        return lambda remaining: self._weighed(bound(remaining) for bound in bounds)

    def reset(self) -> None:
        """Start anew."""
        for part in self.parts:
            part.reset()

    def update(self, preds: object, labels: object) -> None:
        """Give one batch to all metrics."""
        for part in self.parts:
            part.update(preds, labels)

    def results(self) -> dict[str, float]:
        """Return the number of each metric by name.

        Raises:
            ConfigTypeError: A result is no single number.
        """
        return {name: single_number(part.result(), name) for name, part in zip(self.names, self.parts, strict=True)}

    def result(self) -> float:
        """Return the number of the metric; of several the weighted sum, by default the mean.

        Where some are better higher and some lower, the latter count negative.

        Raises:
            ConfigTypeError: A result is no single number.
        """
        return self._weighed(self.results().values())

    def _weighed(self, values: Iterable[float]) -> float:
        weights = self.weights or [1 / len(self.parts)] * len(self.parts)
        signs = [1 if direction == self.higher_is_better else -1 for direction in self.directions]
        return math.fsum(weight * sign * value for weight, sign, value in zip(weights, signs, values, strict=True))


@final
class _Part:
    """A metric under one interface: a user's without ``reset`` begins as the copy that was taken of it."""

    def __init__(self, metric: Any) -> None:  # noqa: ANN401  anything that passed check_methods
        self._metric = metric
        self._begin = None if callable(getattr(metric, "reset", None)) else _copied(metric)
        self.compare_label = bool(getattr(metric, "compare_label", True))
        self.whole_output = bool(getattr(metric, "whole_output", False))
        said = getattr(metric, DIRECTION, None)
        self.higher_is_better = True if said is None else bool(said)

    def __repr__(self) -> str:
        return repr(self._metric)

    def reset(self) -> None:
        if self._begin is None:
            self._metric.reset()
        else:
            self._metric = copy.deepcopy(self._begin)

    def update(self, preds: object, labels: object) -> None:
        self._metric.update(preds, labels)

    def result(self) -> object:
        """What the metric returns; torchmetrics calls it ``compute``."""
        return self._metric.result() if hasattr(self._metric, "result") else self._metric.compute()

    @property
    def bound(self) -> Callable[[int], float] | None:
        """What `result` can become at best, None where the metric does not say."""
        bound: object = getattr(self._metric, "bound", None)
        return bound if callable(bound) else None

    @property
    def samples(self) -> int | None:
        """How many samples were counted, None where the metric does not say."""
        samples: int | None = getattr(self._metric, "samples", None)
        return samples


def _copied(metric: object) -> object:
    """A copy to begin with again."""
    try:
        return copy.deepcopy(metric)
    except (TypeError, RuntimeError) as error:  # what deepcopy raises for locks, files, tensors with a history
        message = (
            f"{OWNER} is {metric!r} without reset(), so each evaluation begins with a copy of it, which cannot be "
            f"made: {error}. Add a method reset()."
        )
        raise ConfigError(message) from error


def read_metric(metric: object) -> Measure:
    """Read whatever a user gave as metric.

    Args:
        metric: One of these:

            - a registered name, or that of a class of torchmetrics;
            - a `Metric`;
            - a dict of names and arguments: a mapping holds keyword arguments, None none, anything else is the one
              argument. With several names, ``weight`` and ``higher_is_better`` may hold a list with an entry for each;
            - an object with ``update(preds, labels)``, ``result()`` and mostly ``reset()``, or a class of such; an
              attribute ``higher_is_better`` counts. Metrics of torchmetrics are such objects.

    Raises:
        ConfigError: A name is unknown, arguments do not fit, or a list has another length.
        ConfigTypeError: It is nothing of the kind.

    Example:
        >>> read_metric({"topk": 5}).parts
        (TopK(k=5),)

    Source: INC 2.6.1, which recognises several metrics only in a dict with four keys or more, and takes a user's object
    once a process.
    """
    if isinstance(metric, Measure):
        return metric
    if isinstance(metric, str):
        return _read_dict({metric: None})
    if isinstance(metric, Mapping):
        return _read_dict(metric)
    if isinstance(metric, Metric):
        return Measure({metric.name: made(f"metric {metric.name!r}", metric.metric_cls, (), metric.kwargs)})
    check_methods(metric, OWNER)
    if isinstance(metric, type):
        return Measure({metric.__name__: made(f"metric {metric.__name__!r}", metric)})
    return Measure({type(metric).__name__: metric})


def _read_dict(given: Mapping[Any, object]) -> Measure:
    names = [name for name in given if name not in {WEIGHT, DIRECTION}]
    if not names:
        message = f"eval_metric={dict(given)!r}: expected the name of a metric, as in {{'topk': 1}}."
        raise ConfigError(message)
    metrics = {name: _built(name, given[name]) for name in names}
    weights = _listed(given, WEIGHT, len(names))
    directions = _listed(given, DIRECTION, len(names))
    if weights is not None and not all(_is_weight(weight) for weight in weights):
        raise ConfigError.field(OWNER, WEIGHT, given[WEIGHT], "finite numbers of 0 or more")
    if weights is not None and not any(weights):
        raise ConfigError.field(OWNER, WEIGHT, given[WEIGHT], "at least one number above 0")
    if directions is not None and not all(isinstance(direction, bool) for direction in directions):
        raise ConfigError.field(OWNER, DIRECTION, given[DIRECTION], "True or False for each metric")
    return Measure(metrics, weights, directions)


def _built(name: str, arguments: object) -> object:
    args, kwargs = read_arguments(arguments)
    return made(f"metric {name!r}", find_metric(name), args, kwargs)


def _listed(given: Mapping[str, object], key: str, count: int) -> list[Any] | None:
    """The entries under ``key``, as many as there are metrics; None if it is missing or None."""
    value = given.get(key)
    if value is None:
        return None
    entries = list(value) if isinstance(value, list | tuple) else [value]
    if len(entries) != count:
        raise ConfigError.field(OWNER, key, value, f"one entry for each metric, {count}")
    return entries


def _is_weight(weight: object) -> bool:
    return isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight < math.inf


def register_customer_metric(user_metric: object, framework: str = "pytorch") -> None:
    """File the class of a described metric under its name, so that configs can name it.

    Args:
        user_metric: The metric, a `Metric`.
        framework: As for `inc_torch.metric.METRICS`.

    Raises:
        ConfigError: A metric of another class has that name, or the framework is another.
        ConfigTypeError: It is no `Metric`.

    Example:
        >>> from inc_torch.metric import METRICS
        >>> class Zero:
        ...     def update(self, preds, labels): ...
        ...     def result(self): return 0.0
        >>> register_customer_metric(Metric("zero", Zero))
        >>> METRICS("pytorch")["zero"] is Zero
        True

    Source: INC 2.6.1 ``register_customer_metric``.
    """
    if not isinstance(user_metric, Metric):
        message = f"register_customer_metric got {user_metric!r}: expected a Metric(name, metric_cls)."
        raise ConfigTypeError(message)
    metric_registry(user_metric.name, framework)(user_metric.metric_cls)
