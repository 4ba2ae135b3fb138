"""What a step of quantization-aware training costs, as a multiple of the float step.

A small BERT with random weights on batches of 4 times 128 tokens: forward, loss, backward, all hooks and AdamW, in
float32 and under bfloat16 autocast. The vocabulary is small, so that the optimizer does not hide the cost. Float and
quantized steps are taken by turns in one process, the order changes from round to round, and what is reported is the
median of the rounds' ratios, so that a busy machine disturbs both alike. One thread; time is CPU time of the process.

    python benchmarks/qat_step.py [--models tiny mini] [--rounds 30]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from inc_torch import QuantizationAwareTrainingConfig, prepare_compression

# width, layers: the encoders of small BERTs.
MODELS = {"tiny": (256, 4), "mini": (384, 6)}
VOCABULARY, BATCH, LENGTH = 2000, 4, 128
WARM_UP = 3
GOALS = {"fp32": 1.25, "bf16": 1.5}


def build(width: int, layers: int) -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        max_position_embeddings=LENGTH,
    )
    return BertForSequenceClassification(config).train()


def stepper(model: nn.Module, precision: str, *, quantized: bool) -> Callable[[], None]:
    """Return what takes one training step, and counts as one step of a real loop."""
    manager = prepare_compression(model, QuantizationAwareTrainingConfig()) if quantized else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=generator)
    labels = torch.randint(2, (BATCH,), generator=generator)
    if manager is not None:
        manager.on_train_begin()

    def step() -> None:
        if manager is not None:
            manager.on_step_begin(0)
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            loss = model(input_ids=ids, labels=labels).loss
        if manager is not None:
            loss = manager.on_after_compute_loss(ids, None, loss)
        loss.backward()
        if manager is not None:
            manager.on_before_optimizer_step()
        optimizer.step()
        if manager is not None:
            manager.on_after_optimizer_step()
        optimizer.zero_grad()
        if manager is not None:
            manager.on_step_end()

    return step


def seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def measure(name: str, precision: str, rounds: int) -> dict[str, float]:
    steps = {kind: stepper(build(*MODELS[name]), precision, quantized=kind == "qat") for kind in ("float", "qat")}
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for index in range(WARM_UP + rounds):
        for kind in sorted(steps, reverse=index % 2 == 1):
            taken = seconds(steps[kind])
            if index >= WARM_UP:
                times[kind].append(taken)
    ratios = sorted(qat / plain for plain, qat in zip(times["float"], times["qat"], strict=True))
    return {
        "float": statistics.median(times["float"]) * 1e3,
        "qat": statistics.median(times["qat"]) * 1e3,
        "ratio": statistics.median(ratios),
        "low": ratios[len(ratios) // 4],
        "high": ratios[3 * len(ratios) // 4],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", choices=GOALS, default=list(GOALS))
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title=f"A step of quantization-aware training; load {os.getloadavg()[0]:.1f} at the start")
    for column in ("model", "precision", "float ms", "QAT ms", "QAT / float", "quartiles", "goal"):
        table.add_column(column, justify="left" if column in {"model", "precision"} else "right")
    for name in arguments.models:
        for precision in arguments.precisions:
            row = measure(name, precision, arguments.rounds)
            cells = [f"{row['float']:.0f}", f"{row['qat']:.0f}", f"{row['ratio']:.3f}"]
            quartiles = f"{row['low']:.3f} to {row['high']:.3f}"
            table.add_row(name, precision, *cells, quartiles, f"{GOALS[precision]:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
