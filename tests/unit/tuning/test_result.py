"""Results of a search: the file, the tables, the lines of progress, the picture."""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_torch.core.errors import ArtifactError, MissingPackageError
from inc_torch.tuning._objectives import Aim, Term, choose
from inc_torch.tuning._result import Trial, TuningResult
from inc_torch.tuning._result_plot import pareto_front, place_texts
from inc_torch.tuning._result_view import (
    changes,
    described,
    ops_by_dtype,
    sensitive_operations,
    trial_line,
    tuning_results,
)
from inc_torch.tuning._space import Choice, Mode, Operation, Recipe, Space
from inc_torch.tuning._strategy import Goal

MINMAX, KL = Choice("int8 asym/minmax", Mode.STATIC), Choice("int8 asym/kl", Mode.STATIC)
DYNAMIC, BF16, FP32 = Choice("int8 dynamic", Mode.DYNAMIC), Choice("bf16", Mode.BFLOAT16), Choice("fp32", Mode.FLOAT32)
LINEAR = (MINMAX, KL, BF16, FP32)
SPACE = Space(
    (
        Operation("embeddings", "Embedding", (Choice("int8", Mode.STATIC), FP32)),
        Operation("encoder.0.intermediate.dense", "Linear", LINEAR),
        Operation("encoder.0.output.dense", "Linear", LINEAR),
        Operation("encoder.1.intermediate.dense", "Linear", LINEAR),
        Operation("encoder.1.output.dense", "Linear", LINEAR),
        Operation("head", "Linear", (FP32, MINMAX)),
    ),
    samples=(100, 500),
    alphas=(0.5, 0.7),
    blocks=(("encoder.0.intermediate.dense", "encoder.0.output.dense"),),
)
GOAL = Goal(0.8, 0.792)
LAST = SPACE.of({"encoder.1.intermediate.dense": FP32, "encoder.1.output.dense": FP32})


def result(**changed) -> TuningResult:
    trials = (
        Trial(1, SPACE.default, 0.75, False, {"latency": 2.0, "modelsize": 25.0}, 3.5),
        Trial(2, replace(SPACE.default, samples=500), 0.5, False, {"latency": 2.0}, 1.25, "cut"),
        Trial(3, LAST, 0.795, True, {"latency": 2.5, "modelsize": 50.125}, 4.0),
        Trial(4, replace(LAST, alpha=0.7), math.nan, False, {}, 0.5, "failed"),
    )
    whole = TuningResult(
        space=SPACE,
        goal=GOAL,
        strategy="basic",
        trials=trials,
        best=trials[2],
        reason="max_trials=4 is reached",
        baseline={"latency": 5.0, "modelsize": 100.0},
        sensitivity={"encoder.0.output.dense": 31.25, "encoder.1.output.dense": 9.0, "embeddings": 40.0},
        aim=Aim((Term("latency"), Term("modelsize", weight=0.25))),
    )
    return replace(whole, **changed)


def same(one: TuningResult, other: TuningResult) -> bool:
    """Equal, NaN being equal to itself."""
    return repr(one) == repr(other)


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


# ------------------------------------------------------------------------------------------- what it says of itself


def test_history_tells_only_what_differs_from_the_default():
    first, second, third, fourth = result().history
    assert first == {
        "number": 1,
        "state": "complete",
        "score": 0.75,
        "met": False,
        "objectives": {"latency": 2.0, "modelsize": 25.0},
        "seconds": 3.5,
        "changes": {},
    }
    assert second["changes"] == {"calibration samples": 500}
    assert third["changes"] == {"encoder.1.intermediate.dense": "fp32", "encoder.1.output.dense": "fp32"}
    assert fourth["changes"] == third["changes"] | {"smoothing alpha": 0.7}


def test_fallen_back_are_the_operations_left_in_floating_point():
    assert result().fallen_back == ("encoder.1.intermediate.dense", "encoder.1.output.dense", "head")
    recipe = SPACE.of({"head": MINMAX, "encoder.0.output.dense": BF16})
    assert result(best=Trial(1, recipe, 0.8, True, {}, 1.0)).fallen_back == ("encoder.0.output.dense",)
    assert result(best=None).fallen_back == ()


