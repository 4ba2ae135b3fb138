"""Running a teacher: what it is given, what it gives back, and that nothing of it changes."""

from __future__ import annotations

import copy
import warnings
from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from inc_torch.core.errors import ConfigTypeError, InexactWarning
from inc_torch.distillers import Teacher, extract_logits

BERT = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}


class Recorder(nn.Module):
    """Keeps the arguments that it was called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def record(self, **arguments):
        self.calls.append(arguments)
        return torch.zeros(1, 2)


class OneInput(Recorder):
    def forward(self, x):
        return self.record(x=x)


class TwoInputs(Recorder):
    def forward(self, x, mask=None, *, scale=1.0):
        return self.record(x=x, mask=mask, scale=scale)


class NeedsLabels(Recorder):
    def forward(self, x, labels):
        return self.record(x=x, labels=labels)


class Anything(Recorder):
    def forward(self, *args, **kwargs):
        return self.record(args=args, kwargs=kwargs)


class PositionalOnly(Recorder):
    def forward(self, batch, /):
        return self.record(batch=batch)


Pair = namedtuple("Pair", ["first", "second"])


def _received(module, inputs):
    Teacher(module)(inputs)
    (call,) = module.calls
    return call


# ---------------------------------------------------------------------------- the call


@pytest.mark.parametrize(
    ("module", "inputs", "expected"),
    [
        (OneInput, 1, {"x": 1}),
        (OneInput, {"x": 1, "labels": 2, "y": 3}, {"x": 1}),
        (OneInput, UserDict(x=1, labels=2), {"x": 1}),
        (OneInput, {"y": 3}, {"x": {"y": 3}}),
        (OneInput, (1, 2), {"x": 1}),
        (OneInput, [1, 2, 3], {"x": 1}),
        (OneInput, [1], {"x": 1}),
        (OneInput, Pair(1, 2), {"x": 1}),
        (TwoInputs, {"x": 1, "scale": 2.0, "idx": 5}, {"x": 1, "mask": None, "scale": 2.0}),
        (TwoInputs, (1, 2, 3), {"x": 1, "mask": 2, "scale": 1.0}),
        (NeedsLabels, {"x": 1, "labels": 2, "label": 3}, {"x": 1, "labels": 2}),
        (NeedsLabels, (1, 2), {"x": 1, "labels": 2}),
        (Anything, (1, 2, 3), {"args": (1, 2, 3), "kwargs": {}}),
        (
            Anything,
            {
                "x": 1,
                "end_positions": 2,
                "label": 2,
                "label_ids": 2,
                "labels": 2,
                "next_sentence_label": 2,
                "num_items_in_batch": 2,
                "return_loss": 2,
                "start_positions": 2,
            },
            {"args": (), "kwargs": {"x": 1}},
        ),
        (PositionalOnly, {"batch": 1}, {"batch": {"batch": 1}}),
        (PositionalOnly, (1, 2), {"batch": 1}),
    ],
)
def test_the_call_follows_the_signature(module, inputs, expected):
    assert _received(module(), inputs) == expected


def test_the_signature_is_read_once(monkeypatch):
    teacher = Teacher(OneInput())
    monkeypatch.setattr("inspect.signature", lambda *_: pytest.fail("read again"))
    teacher((1, 2))


def test_wrappers_that_pass_everything_on_are_looked_through():
    assert _received_through(nn.DataParallel(OneInput())) == {"x": 1}
    assert _received_through(nn.DataParallel(nn.DataParallel(OneInput()))) == {"x": 1}


def _received_through(wrapper):
    inner = wrapper
    while isinstance(inner, nn.DataParallel):
        inner = inner.module
    Teacher(wrapper)((1, 2))
    return inner.calls[0]


def test_a_compiled_teacher_is_looked_through():
    compiled = torch.compile(nn.Linear(3, 2), backend="eager")
    x = torch.randn(4, 3)
    torch.testing.assert_close(Teacher(compiled)((x, torch.zeros(4))), compiled._orig_mod(x).detach())


def test_a_forward_without_a_signature_gets_everything():
    module = nn.Module()
    module.forward = torch.relu
    torch.testing.assert_close(Teacher(module)((torch.tensor([-1.0, 2.0]),)), torch.tensor([0.0, 2.0]))


def test_a_failing_teacher_says_where():
    class Failing(nn.Module):
        def forward(self, x, mask=None):
            raise KeyError("lost")

    teacher = Failing()
    with pytest.raises(KeyError, match="lost") as caught:
        Teacher(teacher)({"x": 1, "mask": 2, "labels": 3})
    assert caught.value.__notes__ == ["While running the teacher Failing with the arguments (x=, mask=)."]
    assert teacher.training
    with pytest.raises(KeyError) as caught:
        Teacher(teacher)((1, "text"))
    assert caught.value.__notes__ == ["While running the teacher Failing with the arguments (int, str)."]


def test_only_modules_are_teachers():
    with pytest.raises(
        ConfigTypeError, match=r"of type function: expected a torch.nn.Module, or None and a teacher_out"
    ):
        Teacher(lambda x: x)


# ---------------------------------------------------------------------------- devices


def test_inputs_are_moved_to_the_teacher():
    class OnMeta(Recorder):
        def __init__(self):
            super().__init__()
            self.register_buffer("here", torch.zeros(1, device="meta"))

        def forward(self, **kwargs):
            return self.record(**kwargs)

    class Opaque:
        pass

    cpu, opaque = torch.zeros(2), Opaque()
    module = OnMeta()
    inputs = {
        "tensor": cpu,
        "list": [cpu, {"deep": cpu}],
        "pair": Pair(cpu, 3),
        "tuple": (cpu,),
        "opaque": opaque,
        "none": None,
    }
    got = _received(module, inputs)
    assert all(tensor.is_meta for tensor in (got["tensor"], got["list"][0], got["list"][1]["deep"], got["tuple"][0]))
    assert isinstance(got["list"], list)
    assert isinstance(got["pair"], Pair)
    assert got["pair"].first.is_meta
    assert got["pair"].second == 3
    assert got["opaque"] is opaque
    assert got["none"] is None
    assert not cpu.is_meta


class OutputOf(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


def test_outputs_come_back_to_where_the_inputs_were():
    elsewhere = torch.zeros(2, device="meta")
    output = Teacher(OutputOf({"logits": torch.ones(2), "more": (torch.ones(1), "text")}))(elsewhere)
    assert output["logits"].is_meta
    assert output["more"][0].is_meta
    assert output["more"][1] == "text"


def test_nothing_is_copied_where_all_is_in_place():
    x, output = torch.zeros(2), {"logits": torch.ones(2)}
    module = OneInput()
    batch = UserDict(y=x)
    Teacher(module)(batch)
    assert module.calls[0]["x"] is batch
    assert Teacher(OutputOf(output))(x) is output


# ---------------------------------------------------------------------------- no trace


def _net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Sequential(nn.Linear(4, 2)))


def test_the_teacher_runs_in_eval_without_gradients_and_keeps_its_modes():
    module = _net()
    module[1].eval()  # a frozen batch norm
    modes = {name: child.training for name, child in module.named_modules()}
    state = copy.deepcopy(module.state_dict())
    expected = copy.deepcopy(module).eval()
    x = torch.randn(5, 3, requires_grad=True)
    output = Teacher(module)(x)
    torch.testing.assert_close(output, expected(x).detach(), rtol=0, atol=0)
    assert not output.requires_grad
    assert {name: child.training for name, child in module.named_modules()} == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    torch.testing.assert_close(dict(module.state_dict()), dict(state), rtol=0, atol=0)


def test_modes_are_restored_when_only_a_part_was_training():
    module = _net().eval()
    module[3].train()
    Teacher(module)(torch.randn(2, 3))
    assert [child.training for child in module] == [False, False, False, True]
    assert not module.training


def test_a_teacher_in_eval_mode_is_not_switched():
    class Counting(OneInput):
        switches = 0

        def train(self, mode=True):
            self.switches += 1
            return super().train(mode)

    module = Counting().eval()
    Teacher(module)(1)
    assert module.switches == 1  # the one above
    module.train()
    Teacher(module)(1)
    assert module.switches == 4  # there and back, through the module's own method
    assert module.training


def test_a_teacher_leaves_no_trace_in_the_model_that_holds_it():
    student = nn.Linear(2, 2)
    student.teacher = Teacher(_net())
    assert set(student.state_dict()) == {"weight", "bias"}
    assert len(list(student.parameters())) == 2


def test_repr():
    assert repr(Teacher(nn.Linear(1, 1))) == "Teacher(Linear)"


# ---------------------------------------------------------------------------- the student as its own teacher


def _shared_memory():
    student = nn.Linear(3, 2)
    teacher = nn.Linear(3, 2)
    teacher.weight = nn.Parameter(student.weight.data)
    return student, teacher


def _itself():
    student = _net()
    return student, student


def _wrapped():
    student = _net()
    return student, nn.Sequential(student)


def _part():
    student = _net()
    return student, student[0]


@pytest.mark.parametrize("make", [_itself, _wrapped, _part, _shared_memory])
def test_a_teacher_that_shares_weights_becomes_a_frozen_copy(make):
    student, module = make()
    x = torch.randn(4, 3)
    expected = copy.deepcopy(module).eval()(x)
    teacher = Teacher(module)
    with pytest.warns(
        InexactWarning, match=r"shares weights with the student\. A frozen copy .* copy\.deepcopy"
    ) as told:
        teacher.separate_from(student)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert teacher.is_snapshot
    assert repr(teacher).endswith("frozen copy)")
    assert teacher.module is not module
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert student.training
    teacher.separate_from(student)  # once is enough: no second warning
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    torch.testing.assert_close(teacher(x), expected.detach(), rtol=0, atol=0)
    assert student.training


def test_a_student_without_weights_can_teach_itself():
    student = nn.ReLU()
    teacher = Teacher(student)
    with pytest.warns(InexactWarning, match="The teacher ReLU shares"):
        teacher.separate_from(student)
    assert teacher.module is not student


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_teacher_of_its_own_is_left_alone(device):
    module, student = _net().to(device), _net().to(device)
    module.register_buffer("empty", torch.empty(0))
    student.register_buffer("empty", torch.empty(0))
    teacher = Teacher(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teacher.separate_from(student)
    assert teacher.module is module
    assert not teacher.is_snapshot


def test_a_teacher_that_cannot_be_copied_says_so():
    student = nn.Linear(2, 2)
    student.graph = student(torch.ones(1, 2))  # no leaf: deepcopy refuses
    with pytest.raises(RuntimeError, match="deepcopy") as caught:
        Teacher(student).separate_from(student)
    assert caught.value.__notes__ == [
        "While copying the teacher Linear, which shares weights with the student. "
        "Pass a teacher_model of its own, or teacher_output."
    ]


def test_fingerprint_tells_weights_apart():
    module = _net()
    module.register_buffer("scalar", torch.tensor(3))
    module.register_buffer("brain", torch.ones(2, dtype=torch.bfloat16))
    teacher, same = Teacher(module), Teacher(copy.deepcopy(module))
    first = teacher.fingerprint()
    assert len(first) == 64
    assert same.fingerprint() == first
    module[0].bias.data[0] += 1e-3
    assert teacher.fingerprint() != first
    module[0].bias.data[0] = same.module[0].bias.data[0]
    assert teacher.fingerprint() == first
    module.scalar.add_(1)
    assert teacher.fingerprint() != first


# ---------------------------------------------------------------------------- real models


def test_bert_gets_no_labels_and_returns_a_model_output():
    module = BertForSequenceClassification(BertConfig(**BERT, num_labels=3))
    batch = {
        "input_ids": torch.randint(20, (2, 5)),
        "attention_mask": torch.ones(2, 5, dtype=torch.long),
        "labels": torch.tensor([7, 9]),  # outside the teacher's classes
        "num_items_in_batch": torch.tensor(2),
    }
    output = Teacher(module)(batch)
    assert output.loss is None
    expected = copy.deepcopy(module).eval()(batch["input_ids"], batch["attention_mask"]).logits
    torch.testing.assert_close(extract_logits(output), expected.detach())
    assert module.training
    assert "labels" in batch


def test_bert_for_questions_gets_no_positions():
    module = BertForQuestionAnswering(BertConfig(**BERT))
    positions = torch.tensor([1, 2])
    output = Teacher(module)(
        {"input_ids": torch.randint(20, (2, 5)), "start_positions": positions, "end_positions": positions}
    )
    assert output.loss is None
    assert extract_logits(output).shape == (4, 5)


def test_t5_gets_the_decoder_inputs_that_its_labels_stand_for():
    module = T5ForConditionalGeneration(
        T5Config(
            vocab_size=20,
            d_model=8,
            d_kv=4,
            d_ff=8,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    assert_decoder_inputs_are_made(module, {"input_ids": torch.randint(2, 20, (2, 5))})


def test_so_does_whisper_which_shifts_labels_within_its_forward():
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    tokens = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 2}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = WhisperConfig(**sizes, **tokens, **heads, num_mel_bins=4, max_source_positions=6, max_target_positions=8)
    module = WhisperForConditionalGeneration(config)
    assert_decoder_inputs_are_made(module, {"input_features": torch.randn(2, 4, 12)})


def test_labels_of_a_classifier_are_no_texts_for_its_decoder():
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    module = BartForSequenceClassification(BartConfig(vocab_size=20, max_position_embeddings=8, **sizes, **heads))
    words = torch.tensor([[3, 4, 5, 2], [6, 7, 8, 2]])
    with torch.no_grad():
        alone = copy.deepcopy(module).eval()(input_ids=words)
    output = Teacher(module)({"input_ids": words, "labels": torch.tensor([0, 1])})
    torch.testing.assert_close(output.logits, alone.logits)


def assert_decoder_inputs_are_made(module, inputs):
    batch = {**inputs, "labels": torch.tensor([[3, -100, 1], [5, 1, -100]])}
    with torch.no_grad():
        with_labels = copy.deepcopy(module).eval()(**batch)
    output = Teacher(module)(batch)
    assert output.loss is None
    torch.testing.assert_close(output.logits, with_labels.logits)
    own = {**batch, "decoder_input_ids": torch.tensor([[0, 9], [0, 8]])}
    assert Teacher(module)(own).logits.shape == (2, 2, 20)
