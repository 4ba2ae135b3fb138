"""`quantization.fit` keeps its word: the caller's model, errors before work, every form of data, every option."""

from __future__ import annotations

import copy
import json
import threading
from collections import UserDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from inc_torch import (
    AccuracyCriterion,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    TuningCriterion,
    WeightPruningConfig,
    prepare_compression,
    quantization,
)
from inc_torch.config import Config, read_configs
from inc_torch.core.errors import CalibrationError, ConfigError, ConfigTypeError, InexactWarning, ModelError
from tests.distributed.worlds import run_world

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/quantization.json").read_text())
FOLDED = {"smooth_quant": True, "smooth_quant_args": {"folding": True}}


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))


def batches(count: int = 4, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 8, generator=generator) for _ in range(count)]


def int8_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.dtype == torch.int8}


def assert_same(first: nn.Module, second: nn.Module) -> None:
    state = second.state_dict()
    assert first.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(x)[0])


class TestTheModelOfTheCaller:
    def test_bfloat16_in_the_copy_casts_no_weight_of_the_caller(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORCE_BF16", "1")
        model = Recurrent()
        quantized = quantization.fit(model, PostTrainingQuantConfig(), [torch.randn(3, 2, 8)])
        assert {parameter.dtype for parameter in quantized.rnn.parameters()} == {torch.bfloat16}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    @pytest.mark.parametrize("recipes", [{}, FOLDED, {"weight_correction": True, "fast_bias_correction": True}])
    def test_values_gradients_and_flags_stay(self, recipes: dict[str, Any]) -> None:
        model = small().train()
        model[1].eval()
        model[0].weight.requires_grad_(False)
        model(batches()[0]).sum().backward()
        before, gradient = copy.deepcopy(model), model[2].weight.grad
        parameters = list(map(id, model.parameters()))
        quantization.fit(model, PostTrainingQuantConfig(recipes=recipes), batches())
        assert_same(model, before)
        assert list(map(id, model.parameters())) == parameters
        assert model[2].weight.grad is gradient
        assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
        assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]

    def test_an_embedding_that_shortens_its_rows_does_so_in_the_copy(self) -> None:
        model = nn.Sequential(nn.Embedding(10, 8, max_norm=0.5), nn.Linear(8, 2))
        before = model[0].weight.clone()
        quantization.fit(model, PostTrainingQuantConfig(), [torch.arange(10)])
        assert torch.equal(model[0].weight, before)

    def test_random_numbers_and_threads_are_left_alone(self) -> None:
        model, data = small(), batches()
        before, threads = torch.get_rng_state(), torch.get_num_threads()
        quantization.fit(model, PostTrainingQuantConfig(recipes=FOLDED), data)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == threads

    def test_hooks_are_kept_and_none_is_added(self) -> None:
        model, calls = small(), []
        model[0].register_forward_hook(lambda *_: calls.append(1))
        quantized = quantization.fit(model, PostTrainingQuantConfig(recipes=FOLDED), batches())
        calls.clear()
        quantized(batches()[0])
        assert calls == [1]
        assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in quantized.modules()) == 1
        assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 1

    def test_the_float_model_as_reference_is_evaluated_and_not_trained(self) -> None:
        model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)).train()
        before = model[1].running_mean.clone()
        config = PostTrainingQuantConfig(tuning_criterion=TuningCriterion(on_miss="best"), performance_only=True)
        metric = {"MSE": {"compare_label": False}}
        labelled = [(batch, torch.zeros(8)) for batch in batches()]
        quantization.fit(model, config, batches(), eval_dataloader=labelled, eval_metric=metric)
        assert torch.equal(model[1].running_mean, before)
        assert model.training


def failing(_: nn.Module) -> float:
    raise ZeroDivisionError


