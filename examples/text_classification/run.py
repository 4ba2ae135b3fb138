"""Prune to 80 %, quantize to int8 and distil MiniLM-L6 on Rotten Tomatoes reviews, all in one training loop.

    python run.py [--seed 0] [--output examples/text_classification/output] [--smoke]

``--smoke`` runs the same code on made-up reviews and a tiny untrained model, in seconds.
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
from torch.optim import AdamW
from transformers import PreTrainedModel, get_linear_schedule_with_warmup
from transformers.utils import logging

from common.compare import check_in_fresh_process, compare
from common.data import Encoded, encode, load_reviews
from common.fine_tuning import fine_tune
from common.model import load_pretrained, predict
from common.progress import progress
from common.synthetic import load_tiny, make_reviews
from inc_torch import (
    CompressionManager,
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
    prepare_compression,
    save_for_huggingface_upstream,
)

HERE = Path(__file__).parent
MAX_LENGTH = 48
BATCH_SIZE = 32
console = Console()


def compress(
    student: PreTrainedModel, teacher_logits: torch.Tensor, data: Encoded, steps: int, seed: int
) -> CompressionManager:
    """Prune, quantize and distil in one loop; ``student`` is an int8 model afterwards."""
    pruning = WeightPruningConfig(
        pruning_type="snip_momentum",
        pattern="4x1",
        target_sparsity=0.8,
        start_step=10,
        end_step=steps * 4 // 7,
        pruning_frequency=10,
    )
    quantization = QuantizationAwareTrainingConfig()
    distillation = DistillationConfig(
        criterion=KnowledgeDistillationLossConfig(temperature=2.0, loss_types=["CE", "KL"], loss_weights=[0.3, 0.7])
    )
    manager = prepare_compression(student, [pruning, quantization, distillation])
    optimizer = AdamW(student.parameters(), lr=4e-4, weight_decay=0.01, fused=True)
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
    return manager


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / "output")
    parser.add_argument("--smoke", action="store_true", help="made-up data and a tiny model, in seconds")
    options = parser.parse_args()
    logging.disable_progress_bar()
    steps, student_steps = (20, 30) if options.smoke else (250, 350)
    reviews = make_reviews() if options.smoke else load_reviews()
    teacher, tokenizer = (load_tiny if options.smoke else load_pretrained)(options.seed)
    training, test = (encode(part, tokenizer, MAX_LENGTH) for part in (reviews.train, reviews.test))
    folders = {name: options.output / name for name in ("dense", "compressed")}

    console.print(f"Fine-tuning the teacher: {steps} steps, {len(training)} reviews to draw from.")
    fine_tune(teacher, progress(training.stream(BATCH_SIZE, steps, options.seed), "teacher", steps, console), steps)
    teacher.save_pretrained(folders["dense"])
    console.print("Keeping the teacher's logits of all training reviews.")
    teacher_logits = predict(teacher, training)

    console.print(f"Compressing the student: {student_steps} steps of pruning, quantization and distillation at once.")
    student = copy.deepcopy(teacher)
    manager = compress(student, teacher_logits, training, student_steps, options.seed + 1)
    for model in (teacher, student):
        model.set_attn_implementation("sdpa")  # what from_pretrained picks; a directory does not record it
    save_for_huggingface_upstream(student, tokenizer, folders["compressed"])
    console.print(manager.report())
    console.print(compare(teacher, student, test, folders))
    check_in_fresh_process(student, test, folders["compressed"])


if __name__ == "__main__":
    main()
