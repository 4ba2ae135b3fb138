"""The section ``train``, which stands in those of techniques."""

from __future__ import annotations

from typing import Final

from inc_torch.conf._data import DATALOADER, POSTPROCESS
from inc_torch.conf._schema import Alternatives, Field, Named, Section
from inc_torch.conf._words import all_or_some, as_it_is, count
from inc_torch.config._checks import Place, choice, optional, text

__all__ = ["TRAIN"]

_OPTIMIZERS: Final = ("SGD", "Adam", "AdamW")
_KERAS: Final = "torch's cross entropy takes logits"


def _reduction(value: object, place: Place) -> str:
    """What torch calls it; "None", as INC's own templates have it, cannot be trained with."""
    word = text(value, place)
    return "mean" if word == "None" else choice(("mean", "sum", "none"))(word, place)


def _said_of_reduction(value: object) -> str | None:
    return "counts as 'mean': a loss for each sample cannot be trained with." if value == "None" else None


CRITERION = Alternatives(
    {
        "CrossEntropyLoss": Section(
            {
                "reduction": Field(_reduction, "mean", remark=_said_of_reduction),
                "from_logits": Field(as_it_is, idle=_KERAS),
            },
            present=True,
        ),
        "KnowledgeDistillationLoss": Section(
            dict.fromkeys(("temperature", "loss_types", "loss_weights"), Field(as_it_is)), present=True
        ),
        "IntermediateLayersKnowledgeDistillationLoss": Section(
            dict.fromkeys(("layer_mappings", "loss_types", "loss_weights", "add_origin_loss"), Field(as_it_is)),
            required=("layer_mappings",),
            present=True,
        ),
        "SelfKnowledgeDistillationLoss": Section(
            dict.fromkeys(
                ("layer_mappings", "temperature", "loss_types", "loss_weights", "add_origin_loss"), Field(as_it_is)
            ),
            required=("layer_mappings",),
            present=True,
        ),
    }
)

TRAIN = Section(
    {
        "criterion": CRITERION,
        "optimizer": Named(most=1, names=_OPTIMIZERS),
        "dataloader": DATALOADER,
        "epoch": Field(count, 1),
        "start_epoch": Field(count, 0),
        "end_epoch": Field(optional(count)),
        "iteration": Field(optional(all_or_some)),
        "frequency": Field(as_it_is, idle="nothing asks for it, in Neural Compressor neither"),
        "execution_mode": Field(as_it_is, idle="PyTorch has one mode"),
        "postprocess": POSTPROCESS,
        "hostfile": Field(as_it_is, idle="start several processes by torchrun"),
    }
)
"""What a built-in training loop needs; a loop of the user's needs none of it."""
