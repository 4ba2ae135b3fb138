"""The teacher's say in the Trainer's loss: always there, never twice, weighed as the loss is."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer

from inc_torch import DistillationConfig, INCCallback, IntermediateLayersKnowledgeDistillationLossConfig
from inc_torch.core.callback import Callback
from inc_torch.core.errors import ConfigError, ModelError
from tests.trainer.setup import Sentences, bert, distillation, gpt2, llama, techniques, trainer_of

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Gradients(Callback):
    """Keeps the gradients of each step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_before_optimizer_step(self) -> None:
        self.seen.append(torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None]))


def first_gradient(model: nn.Module, folder, confs, **options) -> torch.Tensor:
    gradients = Gradients()
    settings = {"max_steps": 1, "max_grad_norm": 0, "data": Sentences(16), **options}
    trainer_of(model, folder, [INCCallback([*confs, gradients])], **settings).train()
    return gradients.seen[0]


def cut(size: int) -> dict[str, int]:
    """The same sixteen sentences as one batch, in pieces of ``size``."""
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": 16 // size}


def test_the_loss_is_the_documented_mix(tmp_path):
    student, teacher = bert(**STILL), bert(seed=1, **STILL)
    got = first_gradient(copy.deepcopy(student), tmp_path, [distillation(teacher)], **cut(16))
    rows = [Sentences(16)[index] for index in range(16)]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    output = student.train()(**batch)
    with torch.no_grad():
        target = teacher.eval()(**{**batch, "labels": None}).logits
    (0.5 * output.loss + 0.5 * 4 * _divergence(output.logits / 2, target / 2)).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


def _divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Of the student from the teacher, mean over all elements."""
    log_student, log_teacher = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    return (log_teacher.exp() * (log_teacher - log_student)).mean()


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
def test_a_loss_that_counts_items_and_its_distance_do_not_depend_on_the_cut(make, weights, tmp_path):
    """As many labels in each piece, so that a mean over pieces is the mean over all."""
    data = _FullText(16)

    def gradient(size: int) -> torch.Tensor:
        model = _without_dropout(make())
        confs = [distillation(_without_dropout(make(seed=1)), loss_weights=weights)]
        return first_gradient(model, tmp_path, confs, data=data, **cut(size))

    torch.testing.assert_close(gradient(4), gradient(16), rtol=1e-3, atol=1e-6)


class _FullText(Sentences):
    """Every word has a label."""

    def __init__(self, count: int) -> None:
        super().__init__(count, is_text=True)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**super().__getitem__(index), "labels": self.words[index].clone()}


def _without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def test_the_distance_weighs_as_many_items_as_the_loss(tmp_path):
    """Pieces with other numbers of labels: each piece's distance counts by its labels."""
    data = Sentences(16, is_text=True)
    teacher = llama(seed=1)
    got = first_gradient(
        llama(), tmp_path, [distillation(teacher, loss_weights=[0.0, 1.0])], data=_InOrder(data), **cut(8)
    )
    student = llama()
    rows = [data[index] for index in range(16)]
    counts = [sum(int((row["labels"][1:] != -100).sum()) for row in rows[start : start + 8]) for start in (0, 8)]
    for start, count in zip((0, 8), counts, strict=True):
        words = torch.stack([row["input_ids"] for row in rows[start : start + 8]])
        with torch.no_grad():
            target = teacher(words).logits
        (4 * _divergence(student(words).logits / 2, target / 2) * count / sum(counts)).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-7)


class _InOrder(torch.utils.data.IterableDataset):
    """Not shuffled."""

    def __init__(self, data: Sentences) -> None:
        self.data = data

    def __iter__(self):
        yield from (self.data[index] for index in range(len(self.data)))


def test_a_loss_that_ignores_the_number_of_items_is_met_with_an_equal_distance(tmp_path):
    """BERT's loss is the mean of each piece; transformers 5 adds the pieces up, 4.57 averages. So with the distance."""
    teacher = bert(seed=1, **STILL)

    def gradient(size: int, weights: list[float]) -> torch.Tensor:
        return first_gradient(bert(**STILL), tmp_path, [distillation(teacher, loss_weights=weights)], **cut(size))

    own, distance, both = (gradient(4, weights) for weights in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5]))
    whole_own, whole_distance = (gradient(16, weights) for weights in ([1.0, 0.0], [0.0, 1.0]))
    torch.testing.assert_close(both, (own + distance) / 2, rtol=1e-3, atol=1e-7)
    factor = own @ whole_own / (whole_own @ whole_own)
    assert round(float(factor), 2) in (1.0, 4.0)
    torch.testing.assert_close(distance, factor * whole_distance, rtol=1e-3, atol=1e-6)


