"""Everything that a module can be compressed to travels through a directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from inc_torch.core.errors import ArtifactError
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.export import load, save
from inc_torch.precision import compute_in_bfloat16, describe_bfloat16
from inc_torch.quantizers import (
    FloatType,
    QuantRule,
    QuantSpec,
    convert,
    describe_int8,
    enable_fake_quant,
    prepare_fake_quant,
)

LOW = ["lstm", "low"]
"""What computes in bfloat16."""


class Zoo(nn.Module):
    """One layer of each treatment."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.up1 = nn.ConvTranspose1d(4, 4, 3)
        self.up2 = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
        self.up3 = nn.ConvTranspose3d(1, 4, 2)
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.static = nn.Linear(8, 8)
        self.dynamic = nn.Linear(8, 8)
        self.smooth = nn.Linear(8, 8)
        self.corrected = nn.Linear(8, 8, bias=False)
        self.low = nn.Linear(8, 3)

    def forward(self, image):
        seen = self.conv(image)
        seen = self.up2(seen + self.up1(seen.mean(dim=3)).mean()) + self.up3(image[:, None, :1]).mean()
        steps, (state, _) = self.lstm(seen.mean(dim=3).transpose(1, 2))
        seen = self.static(steps[:, -1] + state[0])
        return self.low(self.corrected(self.smooth(self.dynamic(seen).relu()).relu()))


def compressed(image):
    generator = torch.Generator().manual_seed(2)
    model = Zoo()
    model.static.weight.data[:4] = 0
    rules = (QuantRule("name", "dynamic", {"dynamic": True}), QuantRule("name", "low", FloatType.BFLOAT16))
    prepare_fake_quant(model, QuantSpec(rules=rules))
    for name, channels in {"smooth": 8, "dynamic": 8, "conv": 2, "up2": 4}.items():
        model.get_submodule(name).smooth(torch.rand(channels, generator=generator) + 0.5)
    model.corrected.correct_bias(torch.randn(8, generator=generator))
    enable_fake_quant(model, observe=True)
    with torch.no_grad():
        model.train()(image)
    convert(model)
    compute_in_bfloat16(model, LOW)
    return model.eval()


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def zoo(image):
    torch.manual_seed(0)
    return compressed(image)


@pytest.fixture
def directory(zoo, tmp_path):
    save(zoo, tmp_path)
    return tmp_path


def edit(directory, change):
    path = Path(directory) / "compression.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@torch.no_grad()
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_treatment_gives_the_same_bits_after_loading(zoo, directory, image, device):
    entries = describe_int8(zoo)
    assert {entry["kind"] for entry in entries.values()} == {
        "conv2d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "linear",
        "dynamic_linear",
    }
    assert [name for name, entry in entries.items() if entry["smoothed"]] == ["conv", "up2", "dynamic", "smooth"]
    assert entries["corrected"]["bias"]
    with torch.device(device):
        model = Zoo()
    got = load(directory, model=model)
    assert describe_int8(got) == entries
    assert describe_bfloat16(got) == {"lstm": "LSTM", "low": "Linear"}
    assert torch.equal(got(image), zoo(image))


@torch.no_grad()
def test_it_can_be_loaded_into_again_and_saved_again(zoo, directory, image, tmp_path):
    model = load(directory, model=Zoo())
    model.low.weight.zero_()
    load(directory, model=model)
    save(model, tmp_path / "again")
    assert torch.equal(load(tmp_path / "again", model=Zoo())(image), zoo(image))


def test_the_report_knows_bfloat16(zoo, directory):
    got = load(directory, model=Zoo()).__dict__["_inc_torch_report"]
    stored = CompressionReport.from_dict(json.loads((directory / "compression.json").read_text())["report"])
    assert got == stored
    rows = {row.name: row for row in got.modules}
    assert {name: (rows[name].bits, rows[name].scheme) for name in LOW} == dict.fromkeys(LOW, (16, "bfloat16"))
    assert rows["lstm"].kind == "LSTM"
    assert rows["lstm"].shape == (32 * 6 + 32 * 8,)
    assert (rows["static"].bits, rows["static"].zeros) == (8, 32)


def test_what_was_asked_stands_above_what_was_done(zoo, tmp_path):
    save(zoo, tmp_path, CompressionReport.measure(zoo, [Finding("low", scheme="w8a8-static", note="by the tuner")]))
    row = next(row for row in load(tmp_path, model=Zoo()).__dict__["_inc_torch_report"].modules if row.name == "low")
    assert (row.scheme, row.bits, row.notes) == ("w8a8-static", 16, ("by the tuner",))


def test_bits_of_bfloat16_modules_are_proven(directory):
    def widen(data):
        next(row for row in data["report"]["modules"] if row["name"] == "lstm")["bits"] = 32

    edit(directory, widen)
    with pytest.raises(ArtifactError, match=r"Module 'lstm': the loaded weight has bits 16, but the report .* says 32"):
        load(directory, model=Zoo())


def test_a_directory_from_before_smoothing_and_bfloat16_is_read(tmp_path):
    torch.manual_seed(0)
    model, values = nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4)
    prepare_fake_quant(model, QuantSpec())
    enable_fake_quant(model, observe=True)
    model(values)
    convert(model)
    save(model, tmp_path)

    def age(data):
        del data["bfloat16"]
        assert data["modules"]["0"].pop("smoothed") is False

    edit(tmp_path, age)
    got = load(tmp_path, model=nn.Sequential(nn.Linear(4, 3)))
    assert torch.equal(got(values), model(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(bfloat16=["lstm"]), r"'bfloat16' is \['lstm'\], expected dict"),
        (lambda data: data["bfloat16"].update(lstn="LSTM"), r"names 'lstn'.* Did you mean 'lstm'"),
        (lambda data: data["bfloat16"].update(low="LSTM"), r"names 'low' as 'LSTM', but Zoo has a Linear there"),
        (lambda data: data["bfloat16"].update(static="Linear"), r"names 'static' as 'Linear'.* has a Int8Linear there"),
        (
            lambda data: data["bfloat16"].pop("low"),
            r"'low.weight' has dtype torch.float32, the saved one torch.bfloat16",
        ),
        (lambda data: data["modules"]["smooth"].update(smoothed=False), r"it lacks 'smooth.input_factor', which was"),
        (lambda data: data["modules"]["conv"].update(smooth=True), r"Module 'conv' .* \['smooth'\] differ"),
        (lambda data: data["modules"]["static"].update(kind="dynamic_linear"), r"it lacks 'static.input_scale', which"),
        (lambda data: data["modules"]["up1"].update(kind="conv_transpose2d"), r"has a ConvTranspose1d there"),
        (lambda data: data["modules"]["static"].update(bias=False), r"'static' .* bias=False, but .* bias=True there"),
    ],
)
def test_a_damaged_description_is_refused(directory, change, message):
    edit(directory, change)
    with pytest.raises(ArtifactError, match=message):
        load(directory, model=Zoo())
