"""A model of transformers: quantized, saved for the Hub, opened again."""

from __future__ import annotations

import pathlib

import torch
from neural_compressor.config import PostTrainingQuantConfig, TuningCriterion
from neural_compressor.quantization import fit
from neural_compressor.utils.load_huggingface import OptimizedModel, save_for_huggingface_upstream
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

torch.manual_seed(0)
size = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32, "vocab_size": 9}
model = BertForSequenceClassification(BertConfig(**size)).eval()
pathlib.Path("vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\nd\n")
tokenizer = BertTokenizerFast("vocab.txt")
batch = dict(tokenizer(["a b", "c d"], return_tensors="pt"), labels=torch.tensor([0, 1]))
conf = PostTrainingQuantConfig(approach="static", tuning_criterion=TuningCriterion(max_trials=600))
q_model = fit(model, conf=conf, calib_dataloader=[batch] * 3, eval_func=lambda model: 1.0)
save_for_huggingface_upstream(q_model, tokenizer, "output")
loaded = OptimizedModel.from_pretrained("output")
with torch.no_grad():
    print("equal:", torch.allclose(loaded(**batch).logits, q_model(**batch).logits, atol=1e-5))
