"""A run that is cut between any two calls of its loop and goes on in fresh objects ends bit for bit the same."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inc_torch import QuantizationAwareTrainingConfig, prepare_compression
from inc_torch.core.errors import InexactWarning, StateError
from tests.loops.driver import ConvNet, confs_of, distillation, images, mlp, pruning, rows

Call = tuple[str, Any]

STEP = ("begin", "compute", "before", "step", "after", "zero", "end")
SCRIPT: tuple[Call, ...] = (
    ("train_begin", None),
    ("epoch_begin", 0),
    *((phase, index) for index in (0, 1) for phase in STEP),
    ("epoch_end", None),
    ("before_eval", None),
    ("evaluate", 0),
    ("after_eval", None),
    ("epoch_begin", 1),
    *((phase, 2) for phase in STEP),
    ("epoch_end", None),
    ("train_end", None),
)
CUTS = range(len(SCRIPT))


@dataclass
class Case:
    """How to make a model, its configs, its data and its optimizer, afresh each time."""

    model: Callable[[], nn.Module]
    confs: Callable[[], list[Any]]
    data: Callable[[int], Iterator[tuple[torch.Tensor, torch.Tensor]]]
    optimizer: Callable[..., torch.optim.Optimizer] = field(default=partial(torch.optim.AdamW, lr=0.05))


class Run:
    """A loop in single calls, that can be saved between any two of them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.batches = list(case.data(3))
        self.model = case.model()
        self.manager = prepare_compression(self.model, self.confs())
        self.optimizer = case.optimizer(self.model.parameters())
        self.losses: list[torch.Tensor] = []

    def confs(self) -> list[Any]:
        return self.case.confs()

    def go(self, start: int = 0, stop: int = len(SCRIPT), each: Callable[[int], object] = lambda _: None) -> None:
        for position in range(start, stop):
            each(position)
            self.call(*SCRIPT[position])

    def call(self, phase: str, index: Any) -> None:
        manager = self.manager
        if phase in {"compute", "evaluate"}:
            inputs, labels = self.batches[index]
            self.model.train(phase == "compute")
            output = self.model(inputs)
            self.model.train()
            if phase == "compute":
                # The loop's own randomness, of all three generators.
                noise = random.random() + np.random.rand() + torch.rand(()).item()
                loss = manager.on_after_compute_loss(inputs, output, F.cross_entropy(output, labels) * (1 + noise))
                loss.backward()
                self.losses.append(loss.detach())
        elif phase == "step":
            self.optimizer.step()
        elif phase == "zero":
            self.optimizer.zero_grad()
        else:
            name = {"begin": "step_begin", "before": "before_optimizer_step", "after": "after_optimizer_step"}
            hook = getattr(manager, f"on_{name.get(phase, 'step_end' if phase == 'end' else phase)}")
            hook(*([] if index is None or phase in {"before", "after", "end"} else [index]))

    def save(self) -> bytes:
        """What a training script writes: model, gradients, optimizer, manager."""
        file = io.BytesIO()
        parts = {
            "model": self.model.state_dict(),
            "gradients": {name: parameter.grad for name, parameter in self.model.named_parameters()},
            "optimizer": self.optimizer.state_dict(),
            "manager": self.manager.state_dict(),
        }
        torch.save(parts, file)
        return file.getvalue()

    @classmethod
    def resumed(cls, case: Case, saved: bytes, position: int) -> Run:
        scramble()
        run = cls(case)
        parts = torch.load(io.BytesIO(saved), weights_only=True)
        run.model.load_state_dict(parts["model"])
        for name, parameter in run.model.named_parameters():
            parameter.grad = parts["gradients"][name]
        run.optimizer.load_state_dict(parts["optimizer"])
        run.manager.load_state_dict(parts["manager"])
        if position > 0:
            run.manager.on_train_begin()
        return run


def scramble() -> None:
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    torch.rand(3)


def seed() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)


