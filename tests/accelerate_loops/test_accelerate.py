"""Loops written with accelerate: accumulation, mixed precision, checkpoints, several processes.

The loop is `train` below. What is particular about accelerate:

- ``optimizer.step()`` does nothing while gradients are accumulated, so the two hooks around it are called
  ``if accelerator.sync_gradients``; all others in every batch, under ``accelerator.accumulate``.
- Clipping stands before ``on_before_optimizer_step``, so that scores see the gradients that the optimizer sees.
- ``accelerator.register_for_checkpointing(manager)`` puts masks, scores and ranges into ``save_state``; ``load_state``
  stands after ``prepare_compression`` and before ``on_train_begin``.
- ``prepare_compression`` may be called before or after ``accelerator.prepare``, with the prepared model too.
- Mixed precision covers the model's forward alone: loss and teacher are in float32 unless they stand under
  ``with accelerator.autocast()``.
"""

from __future__ import annotations

import copy
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset

from inc_torch import Callback, CompressionManager, load, prepare_compression
from inc_torch.core.errors import LoopWarning, StateError
from inc_torch.quantizers import int8_kernels
from tests.distributed.worlds import run_world
from tests.loops.driver import FEATURES, assert_equal_states, confs_of, mlp, pruning

BATCHES = 8
"""In an epoch; with ``ACCUMULATE``, four optimizer steps."""
ACCUMULATE = 2
EPOCHS = 2
CUT = 6
"""Batches after which a run is cut, at the end of an optimizer step."""


@pytest.fixture(autouse=True)
def _fresh_state():
    """Accelerators share one state in a process, which a test must not hand on."""
    yield
    _forget_accelerators()


def _forget_accelerators() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def data(processes: int = 1) -> DataLoader:
    """The same batches each time, from a generator of their own."""
    generator = torch.Generator().manual_seed(5)
    count = BATCHES * 6 * processes
    rows, labels = torch.randn(count, FEATURES, generator=generator), torch.randint(0, 4, (count,), generator=generator)
    return DataLoader(TensorDataset(rows, labels), batch_size=6, generator=torch.Generator().manual_seed(1))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02)


def confs(letters: str) -> list[Any]:
    """The masks of pruning change until step 6 of 8."""
    slow = pruning(pattern="4x1", pruning_type="snip_momentum", end_step=6)
    return [slow if letter == "p" else confs_of(letter, mlp(seed=1))[0] for letter in letters]


def accelerator_of(**options: Any) -> Accelerator:
    return Accelerator(**{"cpu": True, "gradient_accumulation_steps": ACCUMULATE, **options})