# ------------------------------------------------------------------------------------------- files

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
TRIALS = st.builds(
    Trial,
    st.just(0),
    st.builds(
        Recipe,
        st.tuples(
            st.sampled_from(["int8", "fp32"]),
            *[st.sampled_from([choice.label for choice in LINEAR])] * 4,
            st.sampled_from(["fp32", "int8 asym/minmax"]),
        ),
        st.none() | st.integers(),
        st.none() | st.floats(allow_nan=False),
    ),
    NUMBERS,
    st.booleans(),
    st.dictionaries(st.text(), NUMBERS, max_size=3),
    NUMBERS,
    st.sampled_from(["running", "complete", "cut", "failed"]),
)


class TestFiles:
    def test_what_is_saved_is_loaded(self, tmp_path):
        path = tmp_path / "new" / "folder" / "tuning.json"
        result().save(path)
        assert same(TuningResult.load(path), result())
        assert [file.name for file in path.parent.iterdir()] == ["tuning.json"]

    def test_a_smaller_file_takes_the_place_of_a_greater_one(self, tmp_path):
        path = tmp_path / "tuning.json"
        for one in (result(), result(trials=(), best=None, sensitivity={})):
            one.save(str(path))
            assert same(TuningResult.load(str(path)), one)

    def test_a_save_that_is_cut_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "tuning.json"
        result().save(path)

        def full(self, text, **_):
            self.write_bytes(text.encode()[:100])
            raise OSError("no space left")

        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="no space left"):
            result(strategy="other").save(path)
        assert same(TuningResult.load(path), result())

    @given(st.lists(TRIALS, max_size=4), NUMBERS, NUMBERS, st.booleans(), st.data())
    @settings(max_examples=60)
    def test_every_result_comes_back_through_strict_json(self, trials, baseline, target, higher, data):
        trials = tuple(replace(trial, number=number) for number, trial in enumerate(trials, start=1))
        best = data.draw(st.sampled_from([None, *trials]))
        whole = result(trials=trials, goal=Goal(baseline, target, higher), best=best)
        text = json.dumps(whole.to_dict(), allow_nan=False)
        assert same(TuningResult.from_dict(json.loads(text)), whole)

    @pytest.mark.parametrize(
        ("place", "value", "message"),
        [
            (["format"], "something/1", "expected 'inc_torch tuning result/1'"),
            (["format"], "inc_torch tuning result/x", "expected 'inc_torch tuning result/1'"),
            (["format"], "inc_torch tuning result/2", "newer inc_torch: got format .* Upgrade"),
            (["strategy"], None, "strategy is None, expected text"),
            (["goal"], [], r"goal is \[\], expected an object"),
            (["goal", "target"], "high", "goal.target is 'high', expected a number"),
            (["goal", "target"], True, "goal.target is True, expected a number"),
            (["goal", "target"], 10**400, "goal.target is 1000.*, expected a number of 64 bits"),
            (["goal", "higher_is_better"], 1, "goal.higher_is_better is 1, expected true or false"),
            (["aim"], [], r"aim is \[\], expected at least one objective"),
            (["space", "operations"], {}, "space.operations is {}, expected a list"),
            (["space", "operations", 1, "choices"], {}, r"operations\[1\].choices is {}, expected at least one choice"),
            (["space", "operations", 1, "choices", "bf16"], "int3", r"choices.bf16 is 'int3', expected one of static"),
            (["space", "operations", 1, "name"], "head", "expected operations of different names"),
            (["space", "samples"], [1.5], r"space.samples\[0\] is 1.5, expected an integer"),
            (["space", "blocks"], [["head", 3]], r"space.blocks\[0\]\[1\] is 3, expected text"),
            (["baseline", "latency"], [1], r"baseline.latency is \[1\], expected a number"),
            (["trials", 2, "state"], "done", r"trials\[2\].state is 'done', expected one of running, complete"),
            (["trials", 2, "number"], 1.0, r"trials\[2\].number is 1.0, expected an integer"),
            (["trials", 2, "number"], 1, "expected trials of different numbers"),
            (
                ["trials", 2, "changed"],
                {"haed": "fp32"},
                r"changed is {'haed': 'fp32'}, expected operations and labels",
            ),
            (["trials", 2, "changed"], {"head": "int2"}, "expected operations and labels of the space"),
            (["best"], 9, "best is 9, expected the number of one of the 4 trials"),
            (["best"], "3", "best is '3', expected an integer"),
        ],
    )
    def test_damage_is_found_and_named(self, place, value, message):
        data = result().to_dict()
        *path, last = place
        owner = data
        for key in path:
            owner = owner[key]
        owner[last] = value
        with pytest.raises(ArtifactError, match=message) as caught:
            TuningResult.from_dict(data, "'tuning.json'")
        assert str(caught.value).startswith("'tuning.json'")

    def test_a_missing_key_is_named(self):
        for key in result().to_dict():
            data = result().to_dict()
            del data[key]
            with pytest.raises(ArtifactError, match=f"expected an object with '{key}'"):
                TuningResult.from_dict(data)

    @given(st.data())
    @settings(max_examples=60)
    def test_any_other_value_anywhere_is_taken_or_refused(self, data):
        """Nothing but `ArtifactError` comes out, whatever is put in the place of whatever value."""
        plain = copy.deepcopy(result().to_dict())
        owner, key = plain, data.draw(st.sampled_from(list(plain)))
        while isinstance(owner[key], dict | list) and owner[key] and data.draw(st.integers(0, 3)):
            owner = owner[key]
            key = data.draw(st.sampled_from(list(owner) if isinstance(owner, dict) else range(len(owner))))
        owner[key] = data.draw(
            st.recursive(
                st.none() | st.booleans() | st.integers() | NUMBERS | st.text() | st.just(10**400),
                lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
            )
        )
        try:
            str(TuningResult.from_dict(plain))
        except ArtifactError as error:
            assert "expected" in str(error)

    def test_a_file_that_was_cut_short_is_refused(self, tmp_path):
        path = tmp_path / "tuning.json"
        result().save(path)
        text = path.read_bytes().rstrip()
        for length in range(0, len(text), 97):
            path.write_bytes(text[:length])
            with pytest.raises(ArtifactError, match="damaged or cut short"):
                TuningResult.load(path)

    @pytest.mark.parametrize("text", [b"\xff\xfe", b"[" * 10**5, b"{'a': 1}"], ids=["no text", "deep", "no JSON"])
    def test_other_files_are_refused(self, tmp_path, text):
        path = tmp_path / "tuning.json"
        path.write_bytes(text)
        with pytest.raises(ArtifactError, match=r"tuning\.json' is damaged or cut short"):
            TuningResult.load(path)

    @pytest.mark.parametrize("text", ["[]", "3", '"text"', "null"])
    def test_other_json_is_refused(self, tmp_path, text):
        path = tmp_path / "tuning.json"
        path.write_text(text)
        with pytest.raises(ArtifactError, match=r"the whole is .*, expected an object"):
            TuningResult.load(path)

    def test_what_is_not_there_is_refused(self, tmp_path):
        with pytest.raises(ArtifactError, match=r"cannot be read: No such file .* result\.save\(path\) wrote"):
            TuningResult.load(tmp_path / "tuning.json")
        with pytest.raises(ArtifactError, match="cannot be read"):
            TuningResult.load(tmp_path)


