"""Small models, their data, and training loops that leave out the hooks they are told to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from inc_torch import (
    CompressionManager,
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
)
from inc_torch.core.hooks import HOOKS

ALL_HOOKS = frozenset(HOOKS) - {"on_before_eval", "on_after_eval"}
"""Hooks that a training loop calls; those around evaluations are apart."""

FEATURES = 12


def mlp(seed: int = 0) -> nn.Sequential:
    """Two layers to prune, dropout, and a head."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(FEATURES, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)
    )


class ConvNet(nn.Module):
    """Convolution, batch norm, ReLU, and two linear layers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.1)
        self.hidden = nn.Linear(8 * 4, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2).flatten(1)
        return self.head(F.relu(self.hidden(self.dropout(x))))


def rows(count: int, size: int = 6) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches for `mlp`, the same each time."""
    return _batches(count, (size, FEATURES))


def images(count: int, size: int = 4) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches for `ConvNet`, the same each time."""
    return _batches(count, (size, 3, 4, 4))


def _batches(count: int, shape: tuple[int, ...]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    for _ in range(count):
        yield torch.randn(*shape, generator=generator), torch.randint(0, 4, shape[:1], generator=generator)


def pruning(**options: Any) -> WeightPruningConfig:
    """Half of the units by the end of step 2; mask updates at steps 0, 1 and 2."""
    settings = {"target_sparsity": 0.5, "start_step": 0, "end_step": 2, "sparsity_decay_type": "linear"}
    return WeightPruningConfig(**{**settings, **options})


def distillation(teacher: nn.Module | None) -> DistillationConfig:
    return DistillationConfig(teacher, KnowledgeDistillationLossConfig(2.0, ["CE", "KL"], [0.5, 0.5]))


def confs_of(letters: str, teacher: nn.Module) -> list[Any]:
    """Configs in the order of ``letters``: p prunes, q quantizes, d distils."""
    made = {"p": pruning(), "q": QuantizationAwareTrainingConfig(), "d": distillation(teacher)}
    return [made[letter] for letter in letters]


def train(
    manager: CompressionManager,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    *,
    hooks: Collection[str] = ALL_HOOKS,
    accumulate: int = 1,
    step: Callable[[], object] | None = None,
) -> None:
    """The loop of the README, calling only ``hooks``, with the RNG set to the same state at its start."""
    hook = _Hooks(manager, hooks)
    torch.manual_seed(11)
    hook.on_train_begin()
    hook.on_epoch_begin(0)
    for index, (inputs, labels) in enumerate(batches):
        hook.on_step_begin(index)
        output = manager.model(inputs)
        loss = F.cross_entropy(output, labels) / accumulate
        if "on_after_compute_loss" in hooks:
            loss = manager.on_after_compute_loss(inputs, output, loss)
        loss.backward()
        if (index + 1) % accumulate == 0:
            hook.on_before_optimizer_step()
            (step or optimizer.step)()
            hook.on_after_optimizer_step()
            optimizer.zero_grad()
        hook.on_step_end()
    hook.on_epoch_end()
    hook.on_train_end()


class _Hooks:
    def __init__(self, manager: CompressionManager, allowed: Collection[str]) -> None:
        self._manager, self._allowed = manager, allowed

    def __getattr__(self, name: str) -> Callable[..., object]:
        return getattr(self._manager, name) if name in self._allowed else lambda *_: None


def assert_equal_states(left: dict[str, Any], right: dict[str, Any]) -> None:
    """The same keys, and tensors that are the same bit for bit."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), f"{name} differs"
