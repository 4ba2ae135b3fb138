"""Models that are no graph: why, and that they are quantized layer by layer as before."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from inc_torch import PostTrainingQuantConfig, QuantizationAwareTrainingConfig, prepare_compression, quantization
from inc_torch.core.errors import InexactWarning
from inc_torch.quantizers import Int8Conv2d, describe_graph, is_graph
from inc_torch.quantizers.fx._capture import Refused, capture
from inc_torch.quantizers.fx._graft import SNAPS

DATA = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) for _ in range(2)]


class Net(nn.Module):
    """A convolution with its normalization, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3))
        self.head = nn.Linear(6, 2)
        self.scale = 1.0

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(self.body(x), 1).flatten(1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.features(x))


class Noisy(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self.head(x + torch.randn_like(x) if self.training else x)


class Branching(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x) if x.sum() > 0 else self.features(-x))


class Counting(Net):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return super().forward(x)


class Keeping(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = self.features(x)
        return self.head(self.kept)


class Tallying(Net):
    """It counts in a buffer, in place: no attribute changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tally", torch.tensor([5.0, 0.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.tally += 1
        return super().forward(x)


class Making(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.tensor([1.0, 2.0])


class Checkpointing(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(checkpoint(self.features, x, use_reentrant=False))


class Keyword(Net):
    def forward(self, *, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.inner.weight)


class Sized(Net):
    """What a trace takes for a constant: the number of samples, where it is no tensor that is asked."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (len(x) if isinstance(x, torch.Tensor) else 4)


class Optional(Net):
    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        y = super().forward(x)
        return y if scale is None else y * scale


def hooked() -> nn.Module:
    model = Net()
    model.body.register_forward_hook(lambda *_: None)
    return model


def compiled_inside() -> nn.Module:
    model = Net()
    model.body = torch.compile(model.body, backend="eager")
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "training": (Noisy, "self.training is baked into the graph"),
    "control flow": (Branching, "torch.fx cannot trace it: TraceError"),
    "a counter": (Counting, "its forward writes 'calls'"),
    "a kept tensor": (Keeping, "its forward writes 'kept'"),
    "a tally": (Tallying, "its forward writes 'tally'"),
    "a constant": (Making, "its forward makes a tensor that would be baked into the graph"),
    "checkpointing": (Checkpointing, "it uses activation checkpointing"),
    "a keyword": (Keyword, "its forward has the keyword-only argument 'x'"),
    "hooks": (hooked, "'body' has hooks"),
    "a wrapper": (compiled_inside, "'body' is wrapped by OptimizedModule"),
    "a graph module": (lambda: torch.fx.symbolic_trace(Net()), "it is a torch.fx.GraphModule"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_graph_is_refused_and_left_as_it_was(case: str) -> None:
    build, reason = REFUSED[case]
    model = build()
    before = [(module, dict(module.__dict__)) for module in model.modules()]
    twin, members = copy.deepcopy(model), set(vars(type(model)))
    with pytest.raises(Refused, match=reason.replace("(", r"\(")):
        capture(model)
    for module, attributes in before:
        assert module.__dict__.keys() == attributes.keys()
        assert all(module.__dict__[name] is value for name, value in attributes.items())
    assert set(vars(type(model))) == members
    assert_equal_states(model, twin)


def test_hooks_are_not_called_with_what_is_no_tensor() -> None:
    seen: list[object] = []
    model = Net()
    for module in model.modules():
        module.register_forward_hook(lambda _, inputs, __: seen.append(inputs))
    with pytest.raises(Refused, match="has hooks"):
        capture(model)
    assert not seen


@pytest.mark.parametrize("case", ["training", "control flow", "a counter", "a tally", "a constant", "hooks"])
def test_fit_goes_on_layer_by_layer_and_says_why_once(case: str, caplog: pytest.LogCaptureFixture) -> None:
    build, reason = REFUSED[case]
    with caplog.at_level(logging.INFO, "inc_torch.quantization"):
        quantized = fitted(build())
    assert not is_graph(quantized)
    assert reason in caplog.text
    notes = [note for row in quantized.report().modules for note in row.notes]
    assert [reason in note for note in notes] == [True]
    off = fitted(build(), graph="off")
    assert_equal_states(quantized, off)


def test_a_graph_that_depends_on_shapes_is_given_up_at_the_first_batch() -> None:
    quantized = fitted(Sized())
    assert not is_graph(quantized)
    (note, *_) = quantized.report().modules[0].notes
    assert "its graph gives something else on one sample" in note
    assert_equal_states(quantized, fitted(Sized(), graph="off"))
    assert SNAPS not in dict(quantized.named_children())


def test_a_first_batch_that_fails_is_the_models_own_error_and_the_graph_is_not_trusted() -> None:
    model = Net()
    manager = prepare_compression(model, QuantizationAwareTrainingConfig())
    manager.on_train_begin()
    warns = pytest.warns(InexactWarning, match="it fails on the first batch: RuntimeError")
    with warns, pytest.raises(RuntimeError, match="expected input"):
        model.train()(torch.randn(2, 5, 8, 8))
    assert not is_graph(model)


def test_a_layer_whose_weight_a_function_reads_stays_in_float() -> None:
    model = nn.Sequential(Functional(), nn.Linear(3, 2))
    quantized = quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=[torch.randn(4, 3)])
    rows = {row.name: (row.bits, row.notes) for row in quantized.report().modules}
    assert rows["0.inner"] == (32, ("a function reads its weight, the layer is not called",))
    assert rows["1"][0] == 8


def test_optional_arguments_take_the_models_own_forward() -> None:
    quantized = fitted(Optional())
    assert is_graph(quantized)
    x, scale = DATA[0], torch.tensor([2.0, 4.0])
    with torch.no_grad():
        torch.testing.assert_close(quantized(x, scale), quantized(x) * scale, rtol=0.05, atol=0.02)
        assert torch.equal(quantized(x=x), quantized(x))
    with pytest.raises(TypeError):
        quantized(x, wrong=1)


def test_hooks_on_a_block_of_the_int8_model_are_called() -> None:
    quantized = fitted(Net())
    seen: list[torch.Tensor] = []
    handle = quantized.body.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        expected = quantized(DATA[0])
    assert len(seen) == 1
    handle.remove()
    with torch.no_grad():
        torch.testing.assert_close(quantized(DATA[0]), expected, rtol=0.05, atol=0.02)
    assert len(seen) == 1


def test_off_is_what_it_was() -> None:
    quantized = fitted(Net(), graph="off")
    assert type(quantized.body[1]) is nn.BatchNorm2d
    assert not is_graph(quantized)


@pytest.mark.parametrize("approach", ["dynamic", "weight_only"])
def test_other_approaches_have_no_graph(approach: str) -> None:
    assert not is_graph(fitted(Net(), approach=approach))


def test_fit_leaves_the_callers_model_untouched() -> None:
    model = Net().eval()
    kind, state, modules = type(model), copy.deepcopy(model.state_dict()), dict(model.named_modules())
    classes = {name: type(module) for name, module in modules.items()}
    quantized = fitted(model)
    assert is_graph(quantized)
    assert type(model) is kind
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert not [name for name in model.__dict__ if "inc_torch" in name]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_in_place_that_fails_leaves_the_model_as_it_was() -> None:
    model = Net().eval()
    classes = {name: type(module) for name, module in model.named_modules()}

    def failing() -> Any:
        yield DATA[0]
        message = "no more data"
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="no more data"):
        quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=failing(), inplace=True)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert not [name for name in model.__dict__ if "inc_torch" in name]
    assert model(DATA[0]).shape == (4, 2)


