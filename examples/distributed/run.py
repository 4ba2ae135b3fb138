"""Prune to 80 %, quantize to int8 and distil MiniLM-L6 in two or more processes that train one model together.

    torchrun --nproc_per_node 2 examples/distributed/run.py [--shard] [--seed 0] [--smoke]
                                                            [--output examples/distributed/output]

Each process holds the whole student (DistributedDataParallel), or with ``--shard`` its part of every weight
(``fully_shard``, FSDP2). ``--smoke`` runs the same code on made-up reviews and a tiny untrained model, in seconds.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the package `common` lies
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait crawl on a busy machine

import torch
from rich.console import Console
from rich.table import Table
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from transformers import PreTrainedModel, get_linear_schedule_with_warmup
from transformers.utils import logging

from common.compare import check_in_fresh_process
from common.data import Batch, Encoded, encode, load_reviews
from common.model import load_pretrained, predict
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
BATCH_SIZE = 32  # of all processes together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", action="store_true", help="give each process a part of every weight (FSDP2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / "output")
    parser.add_argument("--smoke", action="store_true", help="made-up data and a tiny model, in seconds")
    options = parser.parse_args()
    logging.disable_progress_bar()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        run(options, device)
    finally:
        distributed.destroy_process_group()


def run(options: argparse.Namespace, device: torch.device) -> None:
    """What every process does; the console of the first one speaks for all."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    console = Console(quiet=rank > 0)
    steps, student_steps = (20, 30) if options.smoke else (120, 200)
    reviews = make_reviews() if options.smoke else load_reviews()
    teacher, tokenizer = (load_tiny if options.smoke else load_pretrained)(options.seed)
    training, test = (encode(part, tokenizer, MAX_LENGTH) for part in (reviews.train, reviews.test))

    console.print(f"Fine-tuning the teacher in {ranks} processes: {steps} steps.")
    train(teacher.to(device), training, steps, options.seed)

    how = "each with a part of every weight" if options.shard else "each with the whole model"
    console.print(f"Compressing the student: {student_steps} steps in {ranks} processes, {how}.")
    student = copy.deepcopy(teacher)
    manager = compress(student, teacher, training, student_steps, options.seed + 1, shard=options.shard)

    for model in (teacher.cpu(), student.cpu()):
        model.set_attn_implementation("sdpa")  # what from_pretrained picks; a directory does not record it
    report = manager.report()  # measured on every rank; each sees the same
    console.print(report)
    console.print(compare_ranks(student, report.sparsity))
    for name, model in (("dense", teacher), ("compressed", student)):
        console.print(f"accuracy on {len(test)} reviews, {name}: {accuracy(model, test):.4f}")

    folder = options.output / "compressed"
    save_for_huggingface_upstream(student, tokenizer, folder)  # called by all, written by the first
    if rank == 0:
        check_in_fresh_process(student, test, folder)


def train(model: PreTrainedModel, data: Encoded, steps: int, seed: int) -> None:
    """Fine-tune all weights."""
    wrapped = DistributedDataParallel(model)
    optimizer = AdamW(model.parameters(), lr=1.5e-4, weight_decay=0.01, fused=True)
    scheduler = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    for batch in own_batches(data, steps, seed):
        loss = forward(wrapped, batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def compress(
    student: PreTrainedModel, teacher: PreTrainedModel, data: Encoded, steps: int, seed: int, *, shard: bool
) -> CompressionManager:
    """Prune, quantize and distil in one loop, which is that of a single process but for one line."""
    loss = KnowledgeDistillationLossConfig(temperature=2.0, loss_types=["CE", "KL"], loss_weights=[0.3, 0.7])
    pruning = WeightPruningConfig(
        target_sparsity=0.8, pattern="4x1", start_step=10, end_step=steps * 4 // 7, pruning_frequency=10
    )
    manager = prepare_compression(
        student, [pruning, QuantizationAwareTrainingConfig(), DistillationConfig(teacher, loss)]
    )
    wrapped = sharded(student) if shard else DistributedDataParallel(student)
    optimizer = AdamW(wrapped.parameters(), lr=4e-4, weight_decay=0.01)
    scheduler = get_linear_schedule_with_warmup(optimizer, steps // 20, steps)

    wrapped.train()
    manager.on_train_begin()
    for index, batch in enumerate(own_batches(data, steps, seed)):
        manager.on_step_begin(index)
        output = forward(wrapped, batch)
        loss = manager.on_after_compute_loss(batch.inputs, output, output.loss)
        loss.backward()
        nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)
        manager.on_before_optimizer_step()  # gradients are those of all processes: all choose the same masks
        optimizer.step()
        manager.on_after_optimizer_step()
        scheduler.step()
        optimizer.zero_grad()
        manager.on_step_end()
    manager.on_train_end()  # the student is whole again in every process, and int8
    return manager


def sharded(model: PreTrainedModel) -> PreTrainedModel:
    """The same object, of which each process keeps a part of every weight; whole layers only while they run."""
    for layer in model.base_model.encoder.layer:
        fully_shard(layer)
    return fully_shard(model)


def own_batches(data: Encoded, steps: int, seed: int) -> Iterator[Batch]:
    """This process's rows of every batch, on the device of its model."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    stream = data.stream(BATCH_SIZE, steps, seed, rank=distributed.get_rank(), ranks=distributed.get_world_size())
    for batch in stream:
        inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
        yield Batch(batch.index, inputs, batch.labels.to(device))


def forward(model: nn.Module, batch: Batch):
    with torch.autocast(batch.labels.device.type, torch.bfloat16):
        return model(**batch.inputs, labels=batch.labels)


def accuracy(model: PreTrainedModel, test: Encoded) -> float:
    """The share of right answers; each process looks at its own rows."""
    own = slice(distributed.get_rank(), None, distributed.get_world_size())
    part = Encoded(test.input_ids[own], test.labels[own], test.pad_id)
    right = (predict(model, part).argmax(-1) == torch.tensor(part.labels)).sum()
    return sum(gathered(int(right))) / len(test)


def compare_ranks(model: PreTrainedModel, sparsity: float) -> Table:
    """What each process holds at the end, as hashes.

    Raises:
        RuntimeError: They hold different models.
    """
    tensors = model.state_dict()
    zeros = [codes == 0 for name, codes in tensors.items() if name.endswith(".qweight")]
    rows = gathered((digest(zeros), digest(tensors.values()), f"{sparsity:.4f}"))
    table = Table("rank", "where the zeros are", "all tensors", "zeros in pruned layers", title="In each process")
    for rank, row in enumerate(rows):
        table.add_row(str(rank), *row)
    if len(set(rows)) > 1:
        raise RuntimeError(f"The processes hold different models: {rows}.")
    return table


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """A short hash of all values."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def gathered(value: object) -> list:
    """The values of all processes, in the order of ranks."""
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


if __name__ == "__main__":
    main()
