"""All recipes together, on a language model and a convolutional one; training's rounding; quantizing from files."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inc_torch import PostTrainingQuantConfig, QuantizationAwareTrainingConfig, prepare_compression, quantization
from inc_torch.core.errors import ModelError
from inc_torch.quantizers import (
    GraphStage,
    calibrate,
    enable_fake_quant,
    fold_ranges,
    realise,
    trace_flow,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/quantization.json").read_text())["qat"]


def tiny_llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.3,
            use_cache=False,
        )
    ).eval()


def tokens() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 32, (4, 8), generator=generator)} for _ in range(3)]


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(),
        nn.Conv2d(8, 6, 1, bias=False),
        nn.ConvTranspose2d(6, 4, 2, stride=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()


def images() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    channels = torch.tensor([1.0, 20.0, 0.1]).view(-1, 1, 1)
    return [{"input": channels * torch.randn(4, 3, 8, 8, generator=generator)} for _ in range(3)]


Data = list[dict[str, torch.Tensor]]
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Data]]] = {
    "llama": (tiny_llama, tokens),
    "convolutions": (conv_net, images),
}
AUTO = {"alpha": "auto", "auto_alpha_args": {"alpha_step": 0.25}}
SMOOTHING: dict[str, dict[str, Any] | None] = {
    "not smoothed": None,
    "alpha": {"alpha": 0.7},
    "alphas": {"alpha": [0.3, 0.7]},
    "auto": AUTO,
    "blocks": {**AUTO, "auto_alpha_args": {"alpha_step": 0.25, "do_blockwise": True}},
}


def combinations() -> list[Any]:
    cases = []
    for model, smoothing, folding in itertools.product(MODELS, SMOOTHING, (False, True)):
        if (model == "convolutions" and smoothing == "blocks") or (folding and SMOOTHING[smoothing] is None):
            continue
        for corrections in ("", "bias", "weight", "bias and weight", "float ends"):
            parts = [model, smoothing, *(["folded"] if folding else []), *([corrections] if corrections else [])]
            cases.append(pytest.param(model, smoothing, folding, corrections, id=", ".join(parts)))
    return cases


def recipes_of(smoothing: str, folding: bool, corrections: str) -> dict[str, Any]:
    arguments = SMOOTHING[smoothing]
    return {
        **({} if arguments is None else {"smooth_quant": True, "smooth_quant_args": {**arguments, "folding": folding}}),
        "fast_bias_correction": "bias" in corrections,
        "weight_correction": "weight" in corrections,
        "first_conv_or_matmul_quantization": corrections != "float ends",
        "last_conv_or_matmul_quantization": corrections != "float ends",
    }


def output(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    result = model(**batch)
    return getattr(result, "logits", result)


def simulation(model: nn.Module, config: PostTrainingQuantConfig, data: Data) -> nn.Module:
    """What `fit` does, step by step, up to the conversion."""
    spec = config.to_spec()
    decisions = GraphStage().prepare(model, spec.quant)

    def run(prepared: nn.Module) -> None:
        for batch in data:
            prepared(**batch)

    with torch.no_grad():
        calibration = calibrate(model, lambda: run(model), keep=spec.kept_samples)
        if spec.smoothing is not None and spec.smoothing.folding:
            calibration.flow = trace_flow(model, run)
        realise(model, spec, calibration, decisions, run)
    enable_fake_quant(model, observe=False)
    return model


@pytest.mark.filterwarnings("ignore:Of the alphas")
@pytest.mark.parametrize(("name", "smoothing", "folding", "corrections"), combinations())
def test_a_recipe_computes_what_its_simulation_does_and_stays_near_float(
    name: str, smoothing: str, folding: bool, corrections: str
) -> None:
    build, load = MODELS[name]
    model, data = build(), load()
    config = PostTrainingQuantConfig(recipes=recipes_of(smoothing, folding, corrections))
    quantized = quantization.fit(model, config, data)
    simulated = simulation(build(), config, data)
    with torch.no_grad():
        expected, given, meant = (output(each, data[0]) for each in (model, quantized, simulated))
    torch.testing.assert_close(given, meant, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert F.cosine_similarity(given.flatten(), expected.flatten(), dim=0) > 0.995


@pytest.mark.parametrize("space", [(1, 5, 5), (2, 5, 5), (5, 1, 5), (5, 5, 1), (1, 1, 5)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("build", [nn.Conv3d, nn.ConvTranspose3d])
def test_volumes_of_one_channel_or_one_plane(build: Any, channels: int, space: tuple[int, ...]) -> None:
    model, data = build(channels, 4, 2, padding=1), torch.randn(2, channels, *space)
    if build is nn.ConvTranspose3d:
        model.padding = (0, 0, 0)
    quantized, expected = quantization.fit(model, PostTrainingQuantConfig(), [data]), model(data)
    for _ in range(3):
        assert (quantized(data) - expected).abs().max() < 0.03 * expected.abs().max()


class TestRoundingInTraining:
    """Grids of simulated rounding, as recorded in INC: ``qat.fake_quant`` of the vectors."""

    recorded = VECTORS["fake_quant"]
    data = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))

    def trained(self, per_tensor: bool = False) -> Any:
        torch.manual_seed(0)
        weight = {"weight": {"granularity": "per_tensor"}} if per_tensor else {}
        config = QuantizationAwareTrainingConfig(op_type_dict={"Linear": weight} if weight else None)
        manager = prepare_compression(nn.Sequential(nn.Linear(4, 6)), config)
        manager.callbacks.on_train_begin()
        manager.model.train()
        manager.model(self.data)
        fold_ranges(manager.model)
        return manager

    def test_weights_take_all_codes_by_a_scale_for_each_output(self) -> None:
        recorded = {
            (entry["qmin"], entry["qmax"], entry["qscheme"], entry["ch_axis"])
            for name, entry in self.recorded.items()
            if name.endswith("weight_fake_quant")
        }
        manager = self.trained()
        layer = manager.model[0]
        weight = layer.weight.detach().clone()
        rounded = layer._rounded_weight(weight)
        manager.callbacks.on_train_end()
        codes, scale = layer.qweight.float(), layer.weight_scale
        assert recorded == {(-128, 127, "torch.per_channel_symmetric", 0)}
        assert torch.equal(rounded, codes * scale.unsqueeze(1))
        torch.testing.assert_close(scale, weight.abs().amax(1) / 127.5)
        ends = torch.where(weight.gather(1, weight.abs().argmax(1, keepdim=True)) < 0, -128.0, 127.0)
        assert torch.equal(codes.gather(1, weight.abs().argmax(1, keepdim=True)), ends)

    def test_one_scale_if_asked(self) -> None:
        manager = self.trained(per_tensor=True)
        weight = manager.model[0].weight.detach().clone()
        manager.callbacks.on_train_end()
        torch.testing.assert_close(manager.model[0].weight_scale, (weight.abs().max() / 127.5).expand(6))

    def test_inputs_take_all_codes_by_one_affine_range(self) -> None:
        recorded = {
            (entry["qmin"], entry["qmax"], entry["qscheme"])
            for name, entry in self.recorded.items()
            if name.startswith("activation")
        }
        assert recorded == {(0, 255, "torch.per_tensor_affine")}
        layer = self.trained().model[0]
        codes = layer._rounded_input(self.data) / layer.grid.scale + layer.grid.zero_point
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
        assert (codes.min().round(), codes.max().round()) == (0, 255)
        assert layer.grid.scale == pytest.approx((self.data.max() - self.data.min()).item() / 255)
        assert layer.grid.zero_point == math.floor(-self.data.min().item() / layer.grid.scale + 0.5)


class TestLayerByLayer:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        tiny_llama().save_pretrained(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        "recipes",
        [
            {},
            {"fast_bias_correction": True, "weight_correction": True},
            {"smooth_quant": True},
            {"smooth_quant": True, "smooth_quant_args": {"folding": True}},
            {"last_conv_or_matmul_quantization": False},
        ],
        ids=["plain", "corrected", "smoothed", "folded", "float head"],
    )
    def test_an_empty_model_becomes_what_the_loaded_one_does(self, directory: Path, recipes: dict[str, Any]) -> None:
        transformers = pytest.importorskip("transformers")
        from inc_torch.huggingface import load_empty_model

        loaded = transformers.AutoModelForCausalLM.from_pretrained(directory)
        expected = quantization.fit(loaded, PostTrainingQuantConfig(recipes=recipes), tokens())
        empty = load_empty_model(directory)
        config = PostTrainingQuantConfig(recipes={**recipes, "layer_wise_quant": True})
        quantized = quantization.fit(empty, config, tokens())
        state = expected.state_dict()
        assert quantized.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in quantized.state_dict().items())
        assert torch.equal(output(quantized, tokens()[0]), output(expected, tokens()[0]))
        assert all(parameter.is_meta for parameter in empty.parameters())

    def test_without_the_recipe_it_is_refused(self, directory: Path) -> None:
        from inc_torch.huggingface import load_empty_model

        with pytest.raises(ModelError, match=r"meta device.*recipes=\{'layer_wise_quant': True\}"):
            quantization.fit(load_empty_model(directory), PostTrainingQuantConfig(), tokens())
