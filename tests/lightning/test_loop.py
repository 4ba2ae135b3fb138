"""The Trainer's events are the manager's hooks, and a run of it is the loop by hand, bit for bit."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inc_torch import INCLightningCallback, prepare_compression
from inc_torch.core.errors import ConfigError, HookOrderError, ModelError
from inc_torch.quantizers import int8_kernels
from tests.lightning.setup import (
    BATCHES,
    FEATURES,
    NOISE,
    Classifier,
    Events,
    Manual,
    assert_equal_weights,
    data,
    distillation,
    network,
    pruning,
    techniques,
    train_by_hand,
    trainer_of,
)

pytestmark = NOISE

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate": 4},  # of six batches an epoch: the second step has two
    "clipping": {"clip": 0.1},
    "bf16": {"is_bf16": True},
    "everything": {"accumulate": 4, "clip": 0.1, "is_bf16": True},
}


def as_trainer_options(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "accumulate_grad_batches": options.get("accumulate", 1),
        "gradient_clip_val": options.get("clip"),
        "precision": "bf16-mixed" if options.get("is_bf16") else "32-true",
    }


@pytest.mark.parametrize("letters", ["p", "q", "d", "pqd"])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_run_is_the_loop_by_hand(letters, option, tmp_path):
    expected = Classifier()
    manager = prepare_compression(expected, techniques(letters))
    torch.manual_seed(11)
    train_by_hand(manager, expected, data(), **OPTIONS[option])

    module = Classifier()
    callback = INCLightningCallback(techniques(letters))
    torch.manual_seed(11)
    trainer_of(tmp_path, callback, **as_trainer_options(OPTIONS[option])).fit(module, data())
    assert_equal_weights(module, expected)
    assert callback.manager.report().to_dict() == manager.report().to_dict()


def test_events_are_hooks(tmp_path):
    events = Events()
    trainer_of(tmp_path, INCLightningCallback(events), accumulate_grad_batches=4).fit(Classifier(), data(), data(8))
    micro = "on_after_compute_loss"
    step = ["on_before_optimizer_step", "on_after_optimizer_step", "on_step_end"]
    epoch = [
        "on_epoch_begin",
        *["on_step_begin", *4 * [micro], *step],
        *["on_step_begin", *2 * [micro], *step],
        *["on_before_eval", "on_after_eval"],
        "on_epoch_end",
    ]
    assert events.names == ["on_train_begin", *epoch, *epoch, "on_train_end"]
    assert events.arguments["on_epoch_begin"] == [0, 1]
    assert events.arguments["on_step_begin"] == [0, 1, 2, 3]
    assert len(events.arguments["on_train_begin"][0]) == BATCHES


def test_callbacks_see_the_inputs_and_the_output_of_the_module_and_the_loss(tmp_path):
    events = Events()

    class Augmented(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step([batch[0] + 1, batch[1]], batch_idx)

    trainer_of(tmp_path, INCLightningCallback(events), max_epochs=1, limit_train_batches=1).fit(Augmented(), data())
    rows = next(iter(data()))[0] + 1
    ((inputs, output, loss),) = events.arguments["on_after_compute_loss"]
    (seen,) = inputs
    assert torch.equal(seen, rows)
    assert output.shape == (len(rows), 4)
    assert loss.dim() == 0
    assert loss.requires_grad


class Named(Classifier):
    """Calls its network with names."""

    def __init__(self, *, with_position: bool) -> None:
        super().__init__()
        self.net = Scaled()
        self.with_position = with_position

    def forward(self, rows):
        return self.net(rows, scale=2.0) if self.with_position else self.net(rows=rows, scale=2.0)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(FEATURES, 4)

    def forward(self, rows, scale=1.0):
        return self.layer(rows) * scale


@pytest.mark.parametrize("with_position", [False, True])
def test_named_inputs_are_a_dict(tmp_path, with_position):
    events = Events()
    callback = INCLightningCallback(events, submodule="net")
    trainer_of(tmp_path, callback, max_steps=1).fit(Named(with_position=with_position), data())
    ((inputs, _, _),) = events.arguments["on_after_compute_loss"]
    assert inputs.keys() == {"rows", "scale"}
    assert inputs["scale"] == 2.0


def test_the_loss_of_the_callbacks_is_the_one_that_is_minimized(tmp_path):
    class Zero(Events):
        def on_after_compute_loss(self, input, student_output, student_loss, teacher_output=None):
            return student_loss * 0.0

    module = Classifier()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=1.0)
    trainer_of(tmp_path, INCLightningCallback(Zero())).fit(module, data())
    assert_equal_weights(module.net, network())


def test_other_items_of_training_step_are_left_alone(tmp_path):
    seen = []

    class WithItems(Classifier):
        def training_step(self, batch, batch_idx):
            return {"loss": super().training_step(batch, batch_idx), "index": batch_idx}

        def on_train_batch_end(self, outputs, batch, batch_idx):
            seen.append(outputs)

    class Half(Events):
        def on_after_compute_loss(self, input, student_output, student_loss, teacher_output=None):
            return student_loss / 2

    module = WithItems()
    trainer_of(tmp_path, INCLightningCallback(Half()), max_epochs=1).fit(module, data())
    assert [outputs["index"] for outputs in seen] == list(range(BATCHES))
    assert [outputs["loss"].item() for outputs in seen] == [loss / 2 for loss in module.losses]


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")  # Lightning says so
def test_a_skipped_batch_has_no_loss(tmp_path):
    class Skipping(Classifier):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    events = Events()
    trainer_of(tmp_path, INCLightningCallback([events, *techniques("d")]), max_epochs=1).fit(Skipping(), data())
    assert events.count("on_after_compute_loss") == BATCHES - 1
    assert events.count("on_after_optimizer_step") == BATCHES


def test_nothing_stands_in_for_training_step_if_nobody_listens(tmp_path):
    class Watching(Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            assert "training_step" not in vars(self)

    trainer_of(tmp_path, INCLightningCallback(techniques("pq")), max_epochs=1).fit(Watching(), data())


def test_nothing_is_left_behind(tmp_path):
    class Failing(Classifier):
        def training_step(self, batch, batch_idx):
            if self.global_step == 2:
                raise KeyError
            return super().training_step(batch, batch_idx)

    for module in (Classifier(), Failing()):
        trainer = trainer_of(tmp_path, callback := INCLightningCallback(techniques("pd")))
        if isinstance(module, Failing):
            with pytest.raises(KeyError):
                trainer.fit(module, data())
        else:
            trainer.fit(module, data())
        assert callback.manager.callbacks.has_ended is not isinstance(module, Failing)
        assert not {"training_step", "manual_backward"} & vars(module).keys()
        assert not module._forward_hooks
        assert "step" not in vars(trainer.optimizers[0])


def test_a_scheduler_counts_the_steps(tmp_path):
    class Scheduled(Classifier):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    module = Scheduled()
    trainer = trainer_of(tmp_path, INCLightningCallback(techniques("p")), max_epochs=1)
    trainer.fit(module, data())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**BATCHES)
    torch.optim.lr_scheduler.StepLR(trainer.optimizers[0], 1)  # finds the step that it knows


def test_an_optimizer_may_ask_for_the_gradients_again(tmp_path):
    class Quasi(Classifier):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    weights = []
    for callbacks in ([], [INCLightningCallback(events := Events())]):
        module = Quasi()
        torch.manual_seed(3)
        trainer_of(tmp_path, *callbacks, max_epochs=1).fit(module, data())
        weights.append(module)
    assert_equal_weights(*weights)
    assert events.count("on_after_optimizer_step") == BATCHES
    assert events.count("on_after_compute_loss") > BATCHES


# ---------------------------------------------------------------- manual optimization


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("letters", ["p", "pqd"])
def test_manual_optimization_is_the_loop_by_hand(letters, accumulate, tmp_path):
    class Undivided(Manual):
        def manual_backward(self, loss, *args, **kwargs):
            super().manual_backward(loss / self.accumulate)

        def training_step(self, batch, batch_idx):
            loss = Classifier.training_step(self, batch, batch_idx)
            self.manual_backward(loss)
            if (batch_idx + 1) % self.accumulate == 0:
                self.optimizers().step()
                self.optimizers().zero_grad()

    expected = Classifier()
    torch.manual_seed(11)
    train_by_hand(prepare_compression(expected, techniques(letters)), expected, data(), accumulate=accumulate)
    module = Undivided(accumulate)
    torch.manual_seed(11)
    trainer_of(tmp_path, INCLightningCallback(techniques(letters))).fit(module, data())
    assert_equal_weights(module, expected)


class Adversarial(Classifier):
    """Two networks, each with an optimizer of its own."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.judge = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        own, judging = self.optimizers()
        with torch.no_grad():
            fake = self.net(batch[0])
        self.manual_backward(F.softplus(self.judge(fake)).mean())
        judging.step()
        judging.zero_grad()
        self.manual_backward(F.softplus(-self.judge(self.net(batch[0]))).mean())
        own.step()
        own.zero_grad()
        judging.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net, self.judge)]