class TestInPlace:
    @pytest.mark.parametrize("recipes", [{}, FOLDED, {"weight_correction": True, "fast_bias_correction": True}])
    def test_it_equals_the_copy(self, recipes: dict[str, Any]) -> None:
        config = PostTrainingQuantConfig(recipes=recipes)
        copied = quantization.fit(small(), config, batches())
        assert_same(quantization.fit(small(), config, batches(), inplace=True), copied)

    def test_what_stays_in_float_keeps_its_parameters(self) -> None:
        model = small()
        weight = model[1].weight
        quantization.fit(model, PostTrainingQuantConfig(), batches(), inplace=True)
        assert model[1].weight is weight

    @pytest.mark.parametrize("moment", ["rules", "data", "baseline", "calibration", "recipe"])
    def test_an_error_leaves_the_model_as_it_was(self, moment: str) -> None:
        model = small().train()
        before, parameters = copy.deepcopy(model), list(map(id, model.parameters()))
        rules = {"nothing": {"weight": {"dtype": "fp32"}}} if moment == "rules" else {}
        blocks = {"folding": True, "alpha": "auto", "auto_alpha_args": {"do_blockwise": True}}
        recipes = {"smooth_quant": True, "smooth_quant_args": blocks} if moment == "recipe" else {}
        data = [torch.full((2, 8), float("nan"))] if moment == "calibration" else batches()
        with pytest.raises((ConfigError, CalibrationError, ModelError, ZeroDivisionError)):
            quantization.fit(
                model,
                PostTrainingQuantConfig(op_name_dict=rules, recipes=recipes),
                None if moment == "data" else data,
                eval_func=failing if moment == "baseline" else None,
                inplace=True,
            )
        assert [type(module) for module in model.modules()] == [type(module) for module in before.modules()]
        assert [vars(module).keys() for module in model.modules()] == [vars(m).keys() for m in before.modules()]
        assert list(map(id, model.parameters())) == parameters
        assert all(module.training for module in model.modules())
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert_same(model, before)
        quantization.fit(model, PostTrainingQuantConfig(), batches(), inplace=True)

    def test_an_error_after_folding_brings_back_the_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("inc_torch.quantizers.Calibration.range_of", broken)
        model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
        before = copy.deepcopy(model)
        with pytest.raises(ZeroDivisionError):
            quantization.fit(model, PostTrainingQuantConfig(recipes=FOLDED), batches(), inplace=True)
        assert_same(model, before)

    def test_no_reference_is_left_to_compare_with(self) -> None:
        labelled = [(batch, torch.zeros(8)) for batch in batches()]
        metric = {"MSE": {"compare_label": False}}
        with pytest.raises(ConfigError, match=r"inplace=True and an eval_metric with compare_label=False"):
            quantization.fit(
                small(),
                PostTrainingQuantConfig(),
                batches(),
                eval_dataloader=labelled,
                eval_metric=metric,
                inplace=True,
            )


class TestErrorsBeforeWork:
    @pytest.mark.parametrize(
        ("options", "data"),
        [({}, None), ({"op_name_dict": {"nothing": {"weight": {"dtype": "fp32"}}}}, batches()), ({}, 5)],
        ids=["no data", "lost rule", "no loader"],
    )
    def test_nothing_is_evaluated(self, options: dict[str, Any], data: Any) -> None:
        evaluations = []
        with pytest.raises((ConfigError, CalibrationError, ConfigTypeError)):
            quantization.fit(small(), PostTrainingQuantConfig(**options), data, eval_func=evaluations.append)
        assert evaluations == []

    def test_what_is_no_loader_and_no_function(self) -> None:
        with pytest.raises(ConfigTypeError, match="calib_dataloader of type int: expected an iterable of batches"):
            quantization.fit(small(), PostTrainingQuantConfig(), 5)  # type: ignore[arg-type]
        with pytest.raises(ConfigTypeError, match="calib_func of type int: expected a function of a model"):
            quantization.fit(small(), PostTrainingQuantConfig(), calib_func=5)  # type: ignore[arg-type]

    def test_recipes_that_leave_nothing(self) -> None:
        config = PostTrainingQuantConfig(recipes={"first_conv_or_matmul_quantization": False})
        with pytest.raises(ConfigError, match=r"all of Sequential in float: 0: left in float by the recipe first_conv"):
            quantization.fit(nn.Sequential(nn.Linear(8, 2)), config, batches())

    def test_batches_without_samples(self) -> None:
        with pytest.raises(CalibrationError, match="2 batches without a sample"):
            quantization.fit(small(), PostTrainingQuantConfig(), [torch.zeros(0, 8)] * 2)

    def test_a_model_that_cannot_be_copied(self) -> None:
        model = small()
        model.lock = threading.Lock()
        with pytest.raises(ModelError, match=r"cannot be copied: TypeError.*inplace=True"):
            quantization.fit(model, PostTrainingQuantConfig(), batches())
        assert quantization.fit(model, PostTrainingQuantConfig(), batches(), inplace=True) is model

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("approach", ["static", "dynamic"])
    def test_a_weight_that_has_no_codes(self, approach: str, value: float) -> None:
        model = small()
        model[2].weight.data[1, 3] = value
        with pytest.raises(ModelError, match=r"The weight of module '2' holds NaN or infinity.*op_name_dict=\{'2'"):
            quantization.fit(model, PostTrainingQuantConfig(approach=approach), batches())

    def test_an_evaluation_that_can_be_read_once(self) -> None:
        labelled = ((batch, torch.zeros(8)) for batch in batches())
        with pytest.raises(ConfigTypeError, match="eval_dataloader of type generator, which can be read only once"):
            quantization.fit(
                small(), PostTrainingQuantConfig(), batches(), eval_dataloader=labelled, eval_metric={"topk": 1}
            )

    def test_a_batch_that_is_no_tensor_fails_where_the_model_does(self) -> None:
        with pytest.raises(TypeError, match="linear") as caught:
            quantization.fit(small(), PostTrainingQuantConfig(), [["a", "b"]])
        assert caught.value.__notes__ == ["While running Sequential with (list (str, str))."]

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
    def test_weights_that_are_no_common_real_numbers(self, dtype: torch.dtype) -> None:
        model = nn.Linear(4, 4)
        model.weight = nn.Parameter(model.weight.detach().to(dtype), requires_grad=False)
        with pytest.raises(ConfigError, match=f"its weight is {dtype}"):
            quantization.fit(model, PostTrainingQuantConfig(approach="dynamic"))

    def test_a_baseline_that_is_no_number(self) -> None:
        model = small()
        with pytest.raises(ModelError, match="Sequential scores nan in float: expected a finite number"):
            quantization.fit(model, PostTrainingQuantConfig(), batches(), eval_func=lambda _: float("nan"))


