"""Scales that move outlying channels into the weights, kept by layers or folded into what is before them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from inc_torch.quantizers import QuantScheme, QuantSpec, convert, enable_fake_quant, prepare_fake_quant
from inc_torch.quantizers._flow import Flow, trace_flow
from inc_torch.quantizers._prepare import fake_quant_modules
from inc_torch.quantizers._smoothing import (
    Smoothed,
    apply_smoothing,
    smoothed_range,
    smoothing_groups,
    smoothing_scale,
    weight_magnitudes,
)
from tests.unit.quantizers.models import ROUNDING, relative_error, tiny_bert, tiny_gpt2
from tests.unit.quantizers.seen import Seen, seen_inputs

IDS = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


def tiny_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=64, num_key_value_heads=1))


def tiny_opt():
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32))


def tiny_t5():
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0)
    )


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, groups=4, padding=1),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 8, 3, groups=2, padding=1),
        nn.LeakyReLU(0.1),
        nn.ConvTranspose2d(8, 6, 2, groups=2),
        nn.Conv2d(6, 2, 1),
    )


def chain():
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3, bias=False))


def perturbed(model):
    """``model`` in eval, with norms that do something, running statistics included."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if "Norm" in type(module).__name__:
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.is_floating_point():
                    tensor.data += torch.rand(tensor.shape, generator=generator)
    return model.eval()


def prepared(model, batch, scheme=None):
    prepare_fake_quant(model, QuantSpec(default=scheme or QuantScheme()))
    return model, seen_inputs(model, [batch])


def output(model, batch):
    with torch.no_grad():
        result = model(**batch) if isinstance(batch, dict) else model(batch)
    return result if isinstance(result, torch.Tensor) else result.logits


def folded(model, batch, alpha=0.5):
    """The flow, what was done, and how far outputs in float are apart before and after."""
    prepare_fake_quant(perturbed(model), QuantSpec())
    inputs = seen_inputs(model, [batch])
    before = output(model, batch)
    flow = trace_flow(model, lambda model: output(model, batch))
    done = apply_smoothing(model, inputs, alpha, flow)
    assert all(module.smoothing is None for _, module in fake_quant_modules(model))
    return flow, done, relative_error(output(model, batch), before)


MODELS = {
    "llama": (tiny_llama, {"input_ids": IDS}, 13),
    "gpt2": (tiny_gpt2, {"input_ids": IDS}, 4),
    "opt": (tiny_opt, {"input_ids": IDS}, 10),
    "t5": (tiny_t5, {"input_ids": IDS, "labels": IDS}, 22),
    "convolutions": (conv_net, torch.randn(2, 3, 8, 8), 4),
    "linear": (chain, torch.randn(7, 6), 2),
}


@pytest.mark.filterwarnings("ignore:.*token_id must be")
@pytest.mark.parametrize(("make", "batch", "count"), MODELS.values(), ids=MODELS)
def test_folding_changes_weights_and_not_the_output(make, batch, count):
    model = make()
    before = copy.deepcopy(model.state_dict())
    flow, done, error = folded(model, batch)
    assert error < 1e-5
    smoothed = {name for name, result in done.items() if result.reason is None}
    assert len(smoothed) == count
    for name in smoothed | flow.groups.keys():
        key = f"{name}.weight"
        assert not torch.allclose(model.state_dict()[key], before[key], rtol=0.01), name


def test_residuals_after_the_norm_leave_all_of_bert_alone():
    flow, done, error = folded(tiny_bert(), {"input_ids": IDS})
    assert (flow.groups, error) == ({}, 0.0)
    query = done["bert.encoder.layer.0.attention.self.query"]
    assert query == Smoothed(None, "'bert.embeddings.LayerNorm', which feeds it, also feeds aten.add")


def test_channels_of_input_and_weight_are_equalized_by_half():
    model, inputs = prepared(nn.Linear(6, 3), torch.randn(9, 6) * torch.tensor([1.0, 1.0, 50.0, 1.0, 0.1, 1.0]))
    apply_smoothing(model, inputs, 0.5)
    values = torch.maximum(-inputs[""].channel_low, inputs[""].channel_high)
    torch.testing.assert_close(values.float() / model.smoothing, weight_magnitudes(model) * model.smoothing)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_the_ends_either_weights_or_inputs_are_all_alike(alpha):
    model, inputs = prepared(nn.Linear(6, 3), torch.randn(9, 6))
    apply_smoothing(model, inputs, alpha)
    values = torch.maximum(-inputs[""].channel_low, inputs[""].channel_high).float() / model.smoothing
    weights = weight_magnitudes(model) * model.smoothing
    torch.testing.assert_close(values if alpha else weights, torch.ones(6))


