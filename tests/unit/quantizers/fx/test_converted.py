"""The int8 model of a graph: saved, loaded, copied, moved, run by an executor, used in parts."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inc_torch
from inc_torch import PostTrainingQuantConfig, quantization
from inc_torch.core.errors import ArtifactError, ModelError
from inc_torch.quantizers import describe_graph, graph_of, is_graph, set_executor
from inc_torch.quantizers._codes import InputGrid
from inc_torch.quantizers._snap import Int8Snap
from inc_torch.quantizers.fx._graft import SNAPS
from tests.support.vision import efficientnet_lite0, family, images

DATA = [torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0)) for _ in range(2)]


class Causal(nn.Conv1d):
    """Pads on the left, by itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


class Net(nn.Module):
    """A sum, a pooling, a function that torch.fx makes in a function, and a convolution of somebody's own."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.second, self.causal = nn.Conv2d(channels, channels, 3, padding=1), Causal(channels, channels, 3)
        self.head = nn.Linear(channels, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
        x = torch.relu(self.second(x) + x)
        return self.head(torch.relu(self.causal(x.flatten(2))).mean(2))


def fitted(model: nn.Module | None = None, data: list[torch.Tensor] = DATA, **options: Any) -> Any:
    model = Net() if model is None else model
    return quantization.fit(model.eval(), PostTrainingQuantConfig(**options), calib_dataloader=data)


def assert_same(first: nn.Module, second: nn.Module, x: torch.Tensor = DATA[0]) -> None:
    with torch.no_grad():
        assert torch.equal(first(x), second(x))


@pytest.mark.parametrize(
    ("build", "data"),
    [
        (Net, DATA),
        (lambda: family("resnet18"), images(1)),
        (lambda: family("densenet"), images(1)),
        (lambda: family("shufflenet"), images(1)),
        (efficientnet_lite0, images(1, 2, 64)),
    ],
    ids=["net", "resnet18", "densenet", "shufflenet", "efficientnet_lite0"],
)
def test_what_is_loaded_computes_the_same_bits(build: Any, data: list[torch.Tensor], tmp_path: Path) -> None:
    model = fitted(build(), data)
    assert is_graph(model)
    model.save(tmp_path)
    loaded = inc_torch.load(tmp_path, model=build())
    assert describe_graph(loaded) == describe_graph(model)
    assert_same(loaded, model, data[0])
    assert loaded.state_dict().keys() == model.state_dict().keys()
    inc_torch.load(tmp_path, model=loaded)
    assert_same(loaded, model, data[0])


def test_it_is_loaded_into_a_model_without_memory(tmp_path: Path) -> None:
    model = fitted()
    model.save(tmp_path)
    with torch.device("meta"):
        empty = Net()
    assert_same(inc_torch.load(tmp_path, model=empty), model)


class Renamed(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + x)


class Wide(Net):
    def __init__(self) -> None:
        super().__init__(8)


class Plain(Net):
    def __init__(self) -> None:
        super().__init__()
        self.causal = nn.Conv1d(6, 6, 3, padding=1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Renamed, "its code is not what it was"),
        (Wide, "the model has shape"),
        (Plain, "its convolution 'causal' was saved with zeros"),
    ],
)
def test_another_model_is_refused(other: type[nn.Module], message: str, tmp_path: Path) -> None:
    fitted().save(tmp_path)
    with pytest.raises(ArtifactError, match=message):
        inc_torch.load(tmp_path, model=other())


def test_a_damaged_description_is_refused(tmp_path: Path) -> None:
    fitted().save(tmp_path)
    path = tmp_path / "compression.json"
    data = json.loads(path.read_text())
    del data["graph"]["folds"]
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="The description of the graph has the keys"):
        inc_torch.load(tmp_path, model=Net())


def test_a_model_quantized_layer_by_layer_is_saved_as_before(tmp_path: Path) -> None:
    model = fitted(graph="off")
    assert describe_graph(model) == {}
    model.save(tmp_path)
    assert_same(inc_torch.load(tmp_path, model=Net()), model)


def test_modules_in_bfloat16_beside_a_graph_are_saved_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_BF16", "1")
    rule = {"head": {"weight": {"dtype": "bf16"}, "activation": {"dtype": "bf16"}}}
    model = fitted(op_name_dict=rule)
    assert model.head.weight.dtype == torch.bfloat16
    assert is_graph(model)
    model.save(tmp_path)
    assert_same(inc_torch.load(tmp_path, model=Net()), model)


@pytest.mark.parametrize(("pattern", "kind"), [(".*", "Int8Conv1d"), ("Conv1d", "Int8Conv1d"), ("Causal", "Causal")])
def test_rules_by_class_name_mean_convolutions_that_pad_too(pattern: str, kind: str) -> None:
    model = fitted(op_type_dict={pattern: {"activation": {"algorithm": "minmax"}}})
    assert type(model.causal).__name__ == kind


def test_the_report_says_what_the_graph_did() -> None:
    notes = {row.name: row.notes for row in fitted().report().modules}
    assert notes["first"] == ("'norm' is folded into it; 'relu' stays in int8",)
    assert notes["second"] == ()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_compute_the_same_and_are_independent(copied: Any) -> None:
    model = fitted()
    set_executor(model, None)
    other = copied(model)
    assert_same(other, model)
    assert type(other) is type(model)
    with torch.no_grad():
        expected = model(DATA[0])
        other.get_submodule(f"{SNAPS}.relu").scale.mul_(3)
        other.head.bias.add_(1)
        assert torch.equal(model(DATA[0]), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_keeps_codes_and_scales(dtype: torch.dtype) -> None:
    model = fitted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cast = copy.deepcopy(model).to(dtype)
    assert all(torch.equal(tensor, before[name]) for name, tensor in cast.state_dict().items())
    with torch.no_grad():
        output = cast(DATA[0].to(dtype))
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), model(DATA[0]), rtol=0.1, atol=0.05)


def test_a_part_of_the_model_can_be_used_alone() -> None:
    model, float_model, x = fitted(family("resnet18"), images(1)), family("resnet18"), torch.rand(2, 64, 8, 8)
    with torch.no_grad():
        given, expected = model.layer1(x), float_model.layer1(x)
    assert F.cosine_similarity(given.flatten(), expected.flatten(), dim=0) > 0.99


def test_an_executor_runs_in_evaluation_without_gradients_only() -> None:
    model, seen = fitted(), []

    def execute(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return torch.zeros(1)

    set_executor(model, lambda _: execute)
    with torch.no_grad():
        assert model(DATA[0]).shape == (1,)
        assert model(x=DATA[0]).shape == (1,)
        assert model.train()(DATA[0]).shape == (4, 2)
    assert model.eval()(DATA[0]).shape == (4, 2)
    assert len(seen) == 2
    set_executor(model, None)
    with torch.no_grad():
        assert model(DATA[0]).shape == (4, 2)
    with pytest.raises(ModelError, match="was not quantized as a graph"):
        set_executor(Net(), None)


def test_the_graph_that_is_given_away_calls_the_models_modules() -> None:
    model = fitted()
    set_executor(model, None)
    graph = graph_of(model)
    assert graph is not None
    assert_same(graph, model)
    assert graph_of(Net()) is None
    targets = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    assert {f"{SNAPS}.relu", "first", "causal"} <= targets
    assert all(model.get_submodule(target) is graph.get_submodule(target) for target in targets)


def test_a_sequence_hides_its_snaps() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    model = fitted(nn.Sequential(*layers))
    assert f"{SNAPS}._1.scale" in model.state_dict()
    assert len(model) == 5
    assert type(model[-1]).__name__ == "Int8Linear"
    assert [type(layer).__name__ for layer in model[:2]] == ["Int8Conv2d", "ReLU"]
    assert len(list(model)) == 5


def test_a_snap_moves_to_its_grid() -> None:
    snap = Int8Snap()
    snap.set_grid(InputGrid(0.5, 3, 255))
    x = torch.tensor([-9.0, -1.6, 0.0, 0.24, 0.26, 200.0])
    assert snap(x).tolist() == [-1.5, -1.5, 0.0, 0.0, 0.5, 126.0]
    assert snap(x.half()).dtype == torch.float16
    state = snap.state_dict()
    other = Int8Snap()
    other(x)
    other.load_state_dict(state)
    assert torch.equal(other(x), snap(x))
    assert "scale=0.5" in repr(snap)


def test_readers_of_a_shared_grid_are_not_smoothed_and_corrections_are_of_folded_weights() -> None:
    recipes = {"smooth_quant": True, "smooth_quant_args": {"alpha": 0.5}, "fast_bias_correction": True}
    model = fitted(recipes=recipes)
    notes = {row.name: row.notes for row in model.report().modules}
    assert "not smoothed: its input stays in int8 between layers" in notes["second"][0]
    assert "smoothed, alpha 0.5" in notes["head"][0]
    with torch.no_grad():
        expected = Net().eval()(DATA[0])
        assert F.cosine_similarity(model(DATA[0]).flatten(), expected.flatten(), dim=0) > 0.99
