"""What combinations of techniques cost: which arms there are, what becomes of a model, and what tables say."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks.orchestration import speed
from benchmarks.orchestration.arms import Arm, Shot, arms
from benchmarks.orchestration.picture import draw
from benchmarks.orchestration.records import Outcome, bytes_of, zeros_of
from benchmarks.orchestration.rows import rows_of
from benchmarks.orchestration.study import Study, phase_of
from benchmarks.orchestration.tables import accuracies, speeds
from benchmarks.tasks.records import Records
from benchmarks.tasks.task import Phase
from inc_torch import CompressionReport

PRUNABLE = 16 * 64 / (16 * 64 + 64 * 2)  # of the weights of `task`; its head stays


@pytest.fixture
def study(task, tmp_path):
    return Study(task, 3, tmp_path)


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path / "results.jsonl", Outcome)


def outcome(study, text, right, sparsity=0.0, zeros=0.0):
    return Outcome(study.run_of(Arm(text, sparsity)), np.array(right, bool), zeros, 1.0, 4_000_000, 1_500_000)


# ------------------------------------------------------------------ arms


def test_what_an_arm_goes_on_from_is_an_arm_before_it():
    seen = []
    for arm in arms():
        assert arm not in seen
        assert arm.before is None or arm.before in seen
        seen.append(arm)


def test_every_shot_that_prunes_knows_how_much():
    for arm in arms():
        assert ("prune" in arm.text) == (arm.sparsity > 0)


@pytest.mark.parametrize(
    ("text", "phases", "is_int8"),
    [
        ("dense", 1, False),
        ("dense > ptq", 1, True),
        ("kd > prune > ptq", 2, True),
        ("kd+prune+qat x2", 2, True),
        ("prune > kd+lock", 2, False),
        ("kd+prune x2 > kd+lock+qat x2", 4, True),
    ],
)
def test_calibration_is_no_training(text, phases, is_int8):
    arm = Arm(text)
    assert (arm.phases, arm.is_int8) == (phases, is_int8)


def test_a_technique_that_is_unknown_is_an_error():
    with pytest.raises(ValueError, match=r"^'kd\+prun' has \['prun'\]: expected some of"):
        Shot.of("kd+prun")


def test_a_shot_is_made_of_its_techniques():
    configs = Shot.of("qat+kd+lock").configs(24, 0.8)
    assert [type(config).__name__ for config in configs] == [
        "DistillationConfig",
        "WeightPruningConfig",
        "QuantizationAwareTrainingConfig",
    ]
    assert configs[1].pruning_type == "pattern_lock"
    (pruning,) = Shot.of("prune x2").configs(240, 0.9)
    assert (pruning.target_sparsity, pruning.end_step, pruning.end_step - pruning.start_step) == (0.9, 120, 100)


def test_what_does_not_prune_trains_at_half_the_rate():
    assert phase_of(Phase(24, 1e-2), Shot.of("kd+prune x2")) == Phase(48, 1e-2)
    assert phase_of(Phase(24, 1e-2), Shot.of("kd+lock+qat")) == Phase(24, 5e-3)


# ------------------------------------------------------------------ trainings


def test_zeros_stay_through_every_shot(study, records, trained):
    for text in ("dense", "kd+prune", "kd+prune > kd+lock+qat", "kd+prune > ptq"):
        study.perform(Arm(text, 0.8 * ("prune" in text)), records)
    of = {run.arm: record for run, record in records._found.items()}
    assert of["dense"].zeros == 0
    assert of["kd+prune"].zeros == pytest.approx(0.8 * PRUNABLE, abs=4 / 1024)
    for text in ("kd+prune > kd+lock+qat", "kd+prune > ptq"):
        assert of["kd+prune"].zeros <= of[text].zeros < of["kd+prune"].zeros + 0.05
        assert of[text].size < of["dense"].size
    assert all(record.accuracy > 75 for record in of.values())
    # The baseline, the dense teacher, its answers for the first shot, the first shot, answers, the second, calibration.
    assert trained == [3, 1003, 1003, 1003, 2003, 2003, 3]


def test_one_order_of_techniques_is_as_good_as_another(study):
    first, second = (study.model(Arm(text, 0.8)) for text in ("kd+prune+qat", "qat+prune+kd"))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_float_where_int8_was_to_come_out_is_an_error(study, records, monkeypatch):
    monkeypatch.setattr(Study, "model", lambda self, arm: self.task.build(0))
    with pytest.raises(RuntimeError, match=r"'dense > ptq'.*: int8 was to come out"):
        study.perform(Arm("dense > ptq"), records)


def test_zeros_that_are_lost_are_an_error(study, records, monkeypatch):
    records.add(outcome(study, "prune", [1], 0.8, zeros=0.5))
    monkeypatch.setattr(Study, "model", lambda self, arm: self.task.build(0))
    with pytest.raises(RuntimeError, match=r"0\.0000 zeros are fewer than before"):
        study.perform(Arm("prune > lock", 0.8), records)


def test_embeddings_are_left_out_of_the_share_of_zeros():
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.Linear(4, 12))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[1].weight)
    nn.init.ones_(model[2].weight)
    assert zeros_of(CompressionReport.measure(model)) == 0.25


def test_zeros_take_no_room_in_a_compressed_file():
    full, empty = nn.Linear(64, 64), nn.Linear(64, 64)
    nn.init.zeros_(empty.weight)
    (size, packed), (size_of_empty, packed_empty) = bytes_of(full), bytes_of(empty)
    assert size == size_of_empty > 4 * 64 * 64
    assert packed > 0.8 * size
    assert packed_empty < 0.1 * size


# ------------------------------------------------------------------ tables


def test_an_arm_is_compared_with_a_dense_model_that_was_trained_as_long(study):
    outcomes = [
        outcome(study, "dense", [1, 1, 1, 0]),
        outcome(study, "dense > dense", [1, 1, 1, 1]),
        outcome(study, "kd", [1, 1, 1, 1]),
        outcome(study, "prune > lock", [1, 1, 0, 0], 0.8),
    ]
    rows = {row.arm.text: row for row in rows_of(outcomes, arms())[study.task.name]}
    assert rows["kd"].loss.mean == 25
    assert rows["kd"].relative == pytest.approx(1 / 3)
    assert rows["prune > lock"].loss.mean == -50
    assert rows["prune > lock"].relative == -0.5
    assert rows["prune > lock"].beside_teacher == pytest.approx(-1 / 3)
    assert math.isnan(rows["kd"].deviation)
    assert rows["prune > lock"].megabytes == (4, 1.5)


def test_differences_are_paired_by_seed_and_rows_spread_alike(task, tmp_path):
    def of(seed, text, count):
        return outcome(Study(task, seed, tmp_path), text, [1] * count + [0] * (100 - count))

    outcomes = [of(0, "dense", 90), of(1, "dense", 94), of(0, "kd", 89), of(1, "kd", 95), of(7, "kd", 50)]
    _, row = rows_of(outcomes, arms())[task.name]
    assert row.loss.seeds == (-1, 1)
    assert row.accuracies == [89, 95, 50]
    assert row.error == pytest.approx(math.hypot(math.sqrt(2) / math.sqrt(2), row.loss.test_error))


def test_what_has_no_dense_model_beside_it_is_left_out(study):
    assert rows_of([outcome(study, "kd", [1])], arms()) == {study.task.name: []}


def test_tables_fit_a_hundred_columns_and_a_page(task, tmp_path):
    outcomes = [
        outcome(Study(task, seed, tmp_path), arm.text, np.arange(100) < 80 + seed, arm.sparsity, arm.sparsity)
        for seed in range(3)
        for arm in arms()
    ]
    rows = rows_of(outcomes, arms())
    sheet = accuracies(task.name, rows[task.name])
    console = Console(width=100, file=io.StringIO())
    console.print(sheet.as_rich())
    text = console.file.getvalue()
    assert "…" not in text
    assert text.count("81.00") == len(arms())
    lines = sheet.as_markdown().splitlines()
    assert len(lines) == 2 + 3 + len(arms())
    assert lines[2] == "| **not pruned** |" + "  |" * 9
    assert lines[5].startswith("| kd | 1 | 81.00 | 1.00 | +0.00 ±0.00 | +0.0 | +0.0 | 0% |")
    assert lines[3] == "| dense | 1 | 81.00 | 1.00 | - | - | +0.0 | 0% | 4.0 | 1.5 |"
    draw(rows, tmp_path / "picture.svg")
    picture = (tmp_path / "picture.svg").read_text()
    assert picture.count('<g id="axes_') == 1


def test_times_stand_beside_those_of_float_and_of_other_tasks(study, tmp_path):
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"tasks": {"other": {}}}))
    speed.remeasured(study, file, rounds=1)
    known = json.loads(file.read_text())
    assert list(known["tasks"]) == ["other", study.task.name]
    times = {rows: {name: 4 / place for place, name in enumerate(speed.KINDS, 1)} for rows in ("1", "8")}
    assert {rows: times.keys() for rows, times in known["tasks"][study.task.name].items()} == {
        rows: own.keys() for rows, own in times.items()
    }
    lines = speeds("Xeon", {"net": times}).as_markdown().splitlines()
    assert lines[3:5] == [
        "| float32 | 4 | 4 | 1.00 | 1.00 |",
        "| float32, 90 % zeros | 2 | 2 | 2.00 | 2.00 |",
    ]
