"""The loops that people really write end in the same numbers as the complete one."""

from __future__ import annotations

import copy
import warnings
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from inc_torch import CompressionManager, QuantizationAwareTrainingConfig, prepare_compression
from inc_torch.core.errors import InexactWarning, LoopWarning
from tests.loops.driver import (
    ALL_HOOKS,
    ConvNet,
    assert_equal_states,
    confs_of,
    distillation,
    images,
    mlp,
    pruning,
    rows,
    train,
)

STEPS = 5
UNHEARD = "The training loop does not call "
CRITERIA = ["magnitude", "gradient", "snip", "snip_momentum"]
BEGIN_AND_END = ALL_HOOKS - {"on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step", "on_step_end"}


def masks_of(manager: CompressionManager) -> dict[str, torch.Tensor]:
    """All masks of a run."""
    return {
        f"{index}:{name}": mask
        for index, callback in enumerate(manager.callbacks.callbacks_list)
        for pruner in getattr(callback, "pruners", ())
        for name, mask in pruner.masks.items()
    }


def pruned_share(manager: CompressionManager) -> float:
    """Share of pruned weights by the masks; a weight that came back may still be zero."""
    masks = masks_of(manager).values()
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def forgotten(record: list[warnings.WarningMessage]) -> list[str]:
    """The hooks that were missed, sorted; other warnings are an error."""
    said = [str(warning.message) for warning in record]
    assert all(message.startswith(UNHEARD) for message in said), said
    return sorted(message.removeprefix(UNHEARD).split(";")[0] for message in said)


def run(confs, *, model=None, batches=None, make_optimizer=None, **options):
    """Train a fresh model; returns the manager and the hooks that were missed."""
    model = model or mlp()
    manager = prepare_compression(model, confs)
    make = make_optimizer or (lambda model: torch.optim.AdamW(model.parameters(), lr=0.01))
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        train(manager, make(model), batches or rows(STEPS), **options)
    return manager, forgotten(record)


@cache
def complete(criterion: str, pattern: str = "4x1") -> CompressionManager:
    manager, missed = run(pruning(pruning_type=criterion, pattern=pattern))
    assert missed == []
    return manager


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    "left_out",
    [
        {"on_train_begin"},
        {"on_before_optimizer_step"},
        {"on_after_optimizer_step"},
        {"on_step_end"},
        {"on_epoch_begin", "on_epoch_end"},
        {"on_after_compute_loss"},
        {"on_before_optimizer_step", "on_after_optimizer_step"},
        {"on_after_optimizer_step", "on_step_end", "on_epoch_end"},
        {"on_before_optimizer_step", "on_after_optimizer_step", "on_step_end", "on_epoch_begin", "on_epoch_end"},
    ],
    ids=lambda hooks: "+".join(sorted(hooks)),
)
def test_a_loop_that_forgets_hooks_prunes_the_same_weights(criterion, left_out):
    manager, missed = run(pruning(pruning_type=criterion), hooks=ALL_HOOKS - left_out)
    heard = {"on_train_begin", "on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step"}
    assert missed == sorted(left_out & heard)
    reference = complete(criterion)
    assert_equal_states(manager.model.state_dict(), reference.model.state_dict())
    assert_equal_states(masks_of(manager), masks_of(reference))
    assert manager.report() == reference.report()
    assert pruned_share(manager) == 0.5


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    "hooks", [ALL_HOOKS - {"on_step_begin"}, BEGIN_AND_END], ids=["no step begin", "begin and end"]
)
def test_without_on_step_begin_the_goal_is_reached_one_forward_late(criterion, hooks):
    manager, missed = run(pruning(pruning_type=criterion), hooks=hooks)
    assert missed == sorted({"on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step"} - hooks)
    assert pruned_share(manager) == 0.5
    for name, mask in masks_of(manager).items():
        assert not manager.model.get_submodule(name[2:]).weight[~mask].any()


