"""The loop of a search: the order of its trials, its ends, what is left after errors, and several workers."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter

import optuna
import pytest

from inc_torch.core.errors import ConfigError
from inc_torch.tuning import _search, _study
from inc_torch.tuning._search import Limits
from inc_torch.tuning._space import Recipe, Space
from inc_torch.tuning._strategy import STRATEGIES, Goal, PlannedStrategy, Stage
from inc_torch.tuning._study import Measured
from tests.unit.tuning.searching import (
    ERRORS,
    MANY,
    SPACE,
    TIMED,
    Ran,
    listed,
    measured,
    named,
    opened,
    ran,
    score,
)
from tests.unit.tuning.simulated import NEVER, ToldErrors, drive, linears

PLACES = ["memory", "runs", "own.journal"]
PLANNED = [
    "auto",
    "basic",
    "conservative",
    "exhaustive",
    "hawq_v2",
    "lower_bit",
    "mse",
    "mse_v2",
    "auto_mixed_precision",
]
SAMPLED = ["random", "tpe", "bayesian"]
FEW = Space(linears("s:asym/kl fp32", "fc1", "fc2", "fc3"))
IN_FLOAT = " ".join(["fp32"] * 4)


@pytest.fixture(params=PLACES)
def where(request, tmp_path):
    return None if request.param == "memory" else str(tmp_path / request.param)


@pytest.fixture(params=PLACES[1:])
def kept(request, tmp_path):
    return str(tmp_path / request.param)


@pytest.fixture(autouse=True)
def _polls_often(monkeypatch):
    monkeypatch.setattr(_search, "_POLL_SECONDS", 0.01)


class Clock:
    """Time that passes when it is told to, and when somebody sleeps."""

    def __init__(self) -> None:
        self.began = self.now = time.monotonic()
        self.step = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += self.step or seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_search, "time", clock)
    return clock


def oracle(strategy: str, **more) -> list[tuple[str, float]]:
    """What a driver without Optuna tries."""
    driven = drive(STRATEGIES.get(strategy)(), SPACE, score, probes=ToldErrors(outputs=ERRORS), **more)
    return [(named(outcome.recipe), outcome.score) for outcome in driven.tried]


class Planned(PlannedStrategy):
    """Asks for stages that are told, and keeps what came of them."""

    def __init__(self, *stages: list[Recipe], ends_at_goal: bool = True) -> None:
        self.asked, self.told, self.ends = stages, [], ends_at_goal
        self.is_closed = False

    def stages(self, search):
        try:
            for recipes in self.asked:
                self.told.append((yield Stage(recipes, ends_at_goal=self.ends)))
        finally:
            self.is_closed = True


def floats(*numbers: int, space: Space = SPACE) -> Recipe:
    """The default, with these operations in float."""
    labels = (
        "fp32" if number in numbers else one.default.label for number, one in enumerate(space.operations, start=1)
    )
    return Recipe(tuple(labels))


# ---------------------------------------------------------------------------- order


@pytest.mark.parametrize("strategy", PLANNED)
def test_planned_trials_come_in_the_order_of_the_strategy(where, strategy):
    most = 12 if where else 100
    assert ran(where, strategy, Limits(most)).trials == oracle(strategy, most=most)


@pytest.mark.parametrize("strategy", PLANNED)
def test_a_planned_search_ends_when_its_strategy_does(strategy):
    result = ran(None, strategy)
    assert result.trials == oracle(strategy)
    assert result.reason == "the strategy has no more to propose"


@pytest.mark.parametrize("strategy", SAMPLED)
def test_sampled_trials_are_the_same_for_the_same_seed_wherever_they_are_kept(where, strategy):
    limits = Limits(15)
    trials = ran(where, strategy, limits, seed=3).trials
    assert len({name for name, _ in trials}) == 15
    assert trials == ran(None, strategy, limits, seed=3).trials
    assert trials != ran(None, strategy, limits, seed=4).trials


@pytest.mark.parametrize("strategy", ["basic", "mse", *SAMPLED])
@pytest.mark.parametrize("first", [1, 5])
def test_a_search_that_is_resumed_ends_as_the_uncut_one(kept, strategy, first):
    limits = Limits(13)
    ran(kept, strategy, Limits(first))
    calls = []
    resumed = ran(kept, strategy, limits, lambda recipe: calls.append(recipe) or measured(recipe), must_exist=True)
    uncut = ran(None, strategy, limits)
    assert resumed.trials == uncut.trials
    assert resumed.reason == uncut.reason
    assert list(map(named, calls)) == [name for name, _ in uncut.trials[first:]]


@pytest.mark.parametrize("strategy", ["basic", "tpe"])
def test_a_search_that_has_ended_is_read_from_its_file(kept, strategy):
    limits = Limits(6)
    first = ran(kept, strategy, limits)
    again = ran(kept, strategy, limits, lambda recipe: pytest.fail("was tried before"))
    assert (again.trials, again.reason, again.noted) == (first.trials, first.reason, [])


def test_trials_are_noted_as_they_come(where):
    result = ran(where, limits=Limits(4))
    assert [[(trial.number, trial.state) for trial in trials] for trials in result.noted] == [
        [(number, "complete") for number in range(1, count + 1)] for count in range(1, 5)
    ]


def test_outcomes_are_told_in_the_order_of_the_stage_without_repetitions(where):
    first = [floats(1), floats(2), floats(1), floats()]
    strategy = Planned(first, [floats(3), floats(2)])
    result = ran(where, strategy)
    assert [[outcome.recipe for outcome in told] for told in strategy.told] == [
        [floats(1), floats(2), floats()],
        [floats(3), floats(2)],
    ]
    assert [outcome.score for outcome in strategy.told[1]] == [score(floats(3)), score(floats(2))]
    assert [name for name, _ in result.trials] == [named(floats(*which)) for which in ((1,), (2,), (), (3,))]


def test_a_strategy_may_leave_open_what_the_space_has_one_value_of(where):
    space = Space(linears("s:asym/kl fp32", "fc1"), samples=(16,), alphas=(0.5,))
    strategy = Planned([Recipe(("fp32",)), Recipe(("fp32",), 16), Recipe(("fp32",), 16, 0.5)])
    result = ran(where, strategy, space=space)
    assert [name for name, _ in result.trials] == ["fp32 16 0.5"]
    assert [outcome.recipe for outcome in strategy.told[0]] == strategy.asked[0]


def test_a_strategy_that_leaves_the_space_is_told_so(where):
    strategy = Planned([floats(), Recipe(("int3", "fp32", "fp32", "fp32"))])
    with pytest.raises(ConfigError, match=r"'fc1' .* cannot be computed in 'int3'"):
        ran(where, strategy)
    assert strategy.is_closed


def test_nothing_to_choose_is_one_trial(where):
    for strategy in ("basic", "random"):
        result = ran(where, strategy, space=Space(linears("s:asym/kl", "fc1")))
        assert [name for name, _ in result.trials] == ["s:asym/kl"]


# ---------------------------------------------------------------------------- no repetitions


@pytest.mark.parametrize("strategy", SAMPLED)
def test_a_sampler_tries_everything_once_and_ends(strategy):
    result = ran(None, strategy, space=FEW)
    assert sorted(name for name, _ in result.trials) == sorted(
        " ".join(labels) for labels in itertools.product(("s:asym/kl", "fp32"), repeat=3)
    )
    assert result.reason == "everything was tried"


def test_a_sampler_that_repeats_itself_costs_no_trials(kept):
    study = ran(kept, "random", space=FEW).study
    assert [trial.state.name for trial in study._study.trials] == ["COMPLETE"] * 8


# ---------------------------------------------------------------------------- ends


def goal_of(number: int, strategy: str) -> Goal:
    """One that a trial meets, and none before it."""
    scores = [score for _, score in ran(None, strategy, Limits(20)).trials]
    assert max(scores[: number - 1]) < scores[number - 1]
    return Goal(1.0, scores[number - 1])


def record(strategy: str, after: int) -> int:
    """The number of the first trial, later than ``after``, that is better than all before."""
    scores = [score for _, score in ran(None, strategy, Limits(20)).trials]
    return next(number for number in range(after + 1, 20) if max(scores[: number - 1]) < scores[number - 1])


@pytest.mark.parametrize("strategy", ["exhaustive", "random", "tpe"])
def test_a_search_ends_at_the_first_trial_that_meets_the_goal(where, strategy):
    number = record(strategy, after=1)
    result = ran(where, strategy, Limits(20), goal=goal_of(number, strategy))
    assert (len(result.trials), result.reason) == (number, f"trial {number} meets the goal")
    again = ran(where, strategy, Limits(20), goal=goal_of(number, strategy))
    assert (len(again.trials), again.reason) == (number, f"trial {number} meets the goal")


def test_meeting_the_goal_ends_no_stage_that_wants_to_go_on():
    strategy = Planned([floats(1), floats(2)], ends_at_goal=False)
    assert len(ran(None, strategy, goal=Goal(1.0, -1.0)).trials) == 2


@pytest.mark.parametrize("strategy", ["basic", "random", "tpe"])
@pytest.mark.parametrize("most", [1, 5])
def test_max_trials_ends_a_search(where, strategy, most):
    result = ran(where, strategy, Limits(most))
    assert (len(result.trials), result.reason) == (most, f"max_trials={most} is reached")


@pytest.mark.parametrize("strategy", ["basic", "random", "tpe"])
def test_timeout_ends_a_search_between_two_trials(where, strategy, clock):
    def measure(recipe):
        clock.now += 4.0
        return measured(recipe)

    result = ran(where, strategy, Limits(100, 10.0), measure, directions=TIMED)
    assert (len(result.trials), result.reason) == (3, "timeout=10 seconds is over")
    assert clock.now - clock.began == pytest.approx(12.0)


def test_with_a_timeout_a_search_goes_on_after_the_goal(clock):
    result = ran(None, "basic", Limits(100, 10.0), goal=Goal(1.0, -1.0), directions=TIMED)
    assert result.trials == oracle("basic")


def test_a_timeout_is_that_of_one_run(kept, clock):
    def measure(recipe):
        clock.now += 4.0
        return measured(recipe)

    limits = Limits(100, 10.0)
    assert len(ran(kept, "exhaustive", limits, measure, directions=TIMED).trials) == 3
    clock.now = time.monotonic()
    assert len(ran(kept, "exhaustive", limits, measure, directions=TIMED).trials) == 6


def test_a_sampled_search_of_several_objectives_is_resumed_as_well(kept):
    for strategy in ("random", "tpe"):
        more = {"directions": TIMED, "goal": Goal(1.0, 0.5), "objectives": strategy}
        ran(kept, strategy, Limits(6, 1000.0), **more)
        assert (
            ran(kept, strategy, Limits(14, 1000.0), **more).trials
            == ran(None, strategy, Limits(14, 1000.0), **more).trials
        )


# ---------------------------------------------------------------------------- numbers that are none


@pytest.mark.parametrize("strategy", ["basic", "mse", *SAMPLED])
@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_trials_like_others(strategy, higher_is_better, number):
    def measure(recipe):
        value = number if score(recipe) < 0.4 else score(recipe)
        return Measured(value, {"performance": value}, 0.0)

    directions = {"accuracy": "maximize" if higher_is_better else "minimize"}
    goal = Goal(1.0, 0.9, higher_is_better)
    result = ran(None, strategy, Limits(14, 1000.0), measure, goal=goal, directions=directions)
    trials = result.study.trials()
    assert [trial.state for trial in trials] == ["complete"] * len(trials)
    assert all(trial.score == pytest.approx(measure(trial.recipe).score, abs=0, nan_ok=True) for trial in trials)
    assert len(trials) >= 9


@pytest.mark.parametrize("strategy", ["basic", *SAMPLED])
def test_a_search_in_which_every_score_is_nan_ends(strategy):
    result = ran(None, strategy, Limits(13), lambda recipe: Measured(math.nan, {}, 0.0), goal=Goal(math.nan, math.nan))
    assert result.reason in ("max_trials=13 is reached", "the strategy has no more to propose")
    assert all(math.isnan(trial.score) and not trial.is_met for trial in result.study.trials())


# ---------------------------------------------------------------------------- errors and interruptions


def failing(number: int, error: BaseException):
    """Measures, and raises at its call of this number."""
    calls = itertools.count(1)

    def measure(recipe):
        if next(calls) == number:
            raise error
        return measured(recipe)

    return measure


@pytest.mark.parametrize("strategy", ["basic", "tpe"])
def test_an_error_rises_with_a_note_and_a_resumed_search_tries_that_recipe_again(where, strategy):
    error = ZeroDivisionError("yours")
    study = opened(where, strategy=strategy)
    with pytest.raises(ZeroDivisionError) as caught:
        ran(study, strategy, Limits(8), failing(4, error))
    assert caught.value is error
    kept = "are kept where options.workspace says" if where else "are lost: set options.workspace to keep them"
    if where:
        kept = "are kept"
    assert error.__notes__ == [f"In trial 4 of the tuning search {study.name!r}; the 3 trials before it {kept}."]
    uncut = ran(None, strategy, Limits(8)).trials
    assert listed(study) == uncut[:3]
    assert study._study.trials[3].state.name == "FAIL"
    assert ran(study, strategy, Limits(8)).trials == uncut


@pytest.mark.parametrize(("number", "before"), [(1, "no trial was through"), (2, "the trial before it is lost")])
def test_a_note_says_what_there_was_before(number, before):
    error = RuntimeError("yours")
    with pytest.raises(RuntimeError, match="yours"):
        ran(None, "basic", MANY, failing(number, error))
    assert before in error.__notes__[0]


def test_pruning_is_an_error_like_others(where):
    with pytest.raises(optuna.TrialPruned):
        ran(where, "basic", MANY, failing(2, optuna.TrialPruned()))
    assert ran(where, "basic").trials == oracle("basic")


@pytest.mark.parametrize("strategy", ["basic", "random"])
def test_ctrl_c_before_any_trial_is_through_rises(where, strategy):
    with pytest.raises(KeyboardInterrupt):
        ran(where, strategy, Limits(5), failing(1, KeyboardInterrupt()))
    assert ran(where, strategy, Limits(5)).trials == ran(None, strategy, Limits(5)).trials


@pytest.mark.parametrize("strategy", ["basic", "random"])
def test_ctrl_c_later_keeps_what_was_found(where, strategy):
    result = ran(where, strategy, Limits(6), failing(4, KeyboardInterrupt()))
    uncut = ran(None, strategy, Limits(6)).trials
    assert (result.reason, result.trials) == ("it was interrupted", uncut[:3])
    assert ran(result.study, strategy, Limits(6)).trials == uncut


def test_ctrl_c_while_others_are_waited_for_keeps_what_was_found(kept, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(_search.time, "sleep", interrupted)

    def measure(recipe):
        other = ran(kept, Planned([floats(1), floats(2)]))
        assert (other.reason, len(other.study.trials())) == ("it was interrupted", 2)
        return measured(recipe)

    assert len(ran(kept, Planned([floats(1), floats(2)]), measure=measure).trials) == 2


def test_ctrl_c_while_trials_are_noted_keeps_them(where):
    def noted(trials):
        if len(trials) == 3:
            raise KeyboardInterrupt

    result = ran(where, noted=noted)
    assert (result.reason, len(result.trials)) == ("it was interrupted", 3)


@pytest.mark.parametrize("strategy", [*PLANNED, "random", "tpe"])
def test_in_memory_nobody_is_waited_for(strategy, monkeypatch):
    waits = []
    monkeypatch.setattr(_search.time, "sleep", waits.append)
    assert ran(None, strategy, Limits(30)).trials
    assert waits == []


# ---------------------------------------------------------------------------- several workers


def test_what_another_worker_tries_at_the_time_is_not_tried_here(kept):
    calls = []

    def measure(recipe):
        calls.append(named(recipe))
        if len(calls) == 1:  # in the first trial of the first worker the second does all it can
            others = Planned([floats(1), floats(2), floats(3)])
            with pytest.raises(TimeoutError):
                ran(kept, others, measure=measure, noted=until(3))
        return measured(recipe)

    def until(count):
        def noted(trials):
            if len(trials) == count - 1:
                raise TimeoutError

        return noted

    result = ran(kept, Planned([floats(1), floats(2), floats(3)]), measure=measure)
    assert calls == [named(floats(number)) for number in (1, 2, 3)]
    assert result.trials == [(named(floats(number)), score(floats(number))) for number in (1, 2, 3)]


def together(count: int, work) -> list[Ran]:
    """What workers return that run at a time, each a thread with a study of its own."""
    results, errors, start = {}, [], threading.Barrier(count)

    def run(number):
        try:
            start.wait(30)
            results[number] = work(number)
        except BaseException as error:  # noqa: BLE001  shown by the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    return [results[number] for number in range(count)]


@pytest.mark.filterwarnings("ignore:.*constraints_func")  # Optuna restores the filters of all threads as well
@pytest.mark.parametrize("strategy", ["exhaustive", "random", "tpe"])
@pytest.mark.parametrize("most", [5, 1000])
def test_workers_share_a_search_without_repetitions(kept, strategy, most):
    space, calls = Space(linears("s:asym/kl s:asym/minmax", "fc1", "fc2", "fc3")), Counter()

    def measure(recipe):
        calls[recipe] += 1
        return measured(recipe, seconds=0.002)

    results = together(3, lambda number: ran(kept, strategy, Limits(most), measure, space=space))
    expected = min(most, 8)
    assert set(calls.values()) == {1}
    assert len(calls) == expected
    trials = listed(opened(kept, space=space, strategy=strategy))
    assert sorted(trials) == sorted((named(recipe), score(recipe)) for recipe in calls)
    assert all(result.trials == trials for result in results)  # each waits for the last


def test_workers_of_a_planned_search_end_with_the_same_trials(kept):
    results = together(3, lambda number: ran(kept, "basic", measure=lambda recipe: measured(recipe, seconds=0.002)))
    assert sorted(results[0].trials) == sorted(oracle("basic"))
    assert {result.reason for result in results} == {"the strategy has no more to propose"}


def test_a_worker_that_finds_the_goal_ends_the_search_of_all(kept):
    goal = Goal(1.0, max(score for _, score in oracle("exhaustive")))
    results = together(
        3, lambda number: ran(kept, "exhaustive", measure=lambda recipe: measured(recipe, seconds=0.002), goal=goal)
    )
    assert len({result.reason for result in results}) == 1
    assert results[0].reason.endswith("meets the goal")


def test_the_last_trial_goes_to_another_worker_if_its_own_fails(kept):
    """The first worker takes the last trial and fails; the second, which was full, takes it."""
    began, done = threading.Event(), threading.Event()

    def measure(recipe):
        if named(recipe) == named(floats(2)) and not began.is_set():
            began.set()
            assert done.wait(30)
            raise ZeroDivisionError
        return measured(recipe)

    def work(number):
        strategy = Planned([floats(1), floats(2), floats(3)])
        if number == 0:
            with pytest.raises(ZeroDivisionError):
                ran(kept, strategy, Limits(2), measure)
            return None
        assert began.wait(30)
        threading.Timer(0.2, done.set).start()
        return ran(kept, strategy, Limits(2), measure)

    second = together(2, work)[1]
    assert second.reason == "max_trials=2 is reached"
    assert second.trials[0][0] == named(floats(1))
    assert len(second.trials) == 2


def test_what_a_worker_left_waiting_is_tried_and_not_put_down_again(kept):
    study = opened(kept, strategy="Planned")
    study._enqueue(study.parameters_of(floats(2)))
    result = ran(kept, Planned([floats(1), floats(2), floats(3)]))
    assert sorted(name for name, _ in result.trials) == sorted(named(floats(number)) for number in (1, 2, 3))
    assert len(result.study._study.trials) == 3


def test_a_worker_whose_trial_another_takes_at_once_tries_nothing_else(kept):
    study, strategy = opened(kept, strategy="Planned"), Planned([floats(1)])

    class Faster:
        """Takes what waits before the worker that has put it down."""

        def __call__(self, parameters):
            enqueue(parameters)
            ran(kept, strategy)

    enqueue, study._enqueue = study._enqueue, Faster()
    assert not study.attempt(floats(1), lambda recipe: pytest.fail(f"tries {recipe}"), NEVER, most=9)
    assert listed(study) == [(named(floats(1)), score(floats(1)))]


def test_two_that_put_down_the_same_recipe_try_it_once(where):
    study = opened(where, strategy="Planned")
    for _ in range(3):
        study._enqueue(study.parameters_of(floats(1)))
    calls = []
    ran(study, Planned([floats(1)], [floats(2)]), measure=lambda recipe: calls.append(recipe) or measured(recipe))
    assert calls == [floats(1), floats(2)]


@pytest.mark.parametrize("with_process", [True, False])
def test_a_trial_of_a_dead_process_is_tried_again(kept, with_process):
    study = opened(kept)
    study._enqueue(study.parameters_of(floats(1)))
    trial = study._study.ask()  # and killed before it says anything more
    worker = {**study._worker, "process": "999999999 since 1"} if with_process else study._worker
    trial.set_user_attr("worker", worker)
    result = ran(kept)
    assert sorted(result.trials) == sorted({*oracle("basic"), (named(floats(1)), score(floats(1)))})
    assert result.trials[0] == (named(floats(1)), score(floats(1)))


def elsewhere(monkeypatch, study):
    """Make the worker of a study one of another machine."""
    monkeypatch.setitem(study._worker, "host", "another machine")


def test_a_worker_of_another_machine_that_says_nothing_any_more_loses_its_trial(kept, clock, monkeypatch):
    monkeypatch.setattr(_study, "time", clock)
    gone = opened(kept)
    elsewhere(monkeypatch, gone)
    gone._enqueue(gone.parameters_of(SPACE.default))
    gone._study.ask().set_user_attr("worker", gone._worker)
    study = opened(kept)
    clock.step = 10.0
    result = ran(study)
    assert sorted(result.trials) == sorted(oracle("basic"))
    assert clock.now - clock.began == pytest.approx(70.0)  # more than three heartbeats of 20 seconds


def test_a_worker_of_another_machine_that_lives_keeps_its_trial(kept, clock, monkeypatch):
    monkeypatch.setattr(_study, "time", clock)
    other = opened(kept)
    elsewhere(monkeypatch, other)
    other._enqueue(other.parameters_of(SPACE.default))
    trial, beats = other._study.ask(), itertools.count(1)
    trial.set_user_attr("worker", other._worker)

    def sleep(seconds):
        clock.now += 40.0
        number = next(beats)
        trial.set_user_attr("heartbeat", number)
        if number == 9:
            values = other.note(trial, measured(SPACE.default), NEVER)
            other._study.tell(trial, values)

    monkeypatch.setattr(clock, "sleep", sleep)
    assert ran(kept).trials == oracle("basic")
    assert clock.now - clock.began == pytest.approx(360.0)


def test_a_worker_says_that_it_lives_as_long_as_its_trial_runs(kept, monkeypatch):
    monkeypatch.setattr(_study, "HEARTBEAT_SECONDS", 0.02)
    watching, seen = opened(kept), []

    def measure(recipe):
        for _ in range(200):
            (trial,) = watching._study.trials
            seen.append(trial.user_attrs.get("heartbeat", 0))
            if len(set(seen)) > 3:
                return measured(recipe)
            threading.Event().wait(0.02)
        return pytest.fail("says nothing")

    ran(kept, limits=Limits(1), measure=measure)
    assert seen == sorted(seen)
    assert [thread.name for thread in threading.enumerate() if "heartbeat" in thread.name] == []


def test_a_worker_that_others_took_for_dead_goes_on_with_another_trial(kept):
    study, calls = opened(kept), []

    def measure(recipe):
        calls.append(named(recipe))
        if len(calls) == 2:
            others = opened(kept)  # lost sight of it
            running = next(trial for trial in others._study.trials if trial.state.name == "RUNNING")
            others._study.tell(running.number, state=optuna.trial.TrialState.FAIL)
        return measured(recipe)

    result = ran(study, measure=measure)
    assert result.trials == oracle("basic")
    assert Counter(calls) == Counter([name for name, _ in oracle("basic")] + [calls[1]])
