"""bfloat16 on the kernels of the extension."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import inc_torch
from common.model import find_pretrained
from inc_torch import AccuracyCriterion, MixedPrecisionConfig, TuningCriterion, mix_precision
from inc_torch.core.batches import Inputs
from inc_torch.core.errors import ModelError
from inc_torch.ipex import deployed, withdraw
from tests.ipex.models import (
    Attention,
    Images,
    Residual,
    attention,
    images,
    pictures,
    program_of,
    residual,
    rows,
    sentences,
)

pytestmark = pytest.mark.ipex

FLOAT = {"weight": {"dtype": "fp32"}}


def converted(model: nn.Module, **options: object) -> nn.Module:
    return mix_precision.fit(model, MixedPrecisionConfig(backend="ipex", **options))


def kernels(model: nn.Module, *args: object, **kwargs: object) -> str:
    """The graph that is really executed."""
    for _ in range(3):
        model(*args, **kwargs)
    return str(torch.jit.last_executed_optimized_graph())


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).square().mean().sqrt() / expected.square().mean().sqrt()).item()


def test_layers_compute_in_bfloat16_on_prepacked_weights():
    model, batch = residual(), rows()[0]
    made = converted(model, example_inputs=batch)
    assert len(re.findall("ipex_prepack::linear", kernels(made, batch))) == 3
    assert made(batch).dtype is torch.float32
    assert 0 < error(made(batch), model(batch)) < 0.01
    assert torch.equal(made(batch[:3]), made(batch)[:3])
    assert made.fc1.weight.dtype is torch.bfloat16
    assert model.fc1.weight.dtype is torch.float32
    assert [row.scheme for row in made.report().modules] == ["bfloat16"] * 3


def test_normalizations_are_folded_into_convolutions():
    model, batch = images(), pictures()[0]
    graph = kernels(converted(model), batch)
    assert "batch_norm" not in graph
    assert "ipex_prepack::convolution_relu_run" in graph
    assert error(converted(model)(batch), model(batch)) < 0.01


@pytest.mark.parametrize("rule", [{"op_name_dict": {"fc2": FLOAT}}, {"op_type_dict": {"Linear": FLOAT}}])
def test_what_rules_keep_in_float_computes_in_float32(rule):
    model, batch = residual(), torch.eye(16)
    made = converted(model, **rule)
    if "op_type_dict" in rule:
        assert deployed(made) is None
        assert torch.equal(made(batch), model(batch))
        return
    seen = []
    program_of(made)._converted.fc2.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    made(batch)
    ((given, out),) = seen
    assert given.dtype is out.dtype is torch.float32
    assert torch.equal(out, nn.functional.linear(given, model.fc2.weight, model.fc2.bias))
    graph = kernels(made, batch)
    assert len(re.findall("ipex_prepack::linear", graph)) == 2
    assert "aten::linear" in graph


class Sum(nn.Module):
    """What the extension fuses so that it writes over what it reads."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.norm, self.kind = nn.BatchNorm2d(64), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        match self.kind:
            case "right":
                return self.second(y) + y
            case "left":
                return y + self.second(y)
            case "normalized":
                return torch.relu(self.norm(self.second(y)) + y)
            case "in place":
                return self.second(y).add_(y)
        return self.second(y) + y[:, :]


@pytest.mark.parametrize("kind", ["right", "left", "normalized", "in place", "view"])
def test_sum_is_not_written_over_what_is_still_read(kind):
    """Seen: an error of 0.08 of the output, twenty times that of bfloat16."""
    torch.manual_seed(0)
    model, batch = Sum(kind).eval(), torch.randn(2, 3, 48, 48)
    made = converted(model)
    assert "convolution_add" in kernels(made, batch)
    assert error(made(batch), model(batch)) < 0.006


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_input_of_the_caller_is_not_written_over(dtype):
    torch.manual_seed(0)
    model, batch = Shortcut().eval(), torch.randn(2, 64, 16, 16).to(dtype)
    made, before = converted(model), batch.clone()
    assert error(made(batch), model(batch.float())) < 0.01
    assert "convolution" in kernels(made, batch)
    assert torch.equal(batch, before)


class Shortcut(nn.Module):
    """Adds what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + x


class Recurrent(nn.Module):
    """One that the extension has in bfloat16, those that it has not, and a layer after."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = (kind(8, 8, batch_first=True) for kind in (nn.LSTM, nn.GRU, nn.RNN))
        self.pair, self.head = nn.Bilinear(8, 8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.rnn(self.gru(self.lstm(x)[0])[0])[0]
        return self.head(self.pair(y, x))


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (lambda: Recurrent(), (2, 5, 8)),
        (lambda: nn.LSTM(8, 4), (5, 2, 8)),
        (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2), (2, 5, 16)),
    ],
    ids=["recurrent", "lstm alone", "transformer"],
)
def test_layers_with_more_than_a_product(model, size):
    """Seen: recurrent layers failed, and torch's fused transformer read weights that were reordered, and was noise."""
    torch.manual_seed(0)
    given, batch = model().eval(), torch.randn(size)
    first = (lambda out: out[0]) if isinstance(given, nn.LSTM) else (lambda out: out)
    with torch.no_grad():
        assert error(first(converted(given)(batch)), first(given(batch))) < 0.02
    assert torch.backends.mha.get_fastpath_enabled()