# ------------------------------------------------------------------------------------------- words


class TestDescribed:
    @pytest.mark.parametrize(
        ("choices", "words"),
        [
            ({}, "default"),
            ({"head": MINMAX}, "1 op in int8 asym/minmax: head"),
            (dict.fromkeys(["embeddings", "head"], FP32), "1 op in fp32: embeddings"),
            (
                dict.fromkeys([operation.name for operation in SPACE.operations[1:5]], FP32),
                "4 ops in fp32: encoder.0.intermediate.dense, …",
            ),
            (
                {"encoder.0.output.dense": BF16, "encoder.1.output.dense": FP32, "embeddings": FP32},
                "2 ops in fp32: embeddings, …; 1 op in bf16: encoder.0.output.dense",
            ),
            (
                {"encoder.0.output.dense": BF16, "encoder.1.output.dense": KL, "embeddings": FP32},
                "1 op in fp32; 1 op in bf16; 1 op in int8 asym/kl",
            ),
        ],
    )
    def test_names_what_was_changed(self, choices, words):
        assert described(SPACE, SPACE.of(choices)) == words

    def test_numbers_count_as_changes(self):
        recipe = replace(SPACE.of({"head": MINMAX}), samples=500, alpha=0.7)
        assert described(SPACE, recipe) == (
            "1 op in int8 asym/minmax: head; calibration samples 500; smoothing alpha 0.7"
        )
        assert changes(SPACE, recipe) == {
            "head": "int8 asym/minmax",
            "calibration samples": 500,
            "smoothing alpha": 0.7,
        }

    def test_all_operations_are_not_named(self):
        space = Space(tuple(Operation(name, "Linear", LINEAR) for name in "abc"))
        assert described(space, space.of(dict.fromkeys("abc", KL))) == "all 3 ops in int8 asym/kl"

    def test_a_space_without_choices_is_the_default(self):
        assert described(Space(()), Recipe(())) == "default"


