"""Objectives: what they measure, what is refused, and which trial wins."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from inc_torch import TuningCriterion
from inc_torch.core.batches import Inputs
from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.objective import OBJECTIVES, Objective, objective_custom_registry
from inc_torch.tuning._objectives import Aim, Term, choose, label_of, measured
from inc_torch.tuning._result import Trial
from inc_torch.tuning._space import Recipe
from inc_torch.tuning._strategy import Goal
from inc_torch.tuning.objectives import footprint, latency, performance

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "quantization.json").read_text(encoding="utf-8"))[
    "accuracy_decisions"
]
BATCH = Inputs((torch.ones(1),))


class Clock:
    """A clock that only stands still or is moved."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (latency, performance):
        monkeypatch.setattr(module, "time", clock)
    return clock


class Slow(nn.Module):
    """Takes so many seconds of a clock for each call, by the value that it is given, and notes all calls."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.calls: list[int] = []

    def forward(self, x):
        self.calls.append(int(x))
        self.clock.now += self.seconds(int(x), len(self.calls))
        return x


def slow(clock, seconds, values=(1,)):
    model = Slow(clock, seconds)
    batches = [Inputs((torch.tensor([float(value)]),)) for value in values]
    return OBJECTIVES.get("latency")().measure(model, batches), model.calls


@pytest.fixture
def register():
    """File an objective for one test."""
    names = []

    def file(name, objective):
        names.append(name)
        objective_custom_registry(name, objective)

    yield file
    for name in names:
        OBJECTIVES._entries.pop(name, None)


def test_the_built_in_ones_are_registered_with_labels():
    assert {name: label_of(name) for name in OBJECTIVES.names()} == {
        "accuracy": "Accuracy",
        "footprint": "Peak memory (MB)",
        "latency": "Latency (ms)",
        "modelsize": "Model size (MB)",
        "performance": "Duration (seconds)",
    }
    assert [entry.name for entry in OBJECTIVES if entry.value.higher_is_better] == ["accuracy"]
    assert label_of("unheard of") == "Unheard of"


class TestModelSize:
    @staticmethod
    def of(model):
        return OBJECTIVES.get("modelsize")().measure(model, [])

    @pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.float64, 8)])
    def test_counts_bytes(self, dtype, size):
        assert self.of(nn.Linear(999, 1000, dtype=dtype)) == size * (999 * 1000 + 1000) / 1e6

    def test_needs_no_memory_for_it(self):
        assert self.of(nn.Sequential(*(nn.Linear(999, 1000, device="meta") for _ in range(2)))) == 8.0

    def test_counts_codes_as_they_are_kept_and_leaves_out_what_is_not_saved(self):
        model = nn.Module()
        model.register_buffer("codes", torch.zeros(1000, dtype=torch.int8))
        model.register_buffer("words", torch.zeros(100, dtype=torch.int32))
        model.register_buffer("cache", torch.zeros(10**6), persistent=False)
        model.register_buffer("nothing", None)
        assert self.of(model) == pytest.approx((1000 + 400) / 1e6)

    def test_counts_tied_weights_once(self):
        model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
        assert self.of(model) == pytest.approx(800 / 1e6)
        model[1].weight = model[0].weight
        assert self.of(model) == pytest.approx(400 / 1e6)

    def test_counts_what_views_show(self):
        model, whole = nn.Module(), torch.zeros(100)
        model.register_buffer("part", whole[10:20])
        assert self.of(model) == pytest.approx(40 / 1e6)
        model.register_buffer("other", whole[50:70])
        assert self.of(model) == pytest.approx(120 / 1e6)
        model.register_buffer("all", whole)
        model.register_buffer("turned", whole.view(10, 10).T)
        assert self.of(model) == pytest.approx(400 / 1e6)

    def test_looks_into_tuples_and_past_other_things(self):
        class Odd(nn.Module):
            def _save_to_state_dict(self, destination, prefix, keep_vars):
                destination["packed"] = (torch.zeros(5, dtype=torch.int8), None, [torch.zeros(2)])

            def get_extra_state(self):
                return {"words": "some"}

        assert self.of(Odd()) == pytest.approx(13 / 1e6)


class TestLatency:
    def test_of_a_module_that_sleeps(self):
        class Sleeper(nn.Module):
            def forward(self, x):
                time.sleep(0.02)
                return x

        assert 20 <= OBJECTIVES.get("latency")().measure(Sleeper(), [BATCH]) < 100

    def test_of_a_fast_model_is_the_median_of_half_a_second(self, clock):
        milliseconds, calls = slow(clock, lambda _, call: 0.1 if call % 3 == 0 else 0.002)
        assert milliseconds == pytest.approx(2.0)
        assert 0.5 <= clock.now - 2 * 0.002 < 0.5 + 0.1
        assert len(calls) > 7

    def test_of_a_slow_model_takes_five_runs(self, clock):
        milliseconds, calls = slow(clock, lambda _, call: 7.0)
        assert milliseconds == pytest.approx(7000)
        assert len(calls) == 2 + 5

    def test_does_not_count_the_first_runs(self, clock):
        milliseconds, _ = slow(clock, lambda _, call: 9.0 if call <= 2 else 0.2)
        assert milliseconds == pytest.approx(200)

    def test_gives_each_batch_the_same_weight(self, clock):
        milliseconds, calls = slow(clock, lambda value, _: value / 1000, values=(1, 5, 6, 100))
        assert milliseconds == pytest.approx(4.0)
        assert 100 not in calls
        assert calls.count(1) == calls.count(5) == calls.count(6)

    def test_runs_in_evaluation_mode_without_gradients_and_leaves_the_mode(self):
        class Watched(nn.Module):
            def forward(self, x):
                assert not self.training
                assert not torch.is_grad_enabled()
                return x

        model = Watched()
        OBJECTIVES.get("latency")().measure(model, [BATCH])
        assert model.training

    def test_needs_a_batch(self):
        with pytest.raises(ConfigError, match=r"'latency' got no batch .* at least one\. Pass a dataloader\."):
            OBJECTIVES.get("latency")().measure(nn.Identity(), [])


def test_performance_is_the_time_of_the_evaluation_alone(clock):
    def evaluate():
        clock.now += 3.0
        return 0.5

    clock.now = 100.0
    objectives = {"performance": OBJECTIVES.get("performance")()}
    assert measured(objectives, evaluate, nn.Identity(), []) == (0.5, {"performance": 3.0})


def _forgets_peaks():
    try:
        footprint._CLEAR.write_text("5")
    except OSError:
        return False
    return footprint._STATUS.exists()


class TestFootprint:
    @staticmethod
    def of(model):
        objectives = {"footprint": OBJECTIVES.get("footprint")()}
        return measured(objectives, lambda: float(model(torch.ones(1))), model, [])[1]["footprint"]

    @pytest.mark.skipif(not _forgets_peaks(), reason="the system cannot forget a peak")
    def test_is_the_peak_of_one_evaluation(self):
        class Greedy(nn.Module):
            def forward(self, x):
                return torch.ones(50 * 10**6).mean() * x  # 200 MB

        before, greedy, after = self.of(nn.Identity()), self.of(Greedy()), self.of(nn.Identity())
        assert 190 < greedy - before < 230
        assert abs(after - before) < 30

    def test_falls_back_to_the_peak_of_the_process(self, monkeypatch, tmp_path):
        import resource

        monkeypatch.setattr(footprint, "_STATUS", tmp_path / "status")
        monkeypatch.setattr(footprint, "_CLEAR", tmp_path / "no" / "clear_refs")
        unit = 1 if sys.platform == "darwin" else 1024
        assert self.of(nn.Identity()) == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6

    def test_says_where_it_cannot_be_measured(self, monkeypatch, tmp_path):
        monkeypatch.setattr(footprint, "_STATUS", tmp_path / "status")
        monkeypatch.setitem(sys.modules, "resource", None)
        with pytest.raises(ConfigError, match=r"'footprint' cannot be measured on .* such as 'modelsize'\."):
            self.of(nn.Identity())

    @pytest.mark.parametrize(("peaks", "is_on_device"), [((300, 40), True), ((100, 30), False)])
    def test_is_that_of_cuda_devices_where_the_evaluation_uses_them(self, monkeypatch, peaks, is_on_device):
        """The model of the first is on the devices, what is there in the second was there before."""
        allocated, reset = (100, 30), []
        for name, value in {
            "is_initialized": lambda: True,
            "device_count": lambda: 2,
            "memory_allocated": lambda device: allocated[device] * 10**6,
            "max_memory_allocated": lambda device: peaks[device] * 10**6,
            "reset_peak_memory_stats": reset.append,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(footprint, "_peak_of_process", lambda: 77 * 10**6)
        assert self.of(nn.Identity()) == (340 if is_on_device else 77)
        assert reset == [0, 1]


class TestCustomObjectives:
    def test_of_inc_work(self, register):
        class Custom(Objective):
            representation = "joules"

            def __init__(self):
                super().__init__()
                self.started = 0

            def start(self):
                self.started += 1

            def end(self):
                self._result_list.append(self.started)

        register("energy", Custom)
        aim = Aim.of(TuningCriterion(objective="energy").objective)
        objectives = aim.objectives()
        assert [measured(objectives, lambda: 0.5, nn.Identity(), [])[1] for _ in range(2)] == [
            {"energy": 1.0},
            {"energy": 2.0},
        ]
        assert label_of("energy") == "Joules"
        assert aim.objectives()["energy"] is not objectives["energy"]

    def test_of_any_base_and_direction_work(self, register):
        class Throughput:
            higher_is_better = True

            def measure(self, model, batches):
                return len(batches)

        register("throughput", Throughput)
        register("throughput", Throughput)  # a cell of a notebook that is run again
        assert Aim.of(["throughput"]) == Aim((Term("throughput", higher_is_better=True),))
        assert measured(Aim.of(["throughput"]).objectives(), lambda: 1.0, nn.Identity(), [BATCH] * 3)[1] == {
            "throughput": 3.0
        }

    def test_are_measured_in_order_around_and_after_the_evaluation(self):
        seen = []

        def around(name):
            class Around:
                def start(self):
                    seen.append(f"start {name}")

                def end(self):
                    seen.append(f"end {name}")
                    return 1

            return Around()

        class After:
            def measure(self, model, batches):
                seen.append(f"measure {type(model).__name__} {len(batches)}")
                return 2

        objectives = {"a": around("a"), "m": After(), "accuracy": OBJECTIVES.get("accuracy")(), "b": around("b")}
        found = measured(objectives, lambda: seen.append("evaluate") or 0.25, nn.Identity(), [BATCH])
        assert found == (0.25, {"a": 1.0, "m": 2.0, "b": 1.0})
        assert list(found[1]) == ["a", "m", "b"]
        assert seen == ["start a", "start b", "evaluate", "end b", "end a", "measure Identity 1"]

    @pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "3", torch.ones(2)])
    def test_have_to_give_a_number(self, value):
        class Bad:
            def measure(self, model, batches):
                return value

        with pytest.raises(ConfigTypeError, match=r"The objective 'bad' measured .*: expected a finite number\."):
            measured({"bad": Bad()}, lambda: 1.0, nn.Identity(), [])

    @pytest.mark.parametrize(
        ("given", "missing"),
        [
            (type("OnlyStart", (), {"start": lambda self: None}), "without a method 'end'"),
            (type("OnlyEnd", (), {"end": lambda self: 1.0}), "without a method 'start'"),
            (type("Nothing", (Objective,), {}), "without a method 'measure'"),
            (type("Typo", (), {"measured": lambda self: 1.0}), "Did you mean 'measured'"),
            (type("NotCalled", (), {"measure": 3}), "without a method 'measure'"),
            (Objective(), "expected a class"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_need_methods(self, given, missing):
        with pytest.raises(ConfigTypeError, match=missing) as caught:
            objective_custom_registry("mine", given)
        assert "'mine'" in str(caught.value)
        assert "mine" not in OBJECTIVES.names()

    def test_do_not_take_the_names_of_others(self):
        class Another:
            def measure(self, model, batches):
                return 0.0

        with pytest.raises(ConfigError, match="'latency' is already registered"):
            objective_custom_registry("latency", Another)


class TestAim:
    @pytest.mark.parametrize(
        ("objective", "terms"),
        [
            ("modelsize", [Term("modelsize")]),
            (["performance", "accuracy"], [Term("performance"), Term("accuracy", higher_is_better=True)]),
            ({"objective": ["footprint"]}, [Term("footprint")]),
            (
                {"objective": ["performance", "modelsize"], "weight": [1, 0.5], "higher_is_better": [True, False]},
                [Term("performance", higher_is_better=True), Term("modelsize", weight=0.5)],
            ),
        ],
    )
    def test_reads_all_forms_of_the_criterion(self, objective, terms):
        assert Aim.of(TuningCriterion(objective=objective).objective) == Aim(tuple(terms))

    def test_is_incs_default(self):
        assert Aim.of(TuningCriterion().objective) == Aim()

    def test_refuses_unknown_names(self):
        with pytest.raises(ConfigError, match=r"Unknown objective .latncy.\. Did you mean .latency."):
            Aim.of(["latncy"])


def trial(number, score, values=(), *, met=True, names=("performance", "modelsize"), state="complete"):
    return Trial(number, Recipe((str(number),)), score, met, dict(zip(names, values, strict=False)), 1.0, state)


GOAL = Goal(0.8, 0.792)


class TestChoose:
    @pytest.mark.parametrize("case", VECTORS["best_result"], ids=str)
    def test_chooses_what_the_vectors_do(self, case):
        names = case["objectives"]
        directions = case["obj_higher_is_better"] or [False] * len(names)
        terms = map(Term, names, directions, case["weight"] or [1.0] * len(names))
        trials = [
            trial(number, score, values, met=GOAL.is_met(score), names=names)
            for number, (score, values) in enumerate(case["trials"])
        ]
        assert choose(trials, Aim(tuple(terms)), GOAL).number == case["best_index"]

    @pytest.mark.parametrize("case", VECTORS["perf_gate"], ids=str)
    def test_replaces_the_best_as_incs_gate_does_but_for_equal_ones(self, case):
        old, new = case["best_so_far_obj"], case["new_obj"]
        names = ("performance", "modelsize")[: len(old)]
        directions = case.get("obj_higher_is_better", [False] * len(old))
        trials = [trial(1, 0.8, old, names=names), trial(2, 0.8, new, names=names)]
        is_new_chosen = choose(trials, Aim(tuple(map(Term, names, directions))), GOAL).number == 2
        assert is_new_chosen == (case["accept"] and old != new)

    @pytest.mark.parametrize(
        ("term", "values", "winner"),
        [
            (Term("performance"), [3.0, 1.0, 2.0, 1.0], 2),
            (Term("performance", higher_is_better=True), [1.0, 3.0, 3.0, 2.0], 2),
            (Term("performance"), [0.0, -1.0, 5.0, 5.0], 2),
            (Term("performance", weight=0.0), [3.0, 1.0, 2.0, 1.0], 2),
        ],
    )
    def test_of_one_objective_takes_the_least_or_greatest_the_earliest_of_equal_ones(self, term, values, winner):
        trials = [trial(number, 0.8, [value]) for number, value in enumerate(values, start=1)]
        assert choose(trials, Aim((term,)), GOAL).number == winner
        assert choose(trials[::-1], Aim((term,)), GOAL).number == winner

    def test_does_not_look_at_trials_that_miss_the_goal_or_are_not_through(self):
        trials = [
            trial(1, 0.7, [0.1], met=False),
            trial(2, 0.8, [5.0]),
            trial(3, 0.9, [0.2], met=False, state="cut"),
            trial(4, float("nan"), met=False, state="failed"),
            trial(5, float("nan"), met=False, state="running"),
        ]
        assert choose(trials, Aim(), GOAL).number == 2
        assert choose(trials, Aim((Term("performance"), Term("accuracy"))), GOAL).number == 2

    @pytest.mark.parametrize(("goal", "winner"), [(Goal(0.8, 0.7), 3), (Goal(0.8, 0.9, higher_is_better=False), 1)])
    def test_takes_the_direction_of_accuracy_from_the_goal(self, goal, winner):
        trials = [trial(1, 0.71), trial(2, 0.75), trial(3, 0.77)]
        assert choose(trials, Aim((Term("accuracy", higher_is_better=True),)), goal).number == winner

    @pytest.mark.parametrize(
        ("goal", "scores", "winner"),
        [
            (Goal(1.0, 0.9), [0.5, 0.7, 0.7], 2),
            (Goal(1.0, 1.1, higher_is_better=False), [3.0, 2.0, 2.0], 2),
            (Goal(1.0, 0.9), [float("nan"), float("-inf"), 0.1], 3),
            (Goal(1.0, 0.9), [float("nan"), float("nan")], 1),
        ],
    )
    def test_takes_the_best_score_where_all_miss_the_goal(self, goal, scores, winner):
        trials = [trial(number, score, met=False) for number, score in enumerate(scores, start=1)]
        assert choose(trials, Aim(), goal).number == winner

    def test_takes_trials_that_were_cut_only_where_there_are_no_others(self):
        cut = [trial(1, 0.5, met=False, state="cut"), trial(2, 0.6, met=False, state="cut")]
        assert choose(cut, Aim(), GOAL).number == 2
        assert choose([*cut, trial(3, 0.1, met=False)], Aim(), GOAL).number == 3

    @pytest.mark.parametrize("states", [[], ["failed"], ["running", "failed"]])
    def test_of_nothing_is_none(self, states):
        trials = [trial(1, float("nan"), met=False, state=state) for state in states]
        assert choose(trials, Aim(), GOAL) is None

    def test_a_constant_objective_or_one_of_zero_does_not_decide(self):
        aim = Aim((Term("performance"), Term("modelsize")))
        assert choose([trial(1, 0.8, [1.0, 7.0]), trial(2, 0.8, [0.5, 7.0])], aim, GOAL).number == 2
        assert choose([trial(1, 0.8, [0.0, 7.0]), trial(2, 0.8, [0.0, 6.0])], aim, GOAL).number == 2

    def test_a_perfect_score_is_no_harm(self):
        aim = Aim((Term("accuracy"), Term("modelsize", weight=0.1)))
        trials = [trial(1, 30.0, names=("modelsize",), values=[1.0])]
        trials += [trial(2, float("inf"), names=("modelsize",), values=[2.0])]
        assert choose(trials, aim, Goal(40.0, 20.0)).number == 2

    @given(
        st.lists(st.tuples(*[st.integers(1, 6)] * 2, st.booleans()), min_size=1, max_size=6),
        st.tuples(st.booleans(), st.booleans()),
        st.tuples(st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)),
    )
    @example([(1, 6, True), (6, 1, True), (2, 2, True)], (False, False), (1, 1), (1.0, 1.0))
    def test_follows_the_formula(self, rows, directions, weights, baseline):
        """Written down as it stands in the reference: ratios to the baseline, flipped columns, scaled ones."""
        columns = []
        for place in range(2):
            ratios = [baseline[place] / row[place] for row in rows]
            low, high = min(ratios), max(ratios)
            if directions[place]:
                ratios = [high + low - ratio for ratio in ratios]
            columns.append([(ratio - low) / (high - low) if high > low else ratio for ratio in ratios])
        merits = [weights[0] * first + weights[1] * second for first, second in zip(*columns, strict=True)]
        met = [index for index, row in enumerate(rows) if row[2]]
        if not met:
            return
        trials = [trial(index, 0.8, row[:2], met=row[2]) for index, row in enumerate(rows)]
        aim = Aim(tuple(map(Term, ("performance", "modelsize"), directions, weights)))
        chosen = choose(trials, aim, GOAL).number
        assert chosen in met
        assert merits[chosen] == pytest.approx(max(merits[index] for index in met), abs=1e-9)