def test_autocast_of_the_caller_changes_nothing():
    model, batch = residual(), rows()[0]
    expected = converted(model, op_name_dict={"fc2": FLOAT})(batch)
    made = converted(model, op_name_dict={"fc2": FLOAT})
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(batch), expected)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(made(batch), expected)


def test_arguments_that_are_left_out_are_not_made_up():
    """`ipex.optimize` alone traces by torch.fx, for which every optional argument is given."""
    model, batch = attention(), sentences()[0]
    made = converted(model, example_inputs=batch)
    assert error(made(batch["ids"])["out"], model(batch["ids"])["out"]) < 0.02
    assert error(made(**batch)["out"], model(**batch)["out"]) < 0.02


@pytest.mark.parametrize("with_example", [True, False])
@pytest.mark.parametrize(("make", "batches"), [(Residual, rows), (Images, pictures), (Attention, sentences)])
def test_saved_model_gives_the_same_after_loading(make, batches, with_example, tmp_path, monkeypatch):
    torch.manual_seed(0)
    given = batches()[1]
    made = converted(make().eval(), **({"example_inputs": given} if with_example else {}))
    made.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compression.json", "model.safetensors"]
    call = Inputs((), given) if isinstance(given, dict) else Inputs((given,))
    pick = (lambda output: output["out"]) if call.kwargs else (lambda output: output)
    loaded = inc_torch.load(tmp_path, make())
    assert deployed(loaded) is not None
    assert torch.equal(pick(loaded(*call.args, **call.kwargs)), pick(made(*call.args, **call.kwargs)))
    monkeypatch.setattr("inc_torch.ipex._extension._versions", lambda: {"torch": "2.13.0", "x": None})
    with pytest.warns(UserWarning, match="was saved with backend='ipex', and the extension is not here"):
        native = inc_torch.load(tmp_path, make())
    withdraw(made)
    assert deployed(native) is None
    assert torch.equal(pick(native(*call.args, **call.kwargs)), pick(made(*call.args, **call.kwargs)))


def test_search_puts_back_what_costs_accuracy():
    model, batch = residual(), rows()[0]
    seen = []

    def score(candidate: nn.Module) -> float:
        seen.append(deployed(candidate) is not None)
        candidate(batch)
        return 1.0 if candidate.head.weight.dtype is torch.float32 else 0.0

    config = MixedPrecisionConfig(
        backend="ipex",
        quant_level=1,
        accuracy_criterion=AccuracyCriterion(tolerable_loss=0.01),
        tuning_criterion=TuningCriterion(max_trials=10),
    )
    made = mix_precision.fit(model, config, eval_func=score)
    assert seen[:2] == [False, True], "the float model, then all in bfloat16"
    assert made.tuning.best.is_met
    assert (made.fc1.weight.dtype, made.head.weight.dtype) == (torch.bfloat16, torch.float32)
    assert len(re.findall("ipex_prepack::linear", kernels(made, batch))) == 2


class Untraceable(nn.Module):
    """Computes, but not for a tracer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_tracing():
            raise ValueError("no tracing here")
        return self.fc(x)


def test_what_cannot_be_traced_is_said_and_the_model_stays_as_it_was():
    model = Untraceable().eval()
    config = MixedPrecisionConfig(backend="ipex", example_inputs=torch.ones(1, 4))
    with pytest.raises(ModelError, match=r"Untraceable cannot be traced .* ValueError: no tracing here"):
        mix_precision.fit(model, config, inplace=True)
    assert model.fc.weight.dtype is torch.float32


def test_in_place_the_model_itself_runs_on_the_extension():
    model, batch = residual(), rows()[0]
    expected = model(batch)
    config = MixedPrecisionConfig(backend="ipex", example_inputs=batch)
    assert mix_precision.fit(model, config, inplace=True) is model
    assert deployed(model) is not None
    assert 0 < error(model(batch), expected) < 0.01


def minilm() -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(find_pretrained(), num_labels=2).eval()


def test_minilm_keeps_its_outputs_and_configuration():
    tokenizer, model = AutoTokenizer.from_pretrained(find_pretrained()), minilm()
    texts = ["a gripping film, and a warm one", "two hours that I will not get back"]
    batch = dict(tokenizer(texts, return_tensors="pt", padding=True))
    made = converted(model, example_inputs=batch)
    got, expected = made(**batch), model(**batch)
    assert type(got) is type(expected)
    assert got.logits.dtype is torch.float32
    assert error(got.logits, expected.logits) < 0.05
    labels = torch.tensor([0, 1])
    loss = nn.functional.cross_entropy(expected.logits, labels).item()
    assert made(**batch, labels=labels).loss == pytest.approx(loss, abs=0.01)
    # Query, key and value are one product.
    assert len(re.findall("ipex_prepack::linear", kernels(made, **batch))) == 6 * 4 + 2
    assert made.config is not None
