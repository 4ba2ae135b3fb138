"""Physical removal in chains of convolutions, batch norms and depthwise convolutions."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from inc_torch import WeightPruningConfig, prepare_compression
from inc_torch.core.errors import InexactWarning, ModelError
from inc_torch.pruners.slimming import model_slim, parse_auto_slim_config
from inc_torch.pruners.slimming._channels import Channels, Sink
from inc_torch.pruners.slimming._cuts import removable_sinks
from inc_torch.pruners.slimming._inputs import example_inputs

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def as_trained(model: nn.Module) -> nn.Module:
    """Statistics and weights of norms that differ from channel to channel."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 2, generator=generator)
            module.bias.data.normal_(generator=generator)
    return model.eval()


def plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 12, 3, bias=False),
        nn.BatchNorm2d(12),
        nn.PReLU(12),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 8, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def inverted() -> nn.Sequential:
    """As in MobileNet: expand, filter each channel, project."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.Conv2d(4, 16, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.Conv2d(16, 4, 1),
        nn.Tanh(),  # so that the convolution is not taken for a classifier
    )


class Residual(nn.Module):
    """As in ResNet: only what is inside a block can go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1))
            for _ in range(2)
        )
        self.last = nn.Tanh()  # so that no convolution is taken for a classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.last(x)


class SqueezeExcite(nn.Module):
    """Something that mixes channels looks at them on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.squeeze, self.project = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.expand(x).relu()
        return self.project(x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid())


FOUND = {
    plain: [Sink("3", ("0",), ("1",)), Sink("7", ("3",), ("4", "5")), Sink("11", ("7",))],
    inverted: [Sink("1", ("0",)), Sink("7", ("1",), ("2", "4", "5"))],
    SqueezeExcite: [],
    Residual: [
        Sink("blocks.0.3", ("blocks.0.0",), ("blocks.0.1",)),
        Sink("blocks.1.3", ("blocks.1.0",), ("blocks.1.1",)),
    ],
}


@pytest.mark.parametrize("build", FOUND, ids=lambda build: build.__name__)
def test_chains_are_followed_through_norms_and_depthwise_convolutions(build):
    torch.manual_seed(0)
    model = as_trained(build())
    before = dict(model.named_parameters())
    assert removable_sinks(model, Channels.of(model), example_inputs(model, [IMAGES])) == FOUND[build]
    assert all(before[name] is parameter for name, parameter in model.named_parameters())


def slimmed(model: nn.Module, sparsity: float = 0.5) -> tuple[torch.Tensor, nn.Module]:
    """What the pruned model gave, and the slimmed one."""
    configs = parse_auto_slim_config(
        model, [IMAGES], conv_sparsity=sparsity, pruning_type="magnitude", pruning_scope="local"
    )
    manager = prepare_compression(model, WeightPruningConfig(configs))
    manager.on_train_begin()
    manager.on_step_begin(0)
    manager.on_train_end()
    with torch.no_grad():
        before = model(IMAGES)
    return before, model_slim(model, [IMAGES], round_multiplier=1)


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


EXPECTED = {
    plain: [(8, 3, 3, 3), (6, 8, 3, 3), (8, 6, 1, 1), (5, 8)],
    inverted: [(2, 3, 1, 1), (8, 2, 1, 1), (8, 1, 3, 3), (4, 8, 1, 1)],
    Residual: [(8, 3, 3, 3), (6, 8, 3, 3), (8, 6, 3, 3), (6, 8, 3, 3), (8, 6, 3, 3)],
}


@pytest.mark.parametrize("build", EXPECTED, ids=lambda build: build.__name__)
def test_half_of_the_channels_are_gone_and_the_outputs_are_the_same(build):
    torch.manual_seed(0)
    before, model = slimmed(as_trained(build()))
    assert shapes(model) == EXPECTED[build]
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), before, rtol=1e-4, atol=1e-5)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        if isinstance(module, nn.BatchNorm2d):
            assert len(module.weight) == len(module.running_var) == module.num_features
    loss = model.train()(IMAGES).square().mean()
    loss.backward()
    assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())


def test_layers_without_a_configuration_lose_what_each_can():
    torch.manual_seed(0)
    model = as_trained(Residual())
    model.blocks[0][3].weight.data[:, :5] = 0
    model.blocks[1][3].weight.data[:, :2] = 0
    with torch.no_grad():
        before = model(IMAGES)
        model_slim(model, [IMAGES], round_multiplier=1)
        torch.testing.assert_close(model(IMAGES), before, rtol=1e-4, atol=1e-5)
    assert [block[0].out_channels for block in model.blocks] == [7, 10]


def test_channels_that_are_mixed_on_the_way_stay():
    torch.manual_seed(0)
    model = SqueezeExcite().eval()
    model.project.weight.data[:, :4] = 0
    with pytest.warns(InexactWarning, match="found nothing to take out of SqueezeExcite"):
        model_slim(model, [IMAGES], round_multiplier=1)
    assert model.expand.out_channels == 8


def test_a_slimmed_network_is_quantized_as_any_other():
    from inc_torch import PostTrainingQuantConfig, quantization

    torch.manual_seed(0)
    _, model = slimmed(as_trained(plain()))
    with torch.no_grad():
        expected = model(IMAGES)
        quantized = quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=[IMAGES])
        found = quantized(IMAGES)
    assert 0 < (found - expected).norm() < 0.1 * expected.norm()


def test_a_model_without_such_chains_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 3))
    with pytest.raises(ModelError, match="no such layer whose inputs other layers make channel by channel"):
        parse_auto_slim_config(model, [IMAGES], conv_sparsity=0.5)


def test_a_configuration_that_cannot_say_so_keeps_the_model_as_it_was():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    torch.manual_seed(0)
    model = as_trained(transformers.ResNetModel(transformers.ResNetConfig(**sizes)))
    inside = [name for name, _ in model.named_modules() if name.endswith("layers.0.layer.1.convolution")]
    for name in inside:
        model.get_submodule(name).weight.data[:, :4] = 0
    before = {name: parameter.shape for name, parameter in model.named_parameters()}
    with pytest.raises(ModelError, match="configuration of ResNetModel cannot describe its weights"):
        model_slim(model, [torch.randn(2, 3, 32, 32)], round_multiplier=1)
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == before