class TestTrialLine:
    BEST = result().trials[2]

    @pytest.mark.parametrize(
        ("trial", "options", "line"),
        [
            (
                result().trials[0],
                {"most": 100},
                "Trial   1/100: default | accuracy 0.7500, goal 0.7920 missed | latency 2.0000 ms",
            ),
            (
                result().trials[2],
                {"most": 9, "remaining": 3725.0},
                "Trial 3/9: 2 ops in fp32: encoder.1.intermediate.dense, … | accuracy 0.7950, goal 0.7920 met | "
                "latency 2.5000 ms | best so far | 1 h 2 min left",
            ),
            (
                result().trials[1],
                {"most": 9, "remaining": -1.0},
                "Trial 2/9: calibration samples 500 | accuracy 0.5000 when it was cut, goal 0.7920 out of reach | "
                "0 s left",
            ),
            (
                result().trials[3],
                {"most": 9, "remaining": 60.2},
                "Trial 4/9: 2 ops in fp32: encoder.1.intermediate.dense, …; smoothing alpha 0.7 | failed | 1 min left",
            ),
            (
                Trial(5, SPACE.default, math.nan, False, {"carbon": 0.0001234}, 1.0),
                {"most": 9},
                "Trial 5/9: default | accuracy n/a, goal 0.7920 missed | carbon 0.0001234",
            ),
        ],
    )
    def test_tells_how_a_trial_did(self, trial, options, line):
        assert trial_line(trial, SPACE, GOAL, self.BEST, **options) == line

    def test_zero_has_no_sign(self):
        trial = Trial(1, SPACE.default, -0.0, is_met=False, objectives={}, seconds=0.0)
        assert "accuracy 0.0000, goal" in trial_line(trial, SPACE, GOAL, None, most=1)

    def test_does_not_speak_of_a_goal_that_is_none(self):
        line = trial_line(result().trials[0], SPACE, Goal(math.nan, -math.inf), None, most=1)
        assert line == "Trial 1/1: default | accuracy 0.7500 | latency 2.0000 ms"


# ------------------------------------------------------------------------------------------- tables