def test_only_steps_and_losses_of_the_compressed_part_count(tmp_path):
    events = Events()
    callback = INCLightningCallback([events, pruning()], submodule="net")
    module = Adversarial()
    trainer_of(tmp_path, callback, max_epochs=1).fit(module, data())
    step = [
        "on_step_begin",
        "on_after_compute_loss",
        "on_before_optimizer_step",
        "on_after_optimizer_step",
        "on_step_end",
    ]
    assert events.names[2:-2] == BATCHES * step
    assert callback.manager.report().sparsity == 0.5
    assert module.judge.weight.count_nonzero() == 4


def test_an_optimizer_without_pruned_weights_makes_no_step(tmp_path):
    """It steps before the gradients of the pruned weights are there, of which a warning would tell."""
    callback = INCLightningCallback(pruning())
    trainer_of(tmp_path, callback, max_epochs=1).fit(Adversarial(), data())
    assert callback.manager.callbacks.progress.step == BATCHES
    assert callback.manager.report().sparsity == 0.5


def test_what_the_module_did_between_batches_has_no_part_in_a_loss(tmp_path):
    class Looking(Adversarial):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.net(batch[0])

    events = Events()
    trainer_of(tmp_path, INCLightningCallback(events, submodule="net"), max_epochs=1).fit(Looking(), data())
    assert events.count("on_after_compute_loss") == BATCHES


