"""Several stages: each on the model that the one before left, zeros kept, and a killed run that goes on bit for bit."""

from __future__ import annotations

import itertools
import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import inc_torch
from inc_torch import (
    CompressionReport,
    Pipeline,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
)
from inc_torch.core.errors import ModelError, StateError
from inc_torch.pipeline import Quantize, Train
from tests.composition.test_resume import same, scramble, seed
from tests.loops.driver import ConvNet, assert_equal_states, distillation, images, pruning

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4


class Killed(BaseException):
    """The process ends here."""


class Loop:
    """A training function that saves after every step, and may be killed at one of all its steps."""

    def __init__(self, kill_at: int | None = None, save: bool = True) -> None:
        self.kill_at, self.save, self.done, self.runs = kill_at, save, 0, []

    def __call__(self, run) -> None:
        optimizer = torch.optim.AdamW(run.model.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2])
        first = run.restore(optimizer=optimizer, scheduler=scheduler).get("step", 0)
        self.runs.append((run.name, first))
        manager = run.manager
        manager.on_train_begin()
        run.model.train()
        for index, (inputs, labels) in itertools.islice(enumerate(images(STEPS)), first, None):
            manager.on_step_begin(index)
            noise = torch.rand(())  # the loop's own randomness
            output = run.model(inputs)
            manager.on_after_compute_loss(inputs, output, F.cross_entropy(output, labels) * (1 + noise)).backward()
            manager.on_before_optimizer_step()
            optimizer.step()
            manager.on_after_optimizer_step()
            scheduler.step()
            optimizer.zero_grad()
            manager.on_step_end()
            if self.save and index % 2 == 0:
                run.save(optimizer=optimizer, scheduler=scheduler, step=index + 1)
            self.done += 1
            if self.done == self.kill_at:
                raise Killed
        manager.on_train_end()


def calibration() -> list[torch.Tensor]:
    return [inputs for inputs, _ in images(3)]


SHOTS = {
    "S35 prune, then quantize": ("p", "i"),
    "S36 distil, then quantize": ("d", "i"),
    "S37 distil, prune, then quantize": ("d", "p", "i"),
    "prune, distil, then quantize": ("p", "d", "i"),
    "prune, then distil and quantize": ("p", "dq"),
    "prune, then prune more": ("p", "m"),
}


def stages_of(letters: tuple[str, ...], loop: Loop, **options):
    teacher = ConvNet(1)
    made = {
        "p": lambda: Train(pruning(), loop, **options),
        "m": lambda: Train(pruning(target_sparsity=0.75), loop, name="more", **options),
        "d": lambda: Train(distillation(teacher), loop, **options),
        "dq": lambda: Train([distillation(teacher), QuantizationAwareTrainingConfig()], loop, **options),
        "i": lambda: Quantize(PostTrainingQuantConfig(), calib_dataloader=calibration(), **options),
    }
    return [made[letter]() for letter in letters]


def fitted(letters, directory=None, loop=None, **options):
    loop = loop or Loop()
    return Pipeline(stages_of(letters, loop, **options)).fit(ConvNet(), directory)


@pytest.mark.parametrize("shot", SHOTS.values(), ids=list(SHOTS))
def test_shots(shot, tmp_path):
    model = ConvNet()
    result = Pipeline(stages_of(shot, Loop())).fit(model, tmp_path / "run")
    assert list(result.reports) == [stage.name for stage in result.stages]
    assert (result.model is model) == (shot[-1] != "i")
    assert not result.model.training
    is_int8 = shot[-1] in {"i", "dq"}
    assert (type(result.model.conv).__name__ == "Int8Conv2d") == is_int8
    if "p" in shot:
        assert result.reports["prune"].sparsity == 0.5
        modules = [result.model.get_submodule(name) for name in ("conv", "hidden")]
        weights = [module.qweight if is_int8 else module.weight for module in modules]
        assert sum(int((weight == 0).sum()) for weight in weights) >= 0.5 * sum(map(torch.numel, weights))
    if shot[-1] == "m":
        assert result.reports["more"].sparsity == 136 / 182  # of 182 blocks
        assert result.stages[-1].locked == ()
    # Reports are JSON on disk, and each stage is a directory that load opens.
    last = result.stages[-1]
    place = tmp_path / "run" / f"{len(shot)}-{last.name}"
    assert CompressionReport.from_dict(json.loads((place / "report.json").read_text())) == last.report
    loaded = inc_torch.load(place, model=ConvNet(7))
    assert_equal_states(loaded.state_dict(), result.model.state_dict())
    x = next(images(1))[0]
    with torch.no_grad():
        assert torch.equal(loaded(x), result.model(x))
        assert torch.equal(pickle.loads(pickle.dumps(result.model))(x), result.model(x))