def test_in_place_the_object_itself_becomes_the_graph() -> None:
    model = Net().eval()
    quantized = quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=DATA, inplace=True)
    assert quantized is model
    assert is_graph(model)
    assert type(model.body[0]) is Int8Conv2d


@pytest.mark.parametrize("excluded", ["body.0", "body.3", "head"])
def test_layers_in_float_keep_their_neighbours_in_float(excluded: str) -> None:
    rule = {excluded: {"activation": {"dtype": "fp32"}}}
    quantized = fitted(Net(), op_name_dict=rule)
    assert is_graph(quantized)
    assert type(quantized.body[1]) is (nn.BatchNorm2d if excluded == "body.0" else nn.Identity)
    with torch.no_grad():
        expected = Net().eval()(DATA[0])
        torch.testing.assert_close(quantized(DATA[0]), expected, rtol=0.1, atol=0.05)


def test_ends_in_float_keep_their_neighbours_in_float() -> None:
    recipes = {"first_conv_or_matmul_quantization": False, "last_conv_or_matmul_quantization": False}
    quantized = fitted(Net(), recipes=recipes)
    assert type(quantized.body[0]) is nn.Conv2d
    assert type(quantized.body[1]) is nn.BatchNorm2d
    assert type(quantized.head) is nn.Linear
    assert type(quantized.body[3]) is Int8Conv2d
    with torch.no_grad():
        torch.testing.assert_close(quantized(DATA[0]), Net().eval()(DATA[0]), rtol=0.1, atol=0.05)


def test_the_configuration_refuses_other_words() -> None:
    for kind in (PostTrainingQuantConfig, QuantizationAwareTrainingConfig):
        with pytest.raises(ValueError, match="'auto' or 'off'"):
            kind(graph="on")


def test_training_says_nothing_of_models_that_are_refused_when_prepared() -> None:
    model = Noisy()
    manager = prepare_compression(model, QuantizationAwareTrainingConfig())
    assert "self.training is baked" in manager.report().modules[0].notes[0]
    manager.on_train_begin()
    model.train()(DATA[0]).sum().backward()
    manager.on_before_optimizer_step()
    manager.on_train_end()
    assert type(model.body[1]) is nn.BatchNorm2d


def fitted(model: nn.Module, **options: Any) -> Any:
    return quantization.fit(model.eval(), PostTrainingQuantConfig(**options), calib_dataloader=DATA)


def assert_equal_states(first: nn.Module, second: nn.Module) -> None:
    expected = second.state_dict()
    assert first.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in first.state_dict().items())


class Ending(nn.Module):
    """A tensor that the last layer and a sum read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.middle(torch.relu(self.first(x))))
        return self.last(x) + x


def test_a_snap_goes_when_a_reader_of_it_turns_out_to_stay_in_float() -> None:
    both = fitted(Ending())
    assert torch.equal(both.get_submodule(f"{SNAPS}.relu_1").scale, both.last.input_scale)
    quantized = fitted(Ending(), recipes={"last_conv_or_matmul_quantization": False})
    assert type(quantized.last) is nn.Conv2d
    assert is_graph(quantized)
    assert not describe_graph(quantized)["snaps"]
    assert not [name for name in quantized.state_dict() if name.startswith(SNAPS)]
    with torch.no_grad():
        torch.testing.assert_close(quantized(DATA[0]), Ending()(DATA[0]), rtol=0.1, atol=0.05)
