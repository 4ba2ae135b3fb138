"""Models whose files have other names than they: the Trainer loads nothing of them, INCCallback does."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from inc_torch import INCCallback
from tests.architectures.zoo import ZOO
from tests.trainer.setup import pruning, trainer_of

pytestmark = pytest.mark.skipif(transformers.__version__.startswith("4."), reason="names are the same in both")

STEPS, HALF = 6, 3


def train(name, folder, resume=None, **options):
    architecture = ZOO[name]
    callback = INCCallback(pruning(start_step=0, end_step=2, pattern="1x1"))
    settings = {
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": HALF,
        "per_device_train_batch_size": 1,
        "remove_unused_columns": False,
        "data": architecture.training_batches() * HALF,
        "eval_data": architecture.training_batches()[:1],
        "data_collator": lambda batches: batches[0],
        **options,
    }
    trainer = trainer_of(architecture.build(), folder, [callback], **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_a_resumed_run_ends_as_the_uncut_one(name, tmp_path, caplog):
    whole = train(name, tmp_path)
    with caplog.at_level(logging.WARNING, "inc_torch.huggingface"):
        resumed = train(name, tmp_path, resume=str(tmp_path / f"checkpoint-{HALF}"))
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], tensor), key
    assert "other names than those of the model" in caplog.text


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    scores = iter([0.9, 0.1])
    trainer = train(
        "vit",
        tmp_path,
        eval_strategy="steps",
        eval_steps=HALF,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        compute_metrics=lambda _: {"score": next(scores)},
    )
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{HALF}")
    best = type(trainer.model).from_pretrained(tmp_path / f"checkpoint-{HALF}").state_dict()
    for key, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, best[key]), key


def test_where_names_agree_nothing_is_loaded_twice(tmp_path, monkeypatch):
    train("bert", tmp_path)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)
    train("bert", tmp_path, resume=str(tmp_path / f"checkpoint-{HALF}"))
