"""Seventeen architectures become int8 in three ways, are saved, opened by from_pretrained, and compute the same."""

from __future__ import annotations

import pytest
import torch
import transformers

from inc_torch import save_for_huggingface_upstream
from inc_torch.quantizers import describe_int8
from tests.architectures.compress import (
    CONVOLUTIONS,
    LEAST_COSINE,
    MATRICES,
    WAYS,
    by_pattern,
    compressed,
    cosine,
    float_reasons,
    int8_kinds,
    scores,
)
from tests.architectures.zoo import ZOO

pytestmark = pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="the modules listed have the names of transformers 5"
)

EACH_WAY = [pytest.param(name, way, id=f"{name}-{way}") for name in ZOO for way in WAYS]
AFTER_TRAINING = [pytest.param(name, way, id=f"{name}-{way}") for name in ZOO for way in ("static", "dynamic")]
GENERATING = {"gpt2": 8, "llama": 8, "bart": 1, "t5": 1}
"""How many words there are before the first new one."""

MOST_ROUNDING = 2e-6
NEVER_CALLED = {"debertav2": {"deberta.encoder.rel_embeddings"}, "t5": {"shared"}}
"""DeBERTa reads the weight past the module, in float while it trains; T5 calls two other modules that share theirs."""


def convolutions_left_in_float(architecture, way):
    """With dynamic ranges there is no int8 version of them."""
    if way != "dynamic":
        return {}
    return {
        name: f"{type(module).__name__} has no int8 version with dynamic ranges"
        for name, module in architecture.build().named_modules()
        if type(module) in CONVOLUTIONS
    }


def expected_kinds(architecture, way):
    counts = architecture.int8_modules
    if way != "dynamic":
        return counts
    kinds = {"linear": "dynamic_linear", "embedding": "embedding"}
    return {kinds[kind]: count for kind, count in counts.items() if kind in kinds}


@pytest.mark.parametrize(("name", "way"), EACH_WAY)
def test_every_matrix_is_int8_or_reported_with_the_reason(name, way):
    architecture, case = ZOO[name], compressed(name, way)
    in_float = convolutions_left_in_float(architecture, way)
    assert describe_int8(case.model).keys() == {
        name
        for name, module in architecture.build().named_modules()
        if type(module) in MATRICES and name not in in_float
    }
    assert int8_kinds(case.model) == expected_kinds(architecture, way)
    assert float_reasons(case.report) == {**architecture.in_float, **by_pattern(in_float)}
    owners = {
        name.partition(".parametrizations")[0] if ".parametrizations" in name else name.rpartition(".")[0]
        for name, parameter in case.model.named_parameters()
        if parameter.dim() > 1
    }
    assert owners == {row.name for row in case.report.modules if row.scheme is None}


@pytest.mark.parametrize(("name", "way"), EACH_WAY)
def test_logits_point_where_those_in_float_or_of_the_simulation_do(name, way):
    case = compressed(name, way)
    assert cosine(scores(case.model, ZOO[name].other_batch()), case.expected) > LEAST_COSINE[way]


@pytest.mark.parametrize("name", ZOO)
def test_each_module_computes_what_its_simulation_did(name):
    """Module by module: in a whole model one value on the border between two codes moves many that follow."""
    case = compressed(name, "qat")
    int8 = describe_int8(case.model).keys()
    ran = case.calls.keys() & int8
    assert int8 - ran == NEVER_CALLED.get(name, set())
    for module_name in ran:
        for given, simulated in case.calls[module_name]:
            with torch.no_grad():
                got = case.model.get_submodule(module_name)(given)
            assert (got - simulated).abs().max() < MOST_ROUNDING * simulated.abs().max(), module_name


@pytest.mark.parametrize(("name", "way"), AFTER_TRAINING)
def test_the_float_model_stays_as_it_was(name, way):
    case, fresh = compressed(name, way), ZOO[name].build()
    assert case.model is not case.source
    assert type(case.source) is type(fresh)
    assert class_names(case.source) == class_names(fresh)
    kept = case.source.state_dict()
    assert kept.keys() == fresh.state_dict().keys()
    assert all(torch.equal(kept[key], value) for key, value in fresh.state_dict().items())


def class_names(model):
    """Parametrized modules have a class each, of the same name."""
    return [(type(module).__module__, type(module).__qualname__) for module in model.modules()]


@pytest.mark.parametrize(("name", "way"), EACH_WAY)
def test_it_is_saved_opened_saved_again_and_opened_again_bit_by_bit(name, way, tmp_path):
    case, batch = compressed(name, way), ZOO[name].other_batch()
    save_for_huggingface_upstream(case.model, None, tmp_path / "first")
    first, info = opened(name, tmp_path / "first")
    assert not any(info.values()), info
    assert describe_int8(first) == describe_int8(case.model)
    expected = scores(case.model, batch)
    assert torch.equal(scores(first, batch), expected)
    first.save_pretrained(tmp_path / "second")
    second, info = opened(name, tmp_path / "second")
    assert not any(info.values()), info
    assert torch.equal(scores(second, batch), expected)


def opened(name, directory):
    return ZOO[name].model_class.from_pretrained(directory, output_loading_info=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", GENERATING)
def test_generation_gives_the_same_words_after_loading(name, way, tmp_path):
    case, batch = compressed(name, way), ZOO[name].batch(2, 8)
    save_for_huggingface_upstream(case.model, None, tmp_path)
    loaded, _ = opened(name, tmp_path)
    prompt = {key: batch[key] for key in ("input_ids", "attention_mask")}
    words = [
        model.generate(**prompt, min_new_tokens=6, max_new_tokens=6, do_sample=False) for model in (case.model, loaded)
    ]
    assert words[0].shape == (2, GENERATING[name] + 6)
    assert torch.equal(*words)