def test_label_smoothing(tmp_path):
    teacher = bert(seed=1, **STILL)
    smooth, full, both = (
        first_gradient(
            bert(**STILL),
            tmp_path,
            [distillation(teacher, loss_weights=weights)],
            label_smoothing_factor=0.2,
            **cut(16),
        )
        for weights in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5])
    )
    torch.testing.assert_close(both, (smooth + full) / 2, rtol=1e-3, atol=1e-7)
    assert smooth.norm() > 0
    assert full.norm() > 0


@pytest.mark.parametrize("size", [16, 4])
def test_compute_loss_func(size, tmp_path):
    def twice(outputs, labels, num_items_in_batch=None):
        return 2 * F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    def gradient(weights) -> torch.Tensor:
        confs = [distillation(bert(seed=1, **STILL), loss_weights=weights)]
        return first_gradient(bert(**STILL), tmp_path, confs, compute_loss_func=twice, **cut(size))

    own, teacher, both = gradient([1.0, 0.0]), gradient([0.0, 1.0]), gradient([0.5, 0.5])
    torch.testing.assert_close(both, (own + teacher) / 2, rtol=1e-3, atol=1e-7)
    whole = first_gradient(
        bert(**STILL), tmp_path, [distillation(bert(seed=1, **STILL), loss_weights=[0.0, 1.0])], **cut(16)
    )
    torch.testing.assert_close(teacher, whole, rtol=1e-3, atol=1e-6)


def test_trying_out_the_loss_leaves_no_trace(tmp_path):
    """The two forwards that find out whether items are counted draw no random number and observe nothing."""
    model = llama()
    quiet = trainer_of(model, tmp_path, [], data=Sentences(16, is_text=True), max_steps=2, **cut(8))
    quiet.train()
    weightless = llama()
    confs = [distillation(llama(seed=1), loss_weights=[1.0, 0.0])]
    trainer_of(
        weightless, tmp_path, [INCCallback(confs)], data=Sentences(16, is_text=True), max_steps=2, **cut(8)
    ).train()
    for left, right in zip(model.parameters(), weightless.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)


