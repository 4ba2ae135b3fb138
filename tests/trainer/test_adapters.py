"""LoRA adapters in a Trainer: compressed under adapters, resumed from adapter checkpoints, merged at the end."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from inc_torch import INCCallback, save_for_huggingface_upstream
from inc_torch.quantizers import int8_kernels
from tests.trainer.setup import Sentences, bert, llama, techniques, trainer_of
from tests.trainer.test_other_trainers import sft

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning"),
]


def adapted_bert():
    torch.manual_seed(3)
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", lora_dropout=0.1)
    return get_peft_model(bert(), config)


@pytest.mark.parametrize("letters", ["p", "q", "pqd"])
def test_the_base_is_compressed_and_exported_merged(letters, tmp_path):
    model = adapted_bert()
    callback = INCCallback(techniques(letters))
    trainer = trainer_of(model, tmp_path, [callback], bf16="d" in letters, gradient_accumulation_steps=2)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    if "p" in letters:
        assert callback.manager.report().sparsity >= 0.49
    if "q" in letters:
        assert len(int8_kernels(model.get_base_model())) == 17
    assert not any("lora" in name for name, _ in model.named_parameters())
    save_for_huggingface_upstream(callback.manager, None, tmp_path / "hub")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hub")
    words = Sentences(8, seed=4).words
    with torch.no_grad():
        torch.testing.assert_close(again(words).logits, model.eval()(words).logits, rtol=0, atol=1e-2)
    assert loss > 0


def test_a_checkpoint_of_the_adapters_goes_on_bit_for_bit(tmp_path):
    ends = []
    for folder, resume in (("whole", None), ("again", str(tmp_path / "whole/checkpoint-4"))):
        model = adapted_bert()
        callback = INCCallback(techniques("pq"))
        trainer = trainer_of(model, tmp_path / folder, [callback], save_strategy="steps", save_steps=4)
        trainer.train(resume_from_checkpoint=resume)
        ends.append(model.state_dict())
    assert (tmp_path / "whole/checkpoint-4/adapter_model.safetensors").is_file()
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_supervised_fine_tuning_of_adapters(tmp_path):
    torch.manual_seed(3)
    model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    trainer = sft(tmp_path, model, techniques("pqd", teacher=llama(seed=1)))
    trainer.train()
    inner = model.get_base_model()
    assert "lm_head" in int8_kernels(inner)
    save_for_huggingface_upstream(model, trainer.processing_class, tmp_path / "hub")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hub")
    words = Sentences(4, seed=3).words.clamp(min=3)
    with torch.no_grad():
        assert torch.equal(again(words).logits, inner.eval()(words).logits)
