"""Directories that INC's ``save_for_huggingface_upstream`` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inc_torch.export._files import HUB_CONFIG, WEIGHTS, read_json
from inc_torch.export.inc import load_inc
from inc_torch.huggingface._class import class_of

__all__ = ["holds_inc_model", "open_inc_model"]

_PICKLED = "pytorch_model.bin"
_DTYPES = ("dtype", "torch_dtype")
"""Where a configuration says of which type weights are: by INC, int8."""


def holds_inc_model(directory: Path) -> bool:
    """Whether an int8 model of INC is in ``directory``."""
    has_safetensors = any((directory / name).is_file() for name in (WEIGHTS, f"{WEIGHTS}.index.json"))
    if has_safetensors or not all((directory / name).is_file() for name in (_PICKLED, HUB_CONFIG)):
        return False
    config = read_json(directory / HUB_CONFIG, "Copy the directory again.")
    return any(config.get(name) == "int8" for name in _DTYPES)


def open_inc_model(directory: Path) -> Any:  # noqa: ANN401  any class of transformers
    """Build the model that the configuration describes, and load INC's int8 weights into it.

    Raises:
        ArtifactError: The configuration names no class, or the weights are not INC's, see `load_inc`.
    """
    # Imported here, as `import inc_torch` must not import transformers.
    from transformers import AutoConfig

    from inc_torch.huggingface._quantizer import adopt

    described = read_json(directory / HUB_CONFIG, "Copy the directory again.")
    config = AutoConfig.for_model(**{name: value for name, value in described.items() if name not in _DTYPES})
    model = load_inc(directory, class_of(config, directory)(config))
    adopt(model)
    return model
