"""The safetensors files that transformers opens a model from, read tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import final

import torch
from torch import nn

from inc_torch.core.errors import ArtifactError
from inc_torch.export._files import read_tensor, tensor_names, tensor_shape
from inc_torch.huggingface._layout import REPORT, SAVE_AGAIN

__all__ = ["Source", "files_of"]


def files_of(model: nn.Module) -> list[str]:
    """The weights in the directory that ``model`` is loaded from, which transformers 4.57 does not hand over."""
    name = model.config.name_or_path  # type: ignore[union-attr]
    directory = Path(str(name))
    if not name or not directory.is_dir():
        return []
    return [os.fspath(path) for path in sorted(directory.glob("model*.safetensors")) or directory.glob("*.bin")]


@final
class Source:
    """The files that a model is loaded from."""

    def __init__(self, files: Iterable[str]) -> None:
        self._files: dict[str, Path] = {}
        self._directory: Path | None = None
        for file in map(Path, files):
            if file.suffix != ".safetensors":
                message = (
                    f"{os.fspath(file)!r} holds pickled weights, expected *.safetensors. Pickled files are never "
                    f"opened, as opening them can run code. {SAVE_AGAIN}"
                )
                raise ArtifactError(message)
            self._files.update(dict.fromkeys(tensor_names(file, SAVE_AGAIN), file))
            self._directory = file.parent

    @property
    def where(self) -> str:
        return "the given state dict" if self._directory is None else repr(os.fspath(self._directory))

    def name_of(self, module: str, leaf: str) -> str | None:
        """The name of a tensor in the files, which may be with or without the name of the body in front."""
        name = f"{module}.{leaf}"
        if name in self._files:
            return name
        return next((other for other in self._files if other.endswith(f".{name}") or name.endswith(f".{other}")), None)

    def names(self) -> list[str]:
        """The names of all tensors."""
        return [*self._files]

    def shape(self, module: str, leaf: str) -> tuple[int, ...] | None:
        """The shape of one tensor as it was saved, without reading it; None if it is not there."""
        name = self.name_of(module, leaf)
        return None if name is None else tensor_shape(self._files[name], name)

    def tensor(self, module: str, leaf: str) -> torch.Tensor | None:
        """Read one tensor as it was saved; None if it is not there."""
        name = self.name_of(module, leaf)
        return None if name is None else read_tensor(self._files[name], name)

    def report_path(self) -> Path | None:
        """The report that was saved beside the weights, if there is one; of a Hub model, if it was downloaded too."""
        path = None if self._directory is None else self._directory / REPORT
        return path if path is not None and path.is_file() else None
