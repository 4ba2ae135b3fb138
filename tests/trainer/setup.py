"""A tiny model, tiny data and a Trainer for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from inc_torch import (
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
)

WORDS = 40
LENGTH = 6
OWN = ("compute_loss_func", "compute_metrics", "data_collator", "model_init")


class Sentences(Dataset):
    """Random words; the label says whether the first word is in the upper half of the vocabulary."""

    def __init__(self, count: int = 64, seed: int = 0, *, is_text: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.words = torch.randint(1, WORDS, (count, LENGTH), generator=generator)
        self.is_text = is_text
        if is_text:  # each sentence has another number of labels
            self.words[:, 1:] = (self.words[:, :1] + torch.arange(1, LENGTH)) % WORDS

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        words = self.words[index]
        row = {"input_ids": words, "attention_mask": torch.ones_like(words)}
        if self.is_text:
            labels = words.clone()
            labels[: index % (LENGTH - 1)] = -100
            return {**row, "labels": labels}
        return {**row, "labels": (words[0] >= WORDS // 2).long()}


def bert(seed: int = 0, **options: Any) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        **options,
    )
    return BertForSequenceClassification(config)


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    return GPT2LMHeadModel(config)


def pruning(**options: Any) -> WeightPruningConfig:
    """Half of the 4x1 blocks by step 4."""
    settings = {"target_sparsity": 0.5, "pattern": "4x1", "start_step": 1, "end_step": 4}
    return WeightPruningConfig(**{**settings, **options})


def quantization() -> QuantizationAwareTrainingConfig:
    return QuantizationAwareTrainingConfig()


def distillation(teacher: nn.Module | None, **options: Any) -> DistillationConfig:
    settings = {"temperature": 2.0, "loss_types": ["CE", "KL"], "loss_weights": [0.5, 0.5]}
    return DistillationConfig(teacher, KnowledgeDistillationLossConfig(**{**settings, **options}))


def techniques(letters: str, teacher: nn.Module | None = None) -> list[Any]:
    """Configs in the order of ``letters``: p prunes, q quantizes, d distils."""
    made = {"p": pruning, "q": quantization, "d": lambda: distillation(teacher or bert(seed=1))}
    return [made[letter]() for letter in letters]


def arguments(folder: Path | str, **options: Any) -> TrainingArguments:
    """Eight steps of eight sentences."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 2,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**{**settings, **options})


def trainer_of(
    model: nn.Module, folder: Path | str, callbacks: list[Any], kind: type[Trainer] = Trainer, **options: Any
) -> Trainer:
    """``data`` and ``eval_data`` may be among the options; those that the Trainer does not know are its arguments'."""
    own = {name: options.pop(name) for name in OWN if name in options}
    data, eval_data = options.pop("data", None), options.pop("eval_data", None)
    return kind(
        model=model,
        args=arguments(folder, **options),
        train_dataset=data or Sentences(),
        eval_dataset=eval_data or Sentences(16, seed=9),
        callbacks=callbacks,
        **own,
    )
