"""Directories that are damaged, foreign or dangerous, and what is said about them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from inc_torch.core.errors import ArtifactError, MissingPackageError, ModelError
from inc_torch.export import save
from inc_torch.huggingface import OptimizedModel, save_for_huggingface_upstream
from inc_torch.utils import load_huggingface
from tests.unit.huggingface.conftest import bert

IS_5 = not transformers.__version__.startswith("4.")

AUTO = transformers.AutoModelForSequenceClassification
LOADERS = [AUTO.from_pretrained, OptimizedModel.from_pretrained]
both = pytest.mark.parametrize("open_model", LOADERS, ids=["auto", "optimized"])


@pytest.fixture
def directory(int8_directories, tmp_path):
    return Path(shutil.copytree(int8_directories["bert"], tmp_path / "model"))


@pytest.fixture
def float_directory(tmp_path):
    save_for_huggingface_upstream(bert(), None, tmp_path / "float")
    return tmp_path / "float"


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_tensors(directory, change):
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


# ------------------------------------------------------------------------------ weights


@both
def test_truncated_weights(directory, open_model):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    # transformers 4.57 opens the file before it asks our quantizer.
    ours, theirs = r"model.safetensors' is damaged or cut short.*Save the model again", "incomplete metadata"
    with pytest.raises((ArtifactError, SafetensorError), match=ours if IS_5 else f"{ours}|{theirs}"):
        open_model(directory)


def test_truncated_weights_of_a_float_model(float_directory):
    path = float_directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(ArtifactError, match=r"model.safetensors' is damaged or cut short.*Save the model again"):
        OptimizedModel.from_pretrained(float_directory)


@both
@pytest.mark.parametrize("leaf", ["qweight", "weight_scale", "bias", "input_scale", "input_zero_point"])
def test_a_missing_int8_tensor_is_no_reason_to_make_one_up(directory, open_model, leaf):
    edit_tensors(directory, lambda tensors: tensors.pop(f"classifier.{leaf}"))
    message = rf"Int8 module 'classifier' was not loaded from .*the files lack '{leaf}'.*Save the model again"
    with pytest.raises(ArtifactError, match=message):
        open_model(directory)


@both
@pytest.mark.parametrize("leaf", ["qweight", "weight_scale", "bias", "input_scale", "input_zero_point"])
def test_a_changed_int8_tensor_is_noticed(directory, open_model, leaf):
    edit_tensors(directory, lambda tensors: tensors[f"classifier.{leaf}"].add_(1))
    with pytest.raises(
        ArtifactError, match=r"Int8 module 'classifier'.*got checksum '\w{8}', expected checksum '\w{8}'"
    ):
        open_model(directory)


def test_a_missing_shard_is_named(int8_models, tmp_path):
    save_for_huggingface_upstream(int8_models["bert"], None, tmp_path, max_shard_size=8_000)
    path = sorted(tmp_path.glob("model-*.safetensors"))[1]
    path.unlink()
    with pytest.raises(
        ArtifactError, match=rf"{path.name}' is missing.*names it among \d files. Copy the whole directory"
    ):
        OptimizedModel.from_pretrained(tmp_path)


@both
def test_the_report_must_fit_the_weights(directory, open_model):
    edit(directory / "compression_report.json", lambda data: data["modules"][-1].update(zeros=1))
    with pytest.raises(
        ArtifactError, match=r"Module 'classifier': the loaded weight has zeros 32, but the report .* says 1"
    ):
        open_model(directory)


def test_the_report_of_a_float_model_must_fit_too(float_directory):
    edit_tensors(float_directory, lambda tensors: tensors["classifier.weight"][:2].zero_())
    with pytest.raises(ArtifactError, match=r"'classifier'.*has zeros 64, but the report .* says 0.*remove the report"):
        OptimizedModel.from_pretrained(float_directory)
    (float_directory / "compression_report.json").unlink()
    OptimizedModel.from_pretrained(float_directory)


def test_a_cast_may_change_bits_and_only_add_zeros(float_directory):
    model = OptimizedModel.from_pretrained(float_directory, dtype=torch.bfloat16)
    assert {row.bits for row in model.__dict__["_inc_torch_report"].modules} == {16}


def test_without_a_report_it_is_measured_afresh(directory):
    (directory / "compression_report.json").unlink()
    report = AUTO.from_pretrained(directory).__dict__["_inc_torch_report"]
    assert next(row for row in report.modules if row.name == "classifier").bits == 8


@both
def test_pickled_weights_are_never_opened(directory, open_model):
    class Trap:
        def __reduce__(self):
            return Path.touch, (directory / "sprung",)

    (directory / "model.safetensors").unlink()
    torch.save({"classifier.weight": Trap()}, directory / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"holds pickled weights.*expected \*\.safetensors.*(not|never) opened"):
        open_model(directory)
    assert not (directory / "sprung").exists()


# ------------------------------------------------------------------------------ config.json


@both
def test_a_module_that_the_model_lacks(directory, open_model):
    edit(
        directory / "config.json",
        lambda data: data["quantization_config"]["modules"].update(clasifier={"kind": "linear"}),
    )
    with pytest.raises(
        ArtifactError, match=r"names 'clasifier', which BertForSequenceClassification does not have.*Did you"
    ):
        open_model(directory)


@both
def test_a_newer_layout(directory, open_model):
    edit(directory / "config.json", lambda data: data["quantization_config"].update(version=2))
    with pytest.raises(ArtifactError, match=r"quantization_config.version=2: expected 1 or older.*pip install -U"):
        open_model(directory)


@both
def test_an_unknown_key(directory, open_model):
    edit(directory / "config.json", lambda data: data["quantization_config"].update(module={}))
    with pytest.raises(
        ArtifactError, match=r"quantization_config.module=\{\}: expected one of.*Did you mean 'modules'"
    ):
        open_model(directory)


def test_a_truncated_config(directory):
    path = directory / "config.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ArtifactError, match=r"config.json' is damaged or cut short.*expected JSON"):
        OptimizedModel.from_pretrained(directory)


@pytest.mark.parametrize("value", [None, [], ["NoSuchModel"]])
def test_an_unknown_class(float_directory, value):
    edit(float_directory / "config.json", lambda data: data.update(architectures=value))
    with pytest.raises(ArtifactError, match=r"architectures=.*expected the name of a class in transformers.*YourModel"):
        OptimizedModel.from_pretrained(float_directory)


# ------------------------------------------------------------------------------ other directories


def test_a_missing_directory():
    with pytest.raises(
        ArtifactError, match=r"'no/such' does not exist: expected a directory or the name .*Check the path"
    ):
        OptimizedModel.from_pretrained("./no/such")


def test_a_file(float_directory):
    with pytest.raises(ArtifactError, match=r"config.json' is a file: expected a directory.*Give the directory"):
        OptimizedModel.from_pretrained(float_directory / "config.json")


def test_a_plain_inc_torch_directory(tmp_path):
    save(torch.nn.Linear(2, 2), tmp_path)
    with pytest.raises(ArtifactError, match=r"a plain inc_torch directory.*inc_torch.load\(directory, model"):
        OptimizedModel.from_pretrained(tmp_path)


def test_an_empty_directory(tmp_path):
    with pytest.raises(ArtifactError, match=r"has no config.json: expected a directory that from_pretrained can open"):
        OptimizedModel.from_pretrained(tmp_path)


def test_a_directory_without_weights(float_directory):
    (float_directory / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"has a config.json but no \*.safetensors: the save was cut short"):
        OptimizedModel.from_pretrained(float_directory)


# ------------------------------------------------------------------------------ saving


def test_other_models_are_sent_to_the_plain_layout(tmp_path):
    message = r"given 'Linear': expected a transformers PreTrainedModel.*manager.save\(directory\).*inc_torch.load"
    with pytest.raises(ModelError, match=message):
        save_for_huggingface_upstream(torch.nn.Linear(2, 2), None, tmp_path)


def test_a_tokenizer_in_the_wrong_place(tmp_path):
    with pytest.raises(ModelError, match=r"The tokenizer is 'str': expected an object with save_pretrained"):
        save_for_huggingface_upstream(bert(), "directory", tmp_path)


def test_a_file_is_not_saved_into(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"file' is a file: expected a directory to save into"):
        save_for_huggingface_upstream(bert(), None, tmp_path / "file")


def test_a_plain_directory_is_not_overwritten(tmp_path):
    save(torch.nn.Linear(2, 2), tmp_path)
    with pytest.raises(ArtifactError, match=r"is a plain inc_torch directory.*Save into another directory"):
        save_for_huggingface_upstream(bert(), None, tmp_path)


def test_a_save_that_is_cut_short_leaves_the_earlier_one(directory, monkeypatch):
    def cut(*_, **__):
        raise KeyboardInterrupt

    model = AUTO.from_pretrained(directory)
    monkeypatch.setattr("safetensors.torch.save_file", cut)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", cut)
    with pytest.raises(KeyboardInterrupt):
        save_for_huggingface_upstream(model, None, directory)
    monkeypatch.undo()
    again = OptimizedModel.from_pretrained(directory)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_optimized_model_has_no_instances():
    with pytest.raises(OSError, match=r"has no instances.*OptimizedModel.from_pretrained\(name_or_path\)"):
        OptimizedModel()


def test_inc_import_path():
    assert load_huggingface.OptimizedModel is OptimizedModel
    assert load_huggingface.save_for_huggingface_upstream is save_for_huggingface_upstream


def test_inc_arguments_are_understood(float_directory):
    model = OptimizedModel.from_pretrained(float_directory, use_auth_token=False, resume_download=True, revision="main")
    assert isinstance(model, transformers.BertForSequenceClassification)


def test_a_process_without_transformers_loaded_refuses_other_models():
    program = (
        "import inc_torch, torch\n"
        "try:\n    inc_torch.save_for_huggingface_upstream(torch.nn.Linear(2, 2), None, 'unused')\n"
        "except inc_torch.core.errors.ModelError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout.startswith("save_for_huggingface_upstream was given 'Linear'"), result.stderr


@pytest.mark.parametrize(
    ("call", "feature"),
    [
        (lambda: save_for_huggingface_upstream(bert(), None, "unused"), "save_for_huggingface_upstream"),
        (lambda: OptimizedModel.from_pretrained("unused"), "OptimizedModel"),
    ],
)
def test_without_transformers_the_extra_is_named(monkeypatch, call, feature):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError) as caught:
        call()
    assert str(caught.value) == (
        f"{feature} needs the package 'transformers', which is not installed. Install it: pip install 'inc_torch[hf]'."
    )
