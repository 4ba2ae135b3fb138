"""Statistics of calibration, and what recipes make of them, against a second way to compute the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inc_torch import AccuracyCriterion, PostTrainingQuantConfig, quantization
from inc_torch.core.errors import GoalMissedWarning, InexactWarning
from inc_torch.quantizers import OBSERVERS, Levels, QuantSpec, calibrate, fit_grid, prepare_fake_quant
from inc_torch.quantizers._statistics import TensorStatistics

OBSERVER_NAMES = ("minmax", "kl", "kl_divergence", "percentile", "mse", "ema_minmax")
UNORDERED = [name for name in OBSERVER_NAMES if name != "ema_minmax"]
SMOOTHED = {"smooth_quant": True}
FOLDED = {"smooth_quant": True, "smooth_quant_args": {"folding": True}}


def skewed(count: int, *shape: int) -> list[torch.Tensor]:
    """Batches with outliers, of growing size, that are not around 0."""
    generator = torch.Generator().manual_seed(2)
    return [(index + 1) * torch.randn(*shape, generator=generator).pow(3) + 0.5 for index in range(count)]


def with_observer(name: str, **more: Any) -> PostTrainingQuantConfig:
    return PostTrainingQuantConfig(op_type_dict={".*": {"activation": {"algorithm": name, **more}}})


class TestRanges:
    @pytest.mark.parametrize("scheme", ["asym", "sym"])
    @pytest.mark.parametrize("name", UNORDERED)
    def test_the_grid_is_that_of_all_batches_together(self, name: str, scheme: str) -> None:
        data = skewed(3, 30, 8)
        quantized = quantization.fit(nn.Linear(8, 4), with_observer(name, scheme=scheme), data)
        levels = Levels(0, 255, symmetric=scheme == "sym")
        low, high = OBSERVERS.get(name)().range(TensorStatistics.of(torch.cat(data)), levels)
        scale, zero_point = fit_grid(low, high, levels)
        assert quantized.input_scale.item() == scale.item()
        assert quantized.input_zero_point.item() == zero_point.item()

    def test_a_moving_average_follows_the_order(self) -> None:
        data = skewed(3, 50, 8)
        first, second = (
            quantization.fit(nn.Linear(8, 4), with_observer("ema_minmax"), batches) for batches in (data, data[::-1])
        )
        assert first.input_scale != second.input_scale

    @pytest.mark.parametrize("name", UNORDERED)
    def test_the_order_of_batches_does_not_matter(self, name: str) -> None:
        torch.manual_seed(0)
        model, data = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), skewed(4, 20, 8)
        first, second = (quantization.fit(model, with_observer(name), batches) for batches in (data, data[::-1]))
        state = second.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())


class Attention(nn.Module):
    """Three projections that read one tensor, and one that reads a changed one."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.q(x) * self.k(x) + self.v(x)
        x.mul_(2)
        return mixed + self.o(x)


class TestSharedInputs:
    def test_who_reads_one_tensor_shares_one_record_and_one_grid(self, monkeypatch: pytest.MonkeyPatch) -> None:
        looked_at = []
        look = TensorStatistics.of

        def counted(values: torch.Tensor, axis: int | None = None) -> TensorStatistics:
            looked_at.append(values)
            return look(values, axis)

        monkeypatch.setattr(TensorStatistics, "of", counted)
        model, data = Attention(), skewed(3, 5, 8)
        prepare_fake_quant(model, QuantSpec())
        with torch.no_grad():
            seen = calibrate(model, lambda: [model(batch.clone()) for batch in data]).inputs
        assert seen["q"] is seen["k"] is seen["v"]
        assert seen["o"] is not seen["q"]
        assert len(looked_at) == 2 * len(data)
        assert seen["o"].tensor.high == 2 * seen["q"].tensor.high

    def test_the_ranges_follow(self) -> None:
        quantized = quantization.fit(Attention(), with_observer("minmax"), [torch.randn(5, 8)])
        assert quantized.q.input_scale == quantized.k.input_scale == quantized.v.input_scale
        assert quantized.o.input_scale == pytest.approx(2 * quantized.q.input_scale.item())

    def test_a_convolution_and_a_transposed_one_of_the_same_tensor_do_not(self) -> None:
        class Both(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.back = nn.Conv1d(3, 5, 3), nn.ConvTranspose1d(3, 5, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.conv(x).mean() + self.back(x).mean()

        model = Both()
        prepare_fake_quant(model, QuantSpec())
        seen = calibrate(model, lambda: model(torch.randn(2, 3, 9))).inputs
        assert seen["conv"].window_mean is not None
        assert seen["back"].window_mean is None
        config = PostTrainingQuantConfig(recipes={"fast_bias_correction": True})
        rows = quantization.fit(Both(), config, [torch.randn(2, 3, 9)]).report().modules
        assert {row.name: [note.partition(":")[0] for note in row.notes] for row in rows} == {
            "conv": [],
            "back": ["bias not corrected"],
        }


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.LayerNorm(40), nn.Linear(40, 4)), (40,)),
        (nn.Sequential(nn.Conv2d(3, 40, 1), nn.ReLU(), nn.Conv2d(40, 4, 3)), (3, 5, 5)),
    ],
    ids=["vectors", "images"],
)
@pytest.mark.parametrize("folding", [False, True])
@pytest.mark.parametrize("alpha", [0.5, "auto"])
def test_samples_one_by_one_are_seen_as_in_batches(
    model: nn.Module, shape: tuple[int, ...], folding: bool, alpha: float | str
) -> None:
    torch.manual_seed(0)  # of weights that come near a tie, the order of summation picks an alpha
    for layer in model.children():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.reset_parameters()
    data = torch.cat(skewed(2, 4, *shape))
    arguments = {"alpha": alpha, "folding": folding}
    recipes = {"smooth_quant": True, "smooth_quant_args": arguments, "fast_bias_correction": True}
    config = PostTrainingQuantConfig(recipes=recipes, calibration_sampling_size=10_000)
    alone, together = (quantization.fit(model, config, samples) for samples in (list(data), [data]))
    assert alphas_in(alone) == alphas_in(together)
    state = together.state_dict()
    assert all(torch.allclose(tensor, state[name], atol=1e-5) for name, tensor in alone.state_dict().items())


