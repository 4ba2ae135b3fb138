"""Distillation of layers in a loop: what is watched when, what it learns for itself, and what is left behind."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForSequenceClassification

from inc_torch import (
    DistillationConfig,
    IntermediateLayersKnowledgeDistillationLossConfig,
    KnowledgeDistillationLossConfig,
    QuantizationAwareTrainingConfig,
    prepare_compression,
)
from inc_torch.callbacks import DistillationCallbacks
from inc_torch.core.errors import ConfigError, InexactWarning, LayerNotFoundError, ModelError
from inc_torch.distillers import DistillationLoss, FeatureDistillation, FeaturePair, KnowledgeDistillation, Tap
from inc_torch.quantizers import folded_norms

Layers = IntermediateLayersKnowledgeDistillationLossConfig


def _net(width=8):
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 4))


def _hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def _begin(student, teacher, *mappings, **options):
    options.setdefault("add_origin_loss", True)
    manager = prepare_compression(student, DistillationConfig(teacher, Layers(list(mappings), **options)))
    manager.on_train_begin()
    return manager


def _step(manager, optimizer, x):
    manager.on_step_begin(0)
    output = manager.model(x)
    loss = manager.on_after_compute_loss(x, output, output.square().mean())
    loss.backward()
    manager.on_before_optimizer_step()
    optimizer.step()
    manager.on_after_optimizer_step()
    optimizer.zero_grad()
    manager.on_step_end()
    return loss.detach()


def test_layers_are_compared_and_no_hook_stays():
    student, teacher, x = _net(), _net(), torch.randn(5, 3)
    manager = _begin(student, teacher, ["0", "2"], "2", loss_weights=[0.0, 0.5])
    assert (_hooks(student), _hooks(teacher)) == (1, 1)  # what weighs nothing is not watched
    output = student(x)
    value = manager.on_after_compute_loss(x, output, torch.tensor(2.0))
    torch.testing.assert_close(value, 2 + 0.5 * F.mse_loss(output, teacher(x)))
    manager.on_train_end()
    assert (_hooks(student), _hooks(teacher)) == (0, 0)
    pickle.loads(pickle.dumps(student))


def test_of_several_forwards_the_last_with_gradients_counts():
    student, teacher, x = _net(), _net(), torch.randn(5, 3)
    manager = _begin(student, teacher, "0", add_origin_loss=False)
    student(torch.randn(5, 3))
    student(x)
    with torch.no_grad():
        student(torch.randn(5, 3))  # an evaluation
    teacher(torch.randn(5, 3))  # somebody else asks
    value = manager.on_after_compute_loss(x, None, 0.0)
    torch.testing.assert_close(value, F.mse_loss(student[0](x), teacher[0](x)))


def test_a_given_teacher_output_does_not_replace_its_layers():
    student, teacher, x = _net(), _net(), torch.randn(5, 3)
    manager = _begin(student, teacher, "0", add_origin_loss=False)
    output = student(x)
    value = manager.on_after_compute_loss(x, output, 0.0, teacher_output=torch.zeros(5, 4))
    torch.testing.assert_close(value, F.mse_loss(student[0](x), teacher[0](x)))
    lonely = DistillationCallbacks(FeatureDistillation([FeaturePair(Tap("0"), Tap("0"))]), student=student)
    with pytest.raises(ModelError, match="did not run"):
        lonely.on_after_compute_loss(x, output, 0.0)


def test_without_a_forward_there_is_nothing_to_compare():
    student, teacher, x = _net(), _net(), torch.randn(5, 3)
    manager = _begin(student, teacher, "0")
    manager.on_after_compute_loss(x, student(x), 0.0)
    with pytest.raises(ModelError, match=r"The layer '0' of the student Sequential did not run since the last loss"):
        manager.on_after_compute_loss(x, None, 0.0)
    student(x)
    manager.on_step_begin(0)  # a batch whose loss was given up
    with pytest.raises(ModelError, match="did not run since the last loss"):
        manager.on_after_compute_loss(x, None, 0.0)


def test_a_frozen_layer_is_no_student():
    student, teacher, x = _net(), _net(), torch.randn(5, 3)
    student[0].requires_grad_(False)
    manager = _begin(student, teacher, "0")
    with pytest.raises(ModelError, match="layer '0' has no gradient, so nothing can be learnt by it"):
        manager.on_after_compute_loss(x, student(x), 0.0)


@pytest.mark.parametrize(("mapping", "whose"), [(["O", "0"], "student"), (["0", "O"], "teacher")])
def test_an_unknown_layer_is_named_before_anything_changes(mapping, whose):
    student, teacher = _net(), _net()
    conf = DistillationConfig(teacher, Layers([mapping]))
    classes = [type(module) for module in student.modules()]
    with pytest.raises(LayerNotFoundError, match=rf"layer_mappings names 'O', and the {whose} Sequential has no such"):
        prepare_compression(student, [QuantizationAwareTrainingConfig(), conf])
    assert [type(module) for module in student.modules()] == classes
    with pytest.raises(AttributeError, match="has no such module"):  # as INC's callers expect
        prepare_compression(student, conf)


def test_the_student_itself_teaches_by_a_frozen_copy():
    student, x = _net(), torch.randn(5, 3)
    before = copy.deepcopy(student)
    with pytest.warns(InexactWarning, match="frozen copy"):
        manager = _begin(student, student, "0", add_origin_loss=False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    assert _step(manager, optimizer, x) == 0
    with torch.no_grad():
        student[0].weight.add_(1)
    output = student(x)
    value = manager.on_after_compute_loss(x, output, 0.0)
    torch.testing.assert_close(value, F.mse_loss(student[0](x), before[0](x)))


# ---------------------------------------------------------------------------- copies and runs given up


def test_a_copy_of_the_model_in_training_is_silent():
    student, teacher, x = _net(), _net(), torch.randn(5, 3)
    manager = _begin(student, teacher, "0", add_origin_loss=False)
    output = student(x)
    average = copy.deepcopy(student)  # with features recorded
    average(torch.randn(5, 3))
    torch.testing.assert_close(manager.on_after_compute_loss(x, output, 0.0), F.mse_loss(student[0](x), teacher[0](x)))
    restored = pickle.loads(pickle.dumps(student))
    torch.testing.assert_close(restored(x), output)


def test_a_run_given_up_keeps_nothing_alive():
    student, x = _net(), torch.randn(5, 3)
    manager = _begin(student, _net(), "0")
    student(x)
    taps = weakref.ref(manager.callbacks.callbacks_list[0]._taps)
    del manager
    gc.collect()
    assert taps() is None
    student(x)


def test_two_managers_on_two_models_do_not_meet():
    first, second, teacher, x = _net(), _net(), _net(), torch.randn(5, 3)
    managers = [_begin(student, teacher, "0", add_origin_loss=False) for student in (first, second)]
    first(x), second(x)
    for student, manager in zip((first, second), managers, strict=True):
        expected = F.mse_loss(student[0](x), teacher[0](x))
        student(x)
        torch.testing.assert_close(manager.on_after_compute_loss(x, None, 0.0), expected)


# ---------------------------------------------------------------------------- projections


def _projected(student, teacher, **options):
    return _begin(student, teacher, "1", add_origin_loss=False, **options)


def _projection(manager):
    return manager.callbacks.callbacks_list[0].losses[0].projections[0]


def test_projections_learn_beside_the_student_and_are_never_part_of_it():
    torch.manual_seed(0)
    student, teacher = _net(4), _net(8)
    keys = list(student.state_dict())
    manager = _projected(student, teacher, projection_learning_rate=0.01)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    losses = [_step(manager, optimizer, torch.randn(16, 3)) for _ in range(150)]
    assert torch.stack(losses[-10:]).mean() < 0.3 * torch.stack(losses[:10]).mean()
    assert list(student.state_dict()) == keys
    assert len(list(student.parameters())) == 4
    manager.on_train_end()
    assert list(student.state_dict()) == keys


def test_projections_that_are_not_to_learn_stay():
    student, teacher, x = _net(4), _net(8), torch.randn(5, 3)
    manager = _projected(student, teacher, projection_learning_rate=0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    _step(manager, optimizer, x)
    drawn = _projection(manager).weight.clone()
    _step(manager, optimizer, x)
    assert torch.equal(_projection(manager).weight, drawn)
    assert _projection(manager).weight.grad is None


def test_projections_step_as_adam_does_and_follow_the_schedule():
    student, teacher, x = _net(4), _net(8), torch.randn(5, 3)
    manager = _projected(student, teacher, projection_learning_rate=0.5)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [1.0, 0.25, 0.0, 0.0][step])
    sizes = []
    for _ in range(3):
        manager.on_after_compute_loss(x, student(x), 0.0)
        before = _projection(manager).weight.detach().clone()
        _step(manager, optimizer, x)
        sizes.append((_projection(manager).weight.detach() - before).abs().max().item())
        scheduler.step()
    assert sizes[0] == pytest.approx(0.5, rel=1e-3)  # the first step of Adam is the learning rate
    assert 0 < sizes[1] < 0.25 * 1.01
    assert sizes[2] == 0


def test_gradients_of_one_update_add_up_and_infinite_ones_are_left_out():
    student, teacher, x = _net(4), _net(8), torch.randn(5, 3)
    manager = _projected(student, teacher)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(2):
        manager.on_step_begin(0)
        manager.on_after_compute_loss(x, student(x), 0.0).backward()
    doubled = _projection(manager).weight.grad.clone()
    optimizer.step()
    manager.on_after_optimizer_step()
    assert _projection(manager).weight.grad is None
    fresh = _projected(copy.deepcopy(student), teacher)
    fresh.on_after_compute_loss(x, fresh.model(x), 0.0)
    assert doubled.abs().max() > 0
    kept = _projection(manager).weight.detach().clone()
    (manager.on_after_compute_loss(x, student(x), 0.0) * float("inf")).backward()
    optimizer.zero_grad()
    optimizer.step()
    manager.on_after_optimizer_step()
    assert torch.equal(_projection(manager).weight, kept)
    assert _projection(manager).weight.grad is None


def test_a_run_cut_in_the_middle_ends_like_the_uncut_one(tmp_path):
    start, teacher, batches = _net(4), _net(8), torch.randn(6, 5, 3)

    def begin():
        student = copy.deepcopy(start)
        manager = _projected(student, teacher)
        return student, manager, torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)

    whole, manager, optimizer = begin()
    for x in batches:
        _step(manager, optimizer, x)
    last = _projection(manager).weight.detach()

    first, manager, optimizer = begin()
    for x in batches[:3]:
        _step(manager, optimizer, x)
    torch.save([first.state_dict(), optimizer.state_dict(), manager.state_dict()], tmp_path / "state.pt")
    second, manager, optimizer = begin()
    for own, state in zip(
        (second, optimizer, manager), torch.load(tmp_path / "state.pt", weights_only=True), strict=True
    ):
        own.load_state_dict(state)
    for x in batches[3:]:
        _step(manager, optimizer, x)
    torch.testing.assert_close(dict(second.state_dict()), dict(whole.state_dict()), rtol=0, atol=0)
    assert torch.equal(_projection(manager).weight, last)


# ---------------------------------------------------------------------------- several of all


class Depth(DistillationLoss):
    """A loss of a user, in one file."""

    def distance(self, student_output, teacher_output, padding_mask=None):
        return (student_output - teacher_output).abs().amax()


def test_a_loss_of_the_user():
    student, teacher, x = _net(), _net(), torch.randn(5, 3)
    conf = DistillationConfig(teacher, Depth())
    assert conf.to_dict()["data"]["criterion"] == "Depth"
    manager = prepare_compression(student, conf)
    manager.on_train_begin()
    output = student(x)
    value = manager.on_after_compute_loss(x, output, torch.tensor(2.0))
    torch.testing.assert_close(value, 2 + (output - teacher(x)).abs().max())


def test_several_criteria_ask_the_teacher_once():
    calls = []
    student, teacher, x = _net(), _net(), torch.randn(5, 3)
    teacher.register_forward_hook(lambda *_: calls.append(1))
    knowledge = KnowledgeDistillationLossConfig(loss_types=["CE", "MSE"], loss_weights=[0.25, 0.75])
    conf = DistillationConfig(teacher, [knowledge, Layers(["0"]), Depth()])
    manager = prepare_compression(student, conf)
    manager.on_train_begin()
    output = student(x)
    value = manager.on_after_compute_loss(x, output, torch.tensor(2.0))
    assert len(calls) == 1
    parts = F.mse_loss(output, teacher(x)), F.mse_loss(student[0](x), teacher[0](x)), (output - teacher(x)).abs().max()
    torch.testing.assert_close(value, 0.25 * 2 + 0.75 * parts[0] + parts[1] + parts[2])
    assert manager.metrics()["distillation_loss"] == pytest.approx(sum(parts).item(), rel=1e-5)


def test_of_several_teachers_distances_are_averaged_and_projections_are_apart():
    student, teachers, x = _net(4), [_net(8), _net(6)], torch.randn(5, 3)
    conf = DistillationConfig(teachers, [KnowledgeDistillationLossConfig(loss_types=["CE", "MSE"]), Layers(["0"])])
    manager = prepare_compression(student, conf)
    manager.on_train_begin()
    output = student(x)
    value = manager.on_after_compute_loss(x, output, torch.tensor(0.0))
    lessons = manager.callbacks.callbacks_list[0]._lessons
    knowledge = sum(F.mse_loss(output, teacher(x)) for teacher in teachers) / 2
    features = [
        F.mse_loss(lesson.losses[1].projections[0](student[0](x)), teacher[0](x))
        for lesson, teacher in zip(lessons, teachers, strict=True)
    ]
    torch.testing.assert_close(value, 0.5 * knowledge + sum(features) / 2)
    assert [tuple(lesson.losses[1].projections[0].weight.shape) for lesson in lessons] == [(8, 4), (6, 4)]
    assert repr(conf).startswith("DistillationConfig(teacher_model=<Sequential, Sequential>")
    again = DistillationConfig.from_dict(conf.to_dict())
    assert (again.criterion, again.teacher_model) == (conf.criterion, None)


def test_the_teacher_has_its_say_between_two_steps():
    calls = []
    student, teacher, x = _net(), _net(), torch.randn(5, 3)
    teacher.register_forward_hook(lambda *_: calls.append(1))
    manager = prepare_compression(student, DistillationConfig(teacher, Layers(["0"]), start_step=1, end_step=3))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    manager.on_train_begin()
    losses = [_step(manager, optimizer, x) for _ in range(5)]
    task, distance = student(x).square().mean(), F.mse_loss(student[0](x), teacher[0](x))
    for loss, expected in zip(losses, [task, distance, distance, task, task], strict=True):
        torch.testing.assert_close(loss, expected)
    assert len(calls) == 2  # teacher[0] above is not the teacher
    (phase,) = manager.callbacks.callbacks_list[0].phases()
    assert (phase.technique, phase.what, phase.steps) == ("distillation", "layers", "1 - 2")
    with pytest.raises(ConfigError, match=r"end_step=1: expected a step after start_step=1, or None"):
        DistillationConfig(teacher, start_step=1, end_step=1)


# ---------------------------------------------------------------------------- teachers of other kinds


def test_a_teacher_in_bfloat16_gets_inputs_in_bfloat16():
    student, teacher, x = _net(), _net().bfloat16(), torch.randn(5, 3)
    manager = _begin(student, teacher, "0", "2", add_origin_loss=False)
    value = manager.on_after_compute_loss(x, student(x), 0.0)
    hidden = [F.mse_loss(student[:stop](x), teacher[:stop](x.bfloat16()).float()) for stop in (1, 3)]
    torch.testing.assert_close(value, sum(hidden) / 2)
    assert value.dtype == torch.float32


# ---------------------------------------------------------------------------- under other wrappers


@pytest.mark.parametrize("is_warm", [False, True], ids=["fresh", "run before"])
def test_a_compiled_student(is_warm):
    student, teacher, x = _net(), _net(), torch.randn(5, 3)
    compiled = torch.compile(student, backend="aot_eager")
    if is_warm:
        compiled(x).sum().backward()
        student.zero_grad()
    manager = prepare_compression(compiled, DistillationConfig(teacher, Layers(["0", "1"])))
    manager.on_train_begin()
    for _ in range(2):
        output = compiled(x)
        value = manager.on_after_compute_loss(x, output, torch.tensor(0.0))
        value.backward()
        expected = sum(F.mse_loss(student[:stop](x), teacher[:stop](x)) for stop in (1, 2)) / 2
        torch.testing.assert_close(value, expected)
        gradient = torch.autograd.grad(expected, student[0].weight)[0]
        torch.testing.assert_close(student[0].weight.grad, gradient)
        student.zero_grad()
    manager.on_train_end()
    compiled(x)


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.first, self.block, self.use_reentrant = nn.Linear(3, 8), _Block(), use_reentrant

    def forward(self, x):
        return checkpoint(self.block, self.first(x), use_reentrant=self.use_reentrant)


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.outer(self.inner(x).relu())


def test_gradient_checkpointing():
    student, x = Checkpointed(use_reentrant=False), torch.randn(5, 3)
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        student.block.inner.weight.add_(0.1)
    manager = _begin(student, teacher, "block.inner", add_origin_loss=False)
    output = student(x)
    value = manager.on_after_compute_loss(x, output, 0.0)
    value.backward()
    with pytest.raises(ModelError, match="did not run since the last loss"):  # the recomputation does not count
        manager.on_after_compute_loss(x, output, 0.0)
    plain = student.block.inner(student.first(x))
    expected = F.mse_loss(plain, teacher.block.inner(teacher.first(x)).detach())
    torch.testing.assert_close(value, expected)
    gradient = torch.autograd.grad(expected, student.first.weight)[0]
    torch.testing.assert_close(student.first.weight.grad, gradient)


def test_what_reentrant_checkpointing_hides_is_told():
    student, x = Checkpointed(use_reentrant=True), torch.randn(5, 3)
    teacher = Checkpointed(use_reentrant=False)
    manager = _begin(student, teacher, "block.inner")
    with pytest.raises(ModelError, match=r"inside reentrant checkpointing there are none \(use_reentrant=False\)"):
        manager.on_after_compute_loss(x, student(x), 0.0)
    manager.on_train_end()
    manager = _begin(student, teacher, "first", add_origin_loss=False)
    student(x)
    expected = F.mse_loss(student.first(x), teacher.first(x))
    torch.testing.assert_close(manager.on_after_compute_loss(x, None, 0.0), expected)


# ---------------------------------------------------------------------------- under quantization


def _run(manager, batches):
    optimizer = torch.optim.SGD(manager.model.parameters(), lr=0.01)
    for x in batches:
        _step(manager, optimizer, x)


def test_layers_of_a_model_that_is_quantized_layer_by_layer():
    student, teacher, batches = _net(), _net(), torch.randn(4, 5, 3)
    manager = prepare_compression(
        student, [QuantizationAwareTrainingConfig(graph="off"), DistillationConfig(teacher, Layers(["0", "2"]))]
    )
    manager.on_train_begin()
    _run(manager, batches)
    manager.model(batches[0])
    x = batches[0]
    value = manager.on_after_compute_loss(x, None, 0.0)
    rounded = student[0](x)
    assert not torch.equal(rounded, F.linear(x, student[0].weight, student[0].bias))  # the tap sees what is rounded
    expected = (F.mse_loss(rounded, teacher[0](x)) + F.mse_loss(student(x), teacher(x))) / 2
    torch.testing.assert_close(value, expected)
    manager.on_train_end()
    assert _hooks(student) == 0
    pickle.loads(pickle.dumps(student))


def _conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def test_with_folded_normalization_every_layer_returns_what_it_would_in_float():
    student, teacher, batches = _conv_net(), _conv_net(), torch.randn(4, 6, 3, 8, 8)
    with torch.no_grad():
        student[1].running_var.fill_(4.0)  # so that the convolution with the normalization folded in is another one
    conf = DistillationConfig(teacher, Layers(["0", "1", "2"]))
    manager = prepare_compression(student, [QuantizationAwareTrainingConfig(), conf])
    manager.on_train_begin()
    _run(manager, batches)
    assert folded_norms(student) == {"0": "1"}
    student(batches[0])
    seen = manager.callbacks.callbacks_list[1]._taps.take()
    convolved = F.conv2d(batches[0], student[0].weight, student[0].bias, padding=1)
    normalized = F.batch_norm(convolved, None, None, student[1].weight, student[1].bias, training=True)
    for name, expected in (("0", convolved), ("1", normalized), ("2", normalized.relu())):
        assert F.cosine_similarity(seen[name].flatten(), expected.flatten(), 0) > 0.999
    torch.testing.assert_close(seen["2"], seen["1"].relu(), atol=0.05, rtol=0)
    manager.on_train_end()
    assert _hooks(student) == 0


def test_a_transformer_keeps_the_names_of_its_layers():
    config = {"vocab_size": 20, "num_attention_heads": 2, "max_position_embeddings": 16, "num_labels": 3}
    student = BertForSequenceClassification(
        BertConfig(hidden_size=8, num_hidden_layers=2, intermediate_size=8, **config)
    )
    teacher = BertForSequenceClassification(
        BertConfig(hidden_size=12, num_hidden_layers=4, intermediate_size=12, **config)
    )
    layers = [[f"bert.encoder.layer.{own}", f"bert.encoder.layer.{theirs}"] for own, theirs in ((0, 1), (1, 3))]
    manager = prepare_compression(
        student,
        [
            QuantizationAwareTrainingConfig(),
            DistillationConfig(teacher, Layers([*layers, [["", "logits"]]], loss_types=["MSE", "cosine", "KL"])),
        ],
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    manager.on_train_begin()
    batch = {"input_ids": torch.randint(20, (4, 6)), "attention_mask": torch.ones(4, 6), "labels": torch.arange(4) % 3}
    values = []
    for index in range(30):
        manager.on_step_begin(index)
        output = student(**batch)
        loss = manager.on_after_compute_loss(batch, output, output.loss)
        loss.backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        optimizer.zero_grad()
        values.append(loss.item())
    assert values[-1] < 0.9 * values[0]
    manager.on_train_end()
    assert manager.report().to_dict()
    assert student(**batch).logits.isfinite().all()


def test_knowledge_and_features_of_the_same_teacher_in_two_configs_chain():
    student, teacher, x = _net(), _net(), torch.randn(5, 3)
    confs = [DistillationConfig(teacher), DistillationConfig(teacher, Layers(["0"], add_origin_loss=True))]
    manager = prepare_compression(student, confs)
    manager.on_train_begin()
    output = student(x)
    value = manager.on_after_compute_loss(x, output, torch.tensor(2.0))
    expected = KnowledgeDistillation().combine(output, teacher(x), 2.0) + F.mse_loss(student[0](x), teacher[0](x))
    torch.testing.assert_close(value, expected)
