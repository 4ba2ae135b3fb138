"""Searches as studies of Optuna: where they are kept, what is found again, what is refused, and what Optuna sees."""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler

from inc_torch.core.errors import ArtifactError, ConfigError, StateError
from inc_torch.tuning import _storage, _study, _workers
from inc_torch.tuning._search import Limits
from inc_torch.tuning._space import Recipe, Space
from inc_torch.tuning._strategy import Goal
from inc_torch.tuning._study import Measured, TuningStudy
from tests.unit.tuning.searching import ACCURACY, MANY, SPACE, TIMED, listed, measured, opened, ran, score
from tests.unit.tuning.simulated import NEVER, linears

DEFAULT = SPACE.default
FIRST_FLOAT = Recipe(("fp32", "s:asym/kl", "s:asym/kl", "s:asym/kl"))
PLACES = ["memory", "runs", "own.journal"]


@pytest.fixture(params=PLACES)
def where(request, tmp_path):
    return None if request.param == "memory" else str(tmp_path / request.param)


@pytest.fixture(params=PLACES[1:])
def kept(request, tmp_path):
    return str(tmp_path / request.param)


@pytest.fixture(autouse=True)
def _verbosity():
    """Optuna says as much as before, whatever a test did."""
    before = optuna.logging.get_verbosity()
    yield
    assert optuna.logging.get_verbosity() == before
    optuna.logging.set_verbosity(before)


def attempt(
    study: TuningStudy, recipe: Recipe = DEFAULT, measure=measured, goal: Goal = NEVER, most: int = 1000
) -> bool:
    return study.attempt(recipe, measure, goal, most=most)


def underneath(study: TuningStudy) -> optuna.Study:
    return study._study


# ---------------------------------------------------------------------------- where


@pytest.mark.parametrize(
    ("where", "file"),
    [
        ("runs", "runs/tuning.db"),
        ("runs/v1.0", "runs/v1.0/tuning.db"),
        ("a/b/own.db", "a/b/own.db"),
        ("own.sqlite3", "own.sqlite3"),
        ("own.journal", "own.journal"),
        ("own.jsonl", "own.jsonl"),
        ("own.log", "own.log"),
        ("sqlite:///own.db", "own.db"),
        ("sqlite:///{tmp}/deep/own.db", "deep/own.db"),
        ("sqlite+pysqlite:///own.db", "own.db"),
        ("with blanks and ünïcödé 模型", "with blanks and ünïcödé 模型/tuning.db"),
        ("50% {of} it? #1&x=y.db", "50% {of} it? #1&x=y.db"),
        ("journal {0} ✓.journal", "journal {0} ✓.journal"),
    ],
)
def test_a_search_is_kept_in_this_file_and_found_again(tmp_path, monkeypatch, where, file):
    monkeypatch.chdir(tmp_path)
    where = where.replace("{tmp}", str(tmp_path))
    attempt(opened(where))
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.stem == Path(file).stem] == [file]
    assert listed(opened(where, must_exist=True)) == [("s:asym/kl " * 3 + "s:asym/kl", score(DEFAULT))]


def test_a_folder_is_a_folder_whatever_its_name(tmp_path):
    (tmp_path / "own.db").mkdir()
    attempt(opened(tmp_path / "own.db"))
    assert (tmp_path / "own.db" / "tuning.db").is_file()


def test_a_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    attempt(opened("~/runs"))
    assert (tmp_path / "runs" / "tuning.db").is_file()


