"""`quantization.fit`: what it takes, what it returns, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from inc_torch import AccuracyCriterion, PostTrainingQuantConfig, TuningCriterion, load, quantization
from inc_torch.core.errors import (
    CalibrationError,
    ConfigError,
    ConfigTypeError,
    GoalMissedError,
    GoalMissedWarning,
    InexactWarning,
    ModelError,
)
from inc_torch.core.program import Program

FP32 = {"weight": {"dtype": "fp32"}}


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def batches(count: int = 4, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 8, generator=generator) for _ in range(count)]


def kinds(model: nn.Module) -> dict[str, str]:
    return {
        name: type(module).__name__ for name, module in model.named_modules() if name and not list(module.children())
    }


class TestResult:
    def test_the_float_model_is_left_as_it_was(self) -> None:
        model = small().train()
        before = copy.deepcopy(model.state_dict())
        quantized = quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=batches())
        assert quantized is not model
        assert model.training
        assert kinds(model) == {"0": "Linear", "1": "ReLU", "2": "Linear"}
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert not {id(p) for p in model.parameters()} & {id(p) for p in quantized.parameters()}
        assert not any(module._forward_pre_hooks for module in [*model.modules(), *quantized.modules()])

    def test_in_place_it_is_the_same_object(self) -> None:
        model = small()
        quantized = quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=batches(), inplace=True)
        assert quantized is model
        assert kinds(model) == {"0": "Int8Linear", "1": "ReLU", "2": "Int8Linear"}

    def test_outputs_are_near_those_in_float(self) -> None:
        model = small()
        quantized = quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=batches())
        inputs = batches(1, 64)[0]
        error = (quantized(inputs) - model(inputs)).abs().max() / model(inputs).abs().max()
        assert error < 0.03

    def test_ranges_are_those_of_the_calibration_data(self) -> None:
        config = PostTrainingQuantConfig(op_type_dict={"Linear": {"activation": {"algorithm": "minmax"}}})
        quantized = quantization.fit(small(), config, calib_dataloader=[torch.full((2, 8), 3.0), -torch.ones(2, 8)])
        assert quantized[0].input_scale.item() == pytest.approx(4.0 / 255)
        assert quantized[0].input_zero_point.item() == 64

    def test_save_load_report(self, tmp_path: Any) -> None:
        quantized = quantization.fit(small(), PostTrainingQuantConfig(), calib_dataloader=batches())
        quantized.save(tmp_path)
        loaded = load(tmp_path, model=small())
        assert torch.equal(loaded(batches()[0]), quantized(batches()[0]))
        assert {row.name: (row.bits, row.scheme) for row in quantized.report().modules} == {
            "0": (8, "w8a8-static"),
            "2": (8, "w8a8-static"),
        }

    def test_one_pass_over_a_generator_is_enough(self) -> None:
        def stream() -> Iterator[torch.Tensor]:
            yield from batches()

        assert quantization.fit(small(), PostTrainingQuantConfig(), calib_dataloader=stream()) is not None

    def test_calibration_stops_when_there_are_enough_samples(self) -> None:
        taken = []

        def stream() -> Iterator[torch.Tensor]:
            for batch in batches(10, 8):
                taken.append(len(batch))
                yield batch

        quantization.fit(small(), PostTrainingQuantConfig(calibration_sampling_size=30), calib_dataloader=stream())
        assert taken == [8] * 4  # ceil(30 / 8), as INC

    def test_a_calibration_function_is_preferred_and_called_once_with_a_model_that_computes_in_float(self) -> None:
        model, outputs = small(), []

        def run(prepared: nn.Module) -> None:
            outputs.append(prepared(batches()[0]))

        def never() -> Iterator[torch.Tensor]:
            raise AssertionError
            yield

        quantization.fit(model, PostTrainingQuantConfig(), calib_func=run, calib_dataloader=never())
        assert len(outputs) == 1
        assert torch.equal(outputs[0], model(batches()[0]))

    def test_conf_and_config_are_one(self) -> None:
        config = PostTrainingQuantConfig(approach="dynamic")
        assert kinds(quantization.fit(small(), config=config))["0"] == "Int8DynamicLinear"
        with pytest.raises(ConfigError, match="both conf and config"):
            quantization.fit(small(), config, config=config)


class TestApproaches:
    def test_dynamic_needs_no_data_and_keeps_convolutions_in_float(self) -> None:
        model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten(), nn.Linear(12, 2), nn.Embedding(4, 2))
        config = PostTrainingQuantConfig(approach="dynamic", excluded_precisions=["bf16"])
        quantized = quantization.fit(model, config)
        assert kinds(quantized) == {"0": "Conv1d", "1": "Flatten", "2": "Int8DynamicLinear", "3": "Int8Embedding"}
        notes = {row.name: row.notes for row in quantized.report().modules}
        assert notes["0"] == ("Conv1d has no int8 version with dynamic ranges",)

    def test_auto_is_dynamic_where_no_data_came_by(self) -> None:
        class Side(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.unused = nn.Linear(8, 4), nn.Linear(8, 4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.used(x)

        quantized = quantization.fit(Side(), PostTrainingQuantConfig(approach="auto"), calib_dataloader=batches())
        assert kinds(quantized) == {"used": "Int8Linear", "unused": "Int8DynamicLinear"}
        with pytest.warns(InexactWarning, match="No calibration data reached 'unused': left in float"):
            static = quantization.fit(Side(), PostTrainingQuantConfig(), calib_dataloader=batches())
        assert kinds(static) == {"used": "Int8Linear", "unused": "Linear"}

    def test_auto_without_data_is_dynamic(self) -> None:
        assert kinds(quantization.fit(small(), PostTrainingQuantConfig(approach="auto")))["0"] == "Int8DynamicLinear"


class TestRecipes:
    @pytest.mark.parametrize(("recipe", "left"), [("first", "0"), ("last", "2")])
    def test_the_ends_stay_in_float(self, recipe: str, left: str) -> None:
        config = PostTrainingQuantConfig(recipes={f"{recipe}_conv_or_matmul_quantization": False})
        quantized = quantization.fit(small(), config, calib_dataloader=batches())
        assert [name for name, kind in kinds(quantized).items() if kind == "Linear"] == [left]
        notes = {row.name: row.notes for row in quantized.report().modules}
        assert notes[left] == (f"left in float by the recipe {recipe}_conv_or_matmul_quantization=False",)

    def test_bias_correction_restores_the_mean_of_outputs(self) -> None:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, groups=1), nn.Conv2d(5, 5, 3, groups=5, bias=False))
        data = [torch.rand(16, 3, 9, 9) + 1 for _ in range(2)]
        rule = {".*": {"weight": {"bits": 4}, "activation": {"algorithm": "minmax"}}}
        means = {}
        for on in (False, True):
            config = PostTrainingQuantConfig(
                calibration_sampling_size=32, op_name_dict=rule, recipes={"fast_bias_correction": on}
            )
            quantized = quantization.fit(model, config, calib_dataloader=data)
            with torch.no_grad():
                shift = quantized[0](torch.cat(data)) - model[0](torch.cat(data))
            means[on] = shift.mean([0, 2, 3]).abs().max().item()
        assert means[False] > 0.01
        assert means[True] < 0.1 * means[False]

    def test_weights_near_zero_are_always_clipped(self) -> None:
        with pytest.raises(ConfigError, match="Weights below 1e-5 count as 1e-5"):
            PostTrainingQuantConfig(recipes={"smooth_quant_args": {"weight_clip": False}})

    def test_a_recipe_of_other_frameworks_is_named(self) -> None:
        with pytest.warns(InexactWarning, match=r"recipes\['gemm_to_matmul'\] has no effect: it speaks of ONNX graphs"):
            quantization.fit(
                small(), PostTrainingQuantConfig(recipes={"gemm_to_matmul": False}), calib_dataloader=batches()
            )


class TestEvaluation:
    def test_a_goal_that_is_met(self) -> None:
        seen = []

        def score(model: nn.Module) -> float:
            seen.append(model.training)
            return 0.8 if len(seen) == 1 else 0.792

        assert quantization.fit(small(), PostTrainingQuantConfig(), batches(), eval_func=score) is not None
        assert seen == [False, False]

    @pytest.mark.parametrize("on_miss", ["best", "none", "raise"])
    def test_a_goal_that_is_missed(self, on_miss: str) -> None:
        scores = iter([0.8, 0.7])
        config = PostTrainingQuantConfig(tuning_criterion=TuningCriterion(on_miss=on_miss, max_trials=1))
        message = "The only trial, an int8 model, scores 0.7000, the float model 0.8000: expected at least 0.7920"
        if on_miss == "raise":
            with pytest.raises(GoalMissedError, match=message):
                quantization.fit(small(), config, batches(), eval_func=lambda _: next(scores))
            return
        with pytest.warns(GoalMissedWarning, match=message):
            result = quantization.fit(small(), config, batches(), eval_func=lambda _: next(scores))
        assert (result is None) == (on_miss == "none")

    def test_a_loader_with_a_metric(self) -> None:
        model = small()
        labelled = [(batch, model(batch).argmax(1)) for batch in batches()]
        config = PostTrainingQuantConfig(accuracy_criterion=AccuracyCriterion(tolerable_loss=0.2))
        result = quantization.fit(model, config, batches(), eval_dataloader=labelled, eval_metric={"topk": 1})
        assert result is not None

    def test_errors_of_the_users_function_rise(self) -> None:
        def score(model: nn.Module) -> float:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            quantization.fit(small(), PostTrainingQuantConfig(), batches(), eval_func=score)


class TestRefusals:
    def test_static_without_data(self) -> None:
        with pytest.raises(
            CalibrationError, match=r"Static quantization of 2 modules, such as '0', needs .* calib_data"
        ):
            quantization.fit(small(), PostTrainingQuantConfig())

    def test_a_loader_that_yields_nothing(self) -> None:
        with pytest.raises(CalibrationError, match="calib_dataloader yielded no batch"):
            quantization.fit(small(), PostTrainingQuantConfig(), calib_dataloader=[])

    @pytest.mark.parametrize("batch", [{"input": torch.ones(4, 8)}, torch.ones(4, 8)])
    def test_a_batch_for_a_loader(self, batch: Any) -> None:
        with pytest.raises(ConfigTypeError, match=r"which is one batch: .* Put it into a list"):
            quantization.fit(small(), PostTrainingQuantConfig(), calib_dataloader=batch)

    def test_a_function_that_runs_nothing(self) -> None:
        with pytest.raises(CalibrationError, match="No calibration data reached any of the 2 modules"):
            quantization.fit(small(), PostTrainingQuantConfig(), calib_func=lambda _: None)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_activations_that_are_not_finite(self, value: float) -> None:
        model = small()
        model[0].bias.data[0] = value
        with pytest.raises(CalibrationError, match=r"The input of module '2' \(Linear\) held NaN or infinity"):
            quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=batches())
        assert kinds(model)["0"] == "Linear"

    def test_a_name_that_matches_nothing(self) -> None:
        model = nn.Sequential()
        model.add_module("classifier", nn.Linear(8, 2))
        config = PostTrainingQuantConfig(op_name_dict={"clasifier": FP32})
        with pytest.raises(ConfigError, match="Did you mean 'classifier'"):
            quantization.fit(model, config, calib_dataloader=batches())

    def test_a_model_without_values(self) -> None:
        with pytest.raises(ModelError, match="meta device"):
            quantization.fit(small().to("meta"), PostTrainingQuantConfig(approach="dynamic"))

    def test_a_device_where_the_model_is_not(self) -> None:
        with pytest.raises(ConfigError, match=r"device='gpu', but Sequential is on cpu"):
            quantization.fit(small(), PostTrainingQuantConfig(device="gpu"), calib_dataloader=batches())

    def test_a_model_that_is_int8_already(self) -> None:
        quantized = quantization.fit(small(), PostTrainingQuantConfig(approach="dynamic"))
        with pytest.raises(ModelError, match="already converted"):
            quantization.fit(quantized, PostTrainingQuantConfig(approach="dynamic"))

    def test_half_an_evaluation(self) -> None:
        with pytest.raises(ConfigError, match="eval_dataloader without eval_metric"):
            quantization.fit(small(), PostTrainingQuantConfig(), batches(), eval_dataloader=batches())

    def test_unknown_arguments(self) -> None:
        with pytest.raises(ConfigTypeError, match=r"no argument 'calib_dataloder'\. Did you mean 'calib_dataloader'"):
            quantization.fit(small(), PostTrainingQuantConfig(), calib_dataloder=batches())

    def test_wrong_types(self) -> None:
        with pytest.raises(ConfigTypeError, match="a model of type str"):
            quantization.fit("model", PostTrainingQuantConfig())  # type: ignore[arg-type]
        with pytest.raises(ConfigTypeError, match="got a model as conf"):
            quantization.fit(PostTrainingQuantConfig(), small())  # type: ignore[arg-type]


def test_a_model_that_runs_a_program_is_refused():
    """As after `mix_precision.fit` on Intel's extension: its modules are not what computes."""

    class Elsewhere(Program):
        runs_on = "another machine"
        way_back = "Bring it back with call_back(model)."

    model = nn.Sequential(nn.Linear(4, 4))
    model.forward = Elsewhere()
    message = "quantization.fit got a Sequential that runs on another machine: expected a model"
    with pytest.raises(ModelError, match=message):
        quantization.fit(model, calib_dataloader=[torch.ones(2, 4)])
