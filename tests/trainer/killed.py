"""A training script that is killed: python killed.py FOLDER LETTERS KILL_AT RESTORE_CALLBACKS RESUME_FROM.

KILL_AT is the optimizer step at whose begin the process kills itself, -1 for never; RESUME_FROM is "no", "last", or a
checkpoint. At the end the weights and the log lie in FOLDER.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from inc_torch import INCCallback
from tests.trainer.setup import Sentences, bert, techniques, trainer_of

torch.set_num_threads(1)


class Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:  # in the middle of an accumulated batch
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    folder, letters, kill_at, restore, resume = sys.argv[1:]
    callback = INCCallback(techniques(letters))
    trainer = trainer_of(
        bert(),
        folder,
        [EarlyStoppingCallback(50), callback, Kill(int(kill_at))],
        data=Sentences(96),
        max_steps=12,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=2,
        eval_steps=2,
        logging_steps=1,
        load_best_model_at_end=True,
        restore_callback_states_from_checkpoint=restore == "True",
    )
    trainer.train(resume_from_checkpoint={"no": None, "last": True}.get(resume, resume))
    state = {**trainer.model.state_dict(), "ours": callback.manager.state_dict()}
    torch.save(state, Path(folder) / "final.pt")
    of_this_call = ("runtime", "per_second", "train_loss")  # the Trainer's average over the steps since the cut
    log = [
        {key: value for key, value in entry.items() if not key.endswith(of_this_call)}
        for entry in trainer.state.log_history
    ]
    (Path(folder) / "log.json").write_text(json.dumps(log))


main()