@pytest.mark.parametrize("letters", [("p", "d", "i"), ("p", "dq")])
def test_zeros_of_a_stage_are_zeros_of_all_that_follow(letters):
    zeros = {}

    class Noting(Loop):
        def __call__(self, run):
            super().__call__(run)
            if run.name == "prune":
                weights = {name: run.model.get_submodule(name).weight for name in ("conv", "hidden")}
                zeros.update({name: weight.detach() == 0 for name, weight in weights.items()})
            else:
                assert {"zeros locked"} <= {note for row in run.manager.report().modules for note in row.notes}
                assert "zeros locked" in str(run.manager.plan())

    result = fitted(letters, loop=Noting())
    assert sum(int(zero.sum()) for zero in zeros.values()) == 364
    for name, zero in zeros.items():
        assert not result.model.get_submodule(name).qweight[zero].any(), name
    assert set(result.stages[1].locked) == {"conv", "hidden"}
    assert "zeros of 2 layers locked" in str(result)


def test_keep_zeros_false_lets_them_go():
    result = fitted(("p", "d"), keep_zeros=False)
    assert result.stages[1].locked == ()
    assert result.model.conv.weight.count_nonzero() > 0.9 * result.model.conv.weight.numel()


def test_layers_that_a_stage_prunes_itself_are_not_locked_and_others_are():
    more = Train(pruning(target_sparsity=0.75, op_names=["hidden"]), Loop(), name="more")
    result = Pipeline([*stages_of(("p",), Loop()), more]).fit(ConvNet())
    assert result.stages[1].locked == ("conv",)
    later = Train(distillation(ConvNet(1)), Loop())
    result = Pipeline([*stages_of(("p",), Loop()), more, later]).fit(ConvNet())
    assert set(result.stages[2].locked) == {"conv", "hidden"}


def test_zeros_that_the_quantization_loses_are_an_error(monkeypatch):
    def losing(model, **_):
        made = inc_torch.quantization.fit(model, PostTrainingQuantConfig(approach="post_training_dynamic_quant"))
        made.hidden.qweight.add_(1)
        return made

    monkeypatch.setattr("inc_torch.pipeline._pipeline.quantize", losing)
    with pytest.raises(
        ModelError, match=r"Stage 'quantize' lost \d+ of the \d+ zeros in layer 'hidden' that an"
    ) as told:
        fitted(("p", "i"))
    assert told.value.__notes__ == ["In stage 'quantize', 2 of 2 of the pipeline."]
    assert fitted(("p", "i"), keep_zeros=False).stages[-1].name == "quantize"


