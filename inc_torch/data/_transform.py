"""What is done to a sample before the model sees it, and to an output before the metric does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar, final

from inc_torch.core.errors import ConfigError, did_you_mean
from inc_torch.core.frameworks import check_framework
from inc_torch.core.made_by_name import made, read_arguments
from inc_torch.core.registry import Registry

__all__ = [
    "REGISTRIES",
    "TRANSFORMS",
    "BaseTransform",
    "Sample",
    "composed",
    "find_transform",
    "made_transforms",
    "transform_registry",
]

Kind = TypeVar("Kind", bound=type)
Sample = tuple[Any, Any]
"""``(image, label)``, or ``(output, label)``."""

_FOLDER: Final = "inc_torch.data.transforms"
GENERAL: Final = "general"
REGISTRIES: Final[dict[str, Registry[type]]] = {
    "preprocess": Registry("transform", _FOLDER),
    "postprocess": Registry("transform of outputs", _FOLDER),
    GENERAL: Registry("transform", _FOLDER),
}
"""By process; ``general`` ones are at home in both others."""


class BaseTransform(ABC):
    """Maps a sample to a sample.

    Example:
        >>> class Negative(BaseTransform):
        ...     def __call__(self, sample):
        ...         image, label = sample
        ...         return -image, label
        >>> Negative()((3, "three"))
        (-3, 'three')
    """

    @abstractmethod
    def __call__(self, sample: Any) -> Any:  # noqa: ANN401  each transform says what it takes
        """Return what becomes of ``(image, label)``, or of ``(output, label)``."""


@final
class TRANSFORMS:
    """The transforms of a framework by name.

    Args:
        framework: ``"pytorch"``, or INC's ``"pytorch_fx"`` and ``"pytorch_ipex"``, which mean the same.
        process: ``"preprocess"`` for samples of a data set, ``"postprocess"`` for outputs, ``"general"`` for what is
            at home in both.

    Raises:
        ConfigError: Another framework or process.

    Example:
        >>> TRANSFORMS("pytorch", "postprocess")["LabelShift"](label_shift=1)((0.5, 3))
        (0.5, 2)

    Source: INC 2.6.1 ``TRANSFORMS``.
    """

    def __init__(self, framework: str = "pytorch", process: str = "preprocess") -> None:
        check_framework(type(self).__name__, framework)
        _check_process(process)
        self._process = process

    def __getitem__(self, name: str) -> type:
        return find_transform(name, self._process)

    @property
    def transforms(self) -> dict[str, type]:
        """All of them by name."""
        return {entry.name: entry.value for registry in _searched(self._process) for entry in registry}

    def register(self, name: str, transform_class: type) -> None:
        """File ``transform_class`` under ``name``.

        Raises:
            ConfigError: A transform of another class has that name.
        """
        transform_registry(name, self._process)(transform_class)


def transform_registry(
    transform_type: str, process: str = "preprocess", framework: str = "pytorch"
) -> Callable[[Kind], Kind]:
    """Decorate a class to make it a transform that settings can name.

    Args:
        transform_type: The name.
        process: As for `TRANSFORMS`.
        framework: As for `TRANSFORMS`; several may be given with commas between them.

    Raises:
        ConfigError: A transform of another class has that name, or the framework or the process is another.

    Example:
        >>> @transform_registry("Double", "preprocess")
        ... class Double(BaseTransform):
        ...     def __call__(self, sample): return 2 * sample[0], sample[1]
        >>> TRANSFORMS("pytorch", "preprocess")["Double"] is Double
        True

    Source: INC 2.6.1 ``transform_registry``.
    """
    for name in framework.split(","):
        TRANSFORMS(name.strip(), process)

    def file(kind: Kind) -> Kind:
        REGISTRIES[process].names()  # the built-in ones first, so that their names are taken
        return REGISTRIES[process].register(transform_type, summary=kind.__name__)(kind)

    return file


def find_transform(name: str, process: str) -> type:
    """Return the transform that is registered as ``name`` for ``process``, or for both.

    Raises:
        ConfigError: There is none; the message suggests the nearest.
    """
    registries = _searched(process)
    for registry in registries:
        if name in registry.names():
            return registry.get(name)
    known = sorted({found for registry in registries for found in registry.names()})
    message = f"Unknown {registries[0].kind} {name!r}.{did_you_mean(str(name), known)} Registered: {', '.join(known)}."
    raise ConfigError(message)


def made_transforms(described: Mapping[str, object], process: str) -> list[Callable[[Any], Any]]:
    """The transforms that a mapping of names and arguments describes, in its order."""
    kinds = [(name, find_transform(name, process), read_arguments(value)) for name, value in described.items()]
    return [made(f"transform {name!r}", kind, args, kwargs) for name, kind, (args, kwargs) in kinds]


def composed(transforms: Iterable[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """One transform that does what all of them do, one after another.

    Example:
        >>> composed([lambda pair: (pair[0] + 1, pair[1]), lambda pair: (2 * pair[0], pair[1])])((1, "label"))
        (4, 'label')
    """
    steps = tuple(transforms)

    def apply(sample: Any) -> Any:  # noqa: ANN401
        for step in steps:
            try:
                sample = step(sample)
            except Exception as error:
                error.add_note(f"In the transform {type(step).__name__}.")
                raise
        return sample

    return apply


def _searched(process: str) -> list[Registry[type]]:
    return [REGISTRIES[name] for name in dict.fromkeys((process, GENERAL))]


def _check_process(process: object) -> None:
    if process not in REGISTRIES:
        raise ConfigError.field(TRANSFORMS.__name__, "process", process, f"one of {', '.join(map(repr, REGISTRIES))}")
