"""A program that does not import inc_torch is told so, and gets no model with made-up weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file

from inc_torch.huggingface import save_for_huggingface_upstream
from tests.unit.huggingface.conftest import bert

ROOT = Path(__file__).parents[3]

PROGRAM = """
import json, sys, transformers
transformers.logging.disable_progress_bar()
for task, directory in json.loads(sys.argv[1]):
    load = getattr(transformers, task).from_pretrained
    try:
        load(directory)
    except RuntimeError as error:
        print(task, "refused:", str(error).splitlines()[0])
    else:
        print(task, "loaded")
assert "inc_torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def foreign_program(int8_directories, tmp_path_factory):
    """What transformers alone says of a classifier, of its body, of a model with tied weights and of a float one."""
    directory = tmp_path_factory.mktemp("float")
    save_for_huggingface_upstream(bert(), None, directory)
    cases = [
        ("AutoModelForSequenceClassification", int8_directories["bert"]),
        ("AutoModel", int8_directories["bert"]),
        ("AutoModelForCausalLM", int8_directories["gpt2"]),
        ("BertForSequenceClassification", directory),
    ]
    command = [sys.executable, "-c", PROGRAM, json.dumps([(task, os.fspath(path)) for task, path in cases])]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result


def test_loading_is_an_error(foreign_program):
    outcomes = dict(line.split(" ", 1) for line in foreign_program.stdout.splitlines())
    assert len(outcomes) == 4
    assert outcomes.pop("BertForSequenceClassification") == "loaded"
    for outcome in outcomes.values():
        assert outcome.startswith("refused:")
        assert "mismatch" in outcome or "loading state_dict" in outcome


def test_the_package_is_named(foreign_program):
    assert "Unknown quantization type, got inc_torch" in foreign_program.stderr
    if transformers.__version__ >= "5":  # 4.57 stops at the first tensor, and lists none
        assert "write_import_inc_torch_before_loading" in foreign_program.stderr


def test_every_int8_module_sounds_the_alarm_but_those_whose_codes_are_another_s(int8_directories):
    tensors = load_file(int8_directories["gpt2"] / "model.safetensors")
    modules = json.loads((int8_directories["gpt2"] / "config.json").read_text())["quantization_config"]["modules"]
    alarms = {name: tensor for name, tensor in tensors.items() if tuple(tensor.shape) == (1,)}
    assert alarms.keys() == {f"{name}.weight" for name in modules if name != "lm_head"} | {
        "write_import_inc_torch_before_loading"
    }


def test_the_card_says_what_happens(int8_directories):
    text = (int8_directories["bert"] / "README.md").read_text()
    assert "import inc_torch  # lets transformers open compressed models" in text
    assert "Without `import inc_torch`" in text
