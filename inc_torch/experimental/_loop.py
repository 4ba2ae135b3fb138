"""The training loop that a section ``train`` of a file stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import nn

from inc_torch.core.batches import on_device, run, split
from inc_torch.core.errors import ConfigError
from inc_torch.core.evaluation import prediction_of
from inc_torch.core.progress import with_progress
from inc_torch.experimental._hooks import Hooks
from inc_torch.experimental.common.optimizer import optimizer_of

__all__ = ["built_in_training"]

_ALL: Final = -1


def built_in_training(
    owner: str,
    section: Any,  # noqa: ANN401  ``train``, as `inc_torch.conf` reads it
    hooks: Hooks,
    loader: Iterable[Any],
    *,
    criterion: Callable[[Any, Any], torch.Tensor] | None = None,
    optimizer: object = None,
    device: str = "cpu",
) -> Callable[[nn.Module], None]:
    """Return a function that trains the model that it is given as the section says.

    Args:
        owner: Whose loop it is, for messages.
        section: The epochs, batches, optimizer and criterion.
        hooks: Called in the loop.
        loader: ``(input, label)`` batches.
        criterion: The loss of the task; by default cross entropy with the reduction that the section names.
        optimizer: A function that makes one of parameters, in place of the section's.
        device: ``"cpu"`` or ``"gpu"``, where the model is trained.

    Raises:
        ConfigError: The device is not there.
    """
    if device == "gpu" and not torch.cuda.is_available():
        message = f"{owner}: device='gpu' needs CUDA, and there is none. Leave it out to train on the CPU."
        raise ConfigError(message)
    loss_of = criterion or _task_loss(section)
    make_optimizer = optimizer if callable(optimizer) else optimizer_of(section.optimizer)
    first = section.start_epoch
    end = first + section.epoch if section.end_epoch is None else section.end_epoch
    most = _ALL if section.iteration is None else section.iteration

    def train(model: nn.Module) -> None:
        if device == "gpu":
            model.cuda()
        place = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        stepping = make_optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
        model.train()
        hooks.on_train_begin(loader)
        for epoch in range(first, end):
            hooks.on_epoch_begin(epoch)
            for index, batch in enumerate(with_progress(loader, f"Epoch {epoch}")):
                if index == most:
                    break
                hooks.on_step_begin(index)
                inputs, label = split(batch, model)
                output = run(model, inputs)
                loss = loss_of(prediction_of(output), on_device(_labelled(owner, label), place))
                stepping.zero_grad()
                mixed = hooks.on_after_compute_loss(batch, output, loss)
                torch.as_tensor(mixed).backward()  # type: ignore[no-untyped-call]
                hooks.on_before_optimizer_step()
                stepping.step()
                hooks.on_after_optimizer_step()
                hooks.on_step_end()
            hooks.on_epoch_end()
        hooks.on_train_end()

    return train


def _task_loss(section: Any) -> nn.Module:  # noqa: ANN401
    """The loss against labels; that of the teacher comes in the hook."""
    criterion = section.criterion or {}
    if "CrossEntropyLoss" in criterion:
        return nn.CrossEntropyLoss(reduction=criterion["CrossEntropyLoss"].reduction)
    types = criterion["KnowledgeDistillationLoss"].loss_types if "KnowledgeDistillationLoss" in criterion else None
    return nn.MSELoss() if types is not None and types[0] == "MSE" else nn.CrossEntropyLoss()


def _labelled(owner: str, label: object) -> object:
    if label is None:
        message = f"{owner}: a batch of the training loader has no label: expected (input, label), or a mapping."
        raise ConfigError(message)
    return label
