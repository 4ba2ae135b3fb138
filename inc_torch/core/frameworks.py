"""The names that Intel Neural Compressor gave to what is one framework here."""

from __future__ import annotations

from typing import Final

from inc_torch.core.errors import ConfigError

__all__ = ["FRAMEWORKS", "check_framework"]

FRAMEWORKS: Final = ("pytorch", "pytorch_fx", "pytorch_ipex")
"""All of them mean PyTorch."""


def check_framework(owner: str, framework: object) -> None:
    """Refuse what is not PyTorch.

    Raises:
        ConfigError: Another framework.

    Example:
        >>> check_framework("Datasets", "tensorflow")
        Traceback (most recent call last):
        inc_torch.core.errors.ConfigError: Datasets.framework='tensorflow': expected one of 'pytorch', 'pytorch_fx', \
'pytorch_ipex'.
    """
    if framework not in FRAMEWORKS:
        raise ConfigError.field(owner, "framework", framework, f"one of {', '.join(map(repr, FRAMEWORKS))}")
