"""Several processes, and ways of training that are refused; and Lightning's other package."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import inc_torch
from inc_torch import INCLightningCallback, prepare_compression
from inc_torch.core.errors import MissingPackageError, ModelError
from inc_torch.lightning._framework import framework
from tests.distributed.worlds import run_world
from tests.lightning.setup import BATCH, NOISE, Classifier, data, optimizer_of, techniques, trainer_of
from tests.lightning.test_checkpoints import conf, saving
from tests.loops.driver import assert_equal_states

pytestmark = NOISE


EPOCHS = 4
ROWS = 12 * BATCH  # six batches an epoch on each of two processes


def without_dropout() -> Classifier:
    """As each process draws numbers of its own, which no checkpoint holds for all."""
    module = Classifier()
    module.net[2].p = 0.0
    return module


def own_data() -> DataLoader:
    """Every second row, in order; Lightning's own sampler would shuffle."""
    rows = data(ROWS).dataset
    return DataLoader(rows, BATCH, sampler=DistributedSampler(rows, shuffle=False))


def fit(folder: Path, path: Path | None = None) -> dict[str, Any]:
    module = without_dropout()
    callback = INCLightningCallback(conf("pqd"))
    options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    trainer = trainer_of(folder, callback, saving(folder), max_epochs=EPOCHS, **options)
    trainer.fit(module, own_data(), ckpt_path=path)
    assert trainer.world_size == 2
    return {"losses": module.losses, "weights": module.state_dict(), "report": callback.manager.report().to_dict()}


def train_by_hand_here() -> dict[str, Any]:
    module = without_dropout()
    manager = prepare_compression(module, conf("pqd"))
    wrapped = DistributedDataParallel(module)
    optimizer = optimizer_of(module)
    manager.on_train_begin()
    for _ in range(EPOCHS):
        for index, (rows, labels) in enumerate(own_data()):
            manager.on_step_begin(index)
            output = wrapped(rows)
            loss = manager.on_after_compute_loss(rows, output, F.cross_entropy(output, labels))
            loss.backward()
            manager.on_before_optimizer_step()
            optimizer.step()
            manager.on_after_optimizer_step()
            optimizer.zero_grad()
    manager.on_train_end()
    return {"weights": module.state_dict(), "report": manager.report().to_dict()}


def run_here(folder: Path) -> dict[str, dict[str, Any]]:
    os.environ["LOCAL_RANK"] = str(distributed.get_rank())  # what torchrun sets
    return {
        "whole": fit(folder),
        "resumed": fit(folder / "resumed", folder / "epoch=1.ckpt"),
        "by hand": train_by_hand_here(),
    }


def test_two_processes_train_one_model_as_by_hand_and_go_on(tmp_path):
    first, second = run_world(run_here, 2, tmp_path)
    assert first["whole"]["losses"] != second["whole"]["losses"]  # of other data
    assert len(first["whole"]["losses"]) == 24
    for result in (first, second):
        assert result["resumed"]["losses"] == result["whole"]["losses"][12:]
        for run in ("whole", "resumed", "by hand"):
            assert result[run]["report"] == first["whole"]["report"]
            assert_equal_states(result[run]["weights"], first["whole"]["weights"])
    zeros = [(first["whole"]["weights"][f"net.{layer}.qweight"] == 0).float().mean() for layer in (0, 3)]
    assert all(share >= 0.4 for share in zeros)


def test_strategies_that_hide_the_weights_are_refused():
    class DeepSpeedStrategy:
        """Stands in for Lightning's, which cannot be made without the package deepspeed."""

    callback = INCLightningCallback(techniques("p"))
    for strategy, reason in [(FSDPStrategy(), "flattens weights"), (DeepSpeedStrategy(), "buffers of its own")]:
        message = rf"The Trainer uses {type(strategy).__name__}, which .*{reason}.* Use Trainer\(strategy='ddp'\)"
        with pytest.raises(ModelError, match=message):
            callback.setup(SimpleNamespace(strategy=strategy), Classifier(), "fit")
    callback.setup(SimpleNamespace(strategy=DDPStrategy()), Classifier(), "fit")


OLD_NAME = """
import sys
sys.modules["lightning"] = None  # as if it were not installed
import pytorch_lightning
import torch
import inc_torch
callback = inc_torch.INCLightningCallback(inc_torch.WeightPruningConfig(target_sparsity=0.5, pattern="4x1", end_step=1))
assert isinstance(callback, pytorch_lightning.Callback)
class Module(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, 2)
    def training_step(self, batch):
        return self.head(self.net(batch)).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
trainer = pytorch_lightning.Trainer(max_epochs=1, accelerator="cpu", barebones=True, callbacks=[callback])
trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(8, 8), 2))
print(callback.manager.report().sparsity)
"""


def test_lightning_under_its_old_name():
    if importlib.util.find_spec("pytorch_lightning") is None:
        pytest.skip("pytorch_lightning is not installed")
    result = subprocess.run([sys.executable, "-c", OLD_NAME], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "0.5"


@pytest.mark.parametrize(
    ("installed", "imported", "expected"),
    [
        ({"lightning"}, set(), "lightning.pytorch"),
        ({"pytorch_lightning"}, set(), "pytorch_lightning"),
        ({"lightning", "pytorch_lightning"}, set(), "lightning.pytorch"),
        ({"lightning", "pytorch_lightning"}, {"pytorch_lightning"}, "pytorch_lightning"),
        ({"lightning", "pytorch_lightning"}, {"lightning", "pytorch_lightning"}, "lightning.pytorch"),
        (set(), set(), "lightning.pytorch"),  # which then says that it is missing
    ],
)
def test_the_package_is_the_one_in_use(monkeypatch, installed, imported, expected):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(importlib, "import_module", lambda name: name)
    monkeypatch.setattr(sys, "modules", dict.fromkeys(imported))
    assert framework() == expected


def test_without_lightning_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"INCLightningCallback needs the package 'lightning'.*pip install 'inc_torch\[trainers\]'"
    with pytest.raises(MissingPackageError, match=message):
        _ = inc_torch.INCLightningCallback


def test_star_imports_work_without_lightning():
    assert "INCLightningCallback" not in inc_torch.__all__
    assert inc_torch.INCLightningCallback is inc_torch.lightning.INCLightningCallback is INCLightningCallback