@pytest.mark.parametrize("where", [None, "sqlite://", "sqlite:///:memory:"])
def test_memory_is_shared_with_nobody(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = opened(where)
    attempt(study)
    assert not study.is_kept
    assert listed(opened(where)) == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_says_so(kept):
    assert opened(kept).is_kept


def test_a_study_that_is_let_go_leaves_its_file(tmp_path):
    study = opened(tmp_path / "own.db")
    attempt(study)
    del study
    gc.collect()
    held = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
    assert [path for path in held if "own.db" in path] == []


# ---------------------------------------------------------------------------- which


def test_a_search_is_named_after_what_it_is_about_in_whatever_order():
    name = opened(None, config={"a": 2, "b": 1}, operations="ab12").name
    assert name == "Model basic e6220c3cb674"
    assert opened(None, operations="ab12", config={"b": 1, "a": 2}).name == name


@pytest.mark.parametrize(
    "change",
    [{"model": "Other"}, {"operations": "another space"}, {"seed": 1}, {"strategy": "tpe"}, {"config": {"a": 3}}],
)
def test_another_search_has_another_name(change):
    about = {"config": {"a": 2}, "operations": "a space"}
    assert opened(None, **{**about, **change}).name != opened(None, **about).name


def test_searches_in_one_file_do_not_see_each_other(kept):
    attempt(opened(kept))
    other = opened(kept, seed=1)
    assert listed(other) == []
    attempt(other, FIRST_FLOAT)
    assert [named for named, _ in listed(opened(kept))] == [" ".join(DEFAULT.labels)]


# ---------------------------------------------------------------------------- what is refused


def test_a_file_to_resume_from_has_to_be_there(tmp_path):
    message = (
        f"There is no tuning search to resume: '{tmp_path}/runs/tuning.db' does not exist. Check options.resume_from."
    )
    with pytest.raises(StateError, match=re.escape(message)):
        opened(tmp_path / "runs", must_exist=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["own.db", "own.journal"])
def test_a_file_to_resume_from_has_to_hold_a_search(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(
        StateError, match=r"There is no tuning search to resume in '.*': expected one that an earlier run"
    ):
        opened(tmp_path / name, must_exist=True)


def test_studies_of_other_programs_are_no_searches(tmp_path):
    optuna.create_study(storage=f"sqlite:///{tmp_path}/own.db", study_name="somebody's")
    with pytest.raises(StateError, match="There is no tuning search to resume in"):
        opened(tmp_path / "own.db", must_exist=True)
    assert listed(opened(tmp_path / "own.db")) == []  # they may share a file


def test_another_search_is_not_resumed_and_the_difference_is_named(kept):
    attempt(opened(kept, config={"a": 1}, weights="0" * 100))
    attempt(opened(kept, config={"a": 1}, weights="0" * 100, strategy="tpe", seed=3, model="Third"))
    with pytest.raises(StateError) as caught:
        opened(kept, config={"a": 2}, weights="1" * 100, must_exist=True)
    assert str(caught.value) == (
        f"None of the 2 tuning searches in {kept!r} is this one. The nearest differs in config ({{'a': 1}} there, "
        f"{{'a': 2}} here), weights ('{'0' * 59}... there, '{'1' * 59}... here). "
        "Leave options.resume_from out to start anew."
    )
    assert listed(opened(kept, config={"a": 1}, weights="0" * 100, must_exist=True))


def journal_of(path: Path) -> Path:
    ran(path, limits=Limits(3))
    return path


def database_of(path: Path) -> Path:
    study = ran(path, limits=Limits(3)).study
    del study
    gc.collect()
    return path


def without_its_middle(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], lines[3][:20] + lines[4], *lines[5:]]))


DAMAGED_JOURNALS = {
    "a line is cut short": without_its_middle,
    "another program's text": lambda path: path.write_text("Epoch 1: loss 0.3\nEpoch 2: loss 0.2\n"),
    "text without an end of line": lambda path: path.write_text("Epoch 1"),
    "another program's JSON": lambda path: path.write_text('{"loss": 0.3}\n'),
    "a list": lambda path: path.write_text("[1, 2]\n"),
    "no text": lambda path: path.write_bytes(bytes(range(256)) * 10),
    "an operation of the future": lambda path: path.write_text('{"op_code":99,"worker_id":"a"}\n'),
    "an operation without what it is on": lambda path: path.write_text('{"op_code":5,"worker_id":"a"}\n'),
}


