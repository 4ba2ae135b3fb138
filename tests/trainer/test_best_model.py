"""load_best_model_at_end never picks a model that is not yet compressed as asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import EarlyStoppingCallback

from inc_torch import INCCallback
from inc_torch.core.errors import InexactWarning
from tests.trainer.setup import Sentences, bert, pruning, quantization, trainer_of

WATCH = {
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "greater_is_better": True,
}


class Scores:
    """Stands in for compute_metrics: gives one score after the other."""

    def __init__(self, *scores: float) -> None:
        self.left = list(scores)

    def __call__(self, prediction) -> dict[str, float]:
        return {"score": self.left.pop(0)}


def train(folder: Path, scores: Scores, confs=None, **options):
    """Six steps; masks change at steps 1, 2 and 3, so that the model of step 4 is the first one that counts."""
    callback = INCCallback(confs or pruning(start_step=1, end_step=3))
    model = bert()
    more = options.pop("callbacks", [])
    settings = {"max_steps": 6, "compute_metrics": scores, **WATCH, **options}
    trainer = trainer_of(model, folder, [callback, *more], **settings)
    trainer.train()
    return model, trainer, callback


def test_the_best_of_the_finished_ones_wins(tmp_path):
    """Unfinished models score higher throughout."""
    _, trainer, callback = train(tmp_path, Scores(0.9, 0.95, 0.9, 0.5, 0.7, 0.6))
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-5")
    assert trainer.state.best_metric == 0.7
    assert callback.manager.report().sparsity == pytest.approx(0.5, abs=0.01)


def test_the_model_is_the_one_that_was_saved_as_best(tmp_path):
    """Its own masks apply to it, not those of later steps."""
    model, _, _ = train(
        tmp_path, Scores(0.9, 0.95, 0.9, 0.8, 0.7, 0.6), pruning(start_step=1, end_step=3, pattern="1x1")
    )
    saved = type(bert()).from_pretrained(tmp_path / "checkpoint-4").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[name]), name


def test_ranges_are_those_of_the_best_model_too(tmp_path):
    """int8 from the checkpoint alone is int8 from the run that loaded it at its end."""
    confs = [pruning(start_step=1, end_step=3), quantization()]
    model, _, _ = train(tmp_path / "a", Scores(0.1, 0.1, 0.1, 0.8, 0.7, 0.6), confs)
    short, _, _ = train(tmp_path / "b", Scores(0.1, 0.1, 0.1, 0.8), confs, max_steps=4, lr_scheduler_type="constant")
    again, _, _ = train(tmp_path / "c", Scores(0.1, 0.1, 0.1, 0.8, 0.7, 0.6), confs, lr_scheduler_type="constant")
    assert model.state_dict().keys() == again.state_dict().keys()
    for name, tensor in short.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_checkpoints_say_the_same(tmp_path):
    """What is written while pruning goes on names no best model that a later run could take."""
    train(tmp_path, Scores(0.9, 0.95, 0.9, 0.5, 0.7, 0.6))
    states = {
        int(path.parent.name.removeprefix("checkpoint-")): json.loads(path.read_text())
        for path in tmp_path.glob("checkpoint-*/trainer_state.json")
    }
    assert {step: state["best_metric"] for step, state in states.items() if step > 3} == {4: 0.5, 5: 0.7, 6: 0.7}


def test_early_stopping_waits_for_the_goal(tmp_path):
    """Scores fall while pruning goes on, which is no reason to stop."""
    _, trainer, callback = train(
        tmp_path, Scores(0.9, 0.8, 0.7, 0.5, 0.6, 0.4), callbacks=[EarlyStoppingCallback(early_stopping_patience=1)]
    )
    assert trainer.state.global_step == 6
    assert callback.manager.report().sparsity == pytest.approx(0.5, abs=0.01)


def test_without_an_evaluation_at_the_goal_the_last_model_stays_and_that_is_said(tmp_path):
    with pytest.warns(InexactWarning) as warned:
        _, trainer, _ = train(tmp_path, Scores(0.9, 0.95, 0.9), max_steps=3)
    assert trainer.state.best_model_checkpoint is None
    assert any("no evaluated checkpoint with the final sparsity" in str(entry.message) for entry in warned)


@pytest.mark.skipif(transformers.__version__.startswith("4."), reason="transformers 4.57 remembers no best there")
@pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning")  # of the Trainer, on fast disks
def test_saving_only_the_best(tmp_path):
    _, trainer, callback = train(
        tmp_path, Scores(0.9, 0.95, 0.9, 0.5, 0.7, 0.6), save_strategy="best", save_total_limit=1
    )
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-5")
    assert callback.manager.report().sparsity == pytest.approx(0.5, abs=0.01)


def test_without_pruning_every_evaluation_counts(tmp_path):
    _, trainer, _ = train(tmp_path, Scores(0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.0), quantization())
    assert trainer.state.best_global_step == 1
    assert trainer.predict(Sentences(8)).predictions.shape == (8, 2)
