"""Modules under training: off is float, on is rounding, and everything around stays what it was."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from inc_torch.quantizers import (
    QuantScheme,
    QuantSpec,
    disable_fake_quant,
    enable_fake_quant,
    fold_ranges,
    prepare_fake_quant,
)
from inc_torch.quantizers._codes import input_grid, snap, snap_weight
from inc_torch.quantizers._input_range import InputRange
from tests.unit.quantizers.models import observed, tiny_gpt2

SCHEMES = {
    "default": QuantScheme(),
    "per tensor": QuantScheme(per_channel=False),
    "symmetric": QuantScheme(symmetric_input=True),
    "reduced": QuantScheme(input_bits=7),
    "four bits": QuantScheme(weight_bits=4),
}


def rounded(x, scheme=SCHEMES["default"]):
    """Round by the range of ``x`` itself, which is what one observed step gives."""
    return snap(x, input_grid(min(float(x.min()), 0.0), max(float(x.max()), 0.0), scheme))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_linear_is_rounded_input_times_rounded_weight(scheme):
    layer = nn.Linear(12, 7)
    x = torch.randn(5, 12)
    axis = 0 if scheme.per_channel else None
    expected = F.linear(rounded(x, scheme), snap_weight(layer.weight, axis, scheme.weight_bits), layer.bias)
    assert torch.equal(observed(layer, x, scheme)(x), expected)


CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 10)),
    "2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 9)),
    "3d": (lambda: nn.Conv3d(4, 6, 2), (2, 4, 5, 5, 5)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2, dilation=2, bias=False), (2, 4, 9, 9)),
    "same": (lambda: nn.Conv2d(4, 6, 4, padding="same"), (2, 4, 9, 9)),
    "circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 9, 9)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize(("make", "shape"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_is_the_float_one_on_rounded_operands(make, shape):
    layer, x = make(), torch.randn(shape)
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        plain.weight.copy_(snap_weight(layer.weight, 0))
    assert torch.equal(observed(layer, x)(x), plain(rounded(x)))


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: nn.Linear(4, 3), torch.randn(2, 4)),
        (lambda: nn.Conv2d(4, 3, 3), torch.randn(2, 4, 5, 5)),
        (lambda: nn.Embedding(9, 3), torch.tensor([[1, 8]])),
    ],
    ids=["linear", "conv", "embedding"],
)
def test_off_is_exactly_float_and_observes_nothing(make, x):
    layer = make()
    expected = layer(x)
    prepare_fake_quant(layer, QuantSpec())
    assert torch.equal(layer.train()(x), expected)
    assert (layer._input_range.steps, layer._input_range.pending) == (0, None)
    enable_fake_quant(layer, observe=True)
    assert not torch.equal(layer(x), expected)
    disable_fake_quant(layer)
    assert torch.equal(layer(x), expected)


def test_unseen_input_passes_and_only_weights_are_rounded():
    layer = nn.Linear(4, 3)
    prepare_fake_quant(layer, QuantSpec())
    enable_fake_quant(layer, observe=True)
    x = torch.randn(2, 4)
    assert torch.equal(layer.eval()(x), F.linear(x, snap_weight(layer.weight, 0), layer.bias))
    assert layer.grid is None


def test_ranges_are_followed_in_training_only_and_only_when_asked():
    layer = nn.Linear(4, 3)
    prepare_fake_quant(layer, QuantSpec())
    enable_fake_quant(layer, observe=True)
    layer.train()(torch.ones(2, 4))
    layer.eval()(torch.ones(2, 4) * 9)
    fold_ranges(layer)
    assert layer._input_range == InputRange(0.0, 1.0, 1)
    enable_fake_quant(layer, observe=False)
    layer.train()(torch.ones(2, 4) * 9)
    fold_ranges(layer)
    assert layer._input_range == InputRange(0.0, 1.0, 1)


def test_a_range_takes_effect_at_the_step_after():
    layer = nn.Linear(4, 3)
    prepare_fake_quant(layer, QuantSpec())
    enable_fake_quant(layer, observe=True)
    x = torch.randn(2, 4)
    unrounded = F.linear(x, snap_weight(layer.weight, 0), layer.bias)
    for _ in range(2):
        assert torch.equal(layer(x), unrounded)
    fold_ranges(layer)
    assert torch.equal(layer(x), F.linear(rounded(x), snap_weight(layer.weight, 0), layer.bias))
    before = layer.grid
    layer(x * 5)
    assert layer.grid == before
    fold_ranges(layer)
    assert layer.grid.scale == pytest.approx(before.scale * 3)  # the mean of 1 and 5


def test_gradients_of_a_linear_layer():
    layer = nn.Linear(6, 3)
    prepare_fake_quant(layer, QuantSpec())
    layer._input_range = InputRange(-1.0, 1.0, 1)
    enable_fake_quant(layer, observe=False)
    x = torch.randn(4, 6, requires_grad=True)
    upstream = torch.randn(4, 3)
    (layer(x) * upstream).sum().backward()
    snapped = snap(x, layer.grid)
    low, high = layer.grid.limits
    inside = (x > low) & (x < high)
    assert torch.allclose(layer.weight.grad, upstream.T @ snapped)
    assert torch.allclose(layer.bias.grad, upstream.sum(0))
    assert torch.allclose(x.grad, (upstream @ snap_weight(layer.weight, 0)) * inside)
    assert inside.any()
    assert not inside.all()


def test_autocast_trains_in_bfloat16():
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    prepare_fake_quant(model, QuantSpec())
    enable_fake_quant(model, observe=True)
    x = torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        loss = y.float().square().mean()
    loss.backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in model.parameters())
    with torch.no_grad():
        assert torch.allclose(model(x), y.float(), atol=0.03)


def test_bfloat16_model_trains():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4)).bfloat16()
    prepare_fake_quant(model, QuantSpec())
    enable_fake_quant(model, observe=True)
    y = model(torch.arange(10))
    y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters())


# ------------------------------------------------------------------------------ smoothing and bias correction


def transposed_linear():
    """GPT-2's linear layer, [in, out]."""
    return tiny_gpt2().transformer.h[0].mlp.c_fc


