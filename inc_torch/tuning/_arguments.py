"""Checks of what users hand to strategies."""

from __future__ import annotations

from numbers import Integral

from inc_torch.core.errors import ConfigError

__all__ = ["check", "check_count"]


def check(holds: bool, strategy: str, name: str, value: object, want: str) -> None:
    """Refuse the ``value`` of an argument unless it ``holds`` what is wanted.

    Raises:
        ConfigError: It does not.
    """
    if not holds:
        raise ConfigError.field(strategy, name, value, want)


def check_count(strategy: str, name: str, value: object) -> None:
    """Refuse what is no positive integer.

    Raises:
        ConfigError: ``value`` is another thing, or less than 1.

    Example:
        >>> check_count("mse_v2", "confidence_batches", 0)
        Traceback (most recent call last):
        inc_torch.core.errors.ConfigError: mse_v2.confidence_batches=0: expected an integer of 1 or more.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise ConfigError.field(strategy, name, value, "an integer of 1 or more")
