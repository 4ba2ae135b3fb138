"""The same callback in Seq2SeqTrainer and in TRL's SFTTrainer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)
from trl import SFTConfig, SFTTrainer

from inc_torch import INCCallback, save_for_huggingface_upstream
from inc_torch.quantizers import int8_kernels
from tests.trainer.setup import WORDS, Sentences, arguments, distillation, llama, pruning, techniques


def t5(seed: int = 0) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=WORDS, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config)


class Pairs(Sentences):
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        words = self.words[index]
        return {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": words.flip(0)}


def test_seq2seq_with_generation(tmp_path):
    options = arguments(tmp_path, eval_strategy="steps", eval_steps=4).to_dict()
    kept = ("max_steps", "per_device_train_batch_size", "learning_rate", "save_strategy", "logging_steps", "use_cpu")
    args = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        predict_with_generate=True,
        generation_max_length=8,
        eval_strategy="steps",
        eval_steps=4,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{name: options[name] for name in kept},
    )
    model = t5()
    callback = INCCallback(techniques("pqd", teacher=t5(seed=1)))
    generated = []

    def compute_metrics(prediction) -> dict[str, float]:
        generated.append(prediction.predictions)
        return {}

    trainer = Seq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=Pairs(),
        eval_dataset=Pairs(8, seed=2),
        callbacks=[callback],
        compute_metrics=compute_metrics,
    )
    trainer.train()
    trainer.evaluate()
    assert callback.manager.report().sparsity >= 0.49
    assert callback.manager.metrics()["distillation_loss"] > 0
    assert [len(part) for part in generated] == [8, 8, 8]
    save_for_huggingface_upstream(callback.manager, None, tmp_path / "hub")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hub")
    words = Pairs(4, seed=3).words
    assert torch.equal(again.generate(words, max_new_tokens=5), model.generate(words, max_new_tokens=5))


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{index}": index for index in range(3, WORDS)} | {"[PAD]": 0, "[BOS]": 1, "[EOS]": 2}
    inner = Tokenizer(WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]")


def texts(count: int = 64) -> Dataset:
    rows = Sentences(count, is_text=True).words.clamp(min=3)
    return Dataset.from_list([{"text": " ".join(f"w{word}" for word in row.tolist())} for row in rows])


def sft(folder, model, confs, **options) -> SFTTrainer:
    settings = {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 2,
        "use_cpu": True,
        "max_length": 16,
        "bf16": False,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": False,
    }
    callbacks = [INCCallback(confs)] if confs else []
    return SFTTrainer(
        model=model,
        args=SFTConfig(**{**settings, **options}),
        train_dataset=texts(),
        eval_dataset=texts(8),
        processing_class=tokenizer(),
        callbacks=callbacks,
    )


pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")


@pytest.mark.parametrize("letters", ["p", "q", "d", "pqd"])
def test_supervised_fine_tuning(letters, tmp_path):
    model = llama()
    trainer = sft(tmp_path, model, techniques(letters, teacher=llama(seed=1)), eval_strategy="steps", eval_steps=4)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    manager = next(entry for entry in trainer.callback_handler.callbacks if isinstance(entry, INCCallback)).manager
    if "p" in letters:
        assert manager.report().sparsity >= 0.49
    if "q" in letters:
        assert "lm_head" in int8_kernels(model)
    if "d" in letters:
        assert manager.metrics()["distillation_loss"] > 0
    save_for_huggingface_upstream(manager, trainer.processing_class, tmp_path / "hub")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hub")
    words = Sentences(4, seed=3).words.clamp(min=3)
    with torch.no_grad():
        logits = again(words).logits
        assert torch.equal(logits, model.eval()(words).logits)
    assert 0 < loss < 10


def test_the_loss_with_logits_is_trl_s_own(tmp_path):
    """Quantization makes the model compute logits where TRL goes past its output layer; float results are the same."""
    batch = {"input_ids": Sentences(4).words.clamp(min=3), "attention_mask": torch.ones(4, 6, dtype=torch.long)}
    labels = batch["input_ids"].clone()
    labels[:, :2] = -100
    plain, ours = llama(), llama()
    sft(tmp_path, plain, None)
    trainer = sft(tmp_path, ours, distillation(llama(seed=1)))
    from inc_torch.huggingface._fused_head import FusedHead

    head = FusedHead.of(trainer)
    for model in (plain, ours):
        model.eval()
    expected = plain(**batch, labels=labels, fused_lm_head=True)
    got = ours(**batch, labels=labels, fused_lm_head=True)
    for name in ("log_probs", "entropy", "is_top1", "label_mask"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), msg=name)
    assert head.last_output.logits.shape == (4, 6, WORDS)
    assert FusedHead.of(trainer) is head


def test_the_distance_is_scaled_as_the_loss_of_trl(tmp_path):
    """Accumulated or whole, the same first gradient."""
    gradients = {}
    for size in (16, 8):
        model = llama()
        trainer = sft(
            tmp_path,
            model,
            distillation(llama(seed=1)),
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=16 // size,
            max_grad_norm=0,
            optim="sgd",
            learning_rate=1.0,
        )
        before = [parameter.detach().clone() for parameter in model.parameters()]
        trainer.train()
        gradients[size] = torch.cat(
            [(old - new).flatten() for old, new in zip(before, model.parameters(), strict=True)]
        )
    assert F.cosine_similarity(gradients[8], gradients[16], dim=0) > 0.9999
    torch.testing.assert_close(gradients[8], gradients[16], rtol=1e-3, atol=1e-5)


def test_pruning_alone_leaves_the_fused_head(tmp_path):
    model = llama()
    trainer = sft(tmp_path, model, pruning())
    trainer.train()
    assert "_inc_torch_fused_head" not in vars(model)
