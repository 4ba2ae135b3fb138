"""Models without weights compute what ``from_pretrained`` gives, from files of which one module is in memory."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from inc_torch.core.errors import ArtifactError, ConfigError, InexactWarning, ModelError
from inc_torch.core.streaming import attached_weights
from inc_torch.huggingface import _stored, load_empty_model
from inc_torch.quantizers import QuantSpec, convert, describe_int8, enable_fake_quant, prepare_fake_quant
from tests.unit.huggingface.conftest import bert, gpt2, vit

IS_5 = not transformers.__version__.startswith("4.")


def llama():
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config)


def opt():
    config = transformers.OPTConfig(
        vocab_size=64,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
    )
    return transformers.OPTForCausalLM(config)


def t5(**fields):
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, **fields
    )
    return transformers.T5ForConditionalGeneration(config)


BUILDERS = {"bert": bert, "gpt2": gpt2, "llama": llama, "opt": opt, "t5": t5, "vit": vit}
SHARDS = {"one_file": "1GB", "shards": "8KB"}


def inputs_of(model):
    generator = torch.Generator().manual_seed(3)
    if hasattr(model.config, "image_size"):
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    ids = torch.randint(3, 60, (2, 12), generator=generator)
    return {"input_ids": ids, "decoder_input_ids": ids} if model.config.is_encoder_decoder else {"input_ids": ids}


def logits(model):
    with torch.no_grad():
        return model(**inputs_of(model)).logits


def streamed_logits(model):
    with attached_weights(model).streaming():
        return logits(model)


@pytest.fixture(params=sorted(BUILDERS))
def builder(request):
    torch.manual_seed(0)
    return BUILDERS[request.param]


@pytest.fixture
def directory(tmp_path):
    torch.manual_seed(0)
    gpt2().save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.fixture
def reads(monkeypatch):
    """Bytes that were read from files and are still alive, and the most that ever were."""
    seen = {"alive": 0, "peak": 0}
    read = _stored.read_tensor

    def counted(path, name):
        tensor = read(path, name).clone()
        seen["alive"] += tensor.nbytes
        seen["peak"] = max(seen["peak"], seen["alive"])
        weakref.finalize(tensor.untyped_storage(), lambda size: seen.update(alive=seen["alive"] - size), tensor.nbytes)
        return tensor

    monkeypatch.setattr(_stored, "read_tensor", counted)
    return seen


def largest_module(model):
    return max(sum(p.nbytes for p in module.parameters(recurse=False)) for module in model.modules())


# ------------------------------------------------------------------------------ what from_pretrained gives


@pytest.mark.parametrize("shards", SHARDS)
def test_outputs_are_those_of_from_pretrained_and_one_module_is_in_memory(builder, shards, tmp_path, reads):
    built = builder()
    built.save_pretrained(tmp_path, max_shard_size=SHARDS[shards])
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards == "shards")
    full, empty = type(built).from_pretrained(tmp_path), load_empty_model(tmp_path)
    assert type(empty) is type(full)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert reads["peak"] == 0
    assert torch.equal(streamed_logits(empty), logits(full))
    assert torch.equal(streamed_logits(empty), logits(full))
    assert 0 < reads["peak"] <= largest_module(full)
    assert reads["alive"] == 0


def test_it_is_the_model_of_from_pretrained_but_for_the_values(builder, tmp_path):
    built = builder()
    built.save_pretrained(tmp_path)
    full, empty = type(built).from_pretrained(tmp_path), load_empty_model(tmp_path)
    assert [(n, p.shape, p.dtype) for n, p in empty.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in full.named_parameters()
    ]
    assert not empty.training
    assert empty.path == str(tmp_path)
    assert empty.config.to_dict() == full.config.to_dict()
    expected = dict(full.named_buffers())
    buffers = dict(empty.named_buffers())
    assert buffers.keys() == expected.keys()
    assert all(torch.equal(buffers[name], expected[name]) for name in expected)
    assert all(buffers[name].dtype == expected[name].dtype for name in expected)


def test_all_weights_can_be_loaded_for_good(builder, tmp_path):
    built = builder()
    built.save_pretrained(tmp_path)
    full, empty = type(built).from_pretrained(tmp_path), load_empty_model(tmp_path)
    attached_weights(empty).materialise_(empty)
    assert torch.equal(logits(empty), logits(full))
    assert attached_weights(empty) is None
    assert {n for n, _ in empty.named_parameters()} == {n for n, _ in full.named_parameters()}


def test_building_draws_no_random_numbers(directory):
    before = torch.get_rng_state()
    load_empty_model(directory)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_come_in_the_dtype_that_is_asked_for(dtype, tmp_path):
    built = t5(feed_forward_proj="gated-gelu")  # whose wo stays in float32 beside float16
    built.save_pretrained(tmp_path)
    full, empty = type(built).from_pretrained(tmp_path, dtype=dtype), load_empty_model(tmp_path, dtype=dtype)
    assert {n: p.dtype for n, p in empty.named_parameters()} == {n: p.dtype for n, p in full.named_parameters()}
    assert torch.equal(streamed_logits(empty), logits(full))


def test_without_a_dtype_in_the_configuration_that_of_the_file_is_taken(directory):
    gpt2().to(torch.bfloat16).save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    config = {key: value for key, value in config.items() if "dtype" not in key}
    (directory / "config.json").write_text(json.dumps(config))
    assert load_empty_model(directory).dtype == torch.bfloat16


def test_the_body_is_found_in_the_file_of_a_whole_model(directory):
    empty, full = load_empty_model(directory, transformers.AutoModel), transformers.AutoModel.from_pretrained(directory)
    with torch.no_grad(), attached_weights(empty).streaming():
        found = empty(**inputs_of(empty)).last_hidden_state
    with torch.no_grad():
        assert torch.equal(found, full(**inputs_of(full)).last_hidden_state)


def test_a_whole_model_is_found_in_the_file_of_its_body(directory):
    gpt2().transformer.save_pretrained(directory)
    empty = load_empty_model(directory, transformers.GPT2LMHeadModel)
    assert torch.equal(streamed_logits(empty), logits(transformers.GPT2LMHeadModel.from_pretrained(directory)))


def test_old_names_are_understood(tmp_path):
    bert().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    full = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(streamed_logits(load_empty_model(tmp_path)), logits(full))


def test_a_streamed_model_generates_with_the_settings_that_were_saved(directory):
    built = gpt2()
    built.generation_config.max_new_tokens = 3
    built.save_pretrained(directory)
    empty, full = load_empty_model(directory), transformers.GPT2LMHeadModel.from_pretrained(directory)
    with attached_weights(empty).streaming():
        found = empty.generate(**inputs_of(empty), do_sample=False)
    assert found.shape == (2, 15)
    assert torch.equal(found, full.generate(**inputs_of(full), do_sample=False))


# ------------------------------------------------------------------------------ quantization


def quantized(model):
    prepare_fake_quant(model, QuantSpec())
    enable_fake_quant(model, observe=True)
    model.train()
    with torch.no_grad():
        model(**inputs_of(model))
    convert(model)
    return model


@pytest.mark.parametrize("build", [llama, gpt2, t5])
def test_int8_tensors_are_those_of_the_model_in_memory(build, tmp_path, reads):
    torch.manual_seed(0)
    build().save_pretrained(tmp_path)
    dropout = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0} if build is gpt2 else {}
    fields = {"dropout_rate": 0.0} if build is t5 else dropout
    full, empty = type(build()).from_pretrained(tmp_path, **fields), load_empty_model(tmp_path, **fields)
    bound, weights = largest_module(full), attached_weights(empty)
    quantized(full)
    with weights.streaming():
        quantized(empty)
    assert describe_int8(empty) == describe_int8(full)
    assert reads["alive"] == 0
    assert 0 < reads["peak"] <= bound
    weights.materialise_(empty)
    expected = full.state_dict()
    assert empty.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in empty.state_dict().items())
    assert torch.equal(logits(empty), logits(full))


# ------------------------------------------------------------------------------ refusals


def edit_tensors(directory, change):
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_missing_tensor_is_named_with_its_file(directory):
    edit_tensors(directory, lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.weight"))
    with pytest.raises(
        ArtifactError, match=r"No tensor for 'transformer\.h\.1\.mlp\.c_fc\.weight'.*model\.safetensors"
    ):
        load_empty_model(directory)


def test_a_head_that_was_not_saved_is_not_made_up(directory):
    with pytest.raises(ArtifactError, match=r"No tensor for 'score.weight' of GPT2ForSequenceClassification.* as cls"):
        load_empty_model(directory, transformers.AutoModelForSequenceClassification)


def test_a_missing_file_of_several_is_named(tmp_path):
    gpt2().save_pretrained(tmp_path, max_shard_size="8KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(ArtifactError, match=r"model-00002-of-\d+\.safetensors' is missing"):
        load_empty_model(tmp_path)


def test_a_file_that_goes_away_later_is_named(directory):
    empty = load_empty_model(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"'transformer.wte.weight' in '.*model.safetensors' could not be read"):
        streamed_logits(empty)


def test_another_shape_is_refused_before_anything_is_read(directory):
    with pytest.raises(
        ArtifactError, match=r"has shape \(128,\), but GPT2LMHeadModel has .*c_fc.bias' of shape \(80,\)"
    ):
        load_empty_model(directory, n_inner=80)


def test_pickled_weights_are_refused(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"pickled weights \('pytorch_model.bin'\), expected .*save_pretrained"):
        load_empty_model(directory)


def test_a_directory_without_weights_is_refused(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"holds no weights, expected \*\.safetensors.*save_pretrained"):
        load_empty_model(directory)


def test_tied_weights_that_differ_in_the_file_are_refused_until_said_otherwise(directory):
    edit_tensors(directory, lambda tensors: tensors.update({"lm_head.weight": torch.randn(64, 32)}))
    with pytest.raises(
        ArtifactError, match=r"ties 'lm_head.weight' to 'transformer.wte.weight'.*tie_word_embeddings=F"
    ):
        load_empty_model(directory)
    full = transformers.GPT2LMHeadModel.from_pretrained(directory, tie_word_embeddings=False)
    assert torch.equal(streamed_logits(load_empty_model(directory, tie_word_embeddings=False)), logits(full))


def test_tied_weights_may_be_stored_twice(directory):
    edit_tensors(
        directory, lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"].clone()})
    )
    empty = load_empty_model(directory)
    assert empty.lm_head.weight is empty.transformer.wte.weight


def test_tensors_are_compared_piece_by_piece(tmp_path, monkeypatch):
    values = torch.randn(7, 5)
    other = values.clone()
    other[6, 4] += 1
    save_file({"a": values, "b": values.clone(), "c": other}, tmp_path / "x.safetensors")
    monkeypatch.setattr(_stored, "_COMPARED_VALUES", 10)
    stored = _stored.stored_tensors([tmp_path / "x.safetensors"], "")
    assert _stored.are_equal(stored["a"], stored["b"])
    assert not _stored.are_equal(stored["a"], stored["c"])


def test_a_quantized_model_is_refused(int8_directories):
    with pytest.raises(ModelError, match=r"is quantized already.* Give the float model"):
        load_empty_model(int8_directories["gpt2"])


@pytest.mark.skipif(not IS_5, reason="4.57 keeps experts as they are stored")
def test_weights_that_loading_would_put_together_are_refused(tmp_path):
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"keeps '.*experts.gate_up_proj' in another shape.*without layer_wise_quant"):
        load_empty_model(tmp_path)


def test_unknown_fields_are_refused_with_the_nearest_name(directory):
    with pytest.raises(ConfigError, match=r"n_layr=3: expected a field of GPT2Config.* Did you mean 'n_layer'\?"):
        load_empty_model(directory, n_layr=3)


def test_torchscript_of_old_scripts_is_passed_over_with_a_warning(directory):
    with pytest.warns(InexactWarning, match="torchscript has no effect"):
        load_empty_model(directory, torchscript=True)
