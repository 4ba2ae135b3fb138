"""Distillation by a 1.X file, with a training function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from torch import nn

from inc_torch.callbacks import TrainingConfig
from inc_torch.conf import Conf
from inc_torch.conf.config import DistillationConf
from inc_torch.config import DistillationConfig
from inc_torch.core.errors import ConfigTypeError
from inc_torch.core.names import unwrapped
from inc_torch.experimental._settings import Setting
from inc_torch.experimental.common.criterion import Criterion
from inc_torch.experimental.component import Component
from inc_torch.model import Model
from inc_torch.training import CompressionManager

__all__ = ["Distillation"]


def _frequency(value: object, owner: str, name: str) -> int:
    if type(value) is not int or value < 1:
        message = f"{owner}.{name}={value!r}: expected a number of epochs, 1 or more."
        raise ConfigTypeError(message)
    return value


@final
class Distillation(Component):
    """Train a student with the help of a teacher.

    Args:
        conf_fname_or_obj: A path to YAML, a dict, a `inc_torch.conf.config.DistillationConf`, or None: the teacher's
            logits count for half of the loss.

    Attributes:
        eval_frequency: Epochs between evaluations; every one by default. The weights of the best of them are those that
            `fit` leaves in the model.
        best_score: Of these evaluations; None without any.
        criterion: A loss of `inc_torch.experimental.common.criterion`, one of the configurations in
            `inc_torch.config`, or ``{name: options}``, in place of the file's.

    Example:
        >>> from torch import optim
        >>> distiller = Distillation()
        >>> distiller.student_model, distiller.teacher_model = nn.Linear(4, 2), nn.Linear(4, 2)
        >>> def train(model):
        ...     optimizer = optim.SGD(model.parameters(), lr=0.1)
        ...     inputs, labels = torch.ones(8, 4), torch.zeros(8, dtype=torch.long)
        ...     distiller.on_epoch_begin(0)
        ...     output = model(inputs)
        ...     loss = nn.functional.cross_entropy(output, labels)
        ...     loss = distiller.on_after_compute_loss(inputs, output, loss)
        ...     loss.backward()
        ...     optimizer.step()
        ...     distiller.on_epoch_end()
        >>> distiller.train_func = train
        >>> distiller.fit() is distiller.student_model
        True

    Source: INC 2.6.1 ``experimental.Distillation``; differs in that it works without a file, and that the best weights
    are copied: INC's best model of ``pytorch_fx`` is the last one.
    """

    conf_class: ClassVar[type[Conf]] = DistillationConf
    eval_frequency = Setting("Epochs between evaluations.", _frequency)
    best_score = Setting("The best score of an evaluation so far.")
    student_model = Setting("The same as ``model``.", also="model")

    def __init__(self, conf_fname_or_obj: Any = None) -> None:  # noqa: ANN401
        super().__init__(conf_fname_or_obj)
        self._teacher: nn.Module | None = None
        self._best: Mapping[str, torch.Tensor] | None = None
        self.eval_frequency = 1

    @property
    def teacher_model(self) -> Any:  # noqa: ANN401
        """The teacher: a module, or a path to one that was saved. Not needed where its logits are given."""
        return self._teacher

    @teacher_model.setter
    def teacher_model(self, given: Any) -> None:  # noqa: ANN401
        self._teacher, self._manager = Model(given), None

    @property
    def train_cfg(self) -> Any:  # noqa: ANN401
        """The section ``train`` of the file."""
        return self._cfg.distillation.train

    @property
    def best_model(self) -> nn.Module | None:
        """The model once it has the best weights; None before."""
        return self._model if self._best is not None else None

    def fit(self) -> Any:  # noqa: ANN401  a module, whose own attributes are used
        """Evaluate, train, and go back to the weights of the best evaluation.

        Returns:
            The student, the same object that was assigned.

        Raises:
            ConfigError: There is no student, or nothing to train with.
        """
        self._best = self.best_score = None
        return super().fit()

    def _training_configs(self) -> Sequence[TrainingConfig]:
        config: DistillationConfig = self._config_of(DistillationConfig)
        given = self.criterion
        if isinstance(given, Criterion):
            given = given.loss_config
        if given is not None and not callable(given):
            config = config.replace(criterion=given)
        elif given is not None:
            message = (
                f"Distillation.criterion={given!r}: expected a distillation loss, such as "
                "common.criterion.PyTorchKnowledgeDistillationLoss(). The loss against labels is computed in your loop."
            )
            raise ConfigTypeError(message)
        return (config if self._teacher is None else config.replace(teacher_model=self._teacher),)

    def _train_section(self) -> Any:  # noqa: ANN401
        return self.train_cfg

    def _task_loss(self) -> Callable[[Any, Any], Any] | None:
        """That of the criterion against labels, if it has one."""
        hard = getattr(self.criterion, "student_targets_loss_cal", None)
        return hard if callable(hard) else None

    def _begun(self, manager: CompressionManager) -> None:
        evaluator = self._evaluator(self._required_model())
        if evaluator is None or not self._is_fitting:
            return
        if self.baseline_score is not None:
            self._remember(self.baseline_score)
        higher = self._cfg.tuning.accuracy_criterion.higher_is_better
        if evaluator.higher_is_better is not None:
            higher = evaluator.higher_is_better
        ended = 0

        def evaluate() -> None:
            nonlocal ended
            ended += 1
            if ended % self.eval_frequency:
                return
            score = evaluator.score(self._required_model())
            if self.best_score is None or (score > self.best_score if higher else score < self.best_score):
                self._remember(score)

        manager.register_hook("on_epoch_end", evaluate)

    def _remember(self, score: float) -> None:
        model = unwrapped(self._required_model())
        self.best_score = score
        self._best = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def _finish(self, model: nn.Module) -> None:
        if self._best is not None:
            unwrapped(model).load_state_dict(self._best)