@pytest.mark.parametrize("how", DAMAGED_JOURNALS)
@pytest.mark.parametrize("must_exist", [False, True])
def test_a_journal_that_is_damaged_or_no_journal_is_refused_and_left_as_it_is(tmp_path, how, must_exist):
    path = journal_of(tmp_path / "own.journal")
    DAMAGED_JOURNALS[how](path)
    data = path.read_bytes()
    with pytest.raises(
        ArtifactError, match=r"own.journal' is damaged, or another program's: expected a journal of Optuna"
    ):
        opened(path, must_exist=must_exist)
    assert path.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["own.journal"]  # no lock


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def overwritten(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\x07" * len(data[4096:])
    path.write_bytes(data)


def tables_of_another(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE customers (name TEXT)")
    connection.close()


DAMAGED_DATABASES = {
    "cut short": (cut_short, "expected an SQLite file"),
    "overwritten": (overwritten, "expected an SQLite file"),
    "text": (
        lambda path: path.write_text("not a database at all" * 100),
        "expected an SQLite file: file is not a database",
    ),
    "another program's": (tables_of_another, "expected an SQLite file of Optuna, found tables customers"),
}


@pytest.mark.parametrize("how", DAMAGED_DATABASES)
@pytest.mark.parametrize("must_exist", [False, True])
def test_a_database_that_is_damaged_or_another_programs_is_refused_and_left_as_it_is(tmp_path, how, must_exist):
    path = database_of(tmp_path / "own.db")
    damage, message = DAMAGED_DATABASES[how]
    damage(path)
    data = path.read_bytes()
    with pytest.raises(ArtifactError, match=f"own.db' is damaged, or another program's: {message}"):
        opened(path, must_exist=must_exist)
    assert path.read_bytes() == data


@pytest.mark.parametrize("left", [1, 10, 60])
def test_a_journal_whose_last_line_is_cut_short_goes_on(tmp_path, left):
    path = journal_of(tmp_path / "own.journal")
    before = listed(opened(path))
    *whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*whole, last, last[:left]]))
    assert listed(opened(path, must_exist=True)) == before
    assert ran(path).trials == ran(None).trials
    assert all(isinstance(json.loads(line), dict) for line in path.read_bytes().splitlines())


def test_a_journal_that_lost_the_end_of_its_last_trial_tries_it_again(tmp_path):
    path = journal_of(tmp_path / "own.journal")
    path.write_bytes(path.read_bytes()[:-1])  # of the line that says that the third is complete
    assert len([trial for trial in opened(path).trials() if trial.state == "complete"]) == 2
    assert ran(path).trials == ran(None).trials


