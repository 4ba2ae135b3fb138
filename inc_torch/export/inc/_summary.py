"""Models that INC 2.X quantized with ``backend="ipex"``: ranges from its summary, weights from the user's own model.

INC saved such a model as a TorchScript program, which is never run here. Its ``best_configure.json`` has the ranges of
all inputs and the scales of all weights, and the codes follow from the float weights that the model was made of.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, TypeVar

import torch
from torch import nn

from inc_torch.core.errors import ArtifactError, did_you_mean
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.export._proof import attach_report
from inc_torch.export._surface import adorn
from inc_torch.ipex import SUMMARY, SummaryRange, ranges_of, read_summary
from inc_torch.quantizers import GivenCodes, QuantScheme, adopt_codes, describe_int8, quantized_kind

__all__ = ["find_summary", "load_inc_summary"]

ModelT = TypeVar("ModelT", bound=nn.Module)

_TOP: Final = 127
_AS_OBSERVED: Final = 127.5
"""What the extension divides the greatest weight of a channel by."""


def find_summary(source: str | os.PathLike[str]) -> Path | None:
    """The summary in a directory, or the file itself; None if there is none."""
    path = Path(source)
    if path.is_file():
        return path if path.suffix == ".json" else None
    return path / SUMMARY if (path / SUMMARY).is_file() else None


def load_inc_summary(source: str | os.PathLike[str], model: ModelT) -> ModelT:
    """Make the int8 model that a summary describes of the float model, in place.

    Layers get the ranges and scales of the summary. Additions, matrix products and pools, which the extension
    computed in int8 too, stay in float.

    Args:
        source: The directory that INC saved to, or the ``best_configure.json`` in it.
        model: The float model with the weights that it was quantized with.

    Returns:
        ``model`` itself, in eval mode.

    Raises:
        ArtifactError: There is no summary, or ``model`` is another one. The model is then unchanged.
    """
    path = find_summary(source)
    if path is None:
        message = f"{os.fspath(source)!r} holds no {SUMMARY}: expected one, as INC saves with backend='ipex'."
        raise ArtifactError(message)
    modules = dict(model.named_modules())
    ranges = ranges_of(read_summary(path))
    for name in ranges:
        if name not in modules or quantized_kind(type(modules[name])) is None:
            message = (
                f"{os.fspath(path)!r} has an int8 layer {name!r}, and {type(model).__name__} has no such layer."
                f"{did_you_mean(name, modules)}"
            )
            raise ArtifactError(message)
    with torch.no_grad():
        adopt_codes(model, {name: _given(modules[name], seen) for name, seen in ranges.items()})
    for name, seen in ranges.items():
        if seen.factor is not None:
            modules[name]._buffers["input_factor"] = torch.tensor(seen.factor)
    adorn(model)
    findings = [Finding(name, scheme=str(entry["scheme"])) for name, entry in describe_int8(model).items()]
    attach_report(model, CompressionReport.measure(model, findings))
    return model.eval()


def _given(module: nn.Module, seen: SummaryRange) -> GivenCodes:
    """Codes as the extension makes them: scales of the summary, or where a batch normalization is in these, our own."""
    kind = quantized_kind(type(module))
    weight = module.get_parameter("weight").detach().float()
    weight = weight if kind is None else kind.arranged(module, weight)
    if seen.factor is not None:
        factor = torch.tensor(seen.factor).view(1, -1, *[1] * (weight.dim() - 2))
        weight = weight / factor
    greatest = weight.abs().flatten(1).amax(1)
    scale = greatest / _AS_OBSERVED
    if seen.weight_scale is not None and len(seen.weight_scale) == len(scale):
        stored = torch.tensor(seen.weight_scale)
        if torch.allclose(stored, scale, rtol=1e-2):
            scale = stored
    scale = torch.where(scale > 0, scale, 1.0)
    codes = (weight / scale.view(-1, *[1] * (weight.dim() - 1))).round().clamp(-_TOP - 1, _TOP).to(torch.int8)
    bias = module._parameters.get("bias")
    given = None if bias is None else bias.detach().float()
    return GivenCodes(codes, scale, given, QuantScheme(), (seen.scale, seen.zero_point))