@pytest.mark.parametrize("letters", ["p", "q", "d", "pqd"])
@pytest.mark.parametrize(
    "left_out",
    [{"on_after_optimizer_step"}, {"on_before_optimizer_step", "on_after_optimizer_step", "on_step_end"}],
    ids=["docstring of INC", "1.X"],
)
def test_shorter_loops_give_the_same_model(letters, left_out):
    def outcome(hooks):
        return run(confs_of(letters, ConvNet(1).eval()), model=ConvNet(), batches=images(STEPS), hooks=hooks)

    reference, _ = outcome(ALL_HOOKS)
    manager, missed = outcome(ALL_HOOKS - left_out)
    # Callbacks that do not listen to a hook are no reason to ask for it.
    assert missed == (sorted(left_out - {"on_step_end"}) if "p" in letters else [])
    assert_equal_states(manager.model.state_dict(), reference.model.state_dict())
    assert manager.report() == reference.report()


@pytest.mark.parametrize("letters", ["q", "d"])
def test_nothing_is_said_of_hooks_that_nobody_listens_to(letters):
    hooks = {"on_train_begin", "on_after_compute_loss", "on_train_end"}
    _, missed = run(confs_of(letters, ConvNet(1)), model=ConvNet(), batches=images(STEPS), hooks=hooks)
    assert missed == []


def test_both_spellings_are_one():
    for hook in [*ALL_HOOKS, "on_before_eval", "on_after_eval", "register_hook", "remove_hook"]:
        manager = prepare_compression(mlp(), pruning())
        assert getattr(manager, hook) == getattr(manager.callbacks, hook)


def test_both_spellings_mixed_count_once():
    manager = prepare_compression(mlp(), pruning())
    manager.callbacks.on_train_begin()
    manager.on_train_begin()
    optimizer = torch.optim.SGD(manager.model.parameters(), lr=0.1)
    for index, (inputs, labels) in enumerate(rows(STEPS)):
        manager.callbacks.on_step_begin(index)
        F.cross_entropy(manager.model(inputs), labels).backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.callbacks.on_after_optimizer_step()
        optimizer.zero_grad()
        manager.on_step_end()
    manager.callbacks.on_train_end()
    manager.on_train_end()
    assert manager.callbacks.progress.step == STEPS
    assert manager.report().sparsity == 0.5


class TestGradientAccumulation:
    @pytest.mark.parametrize("accumulate", [2, 3])
    @pytest.mark.parametrize(
        "left_out",
        [
            set(),
            {"on_after_optimizer_step"},
            {"on_before_optimizer_step", "on_after_optimizer_step"},
            {"on_step_end"},
        ],
        ids=lambda hooks: "+".join(sorted(hooks)),
    )
    def test_counts_updates(self, accumulate, left_out):
        hooks = ALL_HOOKS - left_out
        manager, _ = run(pruning(), batches=rows(STEPS * accumulate), accumulate=accumulate, hooks=hooks)
        assert manager.callbacks.progress.step == STEPS
        assert manager.report().sparsity == 0.5

    def test_of_halves_is_the_whole_batch(self):
        """Mean of two halves, scores of the sum: the same masks, and weights up to rounding."""

        def model():
            return mlp().eval()  # no dropout

        whole = [(inputs, labels) for inputs, labels in rows(STEPS)]
        halves = [
            (part, label) for pair in whole for part, label in zip(*(half.chunk(2) for half in pair), strict=True)
        ]
        sgd = lambda model: torch.optim.SGD(model.parameters(), lr=0.1)  # noqa: E731
        one, _ = run(pruning(), model=model(), batches=iter(whole), make_optimizer=sgd)
        two, _ = run(pruning(), model=model(), batches=iter(halves), make_optimizer=sgd, accumulate=2)
        assert_equal_states(masks_of(two), masks_of(one))
        for name, tensor in one.model.state_dict().items():
            assert torch.allclose(tensor, two.model.state_dict()[name], atol=1e-6), name

    def test_of_an_old_loop_does_not_count_its_first_batches(self):
        """Only on_step_begin and on_step_end, and no optimizer step in the first batches."""
        hooks = {"on_train_begin", "on_step_begin", "on_step_end", "on_train_end"}
        manager, missed = run(pruning(), batches=rows(STEPS * 3), accumulate=3, hooks=hooks)
        assert missed == ["on_after_optimizer_step", "on_before_optimizer_step"]
        assert manager.callbacks.progress.step == STEPS