@pytest.mark.parametrize("name", ["", "own.db", "own.journal"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(
        StateError, match=r"The tuning searches in '.*' cannot be opened: .*. Expected a folder or file"
    ):
        opened(tmp_path / "file" / "below" / name)


@pytest.mark.parametrize("name", ["own.db", "own.journal"])
@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others there")
def test_a_folder_that_is_read_only_is_refused(tmp_path, name):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("permissions do not bind this user")
    with pytest.raises(StateError, match="cannot be opened"):
        opened(folder / name)


@pytest.mark.parametrize("where", ["nonsense://host/db", "://", "postgres:// :x/y"])
@pytest.mark.parametrize(("must_exist", "option"), [(False, "workspace"), (True, "resume_from")])
def test_an_url_that_is_none_is_refused(where, must_exist, option):
    with pytest.raises(ConfigError, match=rf"options\.{option}='.*': expected a path, or a URL such as postgresql://"):
        opened(where, must_exist=must_exist)


def test_a_server_that_does_not_answer_is_named_without_its_password():
    pytest.importorskip("psycopg")
    with pytest.raises(StateError) as caught:
        opened("postgresql://me:secret@127.0.0.1:1/tuning")
    message = str(caught.value)
    assert message.startswith("The tuning searches in 'postgresql://me:***@127.0.0.1:1/tuning' cannot be opened: ")
    assert "refused" in message
    assert "secret" not in message
    assert "\n" not in message


def test_tables_of_another_release_of_optuna_are_named(tmp_path):
    path = database_of(tmp_path / "own.db")
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    connection.commit()
    connection.close()
    with pytest.raises(StateError, match="no longer compatible with the table schema"):
        opened(path)


# ---------------------------------------------------------------------------- what is kept


NUMBERS = [0.5, math.nan, math.inf, -math.inf, -3.0, 0]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("directions", [ACCURACY, TIMED])
def test_a_trial_is_read_as_it_was_measured(where, number, directions):
    study = opened(where, directions=directions)
    assert attempt(study, FIRST_FLOAT, lambda recipe: Measured(number, {"performance": number, "modelsize": 2.0}, 1.5))
    (trial,) = study.trials()
    assert (trial.number, trial.recipe, trial.seconds, trial.state) == (1, FIRST_FLOAT, 1.5, "complete")
    assert trial.score == pytest.approx(number, abs=0, nan_ok=True)
    assert trial.objectives == pytest.approx({"performance": number, "modelsize": 2.0}, abs=0, nan_ok=True)
    assert trial.is_met is (number == math.inf)


@pytest.mark.parametrize(
    ("goal", "number", "is_met"),
    [
        (Goal(1.0, 0.9), 0.9, True),
        (Goal(1.0, 0.9), 0.89, False),
        (Goal(1.0, 0.9), math.nan, False),
        (Goal(1.0, 0.9), math.inf, True),
        (Goal(1.0, 1.1, higher_is_better=False), 1.1, True),
        (Goal(1.0, 1.1, higher_is_better=False), 1.2, False),
        (Goal(1.0, -math.inf), -5.0, True),
    ],
)
def test_whether_the_goal_is_met_is_kept(where, goal, number, is_met):
    study = opened(where)
    attempt(study, measure=lambda recipe: Measured(number, {}, 0.0), goal=goal)
    attempt(study, FIRST_FLOAT, lambda recipe: Measured(number, {}, 0.0, is_cut=True), goal)
    assert [(trial.is_met, trial.state) for trial in study.trials()] == [(is_met, "complete"), (False, "cut")]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("baseline", [0.8, math.nan, math.inf])
@pytest.mark.parametrize("target", [0.7, math.nan, -math.inf])
def test_optuna_is_told_numbers_and_keeps_plain_json(number, baseline, target):
    study = opened(None, directions=TIMED)
    assert attempt(
        study, measure=lambda recipe: Measured(number, {"performance": number}, 0.1), goal=Goal(baseline, target)
    )
    (trial,) = underneath(study).trials
    assert trial.state.name == "COMPLETE"
    assert all(map(math.isfinite, trial.values))
    json.dumps([trial.user_attrs, underneath(study).user_attrs], allow_nan=False)
    assert math.isfinite(trial.user_attrs["shortfall"])


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_what_is_no_number_is_the_worst_to_optuna(higher_is_better):
    directions = {"accuracy": "maximize" if higher_is_better else "minimize"}
    study, numbers = opened(None, directions=directions), iter([0.1, math.nan, 5.0])
    recipes = [DEFAULT, FIRST_FLOAT, Recipe(("fp32",) * 4)]
    for recipe in recipes:
        attempt(study, recipe, lambda recipe: Measured(next(numbers), {}, 0.0), Goal(1.0, 0.9, higher_is_better))
    first, worst, last = (trial.value for trial in underneath(study).trials)
    assert (worst < min(first, last)) if higher_is_better else (worst > max(first, last))


def test_the_shortfall_says_how_far_the_goal_is():
    study, numbers = opened(None), iter([0.75, 0.95, math.nan])
    for recipe in [DEFAULT, FIRST_FLOAT, Recipe(("fp32",) * 4)]:
        attempt(study, recipe, lambda recipe: Measured(next(numbers), {}, 0.0), Goal(1.0, 0.9))
    told = [trial.user_attrs["shortfall"] for trial in underneath(study).trials]
    assert told == [pytest.approx(0.15), pytest.approx(-0.05), 1000.0]


def test_what_a_study_is_about_and_remembers_is_kept(kept):
    first = opened(kept, config={"a": [1, 2]})
    first.remember("baseline", {"score": 0.5})
    second = opened(kept, config={"a": [1, 2]})
    assert second.remembered("baseline") == {"score": 0.5}
    assert second.remembered("nothing") is None
    assert underneath(second).user_attrs["inc_torch"] == {
        "model": "Model",
        "strategy": "basic",
        "seed": 0,
        "config": {"a": [1, 2]},
    }
    json.dumps(underneath(second).user_attrs, allow_nan=False)


def test_samples_and_alphas_are_kept_as_they_are(where):
    space = Space(linears("s:asym/kl fp32", "fc1", ""), samples=(16, 32), alphas=(0.5, 0.75))
    study = opened(where, space=space)
    recipe = Recipe(("fp32", "s:asym/kl"), 32, 0.75)
    assert attempt(study, recipe)
    assert [trial.recipe for trial in study.trials()] == [recipe]
    assert underneath(study).trials[0].params == {
        "fc1": "fp32",
        "": "s:asym/kl",
        "calibration samples": 32,
        "smoothing alpha": 0.75,
    }


def test_what_has_no_choice_is_no_parameter(where):
    space = Space((*linears("s:asym/kl", "fc1"), *linears("s:asym/kl fp32", "fc2")), samples=(16,))
    study = opened(where, space=space)
    attempt(study, space.default)
    assert [trial.recipe for trial in study.trials()] == [Recipe(("s:asym/kl", "s:asym/kl"), 16)]
    assert underneath(study).trials[0].params == {"fc2": "s:asym/kl"}


def test_a_space_without_a_choice_has_one_trial(where):
    space = Space(linears("s:asym/kl", "fc1"))
    study = opened(where, space=space)
    assert [attempt(study, space.default), attempt(study, space.default)] == [True, False]
    assert listed(study) == [("s:asym/kl", score(space.default))]


def test_a_trial_of_another_program_is_left_out(where):
    study = opened(where)
    attempt(study)
    strange = optuna.trial.create_trial(
        value=0.5,
        params={"fc1": "fp32", "fc2": "fp32", "fc3": "fp32", "fc4": "fp32"},
        distributions=underneath(study).trials[0].distributions,
    )
    underneath(study).add_trial(strange)
    assert len(study.trials()) == 1
    assert attempt(study, Recipe(("fp32",) * 4))


# ---------------------------------------------------------------------------- one more trial


def test_a_recipe_is_tried_once(where):
    study, calls = opened(where), []

    def measure(recipe):
        calls.append(recipe)
        return measured(recipe)

    assert [attempt(study, recipe, measure) for recipe in [DEFAULT, DEFAULT, FIRST_FLOAT, DEFAULT]] == [
        True,
        False,
        True,
        False,
    ]
    assert calls == [DEFAULT, FIRST_FLOAT]
    assert [trial.recipe for trial in study.trials()] == calls


def test_no_more_trials_are_run_than_allowed(where):
    study = opened(where)
    assert [attempt(study, recipe, most=1) for recipe in [DEFAULT, FIRST_FLOAT]] == [True, False]
    assert [trial.recipe for trial in study.trials()] == [DEFAULT]
    assert attempt(study, FIRST_FLOAT, most=2)


def test_a_trial_runs_as_such(where):
    study, states = opened(where), []
    attempt(study)

    def measure(recipe):
        states.extend((trial.number, trial.recipe, trial.state) for trial in study.trials())
        return measured(recipe)

    attempt(study, FIRST_FLOAT, measure)
    assert states == [(1, DEFAULT, "complete"), (2, FIRST_FLOAT, "running")]


def test_what_waits_is_tried_first(kept):
    study = opened(kept)
    attempt(study)
    underneath(study).enqueue_trial(study.parameters_of(FIRST_FLOAT))
    assert attempt(study, Recipe(("fp32",) * 4))
    assert [trial.recipe for trial in study.trials()] == [DEFAULT, FIRST_FLOAT]


def test_what_waits_and_leaves_something_open_is_filled_in(where):
    study = opened(where)
    underneath(study).enqueue_trial({"fc1": "fp32"})  # as the dashboard may
    assert attempt(study)
    ((recipe,),) = [[trial.recipe for trial in study.trials()]]
    assert recipe.labels[0] == "fp32"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("yours"),
        RuntimeError("yours"),
        optuna.TrialPruned("yours"),
        optuna.exceptions.StorageInternalError("yours"),
        KeyboardInterrupt(),
        SystemExit(3),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_measurement_rises_and_its_recipe_is_free_again(where, error):
    study = opened(where)
    attempt(study)

    def fails(recipe):
        raise error

    with pytest.raises(type(error)) as caught:
        attempt(study, FIRST_FLOAT, fails)
    assert caught.value is error
    assert [trial.recipe for trial in study.trials()] == [DEFAULT]
    assert attempt(study, FIRST_FLOAT)
    assert [trial.recipe for trial in study.trials()] == [DEFAULT, FIRST_FLOAT]


def test_nothing_is_tried_in_place_of_what_another_worker_was_faster_to_take(kept, monkeypatch):
    study, faster, calls = opened(kept), opened(kept), []
    enqueue = study._enqueue

    def overtaken(parameters):
        enqueue(parameters)
        assert attempt(faster, DEFAULT)

    monkeypatch.setattr(study, "_enqueue", overtaken)
    assert not attempt(study, DEFAULT, lambda recipe: calls.append(recipe) or measured(recipe))
    assert calls == []
    assert [trial.recipe for trial in study.trials()] == [DEFAULT]


def test_a_trial_that_is_just_being_taken_is_not_given_away(kept):
    """Neither by the one who put it down and is not at work, nor by others."""
    owner, taker, other = opened(kept), opened(kept), opened(kept)
    owner._enqueue(owner.parameters_of(DEFAULT))
    begin = taker.begin

    def begun(trial, most):
        owner.release_dead()
        other.release_dead()
        return begin(trial, most)

    taker.begin = begun
    assert attempt(taker, DEFAULT)
    assert [(trial.recipe, trial.state) for trial in other.trials()] == [(DEFAULT, "complete")]
    assert [trial.state.name for trial in underneath(other).get_trials()] == ["COMPLETE"]


def test_a_trial_left_while_it_was_taken_is_tried_before_others(kept, monkeypatch):
    monkeypatch.setattr(_study, "_TAKING_SECONDS", 0.2)
    owner, other = opened(kept), opened(kept)
    owner._enqueue(owner.parameters_of(DEFAULT))
    underneath(owner).ask()  # by a process that is killed then
    began = time.monotonic()
    assert attempt(other, FIRST_FLOAT)
    assert time.monotonic() - began >= 0.2
    assert [trial.recipe for trial in other.trials()] == [DEFAULT]


STEPS = ["create_new_trial", "get_all_trials", "set_trial_state_values", "set_trial_user_attr", "get_trial"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("call", [1, 2])
def test_an_interruption_between_steps_leaves_no_trial_behind(kept, monkeypatch, step, call):
    study, calls = opened(kept), itertools.count(1)
    storage = underneath(study)._storage
    real = getattr(storage, step)

    def interrupted(*arguments, **keywords):
        result = real(*arguments, **keywords)
        if next(calls) == call:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(storage, step, interrupted)
    try:
        attempt(study)
    except KeyboardInterrupt:
        assert [trial for trial in study.trials() if trial.state == "running"] == []
    assert ran(kept).trials == ran(None).trials  # in the same process, which lives


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(("fp23", "fp32")), r"'fc1' \(Linear\) cannot be computed in 'fp23'.* Did you mean 'fp32'\?"),
        (Recipe(("fp32", "fp32"), 64), "A recipe with calibration samples 64: expected one of 16, 32."),
        (Recipe(("fp32", "fp32"), 16, 0.5), "A recipe with smoothing alpha 0.5: expected one of none."),
    ],
)
def test_a_recipe_outside_the_space_is_refused(recipe, message):
    study = opened(None, space=Space(linears("s:asym/kl fp32", "fc1", "fc2"), samples=(16, 32)))
    with pytest.raises(ConfigError, match=message):
        study.settled(recipe)


