"""A training script for torchrun or python: distributed.py FOLDER MODEL LETTERS STEPS RESUME.

Trains on a global batch of 8 with any number of processes; each writes its weights and masks to FOLDER.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from inc_torch import INCCallback
from tests.trainer.setup import Sentences, bert, llama, techniques, trainer_of

torch.set_num_threads(1)
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def main() -> None:
    folder, kind, letters, steps, resume = sys.argv[1:]
    ranks, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    make = llama if kind == "llama" else lambda seed=0: bert(seed, **STILL)
    callback = INCCallback(techniques(letters, teacher=make(seed=1)))
    trainer = trainer_of(
        make(),
        folder,
        [callback],
        data=Sentences(is_text=kind == "llama"),
        eval_data=Sentences(16, seed=9, is_text=kind == "llama"),
        max_steps=int(steps),
        per_device_train_batch_size=8 // ranks,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=3,
        # The Trainer multiplies the loss by the number of ranks for models that divide it by all items; BERT does not.
        average_tokens_across_devices=kind == "llama",
        ddp_backend="gloo" if ranks > 1 else None,
        ddp_find_unused_parameters=False if ranks > 1 else None,
    )
    trainer.train(resume_from_checkpoint=None if resume == "no" else resume)
    state = callback.manager.state_dict()["callbacks"]
    torch.save(
        {"model": trainer.model.state_dict(), "callbacks": state, "evaluation": trainer.evaluate()["eval_loss"]},
        Path(folder) / f"rank-{rank}.pt",
    )


main()
