"""Dense and compressed model side by side, and the compressed one again in a process that knows nothing of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from rich.table import Table
from safetensors.torch import save_file
from transformers import PreTrainedModel

from common.data import Encoded
from common.latency import medians
from common.model import accuracy, predict


def compare(dense: PreTrainedModel, compressed: PreTrainedModel, test: Encoded, folders: dict[str, Path]) -> Table:
    """A table of both; everything is measured on the two models as they are, and on the files in ``folders``."""
    models = {"dense": dense.eval(), "compressed": compressed.eval()}
    report = compressed.report()
    asked = {row.asked_sparsity for row in report.modules if row.asked_sparsity is not None}
    sizes = {
        name: sum(file.stat().st_size for file in folder.glob("*.safetensors")) for name, folder in folders.items()
    }
    table = Table("", "dense float32", "compressed int8", "ratio", title="MiniLM-L6 on Rotten Tomatoes")
    scores = {name: accuracy(predict(model, test), test) for name, model in models.items()}
    gain = f"{(scores['compressed'] - scores['dense']) * 100:+.2f} points"
    table.add_row(f"accuracy, {len(test)} reviews", f"{scores['dense']:.4f}", f"{scores['compressed']:.4f}", gain)
    table.add_row("zeros in pruned layers", "-", f"{report.sparsity:.4f}", f"asked {max(asked)}")
    ratio = f"{sizes['dense'] / sizes['compressed']:.2f}x less"
    table.add_row("file, MB", f"{sizes['dense'] / 1e6:.1f}", f"{sizes['compressed'] / 1e6:.1f}", ratio)
    for batch_size in (1, 8):
        times = medians(models, batch_size)
        ratio = f"{times['dense'] / times['compressed']:.2f}x speed"
        table.add_row(f"ms, batch {batch_size}", f"{times['dense']:.2f}", f"{times['compressed']:.2f}", ratio)
    return table


def check_in_fresh_process(model: PreTrainedModel, test: Encoded, *folders: Path) -> None:
    """Write some logits down and let another process find the same ones in each of ``folders``.

    Raises:
        CalledProcessError: It did not.
    """
    batch = test.batch(range(32))
    with torch.inference_mode():
        logits = model.eval()(**batch.inputs).logits
    expected = folders[0].parent / "expected.safetensors"
    save_file({**batch.inputs, "logits": logits}, expected)
    # Without what a launcher such as torchrun has set for its own processes.
    environment = {
        name: value for name, value in os.environ.items() if name not in {"RANK", "LOCAL_RANK", "WORLD_SIZE"}
    }
    command = [sys.executable, Path(__file__).parent / "check.py", expected, *folders]
    subprocess.run(command, check=True, env=environment)
