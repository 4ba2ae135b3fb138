"""Each technique, and all of them, under what people switch on in the Trainer."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from inc_torch import Callback, INCCallback, prepare_compression
from inc_torch.core.errors import HookOrderError
from inc_torch.quantizers import int8_kernels
from tests.trainer.setup import Sentences, bert, gpt2, llama, quantization, techniques, trainer_of

OPTIONS = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    "bf16": {"bf16": True},
    "checkpointing": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "clipping": {"max_grad_norm": 0.1},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "evaluation": {"eval_strategy": "steps", "eval_steps": 2},
    "everything": {
        "gradient_accumulation_steps": 2,
        "bf16": True,
        "gradient_checkpointing": True,
        "label_smoothing_factor": 0.1,
        "eval_strategy": "steps",
        "eval_steps": 2,
    },
}
# transformers 5 has renamed it, and 4.57 knows the old name alone.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")


@pytest.mark.parametrize("letters", ["p", "q", "d", "pqd"])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_technique_reaches_its_goal(letters, option, tmp_path):
    model = bert()
    before = copy.deepcopy(model)
    callback = INCCallback(techniques(letters))
    trainer_of(model, tmp_path, [callback], **OPTIONS[option]).train()
    report = callback.manager.report()
    if "p" in letters:
        pruned = [row for row in report.modules if row.asked_sparsity is not None]
        assert sum(row.pruned_units for row in pruned) == sum(row.units for row in pruned) // 2
        assert report.sparsity >= 0.49
    if "q" in letters:
        assert len(int8_kernels(model)) == 17
    if "d" in letters:
        assert callback.manager.metrics()["distillation_loss"] > 0
    changed = [not torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=False)]
    assert all(changed) or "q" in letters


class Batches(Callback):
    """Keeps the batches in the order in which the Trainer takes them."""

    def __init__(self) -> None:
        self.seen = []

    def on_after_compute_loss(self, input, student_output, student_loss, teacher_output=None):
        self.seen.append(input)
        return student_loss


def test_the_trainer_computes_what_a_hand_written_loop_computes(tmp_path):
    """All three: the same int8 codes, scales and biases bit for bit."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    by_trainer, by_hand = bert(**still), bert(**still)
    batches = Batches()
    options = {"lr_scheduler_type": "constant", "max_grad_norm": 0, "optim": "sgd"}
    trainer_of(by_trainer, tmp_path, [INCCallback([*techniques("pqd"), batches])], **options).train()

    manager = prepare_compression(by_hand, techniques("pqd"))
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=1e-2)
    by_hand.train()
    manager.on_train_begin()
    for index, batch in enumerate(batches.seen):
        manager.on_step_begin(index)
        output = by_hand(**batch)
        manager.on_after_compute_loss(batch, output, output.loss).backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        optimizer.zero_grad()
        manager.on_step_end()
    manager.on_train_end()
    left, right = by_trainer.state_dict(), by_hand.state_dict()
    assert len(batches.seen) == 8
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.mark.filterwarnings("default")  # dynamo trips over torch's own deprecations
def test_torch_compile(tmp_path):
    callback = INCCallback(techniques("pqd"))
    model = bert()
    trainer = trainer_of(model, tmp_path, [callback], torch_compile=True, torch_compile_backend="aot_eager")
    trainer.train()
    assert callback.manager.report().sparsity >= 0.49
    assert len(int8_kernels(model)) == 17
    assert callback.manager.metrics()["distillation_loss"] > 0


@pytest.mark.parametrize("make", [llama, gpt2])
def test_language_models(make, tmp_path):
    model = make()
    callback = INCCallback(techniques("pqd", teacher=make(seed=1)))
    trainer = trainer_of(
        model, tmp_path, [callback], data=Sentences(is_text=True), gradient_accumulation_steps=2, logging_steps=1
    )
    trainer.train()
    assert callback.manager.report().sparsity >= 0.49
    out = model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=4, do_sample=False)
    assert out.shape == (1, 7)


def test_training_learns_under_all_three(tmp_path):
    callback = INCCallback(techniques("pqd", teacher=_taught(tmp_path)))
    trainer = trainer_of(bert(), tmp_path, [callback], max_steps=60, logging_steps=20, data=Sentences(512))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(later < earlier for earlier, later in pairwise(losses))
    predicted = trainer.predict(Sentences(64, seed=5)).predictions.argmax(-1)
    truth = (Sentences(64, seed=5).words[:, 0] >= 20).long().numpy()
    assert (predicted == truth).mean() > 0.9


def _taught(folder):
    teacher = bert(seed=1)
    trainer_of(teacher, folder, [], max_steps=60, data=Sentences(512)).train()
    return teacher


def test_the_model_is_saved_as_it_is_then_evaluated(tmp_path):
    """save_model, without save_for_huggingface_upstream, writes what from_pretrained opens."""
    model = bert()
    trainer = trainer_of(model, tmp_path, [INCCallback(techniques("pq"))])
    trainer.train()
    trainer.save_model(tmp_path / "model")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    words = Sentences(8, seed=4).words
    with torch.no_grad():
        assert torch.equal(again(words).logits, model.eval()(words).logits)
    codes = [module.qweight for module in again.bert.encoder.modules() if hasattr(module, "qweight")]
    assert sum(int((code == 0).sum()) for code in codes) / sum(code.numel() for code in codes) >= 0.45


def test_a_manager_outside_and_a_trainer_inside(tmp_path, recwarn):
    """Scenario S6: only on_train_begin and on_train_end are called, and fake-quant is really trained."""
    model = bert()
    trainer = trainer_of(model, tmp_path, [])  # holds the model before it is prepared
    manager = prepare_compression(model, quantization())
    manager.callbacks.on_train_begin()
    trainer.train()
    state = manager.callbacks.callbacks_list[0].state_dict()["observers"]
    manager.callbacks.on_train_end()
    assert manager.model is model
    assert len(int8_kernels(model)) == 17
    assert {int(entry["steps"]) for entry in state.values()} == {8}
    words = Sentences(8, seed=4).words
    logits = model(words).logits
    assert logits.std() > 0
    assert [str(entry.message) for entry in recwarn if "inc_torch" in entry.filename] == []


def test_a_second_run_of_a_pruned_model_is_refused_with_the_way_out(tmp_path):
    trainer = trainer_of(bert(), tmp_path, [INCCallback(techniques("q"))], max_steps=2)
    trainer.train()
    with pytest.raises(HookOrderError, match="compression has ended"):
        trainer.train()
