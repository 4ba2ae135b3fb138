"""The loops of the matrix: each trains a model, leaves a checkpoint half way, and goes on from one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from inc_torch import CompressionManager, INCCallback, prepare_compression
from tests.architectures.compress import MATRICES
from tests.matrix.subjects import STEPS, Subject
from tests.matrix.techniques import Run, confs_of

__all__ = ["LOOPS"]

HALF = STEPS // 2
RATE = 1e-3
OTHER_SEED, SEED = 99, 11


def hand_written(subject: Subject, technique: str, folder: Path, *, resume: bool) -> Run:
    """A loop that calls the hooks, and keeps the three states in a file."""
    model, batches = subject.build(), subject.batches()
    manager = prepare_compression(model, confs_of(technique, subject))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    file = folder / "checkpoint.pt"
    torch.manual_seed(OTHER_SEED if resume else SEED)
    if resume:
        states = torch.load(file, weights_only=True)
        for part, state in zip((model, optimizer, manager), states, strict=True):
            part.load_state_dict(state)
    with watched(model) as dtypes:
        distances = []
        model.train()
        manager.on_train_begin()
        for index, batch in list(enumerate(batches))[HALF if resume else 0 :]:
            distances += _step(manager, subject, batch, index, optimizer)
            if index + 1 == HALF:
                torch.save([part.state_dict() for part in (model, optimizer, manager)], file)
        manager.on_train_end()
    return Run(model, manager.report(), distances, dtypes)


def with_accelerate(subject: Subject, technique: str, folder: Path, *, resume: bool) -> Run:
    """The same with what accelerate prepares, and its checkpoints."""
    accelerator = Accelerator(cpu=True)
    try:
        model = subject.build()
        manager = prepare_compression(model, confs_of(technique, subject))
        accelerator.register_for_checkpointing(manager)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader_of(subject))
        torch.manual_seed(OTHER_SEED if resume else SEED)
        if resume:
            accelerator.load_state(str(folder / "checkpoint"))
            loader = accelerator.skip_first_batches(loader, HALF)
        with watched(model) as dtypes:
            distances = []
            prepared.train()
            manager.on_train_begin()
            for index, batch in enumerate(loader, HALF if resume else 0):
                distances += _step(manager, subject, batch, index, optimizer, accelerator, prepared)
                if index + 1 == HALF:
                    accelerator.save_state(str(folder / "checkpoint"))
            manager.on_train_end()
        return Run(accelerator.unwrap_model(prepared), manager.report(), distances, dtypes)
    finally:  # accelerators share one state in a process
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def with_trainer(subject: Subject, technique: str, folder: Path, *, resume: bool) -> Run:
    """transformers' Trainer and one callback."""
    torch.manual_seed(OTHER_SEED if resume else SEED)
    callback = INCCallback(confs_of(technique, subject))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=HALF,
        logging_steps=1,
        per_device_train_batch_size=1,
        learning_rate=RATE,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        subject.build(),
        arguments,
        train_dataset=subject.batches(),
        data_collator=_only,
        compute_loss_func=subject.loss_function(),
        callbacks=[callback],
    )
    with watched(trainer.model) as dtypes:
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{HALF}") if resume else None)
    logged = [entry["distillation_loss"] for entry in trainer.state.log_history if "distillation_loss" in entry]
    return Run(trainer.model, callback.manager.report(), logged, dtypes)


LOOPS = {"hand-written": hand_written, "Trainer": with_trainer, "accelerate": with_accelerate}


def _step(
    manager: CompressionManager,
    subject: Subject,
    batch: Any,
    index: int,
    optimizer: Any,
    accelerator: Accelerator | None = None,
    prepared: nn.Module | None = None,
) -> list[float]:
    """One step; how far the teacher was, if there is one."""
    manager.on_step_begin(index)
    inputs, output, loss = subject.forward(prepared or manager.model, batch)
    loss = manager.on_after_compute_loss(inputs, output, loss)
    accelerator.backward(loss) if accelerator else loss.backward()
    manager.on_before_optimizer_step()
    optimizer.step()
    manager.on_after_optimizer_step()
    optimizer.zero_grad()
    manager.on_step_end()
    metrics = manager.metrics()
    return [metrics["distillation_loss"]] if "distillation_loss" in metrics else []


def loader_of(subject: Subject) -> DataLoader:
    """With a generator of its own: else each start of it draws a number from the one that dropout uses."""
    generator = torch.Generator().manual_seed(1)
    return DataLoader(subject.batches(), batch_size=1, collate_fn=_only, generator=generator)


def _only(batches: list[Any]) -> Any:
    """Batches come ready made."""
    (batch,) = batches
    return batch


@contextmanager
def watched(model: nn.Module) -> Iterator[set[torch.dtype]]:
    """In which dtypes modules with a matrix answer in the meantime."""
    dtypes: set[torch.dtype] = set()

    def note(_: nn.Module, __: Any, output: torch.Tensor) -> None:
        dtypes.add(output.dtype)

    hooks = [module.register_forward_hook(note) for module in model.modules() if type(module) in MATRICES]
    try:
        yield dtypes
    finally:
        for hook in hooks:
            hook.remove()
