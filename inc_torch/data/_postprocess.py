"""What a user does with outputs and labels before the metric gets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from inc_torch.core.errors import ConfigTypeError
from inc_torch.core.made_by_name import check_arguments, made

__all__ = ["Postprocess"]

USER_NAME = "user_postprocess"


@final
class Postprocess:
    """A description of a transform of ``(output, label)``; it is made for each evaluation.

    Args:
        postprocess_cls: A class whose objects are called with the pair and return one. It may stand second.
        name: Any name.
        arguments: What the class is called with.

    Raises:
        ConfigError: The class does not take the arguments.
        ConfigTypeError: It is no class, or its objects cannot be called.

    Example:
        >>> class Best:
        ...     def __call__(self, sample):
        ...         output, label = sample
        ...         return max(output), label
        >>> Postprocess(Best, "best").made()(([1, 5, 2], 5))
        (5, 5)

    Source: INC 2.6.1 ``Postprocess``; differs in that a name can be used again, as running a script twice does: it is
    no entry of a list that all of the process share.
    """

    def __init__(
        self, postprocess_cls: type | str | None = None, name: str | type = USER_NAME, **arguments: object
    ) -> None:
        given, label = (name, postprocess_cls) if isinstance(name, type) else (postprocess_cls, name)
        if not isinstance(given, type) or not _is_called(given):
            message = f"Postprocess.postprocess_cls={given!r}: expected a class with a method __call__(self, sample)."
            raise ConfigTypeError(message)
        self.name = label if isinstance(label, str) else USER_NAME
        self.postprocess_cls: type = given
        self.kwargs = dict(arguments)
        check_arguments(f"postprocess {self.name!r}", given, (), self.kwargs)

    def made(self) -> Callable[[Any], Any]:
        """A new object of the class."""
        transform: Callable[[Any], Any] = made(f"postprocess {self.name!r}", self.postprocess_cls, (), self.kwargs)
        return transform

    def __repr__(self) -> str:
        arguments = "".join(f", {name}={value!r}" for name, value in self.kwargs.items())
        return f"Postprocess({self.postprocess_cls.__name__}, {self.name!r}{arguments})"


def _is_called(kind: type) -> bool:
    """Whether objects of ``kind`` can be called; a class itself always can."""
    return any("__call__" in vars(base) for base in kind.__mro__)