def test_a_dead_channel_is_left_alone():
    """INC divides it by 1e-5, so that what comes there later is 1e5 times as great."""
    assert smoothing_scale(torch.tensor([0.0]), torch.tensor([3.0]), 0.5).item() == 1.0


def test_scales_have_a_least_value():
    assert smoothing_scale(torch.tensor([1e-9]), torch.tensor([9.0]), 1.0).item() == pytest.approx(1e-5)
    assert smoothing_scale(torch.tensor([4.0]), torch.tensor([0.0]), 0.5).item() == pytest.approx(2 / 1e-5**0.5)


def test_the_range_is_that_of_the_smoothed_channels():
    seen = Seen(torch.tensor([-4.0, 1.0]), torch.tensor([2.0, 9.0]))
    assert smoothed_range(seen, torch.tensor([2.0, 3.0])) == (-2.0, 3.0)
    assert smoothed_range(seen, torch.tensor([2.0, 0.5])) == (-2.0, 18.0)
    assert smoothed_range(Seen(torch.tensor([1.0]), torch.tensor([2.0])), torch.tensor([1.0])) == (0.0, 2.0)


def magnitudes_by_gradient(model, x):
    """Which weights an input channel meets, asked of the model itself."""
    axis = x.dim() - 1 - len(getattr(model, "kernel_size", ()))
    greatest = []
    for channel in range(x.shape[axis]):
        only = torch.zeros_like(x)
        only.select(axis, channel).fill_(1.0)
        weight = model.weight
        (gradient,) = torch.autograd.grad(model(only).sum(), weight)
        greatest.append(weight[gradient != 0].abs().max())
    return torch.stack(greatest)


