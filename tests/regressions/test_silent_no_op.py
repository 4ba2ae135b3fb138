"""What users of such packages reported as done and not done: here it is done, or said."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import inc_torch
from inc_torch import PostTrainingQuantConfig, QuantizationAwareTrainingConfig, WeightPruningConfig
from inc_torch.core.errors import InexactWarning, LoopWarning
from inc_torch.export import load, save
from inc_torch.training import prepare_compression


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))


def train(model: nn.Module, conf: object, steps: int = 6):
    manager = prepare_compression(model, conf)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager.on_train_begin()
    for step in range(steps):
        manager.on_step_begin(step)
        model(torch.randn(8, 16)).square().sum().backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        optimizer.zero_grad()
        manager.on_after_optimizer_step()
    manager.on_train_end()
    return manager


def share_of_zeros(module: nn.Module) -> float:
    return float((module.weight == 0).double().mean())


def half(**options: object) -> WeightPruningConfig:
    return WeightPruningConfig(target_sparsity=0.5, start_step=1, end_step=4, **options)


def test_sparsity_is_zero_after_asking_for_half_is_told(tmp_path):
    model = mlp()
    with pytest.warns(
        InexactWarning, match=r"Pruning reached 0\.0000 instead of 0\.5 .*training ended after 3 optimizer steps"
    ):
        manager = train(model, half(pattern="1x1").replace(start_step=50, end_step=60), steps=3)
    assert manager.report().sparsity == 0.0
    model = mlp()
    manager = train(model, half(pattern="1x1"))
    save(model, tmp_path)
    report = load(tmp_path, model=mlp()).__dict__["_inc_torch_report"]
    assert report.sparsity == manager.report().sparsity == 0.5
    assert sum(int((model[index].weight == 0).sum()) for index in (0, 2)) == (16 * 32 + 32 * 16) // 2


def test_two_of_four_by_snip_momentum_appears_to_prune_nothing():
    model = mlp()
    train(model, half(pattern="2:4", pruning_type="snip_momentum"))
    for index in (0, 2):
        groups = (model[index].weight == 0).reshape(-1, 4).sum(1)
        assert torch.equal(groups, torch.full_like(groups, 2))


def test_a_layer_outside_op_names_is_pruned_anyway():
    model = mlp()
    train(model, half(pattern="1x1", op_names=["^0$"]))
    assert [share_of_zeros(model[index]) for index in (0, 2, 4)] == [0.5, 0.0, 0.0]


def test_the_mask_accumulates_until_everything_is_zero():
    model = mlp()
    train(model, half(pattern="4x1", pruning_frequency=1), steps=40)
    assert share_of_zeros(model[4]) == 0.0
    assert sum(int((model[index].weight == 0).sum()) for index in (0, 2)) == 512


def test_size_is_unchanged_after_compressing(tmp_path):
    def wide() -> nn.Sequential:
        return nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))

    save(wide(), tmp_path / "float")
    conf = PostTrainingQuantConfig(approach="post_training_dynamic_quant")
    save(inc_torch.quantization.fit(wide(), conf), tmp_path / "int8")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("int8", "float")]
    assert sizes[0] < 0.27 * sizes[1]


def test_switching_between_training_and_evaluation_rewrites_dropout_and_normalization():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=3e-3, momentum=0.4), nn.ReLU(), nn.Dropout(0.37))
    manager = prepare_compression(model, QuantizationAwareTrainingConfig())
    manager.on_train_begin()
    for mode in (True, False, True):
        model.train(mode)
        model(torch.randn(2, 1, 8, 8))
        assert (model[1].eps, model[1].momentum, model[3].p) == (3e-3, 0.4, 0.37)


def test_parameters_without_a_gradient_raise_inside_the_hook():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, inputs):
            return self.head(self.used(inputs).relu())

    model = Unused()
    with pytest.warns(LoopWarning, match=r"No gradient for 'unused' \(1 of 2 pruned layers\).*counts as zero"):
        train(model, half(pattern="1x1", pruning_type="snip_momentum", pruning_scope="local"))
    assert share_of_zeros(model.used) == 0.5


def test_the_default_start_step_never_prunes_by_gradients():
    model = mlp()
    conf = WeightPruningConfig(target_sparsity=0.5, pattern="1x1", pruning_type="snip", start_step=0, end_step=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InexactWarning)
        warnings.simplefilter("ignore", LoopWarning)
        train(model, conf, steps=3)
    assert sum(int((model[index].weight == 0).sum()) for index in (0, 2)) == 512
