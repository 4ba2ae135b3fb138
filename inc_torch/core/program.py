"""Programs that run in the place of a model's own forward."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from inc_torch.core.errors import ModelError

__all__ = ["Program", "program_of", "require_own_forward"]


class Program:
    """What a model runs instead of its modules; it stands in the model's attribute ``forward``.

    Attributes:
        runs_on: Whose program it is, as the end of a sentence.
        way_back: How the model runs its modules again, as the end of a sentence.
    """

    runs_on: ClassVar[str]
    way_back: ClassVar[str]


def program_of(model: nn.Module) -> Program | None:
    """The program that a model runs; None if it runs its own forward.

    Example:
        >>> program_of(nn.Linear(2, 2)) is None
        True
    """
    found = model.__dict__.get("forward")
    return found if isinstance(found, Program) else None


def require_own_forward(model: nn.Module, feature: str) -> None:
    """Refuse a model that runs a program: its modules are not what computes.

    Args:
        model: Any module.
        feature: What works on modules, to begin the sentence with.

    Raises:
        ModelError: It runs a program.
    """
    program = program_of(model)
    if program is not None:
        message = (
            f"{feature} got a {type(model).__name__} that runs on {program.runs_on}: expected a model that runs its "
            f"own modules. {program.way_back}"
        )
        raise ModelError(message)
