"""Which Trainer it is that calls, and whether it trains in a way that can be compressed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from inc_torch.core.errors import ModelError

__all__ = ["calling_trainer", "check_layout", "path_in_train_call"]


def calling_trainer(callback: TrainerCallback) -> Any | None:  # noqa: ANN401  any class with the Trainer's interface
    """Return the Trainer that is just calling ``callback``, or None.

    A Trainer hands itself to no event. It is found among the callers, as the object whose ``callback_handler`` holds
    the callback.
    """
    for frame in _callers():
        caller = frame.f_locals.get("self")
        handler = getattr(caller, "callback_handler", None)
        if handler is not None and any(entry is callback for entry in getattr(handler, "callbacks", ())):
            return caller
    return None


def path_in_train_call(trainer: object) -> str | None:
    """The checkpoint that ``trainer.train(resume_from_checkpoint=...)`` goes on from, as resolved by the Trainer.

    It is not handed to any event either: it is read from the running call.
    """
    for frame in _callers():
        path = frame.f_locals.get("resume_from_checkpoint")
        if isinstance(path, str) and frame.f_locals.get("self") is trainer:
            return path
    return None


def check_layout(args: TrainingArguments, trainer: Any) -> None:  # noqa: ANN401  any class with the Trainer's interface
    """Refuse to train where the weights are out of reach.

    Raises:
        ModelError: DataParallel or DeepSpeed; what to use instead is named.
    """
    if args.n_gpu > 1:
        message = (
            f"The Trainer would wrap the model in DataParallel, as one process sees {args.n_gpu} GPUs: its copies lose "
            "what they observe. Start one process a GPU: torchrun --nproc_per_node "
            f"{args.n_gpu} script.py; or show one GPU to the process: CUDA_VISIBLE_DEVICES=0."
        )
        raise ModelError(message)
    if args.deepspeed is not None or getattr(trainer, "is_deepspeed_enabled", False):
        message = (
            "The Trainer uses DeepSpeed, which keeps weights and gradients in buffers of its own, where no mask "
            "reaches them. Use torchrun alone (DistributedDataParallel), or fsdp_config={'version': 2}."
        )
        raise ModelError(message)


def _callers() -> Iterator[FrameType]:
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back
