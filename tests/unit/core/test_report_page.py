"""The report as a page: its numbers, and what a browser makes of it."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import torch
from torch import nn

from inc_torch import CompressionReport, WeightPruningConfig, prepare_compression
from inc_torch.core.errors import ArtifactError
from inc_torch.core.report import ModuleReport

ROWS = (
    ModuleReport("body.<first>", "Linear", (8, 4), 32, 24, "4x1", 0.5, 0, 8, 6),
    ModuleReport("body.second", "Linear", (8, 4), 8, 8, "4x1", 0.5, 0, 8, 2, "w8a8-static", ("a note & more",)),
    ModuleReport("head", "Linear", (2, 8), 32, 0),
)
REPORT = CompressionReport(ROWS, 18, 2_500_000, ((2, 0.25), (4, 0.4), (6, 0.5)))


def parsed(page: str) -> ElementTree.Element:
    """The page as XML, which it is but for its first line and its empty elements."""
    return ElementTree.fromstring(re.sub(r"<meta([^>]*)>", r"<meta\1/>", page.partition("\n")[2]))


def test_bars_are_as_long_as_shares_of_zeros_and_marks_stand_where_it_was_asked():
    page = parsed(REPORT.html())
    bars = {
        row.find("th").text: (
            row.find("td/div[@class='bar']").get("style"),
            row.find("td/div[@class='asked']").get("style"),
            row.findall("td")[1].text,
            row.find("td").get("title"),
        )
        for row in page.find(".//table[@class='bars']")
    }
    assert bars == {
        "body.<first>": ("width:75.00%", "left:50.00%", "75.0%", "24 of 32 values, 6 of 8 units of 4x1; asked 0.5"),
        "body.second": ("width:25.00%", "left:50.00%", "25.0%", "8 of 32 values, 2 of 8 units of 4x1; asked 0.5"),
    }


def test_the_curve_goes_through_its_points():
    svg = parsed(REPORT.html()).find(".//svg")
    assert svg.get("aria-label") == "Sparsity from 0 to 50.0% over 6 steps"
    start, *steps = re.findall(r"[MHV][\d.,]+", svg.find("path").get("d"))
    assert start == "M40.0,180.0"
    points = [(float(step[1:]), float(height[1:])) for step, height in zip(steps[::2], steps[1::2], strict=True)]
    assert points == [
        pytest.approx((40 + 560 * step / 6, 40 + 140 * (1 - share)), abs=0.06)
        for step, share in REPORT.sparsity_over_steps
    ]


def test_every_module_and_every_note_is_in_the_table():
    page = parsed(REPORT.html())
    table = [[cell.text or "" for cell in row] for row in page.findall(".//tbody/tr")]
    assert [row[0] for row in table] == ["body.<first>", "body.second", "head"]
    assert table[1] == ["body.second", "8x4", "50% 4x1", "25.0%", "8", "w8a8-static"]
    assert "body.second: a note & more" in [item.text for item in page.findall(".//ul/li")]


def test_what_was_not_asked_for_has_no_place():
    page = CompressionReport((ModuleReport("head", "Linear", (2, 8), 32, 0),), 2, 64).html()
    assert "<svg" not in page
    assert 'class="bars"' not in page


def test_steps_are_kept_in_plain_values_and_older_reports_have_none():
    plain = json.loads(json.dumps(REPORT.to_dict()))
    assert CompressionReport.from_dict(plain) == REPORT
    del plain["sparsity_over_steps"]
    assert CompressionReport.from_dict(plain) == replace(REPORT, sparsity_over_steps=())
    with pytest.raises(ArtifactError, match="damaged"):
        CompressionReport.from_dict({**plain, "sparsity_over_steps": [[1, 0.5, 3]]})


def run_of(model: nn.Module, steps: range, state: dict | None = None):
    config = WeightPruningConfig(
        target_sparsity=0.75, pruning_type="magnitude", pattern="1x1", start_step=1, end_step=5, pruning_frequency=2,
        sparsity_decay_type="linear",
    )  # fmt: skip
    manager, optimizer = prepare_compression(model, config), torch.optim.SGD(model.parameters(), lr=0.01)
    if state is not None:
        manager.load_state_dict(state)
    manager.on_train_begin()
    for step in steps:
        manager.on_step_begin(step)
        model(torch.ones(2, 8)).sum().backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
    return manager


def test_a_run_notes_the_steps_at_which_its_sparsity_changed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    first = run_of(model, range(4))
    assert first.report().sparsity_over_steps == ((3, 0.375),)
    second = run_of(copy.deepcopy(model), range(4, 8), first.state_dict())
    second.on_train_end()
    assert second.report().sparsity_over_steps == ((3, 0.375), (5, 0.75))


def test_a_browser_shows_it(tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no chromium on this machine")
    path = tmp_path / "report.html"
    REPORT.save_html(path)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    size = ["--window-size=800,900", "--hide-scrollbars", f"--screenshot={tmp_path / 'page.png'}"]
    subprocess.run([*command, *size, path.as_uri()], check=True, capture_output=True, timeout=120)
    shown = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    assert shown.count('class="bar"') == 3  # two modules and the legend
    image = pytest.importorskip("PIL.Image").open(tmp_path / "page.png").convert("RGB")
    blue = [image.getpixel((x, y)) == (0x2A, 0x6F, 0xB0) for y in range(0, 900, 2) for x in range(0, 800, 2)]
    assert sum(blue) > 500  # bars are drawn, in their colour
