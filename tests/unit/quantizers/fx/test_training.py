"""Quantization-aware training of a graph: folded normalization, shared grids, and int8 that equals what was trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inc_torch import QuantizationAwareTrainingConfig, WeightPruningConfig, prepare_compression
from inc_torch.core.errors import InexactWarning
from inc_torch.quantizers import Int8Conv2d, Int8Linear, disable_fake_quant, is_graph
from inc_torch.quantizers._batch_norm import fold_factor, folded_bias
from inc_torch.quantizers._codes import quantize_weight
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule
from inc_torch.quantizers._snap import FakeQuantSnap, Int8Snap
from inc_torch.quantizers.fx._graft import SNAPS, graft_of
from tests.support.vision import family, images

CONFIG = QuantizationAwareTrainingConfig()


class Block(nn.Module):
    """Two convolutions with their normalizations around a sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(inner)) + x)


class Net(nn.Module):
    """A stem, two blocks, a head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


BATCHES = images(8, 8, 16)
LABELS = [batch.mean((2, 3)).argmax(1) for batch in BATCHES]


def train(manager: Any, steps: int, *, begin: int = 0, rate: float = 0.05, optimizer: Any = None) -> list[float]:
    """A loop over `BATCHES`; the losses."""
    optimizer = optimizer or torch.optim.SGD(manager.model.parameters(), rate, momentum=0.9)
    losses = []
    for step in range(begin, begin + steps):
        manager.on_step_begin(step)
        loss = F.cross_entropy(manager.model.train()(BATCHES[step % 8]), LABELS[step % 8])
        loss.backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        optimizer.zero_grad()
        manager.on_step_end()
        losses.append(loss.item())
    return losses


def managed(model: nn.Module | None = None, **options: Any) -> tuple[Any, Any]:
    model = Net() if model is None else model
    return prepare_compression(model, CONFIG.replace(**options)), model


def test_a_model_trains_as_a_graph_and_int8_is_what_was_trained():
    manager, model = managed()
    manager.on_train_begin()
    losses = train(manager, 40)
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
    assert is_graph(model)
    trained = copy.deepcopy(model).eval()
    manager.on_train_end()
    with torch.no_grad():
        for batch in BATCHES:
            expected, given = trained(batch), model(batch)
            assert (given - expected).abs().max() < 0.02 * expected.abs().max()


FAMILIES = ["resnet18", "resnet50", "mobilenet_v3_small", "densenet", "shufflenet", "vit", "swin"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layers_of_a_trained_family_are_off_by_less_than_one_step(name: str):
    manager, model = managed(family(name))
    manager.on_train_begin()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for batch in images(2):
        model.train()(batch).square().mean().backward()
        manager.on_before_optimizer_step()
        optimizer.step()
    trained = copy.deepcopy(model).eval()
    manager.on_train_end()
    assert is_graph(model)
    snaps, layers = remembered(trained, images(1)[0])
    assert bool(snaps) is (name not in ("vit", "swin"))
    assert layers.keys() == {name for name, module in model.named_modules() if isinstance(module, KINDS)}
    with torch.no_grad():
        for snap, (x, expected) in snaps.items():
            module = model.get_submodule(snap)
            assert isinstance(module, Int8Snap)
            assert (module(x) - expected).abs().max() <= module.scale * 1.001
            assert (module(x) != expected).float().mean() < 1e-3
        for layer, (x, expected) in layers.items():
            module = model.get_submodule(layer)
            # A value on the border between two codes may fall to either: one step of one input.
            step = module.input_scale * module.weight.abs().max()
            assert (module(x) - expected).abs().max() <= step + 1e-5 * expected.abs().max(), layer


KINDS = (Int8Linear, Int8Conv2d)


def remembered(model: nn.Module, x: torch.Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """What goes into every snap and every layer of a trained model, and what comes out, of its normalization if any."""
    snaps: dict[str, Any] = {}
    layers: dict[str, Any] = {}
    graft = graft_of(model)
    assert graft is not None

    def keep(module: nn.Module, place: dict[str, Any], name: str, *, again: bool = False) -> None:
        def hook(_: nn.Module, given: Any, out: torch.Tensor) -> None:
            place[name] = (place[name][0] if again else given[0].clone(), out.clone())  # others may write to them

        module.register_forward_hook(hook)

    for name, module in model.named_modules():
        if isinstance(module, FakeQuantSnap):
            keep(module, snaps, name)
        elif isinstance(module, nn.Linear | nn.Conv2d) and isinstance(module, FakeQuantModule):
            keep(module, layers, name)
        elif name in graft.plan.folds:
            keep(module, layers, graft.plan.folds[name], again=True)
    with torch.no_grad():
        model(x)
    return snaps, layers


def one_pair(layer: nn.Module, norm: nn.Module, x: torch.Tensor) -> tuple[Any, Any]:
    """A prepared layer and its normalization, some steps into training."""
    model = nn.Sequential(layer, norm)
    with torch.no_grad():
        norm.weight.uniform_(-2, 2)
        norm.bias.normal_()
        for _ in range(50):
            model.train()(x * 2 + 0.5)
    manager = prepare_compression(model, CONFIG)
    manager.on_train_begin()
    model.train()(x).sum().backward()
    manager.on_before_optimizer_step()
    return manager, model


PAIRS: list[Any] = [
    (lambda: nn.Conv2d(3, 4, 3), nn.BatchNorm2d, (5, 3, 6, 6)),
    (lambda: nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d, (5, 4, 6, 6)),
    (lambda: nn.Conv1d(3, 4, 2), nn.BatchNorm1d, (5, 3, 6)),
    (lambda: nn.Conv3d(2, 4, 2), nn.BatchNorm3d, (5, 2, 4, 4, 4)),
    (lambda: nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d, (5, 4, 4, 4)),
    (lambda: nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d, (5, 3, 4, 4)),
    (lambda: nn.Linear(3, 4), nn.BatchNorm1d, (16, 3)),
]


@pytest.mark.parametrize(("layer", "norm", "shape"), PAIRS)
def test_codes_are_of_the_folded_weight_and_the_bias_is_folded(layer: Callable[[], Any], norm: Any, shape: Any):
    x = torch.randn(shape)
    manager, model = one_pair(layer(), norm(4), x)
    simulated = copy.deepcopy(model).eval()
    factor, shift = fold_factor(model[1]), folded_bias(model[1], model[0].bias)
    weight = type(model[0]).arranged(model[0], model[0].weight.detach())
    manager.on_train_end()
    assert type(model[1]) is nn.Identity
    assert not list(model[1].state_dict())
    codes, scale = quantize_weight(weight * factor.view(-1, *[1] * (weight.dim() - 1)), 0)
    assert torch.equal(model[0].qweight, codes)
    assert torch.equal(model[0].weight_scale, scale.flatten())
    torch.testing.assert_close(model[0].bias, shift)
    with torch.no_grad():
        torch.testing.assert_close(model(x), simulated(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layer", "norm", "shape"), PAIRS)
def test_folding_changes_nothing_but_the_rounding(layer: Callable[[], Any], norm: Any, shape: Any):
    x = torch.randn(shape)
    _, model = one_pair(layer(), norm(4), x)
    module = model[0]
    module.__dict__["_rounded_along"] = lambda weight, axis, outputs: weight
    module.__dict__["_rounded_input"] = lambda values: values
    given = module(x)
    disable_fake_quant(model)
    torch.testing.assert_close(given, module(x), rtol=1e-4, atol=1e-4)


def test_a_gamma_of_zero_gives_its_shift_and_can_learn():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    with torch.no_grad():
        model[1].weight[1] = 0.0
        model[1].bias.fill_(0.25)
    manager = prepare_compression(model, CONFIG)
    manager.on_train_begin()
    x = torch.randn(2, 3, 6, 6)
    output = model.train()(x)
    (output * torch.randn_like(output)).sum().backward()
    assert model[1].weight.grad[1] != 0
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    manager.on_before_optimizer_step()
    with torch.no_grad():
        expected = model.eval()(x)
        manager.on_train_end()
        assert (model(x)[:, 1] == 0.25).all()
        assert not model[0].qweight[1].any()
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_weights_get_the_gradient_of_the_float_model_but_for_rounding():
    x, model = torch.randn(8, 3, 6, 6), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh())
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2)
    reference = copy.deepcopy(model)
    manager = prepare_compression(model, CONFIG)
    manager.on_train_begin()
    for each in (model, reference):
        each.train()(x).square().sum().backward()
    for name in ("0.weight", "1.weight", "1.bias"):
        given, expected = (each.get_parameter(name).grad.flatten() for each in (model, reference))
        assert F.cosine_similarity(given, expected, dim=0) > 0.999


def test_frozen_statistics_make_training_equal_evaluation_and_the_folded_layer():
    manager, model = managed(freeze_batch_norm_step=2, freeze_observers_step=2)
    manager.on_train_begin()
    train(manager, 3)
    manager.on_step_begin(3)
    before = model.blocks[0].bn1.running_mean.clone()
    with torch.no_grad():
        assert torch.equal(model.train()(BATCHES[0]), model.eval()(BATCHES[0]))
    assert torch.equal(model.blocks[0].bn1.running_mean, before)
    manager.on_train_end()
    assert type(model.blocks[0].bn1) is nn.Identity


def test_pruned_zeros_stay_zeros_in_codes_of_folded_weights():
    model = Net()
    pruning = WeightPruningConfig(
        target_sparsity=0.5, pruning_type="magnitude", pattern="1x1", start_step=0, end_step=4, pruning_frequency=1
    )
    manager = prepare_compression(model, [CONFIG, pruning])
    manager.on_train_begin()
    train(manager, 8)
    zeros = {name: module.weight == 0 for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    manager.on_train_end()
    assert sum(int(zero.sum()) for zero in zeros.values()) > 0.4 * sum(zero.numel() for zero in zeros.values())
    for name, zero in zeros.items():
        assert not model.get_submodule(name).qweight[zero].any()


@pytest.mark.parametrize("cut", [1, 5])
def test_a_run_that_is_cut_goes_on_bit_for_bit(cut: int):
    def begun(seed: int) -> tuple[Any, Any, Any]:
        manager, model = managed(Net(seed), freeze_batch_norm_step=6)
        return manager, model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)

    manager, model, optimizer = begun(0)
    manager.on_train_begin()
    train(manager, cut, optimizer=optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), manager.state_dict()))
    train(manager, 8 - cut, begin=cut, optimizer=optimizer)
    manager.on_train_end()

    again, resumed, other = begun(1)
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    again.on_train_begin()
    train(again, 8 - cut, begin=cut, optimizer=other)
    again.on_train_end()
    state = resumed.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_keys_names_parameters_and_class_stay_until_conversion():
    model = Net()
    kind, keys, parameters = type(model), list(model.state_dict()), list(model.parameters())
    names = [name for name, _ in model.named_modules()]
    manager = prepare_compression(model, CONFIG)
    manager.on_train_begin()
    train(manager, 1)
    assert list(model.state_dict()) == keys
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert [name for name, _ in model.named_modules() if not name.startswith(SNAPS)] == names
    assert isinstance(model, kind)
    assert type(model).__name__ == "Net"
    assert model.blocks[0](torch.randn(1, 8, 4, 4)).shape == (1, 8, 4, 4)


def test_the_float_model_computes_as_before_until_training_begins():
    model, x = Net().eval(), BATCHES[0]
    expected = model(x)
    prepare_compression(model, CONFIG)
    assert torch.equal(model(x), expected)


def test_a_graph_that_is_not_the_model_is_given_up_at_the_first_batch():
    class Shaped(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x / math.sqrt(int(_size(x))))

    manager, model = managed(Shaped())
    manager.on_train_begin()
    statistics = {name: tensor.clone() for name, tensor in model.named_buffers()}
    random = torch.get_rng_state()
    with pytest.warns(InexactWarning, match="trained layer by layer, not as a graph: its graph gives something else"):
        model.train()
        manager.on_step_begin(0)
        loss = model(BATCHES[0]).sum()
    assert torch.equal(torch.get_rng_state(), random)
    assert not is_graph(model)
    moved = {name for name, tensor in model.named_buffers() if not torch.equal(tensor, statistics[name])}
    assert int(model.stem[1].num_batches_tracked) == 1
    assert moved
    loss.backward()
    manager.on_before_optimizer_step()
    manager.on_train_end()
    assert type(model.stem[1]) is nn.BatchNorm2d
    assert SNAPS not in dict(model.named_children())
    assert "layer by layer" in " ".join(manager.report().modules[0].notes)


def _size(x: torch.Tensor) -> int:
    """Something that a trace takes for a constant."""
    return x.shape[0] if isinstance(x, torch.Tensor) else 8 - 7


def test_verification_calls_no_hooks_and_happens_once():
    manager, model = managed()
    manager.on_train_begin()
    calls: list[str] = []
    model.stem[0].register_forward_hook(lambda *_: calls.append("stem"))
    model.train()
    model(BATCHES[0])
    model(BATCHES[1])
    assert calls == ["stem", "stem"]


def test_hooks_on_a_block_that_come_later_give_the_graph_up():
    manager, model = managed()
    manager.on_train_begin()
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_hook(lambda *_: seen.append(torch.zeros(())))
    with pytest.warns(InexactWarning, match="'blocks.0' has hooks"):
        model.train()(BATCHES[0])
    assert len(seen) == 1


def test_a_run_whose_graph_was_given_up_is_resumed_without():
    manager, model = managed()
    model.blocks[0].register_forward_hook(lambda *_: None)
    manager.on_train_begin()
    with pytest.warns(InexactWarning, match="has hooks"):
        train(manager, 2)
    saved = copy.deepcopy((model.state_dict(), manager.state_dict()))
    again, resumed = managed()
    resumed.load_state_dict(saved[0])
    with pytest.warns(InexactWarning, match="the run that is resumed was not"):
        again.load_state_dict(saved[1])
    again.on_train_begin()
    assert not is_graph(resumed)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_by_dynamo_it_trains_as_a_graph():
    manager, model = managed()
    compiled = torch.compile(model, backend="eager")
    manager.on_train_begin()
    losses = []
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(3):
        loss = F.cross_entropy(compiled(BATCHES[step]), LABELS[step])
        loss.backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert is_graph(model)
    assert all(module.grid is not None for module in model.modules() if isinstance(module, FakeQuantSnap))
    assert all(math.isfinite(loss) for loss in losses)


def test_a_frozen_range_of_a_snap_stays():
    manager, model = managed(freeze_observers_step=2)
    manager.on_train_begin()
    train(manager, 2)
    grids = {name: module.grid for name, module in model.named_modules() if isinstance(module, FakeQuantSnap)}
    assert grids
    assert all(grid is not None for grid in grids.values())
    train(manager, 2, begin=2)
    assert grids == {name: module.grid for name, module in model.named_modules() if isinstance(module, FakeQuantSnap)}


def test_off_trains_layer_by_layer():
    manager, model = managed(graph="off")
    manager.on_train_begin()
    train(manager, 1)
    assert not is_graph(model)
    assert not any(isinstance(module, FakeQuantSnap) for module in model.modules())
    manager.on_train_end()
    assert type(model.stem[1]) is nn.BatchNorm2d
