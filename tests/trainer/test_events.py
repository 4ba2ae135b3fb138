"""What the Trainer's events become, row by row of the table in INCCallback."""

from __future__ import annotations

import pytest
from transformers import TrainerCallback

from inc_torch import INCCallback
from inc_torch.core.callback import Callback
from inc_torch.core.hooks import HOOKS
from tests.trainer.setup import bert, distillation, pruning, quantization, trainer_of


class Record(Callback):
    """Writes down the hooks with their arguments, and the loss as it was handed in."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_after_compute_loss(self, input, student_output, student_loss, teacher_output=None):
        self.seen.append("on_after_compute_loss")
        return student_loss


def _recorder(name: str):
    def hook(self, *arguments) -> None:
        shown = [str(argument) for argument in arguments if isinstance(argument, int)]
        self.seen.append(f"{name}({', '.join(shown)})")

    return hook


for _name in HOOKS:
    if _name != "on_after_compute_loss":
        setattr(Record, _name, _recorder(_name))
# Hooks with arguments are checked by name and number of arguments, which *arguments satisfies.


def hooks_of(folder, **options) -> list[str]:
    record = Record()
    trainer = trainer_of(bert(), folder, [INCCallback(record)], **options)
    trainer.train()
    return record.seen


BATCH = ["on_after_compute_loss"]
UPDATE = ["on_before_optimizer_step()", "on_after_optimizer_step()", "on_step_end()"]


def test_a_step_is_an_optimizer_step(tmp_path):
    assert hooks_of(tmp_path, max_steps=2) == [
        "on_train_begin()",
        "on_epoch_begin(0)",
        "on_step_begin(0)",
        *BATCH,
        *UPDATE,
        "on_step_begin(1)",
        *BATCH,
        *UPDATE,
        "on_epoch_end()",
        "on_train_end()",
    ]


def test_accumulated_batches_are_one_step(tmp_path):
    seen = hooks_of(tmp_path, max_steps=1, gradient_accumulation_steps=3)
    assert seen[2:7] == ["on_step_begin(0)", *BATCH * 3, UPDATE[0]]


def test_evaluations_are_announced_and_bring_no_loss(tmp_path):
    seen = hooks_of(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1)
    step = ["on_step_begin(0)", *BATCH, *UPDATE, "on_before_eval()", "on_after_eval()"]
    assert seen[2 : 2 + len(step)] == step


def test_evaluations_at_the_end_of_an_epoch_and_before_training(tmp_path):
    seen = hooks_of(tmp_path, max_steps=-1, num_train_epochs=2, eval_strategy="epoch", eval_on_start=True)
    assert seen[:3] == ["on_train_begin()", "on_before_eval()", "on_after_eval()"]
    assert [hook for hook in seen if "epoch" in hook or "eval" in hook][2:] == [
        *("on_epoch_begin(0)", "on_epoch_end()", "on_before_eval()", "on_after_eval()"),
        *("on_epoch_begin(1)", "on_epoch_end()", "on_before_eval()", "on_after_eval()"),
    ]


def test_an_evaluation_after_training_is_none_of_the_run(tmp_path):
    record = Record()
    trainer = trainer_of(bert(), tmp_path, [INCCallback(record)], max_steps=1)
    trainer.train()
    trainer.evaluate()
    assert record.seen[-2:] == ["on_train_end()", "on_after_eval()"]


def test_gradients_are_clipped_when_scores_are_taken(tmp_path):
    norms = []

    class Norm(Callback):
        def on_before_optimizer_step(self) -> None:
            squares = [p.grad.square().sum() for p in self.model.parameters() if p.grad is not None]
            norms.append(float(sum(squares).sqrt()))

    trainer_of(bert(), tmp_path, [INCCallback(Norm())], max_steps=2, max_grad_norm=1e-3).train()
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-2)


def test_what_is_logged_stands_in_the_log_history_and_reaches_other_callbacks(tmp_path):
    reported = []

    class Board(TrainerCallback):
        """Where TensorBoard and W&B stand: before the user's callbacks."""

        def on_log(self, args, state, control, logs=None, **kwargs):
            reported.append(dict(logs))

    callbacks = [Board(), INCCallback([pruning(), distillation(bert(seed=1))])]
    trainer = trainer_of(bert(), tmp_path, callbacks, logging_steps=4)
    trainer.train()
    ours = [entry for entry in trainer.state.log_history if "sparsity" in entry]
    assert [entry["step"] for entry in ours] == [4, 8]
    assert ours[-1]["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert 0 < ours[-1]["distillation_loss"] < 10
    assert [entry["sparsity"] for entry in reported if "sparsity" in entry] == [entry["sparsity"] for entry in ours]


def test_tensorboard_shows_them(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = tmp_path / "board"
    confs = [pruning(), quantization(), distillation(bert(seed=1))]
    options = {"report_to": ["tensorboard"], "logging_steps": 4}
    trainer = trainer_of(bert(), tmp_path, [INCCallback(confs)], **options)
    writer = next(
        entry for entry in trainer.callback_handler.callbacks if type(entry).__name__ == "TensorBoardCallback"
    )
    writer.logging_dir = str(board)
    trainer.train()
    events = EventAccumulator(str(board))
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/sparsity", "train/distillation_loss", "train/fake_quant", "train/loss"} <= set(scalars)
    assert events.Scalars("train/sparsity")[-1].value == pytest.approx(0.5, abs=0.01)
    assert [entry.value for entry in events.Scalars("train/fake_quant")] == [1.0, 1.0]


def test_the_trainer_gets_its_own_compute_loss_back(tmp_path):
    trainer = trainer_of(bert(), tmp_path, [INCCallback(distillation(bert(seed=1)))], max_steps=1)
    trainer.train()
    assert "compute_loss" not in vars(trainer)