class Halves(Classifier):
    """An optimizer for each half of one network; ``order`` says which of them step after each backward."""

    def __init__(self, order: tuple[int, ...] = (0, 1)) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.order = order

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        for index in self.order:
            self.optimizers()[index].step()
        self.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net[:3], self.net[3:])]


@pytest.mark.parametrize(("order", "steps"), [((0, 1), 1), ((0, 1, 1), 2), ((1, 1, 0), 2), ((1,), 1)])
def test_several_optimizers_make_a_step_together(tmp_path, order, steps):
    events = Events()
    callback = INCLightningCallback([events, pruning()])
    trainer_of(tmp_path, callback, max_epochs=1).fit(Halves(order), data())
    step = ["on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step", "on_step_end"]
    names = [name for name in events.names[2:-2] if name != "on_after_compute_loss"]
    assert names == BATCHES * steps * step
    assert callback.manager.callbacks.progress.step == BATCHES * steps
    assert events.arguments["on_step_begin"] == list(range(BATCHES * steps))


def test_two_optimizers_are_the_loop_by_hand(tmp_path):
    expected = Halves()
    manager = prepare_compression(expected, pruning())
    optimizers = expected.configure_optimizers()
    torch.manual_seed(11)
    manager.on_train_begin()
    for index, (rows, labels) in enumerate(data()):
        manager.on_step_begin(index)
        F.cross_entropy(expected(rows), labels).backward()
        manager.on_before_optimizer_step()
        for optimizer in optimizers:
            optimizer.step()
        manager.on_after_optimizer_step()
        expected.zero_grad()
    manager.on_train_end()
    module = Halves()
    torch.manual_seed(11)
    trainer_of(tmp_path, INCLightningCallback(pruning()), max_epochs=1).fit(module, data())
    assert_equal_weights(module, expected)


def test_distillation_needs_manual_backward(tmp_path):
    class Direct(Manual):
        def manual_backward(self, loss, *args, **kwargs):
            pass

        def training_step(self, batch, batch_idx):
            self.optimizers().zero_grad()
            Classifier.training_step(self, batch, batch_idx).backward()
            self.optimizers().step()

    with pytest.raises(ConfigError, match=r"Call self.manual_backward\(loss\) in place of loss.backward\(\)"):
        trainer_of(tmp_path, INCLightningCallback(techniques("d"))).fit(Direct(), data())
    trainer_of(tmp_path, INCLightningCallback(techniques("p"))).fit(Direct(), data())  # pruning does not


# ---------------------------------------------------------------- evaluation and metrics


def test_evaluations_outside_training_are_none_of_ours(tmp_path):
    events = Events()
    callback = INCLightningCallback(events)
    trainer = trainer_of(tmp_path, callback, max_epochs=1, num_sanity_val_steps=2)
    module = Classifier()
    trainer.validate(module, data(8), verbose=False)
    assert callback.manager is None
    trainer.fit(module, data(), data(8))
    trainer.validate(module, data(8), verbose=False)
    assert events.count("on_before_eval") == events.count("on_after_eval") == 1
    assert events.names[0] == "on_train_begin"


def test_the_trained_model_is_int8_and_evaluates(tmp_path):
    module = Classifier()
    trainer = trainer_of(tmp_path, INCLightningCallback(techniques("pqd")))
    trainer.fit(module, data())
    assert len(list(int8_kernels(module))) == 3
    ((first),) = trainer.validate(module, data(8), verbose=False)
    assert first["loss"] == pytest.approx(
        sum(F.cross_entropy(module.eval()(rows), labels).item() for rows, labels in data(8)) / 2, rel=1e-6
    )


