"""Import torchvision, and transformers, which imports it, beside a torch without CUDA.

torchvision's wheel is built for CUDA, so its operators do not load beside a CPU build of torch, and importing it fails
because it then describes operators that were never defined. Defining the two by name is enough for its models: none
of those measured here calls them.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_alive: list[torch.library.Library] = []


def torchvision_models() -> ModuleType:
    """Return ``torchvision.models``."""
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _alive.append(library)  # definitions end with their Library
    return importlib.import_module("torchvision.models")


def transformers() -> ModuleType:
    """Return ``transformers``, whose models import torchvision where it is installed."""
    torchvision_models()
    return importlib.import_module("transformers")
