"""Packages that only some features need."""

from __future__ import annotations

import importlib.util

from inc_torch.core.errors import MissingPackageError

__all__ = ["require"]


def require(package: str, extra: str, feature: str) -> None:
    """Refuse ``feature`` with the way out where ``package`` is not installed; imports nothing.

    Args:
        package: Name of the top-level package.
        extra: The extra of ``inc_torch`` that installs it.
        feature: What needs it, to begin the sentence with.

    Raises:
        MissingPackageError: ``package`` is not installed.

    Example:
        >>> require("surely_missing", "hf", "OptimizedModel")
        Traceback (most recent call last):
        inc_torch.core.errors.MissingPackageError: OptimizedModel needs the package 'surely_missing', which is not \
installed. Install it: pip install 'inc_torch[hf]'.
    """
    if importlib.util.find_spec(package) is None:
        message = (
            f"{feature} needs the package {package!r}, which is not installed. "
            f"Install it: pip install 'inc_torch[{extra}]'."
        )
        raise MissingPackageError(message)
