"""Optimizers by the names and options that they have in 1.X files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, final

import torch

from inc_torch.core.errors import ConfigError, ConfigTypeError, did_you_mean
from inc_torch.core.frameworks import check_framework

__all__ = ["Optimizers", "optimizer_of"]

MakeOptimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]

_DEFAULT: Final[Mapping[str, object]] = {"SGD": {"learning_rate": 0.001}}
_RATE: Final = {"learning_rate": "lr", "weight_decay": "weight_decay"}
_ADAM: Final = _RATE | {"beta_1": "beta_1", "beta_2": "beta_2", "epsilon": "eps", "amsgrad": "amsgrad"}
_OPTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "SGD": _RATE | {"momentum": "momentum", "nesterov": "nesterov"},
    "Adam": _ADAM,
    "AdamW": _ADAM,
}
"""Options in a file, and what torch calls them."""
_BETAS: Final = (0.9, 0.999)


@final
class Optimizers:
    """Functions that make optimizers, by name.

    Args:
        framework: Of INC's names for PyTorch.

    Example:
        >>> make = Optimizers("pytorch")["AdamW"]({"learning_rate": 0.1, "beta_2": 0.99})
        >>> make([torch.nn.Parameter(torch.ones(1))]).defaults["betas"]
        (0.9, 0.99)

    Source: INC 2.6.1 ``Optimizers``, which knows SGD alone for PyTorch.
    """

    def __init__(self, framework: str = "pytorch") -> None:
        check_framework(type(self).__name__, framework)

    def __getitem__(self, name: str) -> Callable[[Mapping[str, object]], MakeOptimizer]:
        if name not in _OPTIONS:
            raise ConfigError.field(type(self).__name__, "name", name, f"one of {', '.join(_OPTIONS)}")
        return lambda options: optimizer_of({name: options})


def optimizer_of(described: Mapping[str, Any] | None) -> MakeOptimizer:
    """Return a function of parameters for ``{name: options}``; None is SGD with a learning rate of 0.001.

    Raises:
        ConfigError: The name or an option is unknown.

    Example:
        >>> optimizer_of({"SGD": {"learning_rate": 0.1}})([torch.nn.Parameter(torch.ones(1))]).defaults["lr"]
        0.1
    """
    ((name, given),) = (described or _DEFAULT).items()
    options: dict[str, Any] = dict(given or {})  # type: ignore[arg-type]  # a mapping, or nothing
    known = _OPTIONS.get(name)
    if known is None:
        message = f"optimizer={name!r}: expected one of {', '.join(_OPTIONS)}.{did_you_mean(name, _OPTIONS)}"
        raise ConfigError(message)
    for option in options:
        if option not in known:
            message = (
                f"optimizer.{name} has no option {option!r}.{did_you_mean(option, known)} Known: {', '.join(known)}."
            )
            raise ConfigTypeError(message)
    named: dict[str, Any] = {known[option]: value for option, value in options.items()}
    if "beta_1" in named or "beta_2" in named:
        named["betas"] = (named.pop("beta_1", _BETAS[0]), named.pop("beta_2", _BETAS[1]))
    kind: Any = getattr(torch.optim, name)

    def make(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = kind(parameters, **({"lr": 0.001} | named))
        return made

    return make
