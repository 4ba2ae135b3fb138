"""INC's loader, which is one of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import Any, Final, NoReturn, Self, final

import torch.distributed
import torch.utils.data
from torch.utils.data import Dataset, DistributedSampler, IterableDataset, Sampler

from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.core.frameworks import FRAMEWORKS, check_framework
from inc_torch.core.made_by_name import check_arguments

__all__ = ["DATALOADERS", "DataLoader", "check_dataloader"]

OWNER: Final = "DataLoader"
ROLLOVER, DISCARD = "rollover", "discard"
ENDLESS_BATCHES: Final = 10
"""How many batches one pass over an endless data set has."""


class DataLoader(torch.utils.data.DataLoader[Any]):
    """A loader of torch, with INC's arguments.

    Args:
        framework: May be left out, as in INC 1.X.
        dataset: Anything with ``__getitem__`` or ``__iter__``. One without ``__len__`` is asked for ``len()``, and
            else read once up to the first `IndexError`. Of an endless one, as ``dummy_v2``, a pass has 10 batches.
        batch_size: Samples of a batch.
        collate_fn: Makes a batch of a list of samples; torch's, or the method ``collate`` of the data set.
        last_batch: ``"rollover"`` keeps a last batch that is shorter, ``"discard"`` leaves it out.
        sampler: As for torch.
        batch_sampler: As for torch.
        num_workers: As for torch.
        pin_memory: As for torch.
        shuffle: As for torch.
        distributed: Each process of `torch.distributed` reads a part of its own.

    Raises:
        ConfigError: An argument is wrong, or ``distributed`` without a process group.
        ConfigTypeError: ``dataset`` is none.

    Example:
        >>> class Numbers:  # neither __len__ nor a base class
        ...     def __getitem__(self, index):
        ...         return (torch.tensor(float(index)), 0)
        ...
        ...     def len(self):
        ...         return 5
        >>> [images.tolist() for images, _ in DataLoader("pytorch", Numbers(), batch_size=2)]
        [[0.0, 1.0], [2.0, 3.0], [4.0]]
        >>> len(DataLoader(Numbers(), 2, last_batch="discard"))
        2

    Source: INC 2.6.1 ``DataLoader``; differs in that it is a real loader from the start, takes any data set, and is
    distributed by torch instead of Horovod.
    """

    def __init__(self, *given: Any, **options: Any) -> None:  # noqa: ANN401  two lists of arguments, told apart below
        framework = options.pop("framework", None)
        if given and isinstance(given[0], str):
            framework, *rest = given
            given = tuple(rest)
        if framework is not None:
            check_framework(OWNER, framework)
        check_arguments(OWNER, _read_options, given, options)
        self._given = _read_options(*given, **options)
        super().__init__(**_for_torch(self._given))

    def batch(self, batch_size: int, last_batch: str | None = None) -> Self:
        """Change the size of batches, in place.

        Args:
            batch_size: The new size.
            last_batch: What to do with the last one; None leaves that as it is.

        Returns:
            The loader itself.

        Example:
            >>> len(DataLoader("pytorch", list(range(8)), batch_size=2).batch(4))
            2
        """
        changed = {"batch_size": batch_size, "last_batch": last_batch or self._given["last_batch"]}
        # torch guards these attributes against single changes; here all change together.
        vars(self).update(vars(type(self)(**(self._given | changed))))
        return self

    def __iter__(self) -> Any:  # noqa: ANN401  torch says _BaseDataLoaderIter, which an endless one is not
        batches = super().__iter__()
        return islice(batches, ENDLESS_BATCHES) if _is_endless(self.dataset) else batches

    def __len__(self) -> int:
        return ENDLESS_BATCHES if _is_endless(self.dataset) else super().__len__()


@final
class _Loaders(Mapping[str, type[DataLoader]]):
    """The loader of each framework, all of them one."""

    def __getitem__(self, framework: str) -> type[DataLoader]:
        check_framework("DATALOADERS", framework)
        return DataLoader

    def __iter__(self) -> Iterator[str]:
        return iter(FRAMEWORKS)

    def __len__(self) -> int:
        return len(FRAMEWORKS)


DATALOADERS: Final = _Loaders()
"""The loader of a framework: ``DATALOADERS["pytorch"](dataset, batch_size=8)``."""


def check_dataloader(dataloader: object) -> bool:
    """Return True for what has ``__iter__`` and ``batch_size``.

    Raises:
        ConfigTypeError: It lacks one of them.

    Example:
        >>> check_dataloader(DataLoader("pytorch", [1, 2]))
        True
    """
    missing = [name for name in ("__iter__", "batch_size") if not hasattr(dataloader, name)]
    if missing:
        message = (
            f"A loader of type {type(dataloader).__name__} has no {' and no '.join(missing)}: expected an "
            "inc_torch.data.DataLoader, a torch.utils.data.DataLoader, or an object with both."
        )
        raise ConfigTypeError(message)
    return True


def _read_options(  # noqa: PLR0913, PLR0917  INC's list
    dataset: object,
    batch_size: int = 1,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    last_batch: str = ROLLOVER,
    sampler: Sampler[Any] | Iterable[Any] | None = None,
    batch_sampler: Sampler[list[Any]] | Iterable[list[Any]] | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
    shuffle: bool = False,
    distributed: bool = False,
) -> dict[str, Any]:
    """All arguments by name, checked as far as torch does not do that."""
    given = dict(locals())
    if type(batch_size) is not int or batch_size < 1:
        raise ConfigError.field(OWNER, "batch_size", batch_size, "a whole number above 0")
    if last_batch not in {ROLLOVER, DISCARD}:
        raise ConfigError.field(OWNER, "last_batch", last_batch, f"{ROLLOVER!r} or {DISCARD!r}")
    return given


def _for_torch(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same as arguments of torch's loader."""
    dataset = _as_dataset(given["dataset"])
    options = {name: given[name] for name in ("sampler", "batch_sampler", "num_workers", "pin_memory", "shuffle")}
    if given["distributed"]:
        options |= {"sampler": _distributed_sampler(dataset, given), "shuffle": False}
    if isinstance(dataset, IterableDataset):
        options["shuffle"] = options["shuffle"] or None
    collate = given["collate_fn"] or getattr(dataset, "collate", None)
    sizes = {"batch_size": given["batch_size"], "drop_last": given["last_batch"] == DISCARD}
    if options["batch_sampler"] is not None:  # which decides that itself
        sizes = {}
    return {"dataset": dataset, "collate_fn": collate, **options, **sizes}


