"""How accurate a model is, by what was assigned to a 1.X object or stands in its file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, final

from inc_torch.data import loader_of, postprocess_of
from inc_torch.metric import Measure, read_metric

__all__ = ["FirstBatches", "loader_in", "postprocessed", "postprocessing_in"]

_LOADER_KEYS = ("batch_size", "last_batch", "shuffle", "distributed", "dataset", "transform", "filter")
_ALL = -1


@final
class FirstBatches:
    """The first batches of a loader, any number of times.

    Example:
        >>> list(FirstBatches([1, 2, 3], 2))
        [1, 2]
    """

    def __init__(self, batches: Iterable[Any], most: int) -> None:
        self.batches, self.most = batches, most
        self.batch_size = getattr(batches, "batch_size", None)

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.most)

    def __len__(self) -> int:
        return min(self.most, len(self.batches))  # type: ignore[arg-type]  # asked only of loaders that know


def loader_in(section: Any, *, most: int = _ALL, keeps_order: bool = False) -> Iterable[Any] | None:  # noqa: ANN401
    """The loader that a section ``dataloader`` describes; None if it names no data set.

    Args:
        section: As `inc_torch.conf` reads it, or None.
        most: Batches to read; -1 is all.
        keeps_order: Whatever it says of ``shuffle``, as for calibration.
    """
    if section is None or section.dataset is None:
        return None
    described = {key: section[key] for key in _LOADER_KEYS if section[key] is not None}
    if keeps_order:
        described["shuffle"] = False
    loader: Iterable[Any] = loader_of(described)
    return loader if most == _ALL else FirstBatches(loader, most)


def postprocessing_in(section: Any) -> Mapping[str, object] | None:  # noqa: ANN401  accuracy or performance
    """The transforms of outputs and labels that a file names."""
    return None if section is None or section.postprocess is None else section.postprocess.transform


def postprocessed(metric: object, postprocess: object) -> object:
    """A metric that is given pairs which ``postprocess`` has gone over; without one, ``metric`` as it is."""
    if postprocess is None:
        return metric
    return Measure({"postprocessed": _Postprocessed(read_metric(metric), postprocess_of(postprocess))})


@final
class _Postprocessed:
    """Hands on what a transform of ``(output, label)`` returns."""

    def __init__(self, measure: Measure, prepare: Callable[[Any, Any], tuple[Any, Any]]) -> None:
        self._measure, self._prepare = measure, prepare
        self.higher_is_better = measure.higher_is_better
        self.compare_label = not measure.needs_reference

    def reset(self) -> None:
        self._measure.reset()

    def update(self, preds: object, labels: object) -> None:
        self._measure.update(*self._prepare(preds, labels))

    def result(self) -> float:
        return self._measure.result()
