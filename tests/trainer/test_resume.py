"""A run that is cut and resumed ends as the uncut one, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inc_torch import INCCallback, prepare_compression
from inc_torch.core.errors import StateError
from inc_torch.huggingface._checkpoint import STATE_FILE
from tests.trainer.setup import bert, pruning, quantization, techniques, trainer_of

ROOT = Path(__file__).parents[2]
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}


def run(folder: Path, letters: str, kill_at: int = -1, restore: bool = False, resume: str = "no") -> int:
    script = ROOT / "tests/trainer/killed.py"
    arguments = [folder, letters, kill_at, restore, resume]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, -signal.SIGKILL):
        raise AssertionError(done.stderr)
    return done.returncode


def assert_same_end(cut: Path, whole: Path) -> None:
    left, right = (torch.load(folder / "final.pt", weights_only=True) for folder in (cut, whole))
    assert left.keys() == right.keys()
    _assert_same(left, right, "final")
    assert json.loads((cut / "log.json").read_text()) == json.loads((whole / "log.json").read_text())


def _assert_same(left, right, where: str) -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            _assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            _assert_same(one, other, f"{where}[{index}]")
    else:
        assert left == right, where


@pytest.fixture(scope="module")
def uncut(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uncut")
    assert run(folder, "pqd") == 0
    return folder


@pytest.mark.parametrize("restore", [False, True])
def test_killed_at_a_random_step_and_resumed(uncut, restore, tmp_path):
    """Weights, masks, scores, ranges and everything that was logged."""
    step = random.SystemRandom().randrange(3, 12)
    assert run(tmp_path, "pqd", kill_at=step, restore=restore) == -signal.SIGKILL, f"killed at {step}"
    assert run(tmp_path, "pqd", restore=restore, resume="last") == 0
    assert_same_end(tmp_path, uncut)


@pytest.mark.slow
@pytest.mark.parametrize("letters", ["p", "q", "d"])
@pytest.mark.parametrize("step", [3, 6, 7, 11])
def test_killed_at_each_phase(letters, step, tmp_path):
    assert run(tmp_path / "whole", letters) == 0
    assert run(tmp_path / "cut", letters, kill_at=step) == -signal.SIGKILL
    assert run(tmp_path / "cut", letters, resume="last") == 0
    assert_same_end(tmp_path / "cut", tmp_path / "whole")


def cut_short(folder: Path, confs, **options) -> None:
    """Train until checkpoint-2 and -4 are there."""
    trainer_of(bert(), folder, [INCCallback(confs)], **{**SAVING, "max_steps": 6, **options}).train()


def test_a_checkpoint_that_was_moved(tmp_path):
    cut_short(tmp_path / "first", pruning())
    shutil.move(tmp_path / "first/checkpoint-2", tmp_path / "elsewhere")
    again = trainer_of(bert(), tmp_path / "second", [INCCallback(pruning())], **SAVING)
    again.train(resume_from_checkpoint=str(tmp_path / "elsewhere"))
    straight, whole = bert(), INCCallback(pruning())
    trainer_of(straight, tmp_path / "third", [whole], **SAVING).train()
    for left, right in zip(again.model.parameters(), straight.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_checkpoint_named_in_the_arguments(tmp_path):
    cut_short(tmp_path, pruning())
    options = {**SAVING, "resume_from_checkpoint": str(tmp_path / "checkpoint-2")}
    again = trainer_of(bert(), tmp_path / "again", [callback := INCCallback(pruning())], **options)
    again.train(resume_from_checkpoint=again.args.resume_from_checkpoint)
    assert callback.manager.callbacks.progress.step == 6


def test_another_config_is_refused_with_the_difference(tmp_path):
    cut_short(tmp_path, pruning())
    other = trainer_of(bert(), tmp_path, [INCCallback(pruning(target_sparsity=0.6, pattern="1x1"))], **SAVING)
    with pytest.raises(StateError) as refused:
        other.train(resume_from_checkpoint=True)
    assert "target_sparsity: saved 0.5, now 0.6" in str(refused.value)
    assert "pattern: saved '4x1', now '1x1'" in str(refused.value)


def test_another_number_of_techniques_is_refused(tmp_path):
    cut_short(tmp_path, pruning())
    other = trainer_of(bert(), tmp_path, [INCCallback([pruning(), quantization()])], **SAVING)
    with pytest.raises(StateError, match="1 configs were saved, there are 2 now"):
        other.train(resume_from_checkpoint=True)


def test_a_checkpoint_without_our_state_is_refused_and_a_whole_one_named(tmp_path):
    cut_short(tmp_path, pruning())
    (tmp_path / "checkpoint-6" / STATE_FILE).unlink()
    again = trainer_of(bert(), tmp_path, [INCCallback(pruning())], **{**SAVING, "max_steps": 8})
    with pytest.raises(StateError, match=rf"Resume from '{tmp_path}/checkpoint-4', which has one"):
        again.train(resume_from_checkpoint=True)


def test_a_damaged_state_is_refused(tmp_path):
    cut_short(tmp_path, pruning())
    file = tmp_path / "checkpoint-6" / STATE_FILE
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = trainer_of(bert(), tmp_path, [INCCallback(pruning())], **{**SAVING, "max_steps": 8})
    with pytest.raises(StateError, match="cannot be read"):
        again.train(resume_from_checkpoint=True)


def test_the_state_is_plain_and_no_half_of_it_is_left_behind(tmp_path):
    cut_short(tmp_path, techniques("pqd"))
    content = torch.load(tmp_path / "checkpoint-4" / STATE_FILE, weights_only=True)
    assert content["manager"]["progress"]["step"] == 4
    assert [config["type"] for config in content["manager"]["configs"]] == [
        "WeightPruningConfig",
        "QuantizationAwareTrainingConfig",
        "DistillationConfig",
    ]
    assert list(tmp_path.rglob("*.unfinished")) == []


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_second_attempt_starts_anew(is_prepared, tmp_path):
    """auto_find_batch_size begins again after running out of memory; so do masks and ranges."""
    failures = [RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")]

    class Full(INCCallback.__base__):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3 and failures:
                raise failures.pop()

    model = bert()
    callback = INCCallback(prepare_compression(model, pruning()) if is_prepared else pruning())
    trainer = trainer_of(model, tmp_path, [callback, Full()], auto_find_batch_size=True, max_steps=6)
    trainer.train()
    assert failures == []
    assert callback.manager.callbacks.progress.step == 6
    assert callback.manager.report().sparsity == pytest.approx(0.5, abs=0.01)


def test_each_trial_of_a_search_gets_a_manager(tmp_path):
    models, managers = [], []

    class Keep(INCCallback.__base__):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            models.append(model)
            managers.append(callback.manager)

    callback = INCCallback(pruning())
    trainer = trainer_of(None, tmp_path, [callback, Keep()], model_init=lambda: bert(), **SAVING)
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)},
        n_trials=2,
        backend="optuna",
        compute_objective=lambda metrics: metrics["eval_loss"],
    )
    assert len({id(manager) for manager in managers}) == 2
    assert [manager.model for manager in managers] == models
    assert all(manager.report().sparsity == pytest.approx(0.5, abs=0.01) for manager in managers)
    assert sorted(path.parent.name for path in tmp_path.glob(f"run-1/*/{STATE_FILE}")) == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6",
    ]
