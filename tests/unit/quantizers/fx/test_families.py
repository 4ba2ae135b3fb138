"""The families of torchvision as graphs: what is folded, what stays in int8, and that it computes what it should."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inc_torch import PostTrainingQuantConfig, quantization
from inc_torch.quantizers import GraphStage, Int8Module, QuantSpec, calibrate, enable_fake_quant, graph_of, realise
from inc_torch.quantizers._snap import Int8Snap
from inc_torch.quantizers.fx._graft import SNAPS, graft_of
from tests.support.vision import efficientnet_lite0, family, images

DATA = images(2)
SNAPPED = {
    "resnet18": {
        "relu": ("layer1.0.conv1",),
        "layer2_0_bn2": (),
        "layer2_0_relu_1": ("layer2.1.conv1",),
        "layer3_0_bn2": (),
        "layer4_0_bn2": (),
        "layer4_0_relu_1": (),
    },
    "densenet": {
        "features_relu0": (),
        "features_denseblock1_denselayer1_conv2": (),
        "features_denseblock1_denselayer2_conv2": (),
        "features_transition1_conv": (),
        "features_transition1_pool": (),
        "features_denseblock2_denselayer1_conv2": (),
        "features_denseblock2_denselayer2_conv2": (),
        "features_denseblock2_denselayer3_conv2": (),
    },
    "shufflenet": {
        "cat": ("stage2.1.branch2.0",),
        "cat_2": ("stage3.1.branch2.0",),
        "cat_3": ("stage3.2.branch2.0",),
        "cat_5": ("stage4.1.branch2.0",),
        "conv5_2": (),
    },
    "vit": {},
    "swin": {},
}


def quantized(model: nn.Module, data: list[torch.Tensor] = DATA, **options: object) -> nn.Module:
    result = quantization.fit(model, PostTrainingQuantConfig(**options), calib_dataloader=data)
    assert isinstance(result, nn.Module)
    return result


def similarity(first: torch.Tensor, second: torch.Tensor) -> float:
    return F.cosine_similarity(first.flatten(), second.flatten(), dim=0).item()


@pytest.mark.parametrize("name", SNAPPED)
def test_tensors_that_stay_in_int8_and_who_shares_their_grid(name: str) -> None:
    model = family(name)
    GraphStage().prepare(model, QuantSpec())
    graft = graft_of(model)
    assert graft is not None
    assert {node: snapped.readers for node, snapped in graft.plan.snaps.items()} == SNAPPED[name]


@pytest.mark.parametrize("name", [*SNAPPED, "mobilenet_v3_small", "resnet50"])
@pytest.mark.filterwarnings("ignore:No calibration data reached")
def test_the_int8_model_is_what_was_simulated_and_near_the_float_model(name: str) -> None:
    model = family(name)
    with torch.no_grad():
        expected = model(DATA[0])
        int8 = quantized(model)
        given = int8(DATA[0])
        simulated = simulation(family(name))(DATA[0])
    assert graph_of(int8) is not None
    # A value between two codes may fall to either, and what follows goes on from there.
    assert (given - simulated).abs().max() < 0.03 * expected.abs().max()
    assert similarity(given, simulated) > 0.9999
    assert similarity(given, expected) > 0.99


def simulation(model: nn.Module) -> nn.Module:
    """What `fit` does, up to the conversion."""
    spec = PostTrainingQuantConfig().to_spec()
    decisions = GraphStage().prepare(model, spec.quant)

    def run(prepared: nn.Module) -> None:
        for batch in DATA:
            prepared(batch)

    realise(model, spec, calibrate(model, lambda: run(model)), decisions, run)
    enable_fake_quant(model, observe=False)
    return model


@pytest.mark.parametrize("name", ["resnet18", "densenet", "shufflenet", "mobilenet_v3_small"])
def test_every_normalization_after_a_layer_is_folded(name: str) -> None:
    model = family(name)
    int8 = quantized(model)
    left = {name for name, module in int8.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    before_a_layer = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and name.endswith(("norm1", "norm5", "transition1.norm"))
    }
    assert left == (before_a_layer if name == "densenet" else set())


def test_readers_of_one_tensor_share_its_grid_bit_for_bit() -> None:
    int8 = quantized(family("resnet18"))
    snap = int8.get_submodule(f"{SNAPS}.relu")
    reader = int8.get_submodule("layer1.0.conv1")
    assert isinstance(snap, Int8Snap)
    assert torch.equal(snap.scale, reader.input_scale)
    assert torch.equal(snap.zero_point, reader.input_zero_point)
    x = torch.randn(2, 64, 8, 8)
    with torch.no_grad():
        assert torch.equal(reader(x), reader(snap(x)))


def test_efficientnet_lite0_with_its_real_weights() -> None:
    model = efficientnet_lite0()
    data = images(3, 2, 96)
    with torch.no_grad():
        expected = model(data[0])
        int8 = quantized(model, data)
        given = int8(data[0])
    assert similarity(given, expected) > 0.99
    assert sum(isinstance(module, Int8Module) for module in int8.modules()) == 50
    assert not any(isinstance(module, nn.BatchNorm2d) for module in int8.modules())