CONVOLUTIONS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(4, 6, 3), (4, 9, 8)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 2), dilation=(2, 1)), (4, 9, 8)),
    (nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect", groups=2), (4, 7, 9)),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 7, 9)),
    (nn.Conv2d(4, 8, 2, padding="same", padding_mode="replicate", groups=4), (4, 6, 5)),
    (nn.Conv2d(4, 4, 3, padding="valid", stride=2), (4, 8, 8)),
]


def unfolded_mean(conv: nn.Conv2d, values: torch.Tensor) -> torch.Tensor:
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(values, conv._reversed_padding_repeated_twice, mode=mode)
    windows = F.unfold(padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)
    return windows.double().mean([0, 2]).view(values.shape[1], *conv.kernel_size)


@pytest.mark.parametrize(("conv", "shape"), CONVOLUTIONS, ids=[str(conv) for conv, _ in CONVOLUTIONS])
def test_window_means_are_those_of_unfolded_inputs(conv: nn.Conv2d, shape: tuple[int, ...]) -> None:
    data = [torch.randn(size, *shape) + 1 for size in (2, 5)]
    model = nn.Sequential(conv)
    prepare_fake_quant(model, QuantSpec())
    seen = calibrate(model, lambda: [model(batch) for batch in data]).inputs["0"]
    assert seen.window_mean is not None
    torch.testing.assert_close(seen.window_mean, unfolded_mean(conv, torch.cat(data)), rtol=1e-5, atol=1e-6)


def decoded(module: Any) -> torch.Tensor:
    scale = module.weight_scale.view(-1, *[1] * (module.qweight.dim() - 1))
    return module.qweight.float() * scale


def conv1d(outputs: int, inputs: int) -> nn.Module:
    layer = pytest.importorskip("transformers.pytorch_utils").Conv1D(outputs, inputs)
    nn.init.normal_(layer.weight)
    return layer


class TestBiasCorrection:
    """Means of outputs, with rounded weights and inputs that are not rounded, are those in float."""

    @pytest.mark.parametrize("kind", ["Linear", "Linear without bias", "Conv1D"])
    @pytest.mark.parametrize("weight_correction", [False, True])
    @pytest.mark.parametrize("smoothing", [{}, SMOOTHED, FOLDED], ids=["plain", "smoothed", "folded"])
    def test_linear(self, kind: str, weight_correction: bool, smoothing: dict[str, Any]) -> None:
        torch.manual_seed(0)
        layer = conv1d(4, 8) if kind == "Conv1D" else nn.Linear(8, 4, bias=kind == "Linear")
        model, data = nn.Sequential(nn.LayerNorm(8), layer), skewed(2, 50, 8)
        nn.init.normal_(model[0].bias)
        quantized = self.corrected(model, data, {**smoothing, "weight_correction": weight_correction})
        factor = quantized[1].input_factor
        assert (factor is not None) == (smoothing is SMOOTHED)
        values = quantized[0](torch.cat(data)) * (1 if factor is None else factor)
        outputs = F.linear(values, decoded(quantized[1]), quantized[1].bias)
        torch.testing.assert_close(outputs.mean(0), model(torch.cat(data)).mean(0), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("groups", [1, 2, 4])
    @pytest.mark.parametrize("smoothing", [{}, SMOOTHED, FOLDED], ids=["plain", "smoothed", "folded"])
    def test_convolutions_with_padding(self, groups: int, smoothing: dict[str, Any]) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=groups)).eval()
        nn.init.normal_(model[0].bias)
        data = skewed(2, 6, 4, 7, 7)
        quantized = self.corrected(model, data, smoothing)
        factor = quantized[1].input_factor
        values = quantized[0](torch.cat(data)) * (1 if factor is None else factor.view(-1, 1, 1))
        weight, bias = decoded(quantized[1]), quantized[1].bias
        outputs = F.conv2d(values, weight, bias, stride=2, padding=1, groups=groups)
        expected = model(torch.cat(data)).mean([0, 2, 3])
        torch.testing.assert_close(outputs.mean([0, 2, 3]), expected, rtol=1e-4, atol=1e-5)

    @staticmethod
    def corrected(model: nn.Module, data: list[torch.Tensor], recipes: dict[str, Any]) -> Any:
        rule = {".*": {"weight": {"bits": 3}}}
        recipes = {**recipes, "fast_bias_correction": True}
        with torch.no_grad():
            return quantization.fit(model, PostTrainingQuantConfig(recipes=recipes, op_type_dict=rule), data)


