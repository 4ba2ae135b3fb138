"""Phases on one clock: float, rounded, frozen; the same after a resume, under accumulation and in a graph."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inc_torch import Callback, QuantizationAwareTrainingConfig, WeightPruningConfig, prepare_compression
from inc_torch.core.errors import CalibrationError, ConfigError, InexactWarning
from inc_torch.core.hooks import Phase
from inc_torch.quantizers import observer_state
from tests.composition.test_resume import Case, check_every_cut
from tests.loops.driver import ConvNet, confs_of, images, pruning, train


def graph_net() -> nn.Sequential:
    """One graph: batch normalization is folded, and something stays in int8 between layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    )


def quantization(**options) -> QuantizationAwareTrainingConfig:
    return QuantizationAwareTrainingConfig(**options)


class Watch(Callback):
    """Notes for each optimizer step what the model rounds, and its loss."""

    def __init__(self) -> None:
        self.shares, self.losses, self.folded = [], [], []

    def on_after_compute_loss(self, input, student_output, student_loss, teacher_output=None):
        self.losses.append(student_loss.item())
        self.shares.append(self.manager.metrics()["fake_quant"])
        return student_loss

    def on_after_optimizer_step(self) -> None:
        self.folded.append(max(int(seen["steps"]) for seen in observer_state(self.model).values()))


def watched(model, *confs):
    watch = Watch()
    watch.manager = prepare_compression(model, [*confs, watch])
    return watch, watch.manager


