"""The accuracy of pruned models: which trainings are done, what is kept of them, and what follows."""

from __future__ import annotations

import gzip
import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks.pruning_accuracy.case import Case
from benchmarks.pruning_accuracy.records import DENSE, Pruned, Run
from benchmarks.pruning_accuracy.runs import CASES, perform, runs_of
from benchmarks.pruning_accuracy.verdict import comparison, differences, show
from benchmarks.tasks import clothes
from benchmarks.tasks.records import Records
from inc_torch import CompressionReport
from inc_torch.core.report import Finding


def record(right, criterion="snip", seed=0, pattern="4x1", zeros=0.0):
    return Pruned(Run("net, data", "1x1-1x1", seed, criterion, pattern, 0.9), np.array(right, bool), zeros, 1.0)


def rows_of(*records):
    cells = {}
    for each in records:
        cells.setdefault((each.run.task, each.run.pattern, each.run.sparsity), {}).setdefault(
            each.run.criterion, []
        ).append(each)
    return cells


# ------------------------------------------------------------------ trainings


def test_every_training_of_a_seed_is_done_once_from_one_baseline(task, trained, tmp_path):
    runs = runs_of(task, 3)
    assert len(runs) == len(set(runs)) == 2 + len(CASES) * 4
    records = Records(tmp_path / "results.jsonl", Pruned)
    for run in runs:
        perform(task, run, tmp_path, records)
    assert trained == [3] + [1003] * (len(runs) - 1)
    again = Records(tmp_path / "results.jsonl", Pruned)
    assert [again[run].accuracy for run in runs] == [records[run].accuracy for run in runs]
    assert again[runs[1]].accuracy > 80
    assert {again[run].zeros for run in runs if run.pattern == "2:4" and run.criterion == "magnitude"} == {0.5}


def test_a_run_that_was_stopped_goes_on_after_its_last_whole_line(task, tmp_path):
    file = tmp_path / "results.jsonl"
    first, second = runs_of(task, 0)[:2]
    records = Records(file, Pruned)
    for run in (first, second):
        records.add(Pruned(run, np.array([True, False]), 0.0, 1.0))
    file.write_text(file.read_text()[:-5])
    records = Records(file, Pruned)
    assert first in records
    assert second not in records
    records.add(Pruned(second, np.array([True, True]), 0.0, 1.0))
    assert [Records(file, Pruned)[run].accuracy for run in (first, second)] == [50, 100]


def test_other_steps_are_other_runs(task):
    other = replace(task, second=replace(task.second, steps=25))
    assert not set(runs_of(task, 0)) & set(runs_of(other, 0))


@pytest.mark.parametrize("steps", [24, 48, 120, 312])
def test_pruning_ends_in_the_middle_with_its_eleventh_update(steps):
    config = Case("4x1", 0.8).config("magnitude", steps)
    assert config.end_step == steps // 2
    assert (config.end_step - config.start_step) == 10 * config.pruning_frequency


def pruned(zeros, pruned_units):
    layer = nn.Linear(10, 10)
    nn.init.ones_(layer.weight).data.view(-1)[:zeros] = 0
    finding = Finding("0", pattern="1x1", sparsity=0.5, units=100, pruned_units=pruned_units)
    return CompressionReport.measure(nn.Sequential(layer), [finding])


def test_a_sparsity_that_is_not_what_was_asked_for_is_an_error():
    Case("1x1", 0.5).check(pruned(50, 50))
    Case("1x1", 0.5).check(pruned(60, 50))  # weights that came back and stayed zero
    Case("channelx1", 0.5).check(pruned(20, 50))  # narrow units went
    for report in (pruned(40, 50), pruned(60, 60)):
        with pytest.raises(RuntimeError, match=r"^1x1: [56]0 of 100 units and 0\.[46]000 of the weights"):
            Case("1x1", 0.5).check(report)


# ------------------------------------------------------------------ images


def write_part(folder, part, images):
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in images.shape)
    clothes.file_of(folder, part, "images").write_bytes(gzip.compress(header + images.tobytes()))
    header = bytes([0, 0, 8, 1]) + len(images).to_bytes(4, "big")
    clothes.file_of(folder, part, "labels").write_bytes(gzip.compress(header + bytes(range(len(images)))))


def test_images_are_read_from_the_folder_that_the_variable_names(tmp_path, monkeypatch):
    monkeypatch.setenv(clothes.VARIABLE, str(tmp_path))
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    for part in ("train", "t10k"):
        write_part(tmp_path, part, images)
    found, labels = clothes.read(clothes.find_images(), "train")
    assert found.shape == (2, 1, 28, 28)
    assert labels.tolist() == [0, 1]
    assert torch.equal(
        (found * clothes.DEVIATION + clothes.MEAN).mul(255).round().byte(), torch.tensor(images[:, None])
    )


def test_images_that_are_missing_are_an_error_that_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv(clothes.VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"not in FASHION_MNIST_DIR={tmp_path}. Run: make fashion"):
        clothes.find_images()


def test_the_cnn_has_the_size_that_is_told():
    model = clothes.build(0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 98_554
    assert model(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


# ------------------------------------------------------------------ what follows


def test_the_error_of_a_difference_joins_seeds_and_test_set():
    right = [[1, 1, 1, 0], [1, 1, 0, 0]]
    wrong = [[1, 0, 1, 0], [1, 1, 0, 0]]
    records = [record(each, "snip_momentum", seed) for seed, each in enumerate(right)]
    records += [record(each, "magnitude", seed) for seed, each in enumerate(wrong)]
    (found,) = differences(rows_of(*records))
    assert found.seeds == (25, 0)
    assert found.mean == 12.5
    assert found.test_error == pytest.approx(12.5)  # 50 points in one of four items: deviation 25, over the root of 4
    assert found.error(spread=3.0) == pytest.approx(math.hypot(3 / math.sqrt(2), 12.5))


def test_seeds_that_only_one_has_are_left_out():
    records = [record([1, 1], "snip_momentum", seed) for seed in (0, 1)] + [record([0, 1], "magnitude", 1)]
    (found,) = differences(rows_of(*records))
    assert found.seeds == (50,)


def test_words_say_where_which_is_ahead():
    shares = {"4x1": (900, 500), "2:4": (500, 900), "1x1": (701, 700)}
    records = [
        record([1] * count + [0] * (1000 - count), criterion, seed, pattern)
        for pattern, counts in shares.items()
        for criterion, count in zip(("snip_momentum", "magnitude"), counts, strict=True)
        for seed in (0, 1)
    ]
    _, text = comparison(differences(rows_of(*records)))
    ahead, behind, even = text.splitlines()
    assert ahead.startswith(
        "snip_momentum beats magnitude by more than twice the standard error: net 4x1 90% (+40.00 ±"
    )
    assert behind.startswith("magnitude beats snip_momentum by more than that: net 2:4 90% (-40.00 ±")
    assert even == "Within the noise: net 1x1 90% (+0.10 ± 0.10)."


def test_what_is_shown_fits_a_hundred_columns(task):
    records = [
        Pruned(run, np.arange(100) < 90 + seed, run.sparsity + 0.1 * bool(run.pattern), 1.0)
        for seed in range(3)
        for run in runs_of(task, seed)
    ]
    console = Console(width=100, file=io.StringIO())
    show(records, {task.name: task.guess}, console)
    text = console.file.getvalue()
    assert "…" not in text
    assert text.count("91.00") == 5 * 5 + 2
    assert text.count("90.0..92.0") == 5 * 5
    assert text.count("100% zeros") == 2 * 4
    assert f"{DENSE}" in text