def test_what_a_recipe_leaves_open_is_the_default():
    space = Space(linears("s:asym/kl fp32", "fc1"), samples=(16, 32), alphas=(0.5,))
    assert opened(None, space=space).settled(Recipe(("fp32",))) == Recipe(("fp32",), 16, 0.5)
    assert opened(None, space=space).settled(Recipe(("fp32",), 32, 0.5)) == Recipe(("fp32",), 32, 0.5)


# ---------------------------------------------------------------------------- samplers


def first(study: TuningStudy, sampler, count: int) -> list[Recipe]:
    return list(itertools.islice(study.proposals(sampler), count))


def test_proposals_are_no_trials(where):
    study = opened(where)
    attempt(study)
    before = len(underneath(study).trials)
    assert len(first(study, RandomSampler(seed=1), 5)) == 5
    assert len(underneath(study).trials) == before


def test_equal_seeds_propose_the_same_whatever_has_failed(where):
    study = opened(where)
    for recipe in first(study, RandomSampler(seed=0), 20):
        attempt(study, recipe)
    before = first(study, TPESampler(seed=1), 5)

    def fails(recipe):
        raise ValueError

    with pytest.raises(ValueError):
        attempt(study, next(recipe for recipe in before if recipe not in [one.recipe for one in study.trials()]), fails)
    assert first(study, TPESampler(seed=1), 5) == before
    assert first(study, TPESampler(seed=2), 5) != before


