"""MiniLM as ONNX: real weights, real reviews, and the same answers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from inc_torch import PostTrainingQuantConfig
from inc_torch.config import Torch2ONNXConfig
from inc_torch.quantization import fit

sys.path.append(str(Path(__file__).parents[2] / "examples"))
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LENGTH, TRAINED, TESTED, BATCH = 32, 1024, 512, 16


class Classifier(nn.Module):
    """The mean of the last hidden states of real tokens, and a linear layer."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(384, 2)

    def vectors(self, input_ids, attention_mask):
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def forward(self, input_ids, attention_mask):
        return self.head(self.vectors(input_ids, attention_mask))

    @torch.no_grad()
    def solve(self, vectors, labels):
        """Let the last layer be the ridge regression of the labels, from -1 to 1."""
        with_one = torch.cat([vectors, torch.ones(len(vectors), 1)], 1)
        targets = nn.functional.one_hot(labels, 2).float() * 2 - 1
        solved = torch.linalg.solve(with_one.T @ with_one + torch.eye(385), with_one.T @ targets)
        self.head.weight.copy_(solved[:-1].T)
        self.head.bias.copy_(solved[-1])


@torch.no_grad()
def _in_batches(compute, batch):
    count = len(batch["input_ids"])
    parts = [{name: rows[start : start + BATCH] for name, rows in batch.items()} for start in range(0, count, BATCH)]
    return torch.cat([compute(**part) for part in parts])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("approach", ["static", "dynamic"])
def test_the_same_answers_on_real_reviews(tmp_path, note, approach):
    from common.data import load_reviews
    from common.model import find_pretrained

    try:
        folder, reviews = find_pretrained(), load_reviews()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encoded(texts):
        made = tokenizer(list(texts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        return {name: made[name] for name in ("input_ids", "attention_mask")}

    known, asked = encoded(reviews.train.texts[:TRAINED]), encoded(reviews.test.texts[:TESTED])
    labels = torch.tensor(reviews.test.labels[:TESTED])
    model = Classifier(AutoModel.from_pretrained(folder)).eval()
    model.solve(_in_batches(model.vectors, known), torch.tensor(reviews.train.labels[:TRAINED]))
    calibration = [
        {name: rows[start : start + BATCH] for name, rows in known.items()} for start in range(0, 128, BATCH)
    ]
    int8 = fit(model, PostTrainingQuantConfig(approach=approach), calib_dataloader=calibration)
    axes = {name: {0: "batch", 1: "tokens"} for name in asked}
    made = int8.export(tmp_path / "model.onnx", Torch2ONNXConfig(example_inputs=calibration[0], dynamic_axes=axes))
    session = onnxruntime.InferenceSession(str(made.path))

    def by_runtime(**batch):
        return torch.from_numpy(session.run(None, {name: rows.numpy() for name, rows in batch.items()})[0])

    got, expected = _in_batches(by_runtime, asked), _in_batches(int8, asked)
    same = (got.argmax(-1) == expected.argmax(-1)).float().mean()
    right = [(logits.argmax(-1) == labels).float().mean() for logits in (_in_batches(model, asked), expected, got)]
    note(
        f"{approach}: {100 * same:.1f} % of {TESTED} answers alike; right: float {right[0]:.3f}, int8 {right[1]:.3f}, "
        f"ONNX {right[2]:.3f}; largest difference {(got - expected).abs().max():.2g} (mean "
        f"{(got - expected).abs().mean():.1g}) of values up to {expected.abs().max():.2f}; "
        f"{made.path.stat().st_size / 2**20:.1f} MiB"
    )
    assert same >= 0.97
    assert abs(right[2] - right[1]) <= 0.015