def train(
    accelerator: Accelerator,
    manager: CompressionManager,
    model: nn.Module,
    optimizer: Any,
    loader: Any,
    *,
    done: int = 0,
    stop: int | None = None,
) -> None:
    """From batch ``done`` of the run to batch ``stop``, or to the end."""
    manager.on_train_begin(loader)
    for epoch in range(done // BATCHES, EPOCHS):
        manager.on_epoch_begin(epoch)
        skipped = done % BATCHES if epoch == done // BATCHES else 0
        for index, (rows, labels) in enumerate(accelerator.skip_first_batches(loader, skipped), skipped):
            if epoch * BATCHES + index == stop:
                return
            manager.on_step_begin(index)
            with accelerator.accumulate(model):
                output = model(rows)
                loss = manager.on_after_compute_loss(rows, output, F.cross_entropy(output, labels))
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    manager.on_before_optimizer_step()
                optimizer.step()
                if accelerator.sync_gradients:
                    manager.on_after_optimizer_step()
                optimizer.zero_grad()
            manager.on_step_end()
        manager.on_epoch_end()
    manager.on_train_end()


def train_without_accelerate(manager: CompressionManager, *, is_bf16: bool = False) -> None:
    model = manager.model
    optimizer = optimizer_of(model)
    manager.on_train_begin()
    for epoch in range(EPOCHS):
        manager.on_epoch_begin(epoch)
        for index, (rows, labels) in enumerate(data()):
            manager.on_step_begin(index)
            with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
                output = model(rows)
            output = output.float()
            loss = manager.on_after_compute_loss(rows, output, F.cross_entropy(output, labels))
            (loss / ACCUMULATE).backward()
            if (index + 1) % ACCUMULATE == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                manager.on_before_optimizer_step()
                optimizer.step()
                manager.on_after_optimizer_step()
                optimizer.zero_grad()
            manager.on_step_end()
        manager.on_epoch_end()
    manager.on_train_end()


def state_of(model: nn.Module) -> dict[str, Any]:
    return dict(model.state_dict())


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("letters", ["p", "q", "d", "pqd"])
def test_a_loop_with_accelerate_is_the_loop_without(letters, precision):
    expected = prepare_compression(mlp(), confs(letters))
    torch.manual_seed(11)
    train_without_accelerate(expected, is_bf16=precision == "bf16")

    model = mlp()
    manager = prepare_compression(model, confs(letters))
    accelerator = accelerator_of(mixed_precision=precision)
    prepared = accelerator.prepare(model, optimizer_of(model), data())
    torch.manual_seed(11)
    train(accelerator, manager, *prepared)
    assert_equal_states(state_of(model), state_of(expected.model))
    assert manager.callbacks.progress.step == BATCHES * EPOCHS // ACCUMULATE
    assert manager.report().to_dict() == expected.report().to_dict()


ORDERS = list(itertools.permutations(["compress", "optimizer", "accelerate"]))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_order_of_preparing_does_not_matter(precision):
    results = []
    for order in ORDERS:
        model = mlp()
        accelerator = accelerator_of(mixed_precision=precision)
        prepared, optimizer = model, None
        for part in order:
            if part == "compress":
                manager = prepare_compression(prepared, confs("pqd"))
            elif part == "optimizer":
                optimizer = optimizer_of(prepared)
            else:
                prepared = accelerator.prepare(model)
        torch.manual_seed(11)
        train(accelerator, manager, prepared, accelerator.prepare(optimizer), accelerator.prepare(data()))
        results.append(state_of(model))
    for result in results[1:]:
        assert_equal_states(result, results[0])
    assert results[0]["0.qweight"].dtype == torch.int8


@pytest.mark.parametrize("letters", ["p", "q", "d", "pqd"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_that_was_cut_goes_on(tmp_path, letters, precision):
    def objects() -> tuple[Accelerator, CompressionManager, list[Any]]:
        accelerator = accelerator_of(mixed_precision=precision)
        model = mlp()
        manager = prepare_compression(model, confs(letters))
        accelerator.register_for_checkpointing(manager)
        return accelerator, manager, list(accelerator.prepare(model, optimizer_of(model), data()))

    accelerator, manager, prepared = objects()
    torch.manual_seed(11)
    train(accelerator, manager, *prepared)
    whole = state_of(prepared[0])

    accelerator, manager, prepared = objects()
    torch.manual_seed(11)
    train(accelerator, manager, *prepared, stop=CUT)
    accelerator.save_state(str(tmp_path / "cut"))
    _forget_accelerators()

    torch.manual_seed(99)
    accelerator, manager, prepared = objects()
    accelerator.load_state(str(tmp_path / "cut"))
    assert manager.callbacks.progress.step == CUT // ACCUMULATE
    train(accelerator, manager, *prepared, done=CUT)
    assert_equal_states(state_of(prepared[0]), whole)


def test_torch_reads_the_checkpoint_without_unpickling_anything(tmp_path):
    accelerator = accelerator_of()
    model = accelerator.prepare(mlp())
    manager = prepare_compression(model, confs("pqd"))
    accelerator.register_for_checkpointing(manager)
    accelerator.save_state(str(tmp_path))
    state = torch.load(tmp_path / "custom_checkpoint_0.pkl", weights_only=True)
    assert state.keys() == manager.state_dict().keys()
    assert state["configs"] == manager.state_dict()["configs"]


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
    for target in (0.5, 0.75):
        accelerator = accelerator_of()
        manager = prepare_compression(accelerator.prepare(mlp()), pruning(target_sparsity=target))
        accelerator.register_for_checkpointing(manager)
        if target == 0.5:
            accelerator.save_state(str(tmp_path))
    with pytest.raises(StateError, match=r"target_sparsity: saved 0.5, now 0.75"):
        accelerator.load_state(str(tmp_path))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_model_comes_out_as_it_went_in(tmp_path, precision):
    model = mlp()
    accelerator = accelerator_of(mixed_precision=precision)
    prepared = list(accelerator.prepare(model, optimizer_of(model), data()))
    manager = prepare_compression(prepared[0], confs("pqd"))
    train(accelerator, manager, *prepared)
    unwrapped = accelerator.unwrap_model(prepared[0], keep_fp32_wrapper=False)
    assert unwrapped is model
    assert len(list(int8_kernels(unwrapped))) == 3
    unwrapped.save(tmp_path)
    rows = next(iter(data()))[0]
    loaded = load(tmp_path, model=mlp(seed=3))
    assert torch.equal(loaded.eval()(rows), unwrapped.eval()(rows))


def test_hooks_around_a_step_that_is_not_made_do_not_count(recwarn):
    """A loop that calls them in every batch makes as many steps; scores are then of incomplete gradients."""
    counted = []

    class Steps(Callback):
        def on_after_optimizer_step(self) -> None:
            counted.append(self.progress.step)

    accelerator = accelerator_of()
    model, optimizer, loader = accelerator.prepare(net := mlp(), optimizer_of(net), data())
    manager = prepare_compression(model, [Steps(), *confs("pq")])
    manager.on_train_begin()
    for index, (rows, labels) in enumerate(loader):
        manager.on_step_begin(index)
        with accelerator.accumulate(model):
            loss = manager.on_after_compute_loss(rows, output := model(rows), F.cross_entropy(output, labels))
            accelerator.backward(loss)
            manager.on_before_optimizer_step()
            optimizer.step()
            manager.on_after_optimizer_step()
            optimizer.zero_grad()
    assert counted == list(range(BATCHES // ACCUMULATE))
    assert not [warning for warning in recwarn if issubclass(warning.category, LoopWarning)]


# ---------------------------------------------------------------- two processes


def as_torchrun_says() -> None:
    """Accelerate asks the environment for the process group that is there already."""
    rank, size = str(distributed.get_rank()), str(distributed.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29500")  # asked for, and not used


def train_on_a_rank(folder: Path) -> dict[str, Any]:
    """The whole run, in each order of preparing; and a run that is cut and goes on."""

    as_torchrun_says()

    def objects(order: str = "before") -> tuple[Accelerator, CompressionManager, list[Any]]:
        accelerator = accelerator_of()
        model = mlp()
        if order == "before":
            manager = prepare_compression(model, confs("pqd"))
        prepared = list(accelerator.prepare(model, optimizer_of(model), data(processes=2)))
        if order == "after":
            manager = prepare_compression(prepared[0], confs("pqd"))
        accelerator.register_for_checkpointing(manager)
        return accelerator, manager, prepared

    results: dict[str, Any] = {}
    for order in ("before", "after"):
        accelerator, manager, prepared = objects(order)
        assert type(prepared[0]).__name__ == "DistributedDataParallel"
        torch.manual_seed(11 + accelerator.process_index)  # dropout that differs
        train(accelerator, manager, *prepared)
        results[order] = state_of(accelerator.unwrap_model(prepared[0]))

    accelerator, manager, prepared = objects()
    torch.manual_seed(11 + accelerator.process_index)
    train(accelerator, manager, *prepared, stop=CUT)
    accelerator.save_state(str(folder))
    results["masks"] = copy.deepcopy(manager.state_dict()["callbacks"]["0:PruningCallbacks"]["state"]["pruners"])
    torch.manual_seed(99)
    accelerator, manager, prepared = objects()
    accelerator.load_state(str(folder))
    train(accelerator, manager, *prepared, done=CUT)
    results["resumed"] = state_of(accelerator.unwrap_model(prepared[0]))
    return results


def test_two_processes_train_one_model_and_go_on(tmp_path):
    first, second = run_world(train_on_a_rank, 2, tmp_path)
    for name in ("before", "after", "resumed"):
        assert_equal_states(first[name], first["before"])
        assert_equal_states(second[name], first["before"])
    (left,), (right,) = first["masks"], second["masks"]
    assert left["masks"].keys() == {"0.weight", "3.weight"}
    for name, mask in left["masks"].items():
        assert torch.equal(mask, right["masks"][name])
    assert sum(int((~mask).sum()) for mask in left["masks"].values()) > 0


def train_unguarded_on_a_rank() -> str:
    """Both hooks around the step in every batch, where gradients are not the same on all ranks yet."""
    as_torchrun_says()
    accelerator = accelerator_of()
    model, optimizer, loader = accelerator.prepare(net := mlp(), optimizer_of(net), data(processes=2))
    manager = prepare_compression(model, confs("p"))
    manager.on_train_begin()
    try:
        for index, (rows, labels) in enumerate(loader):
            manager.on_step_begin(index)
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(rows), labels))
                manager.on_before_optimizer_step()
                optimizer.step()
                manager.on_after_optimizer_step()
                optimizer.zero_grad()
    except StateError as error:
        return str(error)
    return ""


def test_scores_of_gradients_that_differ_are_an_error():
    for message in run_world(train_unguarded_on_a_rank, 2):
        assert "under gradient accumulation only at the last micro-batch" in message
