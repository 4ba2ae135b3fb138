"""The base of a metric, and the registry by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, final

from inc_torch.core.errors import ConfigError, ConfigTypeError, did_you_mean
from inc_torch.core.frameworks import check_framework
from inc_torch.core.registry import Registry
from inc_torch.metric._torchmetrics import EXTRA, torchmetrics_classes

__all__ = ["METRICS", "REGISTRY", "BaseMetric", "check_methods", "find_metric", "metric_registry"]

METHODS = ("update", "result")
"""What a user's metric has at least."""

Kind = TypeVar("Kind", bound=type)


class BaseMetric(ABC):
    """Something that is measured over batches.

    Attributes:
        higher_is_better: Which of two results is the better one.

    Example:
        >>> class Positive(BaseMetric):
        ...     def reset(self):
        ...         self.count = 0
        ...
        ...     def update(self, preds, labels):
        ...         self.count += int((preds > 0).sum())
        ...
        ...     def result(self):
        ...         return self.count
        >>> import torch
        >>> metric = Positive()
        >>> metric.reset()
        >>> metric.update(torch.tensor([1.0, -1.0]), None)
        >>> metric.result()
        1
    """

    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""

    @abstractmethod
    def update(self, preds: Any, labels: Any) -> None:  # noqa: ANN401  each metric says what it takes
        """Take in one batch.

        Args:
            preds: What the model gave for it.
            labels: What is right.
        """

    @abstractmethod
    def result(self) -> float:
        """Return the number for all batches since `reset`."""


REGISTRY: Registry[type] = Registry("metric", "inc_torch.metric.kinds")


@final
class METRICS:
    """The metrics of a framework by name: those registered, then the classes of torchmetrics.

    Args:
        framework: ``"pytorch"``, or INC's ``"pytorch_fx"`` and ``"pytorch_ipex"``, which mean the same.

    Raises:
        ConfigError: Another framework.

    Example:
        >>> METRICS("pytorch")["topk"](k=5)
        TopK(k=5)
        >>> sorted(METRICS("pytorch").metrics)
        ['Accuracy', 'BLEU', 'COCOmAP', ..., 'VOCmAP', 'mAP', 'mIOU', 'topk']

    Source: INC 2.6.1 ``METRICS``.
    """

    def __init__(self, framework: str = "pytorch") -> None:
        check_framework(type(self).__name__, framework)

    def __getitem__(self, name: str) -> type:
        return find_metric(name)

    @property
    def metrics(self) -> dict[str, type]:
        """All registered metrics by name."""
        return {entry.name: entry.value for entry in REGISTRY}

    def register(self, name: str, metric_class: type) -> None:
        """File ``metric_class`` under ``name``.

        Raises:
            ConfigError: A metric of another class has that name.
            ConfigTypeError: It has no ``update`` or no ``result``.
        """
        metric_registry(name)(metric_class)


def metric_registry(metric_type: str, framework: str = "pytorch") -> Callable[[Kind], Kind]:
    """Decorate a class with ``update`` and ``result`` to make it a metric that configs can name.

    Args:
        metric_type: The name.
        framework: As for `METRICS`; several may be given with commas between them.

    Raises:
        ConfigError: A metric of another class has that name, or the framework is another.
        ConfigTypeError: The class has no ``update`` or no ``result``.

    Example:
        >>> @metric_registry("count")
        ... class Count:
        ...     def reset(self): self.count = 0
        ...     def update(self, preds, labels): self.count += len(preds)
        ...     def result(self): return self.count
        >>> METRICS("pytorch")["count"] is Count
        True

    Source: INC 2.6.1 ``metric_registry``; differs in that the same class may be filed again, as running a cell of a
    notebook twice does.
    """
    for name in framework.split(","):
        METRICS(name.strip())

    def file(metric_class: Kind) -> Kind:
        check_methods(metric_class, f"The metric {metric_type!r}")
        REGISTRY.names()  # the built-in ones first, so that their names are taken
        lines = (metric_class.__doc__ or "").strip().splitlines()
        return REGISTRY.register(metric_type, summary=lines[0] if lines else "")(metric_class)

    return file


def find_metric(name: str) -> type:
    """Return the metric that is registered as ``name``, or the class of torchmetrics with that name.

    Raises:
        ConfigError: There is neither; the message suggests the nearest.
    """
    registered = REGISTRY.names()
    if name in registered:
        return REGISTRY.get(name)
    others = torchmetrics_classes()
    if name in others:
        return others[name]
    theirs = "the classes" if others else f"after pip install 'inc_torch[{EXTRA}]' the classes"
    message = (
        f"Unknown metric {name!r}.{did_you_mean(str(name), [*others, *registered])} Registered: "
        f"{', '.join(registered)}; known too are {theirs} of torchmetrics."
    )
    raise ConfigError(message)


def check_methods(metric: object, subject: str) -> None:
    """Refuse what lacks ``update`` or ``result``; ``compute``, torchmetrics' name, counts as ``result``."""
    for method in METHODS:
        if callable(getattr(metric, method, None)) or (method == "result" and hasattr(metric, "compute")):
            continue
        public = [name for name in dir(metric) if not name.startswith("_")]
        message = (
            f"{subject} is {metric!r} without a method {method!r}: expected update(preds, labels) and result()."
            f"{did_you_mean(method, public)} Add the method."
        )
        raise ConfigTypeError(message)
