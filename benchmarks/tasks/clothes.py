"""A small CNN from scratch on Fashion-MNIST: ten kinds of clothes in 28 x 28 grey pixels.

    images  [N, 1, 28, 28]  float32, of mean 0 and deviation 1 over the training set
    labels  [N]             int64

The weights lie in memory with channels last, which trains faster here.
"""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.tasks.task import Inputs, Phase, Task

VARIABLE = "FASHION_MNIST_DIR"
PLACES = (Path(sys.prefix) / "fashion", Path("/usr/share/datasets/fashion-mnist"))
MEAN, DEVIATION = 0.2860, 0.3530
TRAINED = 20_000
BATCH_SIZE = 128
WIDTH, KINDS = 16, 10
FIRST, SECOND = Phase(468, 4e-3), Phase(312, 4e-3)  # three epochs, and two


def load() -> Task:
    """The task; training takes the first 20,000 images, the test all 10,000 of the test set.

    Raises:
        FileNotFoundError: The images are nowhere.
    """
    folder = find_images()
    images, labels = (part[:TRAINED] for part in read(folder, "train"))
    test_images, test_labels = read(folder, "t10k")

    def batches(steps: int, seed: int) -> Iterator[tuple[Inputs, torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        given = 0
        while given < steps:
            order = torch.randperm(len(images), generator=generator)
            full = len(order) // BATCH_SIZE
            for rows in order[: full * BATCH_SIZE].view(full, BATCH_SIZE)[: steps - given]:
                yield images[rows], labels[rows]
            given += full

    @torch.inference_mode()
    def right(model: nn.Module) -> torch.Tensor:
        model.eval()
        return torch.cat([model(part).argmax(-1) for part in test_images.split(1000)]) == test_labels

    def logits(model: nn.Module, inputs: Inputs) -> torch.Tensor:
        return model(inputs)

    def sample(rows: int) -> Inputs:
        return test_images[:rows]

    return Task("CNN, Fashion-MNIST", build, batches, logits, right, sample, test_labels, FIRST, SECOND)


def build(seed: int) -> nn.Sequential:
    """Three convolutions with batch normalization and two linear layers; 98,554 parameters."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, WIDTH), (WIDTH, 2 * WIDTH), (2 * WIDTH, 4 * WIDTH)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(4 * WIDTH * 3 * 3, 8 * WIDTH), nn.ReLU(), nn.Linear(8 * WIDTH, KINDS)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def find_images() -> Path:
    """The folder with the four files.

    Raises:
        FileNotFoundError: There is none.
    """
    named = os.environ.get(VARIABLE)
    for folder in [Path(named)] if named else PLACES:
        if all(file_of(folder, part, kind).is_file() for part in ("train", "t10k") for kind in ("images", "labels")):
            return folder
    places = f"{VARIABLE}={named}" if named else f"{' or '.join(map(str, PLACES))}, and {VARIABLE} is not set"
    message = (
        f"Fashion-MNIST's train-images-idx3-ubyte.gz and the three files beside it are not in {places}. Run: make "
        f"fashion; or install the Debian package dataset-fashion-mnist; or name their folder by {VARIABLE}."
    )
    raise FileNotFoundError(message)


def file_of(folder: Path, part: str, kind: str) -> Path:
    """Where the ``kind`` (images or labels) of the ``part`` (train or t10k) lies."""
    return folder / f"{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte.gz"


def read(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of a part of the set."""
    images, labels = (numbers(file_of(folder, part, kind)) for kind in ("images", "labels"))
    return ((images.float() / 255 - MEAN) / DEVIATION).unsqueeze(1), labels.long()


def numbers(file: Path) -> torch.Tensor:
    """The bytes of an IDX file: four bytes of which the last is the rank, four for each size, and the values."""
    content = gzip.decompress(file.read_bytes())
    rank = content[3]
    shape = np.frombuffer(content, ">u4", rank, offset=4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy())