LAYERS = {
    "linear": (lambda: nn.Linear(4, 6), (3, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (2, 4, 8, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(4, 2, 2), (1, 4, 4, 4, 4)),
    "gpt2": (lambda: tiny_gpt2().transformer.h[0].mlp.c_fc, (3, 32)),
}


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_the_weights_that_an_input_channel_meets(make, shape):
    module = make()
    expected = magnitudes_by_gradient(module, torch.randn(shape))
    prepare_fake_quant(module, QuantSpec())
    torch.testing.assert_close(weight_magnitudes(module), expected.detach())


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_int8_layers_of_all_kinds_keep_their_factor(make, shape):
    """With an outlying channel the error in int8 falls; simulation and int8 agree."""
    x = torch.randn(shape)
    module = make().eval()
    axis = len(shape) - 1 - len(getattr(module, "kernel_size", ()))
    x.select(axis, 1).mul_(60.0)
    module, inputs = prepared(module, x)
    expected = module(x)
    errors = {}
    for alpha in (None, 0.5):
        trial = copy.deepcopy(module)
        if alpha is None:
            trial.set_range(x.min().item(), x.max().item())
        else:
            assert apply_smoothing(trial, inputs, alpha) == {"": Smoothed(0.5)}
        enable_fake_quant(trial, observe=False)
        simulated = trial(x)
        convert(trial)
        assert relative_error(trial(x), simulated) < ROUNDING
        errors[alpha] = (trial(x) - expected).pow(2).mean().item()
    assert errors[0.5] < errors[None]


def test_layers_share_a_scale_only_where_they_read_the_same_tensors():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            return self.o(self.q(x) + self.k(x) + self.v(x * 2))

    model, inputs = prepared(Branches(), torch.randn(3, 4))
    groups, refused = smoothing_groups(model, inputs)
    assert [group.layers for group in groups] == [("q", "k"), ("v",), ("o",)]
    assert refused == {}
    apply_smoothing(model, inputs, {"q": 0.2, "k": 0.2, "v": 0.4, "o": 0.9})
    assert torch.equal(model.q.smoothing, model.k.smoothing)
    seen, weights = inputs["v"], weight_magnitudes(model.v)
    magnitudes = torch.maximum(-seen.channel_low, seen.channel_high).float()
    torch.testing.assert_close(model.v.smoothing, smoothing_scale(magnitudes, weights, 0.4))


def test_a_linear_layer_and_a_convolution_never_share():
    """They take other axes of the same tensor for channels."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Conv1d(4, 4, 1)

        def forward(self, x):
            return self.a(x) + self.b(x)

    model, inputs = prepared(Both(), torch.randn(2, 4, 4))
    assert [group.layers for group in smoothing_groups(model, inputs)[0]] == [("a",), ("b",)]


def test_another_alpha_begins_with_the_same_weights():
    model, inputs = prepared(nn.Linear(4, 4), torch.randn(5, 4))
    apply_smoothing(model, inputs, 0.3)
    apply_smoothing(model, inputs, 0.7)
    again = copy.deepcopy(model)
    again.smooth(None)
    apply_smoothing(again, inputs, 0.7)
    assert torch.equal(model.smoothing, again.smoothing)
    assert model.grid == again.grid


def test_scales_come_from_the_weights_before_any_is_folded():
    """The middle layer both absorbs and is smoothed."""
    model, inputs = prepared(chain().eval(), torch.randn(7, 6))
    kept = copy.deepcopy(model)
    apply_smoothing(kept, inputs, 0.5)
    before = copy.deepcopy(model.state_dict())
    apply_smoothing(model, inputs, 0.5, trace_flow(model, lambda model: model(torch.randn(7, 6))))
    first, second = kept[1].smoothing, kept[3].smoothing
    torch.testing.assert_close(model[1].weight.detach(), before["1.weight"] * first / second.unsqueeze(1))
    torch.testing.assert_close(model[1].bias.detach(), before["1.bias"] / second)
    torch.testing.assert_close(model[3].weight.detach(), before["3.weight"] * second)
    assert [model[1].grid, model[3].grid] == [kept[1].grid, kept[3].grid]


def test_dynamic_layers_are_smoothed_without_a_range():
    x = torch.randn(5, 4) * torch.tensor([1.0, 80.0, 1.0, 1.0])
    model, inputs = prepared(nn.Linear(4, 4).eval(), x, QuantScheme(dynamic=True))
    apply_smoothing(model, inputs, 0.5)
    assert model.grid is None
    enable_fake_quant(model, observe=False)
    simulated = model(x)
    convert(model)
    assert relative_error(model(x), simulated) < ROUNDING


def test_what_is_not_finite_is_left_alone():
    model, inputs = prepared(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(5, 4))
    model[1].weight.data[0, 0] = torch.nan
    done = apply_smoothing(model, inputs, 0.5)
    assert done["0"] == Smoothed(0.5)
    assert done["1"] == Smoothed(None, "its weights or inputs are not finite")
    assert model[1].smoothing is None


def test_layers_that_calibration_did_not_reach_are_left_alone():
    model, inputs = prepared(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(5, 4))
    del inputs["1"]
    reason = "calibration ran no batch through it"
    assert apply_smoothing(model, inputs, 0.5) == {"1": Smoothed(None, reason), "2": Smoothed(0.5)}
    flow = Flow({"0": ("1",), "1": ("2",)}, {})
    before = model[0].weight.clone()
    assert apply_smoothing(model, inputs, 0.5, flow) == {"1": Smoothed(None, reason), "2": Smoothed(0.5)}
    assert torch.equal(model[0].weight, before)


def test_a_layer_that_went_back_to_float_keeps_its_scale_out():
    """After the flow was seen: both layers would have shared the scale of the norm."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.a, self.b = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            hidden = self.norm(x)
            return self.a(hidden) + self.b(hidden)

    x = torch.randn(5, 4)
    model, inputs = prepared(Net(), x)
    flow = trace_flow(model, lambda model: model(x))
    assert flow.groups == {"norm": ("a", "b")}
    plain = nn.Linear(4, 4)
    plain.load_state_dict(model.b.state_dict())
    model.b = plain
    before = model(x)
    assert apply_smoothing(model, inputs, 0.5, flow) == {
        "a": Smoothed(None, "'b', which reads the same: it stays in float")
    }
    assert torch.equal(model(x), before)


def test_a_model_that_shares_the_parameters_is_not_changed():
    x = torch.randn(7, 6)
    model, inputs = prepared(perturbed(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4))), x)
    shared = {id(parameter): parameter for parameter in model.parameters()}
    trial = copy.deepcopy(model, memo=dict(shared))
    assert trial[1].weight is model[1].weight
    before = copy.deepcopy(model.state_dict())
    done = apply_smoothing(trial, inputs, 0.5, trace_flow(trial, lambda trial: trial(x)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(trial[1].weight, model[1].weight * done["1"].scale)
    torch.testing.assert_close(trial[0].weight, model[0].weight / done["1"].scale)
    assert trial[0].weight.requires_grad


def test_half_precision_weights_are_smoothed_in_their_dtype():
    model, inputs = prepared(nn.Linear(4, 4).bfloat16(), torch.randn(5, 4, dtype=torch.bfloat16))
    apply_smoothing(model, inputs, 0.5)
    assert model.smoothing.dtype == torch.float32
    enable_fake_quant(model, observe=False)
    assert model(torch.randn(5, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