class TestIdleOptions:
    @pytest.mark.parametrize("recipe", ["smooth_quant", "fast_bias_correction"])
    def test_what_needs_data_is_idle_where_none_is_looked_at(self, recipe: str) -> None:
        config = PostTrainingQuantConfig(approach="dynamic", recipes={recipe: True})
        with pytest.warns(
            InexactWarning, match=rf"recipes\['{recipe}'\] has no effect: approach='dynamic' looks at no"
        ):
            quantization.fit(small(), config)

    def test_arguments_of_a_recipe_that_is_off(self) -> None:
        config = PostTrainingQuantConfig(recipes={"smooth_quant_args": {"alpha": 0.7}})
        with pytest.warns(
            InexactWarning, match=r"smooth_quant_args'\] has no effect: recipes\['smooth_quant'\] is not"
        ):
            quantization.fit(small(), config, batches())

    def test_the_search_knows_both_spellings_of_inc(self) -> None:
        arguments = {"init_alpha": 0.3, "enable_blockwise_loss": True, "n_samples": 7}
        recipes = {"smooth_quant": True, "smooth_quant_args": {"alpha": "auto", "auto_alpha_args": arguments}}
        spec = PostTrainingQuantConfig(recipes=recipes).to_spec()
        assert spec.smoothing is not None
        assert (spec.smoothing.default_alpha, spec.smoothing.do_blockwise, spec.kept_samples) == (0.3, True, 7)

    @pytest.mark.parametrize("arguments", [{"alpha_min": 0.9, "alpha_max": 0.1}, {"alpha_max": -0.1}])
    def test_a_search_without_candidates_is_refused(self, arguments: dict[str, float]) -> None:
        recipes = {"smooth_quant": True, "smooth_quant_args": {"alpha": "auto", "auto_alpha_args": arguments}}
        with pytest.raises(ConfigError, match=r"recipes.*alpha_m"):
            PostTrainingQuantConfig(recipes=recipes)


class Samples(Dataset[Any]):
    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Any:
        return torch.cat(batches())[index], index % 2


Pair = namedtuple("Pair", ["input", "labels"])