SMOOTHED = {
    "linear": (lambda: nn.Linear(8, 5), (3, 8)),
    "transposed linear": (transposed_linear, (3, 32)),
    "conv1d": (lambda: nn.Conv1d(8, 6, 3), (2, 8, 9)),
    "grouped conv2d": (lambda: nn.Conv2d(8, 6, 3, groups=2), (2, 8, 5, 5)),
    "unbatched conv2d": (lambda: nn.Conv2d(8, 6, 3), (8, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(8, 6, 2), (2, 8, 3, 3, 3)),
    "transposed conv": (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2), (2, 8, 5, 5)),
    "grouped transposed conv": (lambda: nn.ConvTranspose1d(8, 6, 3, groups=2), (2, 8, 5)),
}


@pytest.mark.parametrize(("make", "shape"), SMOOTHED.values(), ids=SMOOTHED)
def test_smoothing_moves_scale_from_inputs_to_weights_and_cancels_out(make, shape):
    layer, x = make(), torch.randn(shape)
    expected = layer(x)
    axis = -1 if isinstance(layer, nn.Linear) or len(shape) == 2 else -len(layer.kernel_size) - 1
    scale = torch.rand(shape[axis]) * 3 + 0.1
    prepare_fake_quant(layer, QuantSpec())
    layer.smooth(scale)
    assert torch.equal(layer(x), expected)
    # Rounding so fine that nothing of it is left shows what is rounded: both operands, smoothed.
    enable_fake_quant(layer, observe=True)
    layer._rounded_weight = layer._smoothed
    assert torch.allclose(layer.train()(x), expected, rtol=1e-4, atol=1e-5)
    fold_ranges(layer)
    smoothed = x.movedim(axis, -1) / scale
    assert layer._input_range.high == pytest.approx(float(smoothed.max()))
    assert layer._input_range.low == pytest.approx(float(smoothed.min()))


@pytest.mark.parametrize(("make", "shape"), SMOOTHED.values(), ids=SMOOTHED)
def test_the_correction_of_a_bias_counts_while_rounding_is_on(make, shape):
    layer, x = make(), torch.randn(shape)
    plain = layer(x)
    observed(layer, x)
    rounded_output = layer(x)
    channels = layer.int8_weight()[1].numel()
    correction = torch.arange(float(channels))
    layer.correct_bias(correction)
    shaped = correction if layer.kind == "linear" else correction.view(-1, *[1] * len(layer.kernel_size))
    assert torch.allclose(layer(x), rounded_output + shaped, atol=1e-5)
    disable_fake_quant(layer)
    assert torch.equal(layer(x), plain)


def test_a_correction_can_be_taken_back_and_needs_no_bias():
    layer, x = nn.Linear(8, 5, bias=False), torch.randn(3, 8)
    observed(layer, x)
    before = layer(x)
    layer.correct_bias(torch.ones(5))
    assert torch.allclose(layer(x), before + 1)
    assert layer.bias is None
    layer.correct_bias(None)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("bias", [True, False])
def test_smoothing_and_correction_take_the_dtype_of_the_model(bias):
    layer = nn.Linear(8, 5, bias=bias).bfloat16()
    x = torch.randn(3, 8).bfloat16()
    prepare_fake_quant(layer, QuantSpec())
    layer.smooth(torch.ones(8))
    layer.correct_bias(torch.zeros(5))
    enable_fake_quant(layer, observe=True)
    assert layer(x).dtype == torch.bfloat16


