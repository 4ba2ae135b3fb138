"""Rules that speak of nothing are typing errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from inc_torch.core.errors import ConfigError, did_you_mean
from inc_torch.precision import PrecisionRule

__all__ = ["check_rules"]

_SHOWN = 12


def check_rules(rules: Sequence[PrecisionRule], kinds: Mapping[str, str]) -> None:
    """Refuse a rule that matches no module.

    A class of torch that the model happens to lack is no error, as a rule may serve many models.

    Args:
        rules: Of a configuration.
        kinds: Class names by module name.

    Raises:
        ConfigError: A rule matches none.

    Example:
        >>> check_rules([PrecisionRule("name", "hed", ("fp32",))], {"": "Net", "head": "Linear"})
        Traceback (most recent call last):
        inc_torch.core.errors.ConfigError: The rule 'hed' of op_name_dict matches no module: a pattern must match ...
    """
    for rule in rules:
        if any(rule.catches(name, kind) for name, kind in kinds.items()):
            continue
        if rule.subject == "type" and any(rule.catches("", known) for known in vars(nn)):
            continue
        present = sorted(set(kinds.values())) if rule.subject == "type" else [name for name in kinds if name]
        shown = ", ".join(map(repr, present[:_SHOWN])) + (", ..." if len(present) > _SHOWN else "")
        whole = "class name" if rule.subject == "type" else "module name"
        message = (
            f"The rule {rule.pattern!r} of op_{rule.subject}_dict matches no module: a pattern must match the whole "
            f"{whole}.{did_you_mean(rule.pattern, present) or f' There are {shown}.'}"
        )
        raise ConfigError(message)