FORMS = {
    "tensor": lambda batch: batch,
    "input and label": lambda batch: (batch, torch.zeros(len(batch))),
    "list": lambda batch: [batch, torch.zeros(len(batch))],
    "tuple of one": lambda batch: (batch,),
    "nested": lambda batch: ((batch,), torch.zeros(len(batch))),
    "dict": lambda batch: {"input": batch, "labels": torch.zeros(len(batch))},
    "user dict": lambda batch: UserDict({"input": batch}),
    "named tuple": lambda batch: Pair(batch, torch.zeros(len(batch))),
    "array": lambda batch: batch.numpy(),
}


class TestData:
    @pytest.mark.parametrize("form", FORMS)
    def test_every_form_of_batch_gives_the_same_model(self, form: str) -> None:
        expected = quantization.fit(small(), PostTrainingQuantConfig(), batches())
        data = [FORMS[form](batch) for batch in batches()]
        assert_same(quantization.fit(small(), PostTrainingQuantConfig(), data), expected)
        assert_same(quantization.fit(small(), PostTrainingQuantConfig(), iter(data)), expected)

    def test_a_loader_that_drops_the_last_samples(self) -> None:
        loader = DataLoader(Samples(), batch_size=8, drop_last=True)
        expected = quantization.fit(small(), PostTrainingQuantConfig(), batches(3))
        assert_same(quantization.fit(small(), PostTrainingQuantConfig(), loader), expected)

    def test_a_loader_of_accelerate(self) -> None:
        accelerate = pytest.importorskip("accelerate")
        loader = accelerate.Accelerator(cpu=True).prepare(DataLoader(Samples(), batch_size=8, drop_last=True))
        expected = quantization.fit(small(), PostTrainingQuantConfig(), batches(3))
        assert_same(quantization.fit(small(), PostTrainingQuantConfig(), loader), expected)

    def test_empty_batches_in_between_change_nothing(self) -> None:
        nothing = torch.zeros(0, 8)
        expected = quantization.fit(small(), PostTrainingQuantConfig(recipes=FOLDED), batches(2))
        data = [nothing, batches()[0], nothing, batches()[1], nothing]
        assert_same(quantization.fit(small(), PostTrainingQuantConfig(recipes=FOLDED), data), expected)

    def test_the_same_metric_object_serves_twice(self) -> None:
        class Share:
            def reset(self) -> None:
                self.right = self.count = 0

            def update(self, preds: torch.Tensor, labels: torch.Tensor) -> None:
                self.right += int((preds.argmax(1) == labels).sum())
                self.count += len(labels)

            def result(self) -> float:
                return self.right / self.count

        model, metric = small(), Share()
        labelled = [(batch, model(batch).argmax(1)) for batch in batches()]
        config = PostTrainingQuantConfig(accuracy_criterion=AccuracyCriterion(tolerable_loss=0.2))
        for _ in range(2):
            assert quantization.fit(model, config, batches(), eval_dataloader=labelled, eval_metric=metric) is not None
        assert metric.count == 32

    def test_a_hugging_face_model_with_labels(self) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        model = transformers.BertForSequenceClassification(config).eval()
        rows = {"input_ids": torch.randint(0, 20, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.long)}
        data = [transformers.BatchEncoding({**rows, "labels": torch.tensor([0, 1, 0, 1])})]
        quantized = quantization.fit(
            model,
            PostTrainingQuantConfig(accuracy_criterion=AccuracyCriterion(tolerable_loss=1.0)),
            data,
            eval_dataloader=data,
            eval_metric={"topk": 1},
        )
        error = (quantized(**rows).logits - model(**rows).logits).abs().max()
        assert error < 0.05 * model(**rows).logits.abs().max() + 0.01

    def test_distributed_ranks_do_not_wait_for_each_other(self) -> None:
        assert run_world(_fit_on_the_first_rank, 2, timeout=60) == [2, 0]


def _fit_on_the_first_rank() -> int:
    if torch.distributed.get_rank() > 0:
        return 0
    recipes = {**FOLDED, "fast_bias_correction": True}
    return len(int8_tensors(quantization.fit(small(), PostTrainingQuantConfig(recipes=recipes), batches())))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embedding(ids)))