class OwnLoss(Trainer):
    """Computes its loss from the logits, as the documentation of transformers shows."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


def test_a_trainer_with_a_loss_of_its_own(tmp_path):
    callback = INCCallback([distillation(bert(seed=1), loss_weights=[0.0, 1.0]), gradients := Gradients()])
    trainer_of(bert(), tmp_path, [callback], kind=OwnLoss, max_steps=1).train()
    assert gradients.seen[0].norm() > 0
    assert callback.manager.metrics()["distillation_loss"] > 0


class NoOutputs(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**inputs).loss


def test_a_loss_without_outputs_is_refused(tmp_path):
    trainer = trainer_of(bert(), tmp_path, [INCCallback(distillation(bert(seed=1)))], kind=NoOutputs)
    with pytest.raises(ModelError, match=r"NoOutputs.compute_loss returned Tensor for return_outputs=True"):
        trainer.train()


class OwnStep(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = model(**self._prepare_inputs(inputs)).loss
        self.accelerator.backward(loss)
        return loss.detach()


def test_a_loss_that_goes_past_is_refused(tmp_path):
    trainer = trainer_of(bert(), tmp_path, [INCCallback(distillation(bert(seed=1)))], kind=OwnStep)
    with pytest.raises(ConfigError, match=r"OwnStep made an optimizer step without .*on_after_compute_loss"):
        trainer.train()


def test_distillation_without_a_teacher_is_refused_when_the_trainer_is_made(tmp_path):
    with pytest.raises(ConfigError, match=r"INCCallback\(conf, teacher_model=teacher\)"):
        trainer_of(bert(), tmp_path, [INCCallback(distillation(None))])


def test_the_teacher_joins_a_config_that_has_none(tmp_path):
    teacher = bert(seed=1)
    callback = INCCallback({"DistillationConfig": {}}, teacher_model=teacher)
    trainer_of(bert(), tmp_path, [callback], max_steps=1).train()
    assert callback.manager.callbacks.callbacks_list[0].teachers[0].module is teacher


def test_a_teacher_for_nobody_is_refused():
    with pytest.raises(ConfigError, match="no DistillationConfig without a teacher"):
        INCCallback(DistillationConfig(bert()), teacher_model=bert())


def test_events_from_nowhere_are_refused_with_the_way_out(tmp_path):
    """Somebody's own loop passes the events on, and no Trainer is among the callers."""
    callback = INCCallback(distillation(bert(seed=1)))
    trainer = trainer_of(bert(), tmp_path, [])
    with pytest.raises(ConfigError, match=r"callback.attach\(trainer\)"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
    callback.attach(trainer).on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
    assert callback.manager.callbacks.is_training


# ---------------------------------------------------------------------------- layers, and logits on disk


def wide_bert(seed: int = 1):
    """A teacher with other widths and more layers."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        **STILL,
    )
    return BertForSequenceClassification(config)


def layers() -> DistillationConfig:
    mappings = [["bert.encoder.layer.0", "bert.encoder.layer.0"], ["bert.encoder.layer.1", "bert.encoder.layer.2"]]
    criterion = IntermediateLayersKnowledgeDistillationLossConfig(mappings, ["MSE", "cosine"], add_origin_loss=True)
    return DistillationConfig(wide_bert(), criterion)


def _projections(callback: INCCallback) -> list[torch.Tensor]:
    projections = callback.manager.callbacks.callbacks_list[0].losses[0].projections
    return [projection.weight.detach().clone() for projection in projections.values()]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile on itself
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")  # and 4.57 has no other
@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_checkpointing": True}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}],
    ids=["plain", "checkpointed", "compiled"],
)
def test_layers_of_a_model_in_the_trainer(tmp_path, options):
    callback = INCCallback([layers(), *techniques("qp")])
    trainer = trainer_of(bert(**STILL), tmp_path, [callback], max_steps=6, **options)
    trainer.train()
    first, second = _projections(callback)
    assert first.shape == second.shape == (24, 16)
    assert callback.manager.report().sparsity > 0.4
    assert not any("projection" in name for name in trainer.model.state_dict())
    hooks = [hook for module in trainer.model.modules() for hook in module._forward_hooks.values()]
    assert not any("distillers" in str(type(hook)) for hook in hooks), hooks


def test_projections_go_on_from_a_checkpoint(tmp_path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "cosine"}
    whole = INCCallback(layers())
    trainer_of(bert(**STILL), tmp_path / "whole", [whole], **options).train()
    again = INCCallback(layers())
    trainer = trainer_of(bert(**STILL), tmp_path / "whole", [again], **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for left, right in zip(_projections(whole), _projections(again), strict=True):
        assert torch.equal(left, right)


class WithLogits(Sentences):
    """Each sentence brings what a teacher said of it."""

    def __init__(self, count: int, logits: torch.Tensor) -> None:
        super().__init__(count)
        self.logits = logits

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**super().__getitem__(index), "teacher_logits": self.logits[index]}


def test_logits_of_the_data_set_stand_for_the_teacher(tmp_path):
    teacher, data = bert(seed=1, **STILL).eval(), Sentences(16)
    with torch.no_grad():
        logits = teacher(data.words).logits
    asked = first_gradient(bert(**STILL), tmp_path, [distillation(teacher)], **cut(4))
    known = first_gradient(
        bert(**STILL),
        tmp_path,
        [distillation(None)],
        data=WithLogits(16, logits),
        remove_unused_columns=False,
        **cut(4),
    )
    torch.testing.assert_close(known, asked, rtol=1e-4, atol=1e-7)


def test_logits_that_are_not_there_are_missed_with_the_way_out(tmp_path):
    trainer = trainer_of(bert(), tmp_path, [INCCallback(distillation(None))], remove_unused_columns=False)
    with pytest.raises(ConfigError, match="neither a teacher nor a teacher_output for this batch"):
        trainer.train()
