"""Round the weights of a language model to a few bits by several algorithms, and compare how well it still predicts.

    python run.py [--windows 32] [--test-windows 32] [--output DIR] [--quick]

SmolLM2-135M is quantized with 32 windows of 256 tokens of the Brown corpus, and its perplexity is measured on as many
of other texts.  One of the models is saved and opened again by another process, which lets it write.  ``--quick`` runs
the same code on a tiny untrained model and made-up tokens, in seconds.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the package `common` lies
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from language import load_corpus, load_pretrained, load_tiny
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from common.latency import in_turns
from inc_torch import CompressionReport, PostTrainingQuantConfig, quantization, save_for_huggingface_upstream

BATCH_SIZE = 4
FLOAT = "float32"
SAVED = "4 bits, RTN"
HEAD_IN_FLOAT = {"lm_head": {"weight": {"dtype": "fp32"}}}
"""The output layer shares its weight with the embedding, which stays in float."""
IN_ORDER = {"act_order": True, "static_groups": True}
"""Columns whose inputs are great come first, and keep the groups of their neighbours."""
console = Console()


def rounding(**weight: object) -> PostTrainingQuantConfig:
    """Weights in groups of 64."""
    rule = {".*": {"weight": {"group_size": 64, **weight}}}
    return PostTrainingQuantConfig(
        approach="weight_only",
        op_type_dict=rule,
        op_name_dict=HEAD_IN_FLOAT,
        calibration_sampling_size=10_000,  # all there are
    )


def recipes() -> dict[str, PostTrainingQuantConfig]:
    """What is compared: name in the table -> configuration."""
    three = {"bits": 3, "scheme": "asym"}
    return {
        "8 bits, RTN": rounding(dtype="int8", bits=8),
        SAVED: rounding(bits=4, scheme="asym"),
        "4 bits, nf4": rounding(dtype="nf4"),
        "3 bits, RTN": rounding(**three, algorithm="RTN"),
        "3 bits, AWQ": rounding(**three, algorithm="AWQ"),
        "3 bits, GPTQ": rounding(**three, algorithm="GPTQ").replace(recipes={"gptq_args": IN_ORDER}),
    }


@torch.inference_mode()
def perplexity(model: nn.Module, tokens: torch.Tensor) -> float:
    """The exponential of the mean cross entropy of each token given those before it in its window.

    Args:
        model: A causal language model.
        tokens: [windows, length].
    """
    batches = tokens.split(BATCH_SIZE)
    losses = [float(model(batch, labels=batch).loss) * len(batch) for batch in batches]
    return math.exp(sum(losses) / len(tokens))


def quantize_all(model: PreTrainedModel, calibration: torch.Tensor) -> dict[str, nn.Module]:
    """One model for each recipe; ``model`` stays as it is."""
    batches = list(calibration.split(BATCH_SIZE))
    quantized: dict[str, nn.Module] = {}
    for name, config in recipes().items():
        start = time.perf_counter()
        quantized[name] = quantization.fit(model, config, calib_dataloader=batches)
        console.print(f"  {name:<16}{time.perf_counter() - start:7.1f} s")
    return quantized


def compare(models: dict[str, nn.Module], test: torch.Tensor, title: str) -> Table:
    """One line for each model, measured on the model as it is."""
    scores = {
        name: perplexity(model, test)
        for name, model in track(models.items(), "Reading", console=console, disable=not console.is_terminal)
    }
    prompt = test[:1, :16]
    write = {name: partial(_write, model, prompt) for name, model in models.items()}
    times = in_turns(write, rounds=5, warm_up=1)
    caption = "MB: with the embedding, in float32. ms: of each token that is written, one thread."
    table = Table(title=title, caption=caption)
    table.add_column("weights", no_wrap=True)
    for column in ("perplexity", "to float", "MB", "ms"):
        table.add_column(column, justify="right")
    for name, model in models.items():
        more = "" if name == FLOAT else f"{100 * (scores[name] / scores[FLOAT] - 1):+.1f} %"
        size = CompressionReport.measure(model).size_bytes / 1e6
        table.add_row(name, f"{scores[name]:.2f}", more, f"{size:.1f}", f"{times[name] / _WRITTEN:.1f}")
    return table


_WRITTEN = 8
"""Tokens that are written to measure how long one takes."""


@torch.inference_mode()
def _write(model: nn.Module, prompt: torch.Tensor) -> None:
    model.generate(prompt, max_new_tokens=_WRITTEN, min_new_tokens=_WRITTEN, do_sample=False)


_READER = """
import sys, torch, transformers, inc_torch
transformers.utils.logging.disable_progress_bar()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
prompt = torch.tensor([list(map(int, sys.argv[2].split()))])
print(*model.generate(prompt, max_new_tokens=12, do_sample=False)[0].tolist())
"""


def check_in_fresh_process(model: nn.Module, tokenizer: object, prompt: torch.Tensor, folder: Path) -> str:
    """Save, let another process open it and write; the tokens have to be those that the model writes here."""
    save_for_huggingface_upstream(model, tokenizer, folder)
    expected = model.generate(prompt, max_new_tokens=12, do_sample=False)[0].tolist()
    command = [sys.executable, "-c", _READER, folder, " ".join(map(str, prompt[0].tolist()))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = list(map(int, done.stdout.split()))
    if found != expected:
        sys.exit(f"Another process writes {found}, expected {expected}.")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    text = tokenizer.decode(found) if tokenizer is not None else " ".join(map(str, found))
    return f"{SAVED}: saved, {size:.1f} MB. A fresh process opened it and wrote the same: {text!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=32, help="of 256 tokens, to calibrate on")
    parser.add_argument("--test-windows", type=int, default=32, help="the same, to measure perplexity on")
    parser.add_argument("--output", type=Path, help="where the saved model stays; else it is removed")
    parser.add_argument("--quick", action="store_true", help="made-up tokens and a tiny model, in seconds")
    options = parser.parse_args()
    counts = {"calibration": options.windows, "test": options.test_windows}
    if min(counts.values()) < 1:
        parser.error("--windows and --test-windows: expected 1 or more.")
    logging.disable_progress_bar()
    if options.quick:
        model, calibration, test = load_tiny(**counts)
        tokenizer, prompt = None, test[:1, :4]
    else:
        model, tokenizer = load_pretrained()
        calibration, test = load_corpus(tokenizer, **counts)
        prompt = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    console.print(f"Rounding, {calibration.numel()} tokens to calibrate with:")
    models = {FLOAT: model, **quantize_all(model, calibration)}
    console.print(compare(models, test, f"{type(model).__name__}, {test.numel()} tokens of other texts"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary) / "model"
        console.print(check_in_fresh_process(models[SAVED], tokenizer, prompt, folder))


if __name__ == "__main__":
    main()
