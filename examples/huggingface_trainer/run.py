"""Prune to 80 %, quantize to int8 and distil MiniLM-L6 on Rotten Tomatoes reviews with transformers' own Trainer.

    python run.py [--config compression.yaml] [--resume] [--seed 0] [--output examples/huggingface_trainer/output]
                  [--smoke]

``--resume`` goes on from the last checkpoint of a run that was cut; ``--smoke`` runs the same code on made-up reviews
and a tiny untrained model, in seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the package `common` lies
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait crawl on a busy machine

import torch
from rich.console import Console
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from common.compare import check_in_fresh_process, compare
from common.data import Encoded, encode, load_reviews
from common.model import load_pretrained
from common.synthetic import load_tiny, make_reviews
from inc_torch import (
    DistillationConfig,
    INCCallback,
    KnowledgeDistillationLossConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
    save_for_huggingface_upstream,
)

HERE = Path(__file__).parent
MAX_LENGTH = 48
# Reviews of about one length meet in a batch. transformers 5 has renamed the option.
GROUPED = (
    {"group_by_length": True}
    if hasattr(TrainingArguments, "group_by_length")
    else {"train_sampling_strategy": "group_by_length"}
)
console = Console()


def techniques(steps: int) -> list:
    """What `compression.yaml` says, for a run of ``steps`` steps."""
    loss = KnowledgeDistillationLossConfig(temperature=2.0, loss_types=["CE", "KL"], loss_weights=[0.3, 0.7])
    return [
        WeightPruningConfig(
            target_sparsity=0.8, pattern="4x1", start_step=10, end_step=steps * 4 // 7, pruning_frequency=10
        ),
        QuantizationAwareTrainingConfig(),
        DistillationConfig(criterion=loss),
    ]


def arguments(folder: Path, steps: int, learning_rate: float, seed: int, **options: object) -> TrainingArguments:
    """The same for teacher and student: bf16, batches of 32 reviews of about one length."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=learning_rate,
        weight_decay=0.01,
        warmup_steps=steps // 10,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        dataloader_pin_memory=False,
        logging_steps=steps // 7,
        disable_tqdm=not console.is_terminal,
        seed=seed,
        **GROUPED,
        **options,
    )


def compress(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    conf: list | Path,
    args: TrainingArguments,
    *,
    resume: bool,
    **data: object,
) -> Trainer:
    """Prune, quantize and distil; the Trainer's model is an int8 model afterwards."""
    callback = INCCallback(conf, teacher_model=teacher)
    trainer = Trainer(student, args, callbacks=[callback], **data)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def load_for_training(folder: Path) -> PreTrainedModel:
    """The fine-tuned model, with attention written out: on rows this short it trains faster than the fused kernel."""
    return AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")


def save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folders: dict[str, Path]) -> None:
    """Twice, to show both; `from_pretrained` opens either."""
    trainer.save_model(str(folders["save_model"]))
    save_for_huggingface_upstream(trainer.model, tokenizer, folders["compressed"])  # adds tokenizer, report and card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="read the techniques from this YAML file")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / "output")
    parser.add_argument("--smoke", action="store_true", help="made-up data and a tiny model, in seconds")
    options = parser.parse_args()
    logging.disable_progress_bar()
    steps, student_steps = (20, 30) if options.smoke else (250, 350)
    reviews = make_reviews() if options.smoke else load_reviews()
    model, tokenizer = (load_tiny if options.smoke else load_pretrained)(options.seed)
    training, validation, test = (
        encode(part, tokenizer, MAX_LENGTH) for part in (reviews.train, reviews.validation, reviews.test)
    )
    folders = {name: options.output / name for name in ("dense", "compressed", "save_model", "checkpoints")}
    if options.resume and not list(folders["checkpoints"].glob("checkpoint-*")):
        parser.error(f"{options.output} has no checkpoint to go on from: run without --resume first.")
    data = {"train_dataset": training.rows(), "data_collator": DataCollatorWithPadding(tokenizer)}

    if not options.resume:
        shutil.rmtree(folders["checkpoints"], ignore_errors=True)
        console.print(f"Fine-tuning the teacher: {steps} steps, {len(training)} reviews to draw from.")
        args = arguments(folders["checkpoints"], steps, 1.5e-4, options.seed, save_strategy="no")
        Trainer(model, args, **data).train()
        model.save_pretrained(folders["dense"])

    console.print(f"Compressing the student: {student_steps} steps of pruning, quantization and distillation at once.")
    teacher, student = load_for_training(folders["dense"]), load_for_training(folders["dense"])
    args = arguments(
        folders["checkpoints"],
        student_steps,
        4e-4,
        options.seed + 1,
        eval_strategy="steps",
        eval_steps=student_steps // 7,
        save_steps=student_steps // 7,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
    )
    conf = options.config or techniques(student_steps)
    data |= {"eval_dataset": validation.rows(), "compute_metrics": accuracy}
    trainer = compress(student, teacher, conf, args, resume=options.resume, **data)
    console.print(f"Best of the checkpoints that have the final sparsity: {trainer.state.best_model_checkpoint}")
    finish(trainer, teacher, test, tokenizer, folders)


def finish(
    trainer: Trainer,
    teacher: PreTrainedModel,
    test: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    folders: dict[str, Path],
) -> None:
    """Save, report, compare, load again."""
    student = trainer.model.cpu()
    for model in (teacher.cpu(), student):
        model.set_attn_implementation("sdpa")  # what from_pretrained picks; a directory does not record it
    save(trainer, tokenizer, folders)
    console.print(student.report())
    console.print(compare(teacher, student, test, {name: folders[name] for name in ("dense", "compressed")}))
    check_in_fresh_process(student, test, folders["compressed"], folders["save_model"])


if __name__ == "__main__":
    main()
