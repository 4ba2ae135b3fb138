"""What samples a data set keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar, final

from inc_torch.core.frameworks import check_framework
from inc_torch.core.registry import Registry

__all__ = ["FILTERS", "REGISTRY", "Filter", "filter_registry"]

Kind = TypeVar("Kind", bound=type)
REGISTRY: Registry[type] = Registry("filter", "inc_torch.data.filters")


class Filter(ABC):
    """Says of a sample whether it is kept.

    Example:
        >>> class Odd(Filter):
        ...     def __call__(self, image, label):
        ...         return label % 2 == 1
        >>> Odd()(None, 3)
        True
    """

    @abstractmethod
    def __call__(self, image: object, label: object) -> bool:
        """Return whether the sample ``(image, label)`` is kept."""


@final
class FILTERS:
    """The filters of a framework by name.

    Args:
        framework: ``"pytorch"``, or INC's ``"pytorch_fx"`` and ``"pytorch_ipex"``, which mean the same.

    Raises:
        ConfigError: Another framework.

    Example:
        >>> FILTERS("pytorch")["LabelBalance"](size=1).size
        1

    Source: INC 2.6.1 ``FILTERS``.
    """

    def __init__(self, framework: str = "pytorch") -> None:
        check_framework(type(self).__name__, framework)

    def __getitem__(self, name: str) -> type:
        return REGISTRY.get(name)

    @property
    def filters(self) -> dict[str, type]:
        """All registered filters by name."""
        return {entry.name: entry.value for entry in REGISTRY}


def filter_registry(filter_type: str, framework: str = "pytorch") -> Callable[[Kind], Kind]:
    """Decorate a class to make it a filter that settings can name.

    Args:
        filter_type: The name.
        framework: As for `FILTERS`; several may be given with commas between them.

    Raises:
        ConfigError: A filter of another class has that name, or the framework is another.

    Example:
        >>> @filter_registry("Even")
        ... class Even(Filter):
        ...     def __call__(self, image, label): return label % 2 == 0
        >>> FILTERS()["Even"] is Even
        True

    Source: INC 2.6.1 ``filter_registry``.
    """
    for name in framework.split(","):
        FILTERS(name.strip())

    def file(kind: Kind) -> Kind:
        REGISTRY.names()  # the built-in ones first, so that their names are taken
        return REGISTRY.register(filter_type, summary=kind.__name__)(kind)

    return file
