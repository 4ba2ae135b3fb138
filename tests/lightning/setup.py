"""Small LightningModules, their data, a Trainer for them, and the loop by hand that a Trainer has to equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning", reason="Lightning is in the extra 'trainers'")

from lightning.pytorch import Callback as LightningCallback
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from inc_torch import (
    Callback,
    CompressionManager,
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
)
from inc_torch.core.hooks import HOOKS

NOISE = [
    # torch's warning about a class that Lightning's _pytree.py asks for
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"),
    # Lightning's hints: the modules here can be evaluated and often are not, and their data is small and in memory
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning"),
]
FEATURES, CLASSES, BATCH = 12, 4, 4
BATCHES = 6
"""In an epoch."""


def data(count: int = BATCHES * BATCH, seed: int = 5, *, shuffle: bool = False) -> DataLoader:
    """Random rows; the order comes from a generator of its own, so that torch's is the model's alone."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, FEATURES, generator=generator)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return DataLoader(TensorDataset(rows, labels), BATCH, shuffle=shuffle, generator=torch.Generator().manual_seed(1))


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(FEATURES, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES)
    )


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.02)


class Classifier(LightningModule):
    """The usual kind: a network, a loss, an optimizer."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net or network()
        self.losses: list[float] = []

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.net(rows)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        rows, labels = batch
        loss = F.cross_entropy(self(rows), labels)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        rows, labels = batch
        self.log("loss", F.cross_entropy(self(rows), labels))

    def configure_optimizers(self) -> Any:
        return optimizer_of(self)


class Manual(Classifier):
    """The same under manual optimization; steps after every second batch."""

    def __init__(self, accumulate: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.accumulate = accumulate

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx) / self.accumulate
        self.manual_backward(loss)
        if (batch_idx + 1) % self.accumulate == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()


class Events(Callback):
    """Writes down which hooks were called, and the arguments of some."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.arguments: dict[str, list[Any]] = {name: [] for name in HOOKS}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def count(self, name: str) -> int:
        return self.names.count(name)


def _recording(name: str) -> Callable[..., Any]:
    parameters = {"on_epoch_begin": 1, "on_step_begin": 1, "on_train_begin": 1, "on_after_compute_loss": 4}

    def nothing(self: Events) -> None:
        self.names.append(name)

    def one(self: Events, value: object = None) -> None:
        self.names.append(name)
        self.arguments[name].append(value)

    def loss(
        self: Events, input: object, student_output: object, student_loss: Any, teacher_output: object = None
    ) -> Any:
        self.names.append(name)
        self.arguments[name].append((input, student_output, student_loss))
        return student_loss

    return {0: nothing, 1: one, 4: loss}[parameters.get(name, 0)]


for _name in HOOKS:
    setattr(Events, _name, _recording(_name))


def pruning(**options: Any) -> WeightPruningConfig:
    """Half of the 4x1 blocks by step 3."""
    settings = {"target_sparsity": 0.5, "pattern": "4x1", "start_step": 1, "end_step": 3}
    return WeightPruningConfig(**{**settings, **options})


def distillation(teacher: nn.Module | None) -> DistillationConfig:
    return DistillationConfig(teacher, KnowledgeDistillationLossConfig(2.0, ["CE", "KL"], [0.5, 0.5]))


def techniques(letters: str) -> list[Any]:
    """Configs in the order of ``letters``: p prunes, q quantizes, d distils."""
    made = {
        "p": pruning,
        "q": QuantizationAwareTrainingConfig,
        "d": lambda: distillation(network(seed=1)),
    }
    return [made[letter]() for letter in letters]


def trainer_of(folder: Any, *callbacks: LightningCallback, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "default_root_dir": str(folder),
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
    }
    return Trainer(**{**settings, **options}, callbacks=list(callbacks))


def train_by_hand(
    manager: CompressionManager,
    module: Classifier,
    loader: DataLoader,
    *,
    epochs: int = 2,
    accumulate: int = 1,
    clip: float | None = None,
    is_bf16: bool = False,
) -> None:
    """The loop of `inc_torch.core.hooks`, with what the Trainer is told to do."""
    optimizer = optimizer_of(module)
    manager.on_train_begin(loader)
    for epoch in range(epochs):
        manager.on_epoch_begin(epoch)
        for index, (rows, labels) in enumerate(loader):
            manager.on_step_begin(index)
            with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16, cache_enabled=False):
                output = module(rows)
                loss = manager.on_after_compute_loss(rows, output, F.cross_entropy(output, labels))
            (loss / accumulate).backward()
            if (index + 1) % accumulate == 0 or index + 1 == len(loader):
                if clip is not None:
                    nn.utils.clip_grad_norm_(module.parameters(), clip)
                manager.on_before_optimizer_step()
                optimizer.step()
                manager.on_after_optimizer_step()
                optimizer.zero_grad()
            manager.on_step_end()
        manager.on_epoch_end()
    manager.on_train_end()


def assert_equal_weights(left: nn.Module, right: nn.Module) -> None:
    """The same keys, and tensors that are the same bit for bit."""
    ours, theirs = left.state_dict(), right.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), f"{name} differs"
