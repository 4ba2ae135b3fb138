"""The models of the matrix: seventeen architectures of transformers, and eight graphs of torchvision's families."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from inc_torch import load, save_for_huggingface_upstream
from tests.architectures.compress import scores
from tests.architectures.zoo import ZOO, Architecture, Batch
from tests.support.vision import efficientnet_lite0, family, images

__all__ = ["GRAPHS", "SUBJECTS", "Subject"]

STEPS = 6
"""Batches of a run, each of which makes a step."""
CLASSES = 10
IMAGES = 4
FEW = 2


class Subject(ABC):
    """A float model, its data, and the way in which a loop calls it."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def build(self) -> nn.Module:
        """The same float model each time."""

    def teacher(self) -> nn.Module:
        """Another one, whose answers differ."""
        model = self.build()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise * parameter.std(correction=0))
        return model

    @abstractmethod
    def batches(self) -> list[Batch]:
        """Those of a run, as keyword arguments of the model, with ``labels``."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> tuple[object, object, torch.Tensor]:
        """What a teacher is given, what the model returns, and the loss of the task."""

    @abstractmethod
    def calibration(self) -> list[Any]:
        """Batches for `quantization.fit`."""

    @abstractmethod
    def answer(self, model: nn.Module) -> torch.Tensor:
        """Logits for a batch that no run and no calibration saw."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None: ...

    @abstractmethod
    def load(self, folder: Path) -> nn.Module: ...

    def loss_function(self) -> Any:
        """What the Trainer is told to compute, if the model computes no loss of its own."""
        return None


class Transformer(Subject):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture.name)
        self.architecture = architecture

    def build(self) -> nn.Module:
        return self.architecture.build()

    def batches(self) -> list[Batch]:
        two = self.architecture.training_batches()
        return [two[index % len(two)] for index in range(STEPS)]

    def forward(self, model: nn.Module, batch: Batch) -> tuple[object, object, torch.Tensor]:
        output = model(**batch)
        return batch, output, output.loss

    def calibration(self) -> list[Any]:
        return self.architecture.training_batches()

    def answer(self, model: nn.Module) -> torch.Tensor:
        return scores(model.eval(), self.architecture.other_batch())

    def save(self, model: nn.Module, folder: Path) -> None:
        save_for_huggingface_upstream(model, None, folder)

    def load(self, folder: Path) -> nn.Module:
        return self.architecture.model_class.from_pretrained(folder)


class Graph(Subject):
    def build(self) -> nn.Module:
        return efficientnet_lite0() if self.name == "efficientnet_lite0" else family(self.name)

    def batches(self) -> list[Batch]:
        name = next(iter(inspect.signature(self.build().forward).parameters))
        labels = torch.arange(IMAGES) % CLASSES
        return [{name: pictures, "labels": labels} for pictures in images(STEPS, IMAGES)]

    def forward(self, model: nn.Module, batch: Batch) -> tuple[object, object, torch.Tensor]:
        pictures, labels = batch.values()
        output = model(pictures)
        return pictures, output, F.cross_entropy(output, labels)

    def calibration(self) -> list[Any]:
        return images(FEW, IMAGES)

    def answer(self, model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(images(STEPS + 1, FEW)[-1])

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save(folder)

    def load(self, folder: Path) -> nn.Module:
        return load(folder, model=self.build())

    def loss_function(self) -> Any:
        return lambda output, labels, num_items_in_batch=None: F.cross_entropy(output, labels)


GRAPHS = (
    "resnet18",
    "resnet50",
    "mobilenet_v3_small",
    "densenet",
    "shufflenet",
    "vit",
    "swin",
    "efficientnet_lite0",
)
"""ResNet-18 to Swin are small members of torchvision's families, EfficientNet-Lite0 has its trained weights."""

SUBJECTS: dict[str, Subject] = {
    **{f"transformers-{name}": Transformer(architecture) for name, architecture in ZOO.items()},
    **{f"graph-{name}": Graph(name) for name in GRAPHS},
}
