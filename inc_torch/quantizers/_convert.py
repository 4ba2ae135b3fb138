"""From a trained model to an int8 one, and from a description back to its shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import nn

from inc_torch.core.errors import ArtifactError, CalibrationError, ModelError, did_you_mean, listed
from inc_torch.core.ranks import Ranks
from inc_torch.core.sharding import gather_parameters_, release_shards_, require_unshardable, whole
from inc_torch.quantizers._batch_norm import share_statistics, take_away_norm
from inc_torch.quantizers._eligibility import close_fast_paths
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule, fake_quant_class, input_channels
from inc_torch.quantizers._int8_embedding import Int8Embedding
from inc_torch.quantizers._int8_linear import Int8DynamicLinear
from inc_torch.quantizers._int8_module import Int8Module
from inc_torch.quantizers._int8_modules import INT8_CLASSES, int8_class
from inc_torch.quantizers._prepare import fake_quant_modules, fold_ranges
from inc_torch.quantizers._scheme_names import is_scheme_name, is_weight_only_name, named_weight_only
from inc_torch.quantizers._snap import FakeQuantSnap
from inc_torch.quantizers._weight_only_linear import WeightOnlyLinear, empty_buffers
from inc_torch.quantizers._word_layout import OWN, is_layout_name, named_layout
from inc_torch.quantizers.fx._description import capture_described, rebuild_graph

__all__ = ["convert", "convert_calibrated", "describe_int8", "int8_kernels", "rebuild_int8"]

REQUIRED_KEYS: Final = frozenset({"kind", "scheme", "shape", "bias"})
DESCRIPTION_KEYS: Final = REQUIRED_KEYS | {"smoothed", "reordered", "layout"}
"""Older descriptions know nothing of smoothing, of inputs that are grouped in another order, and of other layouts."""


def convert(model: nn.Module, ranks: Ranks | None = None) -> None:
    """Turn every prepared module into an int8 module, in place, and the model to eval mode.

    The same module objects go on living under the same names; their float Parameters are gone. Weights take the
    codes of their present values, inputs the range that was observed; what `fold_ranges` has not taken in yet
    counts as a last step. Results are those of the prepared model in eval, up to float32 rounding. Running statistics
    that are folded into layers are the means of those of all ranks.

    A weight that an output layer shares with an embedding becomes two equal int8 tensors, so that the state dict
    has no aliases.

    With several ranks this is a collective. A model that ``fully_shard`` spreads over them becomes whole and plain on
    each; weights are gathered and quantized one by one, so that no rank holds all of them in float.

    Args:
        model: A prepared model.
        ranks: Who trained it together; None is all processes.

    Raises:
        ModelError: There is nothing to convert, or the model cannot be made plain, see `require_unshardable`.
        CalibrationError: No input range of a module is known. The model is then unchanged.

    Example:
        >>> from inc_torch.quantizers import QuantSpec, convert, enable_fake_quant, prepare_fake_quant
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> _ = prepare_fake_quant(model, QuantSpec())
        >>> enable_fake_quant(model, observe=True)
        >>> _ = model(torch.randn(8, 4))
        >>> convert(model)
        >>> {name: (tuple(t.shape), str(t.dtype)) for name, t in model.state_dict().items()}["0.qweight"]
        ((2, 4), 'torch.int8')
    """
    fold_ranges(model, ranks)
    norms = [module.norm for _, module in fake_quant_modules(model) if module.norm is not None]
    share_statistics(norms, ranks or Ranks())
    convert_calibrated(model)


def convert_calibrated(model: nn.Module) -> None:
    """Do what `convert` does where ranges are known and nothing is pending: a collective only if it is sharded.

    Raises:
        ModelError: There is nothing to convert, or the model cannot be made plain, see `require_unshardable`.
        CalibrationError: No input range of a module is known. The model is then unchanged.
    """
    modules = dict(fake_quant_modules(model))
    if not modules:
        message = (
            f"{type(model).__name__} has nothing to convert: prepare it with prepare_fake_quant, train, convert once."
        )
        raise ModelError(message)
    if unseen := [name for name, module in modules.items() if module.needs_range]:
        raise CalibrationError(_unseen_message(unseen))
    require_unshardable(model)
    with torch.no_grad():
        release_shards_(model)
        snaps = [module for module in modules.values() if isinstance(module, FakeQuantSnap)]
        for module in modules.values():
            if not isinstance(module, FakeQuantSnap):
                _convert_module(module)
        for snap in snaps:  # last, as others round by their ranges
            snap.convert_()
        gather_parameters_(model)
    model.eval()


def _unseen_message(names: list[str]) -> str:
    return (
        f"Cannot convert to int8: no input of {listed(names)} was observed. Ranges are taken in training mode, between "
        "on_train_begin and on_train_end: run batches through these modules there, or leave them in float by name."
    )


def _convert_module(module: FakeQuantModule) -> None:
    codes, scale = module.int8_weight()
    bias, grid, scheme = module.full_bias(), module.grid, module.scheme
    buffers: dict[str, torch.Tensor | None] = {"qweight": codes, "weight_scale": scale}
    if module.has_input_grid:
        buffers["bias"] = None if bias is None else whole(bias).detach().to(torch.float32, copy=True)
        buffers["input_factor"] = None if module.smoothing is None else module.smoothing.reciprocal()
        if grid is not None:
            buffers["input_scale"] = torch.tensor(grid.scale, device=codes.device)
            buffers["input_zero_point"] = torch.tensor(grid.zero_point, dtype=torch.int32, device=codes.device)
    kind, name = int8_class(module.kind, dynamic=scheme.dynamic), module.name_of(scheme)
    norm = module.norm
    module.release()
    kind.adopt(module, name, buffers)
    if norm is not None:
        take_away_norm(norm)


def describe_int8(model: nn.Module) -> dict[str, dict[str, object]]:
    """Describe the int8 modules of ``model`` in values that JSON knows, for `rebuild_int8`.

    Returns:
        By module name: ``kind``, ``scheme``, ``shape`` of the weight, whether there is a ``bias``, and whether inputs
        are ``smoothed``, which means multiplied with a factor for each channel. Also ``reordered``, where inputs of a
        group are no neighbours, and ``layout``, where that of packed codes is not the one that quantization makes.

    Example:
        >>> describe_int8(nn.Linear(2, 2))
        {}
    """
    return {
        name: {
            "kind": module.kind,
            "scheme": module.scheme,
            "shape": list(module.weight_shape),
            "bias": module._buffers.get("bias") is not None,
            "smoothed": module._buffers.get("input_factor") is not None,
            **({"reordered": True} if module._buffers.get("g_idx") is not None else {}),
            **_other_layout(module),
        }
        for name, module in model.named_modules()
        if isinstance(module, Int8Module)
    }


def _other_layout(module: Int8Module) -> dict[str, object]:
    if not isinstance(module, WeightOnlyLinear) or module.layout == OWN:
        return {}
    return {"layout": module.layout.name}


def int8_kernels(model: nn.Module) -> dict[str, str]:
    """Say for every int8 module what will compute it on the CPU: ``"onednn"``, or ``"float: <reason>"``."""
    return {name: module.kernel for name, module in model.named_modules() if isinstance(module, Int8Module)}


def rebuild_int8(
    model: nn.Module, description: Mapping[str, Mapping[str, object]], graph: Mapping[str, object] | None = None
) -> None:
    """Turn the float modules that ``description`` names into empty int8 modules, ready for ``load_state_dict``.

    Args:
        model: The float model that was compressed, on any device, also ``meta``; its weights do not matter.
        description: What `describe_int8` gave.
        graph: What `describe_graph` gave; None or empty if it was not quantized as a graph.

    Raises:
        ArtifactError: The description is damaged, or of another model. The model is then unchanged.
    """
    captured = capture_described(model, graph) if graph else None
    modules = dict(model.named_modules())
    for name, entry in description.items():
        if name not in modules:
            message = f"The description names the module {name!r}, which {type(model).__name__} does not have."
            raise ArtifactError(message + did_you_mean(name, modules))
        _check_entry(name, entry, modules[name])
    for name, entry in description.items():
        _rebuild_module(modules[name], entry)
    if captured is not None and graph:
        rebuild_graph(model, captured, graph)
    close_fast_paths(model)


def _check_entry(name: str, entry: Mapping[str, object], module: nn.Module) -> None:
    where = f"Module {name!r} of the description"
    if wrong := (REQUIRED_KEYS - entry.keys()) | (entry.keys() - DESCRIPTION_KEYS):
        message = f"{where} has the keys {sorted(entry)}, expected {sorted(DESCRIPTION_KEYS)}: {sorted(wrong)} differ."
        raise ArtifactError(message)
    if not is_scheme_name(entry["scheme"]):
        message = f"{where} has the unknown scheme {entry['scheme']!r}. It may come from a newer version of inc_torch."
        raise ArtifactError(message)
    if not isinstance(entry["kind"], str) or entry["kind"] not in INT8_CLASSES:
        guess = did_you_mean(str(entry["kind"]), INT8_CLASSES)
        message = f"{where} has the unknown kind {entry['kind']!r}.{guess} Known: {', '.join(INT8_CLASSES)}."
        raise ArtifactError(message)
    if is_weight_only_name(entry["scheme"]) != (entry["kind"] == WeightOnlyLinear.kind):
        message = f"{where} is of kind {entry['kind']!r}, to which the scheme {entry['scheme']!r} does not belong."
        raise ArtifactError(message)
    if (problem := _problem_of_layout(entry)) is not None:
        message = f"{where} has the layout {entry['layout']!r}: {problem}."
        raise ArtifactError(message)
    present = fake_quant_class(type(module))
    if present is None or present.kind != INT8_CLASSES[str(entry["kind"])].replaces:
        message = f"{where} is of kind {entry['kind']!r}, but the model has a {type(module).__name__} there."
        raise ArtifactError(message)
    shape = list(present.arranged(module, module.get_parameter("weight")).shape)
    bias = module._parameters.get("bias") is not None
    # Quantization may have added a bias, to correct what it shifted; it never takes one away.
    if entry["shape"] != shape or (bias and not entry["bias"]):
        message = (
            f"{where} has shape {entry['shape']} and bias={entry['bias']}, but the model has shape {shape} and "
            f"bias={bias} there. Build the model with the configuration that it was compressed with."
        )
        raise ArtifactError(message)


def _problem_of_layout(entry: Mapping[str, object]) -> str | None:
    name, scheme = entry.get("layout", OWN.name), entry["scheme"]
    if not isinstance(name, str) or not is_layout_name(name):
        return f"expected one such as {OWN.name!r}. It may come from a newer version of inc_torch"
    if not is_weight_only_name(scheme):
        return f"codes of the scheme {scheme!r} are not packed" if "layout" in entry else None
    return named_layout(name).reason_against(named_weight_only(str(scheme)))


def _rebuild_module(module: nn.Module, entry: Mapping[str, object]) -> None:
    present, kind = fake_quant_class(type(module)), INT8_CLASSES[str(entry["kind"])]
    if present is None:
        return
    parameter = module.get_parameter("weight")
    weight, device = present.arranged(module, parameter), parameter.device
    if kind is WeightOnlyLinear:
        scheme, layout = str(entry["scheme"]), named_layout(str(entry.get("layout", OWN.name)))
        has = {name: bool(entry.get(name)) for name in ("bias", "reordered", "smoothed")}
        kind.adopt(module, scheme, empty_buffers(weight, scheme, layout=layout, **has))
        module.__dict__["layout"] = layout
        return
    buffers: dict[str, torch.Tensor | None] = {
        "qweight": torch.zeros(weight.shape, dtype=torch.int8, device=device),
        "weight_scale": torch.ones(len(weight), dtype=torch.float32, device=device),
    }
    if kind is not Int8Embedding:
        buffers["bias"] = torch.zeros(len(weight), dtype=torch.float32, device=device) if entry["bias"] else None
        buffers["input_factor"] = torch.ones(input_channels(module), device=device) if entry.get("smoothed") else None
        if kind is not Int8DynamicLinear:
            buffers["input_scale"] = torch.ones((), dtype=torch.float32, device=device)
            buffers["input_zero_point"] = torch.zeros((), dtype=torch.int32, device=device)
    kind.adopt(module, str(entry["scheme"]), buffers)
