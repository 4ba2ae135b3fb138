"""Single tensors in safetensors files, read when they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError, safe_open

from inc_torch.core.errors import ArtifactError
from inc_torch.export._files import read_tensor, tensor_names

__all__ = ["StoredTensor", "are_equal", "stored_tensors"]

_FLOAT_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_COMPARED_VALUES = 2**22
"""Values of two tensors that are compared at once."""


@final
@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        path: The file.
        name: Its name there.
        shape: Its shape.
        float_type: Its dtype, or None if that is no plain floating one.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    float_type: torch.dtype | None

    def __str__(self) -> str:
        return f"{self.name!r} in {os.fspath(self.path)!r}"

    def read(self) -> torch.Tensor:
        """Read the values.

        Raises:
            ArtifactError: The file is not what it was when `stored_tensors` saw it.
        """
        try:
            return read_tensor(self.path, self.name)
        except (OSError, SafetensorError) as error:
            message = (
                f"The tensor {self} could not be read: got {error}, expected the file as it was when the model was "
                "built. Leave it where it is until all weights are loaded."
            )
            raise ArtifactError(message) from error


def stored_tensors(files: Iterable[Path], way_out: str) -> dict[str, StoredTensor]:
    """List the tensors of safetensors files from their headers.

    Args:
        files: They exist.
        way_out: The sentence that ends the message of an error.

    Returns:
        By name.

    Raises:
        ArtifactError: A file is damaged.
    """
    found: dict[str, StoredTensor] = {}
    for path in files:
        names = sorted(tensor_names(path, way_out))
        with safe_open(path, framework="pt") as file:
            for name in names:
                header = file.get_slice(name)
                float_type = _FLOAT_TYPES.get(header.get_dtype())
                found[name] = StoredTensor(path, name, tuple(header.get_shape()), float_type)
    return found


def are_equal(first: StoredTensor, second: StoredTensor) -> bool:
    """Compare the values of two stored tensors of one shape, without ever holding all of them."""
    if not first.shape:
        return torch.equal(first.read(), second.read())
    rows = max(1, _COMPARED_VALUES // max(1, torch.Size(first.shape[1:]).numel()))
    with safe_open(first.path, framework="pt") as one_file, safe_open(second.path, framework="pt") as other_file:
        one, other = one_file.get_slice(first.name), other_file.get_slice(second.name)
        return all(
            torch.equal(one[begin : begin + rows], other[begin : begin + rows])
            for begin in range(0, first.shape[0], rows)
        )
