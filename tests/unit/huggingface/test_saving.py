"""Saving what other code has its hands on: wrappers, ties, the Trainer, plain save_pretrained."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import distributed
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from inc_torch.core.errors import ModelError
from inc_torch.export import adorn, attached_report, load, save
from inc_torch.huggingface import OptimizedModel, save_for_huggingface_upstream
from inc_torch.quantizers import QuantSpec, convert, describe_int8, enable_fake_quant, prepare_fake_quant
from tests.unit.huggingface.conftest import bert, compress, gpt2, logits


def adopt(model):
    # Only importable after transformers' own quantizers.
    from inc_torch.huggingface._quantizer import adopt

    adopt(model)


@pytest.fixture
def one_process(tmp_path):
    """torch.distributed with this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


def t5():
    """Ties three embeddings and, by the default of its class, the output layer."""
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def compress_for(model, **inputs):
    prepare_fake_quant(model, QuantSpec())
    enable_fake_quant(model, observe=True)
    model.train()
    with torch.no_grad():
        model(**inputs)
    convert(model)
    return model.eval()


# ------------------------------------------------------------------------------ one config for two models


def test_a_model_made_from_the_same_config_object_stays_a_float_model(tmp_path):
    config = bert().config
    student, teacher = (transformers.BertForSequenceClassification(config) for _ in range(2))
    before = config.to_dict()
    save_for_huggingface_upstream(compress(student), None, tmp_path / "student")
    assert config.to_dict() == before
    save_for_huggingface_upstream(teacher.eval(), None, tmp_path / "teacher")
    assert "quantization_config" not in config_of(tmp_path / "teacher")
    opened = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "teacher").eval()
    assert torch.equal(logits(opened), logits(teacher))
    inner = student.bert.encoder.layer[0].attention.self.config
    assert inner is student.config  # a switch that is set on the model still reaches its modules
    assert teacher.bert.encoder.layer[0].attention.self.config is config


# ------------------------------------------------------------------------------ wrappers


class Manager:
    def __init__(self, model):
        self.model = model


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("compressed", [False, True])
def test_wrappers_are_left_out(compressed, one_process, tmp_path):
    model = compress(bert()) if compressed else bert().eval()
    want = logits(model)
    # DDP refuses a model without weights that learn.
    parallel = model if compressed else DistributedDataParallel(model)
    wrapped = [Manager(model), parallel, compiled(parallel), Manager(compiled(parallel))]
    for number, outer in enumerate(wrapped):
        save_for_huggingface_upstream(outer, None, tmp_path / str(number))
        assert torch.equal(logits(OptimizedModel.from_pretrained(tmp_path / str(number))), want)


@pytest.mark.parametrize("wrap", [compiled, checkpoint_wrapper])
@pytest.mark.parametrize("compressed", [False, True])
def test_wrappers_in_the_model_are_left_out(compressed, wrap, tmp_path):
    model = compress(bert()) if compressed else bert().eval()
    want, names = logits(model), describe_int8(model).keys()
    layers = model.bert.encoder.layer
    layers[1] = wrap(layers[1])
    save_for_huggingface_upstream(model, None, tmp_path)
    got, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(logits(got), want)
    assert describe_int8(got).keys() == names
    assert type(layers[1]) is not type(layers[0])


def test_a_wrapper_that_hides_weights_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"wrapped by DataParallel"):
        save_for_huggingface_upstream(torch.nn.DataParallel(bert()), None, tmp_path)


