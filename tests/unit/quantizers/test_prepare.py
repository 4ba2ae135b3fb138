"""What is quantized, what is left in float and why, and the observers' state."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations

from inc_torch.core.errors import ConfigError, InexactWarning, ModelError, StateError
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.quantizers import (
    FloatType,
    Int8Linear,
    Prepared,
    QuantRule,
    QuantScheme,
    QuantSpec,
    convert,
    enable_fake_quant,
    fold_ranges,
    load_observer_state,
    observer_state,
    prepare_fake_quant,
)
from inc_torch.quantizers._input_range import InputRange
from tests.unit.quantizers.models import observed, tiny_bert, tiny_gpt2


class Doubled(nn.Linear):
    """A subclass, which may compute anything."""

    def forward(self, input):
        return 2 * super().forward(input)


def reason(module):
    """The reason for which ``module`` is left in float beside a layer that is not."""
    decision = prepare_fake_quant(nn.Sequential(nn.Linear(2, 2), module), QuantSpec())["1"]
    assert decision.scheme is None
    return decision.reason


def replaced():
    layer = nn.Linear(2, 2)
    layer.forward = lambda input: input
    return layer


def weight_normed():
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(nn.Linear(2, 2))


FLOATS = {
    "subclass": (lambda: Doubled(2, 2), "Doubled is a subclass of Linear; what it or its owner does"),
    "owner": (
        lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2),
        "NonDynamicallyQuantizableLinear is a subclass of Linear",
    ),
    "parametrized": (
        lambda: parametrizations.weight_norm(nn.Linear(2, 2)),
        "ParametrizedLinear is a subclass of Linear",
    ),
    "hook": (weight_normed, "its weight is computed by a hook and is not a Parameter"),
    "replaced": (replaced, "its forward was replaced on the instance"),
    "bilinear": (lambda: nn.Bilinear(2, 2, 2), "there is no int8 version of Bilinear"),
    "recurrent": (lambda: nn.LSTM(2, 2), "there is no int8 version of LSTM"),
    "attention": (lambda: nn.MultiheadAttention(2, 1).requires_grad_(False), "there is no int8 version of Multihead"),
    "bag": (lambda: nn.EmbeddingBag(3, 2), "EmbeddingBag sums rows inside its kernel"),
    "lazy": (lambda: nn.LazyLinear(2), "LazyLinear is a subclass of Linear"),
    "complex": (lambda: nn.Linear(2, 2, dtype=torch.complex64), "its weight is torch.complex64"),
    "empty": (lambda: nn.Embedding(0, 2), "its weight is empty"),
}


@pytest.mark.parametrize(("make", "start"), FLOATS.values(), ids=FLOATS)
def test_left_in_float_with_the_reason(make, start):
    module = make()
    before = type(module)
    assert reason(module).startswith(start)
    assert type(module) is before


def test_every_eligible_kind_is_taken():
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(2, 2),
            "one": nn.Conv1d(2, 2, 1),
            "two": nn.Conv2d(2, 2, 1),
            "three": nn.Conv3d(2, 2, 1),
            "one back": nn.ConvTranspose1d(2, 2, 1),
            "two back": nn.ConvTranspose2d(2, 2, 1),
            "three back": nn.ConvTranspose3d(2, 2, 1),
            "table": nn.Embedding(2, 2),
            "norm": nn.LayerNorm(2),
        }
    )
    decisions = prepare_fake_quant(model, QuantSpec())
    table = decisions.pop("table")
    assert table == Prepared("w8-per-row")
    assert decisions == dict.fromkeys(model.keys() - {"table", "norm"}, Prepared("w8a8-static"))


def test_rules_choose_and_the_last_wins():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Conv1d(2, 2, 1))
    spec = QuantSpec(
        default=QuantScheme(input_bits=7),
        rules=(
            QuantRule("type", "Linear", FloatType.FLOAT32),
            QuantRule("name", "1", {"per_channel": False, "symmetric_input": True}),
        ),
    )
    assert prepare_fake_quant(model, spec) == {
        "0": Prepared(None, "left in float by the configuration", FloatType.FLOAT32),
        "1": Prepared("w8a7-static-per-tensor-symmetric"),
        "2": Prepared("w8a7-static"),
    }
    assert type(model[0]) is nn.Linear


FLOAT = FloatType.FLOAT32


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (QuantRule("name", "fcc1", FLOAT), r"'fcc1' of op_name_dict matches no module: .* name. Did you mean 'fc1'\?$"),
        (QuantRule("name", "x", FLOAT), r"the whole module name. There are 'conv', 'fc1', 'block.fc'\.$"),
        (QuantRule("type", "Liner", FLOAT), r"op_type_dict matches no module: .* class name. Did you mean 'Linear'\?$"),
        (QuantRule("type", "Conv", FLOAT), r"op_type_dict matches no module: .* class name. Did you mean 'Conv1d'\?$"),
        (
            QuantRule("name", "block", FLOAT),
            r"matches 'block', which has no weight .* the pattern 'block\\\\\.\.\*'",
        ),
        (QuantRule("type", "Sequential", {}), "op_type_dict matches 'block', which has no weight of its own"),
    ],
    ids=["name", "far name", "type", "part of a type", "container", "type of a container"],
)
def test_a_rule_that_speaks_of_no_layer_is_an_error_that_changes_nothing(rule, message):
    block = nn.Sequential()
    block.add_module("fc", nn.Linear(2, 2))
    model = nn.ModuleDict({"conv": nn.Conv1d(2, 2, 1), "fc1": nn.Linear(2, 2), "block": block, "norm": nn.LayerNorm(2)})
    with pytest.raises(ConfigError, match=message):
        prepare_fake_quant(model, QuantSpec(rules=(rule,)))
    assert type(model["fc1"]) is nn.Linear


def test_many_layers_are_not_all_listed():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(7)])
    with pytest.raises(ConfigError, match=r"There are '0', '1', '2', '3', '4' and 2 more\.$"):
        prepare_fake_quant(model, QuantSpec(rules=(QuantRule("name", "head", FLOAT),)))


@pytest.mark.parametrize("kind", ["Conv2d", "Conv.*", "LSTM", "ConvReLU2d", "Conv1D", "QuantStub"])
def test_a_rule_for_a_known_type_that_the_model_lacks_is_none(kind):
    model = nn.Sequential(nn.Linear(2, 2))
    spec = QuantSpec(rules=(QuantRule("type", kind, FLOAT),))
    assert prepare_fake_quant(model, spec) == {"0": Prepared("w8a8-static")}


def test_a_rule_for_a_layer_without_a_matrix():
    def model():
        return nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))

    assert list(prepare_fake_quant(model(), QuantSpec(rules=(QuantRule("name", "1", FLOAT),)))) == ["0"]
    with pytest.warns(InexactWarning, match="'1' has no effect: LayerNorm has no matrix weight to quantize"):
        prepare_fake_quant(model(), QuantSpec(rules=(QuantRule("name", "1", {"per_channel": False}),)))


def test_what_is_to_compute_in_bfloat16_is_not_quantized():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    spec = QuantSpec(rules=(QuantRule("name", "1", FloatType.BFLOAT16),))
    reason = "left in float; the configuration asks for bfloat16"
    assert prepare_fake_quant(model, spec)["1"] == Prepared(None, reason, FloatType.BFLOAT16)
    assert type(model[1]) is nn.Linear


def test_dynamic_ranges_are_those_of_linear_layers_and_need_no_observation():
    model = nn.ModuleDict({"fc": nn.Linear(2, 2), "conv": nn.Conv1d(2, 2, 1), "table": nn.Embedding(3, 2)})
    assert prepare_fake_quant(model, QuantSpec(QuantScheme(dynamic=True))) == {
        "fc": Prepared("w8a8-dynamic"),
        "conv": Prepared(None, "Conv1d has no int8 version with dynamic ranges"),
        "table": Prepared("w8-per-row"),
    }
    enable_fake_quant(model, observe=True)
    model["fc"](torch.randn(3, 2))
    assert model["fc"]._input_range == InputRange(scheme=QuantScheme(dynamic=True))
    assert model["fc"]._input_range.pending is None
    assert observer_state(model) == {}
    assert type(model["conv"]) is nn.Conv1d


def test_nothing_left_to_quantize_is_an_error():
    spec = QuantSpec(rules=(QuantRule("type", ".*", FloatType.FLOAT32),))
    with pytest.raises(ConfigError, match=r"all of Sequential in float: 0: left in float by the configuration\."):
        prepare_fake_quant(nn.Sequential(nn.Linear(2, 2)), spec)
    with pytest.raises(ConfigError, match="all of LayerNorm in float: it has no module with a matrix weight"):
        prepare_fake_quant(nn.LayerNorm(2), QuantSpec())
    many = nn.Sequential(*[nn.Bilinear(1, 1, 1) for _ in range(7)])
    with pytest.raises(ConfigError, match="4: there is no int8 version of Bilinear; and 2 more"):
        prepare_fake_quant(many, QuantSpec())


def test_preparing_twice_is_an_error():
    model = nn.Sequential(nn.Linear(2, 2))
    observed(model, torch.ones(1, 2))
    with pytest.raises(ModelError, match=r"Module '0' is already prepared for quantization. Give one"):
        prepare_fake_quant(model, QuantSpec())
    convert(model)
    with pytest.raises(ModelError, match="Module '0' is already converted to int8"):
        prepare_fake_quant(model, QuantSpec())


def test_the_root_may_be_a_layer():
    layer = nn.Linear(2, 2)
    assert prepare_fake_quant(layer, QuantSpec()) == {"": Prepared("w8a8-static")}


@pytest.mark.skipif(torch.__version__.startswith("2.8."), reason="Dynamo of torch 2.8 fails in autograd functions")
@pytest.mark.filterwarnings("ignore::UserWarning:torch.*", "ignore::DeprecationWarning:torch.*")
def test_names_and_ranges_under_wrappers_are_those_of_the_plain_model():
    def trained(wrap, checkpoint):
        torch.manual_seed(4)
        model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 4))
        model[1], model[2] = wrap(model[1]), checkpoint(model[2])
        decisions = prepare_fake_quant(model, QuantSpec(rules=(QuantRule("name", "0", FloatType.FLOAT32),)))
        enable_fake_quant(model, observe=True)
        for batch in torch.randn(4, 5, 4):
            model(batch).square().mean().backward()
            fold_ranges(model)
        return decisions, observer_state(model), model

    decisions, plain, _ = trained(lambda layer: layer, lambda layer: layer)
    wrapped_decisions, wrapped, model = trained(lambda layer: torch.compile(layer, backend="eager"), checkpoint_wrapper)
    assert list(plain) == ["1.0", "2"]
    assert wrapped_decisions == decisions
    assert_equal(wrapped, plain)
    report = CompressionReport.measure(model, [Finding(name, scheme=found.scheme) for name, found in decisions.items()])
    assert {row.name: row.scheme for row in report.modules} == {"0": None, "1.0": "w8a8-static", "2": "w8a8-static"}
    convert(model)
    assert type(model[2]._checkpoint_wrapped_module) is Int8Linear


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_layers_with_lora_are_quantized_under_their_own_names_and_the_adapters_are_not():
    peft = pytest.importorskip("peft")
    plain = tiny_bert()
    expected = prepare_fake_quant(copy.deepcopy(plain), QuantSpec())
    options = {"target_modules": ["query", "value"], "modules_to_save": ["classifier"], "init_lora_weights": False}
    model = peft.get_peft_model(plain, peft.LoraConfig(**options))
    assert prepare_fake_quant(model, QuantSpec()) == expected
    enable_fake_quant(model, observe=True)
    ids = torch.randint(64, (2, 8))
    model.train()(ids)
    fold_ranges(model)
    with torch.no_grad():
        rounded = model.eval()(ids).logits
        convert(model)
        assert torch.allclose(model(ids).logits, rounded, atol=1e-5)
    query = plain.bert.encoder.layer[0].attention.self.query
    assert type(query.base_layer) is Int8Linear
    assert type(query.lora_A["default"]) is nn.Linear
    assert query.lora_A["default"].weight.requires_grad


def test_a_module_of_two_names_is_taken_once():
    shared = nn.Linear(2, 2)
    assert list(prepare_fake_quant(nn.Sequential(shared, shared), QuantSpec())) == ["0"]


def test_hugging_face_models():
    bert = prepare_fake_quant(tiny_bert(), QuantSpec())
    assert {decision.scheme for decision in bert.values()} == {"w8a8-static", "w8-per-row"}
    gpt2 = prepare_fake_quant(tiny_gpt2(), QuantSpec())
    assert gpt2["transformer.h.0.attn.c_attn"] == gpt2["lm_head"] == Prepared("w8a8-static")


@pytest.mark.parametrize("has_mask", [False, True])
def test_transformer_encoder_of_torch_goes_through_the_modules_in_eval(has_mask):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2)
    mask = torch.tensor([[False, False, False], [False, False, True]]) if has_mask else None
    prepare_fake_quant(model, QuantSpec())
    enable_fake_quant(model, observe=True)
    x = torch.randn(2, 3, 8)
    model.train()(x, src_key_padding_mask=mask)
    fold_ranges(model)
    enable_fake_quant(model, observe=False)
    trained = model(x, src_key_padding_mask=mask)
    with torch.no_grad():
        y = model.eval()(x, src_key_padding_mask=mask)
        assert torch.allclose(y, trained, atol=1e-6)
        convert(model)
        assert torch.allclose(model(x, src_key_padding_mask=mask), trained, atol=1e-5)


def test_a_float_transformer_encoder_keeps_its_fast_path():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 8))
    before = model[0].activation_relu_or_gelu
    prepare_fake_quant(model, QuantSpec(rules=(QuantRule("name", r"0\..*", FloatType.FLOAT32),)))
    assert model[0].activation_relu_or_gelu == before != 0


# ------------------------------------------------------------------------------ state


def two_layers():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    prepare_fake_quant(model, QuantSpec())
    enable_fake_quant(model, observe=True)
    return model


def test_observer_state_round_trip_continues_bit_for_bit():
    model, other = two_layers(), two_layers()
    other.load_state_dict(model.state_dict())
    for _ in range(3):
        model(torch.randint(5, (4,)))
        fold_ranges(model)
    model(torch.randint(5, (4,)))  # and cut in the middle of a step
    state = observer_state(model)
    assert set(state) == {"1", "2"}
    assert {key: (value.dtype, value.shape) for key, value in state["1"].items()} == {
        "range": (torch.float64, (2,)),
        "steps": (torch.int64, ()),
        "pending": (torch.float32, (2,)),
    }
    assert int(state["1"]["steps"]) == 3
    load_observer_state(other, state)
    ids = torch.randint(5, (4,))
    assert torch.equal(model(ids), other(ids))
    assert_equal(observer_state(other), observer_state(model))
    for each in (model, other):
        fold_ranges(each)
    assert_equal(observer_state(other), observer_state(model))
    assert int(observer_state(other)["1"]["steps"]) == 4


def assert_equal(states, others):
    assert states.keys() == others.keys()
    assert all(torch.equal(others[name][key], value) for name, part in states.items() for key, value in part.items())


def test_state_says_what_is_pending_and_nothing_if_nothing_is():
    model = two_layers()
    nothing = observer_state(model)["1"]["pending"]
    assert nothing.tolist() == [math.inf, -math.inf]
    load_observer_state(model, observer_state(model))
    assert model[1]._input_range.pending is None
    model[1](torch.tensor([[-1.0, 5.0, 2.0]]))
    assert observer_state(model)["1"]["pending"].tolist() == [-1.0, 5.0]
    model[1](torch.tensor([[0.0, math.nan, 0.0]]))
    state = observer_state(model)
    assert state["1"]["pending"].tolist() == [-math.inf, math.inf]
    load_observer_state(model, state)
    fold_ranges(model)
    assert model[1]._input_range == InputRange()


def test_state_of_another_model_is_refused():
    model = two_layers()
    state = observer_state(model)
    with pytest.raises(StateError, match="Observer '2' is in the model, but not the saved state"):
        load_observer_state(model, {"1": state["1"]})
    with pytest.raises(StateError, match="Observer '7' is in the saved state, but not the model"):
        load_observer_state(model, {**state, "7": state["1"]})
    with pytest.raises(
        StateError, match=r"observer '1' must have the keys \['pending', 'range', 'steps'\]; \['pending', 'range'\] d"
    ):
        load_observer_state(model, {**state, "1": {"steps": torch.tensor(1)}})
