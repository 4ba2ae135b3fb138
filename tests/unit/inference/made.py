"""What the tests of inference share: small int8 models, and how far two results are apart."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from inc_torch import PostTrainingQuantConfig, kernels, optimize_for_inference, quantization
from inc_torch.inference._fused_graph import FusedGraph
from inc_torch.quantizers import is_graph, set_executor
from inc_torch.quantizers._codes import InputGrid, decode
from inc_torch.quantizers.fx._graft import graft_of

TOP = 255
CLOSE = 0.03


def grid(scale: float = 0.05, zero_point: int = 100) -> InputGrid:
    return InputGrid(float(torch.tensor(scale)), zero_point, TOP)


def codes(*shape: int) -> torch.Tensor:
    return torch.randint(0, TOP + 1, shape, dtype=torch.uint8)


def images(*shape: int) -> torch.Tensor:
    return codes(*shape).contiguous(memory_format=torch.channels_last)


def exact(values: torch.Tensor, meaning: InputGrid) -> torch.Tensor:
    return decode(values, meaning).double()


def fitted(model: nn.Module, data: Any) -> Any:
    return quantization.fit(model.eval(), PostTrainingQuantConfig(), calib_dataloader=[data])


def pair(model: nn.Module, data: Any) -> tuple[Any, Any]:
    """The int8 model as it is, and the same made ready for inference."""
    plain = fitted(model.requires_grad_(requires_grad=False), data)
    optimized = optimize_for_inference(copy.deepcopy(plain))
    return unfused(plain), optimized


def unfused(model: Any) -> Any:
    """The model without what runs its graph, if it is a graph."""
    if is_graph(model):
        set_executor(model, None)
    return model


def executor_of(model: Any) -> Any:
    """What runs the graph of a model; None if the model is none."""
    graft = graft_of(model)
    return None if graft is None else graft._executor


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def assert_close(found: torch.Tensor, expected: torch.Tensor, limit: float = CLOSE) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert distance(found, expected) < limit


def graphs(model: Any) -> list[FusedGraph]:
    return list(model._compiled_call_impl._graphs)


def names(graph: FusedGraph) -> list[str]:
    """What the nodes of a fused graph call."""
    state = graph._state
    assert state is not None
    assert state.fused is not None
    calls = [node.target for node in state.fused.graph.nodes if node.op == "call_function"]
    return [getattr(target, "__name__", str(target)).partition(".")[0] for target in calls]


def computed(graph: FusedGraph) -> list[str]:
    """What a fused graph computes in each run: neither views nor what constants give."""
    state = graph._state
    assert state is not None
    assert state.fused is not None
    varying: list[torch.fx.Node] = []
    for node in state.fused.graph.nodes:
        if node.op == "placeholder" or (node.op == "call_function" and set(node.all_input_nodes) & set(varying)):
            varying.append(node)
    found = [getattr(node.target, "__name__", "").partition(".")[0] for node in varying if node.op == "call_function"]
    return [name for name in found if name not in ("slice", "reshape")]


WITH_KERNELS = (True, False) if kernels.available() else (False,)
