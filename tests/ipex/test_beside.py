"""What else is done with models of the extension, and what the extension does to torch."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from inc_torch import (
    BenchmarkConfig,
    MixedPrecisionConfig,
    PostTrainingQuantConfig,
    benchmark,
    mix_precision,
    optimize_for_inference,
    quantization,
)
from inc_torch.config import Torch2ONNXConfig
from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.export.onnx import export_onnx
from inc_torch.ipex import deployed, withdraw
from inc_torch.ipex._extension import extension
from tests.ipex.models import natively, residual, rows

pytestmark = pytest.mark.ipex


def deployed_model(kind: str) -> nn.Module:
    if kind == "bfloat16":
        return mix_precision.fit(residual(), MixedPrecisionConfig(backend="ipex", example_inputs=rows()[0]))
    return quantization.fit(residual(), PostTrainingQuantConfig(backend="ipex"), calib_dataloader=rows())


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
@pytest.mark.parametrize("feature", ["optimize_for_inference", "Export to ONNX", "mix_precision.fit"])
def test_what_works_on_modules_says_that_they_do_not_compute(kind, feature, tmp_path):
    model = deployed_model(kind)
    way_back = r"Call inc_torch.ipex.withdraw\(model\) first"
    with pytest.raises(ModelError, match=f"{feature} got a Residual that runs on Intel Ext.*: expected .*{way_back}"):
        if feature == "optimize_for_inference":
            optimize_for_inference(model)
        elif feature == "mix_precision.fit":
            mix_precision.fit(model)
        else:
            config = Torch2ONNXConfig(example_inputs=rows()[0], dtype="int8" if kind == "int8" else "fp32")
            export_onnx(model, tmp_path / "model.onnx", config)
    assert deployed(model) is not None
    assert not list(tmp_path.iterdir())


def test_the_way_back_leads_to_the_default_backend():
    model, batch = deployed_model("int8"), rows()[0]
    expected = natively(model, batch)
    withdraw(model)
    fused = optimize_for_inference(model, batch)
    assert (fused(batch) - expected).abs().max() < 1e-4


def test_what_is_quantized_already_is_refused():
    int8 = quantization.fit(residual(), PostTrainingQuantConfig(), calib_dataloader=rows())
    with pytest.raises(
        ConfigError, match=r"backend='ipex', but Residual is quantized: expected a float model\. For int"
    ):
        mix_precision.fit(int8, MixedPrecisionConfig(backend="ipex"))


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_benchmark_measures_the_program_and_speaks_of_no_other_way(kind):
    """Of the default backend it says that layers run one by one, and should be fused."""
    config = BenchmarkConfig(warmup=1, iteration=3, num_of_instance=1, cores_per_instance=1)
    (model,) = benchmark.fit(deployed_model(kind), config, b_dataloader=rows(), quiet=True).models
    assert len(model.instances) == 1
    assert model.notes == ()
    kernels = {"int8": "dequantize+dequantize+linear", "bfloat16": "ipex_prepack::linear_run"}
    assert model.kernels[kernels[kind]] == 1
    native = quantization.fit(residual(), PostTrainingQuantConfig(graph="off"), calib_dataloader=rows())
    (model,) = benchmark.fit(native, config, b_dataloader=rows(), quiet=True).models
    assert any("int8" in note for note in model.notes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_weights", [True, False])
def test_gradients_of_layer_normalization_are_those_of_its_formula(dtype, has_weights):
    """The extension puts a kernel without a gradient in the place of torch's; torch warns, and takes its own."""
    extension()
    torch.manual_seed(0)
    given = torch.randn(6, 5, 24).mul(3).add(1).to(dtype)
    weight, bias = (torch.randn(24).to(dtype) if has_weights else None for _ in range(2))
    towards = torch.randn(6, 5, 24)

    def gradients(normalize: object, kind: torch.dtype) -> list[torch.Tensor]:
        leaves = [
            None if each is None else each.detach().to(kind, copy=True).requires_grad_()
            for each in (given, weight, bias)
        ]
        (normalize(*leaves) * towards.to(kind)).sum().backward()
        return [leaf.grad for leaf in leaves if leaf is not None]

    def formula(x: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return normal if scale is None else normal * scale + shift

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = gradients(lambda *leaves: F.layer_norm(leaves[0], (24,), *leaves[1:]), dtype)
    expected = gradients(formula, torch.float64)
    assert len(got) == (3 if has_weights else 1)
    tolerance = 1e-5 if dtype is torch.float32 else 0.02
    for mine, exact in zip(got, expected, strict=True):
        assert (mine - exact).abs().max() < tolerance * exact.abs().max()
