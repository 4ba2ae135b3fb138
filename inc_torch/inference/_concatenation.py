"""Channels of several images side by side, in compiled steps: one for each part, into its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import final

import torch

from inc_torch import kernels
from inc_torch.inference._operations import Operation

__all__ = ["Concatenate", "joined_shape", "of_parts", "slices_like"]


@final
@dataclass(frozen=True)
class Concatenate(Operation):
    """Codes of one grid, side by side along channels; inputs are the parts [samples, channels, height, width].

    Attributes:
        parts: How many there are.
    """

    parts: int

    @property
    def input_roles(self) -> tuple[str, ...]:
        return tuple(f"part {index}" for index in range(self.parts))

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        layout = torch.channels_last
        return (torch.empty(joined_shape(inputs), dtype=torch.uint8, device=inputs[0].device, memory_format=layout),)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.cat(inputs, 1).contiguous(memory_format=torch.channels_last),)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        places = slices_like(inputs, outputs[0], 1)
        steps = [kernels.requantize(part, _ANY, place, _ANY) for part, place in zip(inputs, places, strict=True)]
        return of_parts(steps, inputs, outputs[0])


_ANY = kernels.Grid(1.0, 0)
"""Codes move from grid to the same grid, whichever it is."""


def joined_shape(parts: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """The shape of all parts side by side."""
    samples, _, *size = parts[0].shape
    return (samples, sum(part.shape[1] for part in parts), *size)


def slices_like(parts: Sequence[torch.Tensor], whole: torch.Tensor, axis: int = 0) -> Iterator[torch.Tensor]:
    """What belongs to the channels of each part, along an axis of ``whole``."""
    ends = accumulate(part.shape[1] for part in parts)
    for part, end in zip(parts, ends, strict=True):
        yield whole.narrow(axis, end - part.shape[1], part.shape[1])


def of_parts(steps: Sequence[kernels.Step], parts: Sequence[torch.Tensor], output: torch.Tensor) -> kernels.Step:
    """One step of those that read one part each, "part 0" and so on, and write its channels of "output"."""
    begin = output.data_ptr()
    places = [place.data_ptr() - begin for place in slices_like(parts, output, 1)]
    roles = {f"part {index}": [(step, "input", 0)] for index, step in enumerate(steps)}
    written = [(step, "output", offset) for step, offset in zip(steps, places, strict=True)]
    return kernels.JoinedStep("concatenate", steps, {**roles, "output": written})
