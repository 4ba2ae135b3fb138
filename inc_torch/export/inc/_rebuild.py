"""From what INC stored to int8 modules of ours, in the user's own model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from inc_torch.core.errors import ArtifactError, did_you_mean, listed
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.export._proof import attach_report
from inc_torch.export._surface import adorn
from inc_torch.export.inc._layers import IncLayer, IncModel, Range, flat, parse
from inc_torch.export.inc._pickled import find_file, read_file
from inc_torch.export.inc._ranges import Rounding
from inc_torch.inference import run_graph_fused
from inc_torch.quantizers import (
    GivenCodes,
    QuantScheme,
    adopt_codes,
    describe_int8,
    reason_against_codes,
    take_away_norm,
)
from inc_torch.quantizers.fx import Captured, Refused, capture, graft_grids, is_of_hugging_face

__all__ = ["load_inc"]

ModelT = TypeVar("ModelT", bound=nn.Module)

_DYNAMIC = QuantScheme(dynamic=True, input_bits=7)
"""INC's dynamic layers leave one bit of the input unused."""


def load_inc(source: str | os.PathLike[str], model: ModelT) -> ModelT:
    """Load a quantized model that INC 2.X saved into ``model``, in place.

    Weights become the same codes and scales, and tensors are rounded where INC rounds them, by the same ranges. Only
    where the model cannot be traced whole, as those of transformers, what a layer returns stays in float until the next
    one rounds it. Embeddings with an offset for each row, and weights with zero points, keep their values in float.

    Args:
        source: The directory, or the file ``best_model.pt`` or ``pytorch_model.bin`` in it.
        model: The float model as it was given to INC, with any weights.

    Returns:
        ``model`` itself, in eval mode.

    Raises:
        ArtifactError: There is no such file, it is not INC's or holds more than tensors and plain values, or ``model``
            is another one. The model is then unchanged.
    """
    path = find_file(source)
    if path is None:
        message = f"{os.fspath(source)!r} holds no best_model.pt and no pytorch_model.bin: expected one, as INC saves."
        raise ArtifactError(message)
    stored = parse(*read_file(path))
    modules = dict(model.named_modules())
    if unknown := [name for name in stored.layers if name not in modules]:
        message = (
            f"{os.fspath(path)!r} has an int8 layer {unknown[0]!r}, and {type(model).__name__} has no such module."
            f"{did_you_mean(unknown[0], modules)}"
        )
        raise ArtifactError(message)
    notes = _leave_in_float(modules, stored)
    norms = _folded_norms(model, stored)
    _require_the_rest(model, stored, norms, os.fspath(path))
    captured = _captured(model)
    rounding = None if isinstance(captured, str) else Rounding.along(captured, model, stored, norms)
    ranges = {} if rounding is None else rounding.inputs
    ranges |= {name: stored.inputs[flat(name)] for name in stored.layers if flat(name) in stored.inputs}
    _require_ranges(model, stored, ranges, captured)
    adopt_codes(model, {name: _given(layer, ranges.get(name)) for name, layer in stored.layers.items()})
    for name in norms:
        take_away_norm(modules[name])
        notes[name] = "folded into the layer before it"
    if rounding is not None and not isinstance(captured, str) and not is_of_hugging_face(model):
        graft_grids(model, captured, rounding.plan, rounding.grids)
    state = model.state_dict()
    model.load_state_dict({**state, **{name: value for name, value in stored.floats.items() if name in state}})
    adorn(model)
    findings = [Finding(name, scheme=str(entry["scheme"])) for name, entry in describe_int8(model).items()]
    findings += [Finding(name, note=note) for name, note in notes.items()]
    attach_report(model, CompressionReport.measure(model, findings))
    run_graph_fused(model)
    return model.eval()


def _given(layer: IncLayer, limits: Range | None) -> GivenCodes:
    scheme = _DYNAMIC if layer.is_dynamic else QuantScheme()
    return GivenCodes(layer.codes, layer.scale, layer.bias, scheme, None if layer.is_dynamic else limits)


def _captured(model: nn.Module) -> Captured | str:
    """The graph of the model, or why there is none."""
    try:
        return capture(model)
    except Refused as refusal:
        return str(refusal)


def _require_ranges(model: nn.Module, stored: IncModel, ranges: Mapping[str, Range], captured: Captured | str) -> None:
    lost = [name for name, layer in stored.layers.items() if not layer.is_dynamic and name not in ranges]
    if not lost:
        return
    reason = (
        f"it cannot be traced to find where they come from: {captured}"
        if isinstance(captured, str)
        else "nothing before them has one"
    )
    message = (
        f"The ranges of the inputs of {listed(lost)} are not in INC's file, and in {type(model).__name__} {reason}. "
        "Build the model as it was when INC quantized it."
    )
    raise ArtifactError(message)


def _leave_in_float(modules: dict[str, nn.Module], stored: IncModel) -> dict[str, str]:
    """Give the layers whose codes no int8 module of ours can take their values as floats; by name, why."""
    notes = {}
    for name, layer in list(stored.layers.items()):
        reason = reason_against_codes(modules[name], layer.codes.shape, is_dynamic=layer.is_dynamic)
        if reason is None and layer.axis != 0:
            reason = f"its scales lie along axis {layer.axis}"
        if reason is not None:
            del stored.layers[name]
            stored.floats[f"{name}.weight"] = layer.values()
            if layer.bias is not None:
                stored.floats[f"{name}.bias"] = layer.bias
            notes[name] = f"in float with the values of INC's codes: {reason}"
    return notes


def _folded_norms(model: nn.Module, stored: IncModel) -> list[str]:
    """The batch normalizations of the model that INC has folded into the layers before them: the file has none."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not any(key.startswith(f"{name}.") for key in stored.floats)
    ]


def _require_the_rest(model: nn.Module, stored: IncModel, norms: list[str], where: str) -> None:
    """Make sure that every float tensor of the model is in the file, in its shape."""
    gone = (*(f"{name}." for name in norms), *(f"{name}." for name in stored.layers))
    for name, tensor in model.state_dict().items():
        if name.startswith(gone):
            continue
        value = stored.floats.get(name)
        if value is None or value.shape != tensor.shape:
            found = "nothing" if value is None else f"shape {tuple(value.shape)}"
            message = (
                f"{type(model).__name__} is not the model that INC saved in {where!r}: for {name!r} of shape "
                f"{tuple(tensor.shape)} there is {found}.{did_you_mean(name, stored.floats)} Build the model as it was "
                "when INC quantized it."
            )
            raise ArtifactError(message)
