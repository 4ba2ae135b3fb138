"""From a model to its program, to a description in files, and back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inc_torch.core.batches import Inputs, copied
from inc_torch.core.errors import ArtifactError, ModelError
from inc_torch.core.program import program_of
from inc_torch.ipex._bfloat16 import bfloat16_parts, cast_around, optimized_parts
from inc_torch.ipex._extension import extension
from inc_torch.ipex._floating import float_counterpart, layer_codes
from inc_torch.ipex._observation import prepared_by_extension, quiet
from inc_torch.ipex._program import IpexProgram
from inc_torch.ipex._rules import SUMMARY
from inc_torch.ipex._summary import LAYERS, Grid, LayerCodes, Summary, changed, operations_of

__all__ = ["deploy", "deploy_bfloat16", "deployed", "deployment_of", "redeploy", "withdraw"]


def deploy(
    model: nn.Module,
    summary: Summary,
    example: Inputs,
    grids: Mapping[tuple[str, str], Mapping[int, Grid]],
) -> None:
    """Let an int8 model run on the kernels of the extension, in place: its ``forward`` becomes a program.

    The modules stay, and with them what is saved, loaded and reported; `withdraw` is the way back.

    Args:
        model: With static int8 layers.
        summary: The default of the extension for this model in float.
        example: One call.
        grids: For operations besides layers that compute in int8: how they round what they read.
    """
    counterpart = float_counterpart(model)
    before = {
        name: module.get_parameter("weight") for name, module in counterpart.named_modules() if _has_weight(module)
    }
    before = {name: weight.detach().clone() for name, weight in before.items()}
    prepared = prepared_by_extension(counterpart, copied(example))
    codes = {name: _folded(prepared, name, before.get(name), made) for name, made in layer_codes(model).items()}
    _attach(model, prepared, changed(summary, codes, grids), example)


def _has_weight(module: nn.Module) -> bool:
    return type(module).__name__ in LAYERS


def _folded(prepared: nn.Module, name: str, before: torch.Tensor | None, codes: LayerCodes) -> LayerCodes:
    """Scales under which a weight that took in a batch normalization keeps its codes."""
    if before is None:
        return codes
    after = prepared.get_submodule(name).get_parameter("weight").detach()
    if after.shape != before.shape or torch.equal(after, before):
        return codes
    old, new = (weight.abs().flatten(1).amax(1) for weight in (before, after))
    ratio = torch.where((old > 0) & (new > 0), new / old, 1.0)
    return codes._replace(weight_scale=codes.weight_scale * ratio)


def _attach(model: nn.Module, prepared: Any, summary: Summary, example: Inputs) -> None:  # noqa: ANN401
    """Convert what the extension prepared, by a summary, and let the model run it."""
    with tempfile.TemporaryDirectory() as directory, quiet(), torch.no_grad():
        path = Path(directory) / SUMMARY
        path.write_text(json.dumps(summary), encoding="utf-8")
        prepared.load_qconf_summary(str(path))
        converted = extension().quantization.convert(prepared, inplace=True)
    _settle(converted, summary)
    cast_around(converted, bfloat16_parts(model))
    _run(model, IpexProgram(model, converted, summary, example))


def _run(model: nn.Module, program: IpexProgram) -> None:
    """Let a model run a program from now on, once that has been traced for its example."""
    withdraw(model)
    if program.example is not None:
        program(*program.example.args, **program.example.kwargs)
    model.__dict__["forward"] = program


def deploy_bfloat16(model: nn.Module, example: Inputs | None) -> None:
    """Let a model of which parts compute in bfloat16 run on the kernels of the extension, in place.

    The same parts do, by `ipex.optimize` and under autocast, and the modules stay, as with `deploy`.

    Args:
        model: With parts in bfloat16, and no int8 modules.
        example: One call to trace; without it the first call is traced.

    Raises:
        ModelError: The extension cannot follow the model.
    """
    converted = optimized_parts(float_counterpart(model), bfloat16_parts(model), type(model).__name__)
    _run(model, IpexProgram(model, converted, None, example))


def _settle(converted: Any, summary: Summary) -> None:  # noqa: ANN401  a class that the extension makes
    """Give each operation its own ranges and factors, where the extension keeps one for all readers of a tensor."""
    states = converted._fqn_to_auto_quant_state_map
    for key, layer in summary.items():
        state = states[key]
        for index, entry in layer["q_op_infos"].items():
            infos, _ = state.idx_to_op_convert_info[int(index)]
            for place, tensor in enumerate(entry["input_tensor_infos"]):
                if tensor and infos[place] is not None and isinstance(tensor.get("scale"), list):
                    scale, zero = torch.tensor(tensor["scale"]), torch.tensor(tensor["zero_point"])
                    infos[place] = (scale.float(), zero.long(), infos[place][2])
                factors = tensor.get("smooth_quant_scaling_factor") if tensor else None
                if factors and str(index) not in state.idx_to_smooth_quant_scaling_factor:
                    state.idx_to_smooth_quant_scaling_factor[str(index)] = {
                        name: torch.tensor(values) for name, values in factors.items()
                    }


def withdraw(model: nn.Module) -> None:
    """Let a model run its own forward again: the int8 modules of the default backend."""
    if deployed(model) is not None:
        del model.__dict__["forward"]


def deployed(model: nn.Module) -> IpexProgram | None:
    """The program that a model runs; None if it runs its own forward."""
    program = program_of(model)
    return program if isinstance(program, IpexProgram) else None


def deployment_of(model: nn.Module) -> dict[str, Any]:
    """What `redeploy` needs besides the summary, in values that JSON knows; empty if there is no program.

    The example is None if the first call is traced when it comes. Of an example there are shapes and types, of masks
    and other flags the zeros and ones, on which models branch, and of other integers the greatest one, which is valid
    wherever the others were; no data.
    """
    program = deployed(model)
    if program is None:
        return {}
    if program.example is None:
        return {"example": None}
    args = [_described(value) for value in program.example.args]
    kwargs = {name: _described(value) for name, value in program.example.kwargs.items()}
    return {"example": {"args": args, "kwargs": kwargs}}


def _described(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return {"tensor": _described_tensor(value)}
    if isinstance(value, Mapping):
        return {"dict": {str(name): _described(item) for name, item in value.items()}}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_described(item) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    message = (
        f"An example input of type {type(value).__name__} cannot be described in a file: expected tensors, numbers and "
        "texts in tuples, lists and dicts. Give example_inputs made of these."
    )
    raise ModelError(message)


def _described_tensor(value: torch.Tensor) -> dict[str, object]:
    about: dict[str, object] = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    is_counted = not (value.is_floating_point() or value.is_complex()) and value.numel() > 0
    greatest = int(value.max()) if is_counted else 0
    if is_counted and greatest <= 1 and int(value.min()) >= 0:
        return {**about, "flags": "".join(map(str, value.flatten().int().tolist()))}
    return {**about, "fill": greatest}


def _example_from(description: object, where: str) -> Inputs:
    given: Mapping[str, Any] = description if isinstance(description, Mapping) else {}
    try:
        args = tuple(_rebuilt(entry) for entry in given["args"])
        return Inputs(args, {str(name): _rebuilt(entry) for name, entry in given["kwargs"].items()})
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        message = f"The example inputs in {where!r} are damaged: {error!r}. Save the model again."
        raise ArtifactError(message) from error


def _rebuilt(entry: Mapping[str, Any]) -> object:
    ((kind, value),) = entry.items()
    match kind:
        case "tensor":
            dtype = getattr(torch, value["dtype"])
            if "flags" in value:
                return torch.tensor([int(flag) for flag in value["flags"]]).to(dtype).view(value["shape"])
            return torch.full(value["shape"], value["fill"], dtype=dtype)
        case "dict":
            return {name: _rebuilt(item) for name, item in value.items()}
        case "tuple" | "list":
            items = [_rebuilt(item) for item in value]
            return tuple(items) if kind == "tuple" else items
        case "value":
            return value
    raise ValueError(kind)


def redeploy(model: nn.Module, summary: Summary | None, description: Mapping[str, Any], where: str) -> None:
    """Let a loaded model run on the kernels of the extension again.

    Args:
        model: As it was loaded: int8, or with parts in bfloat16.
        summary: What was saved with it; None if it has no int8 modules.
        description: What `deployment_of` gave.
        where: The file that it stands in.

    Raises:
        ArtifactError: The summary or the description is not of this model.
    """
    if summary is None:
        given = description.get("example")
        deploy_bfloat16(model, None if given is None else _example_from(given, where))
        return
    example = _example_from(description.get("example"), where)
    prepared = prepared_by_extension(float_counterpart(model), copied(example))
    states = prepared._fqn_to_auto_quant_state_map.items()
    known = {key: (len(state.idx_to_seen_q_op_infos), len(state.seen_nonq_op_infos)) for key, state in states}
    saved = {key: (len(layer["q_op_infos"]), len(layer["nonq_op_infos"])) for key, layer in summary.items()}
    if known != saved:
        message = (
            f"{SUMMARY} beside {where!r} is of another model: it has {len(operations_of(summary))} operations in "
            f"{len(saved)} modules, the model has {sum(count for count, _ in known.values())} in {len(known)}, or what "
            "runs between them differs. Build the model as it was quantized, or copy the whole directory again."
        )
        raise ArtifactError(message)
    _attach(model, prepared, summary, example)