class TestByHand:
    """Loops that update weights without a torch optimizer."""

    @staticmethod
    def step_of(model, in_data):
        @torch.no_grad()
        def step():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    (parameter.data if in_data else parameter).sub_(0.1 * parameter.grad)

        return step

    @pytest.mark.parametrize("in_data", [True, False])
    @pytest.mark.parametrize(
        "left_out",
        [set(), {"on_after_optimizer_step"}, {"on_step_end"}],
        ids=lambda hooks: "+".join(sorted(hooks)),
    )
    def test_give_what_sgd_gives(self, in_data, left_out):
        reference, _ = run(pruning(), make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
        model = mlp()
        manager, missed = run(pruning(), model=model, step=self.step_of(model, in_data), hooks=ALL_HOOKS - left_out)
        assert missed == sorted(left_out - {"on_step_end"})
        assert_equal_states(masks_of(manager), masks_of(reference))
        for name, tensor in reference.model.state_dict().items():
            assert torch.allclose(tensor, manager.model.state_dict()[name], atol=1e-7), name
        assert manager.report().sparsity == 0.5

    @pytest.mark.parametrize("criterion", CRITERIA)
    @pytest.mark.parametrize("hooks", [{"on_step_begin", "on_step_end"}, {"on_step_begin"}], ids=["1.X", "step begin"])
    def test_of_1x_reach_the_goal(self, criterion, hooks):
        model = mlp()
        manager, step = prepare_compression(model, pruning(pruning_type=criterion)), self.step_of(model, True)
        manager.on_train_begin()
        with pytest.warns(LoopWarning) as record:
            for index, (inputs, labels) in enumerate(rows(STEPS)):
                manager.on_step_begin(index)
                model.zero_grad()
                F.cross_entropy(model(inputs), labels).backward()
                step()
                if "on_step_end" in hooks:
                    manager.on_step_end()
            manager.on_train_end()
        assert forgotten(record) == ["on_after_optimizer_step", "on_before_optimizer_step"]
        assert manager.callbacks.progress.step == STEPS
        assert pruned_share(manager) == 0.5


def test_mixed_precision_with_a_scaler_that_skips_the_first_steps():
    """A skipped step neither counts nor scores: the run is that of the other steps."""

    def outcome(bad):
        model = mlp().eval()
        manager = prepare_compression(model, pruning())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0, backoff_factor=0.5, growth_interval=1000)
        manager.on_train_begin()
        good = rows(STEPS)
        for index in range(STEPS + len(bad)):
            inputs, labels = (
                next(good) if index not in bad else (torch.full((6, 12), float("inf")), torch.zeros(6).long())
            )
            manager.on_step_begin(index)
            loss = manager.on_after_compute_loss(inputs, None, F.cross_entropy(model(inputs), labels))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            manager.on_before_optimizer_step()
            scaler.step(optimizer)
            scaler.update()
            manager.on_after_optimizer_step()
            optimizer.zero_grad()
            manager.on_step_end()
        manager.on_train_end()
        assert manager.callbacks.progress.step == STEPS
        return manager

    reference = outcome(set())
    for bad in ({0}, {0, 1, 2}, {2, 5}):
        with pytest.warns(LoopWarning, match="Non-finite values in the gradient or weight of '0'"):
            manager = outcome(bad)
        assert_equal_states(masks_of(manager), masks_of(reference))
        for name, tensor in reference.model.state_dict().items():
            assert torch.allclose(tensor, manager.model.state_dict()[name], atol=1e-6), name


