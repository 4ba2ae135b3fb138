"""The distillation callback: when the teacher runs, what comes back, what is kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from inc_torch.callbacks import DistillationCallbacks
from inc_torch.core.callback import Callback
from inc_torch.core.dispatcher import Dispatcher
from inc_torch.core.errors import ConfigError, ConfigTypeError, InexactWarning, ModelError, StateError
from inc_torch.core.hooks import HOOKS, Progress, Stage
from inc_torch.distillers import KnowledgeDistillation

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "distillation.json").read_text(encoding="utf-8"))
NO_INPUT = object()


class Counting(nn.Linear):
    """A teacher that counts its calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def _tensor(encoded):
    return torch.tensor(encoded["data"]).reshape(encoded["shape"])


def _net():
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in VECTORS["kd"]])
def test_the_hook_returns_what_inc_returns(case):
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in case["config"].items()}
    callback = DistillationCallbacks(KnowledgeDistillation(**fields))
    inputs, expected = case["inputs"], case["expected"]
    value = callback.on_after_compute_loss(
        NO_INPUT, _tensor(inputs["student_output"]), inputs["student_loss"], _tensor(inputs["teacher_output"])
    )
    assert value.shape == ()
    torch.testing.assert_close(value, torch.tensor(expected["loss"]), rtol=1e-5, atol=1e-6)
    if not callback.needs_teacher:
        assert callback.last_distillation_loss is None
    elif "distill_term_unweighted" in expected:
        term = torch.tensor(expected["distill_term_unweighted"])
        torch.testing.assert_close(callback.last_distillation_loss, term, rtol=1e-5, atol=1e-6)


def test_it_is_a_callback_that_observes():
    callback = DistillationCallbacks(KnowledgeDistillation())
    assert isinstance(callback, Callback)
    assert callback.stage is Stage.OBSERVE
    assert repr(callback) == "Distillation Callbacks"
    assert list(callback.findings()) == []
    assert list(callback.tracked_parameters()) == []
    assert [hook for hook in HOOKS if hook in vars(DistillationCallbacks)] == [
        "on_train_begin",
        "on_step_begin",
        "on_after_compute_loss",
        "on_after_optimizer_step",
        "on_train_end",
    ]


def test_the_teacher_runs_once_a_batch_only_where_it_counts():
    teacher, x, logits = Counting(3, 4), torch.randn(2, 3), torch.randn(2, 4)
    DistillationCallbacks(KnowledgeDistillation(loss_weights=(1.0, 0.0)), teacher).on_after_compute_loss(x, logits, 1.0)
    assert teacher.calls == 0
    callback = DistillationCallbacks(KnowledgeDistillation(loss_types=("CE", "MSE")), teacher)
    callback.on_after_compute_loss(x, logits, 1.0, teacher_output=torch.zeros(2, 4))
    assert teacher.calls == 0
    value = callback.on_after_compute_loss(x, logits, 1.0)
    assert teacher.calls == 1
    torch.testing.assert_close(value, 0.5 + 0.5 * F.mse_loss(logits, teacher(x).detach()))


def test_precomputed_outputs_equal_the_teacher_bit_for_bit():
    teacher, student, x = _net(), _net(), torch.randn(6, 3)
    output = student(x)
    task = output.square().mean()
    live = DistillationCallbacks(KnowledgeDistillation(2.0), teacher).on_after_compute_loss(x, output, task)
    known = copy.deepcopy(teacher).eval()(x)
    given = DistillationCallbacks(KnowledgeDistillation(2.0)).on_after_compute_loss(x, output, task, known)
    torch.testing.assert_close(live, given, rtol=0, atol=0)
    given.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_the_logged_value_holds_no_graph():
    student = torch.randn(2, 4, requires_grad=True)
    callback = DistillationCallbacks(KnowledgeDistillation(2.0, ("CE", "MSE")))
    assert callback.last_distillation_loss is None
    callback.on_after_compute_loss(NO_INPUT, student, student.sum(), torch.zeros(2, 4))
    assert not callback.last_distillation_loss.requires_grad
    torch.testing.assert_close(callback.last_distillation_loss, student.detach().square().mean())


def test_a_failed_batch_leaves_no_old_value_behind():
    callback = DistillationCallbacks(KnowledgeDistillation())
    callback.on_after_compute_loss(NO_INPUT, torch.zeros(2, 4), 1.0, torch.zeros(2, 4))
    with pytest.raises(ModelError, match="expected one shape for both"):
        callback.on_after_compute_loss(NO_INPUT, torch.zeros(2, 4), 1.0, torch.zeros(2, 5))
    assert callback.last_distillation_loss is None