def same(left: object, right: object, where: str = "state") -> None:
    """Equal in depth, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        assert isinstance(right, torch.Tensor), where
        assert left.dtype == right.dtype, where
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert isinstance(right, dict)
        assert left.keys() == right.keys(), where
        for key in left:
            same(left[key], right[key], f"{where}[{key!r}]")
    elif isinstance(left, (list, tuple)):
        assert isinstance(right, (list, tuple))
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            same(one, other, f"{where}[{index}]")
    else:
        assert left == right, where


def outcome(run: Run) -> dict[str, Any]:
    return {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "manager": run.manager.state_dict(),
        "report": run.manager.report().to_dict(),
    }


def check_every_cut(case: Case, kind: type[Run] = Run) -> None:
    """Save a run before each of its calls, and go on from each."""
    seed()
    uncut = kind(case)
    seed()
    last = len(SCRIPT) - 1
    uncut.go(stop=last)
    trained = outcome(uncut)
    uncut.go(last)
    final = outcome(uncut)

    seed()
    saved_run, saved = kind(case), {}
    seed()
    saved_run.go(each=lambda position: saved.update({position: saved_run.save()}))
    same(outcome(saved_run), final, "the run that was saved")

    for cut in CUTS:
        run = kind.resumed(case, saved[cut], cut)
        run.go(cut, last)
        where = f"cut before {SCRIPT[cut]}"
        same(outcome(run), trained, f"{where}, trained")
        run.go(last)
        same(outcome(run), final, where)


def net_case(**options: Any) -> Case:
    return Case(mlp, lambda: [pruning(**options)], rows)


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "snip", "snip_momentum"])
def test_pruning_by_each_criterion(criterion, scope):
    check_every_cut(net_case(pruning_type=criterion, pruning_scope=scope))


@pytest.mark.parametrize("pattern", ["1x1", "1x4", "channelx1", "1xchannel", "2:4"])
def test_pruning_in_each_pattern(pattern):
    check_every_cut(net_case(pattern=pattern))


def test_pruning_along_another_schedule():
    check_every_cut(net_case(sparsity_decay_type="cube", pattern="2:4", pruning_type="magnitude"))


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.SGD, lr=0.3, momentum=0.9, nesterov=True),
        partial(torch.optim.AdamW, lr=0.05, fused=True),
        partial(torch.optim.Adam, lr=0.05, amsgrad=True),
        partial(torch.optim.RMSprop, lr=0.01, momentum=0.9),
    ],
    ids=["SGD", "fused AdamW", "amsgrad", "RMSprop"],
)
def test_pruning_with_each_optimizer(optimizer):
    """Scores that let weights come back, so that momentum counts."""
    check_every_cut(Case(mlp, lambda: [pruning(pruning_type="gradient", pattern="1x1")], rows, optimizer))


def test_two_pruners_and_a_pattern_lock():
    def confs():
        local = [{"op_names": ["^0$"], "pattern": "1x1"}, {"op_names": ["^3$"], "pruning_type": "magnitude"}]
        return [pruning(pruning_configs=local)]

    check_every_cut(Case(mlp, confs, rows))

    def half_empty():
        model = mlp()
        with torch.no_grad():
            model[0].weight.mul_(torch.rand_like(model[0].weight) > 0.5)
        return model

    check_every_cut(Case(half_empty, lambda: [pruning(pruning_type="pattern_lock", end_step=0)], rows))


@pytest.mark.parametrize("letters", ["q", "d", "pq", "pd", "qd", "pqd", "dqp"])
def test_each_callback_and_all_together(letters):
    check_every_cut(Case(ConvNet, lambda: confs_of(letters, ConvNet(1)), images))


@pytest.mark.parametrize(("observers", "batch_norm"), [(1, 2), (2, 0)])
def test_frozen_ranges_and_statistics(observers, batch_norm):
    def confs():
        options = {"freeze_observers_step": observers, "freeze_batch_norm_step": batch_norm}
        return [QuantizationAwareTrainingConfig(**options), pruning()]

    check_every_cut(Case(ConvNet, confs, images))


def test_the_student_as_its_own_teacher():
    """The frozen copy is made of the weights before training, which a script has again when it goes on."""

    class OwnTeacher(Run):
        def confs(self):
            return [distillation(self.model), *super().confs()]

    case = Case(mlp, lambda: [pruning()], rows)
    with pytest.warns(InexactWarning, match="A frozen copy of it, as it is now, is the teacher instead"):
        check_every_cut(case, OwnTeacher)


def test_a_teacher_copied_from_other_weights_is_noticed():
    def own(seed: int):
        model = mlp(seed)
        with pytest.warns(InexactWarning, match="frozen copy"):
            return prepare_compression(model, distillation(model))

    own(0).load_state_dict(own(0).state_dict())
    with pytest.raises(StateError, match="Call prepare_compression on the model with the weights it had at the start"):
        own(1).load_state_dict(own(0).state_dict())


class TestRefusals:
    """A state that belongs to another run is refused, and the difference is named."""

    def state(self, confs):
        return prepare_compression(mlp(), confs).state_dict()

    @pytest.mark.parametrize(
        ("saved", "now", "words"),
        [
            ([pruning()], [pruning(target_sparsity=0.75)], "config 0: target_sparsity: saved 0.5, now 0.75"),
            ([pruning()], [pruning(pattern="1x1")], "config 0: pattern: saved None, now '1x1'"),
            (
                [pruning()],
                [QuantizationAwareTrainingConfig()],
                "config 0: type: saved 'WeightPruningConfig', now 'QuantizationAwareTrainingConfig'",
            ),
            (
                [pruning()],
                [pruning(), QuantizationAwareTrainingConfig()],
                "1 configs were saved, there are 2 now",
            ),
            (
                [pruning(), QuantizationAwareTrainingConfig()],
                [QuantizationAwareTrainingConfig(), pruning()],
                "config 0: type: saved 'WeightPruningConfig', now 'QuantizationAwareTrainingConfig'; "
                "config 1: type: saved 'QuantizationAwareTrainingConfig', now 'WeightPruningConfig'",
            ),
        ],
    )
    def test_other_configs(self, saved, now, words):
        manager = prepare_compression(mlp(), now)
        with pytest.raises(StateError) as caught:
            manager.load_state_dict(self.state(saved))
        assert str(caught.value) == f"The saved state is of a run with other configs. {words}."

    @pytest.mark.parametrize("found", ["inc_torch/2", None, 1])
    def test_another_format(self, found):
        state = {**self.state([pruning()]), "format": found}
        with pytest.raises(
            StateError, match=f"no training state of inc_torch: format={found!r}, expected 'inc_torch/1'"
        ):
            prepare_compression(mlp(), [pruning()]).load_state_dict(state)

    def test_a_models_state_dict(self):
        with pytest.raises(StateError, match="no training state of inc_torch: format=None"):
            prepare_compression(mlp(), [pruning()]).load_state_dict(mlp().state_dict())

    @pytest.mark.parametrize("key", ["configs", "progress", "unfinished", "callbacks", "random"])
    def test_a_missing_part(self, key):
        state = self.state([pruning()])
        del state[key]
        with pytest.raises(StateError, match=rf"CompressionManager does not fit: missing \['{key}'\], unexpected \[\]"):
            prepare_compression(mlp(), [pruning()]).load_state_dict(state)

    def test_an_unknown_part(self):
        state = {**self.state([pruning()]), "more": 1}
        with pytest.raises(StateError, match=r"missing \[\], unexpected \['more'\]"):
            prepare_compression(mlp(), [pruning()]).load_state_dict(state)

    @pytest.mark.parametrize("key", ["torch", "cuda", "numpy", "python"])
    def test_a_missing_generator(self, key):
        state = self.state([pruning()])
        del state["random"][key]
        with pytest.raises(StateError, match=rf"the random number generators does not fit: missing \['{key}'\]"):
            prepare_compression(mlp(), [pruning()]).load_state_dict(state)

    def test_layers_of_another_shape(self):
        wider = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))
        manager = prepare_compression(mlp(), [pruning(pruning_type="magnitude")])
        manager.on_train_begin()
        for index in range(3):
            manager.on_step_begin(index)
            manager.callbacks.progress.step = index + 1
        with pytest.raises(StateError, match=r"pruning mask (of|for) '"):
            prepare_compression(wider, [pruning(pruning_type="magnitude")]).load_state_dict(manager.state_dict())

    def test_a_finished_int8_run(self):
        model = ConvNet()
        manager = prepare_compression(model, QuantizationAwareTrainingConfig())
        manager.on_train_begin()
        model(next(images(1))[0])
        manager.on_train_end()
        fresh = prepare_compression(ConvNet(), QuantizationAwareTrainingConfig())
        with pytest.raises(StateError, match="saved with a model in int8, but the model is in float now"):
            fresh.load_state_dict(manager.state_dict())


def test_random_generators_may_be_left_alone():
    manager = prepare_compression(mlp(), pruning())
    state = manager.state_dict()
    scramble()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    manager.load_state_dict(state, restore_random=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    manager.load_state_dict(state)
    assert not torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() != before[2]


def test_the_teacher_is_not_in_the_state():
    manager = prepare_compression(mlp(), distillation(mlp(1)))
    file = io.BytesIO()
    torch.save(manager.state_dict()["callbacks"], file)
    assert file.tell() < 2000


def test_weights_are_masked_when_a_run_goes_on():
    """Also if the weights that were loaded are older than the masks."""
    run = Run(net_case())
    run.go(stop=SCRIPT.index(("end", 2)))
    fresh = Run(net_case())
    fresh.manager.load_state_dict(run.manager.state_dict())
    assert fresh.manager.report().sparsity == 0
    fresh.manager.on_train_begin()
    assert fresh.manager.report().sparsity == 0.5
