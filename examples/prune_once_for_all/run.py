"""Prune MiniLM-L6 once, and keep the zeros while it is trained on, distilled and quantized to int8.

    python run.py [--seed 0] [--sparsity 0.8] [--output examples/prune_once_for_all/output] [--smoke]

Stage 1 makes a sparse float model, with distillation. Stage 2 starts from it, locks its zeros, and trains for int8,
with the same teacher. Both go through one loop. ``--smoke`` runs the same code on made-up reviews and a
tiny untrained model, in seconds.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import zlib
from dataclasses import dataclass
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
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
    prepare_compression,
    save_for_huggingface_upstream,
)
from inc_torch.callbacks import TrainingConfig

HERE = Path(__file__).parent
MAX_LENGTH = 48
BATCH_SIZE = 32
console = Console()


@dataclass(frozen=True)
class Lessons:
    """What a student learns from: reviews, and what the teacher says of each."""

    data: Encoded
    teacher_logits: torch.Tensor


def distillation() -> DistillationConfig:
    """Nine tenths of the loss are the distance to the teacher's logits."""
    return DistillationConfig(
        criterion=KnowledgeDistillationLossConfig(temperature=2.0, loss_types=["CE", "KL"], loss_weights=[0.1, 0.9])
    )


def pruning(sparsity: float, steps: int) -> WeightPruningConfig:
    """Blocks of four weights go in the first half; the second is for recovery."""
    return WeightPruningConfig(
        pruning_type="snip_momentum",
        pattern="4x1",
        target_sparsity=sparsity,
        start_step=10,
        end_step=steps // 2,
        pruning_frequency=10,
    )


def compress(
    student: PreTrainedModel,
    techniques: list[TrainingConfig],
    lessons: Lessons,
    steps: int,
    learning_rate: float,
    seed: int,
) -> CompressionReport:
    """Train ``student`` with some techniques at once, and say what came out."""
    manager = prepare_compression(student, techniques)
    optimizer = AdamW(student.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
    scheduler = get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    batches = progress(lessons.data.stream(BATCH_SIZE, steps, seed), "student", steps, console)
    student.train()
    manager.on_train_begin()
    for index, batch in enumerate(batches):
        manager.on_step_begin(index)
        with torch.autocast("cpu", torch.bfloat16):
            output = student(**batch.inputs, labels=batch.labels)
        taught = lessons.teacher_logits[batch.index]
        loss = manager.on_after_compute_loss(batch.inputs, output, output.loss, taught)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        scheduler.step()
        optimizer.zero_grad()
        manager.on_step_end()
    manager.on_train_end()
    return manager.report()


def compare(models: dict[str, PreTrainedModel], zeros: dict[str, float], test: Encoded, output: Path) -> Table:
    """All of them; everything is measured on the models as they are, and on their files."""
    table = Table(title=f"MiniLM-L6 on {len(test)} Rotten Tomatoes reviews")
    table.add_column("model", no_wrap=True)
    for column in ("accuracy", "zeros", "MB", "MB zipped", "ms, 1 row", "ms, 8 rows"):
        table.add_column(column, justify="right")
    times = [medians(models, batch_size) for batch_size in (1, 8)]
    for name, model in models.items():
        content = (output / name / "model.safetensors").read_bytes()
        sizes = (f"{len(each) / 1e6:.1f}" for each in (content, zlib.compress(content)))
        found = f"{accuracy(predict(model, test), test):.4f}"
        table.add_row(name, found, f"{zeros[name]:.4f}", *sizes, *(f"{each[name]:.1f}" for each in times))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sparsity", type=float, default=0.8, help="share of the blocks that goes")
    parser.add_argument("--output", type=Path, default=HERE / "output")
    parser.add_argument("--smoke", action="store_true", help="made-up data and a tiny model, in seconds")
    options = parser.parse_args()
    logging.disable_progress_bar()
    steps, seed = 30 if options.smoke else 250, options.seed
    reviews = make_reviews() if options.smoke else load_reviews()
    dense, tokenizer = (load_tiny if options.smoke else load_pretrained)(seed)
    training, test = (encode(part, tokenizer, MAX_LENGTH) for part in (reviews.train, reviews.test))

    console.print(f"Fine-tuning the teacher: {steps} steps, {len(training)} reviews to draw from.")
    fine_tune(dense, progress(training.stream(BATCH_SIZE, steps, seed), "teacher", steps, console), steps)
    console.print("Keeping the teacher's logits of all training reviews.")
    lessons = Lessons(training, predict(dense, training))

    console.print(f"Stage 1: {steps} steps of pruning to {options.sparsity:.0%} and distillation.")
    sparse = copy.deepcopy(dense)
    first = compress(sparse, [distillation(), pruning(options.sparsity, steps)], lessons, steps, 3e-4, seed + 1)

    console.print(f"Stage 2: {steps} steps of distillation and quantization, in which the zeros are locked.")
    small = copy.deepcopy(sparse)
    lock = WeightPruningConfig(pruning_type="pattern_lock", pattern="4x1")
    techniques = [distillation(), lock, QuantizationAwareTrainingConfig()]
    second = compress(small, techniques, lessons, steps, 1.5e-4, seed + 2)

    models = {"dense": dense, "sparse": sparse, "int8": small}
    for name, model in models.items():
        model.eval().set_attn_implementation("sdpa")  # what from_pretrained picks; a directory does not record it
        if model is not small:
            model.save_pretrained(options.output / name)
    save_for_huggingface_upstream(small, tokenizer, options.output / "int8")
    zeros = {"dense": 0.0, "sparse": first.sparsity, "int8": second.sparsity}
    console.print(compare(models, zeros, test, options.output))
    check_in_fresh_process(small, test, options.output / "int8")


if __name__ == "__main__":
    main()