@pytest.mark.parametrize("make", [ConvNet, graph_net], ids=["by layer", "graph"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_the_float_training_until_the_start_and_rounds_from_there(make, accumulate):
    watch, manager = watched(make(), quantization(start_step=2))
    optimizer = torch.optim.AdamW(manager.model.parameters(), lr=0.01)
    states = []
    manager.register_hook("on_after_optimizer_step", lambda: states.append(copy.deepcopy(manager.model.state_dict())))
    train(manager, optimizer, images(5 * accumulate), accumulate=accumulate)

    plain = make()
    reference = prepare_compression(plain, Callback())
    plain_states = []
    reference.register_hook("on_after_optimizer_step", lambda: plain_states.append(copy.deepcopy(plain.state_dict())))
    train(reference, torch.optim.AdamW(plain.parameters(), lr=0.01), images(5 * accumulate), accumulate=accumulate)

    for ours, theirs in zip(states[:2], plain_states[:2], strict=True):
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert not all(torch.equal(states[2][name], tensor) for name, tensor in plain_states[2].items())
    # Before the first fold inputs pass as they are, so only what has no range of its own rounds in step 2.
    assert watch.shares == [0.0] * 3 * accumulate + [1.0] * 2 * accumulate
    assert watch.folded == [0, 0, 1, 2, 3]
    assert type(manager.model[0] if make is graph_net else manager.model.conv).__name__ == "Int8Conv2d"


@pytest.mark.filterwarnings("default")  # torch.compile trips over deprecations of torch's own
def test_a_compiled_model_enters_the_phase_too():
    def run(wrap):
        model = ConvNet()
        model.dropout.p = 0.0
        manager = prepare_compression(wrap(model), quantization(start_step=2, graph="off"))
        train(manager, torch.optim.AdamW(model.parameters(), lr=0.01), images(4))
        return model.state_dict()

    compiled, plain = run(lambda model: torch.compile(model, backend="eager")), run(lambda model: model)
    assert all(torch.allclose(tensor.float(), plain[name].float(), atol=2) for name, tensor in compiled.items())
    assert (compiled["conv.weight_scale"] - plain["conv.weight_scale"]).abs().max() < 1e-6


def test_weights_are_rounded_in_the_first_rounded_step_and_not_before():
    model = ConvNet()
    manager = prepare_compression(model, quantization(start_step=1, graph="off"))
    x, labels = next(images(1))
    plain = copy.deepcopy(model.head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager.on_train_begin()
    hidden = torch.randn(3, 16)
    assert torch.equal(model.head(hidden), nn.Linear.forward(plain, hidden))
    manager.on_step_begin(0)
    F.cross_entropy(model(x), labels).backward()
    manager.on_before_optimizer_step()
    optimizer.step()
    manager.on_after_optimizer_step()
    manager.on_step_begin(1)
    floated = F.linear(hidden, model.head.weight, model.head.bias)
    assert not torch.equal(model.head(hidden), floated)
    assert torch.allclose(model.head(hidden), floated, atol=0.02)


@pytest.mark.parametrize("hooks", ["all", "none"])
def test_a_loop_without_hooks_enters_the_phase_at_the_same_step(hooks):
    def run(names):
        model = ConvNet()
        manager = prepare_compression(model, quantization(start_step=2))
        train(manager, torch.optim.AdamW(model.parameters(), lr=0.01), images(4), hooks=names)
        return model.state_dict()

    every = {"on_train_begin", "on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step", "on_step_end"}
    ends = {"on_train_begin", "on_train_end"}
    ours, theirs = run(every | ends), run(ends)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_step_that_the_scaler_skips_does_not_bring_the_rounding_nearer():
    model = ConvNet()
    manager = prepare_compression(model, quantization(start_step=1))
    x, labels = next(images(1))
    manager.on_train_begin()
    for index in range(2):
        manager.on_step_begin(index)
        assert manager.metrics() == {"fake_quant": 0.0}
        assert not model.conv._fake_quant
        F.cross_entropy(model(x), labels).backward()
        manager.on_before_optimizer_step()  # and the optimizer does not step
        manager.on_after_optimizer_step()
    assert int(observer_state(model)["conv"]["steps"]) == 0


def test_what_a_skipped_step_saw_too_early_does_not_count():
    """A loop that does not say when a step begins rounds one forward too early; its ranges are not kept."""
    model = ConvNet()
    manager = prepare_compression(model, quantization(start_step=1, graph="off"))
    x, labels = next(images(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager.on_train_begin()
    manager.on_before_optimizer_step()  # and the optimizer does not step
    manager.on_after_optimizer_step()
    for scale in (100, 1):
        F.cross_entropy(model(x * scale), labels).backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
    assert observer_state(model)["conv"]["range"].tolist() == [x.min().item(), x.max().item()]


def test_a_run_cut_between_the_hooks_around_a_step_is_in_the_next_phase_after_it():
    def halfway(model):
        manager = prepare_compression(model, quantization(start_step=1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, labels = next(images(1))
        manager.on_train_begin()
        manager.on_step_begin(0)
        F.cross_entropy(model(x), labels).backward()
        manager.on_before_optimizer_step()
        return manager, optimizer

    first, _ = halfway(ConvNet())
    model = ConvNet()
    manager = prepare_compression(model, quantization(start_step=1))
    manager.load_state_dict(first.state_dict())
    manager.on_train_begin()
    assert not model.conv._fake_quant
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    manager.on_after_optimizer_step()
    assert model.conv._fake_quant


@pytest.mark.parametrize("start", [1, 2])
@pytest.mark.parametrize("make", [ConvNet, graph_net], ids=["by layer", "graph"])
def test_a_run_cut_in_any_phase_goes_on_bit_for_bit(make, start):
    def confs():
        frozen = {"freeze_observers_step": start + 1, "freeze_batch_norm_step": start}
        return [quantization(start_step=start, **frozen), pruning(end_step=1)]

    check_every_cut(Case(make, confs, images))


def test_an_older_state_takes_the_rounding_back():
    model = ConvNet()
    manager = prepare_compression(model, quantization(start_step=1))
    older = manager.state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager.on_train_begin()
    for index, (x, labels) in enumerate(images(2)):
        manager.on_step_begin(index)
        F.cross_entropy(model(x), labels).backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
    assert model.conv._fake_quant
    manager.load_state_dict(older)
    manager.on_step_begin(0)
    assert not model.conv._fake_quant
    assert not model.conv._observing


@pytest.mark.parametrize("steps", [0, 2, 3])
def test_a_training_that_ends_before_is_an_error_and_may_go_on(steps):
    model = ConvNet()
    manager = prepare_compression(model, quantization(start_step=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager.on_train_begin()

    def run(count):
        for x, labels in images(count):
            manager.on_step_begin(0)
            F.cross_entropy(model(x), labels).backward()
            manager.on_before_optimizer_step()
            optimizer.step()
            manager.on_after_optimizer_step()

    run(steps)
    with pytest.raises(CalibrationError) as caught:
        manager.on_train_end()
    assert str(caught.value) == (
        f"QuantizationAwareTrainingConfig.start_step=3: the training ended after {steps} optimizer steps, before one "
        "of them was rounded, so no range of inputs is known and the model cannot become int8. Train on for more steps "
        "than that before on_train_end, or give a smaller start_step."
    )
    assert type(model.conv).__name__ == "FakeQuantConv2d"
    assert not manager.has_reached_goal()
    run(4 - steps)
    assert manager.has_reached_goal()
    manager.on_train_end()
    assert type(model.conv).__name__ == "Int8Conv2d"


def test_ranges_that_nothing_needs_make_it_a_warning():
    model = nn.Sequential(nn.Embedding(8, 4))
    manager = prepare_compression(model, quantization(start_step=3))
    manager.on_train_begin()
    model(torch.arange(8))
    with pytest.warns(InexactWarning, match="start_step=3: the training ended after 0 .* without having learnt to be"):
        manager.on_train_end()
    assert type(model[0]).__name__ == "Int8Embedding"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"start_step": -1},
            "QuantizationAwareTrainingConfig.start_step=-1: expected an integer, 0 or more.",
        ),
        (
            {"start_step": 5, "freeze_observers_step": 5},
            "QuantizationAwareTrainingConfig.freeze_observers_step=5: expected 6 or more, as start_step=5 is the "
            "first that rounds, or None.",
        ),
        (
            {"start_step": 5, "freeze_batch_norm_step": 4},
            "QuantizationAwareTrainingConfig.freeze_batch_norm_step=4: expected 5 or more, as start_step=5 is the "
            "first that rounds, or None.",
        ),
    ],
)
def test_wrong_steps_are_refused(options, message):
    with pytest.raises(ConfigError) as caught:
        quantization(**options)
    assert str(caught.value) == message


def test_a_typing_error_is_recognized():
    with pytest.raises(ConfigError, match=r"has no option 'start_stp'\. Did you mean 'start_step'\?"):
        quantization(start_stp=3)


class TestPlan:
    def plan(self, *confs, steps=None):
        return prepare_compression(ConvNet(), list(confs)).plan(steps)

    def test_phases_of_all_in_the_order_of_their_begin(self):
        plan = self.plan(
            quantization(start_step=8, freeze_observers_step=20, freeze_batch_norm_step=30),
            WeightPruningConfig(target_sparsity=0.75, start_step=2, end_step=8),
        )
        assert plan.phases == (
            Phase("pruning", "4x1 to 75 %", 2, 8),
            Phase("quantization", "int8 rounding", 8),
            Phase("pruning", "masks locked", 9),
            Phase("quantization", "ranges of inputs frozen", 20),
            Phase("quantization", "batch norm frozen", 30),
        )
        assert plan.notes == ()
        assert plan.to_dict()["phases"][0] == {"technique": "pruning", "what": "4x1 to 75 %", "begin": 2, "end": 8}

    def test_a_lock_and_callbacks_of_the_user(self):
        class Own(Callback):
            def phases(self):
                return [Phase("own", "something with a very long name, longer than the column", 3, 4)]

        plan = self.plan(WeightPruningConfig(pruning_type="pattern_lock"), Own(), Callback())
        assert plan.phases[0].what == "zeros locked"
        assert "something with a very long ..." in str(plan)

    def test_the_order_of_the_configs_does_not_matter(self):
        assert self.plan(*confs_of("pq", None)).notes == self.plan(*confs_of("qp", None)).notes

    def test_what_a_short_training_does_not_reach(self):
        late = quantization(start_step=50)
        pruner = WeightPruningConfig(end_step=20)
        assert self.plan(late, pruner, steps=10).notes == (
            "Cut short, as the last step is 9: 4x1 to 90 % (to 20).",
            "Never reached, as the last step is 9: int8 rounding (from 50).",
        )
        assert self.plan(late, pruner, steps=51).notes == ()
        assert self.plan(late, pruner, steps=21).notes == (
            "Never reached, as the last step is 20: int8 rounding (from 50).",
        )
        assert self.plan(pruner, steps=20).notes[0].startswith("Cut short")
        assert self.plan(pruner, steps=21).notes == ()

    def test_ranges_of_weights_that_are_still_pruned(self):
        pruner = WeightPruningConfig(end_step=20)
        assert self.plan(pruner, quantization(start_step=20, freeze_observers_step=21)).notes == ()
        (early,) = self.plan(pruner, quantization(start_step=19)).notes
        assert early.startswith("Rounding begins at step 19, and masks change until step 20")
        assert "QuantizationAwareTrainingConfig(start_step=20) waits for the last masks." in early
        notes = self.plan(pruner, quantization(freeze_observers_step=20, freeze_batch_norm_step=20)).notes
        assert [note.partition(" ")[0] for note in notes] == ["Rounding", "Ranges", "Statistics"]
        assert notes[1].endswith("freeze_observers_step=21 or more.")
        # One shot, and a lock, change nothing that is learnt.
        assert self.plan(WeightPruningConfig(), quantization(freeze_batch_norm_step=0)).notes == ()
        assert self.plan(WeightPruningConfig(pruning_type="pattern_lock"), quantization()).notes == ()

    @pytest.mark.parametrize("steps", [None, 1, 60, 100_000])
    def test_it_fits_a_terminal(self, steps, monkeypatch, capsys):
        monkeypatch.setenv("COLUMNS", "80")
        plan = self.plan(
            pruning(start_step=10, end_step=50),
            quantization(start_step=40, freeze_observers_step=45, freeze_batch_norm_step=70),
            steps=steps,
        )
        plan.print()
        shown = capsys.readouterr().out
        for text in (str(plan), shown):
            lines = text.splitlines()
            assert max(map(len, lines)) <= 80
            assert any("int8 rounding" in line and "40 - end" in line for line in lines)
        assert str(plan).isascii()
        assert "━" in shown or steps == 1

    def test_without_a_number_there_is_no_axis(self):
        assert str(self.plan(quantization())) == (
            "technique     phase          steps\n"
            "------------  -------------  -------\n"
            "quantization  int8 rounding  0 - end"
        )
        assert (
            str(prepare_compression(ConvNet(), Callback()).plan()) == "technique  phase  steps\n---------  -----  -----"
        )

    @pytest.mark.parametrize("steps", [0, -1, 1.5, True, "10"])
    def test_a_wrong_number_of_steps(self, steps):
        with pytest.raises(ConfigError, match=r"CompressionManager.plan got steps=.*: expected a number of optimizer"):
            self.plan(quantization(), steps=steps)
