"""Open compressed directories as any user would, in a process that has never seen the training, and compare logits.

python check.py FILE DIRECTORY ...      FILE: safetensors with ``input_ids``, ``attention_mask`` and ``logits``
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

import inc_torch  # noqa: F401  lets from_pretrained open compressed directories


def main() -> None:
    logging.disable_progress_bar()
    file, *directories = sys.argv[1:]
    expected = load_file(file)
    logits = expected.pop("logits")
    for directory in directories:
        model = AutoModelForSequenceClassification.from_pretrained(directory)
        with torch.inference_mode():
            found = model(**expected).logits
        name = Path(directory).name
        if not torch.equal(found, logits):
            sys.exit(f"{name}: the logits differ by up to {(found - logits).abs().max():.3g}.")
        kind = type(model).__name__
        print(f"{name}: a fresh process loaded {kind} and gave the same {len(logits)} rows of logits, bit for bit.")


if __name__ == "__main__":
    main()
