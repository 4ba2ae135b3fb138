"""The import of the extension, and the one error where it is not there or does not fit."""

from __future__ import annotations

import importlib
import warnings
from importlib import metadata
from typing import Any, Final

from inc_torch.core.errors import MissingPackageError

__all__ = ["VERSION", "extension", "is_available", "require_extension"]

VERSION: Final = "2.8"
"""The last release of the extension; it runs with the torch of the same number only."""
_PACKAGES: Final = {"torch": "torch", "intel-extension-for-pytorch": "intel-extension-for-pytorch"}


def _versions() -> dict[str, str | None]:
    """The installed version of both packages; None for what is not installed."""
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def is_available() -> bool:
    """Whether both packages are installed, in versions that fit; imports nothing."""
    return all(version is not None and version.split(".")[:2] == VERSION.split(".") for version in _versions().values())


def require_extension(feature: str) -> None:
    """Refuse ``feature`` where the extension cannot run; imports nothing.

    Args:
        feature: What needs it, to begin the sentence with.

    Raises:
        MissingPackageError: The extension is not installed, or it or torch is of another version.
    """
    if is_available():
        return
    found = " and ".join(f"{name} {version}" if version else f"no {name}" for name, version in _versions().items())
    message = (
        f"{feature} needs torch {VERSION} and intel-extension-for-pytorch {VERSION}, its last release: found {found}. "
        f"Install both in an environment of their own: pip install 'torch=={VERSION}.*' "
        f"'intel-extension-for-pytorch=={VERSION}.*' 'numpy<2'. Or leave backend='ipex' out: the default backend runs "
        "int8 and bfloat16 on oneDNN with any torch."
    )
    raise MissingPackageError(message)


def extension() -> Any:  # noqa: ANN401  a package without types
    """The package itself."""
    require_extension("backend='ipex'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports about each other
        return importlib.import_module("intel_extension_for_pytorch")