class TestTables:
    def test_operations_by_dtype(self):
        assert lines(str(ops_by_dtype(SPACE, LAST))) == [
            "Operations by dtype",
            " Op Type     Total   INT8   FP32",
            "─────────────────────────────────",
            " Embedding       1      1      0",
            " Linear          5      2      3",
            " all             6      3      3",
        ]

    def test_operations_by_dtype_have_a_column_for_whatever_there_is(self):
        weights, lower = Choice("w4-g32-sym", Mode.WEIGHT_ONLY), Choice("int4", Mode.LOWER)
        ways = (MINMAX, DYNAMIC, BF16, Choice("fp16", Mode.FLOAT16), weights, lower)
        space = Space(tuple(Operation(f"fc{number}", "Linear", (way,)) for number, way in enumerate(ways)))
        assert lines(str(ops_by_dtype(space, space.default))) == [
            "Operations by dtype",
            " Op Type   Total   INT8   BF16   FP16   INT4   W4-G32-SYM",
            "──────────────────────────────────────────────────────────",
            " Linear        6      2      1      1      1            1",
        ]

    def test_tuning_results(self):
        whole = result()
        assert lines(str(tuning_results(GOAL, whole.baseline, whole.best))) == [
            "Tuning result",
            " Info              Baseline   Best (trial 3)",
            "─────────────────────────────────────────────",
            " Accuracy            0.8000           0.7950",
            " Latency (ms)        5.0000           2.5000",
            " Model size (MB)   100.0000          50.1250",
        ]

    def test_tuning_results_of_a_trial(self):
        whole = result()
        first, cut, *_ = whole.trials
        assert tuning_results(GOAL, whole.baseline, None, first).rows == (
            ("Accuracy", "0.8000", "0.7500", "n/a"),
            ("Latency (ms)", "5.0000", "2.0000", "n/a"),
            ("Model size (MB)", "100.0000", "25.0000", "n/a"),
        )
        table = tuning_results(Goal(math.nan, math.nan), {}, whole.best, cut)
        assert table.header == ("Info", "Baseline", "Trial 2", "Best")
        assert table.rows == (
            ("Accuracy", "n/a", "0.5000", "0.7950"),
            ("Latency (ms)", "n/a", "n/a", "2.5000"),
            ("Model size (MB)", "n/a", "n/a", "50.1250"),
        )

    def test_sensitive_operations_begin_with_the_worst(self):
        table = sensitive_operations(SPACE, LAST, result().sensitivity | {"head": math.nan, "gone": 1.0})
        assert lines(str(table)) == [
            "Most sensitive operations",
            " Operation                Best               SNR (dB)",
            "──────────────────────────────────────────────────────",
            " head                     fp32                    n/a",
            " encoder.1.output.dense   fp32                    9.0",
            " encoder.0.output.dense   int8 asym/minmax       31.2",
            " embeddings               int8                   40.0",
        ]
        short = sensitive_operations(SPACE, None, result().sensitivity, most=1)
        assert (short.title, short.header[1], len(short.rows)) == ("Most sensitive operations (1 of 3)", "Default", 1)

    def test_the_whole_is_plain_text(self):
        assert lines(str(result(sensitivity={}))) == [
            "Strategy 'basic' tried 4 recipes, and ended as max_trials=4 is reached.",
            "1 met the goal: accuracy 0.7920 or more; the float model has 0.8000.",
            "Best is trial 3: 2 ops in fp32: encoder.1.intermediate.dense,",
            "encoder.1.output.dense",
            "",
            *lines(str(tuning_results(GOAL, result().baseline, result().best))),
            "",
            *lines(str(ops_by_dtype(SPACE, LAST))),
        ]
        assert "Most sensitive operations" in str(result())

    def test_other_ends_are_told(self):
        missed = replace(result().trials[0])
        assert "Best is trial 1, which misses the goal: default" in str(result(best=missed))
        assert "accuracy 1.5000 or less" in str(result(goal=Goal(1.0, 1.5, higher_is_better=False)))
        assert "No accuracy was asked for." in str(result(goal=Goal(1.0, -math.inf)))
        nothing = str(result(trials=(), best=None))
        assert "tried 0 recipes" in nothing
        assert "Best is" not in nothing

    @given(st.lists(st.text("abc.[]_", min_size=1, max_size=150), min_size=1, max_size=5, unique=True))
    @settings(max_examples=40)
    def test_everything_fits_and_nothing_is_taken_for_markup(self, names):
        space = Space(tuple(Operation(name, "Linear", LINEAR) for name in names))
        best = Trial(1, space.of(dict.fromkeys(names[:1], FP32)), 0.8, True, {"latency": 1.0}, 1.0)
        text = str(result(space=space, trials=(best,), best=best, sensitivity=dict.fromkeys(names, 3.0)))
        assert max(map(len, text.splitlines())) <= 80
        for name in names:
            assert name[:20] in text

    def test_names_in_brackets_are_no_markup(self):
        space = Space((Operation("[b]1[/b]", "Linear", LINEAR),))
        best = Trial(1, space.of({"[b]1[/b]": FP32}), 0.8, True, {}, 1.0)
        text = str(result(space=space, trials=(best,), best=best, sensitivity={"[b]1[/b]": 1.0}))
        assert text.count("[b]1[/b]") == 2
        assert "1 op in fp32: [b]1[/b]" in text

    def test_print_and_rich_show_the_same_words(self, capsys, monkeypatch):
        from rich.console import Console

        monkeypatch.setenv("COLUMNS", "120")
        result().print()
        printed = capsys.readouterr().out
        console = Console(file=io.StringIO(), width=120, force_terminal=True)
        console.print(result())
        for text in (printed, console.file.getvalue()):
            for word in ("Tuning result", "encoder.1.output.dense", "9.0", "50.1250"):
                assert word in text

    def test_html_is_escaped(self):
        space = Space((Operation("<b>&", "Linear", LINEAR),))
        best = Trial(1, space.of({"<b>&": FP32}), 0.8, True, {}, 1.0)
        html = result(space=space, trials=(best,), best=best, sensitivity={"<b>&": 1.0})._repr_html_()
        assert "<b>" not in html
        assert html.count("&lt;b&gt;&amp;") == 2
        assert html.count("<table>") == html.count("</table>") == 3
        assert '<td style="text-align: right">0.8000</td>' in html


