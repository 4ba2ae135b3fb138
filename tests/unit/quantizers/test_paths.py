"""The ways to compute on codes give the same: within one step of the output's own rounding, on every device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from inc_torch import PostTrainingQuantConfig, QuantizationAwareTrainingConfig, prepare_compression, quantization
from inc_torch.core.errors import ConfigError
from inc_torch.quantizers import computing_by
from inc_torch.quantizers._int8_module import onednn_operator
from inc_torch.quantizers._int_mm import multiply_codes

PATHS = ["onednn", "int_mm", "reference"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def operators_of(call):
    """Names of the operators that a call runs."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():
        call()
    return seen


def int8(module, inputs, approach="static", **options):
    config = PostTrainingQuantConfig(approach=approach, graph="off", **options)
    return quantization.fit(nn.Sequential(module), config, calib_dataloader=[inputs])[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("approach", ["static", "dynamic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "outputs"), [((40, 24), 16), ((3, 7, 19), 5), ((1, 8), 8), ((19,), 3)], ids=str)
def test_linear_layers(shape, outputs, approach, path, dtype, device):
    torch.manual_seed(0)
    inputs = torch.randn(shape) + 0.3
    layer = int8(nn.Linear(shape[-1], outputs), inputs, approach).to(device)
    inputs = inputs.to(device, dtype)
    grid_of = torch.aminmax(inputs.float())
    with computing_by(path):
        output = layer(inputs)
    with computing_by("reference"):
        exact = layer(inputs.float())
    # One step of the input's grid, which is all that may differ where a value lies between two codes.
    step = (max(grid_of.max, 0) - min(grid_of.min, 0)) / 255 * layer.weight.float().abs().amax()
    limit = step + {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype] * exact.abs().max()
    assert output.dtype == dtype
    assert output.shape == (*shape[:-1], outputs)
    assert (output - exact).abs().max() <= limit
    if dtype == torch.float32:
        assert (output - exact).abs().max() <= 2e-6 * exact.abs().max()  # the same codes


@pytest.mark.parametrize("approach", ["static", "dynamic"])
def test_the_path_that_is_asked_for_is_taken(approach):
    layer = int8(nn.Linear(24, 16), torch.randn(40, 24), approach)
    expected = {
        "onednn": ("qlinear_pointwise", "qlinear_pointwise.default"),
        "int_mm": ("_int_mm.default",),
        "reference": ("addmm.default",),
    }
    for path, names in expected.items():
        if path == "onednn" and onednn_operator("qlinear_pointwise") is None:
            continue
        with computing_by(path):
            seen = operators_of(lambda: layer(torch.randn(40, 24)))
        assert any(name.startswith(names) for name in seen), (path, seen)
        for other, others in expected.items():
            assert other == path or not any(name.startswith(others) for name in seen)


def test_smoothed_inputs_and_symmetric_grids():
    inputs = torch.randn(64, 32) * torch.linspace(0.1, 20, 32)
    recipes = {"smooth_quant": True, "smooth_quant_args": {"alpha": 0.5}}
    rules = {".*": {"activation": {"scheme": "sym"}}}
    layer = int8(nn.Linear(32, 8), inputs, recipes=recipes, op_type_dict=rules)
    assert layer.input_factor is not None
    outputs = []
    for path in PATHS:
        with computing_by(path):
            outputs.append(layer(inputs))
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(3, 8, 3, padding=1),
        lambda: nn.Conv2d(8, 8, 3, stride=2, groups=4),
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2),
        lambda: nn.Conv1d(4, 6, 5, padding="same"),
    ],
)
def test_convolutions_have_no_product_of_integers_and_compute_the_same(make, path):
    torch.manual_seed(0)
    module = make()
    inputs = torch.randn(2, module.in_channels, *[9] * len(module.kernel_size))
    layer = int8(module, inputs)
    with computing_by(path):
        output = layer(inputs)
    with computing_by("reference"):
        torch.testing.assert_close(output, layer(inputs), rtol=1e-5, atol=1e-5)


def test_a_model_trained_under_rounding_computes_the_same_everywhere():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    manager = prepare_compression(model, QuantizationAwareTrainingConfig(graph="off"))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    manager.on_train_begin()
    for step in range(3):
        manager.on_step_begin(step)
        loss = model(torch.randn(8, 16)).square().mean()
        loss.backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        optimizer.zero_grad()
    manager.on_train_end()
    inputs, outputs = torch.randn(5, 16), []
    for path in PATHS:
        with computing_by(path):
            outputs.append(model(inputs))
    # A hidden value between two codes may take either.
    step = model[2].input_scale * model[2].weight.abs().amax()
    assert max((output - outputs[0]).abs().max() for output in outputs) <= step


def test_sums_of_long_rows_are_exact():
    """8192 products of the greatest codes: float32 could not add them up exactly, integers can."""
    from inc_torch.quantizers import InputGrid

    codes = torch.full((1, 8192), 255, dtype=torch.uint8)
    codes[0, 0] = 254
    weight = torch.full((1, 8192), -127, dtype=torch.int8)
    product = multiply_codes(codes, InputGrid(1.0, 0, 255), weight, torch.ones(1), None)
    assert product.item() == float(torch.tensor(-127 * (255 * 8192 - 1), dtype=torch.float32))


def test_a_wrong_path_is_refused_and_a_path_ends_with_its_block():
    with pytest.raises(ConfigError, match=r"computing_by got 'onedn': expected one of .*Did you mean 'onednn'"):
        computing_by("onedn").__enter__()
    layer = int8(nn.Linear(24, 16), torch.randn(40, 24))
    with pytest.raises(ZeroDivisionError), computing_by("reference"):
        raise ZeroDivisionError
    assert "addmm.default" not in operators_of(lambda: layer(torch.randn(40, 24)))
