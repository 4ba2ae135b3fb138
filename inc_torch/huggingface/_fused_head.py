"""The output layer of a language model that TRL computes past the module."""

from __future__ import annotations

from typing import Any, Self, final

import torch
import torch.nn.functional as F
from torch import nn

from inc_torch.core.names import unwrapped

__all__ = ["IGNORED", "FusedHead"]

SWITCH = "fused_lm_head"
IGNORED = -100
"""The label that transformers' losses leave out."""


@final
class FusedHead:
    """Lets the model compute its logits where TRL's trainers ask for log-probabilities alone.

    TRL multiplies hidden states with the weight of the output layer, in tiles and without calling it: the layer is
    then not rounded to int8 in training, its input is never observed, an int8 layer cannot be used at all, and there
    are no logits to distil. With this, ``model(..., labels=labels, fused_lm_head=True)`` runs the model as it is and
    derives what TRL reads from its logits. That costs the memory of the logits, ``[batch, position, vocabulary]``.

    Attributes:
        last_output: What the model returned last, with logits.
    """

    def __init__(self, model: nn.Module) -> None:
        self.last_output: Any = None
        self._labels: torch.Tensor | None = None
        self._is_shifted = True
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after)
        model.__dict__["_inc_torch_fused_head"] = self

    @classmethod
    def of(cls, trainer: Any) -> Self | None:  # noqa: ANN401  any class with the Trainer's interface
        """Return that of the trainer's model, made if needed; None where the trainer is none of TRL's."""
        if not any(kind.__module__.partition(".")[0] == "trl" for kind in type(trainer).__mro__):
            return None
        model = unwrapped(trainer.model)
        present: Self | None = model.__dict__.get("_inc_torch_fused_head")
        return present or cls(model)

    def _before(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        self._labels = None
        if not kwargs.get(SWITCH):
            return None
        kept = {name: value for name, value in kwargs.items() if name not in (SWITCH, "labels", "shift_labels")}
        shifted = kwargs.get("shift_labels")
        self._is_shifted = shifted is not None
        self._labels = shifted if self._is_shifted else kwargs["labels"]
        return args, kept

    def _after(self, module: nn.Module, args: tuple[object, ...], output: Any) -> Any:  # noqa: ANN401  a ModelOutput
        if self._labels is None:
            return None
        logits = output.logits if self._is_shifted else output.logits[:, :-1]
        labels = self._labels if self._is_shifted else self._labels[:, 1:]
        self._labels = None
        mask = labels != IGNORED
        log_probabilities = F.log_softmax(logits.float(), dim=-1)
        chosen = log_probabilities.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
            is_top1 = logits.argmax(-1) == labels
        output.log_probs = chosen.masked_fill(~mask, 0.0)
        output.entropy = entropy.masked_fill(~mask, 0.0)
        output.is_top1 = is_top1 & mask
        output.label_mask = mask
        self.last_output = output
        return output
