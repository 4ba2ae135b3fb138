"""Files that are damaged, swapped, or made to do harm: nothing in them runs, and an error of ours says so."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
import tracemalloc

import pytest
import torch
from safetensors.torch import save_file

import inc_torch
from inc_torch.config import read_configs
from inc_torch.core.errors import ArtifactError, ConfigError, IncTorchError, StateError
from inc_torch.core.files import parse_json
from inc_torch.core.plain_yaml import read_text
from inc_torch.distillers.cached_logits import CachedLogits
from inc_torch.export import load
from inc_torch.huggingface._checkpoint import STATE_FILE, read_state
from inc_torch.ipex import read_summary
from inc_torch.model import Model, inspect_saved
from inc_torch.tuning import TuningResult
from inc_torch.utils.load_huggingface import OptimizedModel
from tests.faults.mutations import WRONG_TEXTS
from tests.faults.subjects import SUBJECTS, net, read_model, run_pipeline

PREFIX = 8


class Harmful:
    """What makes a file when it is unpickled."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (self.canary,)


READERS = {
    "a model": ("model/compression.json", read_model),
    "the weights of a model": ("model/model.safetensors", read_model),
    "inspecting a model": ("model/compression.json", lambda place: inspect_saved(place / "model")),
    "a hub directory": ("hub/config.json", SUBJECTS["a hub directory"].read),
    "the weights of a hub directory": ("hub/model.safetensors", SUBJECTS["a hub directory"].read),
    "the report of a hub directory": ("hub/compression_report.json", SUBJECTS["a hub directory"].read),
    "an index of weights": ("hub/model.safetensors.index.json", SUBJECTS["a hub directory"].read),
    "a search": ("tuning.json", lambda place: TuningResult.load(place / "tuning.json")),
    "a checkpoint": (f"checkpoint/{STATE_FILE}", lambda place: read_state(place / "checkpoint")),
    "a pipeline": ("run-first/pipeline.json", lambda place: run_pipeline(place, "first")),
    "a stage": ("run-first/1-prune/stage.json", lambda place: run_pipeline(place, "first")),
    "the model of a stage": ("run-first/1-prune/model.safetensors", lambda place: run_pipeline(place, "first")),
    "random generators": ("run-first/1-prune/random.pt", lambda place: run_pipeline(place, "first")),
    "teacher logits": ("logits-first/index.json", lambda place: CachedLogits(place / "logits-first")),
    "a shard of teacher logits": (
        "logits-first/logits-00000.safetensors",
        lambda place: CachedLogits(place / "logits-first")[0],
    ),
    "a summary of the extension": ("best_configure.json", lambda place: read_summary(place / "best_configure.json")),
    "configurations": ("conf.yaml", lambda place: read_configs(place / "conf.yaml")),
    "settings of 1.X": ("conf.yaml", lambda place: inc_torch.conf.read_conf(place / "conf.yaml")),
    "a model of INC": ("inc/best_model.pt", lambda place: inc_torch.utils.pytorch.load(place / "inc", net())),
    "a file of weights": ("weights.pt", lambda place: Model(place / "weights.pt", architecture=net())),
}
ALL_READERS = pytest.mark.parametrize(("name", "read"), READERS.values(), ids=READERS)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    place = tmp_path_factory.mktemp("written")
    for subject in SUBJECTS.values():
        subject.write(place, "first")
    (place / "inc").mkdir()
    return place