def test_bf16_autocast_trains_and_converts():
    model = ConvNet()
    manager = prepare_compression(model, confs_of("pqd", ConvNet(1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    manager.on_train_begin()
    for index, (inputs, labels) in enumerate(images(STEPS)):
        manager.on_step_begin(index)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(inputs)
            loss = F.cross_entropy(output, labels)
        loss = manager.on_after_compute_loss(inputs, output, loss)
        assert loss.dtype == torch.float32
        loss.backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        optimizer.zero_grad()
        manager.on_step_end()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    manager.on_train_end()
    assert model.conv.qweight.dtype == torch.int8
    assert manager.report().sparsity >= 0.5
    inputs, _ = next(images(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = model(inputs).float()
    with torch.no_grad():
        full = model(inputs)
    assert torch.allclose(low, full, atol=0.1)  # bf16 keeps 8 bits


def test_a_goal_that_is_out_of_reach_is_said():
    manager = prepare_compression(mlp(), pruning(end_step=100))
    with pytest.warns(InexactWarning, match=r"Pruning reached 0\.0\d+ instead of 0\.5"):
        train(manager, torch.optim.SGD(manager.model.parameters(), lr=0.1), rows(STEPS))


def test_two_managers_on_two_models_do_not_meddle():
    alone = [run(pruning(pruning_type=criterion), model=mlp(seed))[0] for seed, criterion in enumerate(CRITERIA[:2])]
    managers = [prepare_compression(mlp(seed), pruning(pruning_type=CRITERIA[seed])) for seed in range(2)]
    optimizers = [torch.optim.AdamW(manager.model.parameters(), lr=0.01) for manager in managers]
    generators = [torch.manual_seed(11).get_state() for _ in managers]
    for manager in managers:
        manager.on_train_begin()
    for index, (inputs, labels) in enumerate(rows(STEPS)):
        for which, manager in enumerate(managers):
            manager.on_step_begin(index)
            torch.set_rng_state(generators[which])
            F.cross_entropy(manager.model(inputs), labels).backward()
            generators[which] = torch.get_rng_state()
            manager.on_before_optimizer_step()
        for optimizer in optimizers:
            optimizer.step()
        for manager, optimizer in zip(managers, optimizers, strict=True):
            manager.on_after_optimizer_step()
            optimizer.zero_grad()
            manager.on_step_end()
    for manager, reference in zip(managers, alone, strict=True):
        manager.on_train_end()
        assert_equal_states(manager.model.state_dict(), reference.model.state_dict())


def test_the_teacher_trains_along_without_being_counted():
    """An optimizer for the teacher, as in mutual learning, is not one of ours."""
    student, teacher = mlp(), mlp(1)
    manager = prepare_compression(student, [distillation(teacher), pruning()])
    ours, theirs = (torch.optim.SGD(model.parameters(), lr=0.1) for model in (student, teacher))
    manager.on_train_begin()
    for index, (inputs, labels) in enumerate(rows(STEPS)):
        manager.on_step_begin(index)
        F.cross_entropy(teacher(inputs), labels).backward()
        theirs.step()
        theirs.zero_grad()
        output = student(inputs)
        manager.on_after_compute_loss(inputs, output, F.cross_entropy(output, labels)).backward()
        theirs.step()
        manager.on_before_optimizer_step()
        ours.step()
        theirs.step()
        manager.on_after_optimizer_step()
        ours.zero_grad()
        manager.on_step_end()
    manager.on_train_end()
    assert manager.callbacks.progress.step == STEPS
    assert teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_copy_of_the_model_made_in_the_middle_goes_its_own_way():
    model = ConvNet()
    manager = prepare_compression(model, [pruning(), QuantizationAwareTrainingConfig()])
    copies = []
    manager.register_hook("on_step_end", lambda: copies.append(copy.deepcopy(model)))
    train(manager, torch.optim.SGD(model.parameters(), lr=0.1), images(STEPS))
    assert len(copies) == STEPS
    assert [type(copied).__name__ for copied in copies] == ["ConvNet"] * STEPS
    assert all(type(copied.conv).__name__ == "FakeQuantConv2d" for copied in copies)
    assert type(model.conv).__name__ == "Int8Conv2d"
    assert not torch.equal(copies[0].hidden.weight, copies[1].hidden.weight)