@pytest.mark.parametrize("build", [bert, gpt2])
def test_a_sharded_model_is_saved_whole(build, one_process, tmp_path):
    torch.manual_seed(0)
    model = build().eval()
    adorn(model)
    want = logits(model)
    fully_shard(model)
    assert type(model).__name__.startswith("FSDP")
    logits(model)  # leaves the weights of the root gathered
    save_for_huggingface_upstream(model, None, tmp_path / "hub")
    name = build().__class__.__name__
    assert config_of(tmp_path / "hub")["architectures"] == [name]
    got, info = type(build()).from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(logits(got), want)
    assert {row.kind for row in attached_report(model).modules} <= {"Linear", "Embedding", "Conv1D"}
    save(model, tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "compression.json").read_text())["class"] == name
    assert torch.equal(logits(load(tmp_path / "plain", model=build())), want)
    model.state_dict()
    assert all(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    assert torch.equal(logits(model), want)


@pytest.mark.skipif(
    not hasattr(transformers.PreTrainedModel, "gather_sharded_state_dict_for_save"), reason="not in transformers 4.57"
)
def test_a_model_that_transformers_sharded_does_not_wait_for_ranks_that_do_not_write(monkeypatch, tmp_path):
    asked = []

    def gather(self, model, state, setting, **_):
        asked.append(setting)
        return state

    monkeypatch.setattr(transformers.PreTrainedModel, "gather_sharded_state_dict_for_save", gather)
    model = bert()
    setting = transformers.distributed.DistributedConfig(fsdp_size=2)
    model.config.distributed_config = setting
    save_for_huggingface_upstream(model, None, tmp_path)
    assert asked == [None]
    assert "distributed_config" not in config_of(tmp_path)
    assert model.config.distributed_config is setting


# ------------------------------------------------------------------------------ tied weights


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4.57 ties T5 by sharing modules")
def test_the_four_ends_of_t5_share_one_tensor_in_the_file_and_in_memory(tmp_path):
    ids = torch.arange(3, 19).view(2, 8)
    batch = {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
    model = compress_for(t5(), **batch)
    names = ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"]
    assert len({model.get_submodule(name)._buffers["qweight"].data_ptr() for name in names}) == 4
    save_for_huggingface_upstream(model, None, tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert [name for name in names if f"{name}.qweight" in file.keys()] == ["shared"]  # noqa: SIM118  no dict
    got = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    for one in (model, got):
        assert len({id(one.get_submodule(name)._buffers["qweight"]) for name in names}) == 1
    with torch.no_grad():
        assert torch.equal(got(**batch).logits, model(**batch).logits)
        prompt = {"max_new_tokens": 5, "do_sample": False}
        assert torch.equal(got.generate(ids, **prompt), model.generate(ids, **prompt))


def test_a_tied_output_layer_takes_no_memory_of_its_own_once_adopted():
    model = compress(gpt2())
    before = sum(tensor.nbytes for tensor in {id(one): one for one in model.buffers()}.values())
    want = logits(model)
    adopt(model)
    after = sum(tensor.nbytes for tensor in {id(one): one for one in model.buffers()}.values())
    assert before - after == 64 * 32
    assert model.lm_head._buffers["qweight"] is model.transformer.wte._buffers["qweight"]
    assert torch.equal(logits(model), want)
    assert torch.equal(logits(copy.deepcopy(model)), want)


# ------------------------------------------------------------------------------ plain save_pretrained


@pytest.mark.parametrize("build", [bert, gpt2])
def test_an_adopted_model_is_saved_by_transformers(build, tmp_path):
    model = compress(build())
    adopt(model)
    model.save_pretrained(tmp_path, push_to_hub=False, max_shard_size=8_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    got, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert describe_int8(got) == describe_int8(model)
    assert torch.equal(logits(got), logits(model))


def test_an_adopted_model_is_saved_by_the_trainer(tmp_path):
    pytest.importorskip("accelerate")
    model = bert()
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True)
    trainer = transformers.Trainer(model=model, args=arguments)
    adopt(compress(model))
    trainer.save_model(str(tmp_path / "saved"))
    got = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(got), logits(model))


def test_weights_that_changed_since_are_described_as_they_are(tmp_path):
    model = compress(bert())
    adopt(model)
    with torch.no_grad():
        model.classifier.qweight.neg_()
        model.classifier._plan = None
    model.save_pretrained(tmp_path)
    got = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(got), logits(model))


@pytest.mark.skipif(not hasattr(transformers, "RadioModel"), reason="not in transformers 4.57")
def test_codes_keep_their_names_where_transformers_fuses_weights(tmp_path):
    """Its files are to hold one weight for query, key and value, and its models three."""
    config = transformers.RadioConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=16,
    )
    batch = {"pixel_values": torch.rand(2, 3, 32, 32)}
    model = compress_for(transformers.RadioModel(config), **batch)
    save_for_huggingface_upstream(model, None, tmp_path)
    got = transformers.RadioModel.from_pretrained(tmp_path)
    assert describe_int8(got) == describe_int8(model)
    with torch.no_grad():
        assert torch.equal(got(**batch)[0], model(**batch)[0])
