"""The sections ``dataloader`` and ``postprocess``, which stand in others."""

from __future__ import annotations

from inc_torch.conf._schema import Field, Named, Section
from inc_torch.conf._words import as_it_is, positive
from inc_torch.config._checks import choice, flag

__all__ = ["DATALOADER", "POSTPROCESS"]

_IN_EVALUATION = "it belongs under 'evaluation.performance', and a loader takes what it gets"

DATALOADER = Section(
    {
        "batch_size": Field(positive),
        "last_batch": Field(choice(("rollover", "discard")), "rollover"),
        "shuffle": Field(flag, default=False),
        "distributed": Field(flag, default=False),
        "dataset": Named(most=1),
        "transform": Named(),
        "filter": Named(most=1),
        "warmup": Field(as_it_is, idle=_IN_EVALUATION),
        "iteration": Field(as_it_is, idle=_IN_EVALUATION),
    }
)
POSTPROCESS = Section({"transform": Named()})
