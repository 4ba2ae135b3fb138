"""The section ``distillation``, and the configuration that says the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from inc_torch.conf._schema import Section
from inc_torch.conf._training import TRAIN
from inc_torch.config import DistillationConfig

__all__ = ["DISTILLATION", "distillation_config", "teaching_criterion"]

_DEFAULT: Final[Mapping[str, object]] = {"KnowledgeDistillationLoss": {"loss_types": ["CE", "KL"]}}
"""Of a file or object that names none; that of `inc_torch.DistillationConfig` is another."""
_NO_TEACHER: Final = "CrossEntropyLoss"

DISTILLATION = Section({"train": TRAIN})


def teaching_criterion(train: Any) -> Mapping[str, object]:  # noqa: ANN401  the section `TRAIN`
    """The criterion that asks a teacher, as `inc_torch.DistillationConfig` takes it."""
    given = None if train is None else train.criterion
    if given is None or _NO_TEACHER in given:
        return _DEFAULT
    return {
        name: {key: value for key, value in options.items() if value is not None} for name, options in given.items()
    }


def distillation_config(content: Any) -> DistillationConfig:  # noqa: ANN401  a whole file
    """The configuration that says the same; the teacher is to be given to it."""
    criterion: Any = teaching_criterion(content.distillation.train)
    return DistillationConfig(criterion=criterion)
