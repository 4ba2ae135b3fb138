"""Quantize a trained sentiment classifier by several recipes, without training it again, and compare them.

    python run.py [--seed 0] [--reviews 2000] [--quick]

MiniLM-L6 encodes Rotten Tomatoes reviews, a logistic head on its embeddings is fitted in float, and encoder and head
together are quantized with 96 reviews for calibration.  ``--quick`` runs the same code on made-up reviews and a tiny
untrained encoder, in seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the package `common` lies
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait crawl on a busy machine

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional
from transformers import BertModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import logging

import inc_torch
from common.data import LABELS, Encoded, Splits, encode, load_reviews
from common.latency import medians
from common.model import accuracy, load_pretrained, predict
from common.synthetic import load_tiny, make_reviews
from inc_torch import AccuracyCriterion, CompressionReport, PostTrainingQuantConfig, quantization

MAX_LENGTH = 48
BATCH_SIZE = 32
CALIBRATION_SIZE = 96
ROUNDS = 12
FLOAT = "float32"
DEFAULT = "static, kl (default)"
ENDS_IN_FLOAT = "static, ends in float"
console = Console()


class SentenceClassifier(nn.Module):
    """A sentence encoder with a linear head on its normalised mean embedding."""

    def __init__(self, encoder: BertModel) -> None:
        super().__init__()
        self.config = encoder.config
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, len(LABELS))

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The mean over the tokens of each sentence, scaled to length 1; [B, H]."""
        hidden = self.encoder(input_ids, attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        """Logits [B, 2], as transformers' own classifiers give them."""
        return SequenceClassifierOutput(logits=self.head(self.embed(input_ids, attention_mask)))


@dataclass(frozen=True)
class Data:
    """Reviews for each purpose; those for calibration are among those that the head is fitted on."""

    training: Encoded
    calibration: list[dict[str, torch.Tensor]]
    validation: Encoded
    test: Encoded


def recipes() -> dict[str, PostTrainingQuantConfig]:
    """What is compared: name in the table -> configuration."""
    smoothing = {"smooth_quant": True, "smooth_quant_args": {"alpha": "auto"}}
    ends = {"first_conv_or_matmul_quantization": False, "last_conv_or_matmul_quantization": False}
    return {
        DEFAULT: PostTrainingQuantConfig(),
        **{f"static, {name}": observed_by(name) for name in ("kl_divergence", "percentile", "minmax", "mse")},
        "static, smoothed": PostTrainingQuantConfig(recipes=smoothing),
        ENDS_IN_FLOAT: PostTrainingQuantConfig(recipes=ends),
        "dynamic, no data": PostTrainingQuantConfig(approach="dynamic"),
    }


def observed_by(algorithm: str) -> PostTrainingQuantConfig:
    """Static int8 whose ranges of inputs are found by ``algorithm``."""
    return PostTrainingQuantConfig(op_type_dict={"Linear": {"activation": {"algorithm": algorithm}}})


def prepare_data(reviews: Splits, tokenizer, count: int) -> Data:
    """Tokenise the reviews; ``count`` of them are trained on."""
    training = encode(reviews.train.first(count), tokenizer, MAX_LENGTH)
    validation, test = (encode(part, tokenizer, MAX_LENGTH) for part in (reviews.validation, reviews.test))
    rows = range(min(CALIBRATION_SIZE, len(training)))
    calibration = [training.batch(rows[start : start + BATCH_SIZE]).inputs for start in rows[::BATCH_SIZE]]
    return Data(training, calibration, validation, test)


def fit_head(model: SentenceClassifier, training: Encoded) -> None:
    """Logistic regression on the embeddings of all training reviews, which are computed once."""
    embeddings = torch.empty(len(training), model.head.in_features)
    with torch.no_grad():
        for batch in training.batches(BATCH_SIZE):
            embeddings[batch.index] = model.embed(**batch.inputs)
    labels = torch.tensor(training.labels)
    optimizer = torch.optim.LBFGS(model.head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        penalty = 1e-3 * model.head.weight.square().sum()
        value = functional.cross_entropy(model.head(embeddings), labels) + penalty
        value.backward()
        return value

    optimizer.step(loss)


def quantize_all(model: nn.Module, data: Data) -> dict[str, nn.Module]:
    """One int8 model for each recipe; ``model`` stays as it is."""
    quantized: dict[str, nn.Module] = {}
    for name, config in recipes().items():
        start = time.perf_counter()
        quantized[name] = quantization.fit(model, config, calib_dataloader=data.calibration)
        console.print(f"  {name:<24}{time.perf_counter() - start:6.1f} s")
    return quantized


def quantize_checked(model: nn.Module, data: Data) -> None:
    """Quantize once more, with a goal: at most two points of accuracy are lost on the validation reviews."""
    scores: list[float] = []

    def evaluate(candidate: nn.Module) -> float:
        scores.append(accuracy(predict(candidate, data.validation), data.validation))
        return scores[-1]

    config = PostTrainingQuantConfig(accuracy_criterion=AccuracyCriterion(criterion="absolute", tolerable_loss=0.02))
    quantization.fit(model, config, calib_dataloader=data.calibration, eval_func=evaluate)
    before, after = scores
    goal = config.accuracy_criterion.target(before)
    verdict = "met" if config.accuracy_criterion.is_met(after, before) else "missed"
    console.print(f"With eval_func: float {before:.4f}, int8 {after:.4f}, goal {goal:.4f} {verdict}.")


def compare(models: dict[str, nn.Module], test: Encoded) -> Table:
    """One line for each model, measured on the model as it is."""
    logits = {name: predict(model, test) for name, model in models.items()}
    scores = {name: accuracy(values, test) for name, values in logits.items()}
    answers = {name: values.argmax(-1) for name, values in logits.items()}
    times = medians(models, 8, rounds=ROUNDS)
    caption = "changed: other answers than in float. ms: 8 rows of 128 tokens, one thread."
    table = Table(title=f"MiniLM-L6 with a head, {len(test)} test reviews", caption=caption)
    table.add_column("recipe", no_wrap=True)
    for column in ("accuracy", "points lost", "changed", "MB", "ms"):
        table.add_column(column, justify="right")
    for name, model in models.items():
        lost = "" if name == FLOAT else f"{(scores[FLOAT] - scores[name]) * 100:.2f}"
        changed = "" if name == FLOAT else str(int((answers[name] != answers[FLOAT]).sum()))
        size = CompressionReport.measure(model).size_bytes / 1e6
        table.add_row(name, f"{scores[name]:.4f}", lost, changed, f"{size:.1f}", f"{times[name]:.1f}")
    return table


def print_float_modules(model: nn.Module) -> None:
    """Name the modules that are not int8, with the reasons that the report gives."""
    console.print(f"What {ENDS_IN_FLOAT!r} leaves in float:")
    for row in model.report().modules:
        if row.bits > 8:
            console.print(f"  {row.name}", *row.notes, sep="\n    ", highlight=False)


def check_reopened(model: nn.Module, test: Encoded) -> None:
    """Save, build the float model anew, load into it, and compare logits bit for bit."""
    inputs = test.batch(range(BATCH_SIZE)).inputs
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model.save(folder)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        again = inc_torch.load(folder, model=SentenceClassifier(BertModel(model.config, add_pooling_layer=False)))
        difference = (again(**inputs).logits - model(**inputs).logits).abs().max().item()
    if difference:
        sys.exit(f"The reopened model differs by up to {difference:.3g}.")
    console.print(f"Saved {size / 1e6:.1f} MB, and reopened: the same logits, bit for bit.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the head before it is fitted")
    parser.add_argument("--reviews", type=int, default=2000, help="how many to fit the head on")
    parser.add_argument("--quick", action="store_true", help="made-up data and a tiny encoder, in seconds")
    options = parser.parse_args()
    if options.reviews < 1:
        parser.error(f"--reviews {options.reviews}: expected 1 or more.")
    logging.disable_progress_bar()
    reviews = make_reviews() if options.quick else load_reviews(validation_size=500, test_size=1000)
    pretrained, tokenizer = (load_tiny if options.quick else load_pretrained)(options.seed)
    pretrained.set_attn_implementation("sdpa")
    pretrained.bert.pooler = None  # the head takes the mean of the tokens
    model = SentenceClassifier(pretrained.bert).eval()
    data = prepare_data(reviews, tokenizer, options.reviews)

    console.print(f"Fitting the head on {len(data.training)} reviews, encoded once in float.")
    fit_head(model, data.training)
    count = sum(len(batch["input_ids"]) for batch in data.calibration)
    console.print(f"Quantizing, {count} reviews to calibrate with:")
    models = {FLOAT: model, **quantize_all(model, data)}
    console.print(compare(models, data.test))
    quantize_checked(model, data)
    print_float_modules(models[ENDS_IN_FLOAT])
    check_reopened(models[DEFAULT], data.test)


if __name__ == "__main__":
    main()
