"""Reference vectors of the pruning core: their models, and replaying them through the hooks of a manager."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inc_torch.config import WeightPruningConfig
from inc_torch.pruners import Pruner
from inc_torch.training import CompressionManager, prepare_compression

Vector = dict[str, Any]

_FILE = Path(__file__).parents[2] / "vectors" / "pruning.json"
VECTORS: dict[str, Vector] = {
    vector["id"]: vector for vector in json.loads(_FILE.read_text(encoding="utf-8"))["vectors"]
}
FULL_LOOP = ("step_begin", "grads", "before_opt", "sgd", "after_opt")


class Conv1D(nn.Module):
    """Like transformers' ``Conv1D``: the weight is stored [in, out]. Known by its class name."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


def model_of(layers: Sequence[Mapping[str, Any]]) -> nn.Module:
    """The layers under their names on one module, without bias, and a ReLU behind them, so that none is a head."""
    model = nn.Module()
    for layer in layers:
        model.add_module(layer["name"], _layer(layer["type"], torch.tensor(layer["weight"])))
    model.add_module("act", nn.ReLU())
    return model


def _layer(kind: str, weight: torch.Tensor) -> nn.Module:
    rank = {"Conv1d": 3, "Conv2d": 4, "Conv3d": 5}
    if kind == "Linear":
        module: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    elif kind == "HFConv1D":
        module = Conv1D(weight.shape[1], weight.shape[0])
    else:
        assert weight.dim() == rank[kind]
        module = getattr(nn, kind)(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), bias=False)
    module.weight.data.copy_(weight)
    return module


def model_from(spec: Mapping[str, Any]) -> nn.Module:
    """The model that a `selection` or `report` vector describes."""
    children = spec.get("children")
    if spec["type"] == "Sequential":
        return nn.Sequential(*map(model_from, children))
    if spec["type"] == "Module":
        model = nn.Module()
        for name, child in children.items():
            model.add_module(name, model_from(child))
        return model
    return getattr(nn, spec["type"])(*spec.get("args", ()))


def fill_distinct(model: nn.Module) -> None:
    """Give all weights distinct magnitudes."""
    value = 1.0
    for parameter in model.parameters():
        count = parameter.numel()
        parameter.data = torch.arange(value, value + count).view_as(parameter)
        value += count


def config_of(vector: Vector) -> WeightPruningConfig:
    return WeightPruningConfig(**vector["config"])


def pruners_of(manager: CompressionManager) -> list[Pruner]:
    return manager.callbacks.callbacks_list[0].pruners


def masks_of(manager: CompressionManager) -> dict[str, list[Any]]:
    """Masks of all pruners as nested lists of 0 and 1."""
    return {name: mask.int().tolist() for pruner in pruners_of(manager) for name, mask in pruner.masks.items()}


def weights_of(manager: CompressionManager) -> dict[str, torch.Tensor]:
    return {
        name: module.weight.detach().clone()
        for name, module in manager.model.named_modules()
        if "weight" in module._parameters
    }


def zeros_in(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    return {name: int((tensor == 0).sum()) for name, tensor in tensors.items()}


def manager_for(vector: Vector, model: nn.Module | None = None) -> CompressionManager:
    return prepare_compression(model if model is not None else model_of(vector["inputs"]["layers"]), config_of(vector))


def prune_once(manager: CompressionManager) -> None:
    """The two hooks after which a one-shot magnitude pruner has pruned."""
    manager.on_train_begin()
    manager.on_step_begin(0)


@dataclass
class StepRecord:
    """What could be seen in one step."""

    target: float | None = None
    masks: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, torch.Tensor] = field(default_factory=dict)
    zeros_after_begin: dict[str, int] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


def replay(
    vector: Vector, events: Sequence[Sequence[str]] | None = None, *, config: WeightPruningConfig | None = None
) -> tuple[CompressionManager, list[StepRecord]]:
    """Run the events of a `trace` vector (or other events) through a manager's hooks and a real SGD."""
    inputs = vector["inputs"]
    model = model_of(inputs["layers"])
    manager = prepare_compression(model, config or config_of(vector))
    optimizer = torch.optim.SGD(model.parameters(), lr=inputs["lr"])
    (pruner,) = pruners_of(manager)
    manager.on_train_begin()
    records = []
    for step, names in enumerate(events or inputs["events_per_step"]):
        record = StepRecord(target=_asked(pruner, step))
        for name in names:
            _perform(name, step, manager, optimizer, inputs["grads_per_step"], record)
        record.weights = weights_of(manager)
        records.append(record)
    return manager, records


def _asked(pruner: Pruner, step: int) -> float | None:
    """The ratio asked for at a step; at the start with locked zeros, theirs."""
    initial = pruner.state_dict()["initial"]
    if pruner.spec.locks_zeros:
        return None
    if pruner.spec.keeps_initial_zeros and step == pruner.spec.start:
        weights = [pruner.weight(layer) for layer in pruner.layers]
        initial = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    return pruner.window.ratio_at(step, initial)


def _perform(
    name: str,
    step: int,
    manager: CompressionManager,
    optimizer: torch.optim.Optimizer,
    gradients: Sequence[Mapping[str, Any]],
    record: StepRecord,
) -> None:
    (pruner,) = pruners_of(manager)
    match name:
        case "step_begin":
            manager.on_step_begin(step)
            record.masks = masks_of(manager)
            record.zeros_after_begin = zeros_in(weights_of(manager))
        case "grads":
            for layer, gradient in gradients[step].items():
                manager.model.get_submodule(layer).weight.grad = torch.tensor(gradient)
        case "before_opt":
            manager.on_before_optimizer_step()
            record.scores = {layer: score.clone() for layer, score in pruner.scores.items()}
        case "sgd":
            optimizer.step()
        case "after_opt":
            manager.on_after_optimizer_step()
        case _:
            raise AssertionError(name)