class Named(nn.Module):
    """Calls by keyword, one layer under two names, and a layer twice with different tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.again = self.first
        self.spread = nn.ConvTranspose1d(1, 5, 3)
        self.register_buffer("offset", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(input=10 * self.first(input=x) + self.offset)
        return self.spread(output_size=[10], input=x.unsqueeze(1))


class TestModels:
    @pytest.mark.parametrize("approach", ["static", "dynamic"])
    @pytest.mark.parametrize("recipes", [{}, FOLDED])
    def test_tied_weights(self, approach: str, recipes: dict[str, Any]) -> None:
        model, ids = Tied(), torch.arange(12)
        config = PostTrainingQuantConfig(approach=approach, recipes=recipes if approach == "static" else {})
        quantized = quantization.fit(model, config, [ids])
        assert torch.equal(quantized.embedding.qweight, quantized.head.qweight)
        assert model.head.weight is model.embedding.weight
        assert (quantized(ids) - model(ids)).abs().max() < 0.05 * model(ids).abs().max()

    def test_a_tie_with_a_float_layer_is_a_tie_no_more(self) -> None:
        model = Tied()
        config = PostTrainingQuantConfig(recipes={"last_conv_or_matmul_quantization": False})
        quantized = quantization.fit(model, config, [torch.arange(12)])
        assert torch.equal(quantized.head.weight, model.head.weight)
        assert quantized.head.weight is not model.head.weight

    @pytest.mark.parametrize("recipes", [{}, FOLDED])
    def test_keywords_shared_modules_and_repeated_calls(self, recipes: dict[str, Any]) -> None:
        model, data = Named(), batches()
        rule = {".*": {"activation": {"algorithm": "minmax"}}}
        quantized = quantization.fit(model, PostTrainingQuantConfig(recipes=recipes, op_type_dict=rule), data)
        assert quantized.first is quantized.again
        inputs = torch.cat([*data, *(10 * model.first(batch) + 1 for batch in data)])
        span = inputs.max() - inputs.min()
        if not recipes:
            assert quantized.first.input_scale.item() == pytest.approx(span.item() / 255)
        assert (quantized(data[0]) - model(data[0])).abs().max() < 0.05 * model(data[0]).abs().max()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_float_types(self, dtype: torch.dtype) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(128, 4)).to(dtype)
        data = [torch.randn(4, 3, 4, 4, dtype=dtype) for _ in range(3)]
        recipes = {"smooth_quant": True, "fast_bias_correction": True, "weight_correction": True}
        quantized = quantization.fit(model, PostTrainingQuantConfig(recipes=recipes), data)
        assert quantized(data[0]).dtype == dtype
        assert (quantized(data[0]) - model(data[0])).abs().max() < 0.05 * model(data[0]).abs().max()

    @pytest.mark.parametrize("form", ["unbatched", "channels last"])
    def test_forms_of_images(self, form: str) -> None:
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Conv2d(4, 2, 3, dilation=2)
        )
        data = torch.randn(4, 3, 9, 9)
        given = list(data) if form == "unbatched" else [data.to(memory_format=torch.channels_last)]
        config = PostTrainingQuantConfig(recipes={**FOLDED, "fast_bias_correction": True})
        quantized, expected = (quantization.fit(model, config, samples) for samples in (given, [data]))
        state = expected.state_dict()
        assert all(torch.allclose(tensor, state[name], atol=1e-5) for name, tensor in quantized.state_dict().items())

    def test_a_compiled_model_is_quantized_inside(self) -> None:
        compiled = torch.compile(small(), backend="eager")
        quantized = quantization.fit(compiled, PostTrainingQuantConfig(recipes=FOLDED), batches())
        assert_same(quantized, quantization.fit(small(), PostTrainingQuantConfig(recipes=FOLDED), batches()))

    @pytest.mark.parametrize("recipes", [{}, FOLDED])
    def test_a_compiled_part_is_calibrated_as_it_is_written(self, recipes: dict[str, Any]) -> None:
        model = nn.Sequential(torch.compile(small(), backend="eager"), nn.Linear(4, 2))
        plain = nn.Sequential(small(), copy.deepcopy(model[1]))
        model(batches()[0])
        config = PostTrainingQuantConfig(recipes=recipes)
        expected = quantization.fit(plain, config, batches()).state_dict()
        state = quantization.fit(model, config, batches()).state_dict()
        assert {name.replace("_orig_mod.", "") for name in state} == expected.keys()
        assert all(torch.equal(tensor, expected[name.replace("_orig_mod.", "")]) for name, tensor in state.items())

    def test_pruned_weights_stay_zero_and_the_report_says_who_pruned_them(self) -> None:
        manager = prepare_compression(
            small(),
            WeightPruningConfig([{"target_sparsity": 0.5, "pattern": "1x1", "start_step": 0, "end_step": 1}]),
        )
        manager.callbacks.on_train_begin()
        optimizer = torch.optim.SGD(manager.model.parameters(), lr=0.1)
        for step in range(3):
            manager.callbacks.on_step_begin(step)
            manager.model(batches()[0]).sum().backward()
            manager.callbacks.on_before_optimizer_step()
            optimizer.step()
            manager.callbacks.on_after_optimizer_step()
            optimizer.zero_grad()
            manager.callbacks.on_step_end()
        manager.callbacks.on_train_end()
        recipes = {"smooth_quant": True, "weight_correction": True}
        quantized = quantization.fit(manager.model, PostTrainingQuantConfig(recipes=recipes), batches())
        zeros = manager.model[0].weight == 0
        assert zeros.float().mean() == 0.5
        assert not quantized[0].qweight[zeros].any()
        row = next(row for row in quantized.report().modules if row.name == "0")
        assert "50% 1x1" in str(quantized.report())
        assert (row.bits, row.scheme, row.notes) == (8, "w8a8-static", ("smoothed, alpha 0.5",))


PLAIN = {"approach": "post_training_static_quant"}
RECIPES = VECTORS["config_defaults"]["PostTrainingQuantConfig.recipes after construction"]


def plain(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return list(map(plain, value))
    return dict(value) if hasattr(value, "items") else value  # type: ignore[call-overload]


class TestConfigurations:
    @pytest.mark.parametrize("kind", [PostTrainingQuantConfig, QuantizationAwareTrainingConfig])
    def test_every_default_and_the_order_are_those_of_inc(self, kind: Any) -> None:
        expected = dict(VECTORS["config_defaults"][kind.__name__])
        config = kind()
        names = list(kind.__dataclass_fields__)
        assert names[: len(expected)] == list(expected)
        for name, value in expected.items():
            if name.endswith("_criterion"):
                assert type(getattr(config, name))() == getattr(config, name)
            elif name == "recipes":
                assert plain(config.recipes) == {key: tuple(v) if v == [] else v for key, v in RECIPES.items()}
            elif name.endswith("_dict"):
                assert not getattr(config, name)
            else:
                assert plain(getattr(config, name)) == PLAIN.get(name, value)

    @pytest.mark.parametrize("kind", [TuningCriterion, AccuracyCriterion])
    def test_criteria_have_the_defaults_of_inc(self, kind: Any) -> None:
        for name, value in VECTORS["config_defaults"][kind.__name__].items():
            assert plain(getattr(kind(), name)) in (value, [value], value or {})

    def test_all_keys_as_a_script_of_inc_gives_them(self) -> None:
        shared = TuningCriterion(timeout=0, max_trials=100)
        config = PostTrainingQuantConfig(
            backend="default",
            inputs="image",
            outputs="a,b",
            device="cpu",
            approach="static",
            calibration_sampling_size=[1000, 2000],
            op_name_dict={"layer1.0.conv1": {"activation": {"dtype": ["fp32"]}, "weight": {"dtype": ["fp32"]}}},
            strategy="basic",
            objective="performance",
            performance_only=False,
            tuning_criterion=shared,
            accuracy_criterion=AccuracyCriterion(tolerable_loss=0.01),
        )
        assert (config.inputs, config.outputs, config.calibration_sampling_size) == (("image",), ("a,b",), (1000, 2000))
        assert config.tuning_criterion == shared
        assert config.replace(max_trials=7).tuning_criterion.max_trials == 7
        assert shared.max_trials == 100

    def test_it_survives_json_and_yaml(self, tmp_path: Path) -> None:
        config = PostTrainingQuantConfig(
            approach="auto",
            calibration_sampling_size=[30, 40],
            op_type_dict={"Conv2d": {"weight": {"bits": 4}, "activation": {"algorithm": "percentile"}}},
            recipes={"smooth_quant": True, "smooth_quant_args": {"alpha": [0.2, 0.8], "folding": True}},
            excluded_precisions=["bf16"],
            accuracy_criterion=AccuracyCriterion(tolerable_loss=0.5),
            timeout=3,
        )
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps(config.to_dict()))  # JSON is YAML
        assert read_configs(path) == [config]
        assert config.replace(approach="static").replace(approach="auto") == config
