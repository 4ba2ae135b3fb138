"""``inc-torch quantize``: what is saved, what is printed, and the exit code."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from inc_torch.export import attached_report
from inc_torch.huggingface import OptimizedModel
from inc_torch.model import Model


@pytest.fixture
def bert(models):
    """A directory of a small BERT with its tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    size = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    BertForSequenceClassification(BertConfig(vocab_size=9, **size)).eval().save_pretrained("bert")
    (models / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\nd\n")
    BertTokenizerFast("vocab.txt").save_pretrained("bert")
    (models / "texts.py").write_text(
        "import torch\nloader = [{'input_ids': torch.randint(0, 9, (2, 5)), 'labels': torch.tensor([0, 1])}] * 4\n"
    )
    yield models / "bert"
    sys.modules.pop("texts", None)


def opened(folder):
    from own_models import build

    return Model(folder, architecture=build())


def schemes(folder):
    return [row.scheme for row in opened(folder).report().modules]


def test_a_function_without_data_is_quantized_dynamically(models, run):
    shown = run("quantize", "own_models.py:build", "--output", "small")
    assert shown.exit_code == 0, shown.output
    assert "Compression report" in shown.output
    assert shown.output.rstrip().endswith("Quantized (dynamic), saved in small. See: inc-torch inspect")
    assert schemes("small") == ["w8a8-dynamic"] * 2


def test_data_makes_it_static(models, run):
    shown = run("quantize", "own_models:build", "-o", "small", "--data", "own_models:loader", "--samples", "8")
    assert shown.exit_code == 0, shown.output
    assert schemes("small") == ["w8a8-static"] * 2


def test_weights_of_a_few_bits_and_layers_that_are_kept(models, run):
    words = ["--approach", "weight_only", "--bits", "3", "--group-size", "8", "--scheme", "asym", "--keep-float", "2"]
    shown = run("quantize", "own_models:build", "-o", "small", *words, "--algorithm", "RTN")
    assert shown.exit_code == 0, shown.output
    assert schemes("small") == ["w3-g8-asym", None]


def test_a_goal_that_is_met_and_one_that_is_missed(models, run):
    words = ("quantize", "own_models:build", "--data", "own_models:data", "--eval")
    shown = run(*words, "own_models:exact", "-o", "good", "--tolerable-loss", "0.5")
    assert shown.exit_code == 0, shown.output
    assert "Search: trial 1 meets the goal." in shown.output
    shown = run(*words, "own_models:only_float", "-o", "bad", "--max-trials", "1")
    assert shown.exit_code == 1, shown.output
    assert "Warning: " in shown.output
    assert (models / "bad" / "compression.json").is_file()


def test_a_metric_on_the_data(models, run):
    shown = run(
        "quantize", "own_models:build", "-o", "small", "--data", "own_models:data", "--metric", "topk", "--quiet"
    )
    assert (shown.exit_code, shown.output) == (0, "")


def test_a_hugging_face_directory(bert, run):
    shown = run("quantize", "bert", "--output", "int8", "--data", "texts:loader")
    assert shown.exit_code == 0, shown.output
    model = OptimizedModel.from_pretrained("int8")
    assert {row.scheme for row in attached_report(model).modules} == {"w8-per-row", "w8a8-static"}
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in (bert.parent / "int8").iterdir()}
    config = json.loads((bert.parent / "int8" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "inc_torch"


def test_the_layout_of_gptq(models, run):
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **size)).eval().save_pretrained("llama")
    shown = run("quantize", "llama", "-o", "small", "--approach", "weight_only", "--keep-float", "lm_head", "--gptq")
    assert shown.exit_code == 0, shown.output
    config = json.loads((models / "small" / "config.json").read_text())
    assert (config["quantization_config"]["quant_method"], config["quantization_config"]["bits"]) == ("gptq", 4)


def test_a_file_of_weights_with_its_architecture(models, run):
    sys.path.insert(0, str(models))
    from own_models import build

    torch.save(build().state_dict(), "weights.pt")
    shown = run("quantize", "weights.pt", "-o", "small", "--architecture", "own_models:build")
    assert shown.exit_code == 0, shown.output
    assert schemes("small") == ["w8a8-dynamic"] * 2


def test_files_are_overwritten_only_if_that_is_asked_for(models, run):
    assert run("quantize", "own_models:build", "-o", "small").exit_code == 0
    shown = run("quantize", "own_models:build", "-o", "small")
    assert shown.exit_code == 2
    assert "'small' has files already. Name another directory, or say --overwrite." in " ".join(shown.output.split())
    assert run("quantize", "own_models:build", "-o", "small", "--overwrite", "--quiet").exit_code == 0


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["own_models:build_"], 2, "Did you mean 'build'?"),
        (["own_models:number"], 2, "which gives int: expected a torch.nn.Module."),
        (["own_models:build", "--approach", "static"], 1, "expected a calib_dataloader or a calib_func, got neither"),
        (["own_models:build", "--approach", "statc"], 2, "'statc' is not one of 'static'"),
        (["own_models:build", "--metric", "topk"], 2, "--metric topk needs --data, whose batches have labels."),
        (["own_models:build", "--eval", "own_models:number"], 2, "which is int: expected a function of the model"),
        (["own_models:build", "--bits", "11"], 2, "bits"),
        (["own_models:build", "--keep-float", "nothing"], 2, "nothing"),
        (["own_models:build", "--gptq"], 2, "--gptq writes language models of Hugging Face: got a Sequential."),
        (["nowhere"], 1, "'nowhere' does not exist"),
        (["frozen.pb"], 1, "is a model of TensorFlow: inc_torch compresses models of PyTorch only"),
    ],
)
def test_what_goes_wrong_is_a_line_and_a_code(models, run, words, code, told):
    shown = run("quantize", *words, "--output", "small")
    assert shown.exit_code == code, shown.output
    assert told in " ".join(shown.output.split())
    assert "Traceback" not in shown.output
    assert not (models / "small").exists()


def test_an_output_that_is_a_file_and_none(models, run):
    shown = run("quantize", "own_models:build", "--output", "own_models.py")
    assert (shown.exit_code, "is a file: expected a directory" in shown.output) == (2, True)
    shown = run("quantize", "own_models:build")
    assert (shown.exit_code, "Missing option '--output'" in shown.output) == (2, True)


def test_help_says_what_to_type(run):
    shown = run("quantize", "--help").output
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "Example: inc-torch quantize minilm -o minilm-int8 --data my_data.py:loader" in shown
    assert "quantize" in run("--help").output