# ------------------------------------------------------------------------------------------- picture

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


class TestParetoFront:
    @given(POINTS)
    def test_is_what_nothing_dominates(self, points):
        def dominates(one, other):
            return one[0] >= other[0] and one[1] >= other[1] and one != other

        expected = {index for index, point in enumerate(points) if not any(dominates(other, point) for other in points)}
        front = pareto_front(points)
        assert set(front) == expected
        assert len(front) == len(expected)
        assert [points[index][0] for index in front] == sorted((points[index][0] for index in front), reverse=True)


class TestPlaceTexts:
    @given(st.lists(st.tuples(st.floats(0, 60), st.floats(0, 60), st.integers(1, 99)), max_size=15))
    def test_no_text_covers_another_one_or_leaves_the_frame(self, points):
        texts = [str(number) for *_, number in points]
        places = [(x, y) for x, y, _ in points]
        shifts = place_texts(texts, places, [3.5] * len(texts), (0, 0, 60, 60), (30, 30))
        boxes = []
        for text, (x, y), shift in zip(texts, places, shifts, strict=True):
            if shift is None:
                continue
            width = 5.2 * len(text)
            box = (x + shift[0] - width / 2, y + shift[1] - 4, x + shift[0] + width / 2, y + shift[1] + 4)
            assert min(box) >= 0
            assert max(box) <= 60
            assert not any(box[0] < px < box[2] and box[1] < py < box[3] for px, py in [*places, (30, 30)])
            boxes.append(box)
        for one, other in itertools.combinations(boxes, 2):
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart

    def test_texts_where_there_is_room_stand_right_above(self):
        ((x, y),) = place_texts(["1"], [(50, 50)], [3.5], (0, 0, 100, 100), (0, 0))
        assert 3.5 < x < 12
        assert 3 < y < 12