@pytest.fixture
def place(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy")


@ALL_READERS
def test_a_hostile_pickle_does_not_run(name, read, place, tmp_path):
    canary = tmp_path / "canary"
    for content in (pickle.dumps(Harmful(str(canary))), None):
        if content is None:
            torch.save({"state_dict": Harmful(str(canary)), "best_configure": {}}, place / name)
        else:
            (place / name).write_bytes(content)
        with pytest.raises(IncTorchError) as caught:
            read(place)
        assert not canary.exists()
        assert str(caught.value)
    with (place / name).open("rb") as file:
        torch.load(file, weights_only=False)
    assert canary.exists(), "it would have been harmful"


@ALL_READERS
@pytest.mark.parametrize("text", WRONG_TEXTS.values(), ids=WRONG_TEXTS)
def test_wrong_texts_are_refused_with_the_name_of_the_file(name, read, text, written):
    path = written / name
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(text.encode(errors="surrogateescape"))
    try:
        with pytest.raises(IncTorchError) as caught:
            read(written)
    finally:
        path.unlink()
        if before is not None:
            path.write_bytes(before)
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert os.fspath(path.parent) in said


def headers(whole: bytes):
    """A safetensors file with other headers: longer than the file, not JSON, offsets outside, and one over another."""
    (length,) = struct.unpack("<Q", whole[:PREFIX])
    header, data = json.loads(whole[PREFIX : PREFIX + length]), whole[PREFIX + length :]
    name = next(key for key in header if key != "__metadata__")

    def with_header(changed) -> bytes:
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + data

    yield struct.pack("<Q", 2**63) + whole[PREFIX:]
    yield struct.pack("<Q", len(whole)) + whole[PREFIX:]
    yield struct.pack("<Q", 10_000_000_000) + whole[PREFIX:]
    yield with_header({**header, name: {**header[name], "data_offsets": [0, 10**15]}})
    yield with_header({**header, name: {**header[name], "data_offsets": [-1, 4]}})
    yield with_header({**header, name: {**header[name], "shape": [10**9, 10**9]}})
    yield with_header({**header, name: {**header[name], "dtype": "OBJECT"}})
    yield with_header({**header, name: []})
    yield whole[: len(whole) // 2]
    yield whole[:-1]
    yield whole + b"more"


@pytest.mark.parametrize("name", [name for name in READERS if READERS[name][0].endswith(".safetensors")])
def test_damaged_weights_are_refused_without_much_memory(name, place):
    file, read = READERS[name]
    for content in headers((place / file).read_bytes()):
        (place / file).write_bytes(content)
        tracemalloc.start()
        with pytest.raises(ArtifactError, match=r"damaged|cannot be read|not the file that was saved"):
            read(place)
        assert tracemalloc.get_traced_memory()[1] < 50e6
        tracemalloc.stop()


def test_weights_of_another_model_are_refused(place):
    save_file({name: value.detach() for name, value in net().state_dict().items()}, place / "model/model.safetensors")
    with pytest.raises(ArtifactError, match="is not the file that was saved"):
        read_model(place)


@pytest.mark.parametrize("outside", ["../secret.safetensors", "/tmp/secret.safetensors", "sub/a.safetensors"])
def test_names_in_files_lead_nowhere_else(outside, place):
    (place / "secret.safetensors").write_bytes((place / "hub/model.safetensors").read_bytes())
    index = {"metadata": {}, "weight_map": {"classifier.weight": outside}}
    (place / "hub/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match=f"names the file '{outside}', expected names of files beside it"):
        OptimizedModel.from_pretrained(place / "hub")
    logits = place / "logits-first/index.json"
    content = json.loads(logits.read_text())
    logits.write_text(json.dumps({**content, "shards": [[outside, 120]]}))
    with pytest.raises(ArtifactError, match=f"lacks '{outside}'"):
        CachedLogits(place / "logits-first")
    path = place / "model/compression.json"
    data = json.loads(path.read_text())
    (place / "model/model.safetensors").rename(place / "secret.safetensors")
    path.write_text(json.dumps({**data, "weights": {**data["weights"], "file": outside}}))
    with pytest.raises(ArtifactError, match=r"model\.safetensors' is missing"):
        load(place / "model", model=net())


def test_a_digest_that_is_a_path_leads_nowhere(place):
    path = place / "model/compression.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "weights": {**data["weights"], "sha256": "/../../secret"}}))
    with pytest.raises(ArtifactError, match="is not the file that was saved"):
        load(place / "model", model=net())


@pytest.mark.parametrize("subject", ["a model", "a hub directory", "a benchmark", "a search", "a checkpoint"])
def test_what_a_link_leads_to_is_not_written_over(subject, place, tmp_path):
    outside = tmp_path / "outside"
    links = [path for path in place.rglob("*") if path.is_file()]
    for path in links:
        outside.write_text("mine")
        path.unlink()
        path.symlink_to(outside)
    shutil.rmtree(place / "hub") if subject != "a hub directory" else (place / "hub/README.md").unlink()
    if subject == "a hub directory":
        (place / "hub/README.md").symlink_to(tmp_path / "not there")
    SUBJECTS[subject].write(place, "second")
    assert outside.read_text() == "mine"
    assert not (tmp_path / "not there").exists()
    assert SUBJECTS[subject].read(place) == "second"


BOMBS = {
    "aliases": "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
    "merges": "a0: &a0 {x: 1, y: 2}\n"
    + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)),
    "depth": "[" * 10_000 + "]" * 10_000,
    "itself": "a: &a [*a]",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_of_yaml_is_refused_at_once(bomb, tmp_path):
    begin = time.perf_counter()
    with pytest.raises(ConfigError, match=r"bomb\.yaml"):
        read_text(bomb, "bomb.yaml")
    (tmp_path / "conf.yaml").write_text(bomb)
    with pytest.raises(ConfigError, match=r"conf\.yaml"):
        read_configs(tmp_path / "conf.yaml")
    assert time.perf_counter() - begin < 5


def test_json_nests_as_deep_as_it_likes():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(WRONG_TEXTS["nested lists"])


def test_a_damaged_checkpoint_names_its_file(place):
    (place / "checkpoint" / STATE_FILE).write_bytes(b"PK\x03\x04")
    with pytest.raises(StateError, match=rf"{STATE_FILE}' cannot be read: .*Resume from another checkpoint"):
        read_state(place / "checkpoint")
