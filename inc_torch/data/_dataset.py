"""Data sets by name, and what the built-in ones have in common: a filter and a transform."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeVar, final

from torch.utils.data import Dataset, IterableDataset

from inc_torch.core.frameworks import check_framework
from inc_torch.core.made_by_name import made
from inc_torch.core.registry import Registry

__all__ = ["REGISTRY", "Datasets", "Samples", "dataset_registry", "made_dataset"]

Kind = TypeVar("Kind", bound=type)
Transform = Callable[[Any], Any]
Keeps = Callable[[Any, Any], bool]

REGISTRY: Registry[type] = Registry("data set", "inc_torch.data.datasets")


class Samples(Dataset[Any]):
    """Samples that are read by number, filtered first and transformed then.

    Args:
        transform: Maps each sample, see `inc_torch.data.TRANSFORMS`.
        filter: Says of each sample whether it is kept, see `inc_torch.data.FILTERS`. Samples are read once for it.
    """

    def __init__(self, transform: Transform | None = None, filter: Keeps | None = None) -> None:  # noqa: A002  INC's name
        self.transform = transform
        self.filter = filter

    @abstractmethod
    def count(self) -> int:
        """How many samples there are before filtering."""

    @abstractmethod
    def sample(self, index: int) -> Any:  # noqa: ANN401  mostly a pair
        """Read one of them; ``index`` is from 0 to ``count() - 1``."""

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401  whatever the transform makes
        sample = self.sample(self._kept[index])
        return sample if self.transform is None else self.transform(sample)

    @cached_property
    def _kept(self) -> Sequence[int]:
        numbers = range(self.count())
        return numbers if self.filter is None else [index for index in numbers if self.is_kept(index)]

    def is_kept(self, index: int) -> bool:
        """Ask the filter, which there is; to be replaced where this can be told without reading the sample."""
        keeps = self.filter
        return keeps is None or bool(keeps(*self.sample(index)))


class _Indexable(Protocol):
    """What somebody else's data set has at least."""

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401
        ...

    def __len__(self) -> int: ...


@final
class _Prepared(Samples):
    """Somebody's data set under a filter and a transform."""

    def __init__(self, given: _Indexable, transform: Transform | None, keeps: Keeps | None) -> None:
        super().__init__(transform, keeps)
        self._given = given

    def count(self) -> int:
        return len(self._given)

    def sample(self, index: int) -> Any:  # noqa: ANN401
        return self._given[index]


@final
class _PreparedStream(IterableDataset[Any]):
    """The same for one that is read from its beginning to its end."""

    def __init__(self, given: IterableDataset[Any], transform: Transform | None, keeps: Keeps | None) -> None:
        self._given, self._transform, self._keeps = given, transform, keeps

    def __iter__(self) -> Iterator[Any]:
        for sample in self._given:
            if self._keeps is None or self._keeps(*sample):
                yield sample if self._transform is None else self._transform(sample)


def made_dataset(
    name: str, arguments: Mapping[str, Any], transform: Transform | None = None, keeps: Keeps | None = None
) -> Any:  # noqa: ANN401  of any class that is registered
    """Make the data set that is registered as ``name``; a class that knows no ``transform`` or ``filter`` is wrapped.

    Raises:
        ConfigError: There is none of that name, or it does not take the arguments.
    """
    kind = REGISTRY.get(name)
    known = inspect.signature(kind).parameters
    wanted = {"transform": transform, "filter": keeps}
    taken = {key: value for key, value in wanted.items() if value is not None and key in known}
    dataset = made(f"data set {name!r}", kind, (), {**arguments, **taken})
    transform = None if "transform" in taken else transform
    keeps = None if "filter" in taken else keeps
    if transform is None and keeps is None:
        return dataset
    wrapper = _PreparedStream if isinstance(dataset, IterableDataset) else _Prepared
    return wrapper(dataset, transform, keeps)


@final
class Datasets:
    """The data sets of a framework by name.

    Args:
        framework: ``"pytorch"``, or INC's ``"pytorch_fx"`` and ``"pytorch_ipex"``, which mean the same.

    Raises:
        ConfigError: Another framework.

    Example:
        >>> images = Datasets("pytorch")["dummy"](shape=(8, 3, 4, 4), low=0.0, high=1.0)
        >>> len(images), images[0][0].shape, images[0][1]
        (8, (3, 4, 4), 0)

    Source: INC 2.6.1 ``Datasets``; differs in that CIFAR10 and its kin are not downloaded unless ``download=True``.
    """

    def __init__(self, framework: str = "pytorch") -> None:
        check_framework(type(self).__name__, framework)

    def __getitem__(self, name: str) -> type:
        return REGISTRY.get(name)

    @property
    def datasets(self) -> dict[str, type]:
        """All registered data sets by name."""
        return {entry.name: entry.value for entry in REGISTRY}

    def register(self, name: str, dataset_class: type) -> None:
        """File ``dataset_class`` under ``name``.

        Raises:
            ConfigError: A data set of another class has that name.
        """
        dataset_registry(name)(dataset_class)


def dataset_registry(dataset_type: str, framework: str = "pytorch", dataset_format: str = "") -> Callable[[Kind], Kind]:
    """Decorate a class to make it a data set that settings can name.

    Args:
        dataset_type: The name.
        framework: As for `Datasets`; several may be given with commas between them.
        dataset_format: INC's second part of the name, which is appended to the first.

    Raises:
        ConfigError: A data set of another class has that name, or the framework is another.

    Example:
        >>> @dataset_registry("Squares")
        ... class Squares(Dataset):
        ...     def __init__(self, size): self.size = size
        ...     def __len__(self): return self.size
        ...     def __getitem__(self, index): return index * index, index
        >>> Datasets("pytorch")["Squares"](4)[3]
        (9, 3)

    Source: INC 2.6.1 ``dataset_registry``; differs in that the same class may be filed again, as running a cell of a
    notebook twice does.
    """
    for name in framework.split(","):
        Datasets(name.strip())

    def file(kind: Kind) -> Kind:
        REGISTRY.names()  # the built-in ones first, so that their names are taken
        return REGISTRY.register(dataset_type + dataset_format, summary=kind.__name__)(kind)

    return file