def test_proposals_follow_the_scores():
    study = opened(None)
    for recipe in first(study, RandomSampler(seed=0), 40):
        attempt(study, recipe, lambda recipe: Measured(recipe.labels.count("fp32"), {}, 0.0))
    drawn = [recipe.labels.count("fp32") for recipe in first(study, TPESampler(seed=1), 20)]
    assert sum(drawn) / len(drawn) > 1.5 * 4 / 3  # the mean by chance is 4 / 3


def test_the_sampler_that_proposed_hears_what_came_of_it():
    heard = []

    class Listening(RandomSampler):
        def after_trial(self, study, trial, state, values):
            heard.append((trial.params["fc1"], trial.user_attrs["shortfall"], state.name, values))

    study = opened(None)
    study.attempt(FIRST_FLOAT, lambda recipe: Measured(0.5, {}, 0.0), Goal(1.0, 0.75), most=9, sampler=Listening())
    assert heard == [("fp32", 0.25, "COMPLETE", [0.5])]


# ---------------------------------------------------------------------------- Optuna's own tools


def test_plots_of_optuna_work(where):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna import visualization

    study = underneath(ran(where, "random", Limits(12)).study)
    import warnings

    with warnings.catch_warnings():  # Optuna calls its drawing by matplotlib experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        history = visualization.matplotlib.plot_optimization_history(study)
        importances = visualization.matplotlib.plot_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    assert len(history.collections[0].get_offsets()) == 12
    assert {label.get_text() for label in importances.get_yticklabels()} == {"fc1", "fc2", "fc3", "fc4"}
    pyplot.close("all")