def _distributed_sampler(dataset: Any, given: Mapping[str, Any]) -> DistributedSampler[Any]:  # noqa: ANN401
    if isinstance(dataset, IterableDataset):
        _refuse_distributed(
            f"a data set that is only iterated over ({type(given['dataset']).__name__}): add __getitem__"
        )
    if given["sampler"] is not None or given["batch_sampler"] is not None:
        _refuse_distributed("a sampler of your own: leave one of them out")
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        _refuse_distributed(
            "no process group. Start the script with torchrun, and call torch.distributed.init_process_group() first"
        )
    return DistributedSampler(dataset, shuffle=given["shuffle"], drop_last=given["last_batch"] == DISCARD)


def _refuse_distributed(reason: str) -> NoReturn:
    message = f"DataLoader got distributed=True and {reason}."
    raise ConfigError(message)


@final
class _ByIndex(Dataset[Any]):
    """A data set without ``__len__``; anything else that it has is found here too."""

    def __init__(self, given: Any) -> None:  # noqa: ANN401  somebody's own class
        self._given = given

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401
        return self._given[index]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("_"):  # while it is copied or unpickled there is no _given yet
            raise AttributeError(name)
        return getattr(self._given, name)

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        told = getattr(self._given, "len", None)
        if callable(told):
            return int(told())
        count = 0
        while True:
            try:
                self._given[count]
            except IndexError:
                return count
            count += 1


@final
class _Stream(IterableDataset[Any]):
    """Whatever has only ``__iter__``; among several workers each takes its part."""

    def __init__(self, given: Iterable[Any]) -> None:
        self._given = given

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        return iter(self._given) if worker is None else islice(self._given, worker.id, None, worker.num_workers)


def _as_dataset(given: Any) -> Any:  # noqa: ANN401  a data set of torch, or what can stand for one
    if isinstance(given, IterableDataset):
        return given
    if hasattr(given, "__getitem__"):
        return given if hasattr(given, "__len__") else _ByIndex(given)
    if hasattr(given, "__iter__"):
        return _Stream(given)
    hint = " It is a class: give an object of it." if isinstance(given, type) else ""
    message = (
        f"DataLoader.dataset is {given!r}: expected an object with __getitem__(index) or __iter__().{hint} Data sets "
        "by name: Datasets('pytorch')['dummy'](shape=(100, 3, 32, 32))."
    )
    raise ConfigTypeError(message)


def _is_endless(dataset: object) -> bool:
    return bool(getattr(dataset, "endless", False))
