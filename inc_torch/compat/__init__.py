"""Scripts that say ``import neural_compressor``, run by this package without being edited.

After `install`, INC's module names give the modules of this package, and configurations are as forgiving as INC's:
options that are not known are dropped, and assigning works, each with one warning. A whole script is run by
``python -m inc_torch.compat script.py``.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Final

from inc_torch.compat._finder import FINDER, TOP, take_back_attributes
from inc_torch.compat._names import known_names
from inc_torch.config._base import set_leniency
from inc_torch.core.errors import ConfigError

__all__ = ["install", "is_installed", "known_names", "uninstall"]

_WAY_OUT: Final = "Uninstall it (pip uninstall neural-compressor), or use inc_torch by its own name"


def install(*, replace: bool = False) -> None:
    """Let ``import neural_compressor`` and its sub-modules give those of this package, in this process.

    They are the same objects: ``neural_compressor.config is inc_torch.config``. Doing it twice changes nothing.

    Args:
        replace: Stand in for Intel Neural Compressor even where that is installed too.

    Raises:
        ConfigError: Intel Neural Compressor is installed, and ``replace`` is not asked for; or it is imported already.

    Example:
        >>> install()
        >>> import neural_compressor.training
        >>> import inc_torch.training
        >>> neural_compressor.training is inc_torch.training
        True
        >>> uninstall()
    """
    if is_installed():
        return
    if TOP in sys.modules:
        where = getattr(sys.modules[TOP], "__file__", None)
        message = (
            f"{TOP!r} is imported already ({where}), and what has it now would go on with it. Call "
            f"inc_torch.compat.install() before the first import of it. {_WAY_OUT}."
        )
        raise ConfigError(message)
    found = importlib.util.find_spec(TOP)
    if found is not None and not replace:
        message = (
            f"Intel Neural Compressor itself is installed ({found.origin}), so {TOP!r} could be either. {_WAY_OUT}, or "
            "let inc_torch stand in for it: inc_torch.compat.install(replace=True)."
        )
        raise ConfigError(message)
    sys.meta_path.insert(0, FINDER)
    set_leniency(True)


def uninstall() -> None:
    """Take back what `install` did; modules that were imported by INC's names stay usable where they are held.

    Example:
        >>> uninstall()
        >>> is_installed()
        False
    """
    if not is_installed():
        return
    sys.meta_path.remove(FINDER)
    for name in [name for name in sys.modules if name == TOP or name.startswith(f"{TOP}.")]:
        del sys.modules[name]
    take_back_attributes()
    set_leniency(False)


def is_installed() -> bool:
    """Whether INC's names give modules of this package now."""
    return FINDER in sys.meta_path