def test_weight_correction_keeps_mean_and_spread_of_each_output() -> None:
    torch.manual_seed(0)
    model, rule = nn.Sequential(nn.Linear(256, 4)), {".*": {"weight": {"bits": 4}}}
    nn.init.uniform_(model[0].weight, 0.0, 1.0)
    errors = {}
    for on in (False, True):
        config = PostTrainingQuantConfig(recipes={"weight_correction": on}, op_type_dict=rule)
        weight = decoded(quantization.fit(model, config, skewed(1, 4, 256))[0])
        errors[on] = (weight.mean(1) - model[0].weight.mean(1)).abs().mean().item()
    assert errors[True] < errors[False]


def several(*alphas: float, folding: bool = False) -> dict[str, Any]:
    return {"smooth_quant": True, "smooth_quant_args": {"alpha": list(alphas), "folding": folding}}


def alphas_in(model: Any) -> set[str]:
    return {note for row in model.report().modules for note in row.notes}


class TestSeveralAlphas:
    """Scores are scripted: first that of the float model, then one for each alpha."""

    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 4))

    def fitted(self, scores: list[float], folding: bool, **options: Any) -> Any:
        script: Iterator[float] = iter(scores)
        config = PostTrainingQuantConfig(recipes=several(0.2, 0.5, 0.8, folding=folding), max_trials=3, **options)
        result = quantization.fit(self.model, config, skewed(2, 6, 8), eval_func=lambda _: next(script))
        assert next(script, None) is None
        return result

    @pytest.mark.parametrize("folding", [False, True])
    def test_the_first_that_meets_the_goal(self, folding: bool) -> None:
        assert alphas_in(self.fitted([1.0, 0.9, 1.0], folding)) == {"smoothed, alpha 0.5"}

    @pytest.mark.parametrize("folding", [False, True])
    def test_else_the_best(self, folding: bool) -> None:
        with pytest.warns(GoalMissedWarning, match=r"scores 0\.8000"):
            assert alphas_in(self.fitted([1.0, 0.7, 0.6, 0.8], folding)) == {"smoothed, alpha 0.8"}

    def test_a_score_that_is_no_number_is_the_worst(self) -> None:
        with pytest.warns(GoalMissedWarning):
            fitted = self.fitted([1.0, math.nan, 0.6, 0.5], False)
        assert alphas_in(fitted) == {"smoothed, alpha 0.5"}

    def test_the_best_where_less_is_better(self) -> None:
        criterion = AccuracyCriterion(higher_is_better=False)
        with pytest.warns(GoalMissedWarning):
            fitted = self.fitted([1.0, 2.0, 1.5, 3.0], False, accuracy_criterion=criterion)
        assert alphas_in(fitted) == {"smoothed, alpha 0.5"}

    def test_what_is_scored_is_what_is_returned(self) -> None:
        data, outputs = skewed(2, 6, 8), []

        def score(model: nn.Module) -> float:
            outputs.append(model(data[0]))
            return [1.0, 0.5, 0.9, 0.6][len(outputs) - 1]

        config = PostTrainingQuantConfig(recipes=several(0.2, 0.5, 0.8), max_trials=3)
        with pytest.warns(GoalMissedWarning):
            returned = quantization.fit(self.model, config, data, eval_func=score)
        assert returned is not None
        assert torch.equal(returned(data[0]), outputs[2])
        assert not torch.allclose(outputs[1], outputs[2], rtol=1e-5, atol=1e-5)

    def test_without_an_evaluation_the_first(self) -> None:
        with pytest.warns(InexactWarning, match="only 0.3 is used"):
            quantized = quantization.fit(
                self.model, PostTrainingQuantConfig(recipes=several(0.3, 0.6)), skewed(2, 6, 8)
            )
        assert alphas_in(quantized) == {"smoothed, alpha 0.3"}
