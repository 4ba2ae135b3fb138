"""What a pipeline refuses, and what it puts right."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import inc_torch
from inc_torch import (
    AccuracyCriterion,
    Callback,
    CompressionReport,
    Pipeline,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    TuningCriterion,
    WeightPruningConfig,
)
from inc_torch.core.errors import (
    ArtifactError,
    ConfigError,
    ConfigTypeError,
    GoalMissedError,
    GoalMissedWarning,
    HookOrderError,
    LoopWarning,
    ModelError,
    StateError,
)
from inc_torch.pipeline import PipelineResult, Quantize, StageResult, Train
from inc_torch.pipeline._zeros import CarriedZeros
from tests.loops.driver import distillation, mlp, pruning, rows


def loop(run) -> None:
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)
    run.restore(optimizer=optimizer)
    run.manager.on_train_begin()
    for index, (inputs, _) in enumerate(rows(3)):
        run.manager.on_step_begin(index)
        run.model(inputs).square().mean().backward()
        run.manager.on_before_optimizer_step()
        optimizer.step()
        run.manager.on_after_optimizer_step()
        optimizer.zero_grad()
        run.save(optimizer=optimizer, step=index + 1)
    run.manager.on_train_end()


PRUNE = Train(pruning(pruning_type="magnitude"), loop)
BATCHES = [inputs for inputs, _ in rows(3)]


def message_of(kind, call) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


class TestStages:
    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: Train([], loop), "Train got an empty list of configs: expected a DistillationConfig"),
            (lambda: Train(loop, pruning()), "Train got confs[0]=<function loop"),
            (
                lambda: Train(PostTrainingQuantConfig(), loop),
                "Train got confs[0]=PostTrainingQuantConfig() of type PostTrainingQuantConfig: expected a "
                "DistillationConfig, WeightPruningConfig, QuantizationAwareTrainingConfig, MixedPrecisionConfig or "
                "Callback. Use a stage Quantize(config, ...).",
            ),
            (lambda: Train([pruning(), WeightPruningConfig], loop), "WeightPruningConfig is a class: give an object"),
            (lambda: Train(pruning(), "loop"), "Train got train='loop' of type str: expected your training loop"),
            (
                lambda: Train(pruning(), loop, name="a/b"),
                "Train.name='a/b': expected letters, digits and any of _ . + -, as it also names a directory.",
            ),
            (lambda: Train(pruning(), loop, name=3), "Train got name=3 of type int: expected a string."),
            (lambda: Quantize(name=".."), "Quantize.name='..': expected letters, digits"),
            (
                lambda: Quantize(pruning()),
                "of type WeightPruningConfig: expected a PostTrainingQuantConfig or None. Use a stage Train(config, "
                "train).",
            ),
            (lambda: Pipeline([]), "Pipeline got an empty list: expected stages, such as Train(config, train)"),
            (lambda: Pipeline(PRUNE), "of type Train: expected a list of stages."),
            (
                lambda: Pipeline([pruning()]),
                "of type WeightPruningConfig: expected Train or Quantize. Put it into a stage: "
                "Train(WeightPruningConfig(...), train).",
            ),
            (
                lambda: Pipeline([PRUNE, PostTrainingQuantConfig()]),
                "Pipeline got stages[1]=PostTrainingQuantConfig() of type PostTrainingQuantConfig: expected Train or "
                "Quantize. Put it into a stage: Quantize(",
            ),
            (lambda: Pipeline([Train]), "expected Train or Quantize. Give an object, not its class."),
            (
                lambda: Pipeline([PRUNE, PRUNE]),
                "Pipeline has 2 stages with the name 'prune': expected a name of its own for each. Give them: "
                "Train(..., name='prune-2').",
            ),
            (
                lambda: Pipeline([Quantize(), PRUNE]),
                "Pipeline has the stage 'prune' behind 'quantize', which makes the model int8: expected that stage to "
                "be the last, as codes can neither be trained nor quantized again. Move it to the end.",
            ),
            (
                lambda: Pipeline([Train(QuantizationAwareTrainingConfig(), loop, name="qat"), Quantize()]),
                "Pipeline has the stage 'quantize' behind 'qat', which makes the model int8",
            ),
        ],
    )
    def test_wrong_ones_are_refused(self, make, words):
        assert words in message_of(ConfigError, make)

    def test_types_are_type_errors(self):
        for wrong in (lambda: Train(3, loop), lambda: Pipeline([3]), lambda: Pipeline(3), lambda: Quantize(3)):
            message_of(ConfigTypeError, wrong)

    def test_names_say_what_is_done(self):
        lock = WeightPruningConfig(pruning_type="pattern_lock")
        both = Train([distillation(mlp(1)), lock, QuantizationAwareTrainingConfig()], loop)
        assert both.name == "distil+lock+quantize"
        assert Train([Callback(), Callback()], loop).name == "train"
        assert repr(Pipeline([PRUNE, Quantize()])) == "Pipeline(['prune', 'quantize'])"

    @pytest.mark.parametrize("model", [None, nn.Linear, "model"])
    def test_a_model_that_is_none(self, model):
        found = message_of(ConfigTypeError, lambda: Pipeline([PRUNE]).fit(model))
        assert found == f"Pipeline.fit got a model of type {type(model).__name__}: expected a torch.nn.Module."

    def test_a_distributed_run(self, monkeypatch):
        monkeypatch.setattr("inc_torch.pipeline._pipeline.Ranks.count", 2)
        assert "in a distributed run: expected one process" in message_of(
            ConfigError, lambda: Pipeline([PRUNE]).fit(mlp())
        )


class TestTraining:
    def fit(self, train, conf=None, directory=None):
        return Pipeline([Train(conf or pruning(pruning_type="magnitude"), train, name="one")]).fit(mlp(), directory)

    def test_a_forgotten_end_is_done(self):
        def train(run):
            run.manager.on_train_begin()
            run.model(torch.ones(2, 12))

        with pytest.warns(LoopWarning, match="stage 'one' did not call run.manager.on_train_end; it is done all"):
            result = self.fit(train, QuantizationAwareTrainingConfig())
        assert type(result.model[0]).__name__ == "Int8Linear"

    def test_a_function_that_does_nothing(self):
        found = message_of(HookOrderError, lambda: self.fit(lambda run: None))
        assert found.startswith("The training function of stage 'one' called no hook of run.manager, so nothing was")

    def test_an_error_names_the_stage_and_ends_the_run(self):
        runs = []

        def train(run):
            runs.append(run)
            run.manager.on_train_begin()
            message = "no more data"
            raise OSError(message)

        with pytest.raises(OSError, match="no more data") as caught:
            self.fit(train)
        assert caught.value.__notes__ == ["In stage 'one', 1 of 1 of the pipeline."]
        assert not runs[0].manager.callbacks.is_training
        assert repr(runs[0]).startswith("TrainingRun('one', CompressionManager(Sequential")

    def test_another_model_is_refused_and_the_same_may_be_returned(self):
        def other(run):
            loop(run)
            return mlp()

        def same(run):
            loop(run)
            return run.model

        assert "returned another Sequential than run.model" in message_of(ModelError, lambda: self.fit(other))
        assert self.fit(same).model[0].weight.count_nonzero() < 12 * 16

    def test_a_wrapped_model(self, tmp_path):
        model = torch.compile(mlp(), backend="eager")
        result = Pipeline([PRUNE, Quantize(calib_dataloader=BATCHES)]).fit(model, tmp_path)
        assert type(result.model[0]).__name__ == "Int8Linear"
        again = Pipeline([PRUNE, Quantize(calib_dataloader=BATCHES)]).fit(mlp(), tmp_path)
        assert again.stages[1].report == result.stages[1].report


class TestSaving:
    def interrupted(self, tmp_path, **things):
        def train(run):
            assert not run.is_resumed
            run.manager.on_train_begin()
            run.save(**things)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Pipeline([Train(pruning(pruning_type="magnitude"), train, name="one")]).fit(mlp(), tmp_path)

    def resumed(self, tmp_path, train):
        return Pipeline([Train(pruning(pruning_type="magnitude"), train, name="one")]).fit(mlp(), tmp_path)

    def test_values_come_back(self, tmp_path):
        values = {"step": 3, "best": 0.5, "losses": [1.0, torch.tensor(2.0)], "names": {"a": ("b", None)}}
        self.interrupted(tmp_path, **values)
        got = {}

        def train(run):
            assert run.is_resumed
            got.update(run.restore())
            loop_without_restore(run)

        self.resumed(tmp_path, train)
        assert got == values

    def test_without_a_directory_nothing_is_kept(self):
        got = []

        def train(run):
            got.append((run.is_resumed, run.restore()))
            run.manager.on_train_begin()
            run.save(step=3)
            run.manager.on_train_end()

        with pytest.warns(inc_torch.core.errors.InexactWarning, match="Pruning reached"):
            Pipeline([Train(pruning(pruning_type="magnitude"), train)]).fit(mlp())
        assert got == [(False, {})]

    @pytest.mark.parametrize(
        ("thing", "words"),
        [
            (object(), "run.save got thing: it is <object"),
            ({"a": [print]}, "run.save got thing['a'][0]: it is <built-in function print> of type builtin"),
        ],
    )
    def test_what_cannot_be_read_again_is_refused_at_once(self, thing, words, tmp_path):
        assert words in message_of(ConfigTypeError, lambda: self.interrupted(tmp_path, thing=thing))
        assert not list(tmp_path.glob("*.pt.*"))

    def test_a_state_with_functions_in_it(self, tmp_path):
        class Odd:
            def state_dict(self):
                return {"f": len}

            def load_state_dict(self, state):
                pass

        found = message_of(ConfigTypeError, lambda: self.interrupted(tmp_path, odd=Odd()))
        assert found.startswith("run.save got odd['f']: the state of it holds <built-in function len>")

    def test_other_objects_than_were_saved(self, tmp_path):
        self.interrupted(tmp_path, optimizer=torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), step=1)

        def train(run):
            run.restore(optimiser=None)

        found = message_of(StateError, lambda: self.resumed(tmp_path, train))
        assert found == (
            "run.restore of stage 'one' got ['optimiser'], and run.save was given the objects ['optimizer']: expected "
            "the same. Plain values are returned, not given."
        )

    def test_a_restore_that_comes_too_late(self, tmp_path):
        def train(run):
            run.manager.on_train_begin()
            run.restore()

        found = message_of(HookOrderError, lambda: self.resumed(tmp_path, train))
        assert found == "run.restore was called after on_train_begin of stage 'one': expected before it."

    def test_nobody_asked_what_was_saved(self, tmp_path):
        self.interrupted(tmp_path, step=1)
        with pytest.warns(LoopWarning, match="Stage 'one' was saved before it was interrupted"):
            self.resumed(tmp_path, loop_without_restore)

    def test_a_loop_that_saves_and_never_asks_is_told_only_where_something_was_lost(self, tmp_path):
        def train(run):
            run.manager.on_train_begin()
            run.save(step=1)
            assert not run.is_resumed
            run.manager.on_train_end()

        with pytest.warns(inc_torch.core.errors.InexactWarning, match="Pruning reached") as caught:
            self.resumed(tmp_path, train)
        assert len(caught) == 1

    def test_a_save_after_the_end(self, tmp_path):
        def train(run):
            loop(run)
            run.save(step=9)

        with pytest.warns(LoopWarning, match="run.save was called after on_train_end of stage 'one'"):
            self.resumed(tmp_path, train)
        assert not (tmp_path / "1-one.pt").exists()


def loop_without_restore(run) -> None:
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)
    run.manager.on_train_begin()
    for index, (inputs, _) in enumerate(rows(3)):
        run.manager.on_step_begin(index)
        run.model(inputs).square().mean().backward()
        run.manager.on_before_optimizer_step()
        optimizer.step()
        run.manager.on_after_optimizer_step()
    run.manager.on_train_end()


class TestDirectory:
    def test_a_file(self, tmp_path):
        (tmp_path / "file").write_text("x")
        found = message_of(ArtifactError, lambda: Pipeline([PRUNE]).fit(mlp(), tmp_path / "file"))
        assert found.endswith("is a file: expected a directory for the pipeline. Give another path.")

    def test_something_else(self, tmp_path):
        (tmp_path / "notes.txt").write_text("x")
        found = message_of(ArtifactError, lambda: Pipeline([PRUNE]).fit(mlp(), tmp_path))
        assert "holds 'notes.txt' and no pipeline.json: expected an empty directory" in found

    def test_a_run_that_was_killed_before_it_was_described(self, tmp_path):
        Pipeline([PRUNE]).fit(mlp(), tmp_path / "run")
        (tmp_path / "new").mkdir()
        (tmp_path / "run" / "start.pt").rename(tmp_path / "new" / "start.pt")
        assert not Pipeline([PRUNE]).fit(mlp(), tmp_path / "new").stages[0].is_loaded

    @pytest.mark.parametrize(
        ("file", "words"),
        [
            ("pipeline.json", "pipeline.json' is damaged or cut short"),
            ("1-prune/stage.json", "stage.json' is damaged or cut short"),
            ("1-prune/model.safetensors", "model.safetensors' is not the file that was saved"),
            ("1-prune/random.pt", "random.pt' is damaged: got "),
        ],
    )
    def test_damage_is_noticed(self, file, words, tmp_path):
        Pipeline([PRUNE]).fit(mlp(), tmp_path)
        (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-9])
        assert words in message_of(ArtifactError, lambda: Pipeline([PRUNE]).fit(mlp(), tmp_path))

    def test_a_stage_that_is_missing(self, tmp_path):
        stages = [PRUNE, Quantize(calib_dataloader=BATCHES)]
        Pipeline(stages).fit(mlp(), tmp_path)
        (tmp_path / "1-prune").rename(tmp_path / "away")
        found = message_of(ArtifactError, lambda: Pipeline(stages).fit(mlp(), tmp_path))
        assert "1-prune' is missing, though a later stage is there." in found

    def test_a_record_without_a_key(self):
        report = CompressionReport.measure(nn.Linear(2, 2)).to_dict()
        assert "damaged: got KeyError('name')" in message_of(ArtifactError, lambda: StageResult.from_dict({}, report))


class TestQuantize:
    def test_a_missed_goal_that_leaves_no_model(self):
        conf = PostTrainingQuantConfig(
            accuracy_criterion=AccuracyCriterion(tolerable_loss=0.0), tuning_criterion=TuningCriterion(on_miss="none")
        )
        scores = iter([1.0] + [0.0] * 100)
        stage = Quantize(conf, calib_dataloader=BATCHES, eval_func=lambda model: next(scores))
        with pytest.warns(GoalMissedWarning), pytest.raises(GoalMissedError) as caught:
            Pipeline([stage]).fit(mlp())
        assert "Stage 'quantize': the accuracy goal was missed" in str(caught.value)

    def test_a_search(self):
        result = Pipeline([PRUNE, Quantize(calib_dataloader=BATCHES, eval_func=lambda model: 1.0)]).fit(mlp())
        assert result.model.tuning.reason.endswith("meets the goal")


class TestZeros:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: nn.Linear(6, 4),
            lambda: nn.Conv2d(4, 6, 3, groups=2),
            lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
            lambda: __import__("transformers").pytorch_utils.Conv1D(4, 6),
            lambda: nn.Embedding(5, 4),
        ],
        ids=["Linear", "Conv2d", "ConvTranspose2d", "Conv1D", "Embedding"],
    )
    def test_they_are_found_again_in_the_codes_of_every_kind_of_layer(self, make):
        torch.manual_seed(0)
        model = nn.Sequential(make())
        weight = model[0].weight
        with torch.no_grad():
            weight.mul_(torch.rand_like(weight) > 0.5)
            weight[weight != 0] += weight[weight != 0].sign()  # so that rounding adds no zero
        zeros = CarriedZeros.of(model, ["0"])
        zeros.require(model, "none")
        data = {"Conv2d": torch.randn(2, 4, 5, 5), "ConvTranspose2d": torch.randn(2, 4, 5, 5)}
        inputs = data.get(type(model[0]).__name__, torch.randn(2, 6))
        inputs = torch.arange(5) if isinstance(model[0], nn.Embedding) else inputs
        int8 = inc_torch.quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=[inputs])
        assert torch.equal(int8[0].qweight == 0, zeros.arranged["0"])
        zeros.require(int8, "none")
        int8[0].qweight[zeros.arranged["0"].nonzero(as_tuple=True)] = 1
        found = message_of(ModelError, lambda: zeros.require(int8, "last"))
        count = int(zeros.masks["0"].sum())
        assert found.startswith(f"Stage 'last' lost {count} of the {count} zeros in layer '0' that an earlier stage")

    def test_packed_codes(self):
        model = nn.Sequential(nn.Linear(32, 4))
        with torch.no_grad():
            model[0].weight[:, ::2] = 0
        zeros = CarriedZeros.of(model, ["0"])
        packed = inc_torch.quantization.fit(model, PostTrainingQuantConfig(approach="weight_only"))
        assert torch.equal(packed[0].signed_codes()[zeros.masks["0"]], torch.zeros(64, dtype=torch.int32))
        zeros.require(packed, "none")
        packed[0].qweight.fill_(0x11111111)
        assert message_of(ModelError, lambda: zeros.require(packed, "last")).startswith(
            "Stage 'last' lost 64 of the 64"
        )

    def test_a_layer_that_is_gone(self):
        model = nn.Sequential(nn.Linear(4, 4))
        with torch.no_grad():
            model[0].weight[0] = 0
        zeros = CarriedZeros.of(model, ["0"])
        found = message_of(ModelError, lambda: zeros.require(nn.ReLU(), "cut"))
        assert found.startswith("Stage 'cut' left no layer '0', whose 4 zeros it was to keep.")


class TestResult:
    def result(self) -> PipelineResult:
        return Pipeline([PRUNE, Quantize(calib_dataloader=BATCHES)]).fit(mlp())

    def test_it_fits_a_terminal(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        result = self.result()
        result.print()
        for text in (str(result), capsys.readouterr().out):
            assert max(map(len, text.splitlines())) <= 80
            assert re.search(r"prune +3 +\d+\.\d s +50\.0% +- +\d\.\d kB", text)
            assert re.search(r"quantize +- +\d+\.\d s +50\.0% +3/3 +\d\.\d kB", text)
        assert str(result).isascii()
        assert repr(result) == "PipelineResult(Sequential, ['prune', 'quantize'])"

    def test_plain_values(self):
        stages = self.result().to_dict()["stages"]
        assert [stage["name"] for stage in stages] == ["prune", "quantize"]
        assert stages[0]["report"]["modules"][0]["pattern"] == "4x1"