class TestResuming:
    """A run that is killed and begun again in fresh objects is the run that was not."""

    def whole(self, letters, directory=None):
        seed()
        return fitted(letters, directory)

    def check(self, result, expected):
        assert_equal_states(result.model.state_dict(), expected.model.state_dict())
        assert [stage.report for stage in result.stages] == [stage.report for stage in expected.stages]
        assert [stage.locked for stage in result.stages] == [stage.locked for stage in expected.stages]
        same([stage.steps for stage in result.stages], [stage.steps for stage in expected.stages])

    @pytest.mark.parametrize("letters", [("d", "p", "i"), ("p", "dq"), ("p", "m")])
    def test_a_directory_changes_nothing(self, letters, tmp_path):
        self.check(self.whole(letters, tmp_path), self.whole(letters))

    @pytest.mark.parametrize("kill_at", range(1, 2 * STEPS + 1))
    @pytest.mark.parametrize("letters", [("d", "p", "i"), ("p", "dq")])
    def test_killed_at_any_step(self, letters, kill_at, tmp_path):
        expected = self.whole(letters)
        seed()
        with pytest.raises(Killed):
            fitted(letters, tmp_path, Loop(kill_at))
        scramble()
        loop = Loop()
        self.check(fitted(letters, tmp_path, loop), expected)
        # What was through is not run again, the other goes on from the last save.
        through, within = divmod(kill_at - 1, STEPS)
        assert len(loop.runs) == 2 - through
        assert loop.runs[0][1] == (within + 2) // 2 * 2 - 1

    def test_killed_again_and_again(self, tmp_path):
        letters = ("d", "p", "i")
        expected = self.whole(letters)
        seed()
        for _ in range(10):
            try:
                result = fitted(letters, tmp_path, Loop(kill_at=2))
            except Killed:
                scramble()
            else:
                break
        self.check(result, expected)

    def test_without_a_save_a_stage_begins_again_with_the_same_random_numbers(self, tmp_path):
        expected = self.whole(("p", "d"))
        seed()
        for kill_at in (3, STEPS + 1):
            with pytest.raises(Killed):
                fitted(("p", "d"), tmp_path, Loop(kill_at, save=False))
            scramble()
        self.check(fitted(("p", "d"), tmp_path, Loop(save=False)), expected)

    @pytest.mark.parametrize("part", ["model.safetensors", "compression.json", "stage.json", "random.pt"])
    def test_killed_while_a_stage_is_kept(self, part, tmp_path, monkeypatch):
        """What is half written is not taken for whole."""
        letters = ("p", "d")
        expected = self.whole(letters)
        replace = Path.replace

        def cut(path, target):
            if Path(target).name == part and "1-prune" in str(target):
                raise Killed
            return replace(path, target)

        seed()
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Path, "replace", cut)
            fitted(letters, tmp_path)
        assert not (tmp_path / "1-prune").exists()
        scramble()
        loop = Loop()
        self.check(fitted(letters, tmp_path, loop), expected)
        assert loop.runs[0] == ("prune", 3)

    def test_a_finished_run_is_only_loaded(self, tmp_path):
        expected = self.whole(("d", "p", "i"), tmp_path)
        loop = Loop()
        again = fitted(("d", "p", "i"), tmp_path, loop)
        assert loop.runs == []
        self.check(again, expected)
        assert all(stage.is_loaded for stage in again.stages)
        assert "loaded" in str(again)
        x = next(images(1))[0]
        with torch.no_grad():
            assert torch.equal(again.model(x), expected.model(x))
        assert not list(tmp_path.glob("*.pt.*"))
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "1-distil",
            "2-prune",
            "3-quantize",
            "pipeline.json",
            "start.pt",
        ]

    @pytest.mark.parametrize("kill_at", range(1, 6))
    def test_killed_while_gradients_are_accumulated(self, kill_at, tmp_path):
        """Six micro-batches make three steps; the run is saved after each of them."""

        def looping(kill_at=None):
            def train(run):
                manager, model = run.manager, run.model
                optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
                first = run.restore(optimizer=optimizer).get("batch", 0)
                manager.on_train_begin()
                for index, (inputs, labels) in itertools.islice(enumerate(images(6)), first, None):
                    manager.on_step_begin(index)
                    F.cross_entropy(model(inputs), labels).backward()
                    if index % 2:
                        manager.on_before_optimizer_step()
                        optimizer.step()
                        manager.on_after_optimizer_step()
                        optimizer.zero_grad()
                    manager.on_step_end()
                    run.save(optimizer=optimizer, batch=index + 1)
                    if index + 1 == kill_at:
                        raise Killed
                manager.on_train_end()

            return [Train([pruning(end_step=1), QuantizationAwareTrainingConfig(start_step=1)], train)]

        seed()
        expected = Pipeline(looping()).fit(ConvNet())
        seed()
        with pytest.raises(Killed):
            Pipeline(looping(kill_at)).fit(ConvNet(), tmp_path)
        scramble()
        self.check(Pipeline(looping()).fit(ConvNet(), tmp_path), expected)

    def test_the_modes_of_the_model_are_the_same_in_each_stage(self, tmp_path):
        seen = []

        def look(run):
            model = run.model
            seen.append((model.training, model.norm.training, model.head.bias.requires_grad, model.conv.weight.grad))
            model.train()
            model.head.bias.requires_grad_(True)
            Loop(save=False)(run)
            model.conv.weight.sum().backward()

        model = ConvNet()
        model.norm.eval()
        model.head.bias.requires_grad_(False)
        stages = [Train(pruning(), look, name="one"), Train(distillation(ConvNet(1)), look, name="two")]
        Pipeline(stages).fit(model)
        assert seen == [(True, False, False, None)] * 2


