"""Two managers at once: each model becomes what it becomes alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inc_torch import CompressionManager, prepare_compression
from tests.loops.driver import ConvNet, assert_equal_states, images
from tests.soak.cycles import confs

STEPS = 5
CALL = nn.Module.__call__
LETTERS = ["p", "q", "d", "l", "pqd", "pqdlh"]


class Still(ConvNet):
    """Without dropout, whose values depend on who draws first."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.dropout.p = 0.0


def run(letters: str, seed: int, teacher: Still) -> Iterator[CompressionManager]:
    """A whole training, a bit at a time; the model and its manager are made now."""
    model = Still(seed)
    manager = prepare_compression(model, confs(letters, teacher))
    return steps_of(manager, torch.optim.AdamW(model.parameters(), lr=0.01), seed)


def steps_of(manager: CompressionManager, optimizer: torch.optim.Optimizer, seed: int) -> Iterator[CompressionManager]:
    manager.on_train_begin()
    for index, (inputs, labels) in enumerate(images(STEPS)):
        for _ in parts(manager, optimizer, index, inputs + seed, labels):
            yield manager
    manager.on_train_end()
    yield manager


def parts(
    manager: CompressionManager,
    optimizer: torch.optim.Optimizer,
    index: int,
    inputs: torch.Tensor,
    labels: torch.Tensor,
) -> Iterator[None]:
    """One step, with a pause between any two things that a loop does."""
    manager.on_step_begin(index)
    yield
    output = manager.model(inputs)
    yield
    loss = manager.on_after_compute_loss(inputs, output, F.cross_entropy(output, labels))
    yield
    loss.backward()
    yield
    manager.on_before_optimizer_step()
    yield
    optimizer.step()
    yield
    manager.on_after_optimizer_step()
    optimizer.zero_grad()
    yield
    manager.on_step_end()
    yield


def ends(*runs: Iterator[CompressionManager]) -> list[dict[str, Any]]:
    """Advance all by turns; what each became."""
    last: list[CompressionManager] = []
    for managers in zip(*runs, strict=True):
        last = list(managers)
    assert all(manager.callbacks.progress.step == STEPS for manager in last)
    return [{**manager.model.state_dict(), "report": torch.tensor(hash(str(manager.report())))} for manager in last]


@pytest.mark.parametrize("one", LETTERS)
@pytest.mark.parametrize("other", LETTERS[-2:])
def test_by_turns(one, other):
    alone = [ends(run(one, 0, Still(2)))[0], ends(run(other, 1, Still(3)))[0]]
    together = ends(run(one, 0, Still(2)), run(other, 1, Still(3)))
    for expected, found in zip(alone, together, strict=True):
        assert_equal_states(found, expected)


@pytest.mark.parametrize("letters", LETTERS)
def test_one_teacher_teaches_two(letters):
    """Each gets features of its own batch."""
    alone = [ends(run(letters, seed, Still(2)))[0] for seed in (0, 1)]
    teacher = Still(2)
    together = ends(run(letters, 0, teacher), run(letters, 1, teacher))
    for expected, found in zip(alone, together, strict=True):
        assert_equal_states(found, expected)


@pytest.mark.parametrize("letters", LETTERS)
def test_in_two_threads(letters):
    alone = [ends(run(letters, seed, Still(seed + 2)))[0] for seed in (0, 1)]
    found: dict[int, dict[str, Any]] = {}
    errors: list[BaseException] = []
    ready = threading.Barrier(2, timeout=60)

    def work(seed: int, steps: Iterator[CompressionManager]) -> None:
        try:
            ready.wait()
            found[seed] = ends(steps)[0]
        except BaseException as error:  # noqa: BLE001  of another thread
            errors.append(error)

    # Not in the threads: models draw their weights from one generator.
    runs = [run(letters, seed, Still(seed + 2)) for seed in (0, 1)]
    threads = [threading.Thread(target=work, args=entry) for entry in enumerate(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors, errors
    assert nn.Module.__call__ is CALL, "a trace left its own in place of torch's"
    for seed, expected in enumerate(alone):
        assert_equal_states(found[seed], expected)
