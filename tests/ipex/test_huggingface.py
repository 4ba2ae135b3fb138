"""Models of transformers 4.49 on the extension: real weights, outputs of their own class."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import inc_torch
from common.model import find_pretrained
from inc_torch import PostTrainingQuantConfig, QuantizationAwareTrainingConfig, prepare_compression, quantization
from tests.ipex.models import int8_kernels, int8_names, natively

pytestmark = pytest.mark.ipex

TEXTS = ["a gripping film, and a warm one", "two hours that I will not get back", "fine", "the cast is wasted on it"]


def minilm(attention: str = "sdpa"):
    torch.manual_seed(0)
    folder = find_pretrained()
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, attn_implementation=attention
    ).eval()


def encoded() -> list[dict[str, torch.Tensor]]:
    tokenizer = AutoTokenizer.from_pretrained(find_pretrained())
    return [dict(tokenizer(TEXTS[first:], return_tensors="pt", padding=True)) for first in range(3)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_minilm_runs_in_int8(attention, tmp_path):
    model, batches = minilm(attention), encoded()
    int8 = quantization.fit(model, PostTrainingQuantConfig(backend="ipex"), calib_dataloader=batches)
    layers = [name for name in int8_names(int8) if "/" not in name]
    products = [name for name in int8_names(int8) if "/matmul" in name]
    assert len(layers) == 6 * 6 + 2
    assert len(products) == (12 if attention == "eager" else 0)
    assert int8_kernels(int8, **batches[0]) >= 36
    got, expected = int8(**batches[0]), model(**batches[0])
    assert type(got) is type(expected)
    assert torch.nn.functional.cosine_similarity(got.logits.flatten(), expected.logits.flatten(), 0) > 0.98
    assert int8.config is not None
    native = natively(int8, **batches[0])
    assert torch.nn.functional.cosine_similarity(got.logits.flatten(), native.logits.flatten(), 0) > 0.98
    int8.save(tmp_path)
    loaded = inc_torch.load(tmp_path, minilm(attention))
    assert torch.equal(loaded(**batches[1]).logits, int8(**batches[1]).logits)


def test_minilm_by_the_tokenizer_and_with_labels():
    model, batches = minilm(), encoded()
    labelled = [{**batch, "labels": torch.zeros(len(batch["input_ids"]), dtype=torch.long)} for batch in batches]
    int8 = quantization.fit(model, PostTrainingQuantConfig(backend="ipex"), calib_dataloader=labelled)
    assert int8(**labelled[0]).loss == pytest.approx(model(**labelled[0]).loss.item(), abs=0.05)
    assert int8(**batches[0]).loss is None
    assert int8(batches[0]["input_ids"]).logits.shape == (4, 2)


def test_linear_layers_of_gpt2_become_int8():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2)).eval()
    model.config.use_cache = False
    batches = [{"input_ids": torch.randint(0, 64, (2, 9))} for _ in range(4)]
    rules = {"lm_head": {"weight": {"dtype": "fp32"}}}
    int8 = quantization.fit(
        model, PostTrainingQuantConfig(backend="ipex", op_name_dict=rules), calib_dataloader=batches
    )
    layers = [name for name in int8_names(int8) if "/" not in name]
    assert len(layers) == 8
    assert (int8(**batches[0]).logits - model(**batches[0]).logits).abs().max() < 0.02


def test_minilm_is_trained_for_the_extension():
    model, batches = minilm().train(), encoded()
    manager = prepare_compression(model, QuantizationAwareTrainingConfig(backend="ipex"))
    manager.callbacks.on_train_begin()
    optimizer = torch.optim.SGD(manager.model.parameters(), lr=1e-3)
    for batch in batches * 2:
        manager.model(**batch, labels=torch.zeros(len(batch["input_ids"]), dtype=torch.long)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    manager.callbacks.on_train_end()
    int8 = manager.model.eval()
    got, native = int8(**batches[0]).logits, natively(int8, **batches[0]).logits
    assert (got - native).abs().max() < 0.02
