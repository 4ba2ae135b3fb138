"""Loaders and postprocessing as files of settings describe them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from inc_torch.core.errors import ConfigError, ConfigTypeError, did_you_mean
from inc_torch.core.made_by_name import made, read_arguments
from inc_torch.data._dataset import made_dataset
from inc_torch.data._filter import REGISTRY as FILTER_REGISTRY
from inc_torch.data._loader import DataLoader
from inc_torch.data._postprocess import Postprocess
from inc_torch.data._transform import composed, made_transforms

__all__ = ["loader_of", "postprocess_of"]

DATASET: Final = "dataloader.dataset"
_BATCH_SIZE: Final = 64
_SIMPLE: Final = ("last_batch", "shuffle", "distributed")
_KNOWN: Final = ("batch_size", *_SIMPLE, "dataset", "transform", "filter")


def loader_of(section: Mapping[str, Any]) -> DataLoader:
    """Make the loader that the section ``dataloader`` of INC's YAML describes.

    Args:
        section: ``dataset`` with one name and its arguments; ``batch_size`` (64 if it is missing), ``last_batch``,
            ``shuffle``, ``distributed``; ``transform`` with names and arguments, in order; ``filter`` with one name.

    Raises:
        ConfigError: A key or a name is unknown, or there is no ``dataset``.

    Example:
        >>> loader = loader_of({
        ...     "batch_size": 4,
        ...     "dataset": {"dummy": {"shape": [10, 6, 6, 3]}},
        ...     "transform": {"Transpose": {"perm": [2, 0, 1]}},
        ... })
        >>> [images.shape for images, labels in loader]
        [torch.Size([4, 3, 6, 6]), torch.Size([4, 3, 6, 6]), torch.Size([2, 3, 6, 6])]
    """
    given = _entries(section, "dataloader")
    for key in given:
        if key not in _KNOWN:
            message = f"dataloader.{key} is unknown.{did_you_mean(key, _KNOWN)} Known: {', '.join(_KNOWN)}."
            raise ConfigError(message)
    name, arguments = _one_entry(given.get("dataset"), DATASET)
    args, kwargs = read_arguments(arguments)
    if args:
        raise ConfigError.field(DATASET, name, arguments, "a mapping of arguments")
    transforms = _entries(given.get("transform") or {}, "dataloader.transform")
    dataset = made_dataset(
        name,
        kwargs,
        composed(made_transforms(transforms, "preprocess")) if transforms else None,
        _filter_of(given.get("filter")),
    )
    simple = {key: given[key] for key in _SIMPLE if given.get(key) is not None}
    return DataLoader(dataset, batch_size=given.get("batch_size") or _BATCH_SIZE, **simple)


def postprocess_of(given: object) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Make what `inc_torch.core.evaluation.evaluate` takes as ``prepare``: a function of ``(output, label)``.

    Args:
        given: A mapping of names of transforms and their arguments, as in ``postprocess.transform`` of INC's YAML; a
            `Postprocess`; or a class or object that is called with the pair.

    Raises:
        ConfigError: A name is unknown, or a transform does not take its arguments.
        ConfigTypeError: It is nothing of the kind.

    Example:
        >>> postprocess_of({"LabelShift": {"label_shift": 1}})("output", 5)
        ('output', 4)
    """
    if isinstance(given, Mapping):
        steps = made_transforms(_entries(given, "postprocess.transform"), "postprocess")
    elif isinstance(given, Postprocess):
        steps = [given.made()]
    elif isinstance(given, type):
        steps = [Postprocess(given).made()]
    elif callable(given):
        steps = [given]
    else:
        message = (
            f"postprocess is {given!r}: expected a mapping of transforms, a Postprocess, or something that is called "
            "with the pair (output, label)."
        )
        raise ConfigTypeError(message)
    transform = composed(steps)

    def prepare(output: Any, label: Any) -> tuple[Any, Any]:  # noqa: ANN401  whatever model and loader give
        new_output, new_label = transform((output, label))
        return new_output, new_label

    return prepare


def _entries(section: object, where: str) -> Mapping[str, Any]:
    if not isinstance(section, Mapping):
        message = f"{where} is {section!r}: expected a mapping of names and values."
        raise ConfigTypeError(message)
    return section


def _one_entry(section: object, where: str) -> tuple[str, Any]:
    if not isinstance(section, Mapping) or len(section) != 1:
        message = (
            f"{where}={section!r}: expected one name with its arguments, such as {{'ImageFolder': {{'root': '...'}}}}."
        )
        raise ConfigError(message)
    return next(iter(section.items()))


def _filter_of(section: object) -> Any:  # noqa: ANN401  of any class that is registered
    if not section:
        return None
    name, arguments = _one_entry(section, "dataloader.filter")
    args, kwargs = read_arguments(arguments)
    return made(f"filter {name!r}", FILTER_REGISTRY.get(name), args, kwargs)