def test_the_front_of_a_timed_search_is_drawn_with_its_names(where):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import warnings

    from matplotlib import pyplot
    from optuna import visualization

    study = underneath(ran(where, "random", Limits(12, 60.0), directions=TIMED).study)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        front = visualization.matplotlib.plot_pareto_front(study)
    assert (front.get_xlabel(), front.get_ylabel()) == ("accuracy", "performance")
    pyplot.close("all")


def test_another_program_reads_the_file_with_optuna_alone(kept):
    ran(kept, limits=Limits(4))
    if kept.endswith("journal"):
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(kept))
    else:
        file = Path(kept) / "tuning.db" if Path(kept).is_dir() else kept
        storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    assert study.direction.name == "MAXIMIZE"
    assert study.metric_names == ["accuracy"]
    assert [trial.value for trial in study.trials] == [score for _, score in listed(opened(kept))]
    assert all(isinstance(value, str) for trial in study.trials for value in trial.params.values())


@pytest.mark.parametrize("verbosity", [optuna.logging.DEBUG, optuna.logging.INFO, optuna.logging.CRITICAL])
def test_optuna_says_as_much_afterwards_as_before_and_nothing_meanwhile(where, verbosity, capfd, monkeypatch):
    before = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(verbosity)
        ran(where, "tpe", Limits(3))

        def fails(recipe):
            raise ValueError("yours")

        with pytest.raises(ValueError, match="yours"):
            ran(where, "random", MANY, fails)
        assert optuna.logging.get_verbosity() == verbosity
    finally:
        optuna.logging.set_verbosity(before)
    if verbosity > optuna.logging.DEBUG:
        assert capfd.readouterr().err == ""


