"""Checkpoints: what is in them, how a run goes on from one, and which is the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from inc_torch import DistillationConfig, INCLightningCallback, prepare_compression
from inc_torch.core.errors import InexactWarning, StateError
from tests.lightning.setup import (
    NOISE,
    Classifier,
    Manual,
    assert_equal_weights,
    data,
    network,
    pruning,
    techniques,
    trainer_of,
)

pytestmark = [
    *NOISE,
    # Lightning's remarks on runs that go on in the folder, or in another folder, than the one that they began in
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning"),
]


def saving(folder: Path, **options: Any) -> ModelCheckpoint:
    """Keeps every checkpoint, at the end of each epoch."""
    settings = {"dirpath": folder, "filename": "{epoch}", "save_top_k": -1}
    return ModelCheckpoint(**{**settings, **options})


def fit(
    module: Classifier, folder: Path, configs: Any, *, path: Path | None = None, **options: Any
) -> tuple[Any, Trainer]:
    callback = INCLightningCallback(configs)
    trainer = trainer_of(folder, callback, saving(folder), **{"max_epochs": 4, **options})
    trainer.fit(module, options.get("loader") or data(), ckpt_path=path)
    return callback, trainer


def conf(letters: str, teacher_seed: int = 1) -> list[Any]:
    """Pruning goes on for three of the four epochs."""
    configs = techniques(letters)
    return [pruning(end_step=15) if type(config).__name__ == "WeightPruningConfig" else config for config in configs]


@pytest.mark.parametrize(
    ("letters", "epoch", "kind"),
    [
        *[(letters, 1, Classifier) for letters in ("p", "q", "d")],
        *[("pqd", epoch, Classifier) for epoch in (0, 2)],
        ("pqd", 1, Manual),
    ],
)
def test_a_run_goes_on_from_the_end_of_an_epoch(tmp_path, letters, epoch, kind):
    torch.manual_seed(11)
    whole = kind()
    fit(whole, tmp_path, conf(letters))

    torch.manual_seed(99)
    resumed = kind()
    callback, trainer = fit(resumed, tmp_path / "resumed", conf(letters), path=tmp_path / f"epoch={epoch}.ckpt")
    assert trainer.global_step == callback.manager.callbacks.progress.step == 24
    assert len(resumed.losses) == 24 - 6 * (epoch + 1)
    assert resumed.losses == whole.losses[6 * (epoch + 1) :]
    assert_equal_weights(resumed, whole)


class Late(Classifier):
    """Makes its network when fit begins."""

    def __init__(self) -> None:
        super().__init__()
        del self.net

    def setup(self, stage):
        if not hasattr(self, "net"):
            self.net = network()


def test_a_run_of_a_module_that_makes_its_layers_late_goes_on(tmp_path):
    torch.manual_seed(11)
    whole, resumed = Late(), Late()
    fit(whole, tmp_path, conf("pqd"))
    fit(resumed, tmp_path / "resumed", conf("pqd"), path=tmp_path / "epoch=1.ckpt")
    assert resumed.losses == whole.losses[12:]
    assert_equal_weights(resumed, whole)


def test_torch_reads_a_checkpoint_without_unpickling_anything(tmp_path):
    callback, _ = fit(Classifier(), tmp_path, conf("pqd"))
    state = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["callbacks"]["INCLightningCallback"]
    assert state["manager"]["progress"] == {"step": 12, "epoch": 1}
    assert state["manager"]["configs"] == callback.manager.state_dict()["configs"]
    assert state["has_reached_goal"] is False
    last = torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)["callbacks"]["INCLightningCallback"]
    assert last["has_reached_goal"] is True


def test_a_student_that_is_its_own_teacher_goes_on(tmp_path):
    def configs(module):
        return [DistillationConfig(module.net), pruning(end_step=15)]

    with pytest.warns(InexactWarning, match="A frozen copy"):
        whole = Classifier()
        fit(whole, tmp_path, configs(whole))
    with pytest.warns(InexactWarning, match="A frozen copy"):
        resumed = Classifier()
        fit(resumed, tmp_path / "resumed", configs(resumed), path=tmp_path / "epoch=1.ckpt")
    assert_equal_weights(resumed, whole)


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
    fit(Classifier(), tmp_path, conf("p"))
    path = tmp_path / "epoch=1.ckpt"
    with pytest.raises(StateError, match=r"config 0: target_sparsity: saved 0.5, now 0.75"):
        fit(Classifier(), tmp_path / "other", pruning(end_step=15, target_sparsity=0.75), path=path)
    with pytest.raises(StateError, match="config 0: type: saved 'WeightPruningConfig', now 'Quantization"):
        fit(Classifier(), tmp_path / "other", conf("q"), path=path)


def test_a_checkpoint_without_our_state_is_refused(tmp_path):
    trainer_of(tmp_path, saving(tmp_path), max_epochs=1).fit(Classifier(), data())
    with pytest.raises(StateError, match=r"written without INCLightningCallback.*Classifier\.load_from_checkpoint"):
        fit(Classifier(), tmp_path / "other", conf("p"), path=tmp_path / "epoch=0.ckpt")


def test_a_checkpoint_is_evaluated_in_a_fresh_trainer_and_after_pruning(tmp_path):
    module = Classifier()
    _, trainer = fit(module, tmp_path, conf("pd"))
    last = trainer.validate(module, data(8), verbose=False, ckpt_path=tmp_path / "epoch=3.ckpt")
    fresh = trainer_of(tmp_path, INCLightningCallback(conf("pd")), saving(tmp_path))
    assert fresh.validate(Classifier(), data(8), verbose=False, ckpt_path=tmp_path / "epoch=3.ckpt") == last
    earlier = fresh.validate(Classifier(), data(8), verbose=False, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert earlier != last


def test_an_earlier_checkpoint_can_be_finished(tmp_path):
    whole = Classifier()
    fit(whole, tmp_path, conf("pqd"))
    checkpoint = torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)
    module = Classifier()
    manager = prepare_compression(module, conf("pqd"))
    module.load_state_dict(checkpoint["state_dict"])
    manager.load_state_dict(checkpoint["callbacks"]["INCLightningCallback"]["manager"])
    manager.on_train_begin()
    manager.on_train_end()
    assert_equal_weights(module, whole)


# ---------------------------------------------------------------- the best


class Scored(Classifier):
    """Gets a better score the less it is compressed."""

    scores = (1.0, 2.0, 5.0, 6.0, 4.0, 7.0)

    def validation_step(self, batch, batch_idx):
        self.log("score", self.scores[self.current_epoch], batch_size=1)


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
@pytest.mark.parametrize(
    ("keep", "kept"), [(1, ["epoch=4"]), (2, ["epoch=2", "epoch=4"]), (-1, [f"epoch={epoch}" for epoch in range(6)])]
)
def test_the_best_checkpoint_is_one_with_the_final_sparsity(tmp_path, mode, sign, keep, kept):
    class Signed(Scored):
        scores = tuple(sign * score for score in Scored.scores)

    checkpoint = saving(tmp_path, monitor="score", mode=mode, save_top_k=keep)
    callback = INCLightningCallback(pruning(end_step=15))
    trainer_of(tmp_path, checkpoint, callback, max_epochs=6).fit(Signed(), data(), data(4))
    assert Path(checkpoint.best_model_path).stem == "epoch=4"  # of epochs 2 to 5: 1 ends at step 12
    assert checkpoint.best_model_score == sign * 4.0
    assert sorted(path.stem for path in tmp_path.glob("*.ckpt")) == kept
    weights = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]
    pruned = [weights["net.0.weight"], weights["net.3.weight"]]
    zeros = sum(int((weight == 0).sum()) for weight in pruned)
    assert zeros * 2 == sum(weight.numel() for weight in pruned)


@pytest.mark.parametrize("epoch", [1, 4])
def test_the_best_of_a_resumed_run_is_the_same(tmp_path, epoch):
    kept = tmp_path / "kept"

    def run(path=None):
        checkpoint = saving(kept, monitor="score", enable_version_counter=False)
        callback = INCLightningCallback(pruning(end_step=15))
        trainer_of(tmp_path, checkpoint, callback, max_epochs=6).fit(Scored(), data(), data(4), ckpt_path=path)
        return checkpoint.best_model_path

    assert run() == str(kept / "epoch=4.ckpt") == run(kept / f"epoch={epoch}.ckpt")


def test_the_checkpoints_of_single_steps_are_ranked_too(tmp_path):
    class Stepwise(Classifier):
        def training_step(self, batch, batch_idx):
            self.log("score", float(self.global_step))
            return super().training_step(batch, batch_idx)

    checkpoint = saving(tmp_path, monitor="score", every_n_train_steps=1, filename="{step}", save_top_k=1)
    trainer_of(tmp_path, checkpoint, INCLightningCallback(pruning(end_step=5))).fit(Stepwise(), data())
    # The masks change for the last time at the beginning of step 5, the sixth; the scores only get worse.
    assert Path(checkpoint.best_model_path).stem == "step=6"


def test_a_second_run_ranks_anew(tmp_path):
    callback = INCLightningCallback(pruning(end_step=15))
    for folder in (tmp_path / "first", tmp_path / "second"):
        checkpoint = saving(folder, monitor="score")
        trainer_of(tmp_path, checkpoint, callback, max_epochs=6).fit(Scored(), data(), data(4))
        assert Path(checkpoint.best_model_path).stem == "epoch=4"


def test_a_run_without_a_checkpoint_of_the_final_sparsity_says_so(tmp_path):
    checkpoint = saving(tmp_path, monitor="score", every_n_epochs=2)
    trainer = trainer_of(tmp_path, checkpoint, INCLightningCallback(pruning(end_step=15)), max_epochs=3)
    with pytest.warns(InexactWarning, match=r"epoch=1.ckpt' was saved before the final sparsity was reached"):
        trainer.fit(Scored(), data(), data(4))
