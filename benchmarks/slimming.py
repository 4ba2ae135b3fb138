"""What physical removal is worth: MiniLM-L6 with half of its feed-forward channels and heads taken out, and int8.

Real weights (MiniLM-L6 with a new head), units chosen by magnitude, no training: figures are of time and size only.
One thread; batches of 8 rows of 128 tokens; the models take turns; medians.

    python benchmarks/slimming.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers.utils import logging

from common.latency import in_turns
from common.model import load_pretrained
from inc_torch import CompressionReport, PostTrainingQuantConfig, WeightPruningConfig, prepare_compression, quantization
from inc_torch.pruners.slimming import model_slim, parse_auto_slim_config

SPARSITY, ROWS, LENGTH = 0.5, 8, 128


def pruned(model: nn.Module, *, heads: bool = False) -> nn.Module:
    """The model with half of the inputs of each second feed-forward layer zero, and half of the heads if asked for."""
    local = parse_auto_slim_config(model, ffn2_sparsity=SPARSITY, mha_sparsity=SPARSITY if heads else 0.0)
    config = WeightPruningConfig(local, pruning_scope="local", pruning_type="magnitude")
    manager = prepare_compression(model, config)
    manager.on_train_begin()
    manager.on_step_begin(0)
    manager.on_train_end()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    dense, _ = load_pretrained(seed=0)
    dense.eval()
    ids = torch.randint(1000, 20000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    masked = pruned(copy.deepcopy(dense))
    slim = model_slim(copy.deepcopy(masked))
    slimmer = model_slim(pruned(copy.deepcopy(dense), heads=True), loadable=False)
    models = {
        "float32, dense": dense,
        "pruned": masked,
        "pruned and slimmed": slim,
        "heads too": slimmer,
    }
    for name, model in (("int8, dense", dense), ("int8, slimmed", slim), ("int8, heads too", slimmer)):
        models[name] = quantization.fit(copy.deepcopy(model), PostTrainingQuantConfig(), calib_dataloader=[inputs])
    with torch.no_grad():
        difference = (masked(**inputs).logits - slim(**inputs).logits).abs().max()
        calls = {name: partial(model, **inputs) for name, model in models.items()}
        middle = in_turns(calls, rounds=options.rounds, warm_up=2, clock=time.process_time)
    table = Table(title=f"MiniLM-L6, {SPARSITY:.0%} of the channels taken out, {ROWS} rows of {LENGTH} tokens")
    table.add_column("model")
    for column in ("MB", "ms", "times as fast"):
        table.add_column(column, justify="right")
    for name, model in models.items():
        size = CompressionReport.measure(model).size_bytes / 1e6
        table.add_row(name, f"{size:.1f}", f"{middle[name]:.0f}", f"{middle['float32, dense'] / middle[name]:.2f}")
    Console().print(table)
    Console().print(f"Pruned and slimmed differ by {float(difference):.1e} in the logits.")


if __name__ == "__main__":
    main()
