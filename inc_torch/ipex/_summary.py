"""The configuration summary of the extension as plain values: which operations there are, and how each is computed.

The summary holds for each module that computes something itself (its *key*) the operations in the order in which they
run, each with the tensors that go in and out, their scales, and the dtype that each is read in. Whether an operation
computes in int8 is said by the ``force_dtype`` of what it reads.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import torch

from inc_torch.core.errors import ArtifactError
from inc_torch.core.files import parse_json

__all__ = [
    "FUNCTIONS",
    "LAYERS",
    "Grid",
    "IpexOperation",
    "LayerCodes",
    "Summary",
    "changed",
    "int8_operations",
    "operations_of",
    "read_summary",
]

Summary = dict[str, Any]
"""As ``json`` reads it."""

LAYERS: Final = frozenset({"Linear", "Conv2d", "Conv3d", "ConvTranspose2d", "ConvTranspose3d"})
"""Classes of layers with a weight that the extension computes in int8."""
FUNCTIONS: Final = frozenset({"add", "matmul", "bmm", "relu", "flatten", "interaction", "linear", "conv2d", "conv3d"})
"""Functions that it may compute in int8, by the names that rules for types know them under."""
_POOLS: Final = re.compile(r"(Adaptive)?(Avg|Max)Pool[23]d|(adaptive_)?(avg|max)_pool[23]d|LSTM|[Ff]latten")
_SHAPES: Final = re.compile("[Ff]latten")
_INT8: Final = ("torch.quint8", "torch.qint8")
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


@final
class IpexOperation(NamedTuple):
    """One operation of a summary.

    Attributes:
        key: The entry of the summary that it stands in.
        number: Its place there.
        name: Name of the module; of a function ``<module>/<function>.<n>``, counted from 0 in each module.
        kind: Class of the module, or name of the function.
    """

    key: str
    number: str
    name: str
    kind: str


@final
class Grid(NamedTuple):
    """How a tensor is rounded to codes from 0 to 255."""

    scale: float
    zero_point: int


@final
class LayerCodes(NamedTuple):
    """How a layer is computed in int8.

    Attributes:
        grid: Of its input.
        weight_scale: Of each output channel, float32 [out].
        factor: What input channels are multiplied with first, shaped for that; None if they are not.
    """

    grid: Grid
    weight_scale: torch.Tensor
    factor: torch.Tensor | None = None


def read_summary(path: str | os.PathLike[str]) -> Summary:
    """Read a summary from a file, one of ours or one that Intel Neural Compressor wrote.

    Raises:
        ArtifactError: There is none, or it is something else.
    """
    shown = repr(os.fspath(path))
    try:
        data = parse_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{shown} cannot be read: {error}. Expected a summary of the extension, as best_configure.json is."
        raise ArtifactError(message) from error
    summary: Summary = data if isinstance(data, dict) else {}
    entries = summary.values()
    if not entries or not all(isinstance(entry, dict) and "q_op_infos" in entry for entry in entries):
        message = (
            f"{shown} is no summary of the extension: expected an object with 'q_op_infos' under each key. Give the "
            "best_configure.json that was saved with backend='ipex'."
        )
        raise ArtifactError(message)
    return summary


def _entries(summary: Summary) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for key, layer in summary.items():
        for index, entry in layer["q_op_infos"].items():
            yield key, str(index), entry


def operations_of(summary: Summary) -> list[IpexOperation]:
    """All operations that the extension may compute in int8, in the order of the summary.

    Example:
        >>> entry = {"op_type": "<class 'torch.nn.modules.linear.Linear'>", "op_type_is_module": True, "fqn": "fc"}
        >>> operations_of({" ": {"q_op_infos": {"0": entry}}})
        [IpexOperation(key=' ', number='0', name='fc', kind='Linear')]
    """
    counts: dict[str, int] = {}
    found = []
    for key, index, entry in _entries(summary):
        kind = _kind(str(entry["op_type"]))
        name = entry["fqn"] or ""
        if not entry["op_type_is_module"]:
            place = f"{name}/{kind}"
            name = f"{place}.{counts.get(place, 0)}"
            counts[place] = counts.get(place, 0) + 1
        found.append(IpexOperation(key, index, name, kind))
    return found


def _kind(text: str) -> str:
    """The name of a class or function in what Python prints of it."""
    if text.startswith("<class"):
        return text.rstrip(">").strip("<'").rpartition(".")[2].rstrip("'")
    match = re.search(r"(?:method|function) '?([\w.]+)", text)
    return match.group(1).rpartition(".")[2] if match else text


def int8_operations(summary: Summary) -> list[IpexOperation]:
    """The operations that are computed in int8: something that they read is."""
    named = {(operation.key, operation.number): operation for operation in operations_of(summary)}
    return [named[key, index] for key, index, entry in _entries(summary) if _is_int8(entry)]


def _is_int8(entry: Mapping[str, Any]) -> bool:
    return any(tensor and tensor["force_dtype"] in _INT8 for tensor in entry["input_tensor_infos"])


def changed(
    summary: Summary, layers: Mapping[str, LayerCodes], grids: Mapping[tuple[str, str], Mapping[int, Grid]]
) -> Summary:
    """A copy of a summary in which operations are computed in other ways.

    Args:
        summary: The default of the extension, in which all that can be int8 is.
        layers: By name, those that compute in int8; all other layers compute in float.
        grids: By key and number, for other operations that compute in int8: by number of a tensor how it is rounded.
            All others compute in float, and so does what the extension fuses to a layer that computes in float.
    """
    made: Summary = copy.deepcopy(summary)
    in_float: set[int] = set()
    shared = _grids_of_layers(made, layers)
    read_by: dict[int, int] = {}
    for operation, (_, _, entry) in zip(operations_of(made), list(_entries(made)), strict=True):
        entry["op_type"] = _ADDRESS.sub("", str(entry["op_type"]))
        _inherit(entry, shared)
        if operation.kind in LAYERS:
            read_by |= dict.fromkeys(_outputs(entry), entry["input_tensor_infos"][0]["id"])
            codes = layers.get(operation.name)
            if codes is None:
                _leave_in_float(entry)
                in_float |= _outputs(entry)
            else:
                _compute_layer(entry, operation, codes, shared)
            continue
        wanted = grids.get((operation.key, operation.number))
        if wanted is None or _reads_float_of(entry, in_float) or _writes_over(entry, read_by):
            _leave_in_float(entry)
        else:
            _round_inputs(entry, wanted, shared)
        if _passes_on(entry, operation, in_float):
            in_float |= _outputs(entry)
    return made


def _grids_of_layers(summary: Summary, layers: Mapping[str, LayerCodes]) -> dict[int, Grid]:
    """One grid for each tensor that a layer reads, for all that read it.

    Kernels that were fused read each other's codes, and with two grids for one tensor they are wrong.
    """
    grids: dict[int, Grid] = {}
    for operation, (_, _, entry) in zip(operations_of(summary), _entries(summary), strict=True):
        codes = layers.get(operation.name) if operation.kind in LAYERS else None
        if codes is not None and codes.factor is None:
            grids.setdefault(entry["input_tensor_infos"][0]["id"], codes.grid)
    return grids


def _inherit(entry: dict[str, Any], shared: dict[int, Grid]) -> None:
    """Hand the grid of a pool's output on where only the shape changes: these codes are not rounded again.

    The extension reads them by the grid of whatever reads them next, so both have to be one; where they are not,
    results are wrong.
    """
    for tensor in entry["input_tensor_infos"]:
        if tensor and tensor["id"] in shared:
            _set_grid(tensor, shared[tensor["id"]])
            if _SHAPES.fullmatch(_kind(str(entry["op_type"]))):
                for output in _present(entry["output_tensor_infos"]):
                    shared[output["id"]] = shared[tensor["id"]]


def _outputs(entry: Mapping[str, Any]) -> set[int]:
    return {tensor["id"] for tensor in entry["output_tensor_infos"] if tensor}


def _passes_on(entry: Mapping[str, Any], operation: IpexOperation, in_float: set[int]) -> bool:
    """Whether an operation is fused to what makes its input in float, and hands that on."""
    return operation.kind in ("relu", "ReLU") and _reads_float_of(entry, in_float)


def _reads_float_of(entry: Mapping[str, Any], in_float: set[int]) -> bool:
    """Whether it reads something that was to be fused with it from a layer that computes in float."""
    return any(
        tensor and tensor["force_dtype"] not in _INT8 and tensor["id"] in in_float
        for tensor in entry["input_tensor_infos"]
    )


def _writes_over(entry: Mapping[str, Any], read_by: Mapping[int, int]) -> bool:
    """Whether it is fused to a layer, and reads the very tensor that this layer reads.

    The fused kernel writes its sums into that tensor while it still reads it, and results are noise.

    Args:
        entry: An operation.
        read_by: By number of what a layer makes: of what it reads.
    """
    present = _present(entry["input_tensor_infos"])
    sources = {read_by[tensor["id"]] for tensor in present if tensor["id"] in read_by}
    return any(tensor["force_dtype"] in _INT8 and tensor["id"] in sources for tensor in present)


def _leave_in_float(entry: dict[str, Any]) -> None:
    for tensor in entry["input_tensor_infos"]:
        if tensor:
            tensor["inf_dtype"] = tensor["force_dtype"] = tensor["orig_dtype"]
    for tensor in entry["weight_tensor_infos"]:
        if tensor:
            tensor["inf_dtype"] = tensor["orig_dtype"]


def _set_grid(tensor: dict[str, Any], grid: Grid) -> None:
    tensor["scale"], tensor["zero_point"] = [grid.scale], [grid.zero_point]


def _compute_layer(
    entry: dict[str, Any], operation: IpexOperation, codes: LayerCodes, shared: Mapping[int, Grid]
) -> None:
    tensor = entry["input_tensor_infos"][0]
    tensor["inf_dtype"] = tensor["force_dtype"] = "torch.quint8"
    _set_grid(tensor, codes.grid if codes.factor is not None else shared.get(tensor["id"], codes.grid))
    if codes.factor is not None:
        tensor["smooth_quant_scaling_factor"] = {f"{operation.number}_0": codes.factor.tolist()}
    weight = entry["weight_tensor_infos"][0]
    weight["inf_dtype"] = "torch.qint8"
    weight["scale"] = codes.weight_scale.tolist()
    weight["zero_point"] = [0] * len(codes.weight_scale)


def _round_inputs(entry: dict[str, Any], wanted: Mapping[int, Grid], shared: dict[int, Grid]) -> None:
    for tensor in entry["input_tensor_infos"]:
        if not tensor or tensor["force_dtype"] not in _INT8:
            continue
        grid = shared.get(tensor["id"], wanted.get(tensor["id"]))
        if grid is None:
            continue
        _set_grid(tensor, grid)
        if _POOLS.fullmatch(_kind(str(entry["op_type"]))):
            for output in _present(entry["output_tensor_infos"]):
                _set_grid(output, grid)
                shared[output["id"]] = grid


def _present(tensors: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are tensors: other arguments are empty."""
    return [tensor for tensor in tensors if tensor]
