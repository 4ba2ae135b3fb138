"""ModelCheckpoint and the checkpoints of a model that is not yet compressed as asked."""

from __future__ import annotations

from typing import Any, final

import torch

from inc_torch.core.errors import InexactWarning
from inc_torch.core.user_warning import warn_user

__all__ = ["Rivals"]


@final
class Rivals:
    """Keeps checkpoints that are not compressed as asked from being the best of a run.

    ModelCheckpoint ranks by the scores in its ``best_k_models``. Those that were saved too early get the worst score
    there before it ranks the next one, so that every later checkpoint takes the place of one of them, by
    ModelCheckpoint's own rules, files included.

    Attributes:
        is_over: Whether the goal was reached when ModelCheckpoint had its last say.
    """

    def __init__(self) -> None:
        self.is_over = False

    def update(self, trainer: Any, *, has_reached_goal: bool) -> None:
        """Rank what is there; to be called at the end of each batch, before ModelCheckpoint may save."""
        if not self.is_over:
            for checkpoint in _ranking(trainer):
                worst = float("inf") if checkpoint.mode == "min" else float("-inf")
                for path, score in checkpoint.best_k_models.items():
                    checkpoint.best_k_models[path] = torch.tensor(worst, device=score.device)
        self.is_over = has_reached_goal

    def warn_of_early_best(self, trainer: Any) -> None:
        """Say that the best checkpoint of the run that ends is one of those, as there is no other."""
        early = [
            path
            for checkpoint in _ranking(trainer)
            for path, score in checkpoint.best_k_models.items()
            if path == checkpoint.best_model_path and (score.isinf() or not self.is_over)
        ]
        if early:
            message = (
                f"The best checkpoint {early[0]!r} was saved before the final sparsity was reached, as ModelCheckpoint "
                "saved none later. Let the pruning end (end_step) before the last validation."
            )
            warn_user(message, InexactWarning)


def _ranking(trainer: Any) -> list[Any]:
    """Every ModelCheckpoint that compares."""
    return [
        checkpoint
        for checkpoint in trainer.checkpoint_callbacks
        if getattr(checkpoint, "monitor", None) is not None and hasattr(checkpoint, "best_k_models")
    ]
