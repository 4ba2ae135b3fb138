"""Prune half of the feed-forward channels of MiniLM-L6 while it trains, take them out, and quantize what is left.

    python run.py [--seed 0] [--output examples/slimming/output] [--smoke]

Zeros alone make nothing faster on a CPU; channels that are not there do, and int8 on top. ``--smoke`` runs the same
code on made-up reviews and a tiny untrained model, in seconds.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the package `common` lies
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait crawl on a busy machine

import torch
from rich.console import Console
from rich.table import Table
from torch.optim import AdamW
from transformers import PreTrainedModel, get_linear_schedule_with_warmup
from transformers.utils import logging

from common.compare import check_in_fresh_process
from common.data import Encoded, encode, load_reviews
from common.fine_tuning import fine_tune
from common.latency import medians
from common.model import accuracy, load_pretrained, predict
from common.progress import progress
from common.synthetic import load_tiny, make_reviews
from inc_torch import (
    CompressionReport,
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    PostTrainingQuantConfig,
    WeightPruningConfig,
    prepare_compression,
    quantization,
    save_for_huggingface_upstream,
)
from inc_torch.pruners.slimming import model_slim, parse_auto_slim_config

HERE = Path(__file__).parent
MAX_LENGTH = 48
BATCH_SIZE = 32
CALIBRATION_BATCHES = 3
SPARSITY = 0.5
console = Console()


def prune(student: PreTrainedModel, teacher_logits: torch.Tensor, data: Encoded, steps: int, seed: int) -> None:
    """Prune inputs of each second feed-forward layer, equally many in all, and let training make up for them."""
    local = parse_auto_slim_config(student, ffn2_sparsity=SPARSITY, pruning_scope="local")
    pruning = WeightPruningConfig(
        local, pruning_type="snip_momentum", start_step=10, end_step=steps * 4 // 7, pruning_frequency=10
    )
    distillation = DistillationConfig(
        criterion=KnowledgeDistillationLossConfig(temperature=2.0, loss_types=["CE", "KL"], loss_weights=[0.3, 0.7])
    )
    manager = prepare_compression(student, [pruning, distillation])
    optimizer = AdamW(student.parameters(), lr=2e-4, weight_decay=0.01, fused=True)
    scheduler = get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    student.train()
    manager.on_train_begin()
    for index, batch in enumerate(progress(data.stream(BATCH_SIZE, steps, seed), "student", steps, console)):
        manager.on_step_begin(index)
        with torch.autocast("cpu", torch.bfloat16):
            output = student(**batch.inputs, labels=batch.labels)
        loss = manager.on_after_compute_loss(batch.inputs, output, output.loss, teacher_logits[batch.index])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        scheduler.step()
        optimizer.zero_grad()
        manager.on_step_end()
    manager.on_train_end()


def quantized(model: PreTrainedModel, data: Encoded) -> PreTrainedModel:
    """An int8 copy, calibrated on some of the reviews."""
    rows = [batch.inputs for batch in data.stream(BATCH_SIZE, CALIBRATION_BATCHES, seed=0)]
    return quantization.fit(copy.deepcopy(model), PostTrainingQuantConfig(), calib_dataloader=rows)


def compare(models: dict[str, PreTrainedModel], test: Encoded) -> Table:
    """Accuracy, size and speed of all, the first one as the measure."""
    table = Table(title=f"MiniLM-L6 on {len(test)} Rotten Tomatoes reviews")
    table.add_column("model", no_wrap=True)
    for column in ("accuracy", "MB", "ms, batch 1", "ms, batch 8", "times as fast"):
        table.add_column(column, justify="right")
    times = {batch_size: medians(models, batch_size) for batch_size in (1, 8)}
    first, *_ = models
    for name, model in models.items():
        size = CompressionReport.measure(model).size_bytes / 1e6
        found = accuracy(predict(model, test), test)
        one, eight = times[1][name], times[8][name]
        faster = f"{times[8][first] / eight:.2f}"
        table.add_row(name, f"{found:.4f}", f"{size:.1f}", f"{one:.1f}", f"{eight:.1f}", faster)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / "output")
    parser.add_argument("--smoke", action="store_true", help="made-up data and a tiny model, in seconds")
    options = parser.parse_args()
    logging.disable_progress_bar()
    steps, student_steps = (20, 30) if options.smoke else (250, 350)
    reviews = make_reviews() if options.smoke else load_reviews()
    dense, tokenizer = (load_tiny if options.smoke else load_pretrained)(options.seed)
    training, test = (encode(part, tokenizer, MAX_LENGTH) for part in (reviews.train, reviews.test))

    console.print(f"Fine-tuning: {steps} steps, {len(training)} reviews to draw from.")
    fine_tune(dense, progress(training.stream(BATCH_SIZE, steps, options.seed), "dense", steps, console), steps)
    console.print(f"Pruning {SPARSITY:.0%} of the feed-forward channels in {student_steps} steps, with distillation.")
    slim = copy.deepcopy(dense)
    prune(slim, predict(dense, training), training, student_steps, options.seed + 1)
    before = slim.config.intermediate_size
    model_slim(slim.eval(), round_multiplier=8 if options.smoke else 32)
    console.print(f"Taken out: feed-forward parts have {slim.config.intermediate_size} channels instead of {before}.")
    for model in (dense, slim):
        model.eval().set_attn_implementation("sdpa")  # what from_pretrained picks; a directory does not record it
    models = {
        "float32": dense,
        "float32, slimmed": slim,
        "int8": quantized(dense, training),
        "int8, slimmed": quantized(slim, training),
    }
    folders = {name: options.output / name.replace(", ", "-") for name in ("float32, slimmed", "int8, slimmed")}
    slim.save_pretrained(folders["float32, slimmed"])
    save_for_huggingface_upstream(models["int8, slimmed"], tokenizer, folders["int8, slimmed"])
    console.print(compare(models, test))
    for name, folder in folders.items():
        check_in_fresh_process(models[name], test, folder)


if __name__ == "__main__":
    main()
