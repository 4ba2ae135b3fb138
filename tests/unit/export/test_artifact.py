"""Saving to and loading from plain directories."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from inc_torch.core.errors import ArtifactError, ModelError
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.export import load, save
from tests.unit.export.conftest import Net, quantize

WEIGHTS, DESCRIPTION = "model.safetensors", "compression.json"


def edit(directory, **changes):
    path = Path(directory) / DESCRIPTION
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))


def refresh(directory):
    """Make the stored size and checksum fit the weights, so that what comes after that check is tested."""
    import hashlib

    data = (Path(directory) / WEIGHTS).read_bytes()
    edit(directory, weights={"file": WEIGHTS, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})


# ------------------------------------------------------------------------------ round trips


def test_int8_model_computes_bit_for_bit_the_same(tmp_path, int8_net, new_net, inputs):
    want = int8_net(*inputs)
    save(int8_net, tmp_path / "made" / "on demand")
    model = new_net()
    got = load(tmp_path / "made" / "on demand", model=model)
    assert got is model
    assert not got.training
    assert torch.equal(got(*inputs), want)
    assert {name: value.dtype for name, value in got.state_dict().items()} == {
        name: value.dtype for name, value in int8_net.state_dict().items()
    }


def test_a_fresh_process_computes_bit_for_bit_the_same(tmp_path, int8_net, inputs):
    want = int8_net(*inputs)
    save(int8_net, tmp_path)
    save_file({"image": inputs[0], "word": inputs[1], "want": want}, tmp_path / "batch")
    program = (
        "import sys, torch; torch.set_num_threads(1)\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[3])!r})\n"
        "from safetensors.torch import load_file\n"
        "from inc_torch.export import load\n"
        "from tests.unit.export.conftest import Net\n"
        f"batch = load_file({str(tmp_path / 'batch')!r})\n"
        f"model = load({str(tmp_path)!r}, model=Net())\n"
        "assert torch.equal(model(batch['image'], batch['word']), batch['want'])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_skeleton_on_the_meta_device_is_filled(tmp_path, int8_net, new_net, inputs):
    save(int8_net, tmp_path)
    with torch.device("meta"):
        model = new_net()
    assert torch.equal(load(tmp_path, model=model)(*inputs), int8_net(*inputs))


def test_a_float_model_is_saved_as_it_is(tmp_path, net, new_net, inputs):
    net.train()(*inputs)
    save(net, tmp_path)
    got = load(tmp_path, model=new_net())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in got.state_dict().items())
    assert json.loads((tmp_path / DESCRIPTION).read_text())["modules"] == {}


def test_the_root_may_be_a_layer_itself(tmp_path):
    model = nn.Linear(3, 2)
    save(model, tmp_path)
    assert torch.equal(load(tmp_path, model=nn.Linear(3, 2)).weight, model.weight)


def test_parameters_stay_the_same_objects(tmp_path, net, new_net):
    save(net, tmp_path)
    model = new_net()
    before = dict(model.named_parameters())
    load(tmp_path, model=model)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_saving_twice_replaces_the_first(tmp_path, net, int8_net, new_net, inputs):
    save(new_net(), tmp_path)
    save(int8_net, tmp_path)
    assert torch.equal(load(tmp_path, model=new_net())(*inputs), int8_net(*inputs))
    assert sorted(path.name for path in tmp_path.iterdir()) == [DESCRIPTION, WEIGHTS]


def test_an_int8_model_can_be_loaded_into_again(tmp_path, int8_net, new_net, inputs):
    save(int8_net, tmp_path)
    model = load(tmp_path, model=new_net())
    model.fc._buffers["qweight"].zero_()
    assert torch.equal(load(tmp_path, model=model)(*inputs), int8_net(*inputs))


def test_overwriting_the_file_a_model_was_loaded_from_is_safe(tmp_path, int8_net, new_net, inputs):
    save(int8_net, tmp_path)
    with torch.device("meta"):
        model = new_net()
    load(tmp_path, model=model)
    save(model, tmp_path)
    assert torch.equal(model(*inputs), int8_net(*inputs))
    assert torch.equal(load(tmp_path, model=new_net())(*inputs), int8_net(*inputs))


def test_a_transformer_layer_does_not_slip_past_its_int8_modules(tmp_path):
    """In eval torch may hand the weights of its own transformer layers to one fused float kernel."""

    def build():
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), 2)

    values = torch.randn(2, 5, 16)
    model = quantize(build(), values)
    save(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(load(tmp_path, model=build())(values), model(values))


# ------------------------------------------------------------------------------ tied tensors


class Tied(nn.Module):
    def __init__(self, tie=True):
        super().__init__()
        self.words = nn.Embedding(40, 6)
        self.out = nn.Linear(6, 40, bias=False)
        if tie:
            self.out.weight = self.words.weight


def test_tied_weights_are_written_once_and_tied_again(tmp_path):
    model = Tied()
    save(model, tmp_path)
    assert len(load_file(tmp_path / WEIGHTS)) == 1
    with torch.device("meta"):
        on_meta = Tied()
    for other in (load(tmp_path, model=Tied()), load(tmp_path, model=on_meta)):
        assert other.out.weight is other.words.weight
        assert torch.equal(other.out.weight, model.out.weight)


def test_tied_weights_are_still_tied_in_int8(tmp_path):
    class Chain(Tied):
        def forward(self, word):
            return self.out(self.words(word))

    word = torch.arange(40)
    model = quantize(Chain(), word)
    want = model(word)
    save(model, tmp_path)
    assert sum(name.endswith("qweight") for name in load_file(tmp_path / WEIGHTS)) == 1
    got = load(tmp_path, model=Chain())
    assert got.out._buffers["qweight"] is got.words._buffers["qweight"]
    assert torch.equal(got(word), want)


def test_views_of_one_memory_are_written_apart(tmp_path):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            whole = torch.arange(6.0)
            self.register_buffer("left", whole[:4])
            self.register_buffer("right", whole[2:])

    save(Views(), tmp_path)
    got = load(tmp_path, model=Views())
    assert got.left.tolist() == [0, 1, 2, 3]
    assert got.right.tolist() == [2, 3, 4, 5]


def test_weights_that_differ_are_not_squeezed_into_a_tied_model(tmp_path):
    save(Tied(tie=False), tmp_path)
    with pytest.raises(
        ArtifactError, match=r"Tied ties 'out.weight' to 'words.weight', but the two differ.*without tying"
    ):
        load(tmp_path, model=Tied())


# ------------------------------------------------------------------------------ the report


def test_the_report_is_measured_when_saving_and_carried_after_loading(tmp_path, int8_net, new_net):
    asked = CompressionReport.measure(int8_net, [Finding("fc", pattern="4x1", sparsity=0.5)])
    int8_net.fc._buffers["qweight"][4] = 0  # after the report was made
    save(int8_net, tmp_path, asked)
    report = load(tmp_path, model=new_net()).__dict__["_inc_torch_report"]
    row = next(row for row in report.modules if row.name == "fc")
    assert (row.zeros, row.bits, row.asked_sparsity, row.pattern) == (40, 8, 0.5, "4x1")


@pytest.mark.parametrize(("field", "value"), [("zeros", 31), ("bits", 32), ("shape", [8, 9])])
def test_a_report_that_does_not_fit_the_weights_is_refused(tmp_path, int8_net, new_net, field, value):
    save(int8_net, tmp_path)
    report = json.loads((tmp_path / DESCRIPTION).read_text())["report"]
    next(row for row in report["modules"] if row["name"] == "fc")[field] = value
    edit(tmp_path, report=report)
    with pytest.raises(
        ArtifactError, match=rf"Module 'fc': the loaded weight has {field} .* says .*Save the model again"
    ):
        load(tmp_path, model=new_net())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(), "Module 'head' of Net is not in the report"),
        (
            lambda rows: rows[-1].update(name="hed"),
            "Module 'hed' is in the report .* no such weight. Did you mean 'head'",
        ),
    ],
)
def test_a_report_of_other_modules_is_refused(tmp_path, int8_net, new_net, change, message):
    save(int8_net, tmp_path)
    report = json.loads((tmp_path / DESCRIPTION).read_text())["report"]
    change(report["modules"])
    edit(tmp_path, report=report)
    with pytest.raises(ArtifactError, match=message):
        load(tmp_path, model=new_net())


def test_a_damaged_report_says_where_it_was_read(tmp_path, net, new_net):
    save(net, tmp_path)
    edit(tmp_path, report={"modules": []})
    with pytest.raises(ArtifactError, match="report is damaged") as caught:
        load(tmp_path, model=new_net())
    assert DESCRIPTION in caught.value.__notes__[0]


# ------------------------------------------------------------------------------ directories that are not ours


def test_a_missing_directory(new_net):
    with pytest.raises(ArtifactError, match=r"'no/such/place' does not exist: expected a directory .* Check the path"):
        load("no/such/place", model=new_net())


def test_a_file_in_place_of_the_directory(tmp_path, new_net):
    (tmp_path / "best_model.pt").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"best_model.pt' is a file: expected the directory .* never opened"):
        load(tmp_path / "best_model.pt", model=new_net())


def test_an_empty_directory(tmp_path, new_net):
    with pytest.raises(ArtifactError, match=r"has no compression.json.*and no weights. Check the path"):
        load(tmp_path, model=new_net())


def test_a_hugging_face_directory(tmp_path, new_net):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"a Hugging Face directory.*from_pretrained"):
        load(tmp_path, model=new_net())


def test_weights_without_a_description(tmp_path, net, new_net):
    save(net, tmp_path)
    (tmp_path / DESCRIPTION).unlink()
    with pytest.raises(
        ArtifactError, match=r"has no compression.json.*cut short, or the weights are another program's"
    ):
        load(tmp_path, model=new_net())


def test_pickled_files_are_never_opened(tmp_path, new_net):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"weight": Trap()}, tmp_path / "best_model.pt")
    with pytest.raises(
        ArtifactError, match=r"'best_model.pt'.*not opened.*Intel Neural Compressor.*inc_torch.utils.pytorch.load"
    ):
        load(tmp_path, model=new_net())
    assert not (tmp_path / "sprung").exists()


def test_missing_weights(tmp_path, net, new_net):
    save(net, tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match=r"model.safetensors' is missing.*Copy the whole directory"):
        load(tmp_path, model=new_net())


def test_truncated_weights(tmp_path, net, new_net):
    save(net, tmp_path)
    data = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(data[:-100])
    message = rf"got bytes {len(data) - 100}, compression.json says {len(data)}.*cut short. Copy the directory again"
    with pytest.raises(ArtifactError, match=message):
        load(tmp_path, model=new_net())


def test_one_changed_bit(tmp_path, net, new_net):
    save(net, tmp_path)
    data = bytearray((tmp_path / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(data)
    with pytest.raises(ArtifactError, match=r"is not the file that was saved: got sha256"):
        load(tmp_path, model=new_net())


def test_a_file_that_is_no_safetensors(tmp_path, net, new_net):
    save(net, tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"12345678 and more")
    refresh(tmp_path)
    with pytest.raises(
        ArtifactError, match=r"model.safetensors' is damaged or cut short.*expected a whole safetensors file"
    ):
        load(tmp_path, model=new_net())


def test_an_alias_of_nothing(tmp_path, net, new_net):
    save(net, tmp_path)
    edit(tmp_path, aliases={"fc.weight": "fc.gone"})
    with pytest.raises(ArtifactError, match=r"lacks 'fc.gone', to which 'fc.weight' is tied"):
        load(tmp_path, model=new_net())


@pytest.mark.parametrize("text", ['{"format": "inc_torch/1", "modu', "", "\x00\xff"])
def test_a_truncated_description(tmp_path, net, new_net, text):
    save(net, tmp_path)
    (tmp_path / DESCRIPTION).write_bytes(text.encode("latin1"))
    with pytest.raises(
        ArtifactError, match=r"compression.json' is damaged or cut short.*expected JSON. Save the model again"
    ):
        load(tmp_path, model=new_net())


def test_a_description_that_is_no_object(tmp_path, net, new_net):
    save(net, tmp_path)
    (tmp_path / DESCRIPTION).write_text("[]")
    with pytest.raises(ArtifactError, match=r"holds 'list', expected a JSON object"):
        load(tmp_path, model=new_net())


@pytest.mark.parametrize("key", ["modules", "aliases", "weights", "report", "class"])
def test_a_description_that_lacks_a_key(tmp_path, net, new_net, key):
    save(net, tmp_path)
    edit(tmp_path, **{key: None})
    with pytest.raises(ArtifactError, match=rf"is damaged: '{key}' is None, expected"):
        load(tmp_path, model=new_net())


def test_a_newer_format(tmp_path, net, new_net):
    save(net, tmp_path)
    edit(tmp_path, format="inc_torch/2")
    with pytest.raises(
        ArtifactError, match=r"newer inc_torch: got format 'inc_torch/2', expected 'inc_torch/1'.*pip install -U"
    ):
        load(tmp_path, model=new_net())


@pytest.mark.parametrize("text", ["onnx/1", "inc_torch/x", None, 3])
def test_a_foreign_format(tmp_path, net, new_net, text):
    save(net, tmp_path)
    edit(tmp_path, format=text)
    with pytest.raises(ArtifactError, match=r"was not written by inc_torch: got format .*expected 'inc_torch/1'"):
        load(tmp_path, model=new_net())


# ------------------------------------------------------------------------------ another architecture


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 2)), r"Sequential is not the model.*\(a Net\): it has '0.weight'"),
        (lambda: Widened(), r"'fc.weight' has shape \(9, 8\), the saved one \(8, 8\)"),
        (lambda: Longer(), r"it has 'more.weight' of shape \(2, 2\), which was not saved"),
        (lambda: Shorter(), r"it lacks 'head.bias', which was saved"),
        (lambda: Net().bfloat16(), r"has dtype torch.bfloat16, the saved one torch.float32.*cast it afterwards"),
    ],
    ids=["class", "shape", "more", "fewer", "dtype"],
)
def test_another_architecture_names_the_first_difference(tmp_path, net, build, message):
    save(net, tmp_path)
    with pytest.raises(ArtifactError, match=message):
        load(tmp_path, model=build())


def test_an_int8_model_needs_its_own_skeleton(tmp_path, int8_net):
    save(int8_net, tmp_path)
    with pytest.raises(ArtifactError):
        load(tmp_path, model=nn.Sequential(nn.Linear(2, 2)))


class Widened(Net):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 9)


class Longer(Net):
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(2, 2)


class Shorter(Net):
    def __init__(self):
        super().__init__()
        del self.head


def test_a_buffer_that_is_not_saved_cannot_stay_on_meta(tmp_path):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.register_buffer("ids", torch.arange(3), persistent=False)

    save(Positions(), tmp_path)
    with torch.device("meta"):
        model = Positions()
    with pytest.raises(ArtifactError, match=r"'ids' of Positions is on the meta device.*Build the model on the CPU"):
        load(tmp_path, model=model)


# ------------------------------------------------------------------------------ saving that is refused


def test_a_file_is_not_saved_into(tmp_path, net):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"file' is a file: expected a directory to save into. Give another path"):
        save(net, tmp_path / "file")


def test_a_hugging_face_model_is_not_overwritten(tmp_path, net):
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.ones(1)}, tmp_path / WEIGHTS)
    with pytest.raises(ArtifactError, match=r"holds a Hugging Face model.*Save into another directory"):
        save(net, tmp_path)
    assert list(load_file(tmp_path / WEIGHTS)) == ["a"]


def test_state_that_is_no_tensor_is_refused(tmp_path):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

    with pytest.raises(ModelError, match=r"'_extra_state' of Odd is state of type 'dict': expected a tensor"):
        save(Odd(2, 2), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_without_values_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"'weight' of Linear is on the meta device.*Load the weights before saving"):
        save(nn.Linear(2, 2, device="meta"), tmp_path)


def test_a_save_that_is_cut_between_its_two_files_leaves_the_first(tmp_path, net, new_net, monkeypatch):
    save(net, tmp_path)

    def cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("inc_torch.export._artifact.write_json", cut)
    with pytest.raises(KeyboardInterrupt):
        save(new_net(), tmp_path)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compression.json", "model.safetensors"]
    loaded = load(tmp_path, model=new_net())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.state_dict().items())