class TestPlot:
    @pytest.fixture(autouse=True)
    def _needs_matplotlib(self):
        pytest.importorskip("matplotlib")

    @staticmethod
    def drawn(whole: TuningResult):
        (axes,) = whole.plot().axes
        return axes, dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))

    @staticmethod
    def with_trials(points, goal=GOAL, aim=None, **changed):
        trials = tuple(
            Trial(number, SPACE.default, score, goal.is_met(score), {"latency": latency}, 1.0)
            for number, (latency, score) in enumerate(points, start=1)
        )
        aim = aim or Aim.of(["latency"])
        return result(trials=trials, best=choose(trials, aim, goal), goal=goal, aim=aim, **changed)

    def test_shows_what_is_known(self):
        axes, shown = self.drawn(result())
        assert axes.get_title("left") == (
            "Tuning with 'basic': 4 trials, the best is number 3 (2 without a full evaluation not shown)"
        )
        assert axes.get_xlabel() == "Latency (ms), lower is better"
        assert axes.get_ylabel() == "Accuracy, higher is better"
        places = {
            label: [tuple(map(float, place)) for place in shown[label].get_offsets()]
            for label in shown
            if label != "Pareto front"
        }
        assert places == {
            "meets the goal": [(2.5, 0.795)],
            "misses it": [(2.0, 0.75)],
            "best": [(2.5, 0.795)],
            "float model": [(5.0, 0.8)],
        }
        front = shown["Pareto front"]
        assert (list(front.get_xdata()), list(front.get_ydata())) == ([2.0, 2.5], [0.75, 0.795])
        assert front.get_drawstyle() == "steps-post"
        assert [text.get_text() for text in axes.texts] == ["goal\n0.792", "3", "1"]
        assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [0.792]

    @pytest.mark.parametrize("suffix", ["png", "svg"])
    def test_is_saved(self, tmp_path, suffix):
        path = tmp_path / f"tuning.{suffix}"
        figure = result().plot(path)
        assert path.stat().st_size > 10_000
        assert figure.axes

    def test_turns_with_the_directions(self):
        goal = Goal(5.0, 5.5, higher_is_better=False)
        aim = Aim((Term("latency", higher_is_better=True),))
        axes, shown = self.drawn(self.with_trials([(1.0, 5.1), (2.0, 5.2), (1.5, 5.3), (3.0, 5.6)], goal, aim))
        assert axes.get_xlabel() == "Latency (ms), higher is better"
        assert axes.get_ylabel() == "Accuracy, lower is better"
        front = shown["Pareto front"]
        assert list(front.get_xdata()) == [1.0, 2.0, 3.0]
        assert front.get_drawstyle() == "steps-pre"

    def test_what_is_far_off_stands_at_the_edge_with_its_score(self):
        good = [(2.0 + step / 10, 0.79 + step / 1000) for step in range(9)]
        axes, shown = self.drawn(self.with_trials([*good, (2.2, 0.1)], baseline={"latency": 99.0}))
        low, high = axes.get_ylim()
        assert 0.77 < low < high < 0.82
        ((_, y),) = shown["misses it by far"].get_offsets()
        assert low < y < 0.79
        assert axes.get_xlim()[1] < 4
        texts = [text.get_text() for text in axes.texts]
        assert "10 (0.1)" in texts
        assert "99 →" in texts

    def test_many_that_are_far_off_are_shown_as_they_are(self):
        axes, shown = self.drawn(self.with_trials([(2.0, 0.8), (2.1, 0.1), (2.2, 0.2)]))
        assert axes.get_ylim()[0] < 0.1
        assert "misses it by far" not in shown

    def test_without_an_objective_trials_stand_in_their_order(self):
        axes, shown = self.drawn(self.with_trials([(2.0, 0.7), (2.1, 0.8)], aim=Aim.of(["accuracy"]), baseline={}))
        assert axes.get_xlabel() == "Trial"
        assert [tuple(place) for place in shown["best"].get_offsets()] == [(2.0, 0.8)]

    @pytest.mark.parametrize(
        "whole",
        [
            result(trials=(), best=None),
            result(trials=(), best=None, baseline={}, goal=Goal(math.nan, math.nan)),
            result(goal=Goal(0.8, -math.inf), trials=result().trials[:1], best=None),
            result(baseline={}),
            result(best=result().trials[3]),
        ],
        ids=["no trial", "nothing", "no goal", "no baseline", "best failed"],
    )
    def test_draws_what_there_is(self, whole):
        axes, _ = self.drawn(whole)
        assert all(map(math.isfinite, [*axes.get_xlim(), *axes.get_ylim()]))

    @pytest.mark.parametrize("count", [1, 8])
    def test_the_float_model_of_a_few_trials_is_shown_where_it_is(self, count):
        axes, shown = self.drawn(self.with_trials([(2.0 + n / 100, 0.795) for n in range(count)]))
        assert [tuple(place) for place in shown["float model"].get_offsets()] == [(5.0, 0.8)]
        assert axes.get_xlim()[0] < 2 < 5 < axes.get_xlim()[1]

    def test_all_numbers_of_a_few_trials_are_written(self):
        points = [(2.0 + step / 3, 0.70 + step / 50) for step in range(8)]
        axes, _ = self.drawn(self.with_trials(points))
        assert {text.get_text() for text in axes.texts} >= set("12345678")

    def test_leaves_matplotlibs_global_state_alone(self):
        before = "matplotlib.pyplot" in sys.modules
        result().plot()
        assert ("matplotlib.pyplot" in sys.modules) == before


def test_plot_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'inc_torch\[tune\]'"):
        result().plot()
