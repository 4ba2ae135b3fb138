"""What is saved for the Hub is what from_pretrained opens."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from inc_torch import QuantizationAwareTrainingConfig, WeightPruningConfig, prepare_compression
from inc_torch.core.errors import InexactWarning
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.export import adorn, load, save
from inc_torch.huggingface import OptimizedModel, save_for_huggingface_upstream
from inc_torch.quantizers import describe_int8
from tests.unit.huggingface.conftest import bert, compress, gpt2, inputs_of, logits, vit

ROOT = Path(__file__).parents[3]
AUTO = {
    "bert": transformers.AutoModelForSequenceClassification,
    "gpt2": transformers.AutoModelForCausalLM,
    "vit": transformers.AutoModelForImageClassification,
}


def config_of(directory):
    return json.loads((Path(directory) / "config.json").read_text())


@pytest.fixture
def word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "good": 2, "film": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")


# ------------------------------------------------------------------------------ the same numbers


def test_auto_class_gives_bit_equal_logits(architecture, int8_models, int8_directories):
    model, info = AUTO[architecture].from_pretrained(int8_directories[architecture], output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert type(model) is type(int8_models[architecture])
    assert torch.equal(logits(model), logits(int8_models[architecture]))
    assert describe_int8(model) == describe_int8(int8_models[architecture]) != {}


@pytest.mark.parametrize("first", ["inc_torch", "transformers"])
def test_a_fresh_process_gives_bit_equal_logits_in_either_import_order(first, int8_models, int8_directories, tmp_path):
    for name, model in int8_models.items():
        save_file({"logits": logits(model), **inputs_of(model)}, tmp_path / name)
    order = ["import inc_torch", "import transformers.models.auto"]
    lines = order if first == "inc_torch" else [*reversed(order)]
    program = "\n".join(
        [
            "import json, sys, torch; torch.set_num_threads(1)",
            lines[0],
            "assert ('transformers' in sys.modules) == (sys.argv[1] == 'transformers')",
            lines[1],
            "import transformers",
            "from safetensors.torch import load_file",
            "for name, task, directory, batch in json.loads(sys.argv[2]):",
            "    batch = load_file(batch); want = batch.pop('logits')",
            "    auto = getattr(transformers, task)",
            "    model, info = auto.from_pretrained(directory, output_loading_info=True)",
            "    assert not (info['missing_keys'] or info['unexpected_keys']), info",
            "    with torch.no_grad(): got = model(**batch).logits",
            "    assert torch.equal(got, want), (name, (got - want).abs().max())",
            "assert not any('inc_torch' in type(finder).__module__ for finder in sys.meta_path), sys.meta_path",
            "from transformers.quantizers import auto",
            "assert type(auto.__loader__).__module__.startswith('_frozen_importlib'), auto.__loader__",
        ]
    )
    cases = [
        (name, AUTO[name].__name__, str(int8_directories[name]), str(tmp_path / name)) for name in sorted(int8_models)
    ]
    command = [sys.executable, "-c", program, first, json.dumps(cases)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_optimized_model_finds_the_class(architecture, int8_models, int8_directories):
    model = OptimizedModel.from_pretrained(int8_directories[architecture])
    assert type(model) is type(int8_models[architecture])
    assert not model.training
    assert torch.equal(logits(model), logits(int8_models[architecture]))


@pytest.mark.parametrize("build", [bert, gpt2, vit])
def test_a_float_model_is_saved_plainly(build, tmp_path):
    model = build().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed" not in name and "wte" not in name:
            parameter.data[:2] = 0
    save_for_huggingface_upstream(model, None, tmp_path)
    assert "quantization_config" not in config_of(tmp_path)
    got = OptimizedModel.from_pretrained(tmp_path)
    assert torch.equal(logits(got), logits(model))
    assert got.__dict__["_inc_torch_report"] == model.__dict__["_inc_torch_report"]
    plain = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(plain), logits(model))


def test_tied_float_weights_stay_tied(tmp_path):
    model = gpt2()
    save_for_huggingface_upstream(model, None, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    got = OptimizedModel.from_pretrained(tmp_path)
    assert got.lm_head.weight is got.transformer.wte.weight


def test_tied_codes_are_stored_once_and_shared_again(int8_directories):
    names = load_file(int8_directories["gpt2"] / "model.safetensors").keys()
    assert "transformer.wte.qweight" in names
    assert "lm_head.qweight" not in names
    assert config_of(int8_directories["gpt2"])["quantization_config"]["aliases"] == {
        "lm_head.qweight": "transformer.wte.qweight"
    }
    got = transformers.AutoModelForCausalLM.from_pretrained(int8_directories["gpt2"])
    assert got.lm_head._buffers["qweight"] is got.transformer.wte._buffers["qweight"]
    assert "lm_head.qweight" in got.state_dict()


# ------------------------------------------------------------------------------ ways to load


def test_bfloat16_leaves_codes_and_scales_alone(architecture, int8_models, int8_directories):
    model = AUTO[architecture].from_pretrained(int8_directories[architecture], dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    exact = int8_models[architecture].state_dict()
    for name in describe_int8(model):
        for leaf, tensor in model.get_submodule(name).state_dict().items():
            assert tensor.dtype == exact[f"{name}.{leaf}"].dtype
            assert torch.equal(tensor, exact[f"{name}.{leaf}"])
    got = logits(model)
    assert got.dtype == torch.bfloat16
    want = logits(int8_models[architecture])
    assert (got.float() - want).abs().max() < 0.1 * want.abs().max()


def test_device_map_on_the_cpu(architecture, int8_models, int8_directories):
    model = AUTO[architecture].from_pretrained(int8_directories[architecture], device_map="cpu")
    assert torch.equal(logits(model), logits(int8_models[architecture]))


def test_generate(int8_models, int8_directories):
    model = transformers.AutoModelForCausalLM.from_pretrained(int8_directories["gpt2"])
    prompt = inputs_of(model)["input_ids"]
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    want = int8_models["gpt2"].generate(prompt, **options)
    got = model.generate(prompt, **options)
    assert got.shape == (2, 18)
    assert torch.equal(got, want)


def test_saved_again_with_save_pretrained(architecture, int8_models, int8_directories, tmp_path):
    model = AUTO[architecture].from_pretrained(int8_directories[architecture])
    model.save_pretrained(tmp_path)
    before, after = config_of(int8_directories[architecture]), config_of(tmp_path)
    assert after["quantization_config"] == before["quantization_config"]
    again, info = AUTO[architecture].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(again), logits(int8_models[architecture]))


def test_saved_again_over_itself(architecture, int8_models, int8_directories, tmp_path):
    model = AUTO[architecture].from_pretrained(int8_directories[architecture])
    save_for_huggingface_upstream(model, None, tmp_path)
    model = AUTO[architecture].from_pretrained(tmp_path)
    save_for_huggingface_upstream(model, None, tmp_path)
    assert torch.equal(logits(model), logits(int8_models[architecture]))
    assert torch.equal(logits(OptimizedModel.from_pretrained(tmp_path)), logits(int8_models[architecture]))


def test_sharded_files(architecture, int8_models, tmp_path):
    save_for_huggingface_upstream(int8_models[architecture], None, tmp_path, max_shard_size=8_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    model, info = AUTO[architecture].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(logits(model), logits(int8_models[architecture]))
    save_for_huggingface_upstream(model, None, tmp_path)
    assert [path.name for path in tmp_path.glob("model*.safetensors*")] == ["model.safetensors"]


def test_copies_compute_the_same(int8_directories, int8_models):
    model = OptimizedModel.from_pretrained(int8_directories["bert"])
    assert torch.equal(logits(copy.deepcopy(model)), logits(int8_models["bert"]))


def test_the_body_alone_is_loaded_from_the_whole(int8_directories, int8_models):
    body = transformers.AutoModel.from_pretrained(int8_directories["bert"], add_pooling_layer=False)
    with torch.no_grad():
        got = body(**inputs_of(body)).last_hidden_state
        want = int8_models["bert"].bert(**inputs_of(body)).last_hidden_state
    assert torch.equal(got, want)
    assert "encoder.layer.0.attention.self.query" in describe_int8(body)


def test_a_body_gets_a_new_head(tmp_path):
    class Body(transformers.BertModel):
        pass

    body = compress(transformers.BertModel(bert().config))
    save_for_huggingface_upstream(body, None, tmp_path)
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(model.classifier, torch.nn.Linear)
    assert "bert.encoder.layer.0.attention.self.query" in describe_int8(model)


def test_dequantize_gives_a_float_model_back(int8_directories, int8_models):
    model = OptimizedModel.from_pretrained(int8_directories["bert"])
    codes = model.classifier.weight.clone()
    model.dequantize()
    assert describe_int8(model) == {}
    assert type(model.classifier) is torch.nn.Linear
    assert torch.equal(model.classifier.weight, codes)
    assert not hasattr(model.config, "quantization_config")
    want = logits(int8_models["bert"])
    assert (logits(model) - want).abs().max() < 0.1 * want.abs().max()


def test_it_is_marked_as_not_trainable(int8_models, int8_directories):
    for model in (int8_models["bert"], OptimizedModel.from_pretrained(int8_directories["bert"])):
        assert model.is_quantized
        assert model.hf_quantizer.is_trainable is False
        assert model.hf_quantizer.is_serializable()


def test_the_plain_layout_carries_hugging_face_models_too(architecture, int8_models, tmp_path):
    model = int8_models[architecture]
    save(model, tmp_path)
    got = load(tmp_path, model=type(model)(copy.deepcopy(model.config)))
    assert torch.equal(logits(got), logits(model))


# ------------------------------------------------------------------------------ what is in the directory


def test_the_directory_is_complete(tmp_path, word_tokenizer):
    model = compress(bert())
    asked = CompressionReport.measure(model, [Finding("classifier", pattern="4x1", sparsity=0.3, scheme="w8a8-static")])
    model.__dict__["_inc_torch_report"] = asked
    save_for_huggingface_upstream(model, word_tokenizer, tmp_path / "film-reviews")
    directory = tmp_path / "film-reviews"
    assert transformers.AutoTokenizer.from_pretrained(directory)("good film")["input_ids"] == [2, 3]
    config = config_of(directory)
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["quantization_config"]["quant_method"] == "inc_torch"
    assert config["quantization_config"]["modules"] == json.loads(json.dumps(describe_int8(model)))
    stored = CompressionReport.from_dict(json.loads((directory / "compression_report.json").read_text()))
    assert stored == model.__dict__["_inc_torch_report"]
    row = next(row for row in stored.modules if row.name == "classifier")
    assert (row.bits, row.zeros, row.asked_sparsity) == (8, 32, 0.3)
    card = (directory / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- inc_torch\n- compression\n- int8\n- pruning\n")
    for line in (
        "# film-reviews",
        "| sparsity asked | 30.0% (4x1) |",
        "| sparsity reached | 33.33% of the pruned weights |",
        "import inc_torch",
        'BertForSequenceClassification.from_pretrained("film-reviews")',
        "| classifier | ",
    ):
        assert line in card
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert file.get_slice("classifier.qweight").get_dtype() == "I8"
    assert not list(directory.glob("*.bin"))


def test_the_card_of_a_float_model_needs_no_inc_torch(tmp_path):
    save_for_huggingface_upstream(bert(), None, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "import inc_torch" not in card
    assert "- int8" not in card
    assert "| int8 modules | 0 of " in card


def test_a_card_written_by_hand_is_kept(tmp_path):
    (tmp_path / "README.md").write_text("# Mine")
    save_for_huggingface_upstream(bert(), None, tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine"
    (tmp_path / "README.md").unlink()
    save_for_huggingface_upstream(bert(), None, tmp_path)
    save_for_huggingface_upstream(compress(bert()), None, tmp_path)
    assert "- int8" in (tmp_path / "README.md").read_text()


def test_a_generated_subclass_does_not_leak(tmp_path):
    """The manager gives the root a subclass of the same name."""
    model = bert()
    original = type(model)
    adorn(model)
    assert type(model) is not original
    save_for_huggingface_upstream(compress(model), None, tmp_path)
    assert config_of(tmp_path)["architectures"] == ["BertForSequenceClassification"]
    assert type(OptimizedModel.from_pretrained(tmp_path)) is original


def test_the_whole_way_through_the_manager(tmp_path):
    model = bert()
    pruning = WeightPruningConfig(
        pattern="4x1", pruning_type="magnitude", target_sparsity=0.5, start_step=1, end_step=3
    )
    manager = prepare_compression(model, [QuantizationAwareTrainingConfig(), pruning])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    manager.on_train_begin()
    for step in range(5):
        manager.on_step_begin(step)
        loss = model.train()(**inputs_of(model), labels=torch.tensor([0, 1])).loss
        optimizer.zero_grad()
        loss.backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        manager.on_step_end()
    with pytest.warns(InexactWarning, match=r"modules that were to be quantized are saved in float.*on_train_end"):
        save_for_huggingface_upstream(manager, None, tmp_path / "early")
    manager.on_train_end()
    save_for_huggingface_upstream(manager, None, tmp_path / "done")
    got = OptimizedModel.from_pretrained(tmp_path / "done")
    assert torch.equal(logits(got), logits(model))
    report = got.__dict__["_inc_torch_report"]
    assert report == manager.report()
    assert 0.5 <= report.sparsity < 0.51  # small weights may round to the code 0 as well
    assert {row.bits for row in report.modules} == {8}
    save(model, tmp_path / "plain")
    assert torch.equal(logits(load(tmp_path / "plain", model=bert())), logits(model))


def test_a_model_of_the_hub_is_found_with_its_report(int8_directories, int8_models, tmp_path):
    """As it lies in the cache of the Hub after a download."""
    folder = tmp_path / "models--somebody--reviews"
    shutil.copytree(int8_directories["bert"], folder / "snapshots" / ("0" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    got = OptimizedModel.from_pretrained("somebody/reviews", cache_dir=tmp_path)
    assert torch.equal(logits(got), logits(int8_models["bert"]))
    stored = json.loads((int8_directories["bert"] / "compression_report.json").read_text())
    assert got.__dict__["_inc_torch_report"] == CompressionReport.from_dict(stored)


def test_after_saving_the_model_itself_can_be_saved_by_transformers(int8_models, tmp_path):
    model = int8_models["gpt2"]
    model.save_pretrained(tmp_path)
    got = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(got), logits(model))