def test_without_a_teacher_and_its_output_both_ways_out_are_told():
    callback = DistillationCallbacks(KnowledgeDistillation())
    with pytest.raises(
        ConfigError, match=r"Pass teacher_model to DistillationConfig, or .* teacher_output to on_after"
    ):
        callback.on_after_compute_loss(torch.zeros(2, 3), torch.zeros(2, 4), torch.tensor(1.0))


def test_a_teacher_must_be_a_module():
    with pytest.raises(ConfigTypeError, match=r"The teacher is of type str: expected a torch\.nn\.Module"):
        DistillationCallbacks(KnowledgeDistillation(), "teacher")


def test_a_student_loss_that_is_not_reduced_is_refused():
    callback = DistillationCallbacks(KnowledgeDistillation())
    with pytest.raises(ModelError, match=r"student_loss has shape \(2,\): expected a single number"):
        callback.on_after_compute_loss(NO_INPUT, torch.zeros(2, 4), torch.ones(2), torch.zeros(2, 4))


# ---------------------------------------------------------------------------- the student as its own teacher


def test_the_student_as_teacher_is_copied_before_anything_is_rewritten():
    student, x = _net(), torch.randn(5, 3)
    before = copy.deepcopy(student).eval()(x).detach()
    with pytest.warns(InexactWarning, match="A frozen copy of it, as it is now, is the teacher instead") as told:
        callback = DistillationCallbacks(KnowledgeDistillation(loss_types=("CE", "MSE")), student, student=student)
    assert (len(told), told[0].filename) == (1, __file__)
    student[0] = nn.Linear(3, 8)  # what a rewriting callback may do between construction and prepare
    callback.prepare(student, Progress())  # no second warning
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    statistics = callback.teachers[0].module[1].running_mean.clone()
    for _ in range(3):
        output = student(x)
        callback.on_after_compute_loss(x, output, output.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(module.training for module in student.modules())
    torch.testing.assert_close(callback.teachers[0](x), before, rtol=0, atol=0)
    torch.testing.assert_close(callback.teachers[0].module[1].running_mean, statistics, rtol=0, atol=0)
    assert len(list(student.parameters())) == 6
    assert not any("teacher" in name for name in student.state_dict())


def test_without_the_student_prepare_makes_the_copy():
    student = _net()
    callback = DistillationCallbacks(KnowledgeDistillation(), student)
    with pytest.warns(InexactWarning, match="frozen copy"):
        callback.prepare(student, Progress())
    assert callback.teachers[0].module is not student
    assert callback.model is student


def test_no_copy_is_made_of_a_teacher_that_never_runs():
    student = _net()
    callback = DistillationCallbacks(KnowledgeDistillation(loss_weights=(1.0, 0.0)), student, student=student)
    assert callback.teachers[0].module is student


# ---------------------------------------------------------------------------- state


def test_a_teacher_of_its_own_leaves_the_state_without_a_tensor():
    learnt = [{"loss": {}, "optimizer": {"adam": {}, "gradients": []}}]
    callback = DistillationCallbacks(KnowledgeDistillation(), _net(), student=_net())
    assert callback.state_dict() == {"snapshots": [""], "learnt": learnt}
    callback.load_state_dict(callback.state_dict())
    assert DistillationCallbacks(KnowledgeDistillation()).state_dict() == {"snapshots": [], "learnt": learnt}


def _self_taught(student):
    with pytest.warns(InexactWarning, match="frozen copy"):
        return DistillationCallbacks(KnowledgeDistillation(), student, student=student)


def test_a_copy_of_the_student_is_recognised_on_resume():
    student = _net()
    restarted = _self_taught(copy.deepcopy(student))
    callback = _self_taught(student)
    student[0].weight.data.zero_()  # training goes on, the copy stays
    state = callback.state_dict()
    assert len(state["snapshots"][0]) == 64
    restarted.load_state_dict(state)


def test_another_copy_is_refused_on_resume():
    state = _self_taught(_net()).state_dict()
    with pytest.raises(
        StateError, match=r"differs from the one of the saved run\. Call prepare_compression on the model"
    ):
        _self_taught(_net()).load_state_dict(state)


def test_other_keys_are_refused():
    own_teacher = DistillationCallbacks(KnowledgeDistillation(), _net())
    with pytest.raises(StateError, match=r"missing \['learnt', 'snapshots'\], unexpected \['snapshot'\]"):
        own_teacher.load_state_dict({"snapshot": "0"})
    with pytest.raises(StateError, match="differs from the one of the saved run"):
        _self_taught(_net()).load_state_dict(own_teacher.state_dict())


def _train(student, callback, batches, optimizer):
    for x in batches:
        output = student(x)
        callback.on_after_compute_loss(x, output, output.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_run_cut_in_the_middle_ends_like_the_uncut_one(tmp_path):
    start, batches = _net(), torch.randn(8, 5, 3)

    def begin():
        student = copy.deepcopy(start)
        return student, _self_taught(student), torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)

    whole, callback, optimizer = begin()
    _train(whole, callback, batches, optimizer)

    first, callback, optimizer = begin()
    _train(first, callback, batches[:3], optimizer)
    saved = [first.state_dict(), callback.state_dict(), optimizer.state_dict()]
    torch.save(saved, tmp_path / "state.pt")

    second, callback, optimizer = begin()
    model_state, callback_state, optimizer_state = torch.load(tmp_path / "state.pt", weights_only=True)
    second.load_state_dict(model_state)
    callback.load_state_dict(callback_state)
    optimizer.load_state_dict(optimizer_state)
    _train(second, callback, batches[3:], optimizer)
    torch.testing.assert_close(dict(second.state_dict()), dict(whole.state_dict()), rtol=0, atol=0)


# ---------------------------------------------------------------------------- in a loop


def test_two_distillations_chain():
    model = nn.Linear(3, 4)
    logits, one, two = torch.randn(3, 2, 4)
    conf = KnowledgeDistillation(loss_types=("CE", "MSE"), loss_weights=(0.5, 0.5))
    first, second = (DistillationCallbacks(conf, OutputOf(value)) for value in (one, two))
    dispatcher = Dispatcher([first, second], model)
    dispatcher.prepare()
    dispatcher.on_train_begin()
    value = dispatcher.on_after_compute_loss(torch.zeros(2, 3), logits, torch.tensor(4.0))
    expected = 0.5 * (0.5 * 4.0 + 0.5 * F.mse_loss(logits, one)) + 0.5 * F.mse_loss(logits, two)
    torch.testing.assert_close(value, expected)


class OutputOf(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    student, teacher, x = nn.Linear(3, 4), nn.Linear(3, 4), torch.randn(5, 3)
    callback = DistillationCallbacks(KnowledgeDistillation(3.0, ("CE", "KL"), (0.5, 0.5)), teacher, student=student)
    with torch.autocast("cpu", dtype=dtype):
        output = student(x)
        assert output.dtype == dtype
        value = callback.on_after_compute_loss(x, output, F.cross_entropy(output, torch.zeros(5, dtype=torch.long)))
        expected = KnowledgeDistillation(3.0, ("CE", "KL")).distance(output.detach().float(), teacher(x).float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(callback.last_distillation_loss, expected.detach(), rtol=0, atol=0)
    value.backward()
    assert torch.isfinite(student.weight.grad).all()
    assert teacher.weight.grad is None


def test_bert_with_labels():
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
        num_labels=3,
    )
    student, teacher = BertForSequenceClassification(config), BertForSequenceClassification(config)
    callback = DistillationCallbacks(KnowledgeDistillation(2.0, ("CE", "KL"), (0.3, 0.7)), teacher, student=student)
    batch = {"input_ids": torch.randint(20, (4, 6)), "attention_mask": torch.ones(4, 6), "labels": torch.arange(4) % 3}
    output = student(**batch)
    value = callback.on_after_compute_loss(batch, output, output.loss)
    with torch.no_grad():
        known = copy.deepcopy(teacher).eval()(batch["input_ids"], batch["attention_mask"]).logits
    distance = 4 * F.kl_div(
        F.log_softmax(output.logits / 2, -1), F.log_softmax(known / 2, -1), log_target=True, reduction="sum"
    )
    torch.testing.assert_close(value, 0.3 * output.loss + 0.7 * distance / 12)
    value.backward()
    assert student.classifier.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert teacher.training
    as_tuple = callback.on_after_compute_loss(batch, output.to_tuple(), output.loss, (known,))
    torch.testing.assert_close(as_tuple, value)


def test_padding_of_the_batch_reaches_the_loss():
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    batch = {"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    loss = KnowledgeDistillation(loss_weights=(0.0, 1.0), ignore_padding=True)
    real = [side.reshape(-1, 5)[[0, 1, 3]] for side in (student, teacher)]
    value = DistillationCallbacks(loss).on_after_compute_loss(batch, student, 0.0, teacher)
    torch.testing.assert_close(value, loss.distance(*real))
    unmasked = DistillationCallbacks(loss).on_after_compute_loss({"attention_mask": None}, student, 0.0, teacher)
    torch.testing.assert_close(unmasked, loss.distance(student, teacher))