def test_threads_that_search_at_a_time_leave_optuna_as_it_was():
    inside, outside = threading.Event(), threading.Event()

    def measure(recipe):
        inside.set()
        outside.wait(10)
        return measured(recipe)

    other = threading.Thread(target=ran, args=(None, "basic", Limits(1), measure))
    before = optuna.logging.get_verbosity()
    other.start()
    inside.wait(10)
    ran(None, limits=Limits(2), measure=lambda recipe: outside.set() or measured(recipe))
    other.join()
    assert optuna.logging.get_verbosity() == before


# ---------------------------------------------------------------------------- processes


def test_this_process_lives_and_one_of_its_number_before_does_not():
    own = _workers.this_process()
    assert _workers.is_alive(own)
    number, _, began = own.partition(" since ")
    if began:
        assert not _workers.is_alive(f"{number} since {int(began) - 1}")


def test_a_process_that_has_ended_is_dead_even_before_anybody_asks_how():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = _workers._process(process.pid)
    assert name is not None
    assert _workers.is_alive(name)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    assert not _workers.is_alive(name)
    process.communicate()
    assert not _workers.is_alive(name)


def test_processes_are_found_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(_workers, "Path", lambda path: tmp_path / "proc" / path.lstrip("/"))
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert _workers.is_alive(str(process.pid))
    process.communicate(b"\n")
    assert not _workers.is_alive(str(process.pid))
    assert _workers.is_alive("1")  # somebody else's, unless root runs this


def test_where_processes_cannot_be_seen_each_is_a_machine_of_its_own(monkeypatch):
    assert _workers.host() == _workers.host()
    here = _workers.host()
    monkeypatch.setattr(_workers, "_SEES_PROCESSES", False)
    assert _workers.host() == f"{here} {_workers._ALONE}"


def test_opening_is_tried_again_while_another_process_makes_the_tables(monkeypatch):
    monkeypatch.setattr(_storage.time, "sleep", lambda seconds: None)
    errors = [sqlite3.OperationalError("table studies already exists"), sqlite3.OperationalError("database is locked")]

    def opening():
        if errors:
            raise errors.pop()
        return "open"

    assert _storage._retried(opening) == "open"
    errors[:] = [sqlite3.OperationalError("unable to open database file")] * 2
    with pytest.raises(sqlite3.OperationalError):
        _storage._retried(opening)
    assert len(errors) == 1
