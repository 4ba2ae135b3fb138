"""Every deliberate error and warning of the package.

Each error derives from `IncTorchError` and from the builtin that a caller would expect, so both
``except IncTorchError`` and the habits of old scripts (INC raised bare ``AssertionError``) work.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "ArtifactError",
    "CalibrationError",
    "ConfigError",
    "ConfigTypeError",
    "CopyError",
    "GoalMissedError",
    "GoalMissedWarning",
    "HookOrderError",
    "IncTorchError",
    "IncTorchWarning",
    "InexactWarning",
    "LayerNotFoundError",
    "LoopWarning",
    "MissingPackageError",
    "ModelError",
    "NoCounterpartError",
    "StateError",
    "UnwritableError",
    "did_you_mean",
    "listed",
]


class IncTorchError(Exception):
    """Base of every error that the package raises on purpose."""


class ConfigError(IncTorchError, ValueError, AssertionError):
    """A configuration is wrong. Also an ``AssertionError``, which is what INC's callers catch."""

    @classmethod
    def field(cls, owner: str, name: str, got: object, want: str) -> ConfigError:
        """Build the message for one bad field: owner, field, value and the rule it breaks.

        Example:
            >>> print(ConfigError.field("WeightPruningConfig", "target_sparsity", 1.5, "a number in [0, 1)"))
            WeightPruningConfig.target_sparsity=1.5: expected a number in [0, 1).
        """
        return cls(f"{owner}.{name}={got!r}: expected {want}.")


class ConfigTypeError(ConfigError, TypeError):
    """A configuration value has the wrong type."""


class MissingPackageError(IncTorchError, ImportError):
    """A feature needs a package that is not installed."""


class NoCounterpartError(IncTorchError, ModuleNotFoundError):
    """Intel Neural Compressor has a module of that name, and this package has nothing that stands for it."""


class ModelError(IncTorchError, ValueError):
    """A model cannot carry what was asked of it."""


class LayerNotFoundError(ModelError, AttributeError):
    """A model has no module of the name asked for. Also an ``AttributeError``, which is what INC's callers catch."""


class HookOrderError(IncTorchError, RuntimeError):
    """A training hook was called at a moment when it would corrupt the run."""


class StateError(IncTorchError, RuntimeError):
    """A saved training state does not fit the run it is loaded into."""


class CopyError(IncTorchError, TypeError):
    """What belongs to one training cannot be copied or pickled. Also the ``TypeError`` that Python raises for such."""


class CalibrationError(IncTorchError, RuntimeError):
    """A quantizer was asked for a range that it never observed."""


class ArtifactError(IncTorchError, ValueError):
    """A saved model directory is missing, damaged or not ours."""


class UnwritableError(ArtifactError, OSError):
    """A file cannot be written: the disk is full, or nobody may write there. What was there before is as it was."""


class IncTorchWarning(UserWarning):
    """Base of every warning of the package."""


class LoopWarning(IncTorchWarning):
    """The training loop left something out; it was put right."""


class InexactWarning(IncTorchWarning):
    """The result differs from what was asked for."""


class GoalMissedError(IncTorchError, RuntimeError):
    """A compressed model lost more accuracy than was allowed, and ``on_miss="raise"`` was asked for.

    Args:
        message: What was missed.
        result: The `inc_torch.tuning.TuningResult` of the search; None if no trial was through.
    """

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class GoalMissedWarning(InexactWarning):
    """A compressed model lost more accuracy than was allowed; it was returned all the same."""


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return names for a message, the first few of many.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        "'a', 'b' and 1 more"
    """
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or an empty string.

    Example:
        >>> did_you_mean("target_sparsty", ["target_sparsity", "pattern"])
        " Did you mean 'target_sparsity'?"
    """
    lowered = {candidate.lower(): candidate for candidate in known}
    nearest = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return f" Did you mean {lowered[nearest[0]]!r}?" if nearest else ""