@pytest.mark.parametrize(("every", "seen"), [(4, [3, 5, 7, 11]), (50, [5, 11])])
def test_metrics_are_logged(tmp_path, every, seen):
    class Watching(Classifier):
        logged: dict[int, dict[str, float]]

        def on_train_batch_end(self, outputs, batch, batch_idx):
            metrics = self.trainer.callback_metrics
            self.seen[self.global_step - 1] = {name: value.item() for name, value in metrics.items()}

    module = Watching()
    module.seen = {}
    trainer_of(tmp_path, INCLightningCallback(techniques("pqd")), log_every_n_steps=every).fit(module, data())
    first = {step: values["sparsity"] for step, values in module.seen.items() if "sparsity" in values}
    assert min(first) == seen[0]
    changes = [step for step, (before, after) in enumerate(pairwise(module.seen.values()), 1) if before != after]
    assert set(changes) <= set(seen)
    assert module.seen[11]["sparsity"] == 0.5
    assert module.seen[11]["distillation_loss"] > 0


# ---------------------------------------------------------------- what is compressed, and refusals


def test_a_part_is_compressed(tmp_path):
    callback = INCLightningCallback(techniques("pqd"), submodule="net")
    trainer_of(tmp_path, callback).fit(Classifier(), data())
    assert [row.name for row in callback.manager.report().modules if row.bits == 8] == ["0", "3", "5"]
    whole = INCLightningCallback(techniques("pqd"))
    trainer_of(tmp_path, whole).fit(Classifier(), data())
    assert [row.name for row in whole.manager.report().modules if row.bits == 8] == ["net.0", "net.3", "net.5"]


def test_an_unknown_part_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"submodule='nett'\): Classifier has no such module. Its parts are 'net'"):
        trainer_of(tmp_path, INCLightningCallback(techniques("p"), submodule="nett")).fit(Classifier(), data())


@pytest.mark.parametrize("method", ["setup", "configure_model"])
def test_layers_may_be_made_by_the_module_when_fit_begins(tmp_path, method):
    class Late(Classifier):
        def __init__(self):
            super().__init__()
            del self.net

    def make(self, stage=None):
        if not hasattr(self, "net"):
            self.net = network()

    setattr(Late, method, make)
    callback = INCLightningCallback(techniques("pqd"))
    torch.manual_seed(11)
    module = Late()
    trainer_of(tmp_path, callback).fit(module, data())
    assert callback.manager.report().sparsity >= 0.5
    assert len(list(int8_kernels(module))) == 3


def test_a_module_that_is_not_called_is_named(tmp_path):
    class Inside(Classifier):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

    message = r"training_step of Inside did not call the compressed Inside.*submodule='model'"
    with pytest.raises(ModelError, match=message):
        trainer_of(tmp_path, INCLightningCallback(techniques("d"))).fit(Inside(), data())
    trainer_of(tmp_path, INCLightningCallback(techniques("d"), submodule="net")).fit(Inside(), data())


def test_a_teacher_may_be_given_apart(tmp_path):
    losses = []
    for callback in (
        INCLightningCallback(distillation(network(seed=1))),
        INCLightningCallback({"DistillationConfig": {}}, teacher_model=network(seed=1)),
    ):
        torch.manual_seed(2)
        trainer = trainer_of(tmp_path, callback, max_epochs=1, log_every_n_steps=1)
        trainer.fit(Classifier(), data())
        losses.append(trainer.callback_metrics["distillation_loss"].item())
    assert losses[0] > 0
    assert losses[1] > 0


def test_a_distillation_without_a_teacher_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"INCLightningCallback\(conf, teacher_model=teacher\)"):
        trainer_of(tmp_path, INCLightningCallback(distillation(None))).fit(Classifier(), data())
    with pytest.raises(ConfigError, match="no DistillationConfig without a teacher"):
        INCLightningCallback(pruning(), teacher_model=network())


def test_a_manager_may_be_given(tmp_path):
    module = Classifier()
    manager = prepare_compression(module.net, techniques("p"))
    callback = INCLightningCallback(manager, submodule="net")
    trainer_of(tmp_path, callback).fit(module, data())
    assert callback.manager is manager
    assert manager.callbacks.has_ended
    assert manager.report().sparsity == 0.5
    with pytest.raises(ConfigError, match="a manager of another model than the Sequential that is trained"):
        trainer_of(tmp_path, callback).fit(Classifier(), data())


def test_a_finished_model_is_not_trained_on(tmp_path):
    callback = INCLightningCallback(techniques("p"))
    module = Classifier()
    trainer_of(tmp_path, callback).fit(module, data())
    with pytest.raises(HookOrderError, match="the model is finished"):
        trainer_of(tmp_path, callback).fit(module, data())


def test_another_model_gets_a_manager_of_its_own(tmp_path):
    callback = INCLightningCallback(techniques("p"))
    modules = [Classifier(), Classifier()]
    for module in modules:
        torch.manual_seed(4)
        trainer_of(tmp_path, callback).fit(module, data())
    assert_equal_weights(*modules)
