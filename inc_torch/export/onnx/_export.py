"""From a model to a file of ONNX, checked by running it."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from inc_torch.config import WRITTEN_OPSET, Torch2ONNXConfig
from inc_torch.core.batches import Inputs, run, split
from inc_torch.core.errors import ConfigError, InexactWarning, ModelError
from inc_torch.core.modes import evaluating, without_cache
from inc_torch.core.names import unwrapped
from inc_torch.core.optional import require
from inc_torch.core.program import require_own_forward
from inc_torch.core.user_warning import warn_user
from inc_torch.export.onnx._arithmetic import OnnxArithmetic
from inc_torch.inference import fuse_half_precision
from inc_torch.precision import compute_in_float, describe_bfloat16, rebuild_bfloat16
from inc_torch.quantizers import computing_with, describe_int8, fake_quant_modules

__all__ = ["OnnxExport", "export_onnx"]

logger = logging.getLogger("inc_torch.export")

_PACKAGES: Final = ("onnx", "onnxscript")
_RUNTIME: Final = "onnxruntime"


@final
@dataclass(frozen=True, slots=True)
class OnnxExport:
    """What was written.

    Attributes:
        path: The file.
        opset_version: Its set of operators.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        operators: How often each operator occurs.
        error: The largest difference between outputs of the file, run by onnxruntime, and of the model, for the example
            inputs; None where onnxruntime is not installed.
    """

    path: Path
    opset_version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: Mapping[str, int]
    error: float | None


def export_onnx(model: nn.Module, path: str | os.PathLike[str], config: Torch2ONNXConfig) -> OnnxExport:
    """Write ``model`` as ONNX, by torch's exporter on top of `torch.export`; nothing in it changes.

    Int8 modules become operations on floats between QuantizeLinear and DequantizeLinear, with int8 weights, which
    onnxruntime, TensorRT and OpenVINO fuse into int8 kernels. Modules that compute in bfloat16 are written in float.

    Args:
        model: Any model; with ``dtype="int8"`` one that is int8.
        path: The file, which is written aside and then renamed.
        config: How.

    Raises:
        MissingPackageError: onnx or onnxscript is not installed.
        ConfigError: There are no example inputs, or ``dtype`` is not what the model is.
        ModelError: The model cannot be exported, because of an operation without a form in ONNX or because of its code,
            or it runs on Intel's extension; no file is written.

    Example:
        >>> from inc_torch.config import Torch2ONNXConfig
        >>> export_onnx(nn.Linear(2, 2), "model.onnx", Torch2ONNXConfig(dtype="fp32"))
        Traceback (most recent call last):
            ...
        inc_torch.core.errors.ConfigError: Torch2ONNXConfig.example_inputs=None: expected a batch to trace the model ...
    """
    if config.example_inputs is None:
        message = (
            "Torch2ONNXConfig.example_inputs=None: expected a batch to trace the model with, such as "
            "torch.randn(1, 3, 224, 224) or a dict of tensors."
        )
        raise ConfigError(message)
    inner = unwrapped(model)
    require_own_forward(inner, "Export to ONNX")
    for package in _PACKAGES:
        require(package, "onnx", "Export to ONNX")
    _require_dtype(inner, config)
    inputs = _inputs(inner, config.example_inputs)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        written = Path(folder) / target.name
        with _exportable(inner):  # until it is written: what is to be written are the tensors of the model
            program = _program(inner, inputs, config)
            for node in program.model.graph.all_nodes():
                node.metadata_props.clear()  # lines of source, with the folders of this machine
            program.save(os.fspath(written), external_data=None)
        error = _error(inner, inputs, written)
        for file in sorted(written.parent.iterdir(), key=lambda file: file == written):  # the model itself last
            file.replace(target.parent / file.name)
    graph = program.model.graph
    made = OnnxExport(
        target,
        int(program.model.opset_imports[""]),
        tuple(value.name for value in graph.inputs),
        tuple(value.name for value in graph.outputs),
        Counter(node.op_type for node in graph),
        error,
    )
    logger.info("%s: opset %d, largest difference from the model %s.", target, made.opset_version, made.error)
    return made


def _require_dtype(model: nn.Module, config: Torch2ONNXConfig) -> None:
    has_int8, name = bool(describe_int8(model)), type(model).__name__
    if any(True for _ in fake_quant_modules(model)):
        message = f"{name} is in the middle of quantization-aware training: call on_train_end, then export."
        raise ModelError(message)
    if config.dtype == "int8" and not has_int8:
        message = (
            f"Torch2ONNXConfig.dtype='int8': expected 'fp32', as {name} has no int8 module. Quantize it first, or "
            "write it as it is."
        )
        raise ConfigError(message)
    if config.dtype == "fp32" and has_int8:
        message = (
            f"Torch2ONNXConfig.dtype='fp32': expected 'int8', as {name} has int8 modules, and their float weights are "
            "gone. Keep a copy of the float model to write that."
        )
        raise ConfigError(message)
    if config.opset_version < WRITTEN_OPSET:
        message = (
            f"Torch2ONNXConfig.opset_version={config.opset_version}: the file has {WRITTEN_OPSET}, the least that "
            "torch's exporter writes."
        )
        warn_user(message, InexactWarning)
    if config.recipe is not None:
        warn_user("Torch2ONNXConfig.recipe has no effect.", InexactWarning)


def _inputs(model: nn.Module, example: object) -> Inputs:
    if isinstance(example, Mapping):
        return Inputs(kwargs={str(name): value for name, value in example.items()})
    if isinstance(example, tuple | list):
        return Inputs(tuple(example))
    inputs, _ = split(example, model)
    return inputs


def _program(model: nn.Module, inputs: Inputs, config: Torch2ONNXConfig) -> Any:  # noqa: ANN401  onnxscript's
    """Trace and translate; what cannot be is a `ModelError`."""
    shapes = _dynamic_shapes(model, inputs, config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            return torch.onnx.export(
                model,
                args=inputs.args,
                kwargs=dict(inputs.kwargs),
                dynamo=True,
                verbose=False,
                opset_version=max(config.opset_version, WRITTEN_OPSET),
                input_names=config.input_names,
                output_names=config.output_names,
                dynamic_shapes=shapes,
            )
    except Exception as error:
        message = (
            f"{type(model).__name__} cannot be written as ONNX: {_reason(error)} Leave the operation in float or out "
            "of the model, or export a part of it; the error above says more."
        )
        raise ModelError(message) from error


@contextmanager
def _exportable(model: nn.Module) -> Iterator[None]:
    """Have the model consist of operations that ONNX has, as long as the context lasts."""
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(without_cache(model))  # which has no form in ONNX
        compiled = model.__dict__.pop("_compiled_call_impl", None)
        if compiled is not None:
            stack.callback(model.__dict__.__setitem__, "_compiled_call_impl", compiled)
        if describe_bfloat16(model):
            stack.enter_context(_in_float(model))
        stack.enter_context(computing_with(model, OnnxArithmetic()))
        stack.enter_context(torch.no_grad())
        yield


@contextmanager
def _in_float(model: nn.Module) -> Iterator[None]:
    described = describe_bfloat16(model)
    compute_in_float(model)
    try:
        yield
    finally:
        rebuild_bfloat16(model, described)
        fuse_half_precision(model)


def _dynamic_shapes(model: nn.Module, inputs: Inputs, config: Torch2ONNXConfig) -> dict[str, Any]:
    names = _argument_names(model, inputs)
    axes = config.dynamic_axes
    if axes is None:
        wanted: dict[str, Any] = {name: ((0, "batch"),) for name in names}
    else:
        wanted = dict(axes)
        given = config.input_names or names
        unknown = [name for name in wanted if name not in (*given, *names, *(config.output_names or ()))]
        if unknown:
            message = (
                f"Torch2ONNXConfig.dynamic_axes names {unknown[0]!r}: expected inputs among "
                f"{', '.join(map(repr, given))}, or names in output_names."
            )
            raise ConfigError(message)
        wanted = {name: wanted.get(shown, wanted.get(name, ())) for name, shown in zip(names, given, strict=False)}
    values = [*inputs.args, *inputs.kwargs.values()]
    return {
        name: {axis: label for axis, label in wanted.get(name, ())} if isinstance(value, torch.Tensor) else None
        for name, value in zip(names, values, strict=True)
    }


def _argument_names(model: nn.Module, inputs: Inputs) -> list[str]:
    parameters = [
        parameter.name
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}
    ]
    return [*parameters[: len(inputs.args)], *inputs.kwargs]


@torch.no_grad()
def _error(model: nn.Module, inputs: Inputs, path: Path) -> float | None:
    """The largest difference of an output, run by onnxruntime; None without it."""
    if importlib.util.find_spec(_RUNTIME) is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    tensors = [value for value in tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(value, torch.Tensor)]
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, {name: tensor.cpu().numpy() for name, tensor in zip(names, tensors, strict=True)})
    with evaluating(model):
        expected = [value for value in tree_leaves(run(model, inputs)) if isinstance(value, torch.Tensor)]
    return max(
        float((torch.from_numpy(got).float() - want.cpu().float()).abs().max())
        for got, want in zip(found, expected, strict=True)
    )


def _reason(error: BaseException) -> str:
    """What the innermost error says, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines: Sequence[str] = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."
