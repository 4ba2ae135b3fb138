"""What holds for every search: where it is kept, and the seed."""

from __future__ import annotations

from os import PathLike, fspath
from typing import final

from inc_torch.config._checks import Place, flag, integer, optional
from inc_torch.core.errors import did_you_mean

__all__ = ["Options", "options", "set_random_seed", "set_resume_from", "set_tensorboard", "set_workspace"]


def _where(value: object, place: Place) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, PathLike)):
        raise place.type_error(value, "a path, the URL of a database, or None")
    where = fspath(value)
    if not isinstance(where, str) or not where:
        raise place.error(value, "a path, the URL of a database, or None")
    return where


_CHECKS = {
    "random_seed": integer("an integer, 0 or more", lambda x: x >= 0),
    "workspace": _where,
    "resume_from": optional(_where),
    "tensorboard": flag,
}


@final
class Options:
    """Options of the process, to be changed in place.

    Attributes:
        random_seed: Of everything that a search draws.
        workspace: Where searches are kept: a folder or a file for one machine, or the URL of a database, which any
            number of machines may share. None keeps them in memory. A search that was cut is continued by the run that
            begins it again with the same workspace.
        resume_from: The same, but there has to be a search of this model and configuration already.
        tensorboard: INC's switch; without effect here, as the result has tables and pictures of its own.

    Raises:
        ConfigError: An option is unknown or wrong.

    Example:
        >>> own = Options()
        >>> own.workspace = "runs/minilm"
        >>> own.workspace, own.random_seed
        ('runs/minilm', 1978)

    Source: INC 2.6.1 ``options``; differs in the workspace, which there is a folder of pickles, made anew at each
    import.
    """

    random_seed: int
    workspace: str | None
    resume_from: str | None
    tensorboard: bool

    def __init__(self) -> None:
        self.random_seed = 1978
        self.workspace = None
        self.resume_from = None
        self.tensorboard = False

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _CHECKS:
            message = f"Options has no option {name!r}.{did_you_mean(name, _CHECKS)}"
            raise AttributeError(message)
        object.__setattr__(self, name, _CHECKS[name](value, Place("Options", name)))

    def __repr__(self) -> str:
        return f"Options({', '.join(f'{name}={getattr(self, name)!r}' for name in _CHECKS)})"


options = Options()
"""Those that `inc_torch.quantization.fit` and `inc_torch.training.fit` follow."""


def set_random_seed(random_seed: int) -> None:
    """Set ``options.random_seed``."""
    options.random_seed = random_seed


def set_workspace(workspace: str | PathLike[str] | None) -> None:
    """Set ``options.workspace``."""
    options.workspace = None if workspace is None else fspath(workspace)


def set_resume_from(resume_from: str | PathLike[str] | None) -> None:
    """Set ``options.resume_from``."""
    options.resume_from = None if resume_from is None else fspath(resume_from)


def set_tensorboard(tensorboard: bool) -> None:
    """Set ``options.tensorboard``."""
    options.tensorboard = tensorboard
