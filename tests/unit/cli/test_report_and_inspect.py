"""``inc-torch report`` and ``inc-torch inspect``."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from inc_torch import PostTrainingQuantConfig, quantization


@pytest.fixture
def saved(models):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=[torch.ones(4, 8)]).save("int8")
    return models / "int8"


class TestReport:
    def test_a_table(self, saved, run):
        shown = run("report", "int8")
        assert shown.exit_code == 0
        assert "Compression report" in shown.output
        assert shown.output.count("w8a8-static") == 2
        assert all(len(line) <= 80 for line in shown.output.splitlines())

    def test_json_on_the_screen_and_in_a_file(self, saved, run):
        shown = run("report", "int8", "--json", "-")
        data = json.loads(shown.output)
        assert [row["bits"] for row in data["modules"]] == [8, 8]
        assert run("report", "int8", "--json", "report.json").output == ""
        assert json.loads((saved.parent / "report.json").read_text()) == data

    def test_a_page(self, saved, run):
        assert run("report", "int8", "--html", "report.html").exit_code == 0
        assert (saved.parent / "report.html").read_text().lstrip().startswith("<!doctype html>")

    def test_what_goes_wrong_is_a_line_and_a_code(self, saved, run):
        shown = run("report", "nowhere")
        assert (shown.exit_code, "holds no model that is known" in shown.output) == (1, True)
        shown = run("report", "int8", "--json", "no/such/folder.json")
        assert (shown.exit_code, "cannot be written: expected a file" in " ".join(shown.output.split())) == (2, True)
        (saved.parent / "float").mkdir()
        (saved.parent / "float" / "config.json").write_text("{}")
        from safetensors.torch import save_file

        save_file({"weight": torch.ones(2)}, saved.parent / "float" / "model.safetensors")
        shown = run("report", "float")
        assert (shown.exit_code, "'float' has no compression report" in shown.output) == (1, True)


class TestInspect:
    def test_everything_in_80_columns(self, saved, run):
        shown = run("inspect", "int8")
        assert shown.exit_code == 0
        text = " ".join(shown.output.split())
        for told in (
            "format inc_torch",
            "class Sequential",
            "layers w8a8-static 2, such as 0",
            "tensors I8 160 bytes",
            "in 2: compression.json, model.safetensors",
            "check model.safetensors holds: SHA-256",
            "model = inc_torch.load('int8', model=...)",
        ):
            assert told in text
        assert all(len(line) <= 80 for line in shown.output.splitlines())

    def test_json(self, saved, run):
        data = json.loads(run("inspect", "int8", "--json", "-").output)
        assert data["schemes"] == {"0": "w8a8-static", "2": "w8a8-static"}
        assert data["checks"][0]["is_right"] is True

    def test_damage_is_told_and_is_a_failure(self, saved, run):
        weights = saved / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
        shown = run("inspect", "int8")
        assert shown.exit_code == 1
        assert "check model.safetensors DAMAGED: sha256" in " ".join(shown.output.split())
        assert run("inspect", "int8", "--json", "-").exit_code == 1

    def test_what_is_no_model(self, models, run):
        shown = run("inspect", "own_models.py")
        assert shown.exit_code == 1
        assert "Error: " in shown.output
