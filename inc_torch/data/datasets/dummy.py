"""Random samples, to try things out; the same ones in every run, from a generator of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, final

import numpy as np
import torch.utils.data
from torch.utils.data import IterableDataset

from inc_torch.core.errors import ConfigError
from inc_torch.data._dataset import REGISTRY, Keeps, Samples, Transform

__all__ = ["Dummy", "DummyStream", "SparseDummyStream"]

SEED: Final = 9527
NAME: Final = "dummy"
LOW, HIGH = -128.0, 127.0
Shape = tuple[int, ...]
Array = np.ndarray[Any, Any]


@final
@REGISTRY.register("dummy", summary="random values, a number of samples")
class Dummy(Samples):
    """Samples of random values, uniform in ``[low, high)``.

    Args:
        shape: ``(samples, ...)``; a list of such for inputs that are several arrays.
        low: The least value; a list with one for each array.
        high: The bound; a list with one for each array.
        dtype: A name of numpy; a list with one for each array.
        label: Whether there is a label, which is 0; else a sample is its input alone.
        transform: Maps each sample.
        filter: Says what is kept.

    Raises:
        ConfigError: A shape, a bound or a type is wrong, or the shapes have different numbers of samples.

    Example:
        >>> samples = Dummy([(4, 3, 2, 2), (4, 7)], low=0, high=[1.0, 9.0], dtype=["float32", "int64"])
        >>> (image, tokens), label = samples[0]
        >>> image.shape, tokens.shape, str(tokens.dtype), label
        ((3, 2, 2), (7,), 'int64', 0)

    Source: INC 2.6.1 ``dummy``, with the same values; differs in that numpy's global generator is left alone.
    """

    def __init__(
        self,
        shape: Sequence[int] | Sequence[Sequence[int]],
        low: float | Sequence[float] = LOW,
        high: float | Sequence[float] = HIGH,
        dtype: str | Sequence[str] = "float32",
        label: bool = True,
        transform: Transform | None = None,
        filter: Keeps | None = None,  # noqa: A002  INC's name
    ) -> None:
        super().__init__(transform, filter)
        shapes, is_single = _shapes(shape, "dummy.shape")
        if len({shape[0] for shape in shapes}) != 1:
            raise ConfigError.field(NAME, "shape", shape, "the same number of samples, which is first, in each")
        random = np.random.RandomState(SEED)  # whose values are INC's
        self._arrays = [_drawn(random, *each) for each in _each(shapes, low, high, dtype, NAME)]
        self._is_single = is_single
        self._label = label

    def count(self) -> int:  # noqa: D102
        return len(self._arrays[0])

    def sample(self, index: int) -> Any:  # noqa: ANN401, D102
        parts = tuple(array[index] for array in self._arrays)
        given = parts[0] if self._is_single else parts
        return (given, 0) if self._label else given


class DummyStream(IterableDataset[Any]):
    """Endlessly many samples of random values; a pass of `inc_torch.data.DataLoader` takes 10 batches.

    Args:
        input_shape: Of one sample; a list of such for inputs that are several arrays.
        label_shape: Of its label; None for samples without.
        low: The least value; a list with one for each array, those of the label last.
        high: The bound, in the same way.
        dtype: A name of numpy, in the same way.
        transform: Maps each sample.
        filter: Says what is kept.

    Raises:
        ConfigError: A shape, a bound or a type is wrong.

    Example:
        >>> image, label = next(iter(DummyStream((3, 2, 2), (1,))))
        >>> image.shape, label.shape
        ((3, 2, 2), (1,))

    Source: INC 2.6.1 ``dummy_v2``, which its loader cannot read.
    """

    NAME = "dummy_v2"
    endless: Final = True
    """Tells the loader that there is no last sample."""

    def __init__(
        self,
        input_shape: Sequence[int] | Sequence[Sequence[int]],
        label_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
        low: float | Sequence[float] = LOW,
        high: float | Sequence[float] = HIGH,
        dtype: str | Sequence[str] = "float32",
        transform: Transform | None = None,
        filter: Keeps | None = None,  # noqa: A002  INC's name
    ) -> None:
        inputs, self._is_single = _shapes(input_shape, f"{self.NAME}.input_shape")
        labels, self._one_label = (
            ([], True) if label_shape is None else _shapes(label_shape, f"{self.NAME}.label_shape")
        )
        self._count = len(inputs)
        self._each = _each([*inputs, *labels], low, high, dtype, self.NAME)
        self.transform = transform
        self.filter = filter

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        random = np.random.RandomState(SEED if worker is None else SEED + worker.id)
        while True:
            sample = self._sample([_drawn(random, *each) for each in self._each], random)
            if self.filter is None or self.filter(*sample):
                yield sample if self.transform is None else self.transform(sample)

    def _sample(self, arrays: list[Array], random: np.random.RandomState) -> Any:  # noqa: ANN401
        del random
        inputs, labels = arrays[: self._count], arrays[self._count :]
        given = inputs[0] if self._is_single else tuple(inputs)
        if not labels:
            return given
        return given, labels[0] if self._one_label else tuple(labels)


@final
class SparseDummyStream(DummyStream):
    """The same with zeros among the values.

    Args:
        dense_shape: As ``input_shape`` there.
        label_shape: As there; labels have no zeros put in.
        sparse_ratio: Share of the zeros, in [0, 1]; of an array with n values ``round(n * sparse_ratio)`` are 0.
        low: As there.
        high: As there.
        dtype: As there.
        transform: As there.
        filter: As there.

    Raises:
        ConfigError: An argument is wrong.

    Example:
        >>> next(iter(SparseDummyStream((4, 5), sparse_ratio=0.75, low=1, high=2))).astype(bool).sum()
        np.int64(5)

    Source: INC 2.6.1 ``sparse_dummy_v2``; differs in that samples are dense arrays, which any model takes.
    """

    NAME = "sparse_dummy_v2"

    def __init__(
        self,
        dense_shape: Sequence[int] | Sequence[Sequence[int]],
        label_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
        sparse_ratio: float = 0.5,
        low: float | Sequence[float] = LOW,
        high: float | Sequence[float] = HIGH,
        dtype: str | Sequence[str] = "float32",
        transform: Transform | None = None,
        filter: Keeps | None = None,  # noqa: A002  INC's name
    ) -> None:
        super().__init__(dense_shape, label_shape, low, high, dtype, transform, filter)
        if not 0 <= sparse_ratio <= 1:
            raise ConfigError.field(self.NAME, "sparse_ratio", sparse_ratio, "a number from 0 to 1")
        self.sparse_ratio = sparse_ratio

    def _sample(self, arrays: list[Array], random: np.random.RandomState) -> Any:  # noqa: ANN401
        for array in arrays[: self._count]:
            array.reshape(-1)[random.permutation(array.size)[: round(array.size * self.sparse_ratio)]] = 0
        return super()._sample(arrays, random)


REGISTRY.register("dummy_v2", summary="random values without an end")(DummyStream)
REGISTRY.register("sparse_dummy_v2", summary="random values with zeros, without an end")(SparseDummyStream)


def _shapes(given: Any, where: str) -> tuple[list[Shape], bool]:  # noqa: ANN401  checked here
    """All shapes, and whether it is one alone."""
    if isinstance(given, list | tuple) and given:
        if all(map(_is_size, given)):
            return [tuple(given)], True
        if all(isinstance(shape, list | tuple) and shape and all(map(_is_size, shape)) for shape in given):
            return [tuple(shape) for shape in given], False
    message = f"{where}={given!r}: expected a shape such as (100, 3, 32, 32), or a list of shapes."
    raise ConfigError(message)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _each(
    shapes: list[Shape],
    low: float | Sequence[float],
    high: float | Sequence[float],
    dtype: str | Sequence[str],
    owner: str,
) -> list[tuple[Shape, float, float, np.dtype[Any]]]:
    """Shape, bounds and type of each array."""
    count = len(shapes)
    lows, highs, names = (
        _spread(value, name, count, owner) for value, name in ((low, "low"), (high, "high"), (dtype, "dtype"))
    )
    for least, bound in zip(lows, highs, strict=True):
        if not least <= bound:
            raise ConfigError.field(owner, "low", low, f"at most high={high!r}")
    return list(zip(shapes, lows, highs, [_dtype(name, owner) for name in names], strict=True))


def _spread(value: Any, name: str, count: int, owner: str) -> list[Any]:  # noqa: ANN401
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ConfigError.field(owner, name, value, f"one value, or one for each of {count} arrays")
    return list(value)


def _dtype(name: object, owner: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)  # type: ignore[call-overload, no-any-return]  # checked by numpy
    except TypeError as error:
        message = f"{owner}.dtype={name!r}: expected a type of numpy, such as 'float32', 'int64' or 'bool'."
        raise ConfigError(message) from error


def _drawn(random: np.random.RandomState, shape: Shape, low: float, high: float, dtype: np.dtype[Any]) -> Array:
    return random.uniform(low, high, shape).astype(dtype)
