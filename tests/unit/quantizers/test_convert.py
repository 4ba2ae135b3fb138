"""Conversion of whole models, their description, and the way back."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from torch import nn

from inc_torch.core.errors import ArtifactError, CalibrationError, ModelError
from inc_torch.quantizers import (
    FloatType,
    Int8Linear,
    QuantRule,
    QuantScheme,
    QuantSpec,
    convert,
    describe_int8,
    enable_fake_quant,
    fold_ranges,
    prepare_fake_quant,
    rebuild_int8,
)
from tests.unit.quantizers.models import converted, observed, relative_error, tiny_bert, tiny_gpt2


def network():
    return nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))


def test_modules_are_the_same_objects_in_eval():
    model = observed(network(), torch.arange(6))
    before = list(model.modules())
    convert(model.train())
    assert all(now is then for now, then in zip(model.modules(), before, strict=True))
    assert not any(module.training for module in model.modules())
    assert list(model.parameters()) == []
    assert not [name for module in model.modules() for name in vars(module) if "fake" in name or "range" in name]


def test_the_root_may_be_a_layer():
    layer = observed(nn.Linear(4, 2), torch.ones(1, 4))
    convert(layer)
    assert type(layer) is Int8Linear


def test_training_lowers_the_loss_and_int8_keeps_it():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    prepare_fake_quant(model, QuantSpec())
    enable_fake_quant(model, observe=True)
    x = torch.randn(256, 8)
    y = x[:, :1] * x[:, 1:2] - x[:, 2:3]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(200):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        fold_ranges(model)
        optimizer.step()
        losses.append(loss.item())
    convert(model)
    assert losses[-1] < 0.1 * losses[0]
    assert (model(x) - y).square().mean().item() == pytest.approx(losses[-1], rel=0.1)


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
def test_hugging_face_models_agree_with_fake_quant(make):
    model = make()
    ids = torch.randint(64, (4, 16))
    observed(model, ids)
    expected = model(ids).logits
    int8 = converted(model)
    # A code on the edge of two may fall to the other side after float32 sums in another order; a few codes do.
    assert relative_error(int8(ids).logits, expected) < 0.02
    assert torch.cosine_similarity(int8(ids).logits.flatten(), expected.flatten(), 0) > 0.9999


def test_tied_weights_take_equal_codes_and_do_not_alias():
    model = tiny_gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    int8 = converted(observed(model, torch.randint(64, (2, 8))))
    assert torch.equal(int8.lm_head.qweight, int8.transformer.wte.qweight)
    assert torch.equal(int8.lm_head.weight_scale, int8.transformer.wte.weight_scale)
    assert int8.lm_head.qweight.data_ptr() != int8.transformer.wte.qweight.data_ptr()


def test_tied_weights_of_which_one_stays_float():
    model = tiny_gpt2()
    weight = model.transformer.wte.weight.detach().clone()
    prepare_fake_quant(model, QuantSpec(rules=(QuantRule("type", "Embedding", FloatType.FLOAT32),)))
    enable_fake_quant(model, observe=True)
    model.train()(torch.randint(64, (2, 8)))
    fold_ranges(model)
    convert(model)
    assert type(model.lm_head) is Int8Linear
    assert torch.equal(model.transformer.wte.weight, weight)


def test_what_was_never_observed_is_an_error_that_changes_nothing():
    model = network()
    prepare_fake_quant(model, QuantSpec())
    types = [type(module) for module in model]
    with pytest.raises(CalibrationError, match=r"no input of '1', '3' was observed. Ranges are taken in training mode"):
        convert(model)
    assert [type(module) for module in model] == types
    many = nn.Sequential(*[nn.Linear(2, 2) for _ in range(7)])
    prepare_fake_quant(many, QuantSpec())
    with pytest.raises(CalibrationError, match="'3', '4' and 2 more was observed"):
        convert(many)


def test_nothing_to_convert_is_an_error():
    with pytest.raises(ModelError, match="Sequential has nothing to convert: prepare it with prepare_fake_quant"):
        convert(network())


def test_description_is_json():
    int8 = converted(observed(network(), torch.arange(6), QuantScheme(input_bits=7)))
    description = describe_int8(int8)
    assert json.loads(json.dumps(description)) == description
    assert description == {
        "0": {"kind": "embedding", "scheme": "w8-per-row", "shape": [6, 8], "bias": False, "smoothed": False},
        "1": {"kind": "linear", "scheme": "w8a7-static", "shape": [4, 8], "bias": True, "smoothed": False},
        "3": {"kind": "linear", "scheme": "w8a7-static", "shape": [2, 4], "bias": False, "smoothed": False},
    }


ALL = QuantScheme(per_channel=False, symmetric_input=True, input_bits=7)
MODELS = {
    "network": (network, torch.arange(6)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"), nn.Conv2d(4, 6, 2, bias=False)
        ),
        torch.randn(1, 3, 6, 6),
    ),
    "root": (lambda: nn.Linear(4, 2), torch.randn(3, 4)),
    "bert": (tiny_bert, torch.randint(64, (2, 8))),
    "gpt2": (tiny_gpt2, torch.randint(64, (2, 8))),
}


def output(model, inputs):
    result = model(inputs)
    return getattr(result, "logits", result)


@pytest.mark.parametrize(("make", "inputs"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("scheme", [QuantScheme(), ALL], ids=["default", "all"])
def test_rebuild_and_load_gives_the_same_bits(make, inputs, scheme):
    int8 = converted(observed(make(), inputs, scheme))
    twin = make().eval()
    rebuild_int8(twin, describe_int8(int8))
    twin.load_state_dict(int8.state_dict())
    assert torch.equal(output(twin, inputs), output(int8, inputs))
    assert describe_int8(twin) == describe_int8(int8)


def test_rebuild_keeps_the_dtype_of_the_skeleton_for_embeddings():
    int8 = converted(observed(network(), torch.arange(6)))
    twin = network().bfloat16()
    rebuild_int8(twin, describe_int8(int8))
    twin.load_state_dict(int8.state_dict())
    assert twin[0](torch.arange(6)).dtype == torch.bfloat16


ENTRY = {"kind": "linear", "scheme": "w8a8-static", "shape": [4, 8], "bias": True, "smoothed": False}
DAMAGES = {
    "name": ({"1x": ENTRY}, "names the module '1x', which Sequential does not have. Did you mean '1'?"),
    "keys": (
        {"1": {"kind": "linear"}},
        "Module '1' of the description has the keys ['kind'], expected ['bias', 'kind'",
    ),
    "scheme": (
        {"1": {**ENTRY, "scheme": "w4a9-static"}},
        "has the unknown scheme 'w4a9-static'. It may come from a newer version",
    ),
    "scheme type": ({"1": {**ENTRY, "scheme": 8}}, "has the unknown scheme 8."),
    "kind": (
        {"1": {**ENTRY, "kind": "linear1"}},
        "has the unknown kind 'linear1'. Did you mean 'linear'? Known: linear, dynamic_linear, conv1d",
    ),
    "other kind": ({"1": {**ENTRY, "kind": "conv2d"}}, "is of kind 'conv2d', but the model has a Linear there."),
    "no layer": ({"2": ENTRY}, "is of kind 'linear', but the model has a ReLU there."),
    "shape": ({"1": {**ENTRY, "shape": [4, 9]}}, "has shape [4, 9] and bias=True, but the model has shape [4, 8] and"),
    "bias": ({"1": {**ENTRY, "bias": False}}, "bias=False, but the model has shape [4, 8] and bias=True there. Build"),
}


@pytest.mark.parametrize(("description", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_descriptions_are_refused_and_change_nothing(description, message):
    model = network()
    good = {"3": {"kind": "linear", "scheme": "w8a8-static", "shape": [2, 4], "bias": False, "smoothed": False}}
    with pytest.raises(ArtifactError, match=re.escape(message)):
        rebuild_int8(model, {**good, **description})
    assert type(model[3]) is nn.Linear


def test_rebuilding_twice_is_an_error():
    model = network()
    description = {"1": ENTRY}
    rebuild_int8(model, description)
    with pytest.raises(ArtifactError, match="but the model has a Int8Linear there"):
        rebuild_int8(copy.deepcopy(model), description)