# ------------------------------------------------------------------------------ embedding


@pytest.mark.parametrize("ids", [torch.tensor([[1, 2], [2, 0]]), torch.arange(6).repeat(4)], ids=["few", "many"])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"scale_grad_by_freq": True}, {"sparse": True}], ids=str)
def test_embedding_rounds_rows_and_keeps_torch_semantics(ids, options):
    layer = nn.Embedding(6, 5, **options)
    plain = nn.Embedding(6, 5, **options)
    plain.weight = nn.Parameter(snap_weight(layer.weight, 0))
    prepare_fake_quant(layer, QuantSpec())
    enable_fake_quant(layer, observe=True)
    upstream = torch.randn(*ids.shape, 5)
    y, expected = layer(ids), plain(ids)
    assert torch.equal(y, expected)
    (y * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert layer.weight.grad.is_sparse == plain.weight.grad.is_sparse
    assert torch.allclose(layer.weight.grad.to_dense(), plain.weight.grad.to_dense())


@pytest.mark.parametrize("count", [2, 50])
def test_embedding_with_max_norm_shortens_the_rows_it_looks_up(count):
    layer = nn.Embedding(6, 5, max_norm=1.0)
    plain = copy.deepcopy(layer)
    prepare_fake_quant(layer, QuantSpec())
    enable_fake_quant(layer, observe=True)
    ids = torch.arange(count) % 2
    assert torch.equal(layer(ids), snap_weight(plain(ids), 0))
    assert torch.equal(layer.weight, plain.weight)


@pytest.mark.parametrize(
    "ids", [torch.tensor(3), torch.empty(0, dtype=torch.long), torch.empty(2, 0, dtype=torch.long)]
)
def test_embedding_of_odd_shapes(ids):
    layer = nn.Embedding(6, 5)
    prepare_fake_quant(layer, QuantSpec())
    enable_fake_quant(layer, observe=True)
    assert layer(ids).shape == (*ids.shape, 5)


# ------------------------------------------------------------------------------ what stays


def test_identity_names_hooks_and_types_stay():
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(2, 2, 1), nn.Embedding(3, 2))
    parameters, keys, modules = list(model.parameters()), list(model.state_dict()), list(model.modules())
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("after"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    prepare_fake_quant(model, QuantSpec())
    assert all(now is before for now, before in zip(model.parameters(), parameters, strict=True))
    assert all(now is before for now, before in zip(model.modules(), modules, strict=True))
    assert list(model.state_dict()) == keys
    assert list(model.buffers()) == []
    assert isinstance(model[0], nn.Linear)
    assert isinstance(model[1], nn.Conv1d)
    assert isinstance(model[2], nn.Embedding)
    enable_fake_quant(model, observe=True)
    model[0](torch.randn(1, 4))
    assert calls == ["before", "after"]


def test_deepcopy_and_pickle_carry_ranges_apart():
    model = observed(nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    x = torch.randn(3, 4)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(x), model(x))
        twin.train()(torch.ones(1, 4) * 5)
        fold_ranges(twin)
        assert twin[0]._input_range.high == 3.0
    assert model[0]._input_range.high == 1.0


def test_state_dict_goes_both_ways_with_the_float_model():
    model, plain = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    prepare_fake_quant(model, QuantSpec())
    model.load_state_dict(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model[0].weight, plain[0].weight)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients_and_observes_once(reentrant):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
    prepare_fake_quant(model, QuantSpec())
    enable_fake_quant(model, observe=True)
    twin = copy.deepcopy(model)
    x = torch.randn(4, 6, requires_grad=True)
    for _ in range(3):
        model(x).square().sum().backward()
        checkpoint(twin, x, use_reentrant=reentrant).square().sum().backward()
        fold_ranges(model)
        fold_ranges(twin)
    for ours, others in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, others.grad)
    assert twin[0]._input_range == model[0]._input_range
    assert model[0]._input_range.steps == 3


def test_conv1d_of_transformers_is_rounded_per_output_column():
    layer = tiny_gpt2().transformer.h[0].attn.c_attn
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    x = torch.randn(2, 3, 32)
    y = observed(layer, x)(x)
    expected = torch.addmm(bias, rounded(x).view(6, 32), snap_weight(weight, 1)).view(2, 3, 96)
    assert torch.equal(y, expected)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert type(loaded) is type(layer)
    assert torch.equal(loaded(x), y)


def test_module_has_no_other_attributes():
    import inc_torch.quantizers._fake_quant_modules as module

    with pytest.raises(AttributeError, match="has no attribute 'QATLinaer'"):
        module.QATLinaer  # noqa: B018