PROGRAM = """
import os, signal, sys
import torch
from tests.composition.test_pipeline import Loop, fitted
from tests.composition.test_resume import seed

class Dying(Loop):
    def __call__(self, run):
        if int(sys.argv[2]):
            run.manager.register_hook("on_step_end", self.look)
        super().__call__(run)

    def look(self):
        if self.done + 1 == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

seed()
result = fitted(("p", "dq"), sys.argv[1] or None, Dying())
torch.save(result.model.state_dict(), sys.argv[3])
"""


def test_a_process_that_is_killed_goes_on_in_another(tmp_path):
    def run(directory: str, kill_at: int) -> int:
        command = [sys.executable, "-c", PROGRAM, directory, str(kill_at), str(tmp_path / "weights.pt")]
        return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, timeout=120).returncode

    assert run(str(tmp_path / "run"), STEPS + 3) == -signal.SIGKILL
    assert run(str(tmp_path / "run"), 0) == 0
    seed()
    expected = fitted(("p", "dq")).model.state_dict()
    assert_equal_states(torch.load(tmp_path / "weights.pt", weights_only=True), expected)


class TestAnotherPipeline:
    def refused(self, stages, model, tmp_path):
        with pytest.raises(StateError) as caught:
            Pipeline(stages).fit(model, tmp_path)
        return str(caught.value)

    def test_other_configs_names_or_weights(self, tmp_path):
        fitted(("p",), tmp_path)
        start = f"{str(tmp_path)!r} is of another pipeline: "
        end = ". Give another directory, or remove this one to begin anew."
        loop = Loop()
        other = [Train(pruning(target_sparsity=0.75), loop)]
        found = self.refused(other, ConvNet(), tmp_path)
        assert found == f"{start}stages[0].configs[0].data.target_sparsity: saved 0.5, now 0.75{end}"
        found = self.refused([Train(pruning(), loop, name="thin")], ConvNet(), tmp_path)
        assert found == f"{start}stages[0].name: saved 'prune', now 'thin'{end}"
        found = self.refused(stages_of(("p", "i"), loop), ConvNet(), tmp_path)
        assert found == f"{start}stages: saved ['prune'], now ['prune', 'quantize']{end}"
        found = self.refused([Train(pruning(), loop, keep_zeros=False)], ConvNet(), tmp_path)
        assert found == f"{start}stages[0].keep_zeros: saved True, now False{end}"
        found = self.refused(stages_of(("p",), loop), ConvNet(3), tmp_path)
        assert found.startswith(f"{start}model.weights: saved '")
        way_out = (
            "Build the model with the weights that the run began with. Or give another directory, or remove this one"
        )
        assert found.endswith(f"{way_out} to begin anew.")
        assert loop.runs == []

    def test_another_teacher(self, tmp_path):
        fitted(("d",), tmp_path)
        found = self.refused([Train(distillation(ConvNet(2)), Loop())], ConvNet(), tmp_path)
        assert "stages[0].teachers[0]: saved '" in found


def test_hugging_face_trainer(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    from inc_torch import INCCallback

    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    generator = torch.Generator().manual_seed(1)
    rows = [
        {"input_ids": torch.randint(0, 30, (6,), generator=generator), "labels": torch.tensor(index % 2)}
        for index in range(8)
    ]

    def train(run):
        arguments = TrainingArguments(
            str(tmp_path / run.name),
            per_device_train_batch_size=4,
            max_steps=3,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(run.model, arguments, train_dataset=rows, callbacks=[INCCallback(run.manager)]).train()

    lock = WeightPruningConfig(target_sparsity=0.5, pruning_type="magnitude", end_step=1, start_step=1)
    calibration = [{key: value.unsqueeze(0) for key, value in row.items()} for row in rows]
    stages = [Train(lock, train), Quantize(calib_dataloader=calibration)]
    result = Pipeline(stages).fit(BertForSequenceClassification(config), tmp_path / "run")
    assert result.reports["prune"].sparsity == 0.5
    assert result.stages[0].steps == 3
    assert type(result.model.bert.encoder.layer[0].attention.self.query).__name__ == "Int8Linear"
    assert (tmp_path / "run" / "2-quantize" / "model.safetensors").exists()
