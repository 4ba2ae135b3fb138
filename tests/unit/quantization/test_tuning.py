"""`quantization.fit` as a search: what is tried, what is returned, and what the caller's model and data go through."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inc_torch import AccuracyCriterion, PostTrainingQuantConfig, TuningCriterion, load, quantization
from inc_torch.config import options
from inc_torch.core.errors import ConfigError, GoalMissedError, GoalMissedWarning, InexactWarning, ModelError
from inc_torch.export import attached_report
from inc_torch.objective import OBJECTIVES, Objective, objective_custom_registry
from inc_torch.quantizers import is_graph
from inc_torch.tuning import (
    STRATEGIES,
    Mode,
    PlannedStrategy,
    Recipe,
    SampledStrategy,
    Search,
    Space,
    Stage,
    Stages,
    TuningResult,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "quantization.json").read_text())
CASES = VECTORS["trial_orders"]["cases"]
FP32 = {"weight": {"dtype": "fp32"}}
NO_BF16 = {"excluded_precisions": ["bf16"]}

pytestmark = pytest.mark.filterwarnings("ignore::inc_torch.core.errors.GoalMissedWarning")


@pytest.fixture(autouse=True)
def _bfloat16_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same choices on every processor."""
    monkeypatch.setenv("FORCE_BF16", "1")


# --------------------------------------------------------------------------------------------- models and data


class M2(nn.Module):
    """``M2`` of the vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


class M3(nn.Module):
    """``M3`` of the vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(256, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.fc1(torch.relu(self.conv(x)).flatten(1))))


class Sides(nn.Module):
    """Two layers that read the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.second(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))) + x)


class Residual(nn.Module):
    """A graph with folded normalizations, and tensors that several layers and sums read in int8."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.first, self.second, self.side = Block(), Block(), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(torch.relu(self.norm(self.stem(x))))
        return self.head((self.second(x) + self.side(x)).mean((2, 3)))


class Sequences(nn.Module):
    """Tables, a recurrent layer without an int8 version, and linear layers of which one is tied to the table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.rnn = nn.Embedding(32, 8), nn.LSTM(8, 8)
        self.middle, self.output = nn.Linear(8, 8), nn.Linear(8, 32, bias=False)
        self.output.weight = self.table.weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.output(torch.relu(self.middle(self.rnn(self.table(input_ids))[0])))


def tiny_bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=8,
        )
    )


def tiny_llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.3,
            use_cache=False,
        )
    )


def vectors(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 8, generator=generator) for _ in range(count)]


def images(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(count)]


def tokens(count: int = 4) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 32, (4, 6), generator=generator)} for _ in range(count)]


def output(model: Any, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        result = model(**batch) if isinstance(batch, dict) else model(batch)
    found: torch.Tensor = getattr(result, "logits", result)
    return found


# --------------------------------------------------------------------------------------------- searches


class Script:
    """An ``eval_func`` that is told its answers, the first that of the float model, and keeps outputs on a batch."""

    def __init__(self, scores: Iterable[float], batch: Any = None) -> None:
        self._scores, self._batch = iter(scores), batch
        self.outputs: list[torch.Tensor] = []
        self.calls = 0

    def __call__(self, model: nn.Module) -> float:
        self.calls += 1
        if self._batch is not None:
            self.outputs.append(output(model, self._batch))
        return next(self._scores)


def missing(trials: int = 200) -> list[float]:
    """Scores of a search that never meets its goal."""
    return [1.0] + [0.5] * trials


def fitted(model: nn.Module, scores: Iterable[float], data: Any = None, *, inplace: bool = False, **config: Any) -> Any:
    return quantization.fit(model, PostTrainingQuantConfig(**config), data, eval_func=Script(scores), inplace=inplace)


def tried(result: TuningResult) -> list[str]:
    """The recipes of all trials in the words of the vectors, operations in order."""
    return [in_words(trial.recipe.labels) for trial in result.trials]


def in_words(labels: Iterable[str]) -> str:
    return " ".join(_WORDS.get(label, label.replace("int8 ", "s:")) for label in labels)


_WORDS = {"int8 dynamic asym": "d:asym/minmax", "int8 rows": "rows"}


@pytest.fixture
def strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    for registry in (STRATEGIES, OBJECTIVES):
        registry.names()
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


Proposal = Callable[[Space], Sequence[Recipe]]


def propose(recipes: Proposal, name: str = "listed") -> dict[str, Any]:
    """Options of a search that tries just these recipes; needs the fixture ``strategies``."""

    @STRATEGIES.register(name, summary="what a test asks for")
    class Listed(PlannedStrategy):
        def stages(self, search: Search) -> Stages:
            yield Stage(list(recipes(search.space)))

    return {"strategy": name}


def mixed(seed: int, count: int = 3) -> Proposal:
    """Different recipes, in which each operation is computed in any way."""

    def recipes(space: Space) -> list[Recipe]:
        chance = random.Random(seed)
        found: dict[Recipe, None] = {}
        while len(found) < count:
            labels = tuple(chance.choice(operation.choices).label for operation in space.operations)
            samples, alpha = (chance.choice(values or (None,)) for values in (space.samples, space.alphas))
            found[Recipe(labels, samples, alpha)] = None
        return list(found)

    return recipes


def fallen_back(space: Space, names: Sequence[str], mode: Mode) -> list[Recipe]:
    return [space.fallen_back(space.default, names, mode)]


# --------------------------------------------------------------------------------------------- orders

LEVEL_1: dict[str, Any] = {"quant_level": 1, **NO_BF16}
ABSOLUTE_LOSS = AccuracyCriterion(higher_is_better=False, criterion="absolute", tolerable_loss=0.1)
SIZES = [16, 32]

AS_INC: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "basic/nobf16": (M3, LEVEL_1),
    "basic/bf16": (M3, {"quant_level": 1}),
    "basic/varied": (M3, LEVEL_1),
    "auto": (M3, NO_BF16),
    "exhaustive": (M2, {"strategy": "exhaustive", **NO_BF16}),
    "cons/both_meet": (M3, {"quant_level": 0, **NO_BF16}),
    "auto/first_meet": (M3, NO_BF16),
    "auto/cons_stage_meets_linear_only": (M3, NO_BF16),
    "auto/max_trials1": (M3, {"max_trials": 1, **NO_BF16}),
    "basic/relative_edge": (M3, LEVEL_1),
    "basic/relative_below": (M3, {"max_trials": 2, **LEVEL_1}),
    "basic/abs_hib_false_ok": (M3, {"accuracy_criterion": ABSOLUTE_LOSS, **LEVEL_1}),
    "basic/approach_dynamic": (M2, {"approach": "dynamic", **LEVEL_1}),
    "basic/two_calibration_sizes": (M2, {"calibration_sampling_size": SIZES, **LEVEL_1}),
    "mse_v2": (M2, {"strategy": "mse_v2", **NO_BF16}),
}
"""Recorded searches of INC: the model, and how ours is asked for the same one."""

QUIRKS = {
    "random": "one recipe again and again",
    "hawq_v2": "starts from another recipe than the default",
    "mse/M3": "fails",
    "cons/equal_target": "a score on the target is not enough",
    "auto/basic_stage_meets": "the first recipe again, with a score of its own",
    "basic/neg_acc_relative": "the goal of a negative baseline is above it",
    "basic/neg_acc_relative2": "the goal of a negative baseline is above it",
    "basic/timeout_large_max3": "the fastest of equal models, by chance",
    "mse_v2/meet": "order by the errors of other random data",
    "mse_v2/meet2": "order by the errors of other random data",
    "mse_v2/max_trials_3": "the third is the second again",
    "no_quantizable_op": "nothing to choose, and yet a search",
}
"""Recorded searches that ours does not follow, and why; most have a test of their own."""


def recorded(name: str) -> list[tuple[str, int | None, float]]:
    """What INC tried, each recipe once, with the number of samples and the score."""
    case = CASES[name]
    sizes = case.get("calibration_sampling_size") or [None] * len(case["trials"])
    found: dict[tuple[str, int | None], float] = {}
    for trial, size, score in zip(case["trials"], sizes, case["evals"][1:], strict=False):
        found.setdefault((" ".join(trial.values()), size), score)
    return [(*key, score) for key, score in found.items()]


class TestOrders:
    def test_every_recorded_search_is_looked_at(self) -> None:
        assert {*AS_INC, *QUIRKS} == set(CASES)

    @pytest.mark.parametrize("name", sorted(AS_INC.keys() - {"basic/bf16"}))
    def test_trials_come_in_the_order_of_inc(self, name: str) -> None:
        build, config = AS_INC[name]
        trials = recorded(name)
        scores = [CASES[name]["evals"][0], *(score for _, _, score in trials)]
        model = fitted(build(), scores, images() if build is M3 else vectors(), **config)
        assert tried(model.tuning) == [labels for labels, _, _ in trials]
        assert [trial.score for trial in model.tuning.trials] == scores[1:]
        sizes = [size for _, size, _ in trials if size is not None]
        assert [trial.recipe.samples for trial in model.tuning.trials if sizes] == sizes
        assert model.tuning.best.is_met == (CASES[name]["returned"] is not None)

    def test_convolutions_compute_in_bfloat16_too_and_all_else_is_as_in_inc(self) -> None:
        trials = tried(fitted(M3(), missing(), images(), quant_level=1).tuning)
        assert [labels for labels in trials if not labels.startswith("bf16")] == [
            labels for labels, _, _ in recorded("basic/bf16")
        ]
        assert [labels for labels in trials if labels.startswith("bf16")] == [
            "bf16 s:sym/minmax s:sym/minmax",
            "bf16 bf16 bf16",
        ]

    def test_a_score_on_the_target_keeps_a_kind_of_operation(self) -> None:
        model = fitted(M3(), [1.0, 0.99, 0.99], images(), quant_level=0, **NO_BF16)
        assert tried(model.tuning) == ["s:asym/kl fp32 fp32", "s:asym/kl s:asym/kl s:asym/kl"]
        assert model.tuning.best.number == 2

    def test_auto_is_dynamic_before_anything_falls_back(self) -> None:
        model = fitted(M2(), missing(), vectors(), approach="auto", **LEVEL_1)
        assert tried(model.tuning) == [
            "s:asym/kl s:asym/kl",
            "s:asym/minmax s:asym/minmax",
            "s:sym/kl s:sym/kl",
            "s:sym/minmax s:sym/minmax",
            "d:asym/minmax d:asym/minmax",
            "d:asym/minmax fp32",
            "fp32 d:asym/minmax",
            "fp32 fp32",
        ]

    def test_feed_forward_blocks_of_bert_fall_back_first_as_in_inc(self) -> None:
        model = fitted(tiny_bert(), missing(), tokens(), max_trials=14, **LEVEL_1)
        names = [operation.name for operation in model.tuning.space.operations if operation.kind == "Linear"]
        steps = []
        for trial in model.tuning.trials:
            labels = {one.name: choice.label for one, choice in model.tuning.space.chosen(trial.recipe)}
            in_int8 = {labels[name] for name in names} - {"fp32"}
            steps.append((in_words(in_int8), sorted(name for name in names if labels[name] == "fp32")))
        expected = [
            (
                "s:" + "/".join(step["int8_linear_cfg"].split("/")[4:6]),
                sorted(name.partition("|")[0].removesuffix(".module") for name in step["fp32_ops"]),
            )
            for step in VECTORS["trial_orders"]["tiny_bert_basic"]
        ]
        assert len(names) == 14
        assert steps[:13] == [expected[0], *expected[2:]]  # the second is the first again

    def test_the_default_of_hawq_is_that_of_all_and_the_greatest_trace_falls_back_first(self) -> None:
        labelled = [(batch, torch.arange(8) % 4) for batch in vectors()]
        model = fitted(M2(), missing(), labelled, strategy="hawq_v2", **NO_BF16)
        assert tried(model.tuning) == ["s:asym/kl s:asym/kl", "s:asym/kl fp32", "fp32 fp32"]

    def test_what_meets_the_goal_in_the_last_step_of_auto_ends_it(self) -> None:
        model = fitted(M3(), [1.0, 0.5, 0.5, 0.5, 0.999], images(), **NO_BF16)
        assert tried(model.tuning)[3:] == ["s:asym/kl s:asym/minmax s:asym/minmax"]
        assert model.tuning.reason == "trial 4 meets the goal"

    @pytest.mark.parametrize("coarse", ["first", "second"])
    def test_the_greatest_error_falls_back_first(self, coarse: str) -> None:
        rules = {coarse: {"weight": {"bits": 2}}}
        model = fitted(Sides(), missing(), vectors(), strategy="mse", op_name_dict=rules, **NO_BF16)
        alone = [names for names in changed(model.tuning) if len(names) == 1]
        assert alone == [[coarse], *([name] for name in ("first", "second") if name != coarse)]

    def test_random_tries_nothing_twice_and_ends_when_all_was_tried(self) -> None:
        rule = {"Linear": {"activation": {"algorithm": ["kl", "minmax"], "scheme": "asym"}}}
        model = fitted(M2(), missing(), vectors(), strategy="random", op_type_dict=rule, **NO_BF16)
        assert len(model.tuning.trials) == len(set(tried(model.tuning))) == 9
        assert model.tuning.reason == "everything was tried"

    def test_equal_seeds_try_equal_recipes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        orders = []
        for seed in (1, 1, 2):
            monkeypatch.setattr(options, "random_seed", seed)
            orders.append(tried(fitted(M2(), missing(), vectors(), strategy="tpe", max_trials=6).tuning))
        assert orders[0] == orders[1] != orders[2]

    def test_a_model_with_nothing_to_quantize_is_refused_before_it_is_evaluated(self) -> None:
        with pytest.raises(ConfigError, match="leave all of Sequential in float"):
            fitted(nn.Sequential(nn.ReLU()), [], vectors())


def changed(result: TuningResult) -> list[list[str]]:
    """Of each trial the operations that it leaves in float."""
    floats = (Mode.BFLOAT16, Mode.FLOAT32)
    return [[one.name for one in result.space.in_modes(trial.recipe, *floats)] for trial in result.trials]


# --------------------------------------------------------------------------------------------- models

SMOOTHED = {"smooth_quant": True, "smooth_quant_args": {"alpha": [0.3, 0.7]}}
FOLDED = {"smooth_quant": True, "smooth_quant_args": {"alpha": [0.3, 0.7], "folding": True}}
CORRECTED = {"fast_bias_correction": True, "weight_correction": True}
ENDS = {"first_conv_or_matmul_quantization": False, "last_conv_or_matmul_quantization": False}
BITS = {"Linear": {"weight": {"bits": [4, 8], "group_size": [4, -1]}}}

MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any] | None, dict[str, Any]]] = {
    "graph": (Residual, images, {}),
    "graph, auto": (Residual, images, {"approach": "auto"}),
    "graph, corrected, two sizes": (
        Residual,
        images,
        {"recipes": CORRECTED, "calibration_sampling_size": SIZES, "reduce_range": True},
    ),
    "graph, folded": (Residual, images, {"recipes": FOLDED}),
    "layers": (Residual, images, {"graph": "off"}),
    "bert": (tiny_bert, tokens, {"approach": "auto"}),
    "bert, dynamic": (tiny_bert, None, {"approach": "dynamic"}),
    "bert, weights alone": (tiny_bert, None, {"approach": "weight_only", "op_type_dict": BITS}),
    "llama, smoothed": (tiny_llama, tokens, {"recipes": SMOOTHED}),
    "llama, folded": (tiny_llama, tokens, {"recipes": FOLDED, "calibration_sampling_size": [4, 12]}),
    "llama, corrected": (tiny_llama, tokens, {"recipes": CORRECTED | ENDS}),
    "sequences": (Sequences, tokens, {"approach": "auto"}),
    "sequences, float32": (Sequences, tokens, NO_BF16),
}


def probe(build: Callable[[], nn.Module]) -> Any:
    return (images if build is Residual else tokens)(1)[0]


@pytest.mark.usefixtures("strategies")
class TestTheModelThatIsReturned:
    """Trials are recipes by chance; the last one meets the goal."""

    @pytest.mark.parametrize(("inplace", "seed"), [(False, 0), (True, 1)], ids=["copy", "in place"])
    @pytest.mark.parametrize("name", MODELS)
    def test_it_is_the_model_that_was_scored(self, name: str, inplace: bool, seed: int) -> None:
        build, data, config = MODELS[name]
        batch, model = probe(build), build().eval()
        in_float = output(model, batch)
        script = Script([1.0, 0.5, 0.5, 1.0], batch)
        conf = PostTrainingQuantConfig(**config, **propose(mixed(seed)))
        found: Any = quantization.fit(model, conf, data and data(), eval_func=script, inplace=inplace)
        assert (found is model) == inplace
        assert found.tuning.best.number == 3
        assert torch.equal(output(found, batch), script.outputs[3])
        assert torch.equal(script.outputs[0], in_float)
        assert not torch.equal(script.outputs[3], script.outputs[1])
        assert F.cosine_similarity(script.outputs[3].flatten(), in_float.flatten(), dim=0) > 0.98

    @pytest.mark.parametrize("winner", [1, 2, 3])
    def test_it_is_any_of_them(self, winner: int) -> None:
        batch = images()[0]
        script = Script([1.0, *(0.8 if number == winner else 0.5 for number in (1, 2, 3))], batch)
        conf = PostTrainingQuantConfig(**propose(mixed(3)))
        found: Any = quantization.fit(Residual().eval(), conf, images(), eval_func=script)
        assert is_graph(found)
        assert [torch.equal(output(found, batch), given) for given in script.outputs[1:]] == [
            number == winner for number in (1, 2, 3)
        ]

    @pytest.mark.parametrize("name", ["graph", "bert", "bert, weights alone", "llama, corrected", "sequences"])
    def test_what_is_all_in_float32_computes_what_the_float_model_does(self, name: str) -> None:
        build, data, config = MODELS[name]
        model, batch = build().eval(), probe(build)
        in_float = propose(lambda space: [space.of({one.name: one.choices[-1] for one in space.operations})])
        found = fitted(model, [1.0, 1.0], data and data(), **{**config, **NO_BF16}, **in_float)
        assert set(found.tuning.best.recipe.labels) == {"fp32"}
        if build in (Residual, tiny_bert):  # others have modules that no recipe takes out of int8, or ends
            assert torch.equal(output(found, batch), output(model, batch))
        assert not {id(p) for p in found.parameters()} & {id(p) for p in model.parameters()}

    def test_one_convolution_in_float_leaves_its_neighbours_in_int8(self) -> None:
        names = ["stem", "first.conv1", "first.conv2", "second.conv2", "side", "head"]
        batch = images()[0]
        exact = output(Residual().eval(), batch)
        for name, mode in zip(names, itertools.cycle((Mode.BFLOAT16, Mode.FLOAT32)), strict=False):
            alone = propose(partial(fallen_back, names=[name], mode=mode), f"{name} in {mode}")
            found = fitted(Residual().eval(), [1.0, 1.0], images(), **alone)
            kinds = {one.name: type(found.get_submodule(one.name)).__name__ for one in found.tuning.space.operations}
            assert [one for one, kind in kinds.items() if not kind.startswith("Int8")] == [name]
            dtype = torch.bfloat16 if mode is Mode.BFLOAT16 else torch.float32
            assert found.get_submodule(name).weight.dtype is dtype
            assert F.cosine_similarity(output(found, batch).flatten(), exact.flatten(), dim=0) > 0.999

    def test_the_default_recipe_scores_what_it_does_without_a_search(self) -> None:
        labelled = [(batch, output(M3(), batch).argmax(1)) for batch in images()]
        plain = quantization.fit(M3(), PostTrainingQuantConfig(), images())
        rate = sum((output(plain, batch).argmax(1) == truth).float().mean().item() for batch, truth in labelled) / 4
        conf = PostTrainingQuantConfig(max_trials=1)
        searched: Any = quantization.fit(M3(), conf, images(), eval_dataloader=labelled, eval_metric={"topk": 1})
        assert searched.tuning.trials[0].score == pytest.approx(rate)
        assert torch.equal(output(searched, images()[0]), output(plain, images()[0]))

    def test_layer_by_layer_from_files(self, tmp_path: Path) -> None:
        from inc_torch.huggingface import load_empty_model

        tiny_llama().save_pretrained(tmp_path)
        script = Script([1.0, 0.5, 1.0], tokens()[0])
        config = PostTrainingQuantConfig(recipes={"layer_wise_quant": True}, **NO_BF16, **propose(mixed(1, 2)))
        empty = load_empty_model(tmp_path)
        found: Any = quantization.fit(empty, config, tokens(), eval_func=script)
        assert torch.equal(output(found, tokens()[0]), script.outputs[2])
        assert all(parameter.is_meta for parameter in empty.parameters())
        assert not any(parameter.is_meta for parameter in found.parameters())

    def test_a_trial_that_is_kept_by_its_evaluation_stays_what_it_was(self) -> None:
        seen: list[tuple[nn.Module, torch.Tensor]] = []

        def score(model: nn.Module) -> float:
            seen.append((model, output(model, images()[0])))
            return 1.0 if len(seen) in (1, 4) else 0.5

        quantization.fit(Residual().eval(), PostTrainingQuantConfig(**propose(mixed(1))), images(), eval_func=score)
        assert all(torch.equal(output(model, images()[0]), given) for model, given in seen)


class State:
    """All of a model that somebody could notice to have changed."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = self._now()

    def _now(self) -> dict[str, Any]:
        named = dict(self.model.named_modules())
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {
            "classes": [type(module) for module in named.values()],
            "attributes": [sorted(vars(module)) for module in named.values()],
            "names": list(named),
            "modes": [module.training for module in named.values()],
            "hooks": [[*module._forward_hooks, *module._forward_pre_hooks] for module in named.values()],
            "tensors": {name: (id(tensor), tensor.dtype, tensor.requires_grad) for name, tensor in tensors.items()},
            "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
            "gradients": {name: (id(tensor.grad), copy.deepcopy(tensor.grad)) for name, tensor in tensors.items()},
        }

    def assert_unchanged(self) -> None:
        now = self._now()
        for key in ("classes", "attributes", "names", "modes", "hooks", "tensors"):
            assert now[key] == self.before[key], key
        for name, value in self.before["values"].items():
            assert torch.equal(now["values"][name], value), name
        for name, (identity, gradient) in self.before["gradients"].items():
            assert now["gradients"][name][0] == identity, name
            assert gradient is None or torch.equal(now["gradients"][name][1], gradient), name


def in_use(build: Callable[[], nn.Module]) -> nn.Module:
    """A model amid its training: gradients, modes of its own, a hook, something frozen."""
    model = build().train()
    batch = probe(build)
    result: Any = model(**batch) if isinstance(batch, dict) else model(batch)
    getattr(result, "logits", result).square().mean().backward()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    layers[0].eval()
    layers[-1].register_forward_hook(lambda *_: None)
    layers[0].weight.requires_grad_(False)
    return model


class Interrupted:
    """An ``eval_func`` during which something happens, in the trial of this number; 0 is the float model."""

    def __init__(self, number: int, error: type[BaseException]) -> None:
        self.calls, self.number, self.error = 0, number, error

    def __call__(self, model: nn.Module) -> float:
        self.calls += 1
        if self.calls > self.number:
            raise self.error
        return 1.0 if self.calls == 1 else 0.5


@pytest.mark.usefixtures("strategies")
class TestTheModelOfTheCaller:
    @pytest.mark.parametrize("name", MODELS)
    def test_nothing_of_it_changes(self, name: str) -> None:
        build, data, config = MODELS[name]
        model = in_use(build)
        state = State(model)
        found = fitted(model, [1.0, 0.5, 0.5, 0.5], data and data(), **config, **propose(mixed(2)))
        state.assert_unchanged()
        assert not {id(p) for p in found.parameters()} & {id(p) for p in model.parameters()}

    @pytest.mark.parametrize("strategy", ["hawq_v2", "mse", "mse_v2"])
    def test_what_a_strategy_measures_changes_nothing_of_it(self, strategy: str) -> None:
        model = in_use(Residual)
        state = State(model)
        labelled = [(batch, torch.arange(8) % 5) for batch in images(2)]
        limits = {"strategy": strategy, "max_trials": 8, "objective": "modelsize"}
        rules = {".*conv.*": {"weight": {"dtype": "fp32"}}}
        found = fitted(model, missing(), labelled, op_name_dict=rules, **limits, **NO_BF16)
        state.assert_unchanged()
        assert any(changed(found.tuning))

    @pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
    @pytest.mark.parametrize("number", [0, 2])
    @pytest.mark.parametrize("name", ["graph", "bert", "bert, weights alone"])
    def test_nothing_of_it_has_changed_after_an_error_of_the_evaluation(
        self, name: str, number: int, inplace: bool
    ) -> None:
        build, data, config = MODELS[name]
        model = in_use(build)
        state = State(model)
        conf = PostTrainingQuantConfig(**config, **propose(mixed(2)))
        with pytest.raises(ZeroDivisionError):
            quantization.fit(
                model, conf, data and data(), eval_func=Interrupted(number, ZeroDivisionError), inplace=inplace
            )
        state.assert_unchanged()

    @pytest.mark.parametrize("number", [0, 1])
    def test_ctrl_c_before_any_trial_is_through_rises(self, number: int) -> None:
        model = in_use(Residual)
        state = State(model)
        with pytest.raises(KeyboardInterrupt):
            quantization.fit(
                model,
                PostTrainingQuantConfig(),
                images(),
                eval_func=Interrupted(number, KeyboardInterrupt),
                inplace=True,
            )
        state.assert_unchanged()

    def test_ctrl_c_later_gives_the_best_so_far(self) -> None:
        model = in_use(Residual)
        state = State(model)
        found: Any = quantization.fit(
            model, PostTrainingQuantConfig(), images(), eval_func=Interrupted(3, KeyboardInterrupt)
        )
        state.assert_unchanged()
        assert (found.tuning.reason, len(found.tuning.trials)) == ("it was interrupted", 2)

    @pytest.mark.parametrize("on_miss", ["none", "raise"])
    @pytest.mark.parametrize("name", ["graph", "bert, weights alone", "sequences"])
    def test_in_place_nothing_of_it_has_changed_if_there_is_no_model_to_return(self, name: str, on_miss: str) -> None:
        build, data, config = MODELS[name]
        model = in_use(build)
        state = State(model)
        conf = PostTrainingQuantConfig(**config, tuning_criterion=TuningCriterion(on_miss=on_miss, **propose(mixed(2))))
        if on_miss == "raise":
            with pytest.raises(GoalMissedError):
                quantization.fit(model, conf, data and data(), eval_func=Script(missing()), inplace=True)
        else:
            assert quantization.fit(model, conf, data and data(), eval_func=Script(missing()), inplace=True) is None
        state.assert_unchanged()


# --------------------------------------------------------------------------------------------- data


class Loader:
    """Batches that are counted, and can be read once."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches, self.passes, self.read = list(batches), 0, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for batch in self._batches:
            self.read += 1
            yield batch


class TestData:
    @pytest.mark.parametrize("sizes", [[100], [8, 24], [24, 8], [16, 100]])
    def test_calibration_data_are_read_once_whatever_is_tried(self, sizes: list[int]) -> None:
        loader = Loader(vectors(6))
        model = fitted(M2(), missing(), loader, calibration_sampling_size=sizes, **LEVEL_1)
        assert len(model.tuning.trials) == 7 * len(sizes)
        assert (loader.passes, loader.read) == (1, min(6, math.ceil(max(sizes) / 8)))

    def test_a_calibration_function_is_called_once(self) -> None:
        calls: list[int] = []

        def run(model: nn.Module) -> None:
            calls.extend(len(model(batch)) for batch in vectors())

        conf = PostTrainingQuantConfig(**LEVEL_1)
        quantization.fit(M2(), conf, calib_func=run, eval_func=Script(missing()))
        assert calls == [8] * 4

    def test_ranges_are_those_of_so_many_samples(self) -> None:
        data = [torch.full((8, 8), value) for value in (1.0, 3.0, 2.0)]
        scales = {}
        for winner, size in enumerate((8, 24), start=1):
            rule = {"Linear": {"activation": {"algorithm": "minmax", "scheme": "asym"}}}
            scores = [1.0, *(1.0 if number == winner else 0.5 for number in (1, 2))]
            found = fitted(
                M2(), scores, data, strategy="exhaustive", calibration_sampling_size=[8, 24], op_type_dict=rule
            )
            assert found.tuning.best.recipe.samples == size
            scales[size] = found.fc1.input_scale.item() * 255
        assert scales == pytest.approx({8: 1.0, 24: 3.0})

    def test_a_size_that_the_data_do_not_reach_is_no_choice(self) -> None:
        model = fitted(M2(), missing(), vectors(2), calibration_sampling_size=[16, 32, 64], **LEVEL_1)
        assert model.tuning.space.samples == (16,)

    @pytest.mark.parametrize("approach", ["static", "dynamic", "weight_only"])
    def test_each_model_is_evaluated_once_on_all_of_the_data_the_float_model_first(self, approach: str) -> None:
        labelled = Loader([(batch, torch.zeros(8, dtype=torch.int64)) for batch in vectors()])
        conf = PostTrainingQuantConfig(approach=approach, max_trials=3, timeout=1e6, relative=9.0, **LEVEL_1)
        data = vectors() if approach == "static" else None
        model: Any = quantization.fit(M2(), conf, data, eval_dataloader=labelled, eval_metric={"topk": 1})
        assert len(model.tuning.trials) == 3
        assert (labelled.passes, labelled.read) == (4, 16)

    @pytest.mark.parametrize("approach", ["dynamic", "weight_only"])
    def test_what_needs_no_calibration_keeps_batches_to_measure_on(self, approach: str) -> None:
        loader = Loader(vectors(9))
        model = fitted(M2(), missing(), loader, approach=approach, objective="latency", max_trials=1)
        assert (loader.passes, loader.read) == (1, 4)
        assert model.tuning.sensitivity.keys() == {"fc1", "fc2"}
        assert model.tuning.trials[0].objectives["latency"] > 0


# --------------------------------------------------------------------------------------------- goals

COMPARED = VECTORS["accuracy_decisions"]["compare"]
STRICT = [case for case in COMPARED if not case["higher_is_better"] and case["acc"] == case["target"]]
"""On the target where lower is better: INC refuses, we do not."""
NEGATIVE = [case for case in COMPARED if case["baseline"] < 0]


class TestGoals:
    @pytest.mark.parametrize("case", [case for case in COMPARED if case not in NEGATIVE])
    def test_a_search_ends_where_inc_accepts(self, case: dict[str, Any]) -> None:
        names = ("criterion", "tolerable_loss", "higher_is_better")
        criterion = AccuracyCriterion(**{name: case[name] for name in names})
        conf = {"accuracy_criterion": criterion, "max_trials": 1}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InexactWarning)
            model = fitted(M2(), [case["baseline"], case["acc"]], vectors(), **conf)
        goal = model.tuning.goal
        assert goal.target == pytest.approx(case["target"], abs=1e-12)
        assert model.tuning.best.is_met == (case["meets_compare"] or case in STRICT)
        assert criterion.is_met(case["acc"], case["baseline"]) == model.tuning.best.is_met

    def test_a_negative_baseline_may_be_lost_from_too(self) -> None:
        assert [(case["baseline"], case["acc"]) for case in NEGATIVE] == [(-1.0, -1.0)]
        for score, is_met in ((-1.0, True), (-1.01, True), (-1.0101, False)):
            model = fitted(M2(), [-1.0, score], vectors(), max_trials=1)
            assert (model.tuning.goal.target, model.tuning.best.is_met) == (pytest.approx(-1.01), is_met)

    def test_a_metric_says_in_which_direction_scores_get_better(self) -> None:
        data = [(batch, output(M2(), batch) + 0.1) for batch in vectors()]
        conf = PostTrainingQuantConfig(relative=1.0, max_trials=1)
        model: Any = quantization.fit(M2(), conf, vectors(), eval_dataloader=data, eval_metric="MSE")
        goal = model.tuning.goal
        assert not goal.higher_is_better
        assert (goal.baseline, goal.target) == (pytest.approx(0.01), pytest.approx(0.02))
        assert 0.0 < model.tuning.best.score <= goal.target

    @pytest.mark.parametrize("better", [True, False])
    def test_the_best_of_those_that_miss_is_returned(self, better: bool) -> None:
        criterion = AccuracyCriterion(higher_is_better=better)
        conf = {"accuracy_criterion": criterion, "max_trials": 3, **LEVEL_1}
        baseline = 9.0 if better else 0.1
        with pytest.warns(GoalMissedWarning, match=r"The best of 3 trials, an int8 model, scores") as caught:
            model = fitted(M2(), [baseline, 0.5, 0.7, 0.6], vectors(), **conf)
        assert model.tuning.best.number == (2 if better else 1)
        assert f"expected at {'least' if better else 'most'} " in str(caught[0].message)
        assert caught[0].filename == __file__

    def test_of_equal_ones_that_miss_the_first_is_returned(self) -> None:
        assert fitted(M2(), missing(), vectors(), max_trials=3).tuning.best.number == 1

    def test_a_score_that_is_no_number_misses_and_is_the_worst(self) -> None:
        model = fitted(M2(), [1.0, math.nan, -5.0, math.nan], vectors(), max_trials=3, **LEVEL_1)
        assert [trial.is_met for trial in model.tuning.trials] == [False] * 3
        assert model.tuning.best.number == 2

    @pytest.mark.parametrize("baseline", [math.nan, math.inf])
    def test_a_float_model_without_a_score_is_an_error(self, baseline: float) -> None:
        with pytest.raises(ModelError, match=r"M2 scores (nan|inf) in float: expected a finite number"):
            fitted(M2(), [baseline], vectors())

    def test_a_goal_beyond_the_float_model_is_warned_of_before_the_first_trial(self) -> None:
        script = Script([0.8])
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactWarning)
            with pytest.raises(InexactWarning, match=r"scores 0.8000 and misses the goal of 0.8800 itself"):
                quantization.fit(M2(), PostTrainingQuantConfig(relative=-0.1), vectors(), eval_func=script)
        assert script.calls == 1

    def test_none_is_returned_for_a_missed_goal_if_asked_for(self) -> None:
        conf = PostTrainingQuantConfig(tuning_criterion=TuningCriterion(on_miss="none", max_trials=2))
        with pytest.warns(GoalMissedWarning, match="max_trials=2 is reached"):
            assert quantization.fit(M2(), conf, vectors(), eval_func=Script(missing())) is None

    def test_an_error_for_a_missed_goal_has_the_trials(self) -> None:
        conf = PostTrainingQuantConfig(tuning_criterion=TuningCriterion(on_miss="raise", max_trials=2), **LEVEL_1)
        with pytest.raises(GoalMissedError, match="The best of 2 trials") as caught:
            quantization.fit(M2(), conf, vectors(), eval_func=Script([1.0, 0.5, 0.6]))
        result = caught.value.result
        assert isinstance(result, TuningResult)
        assert [trial.score for trial in result.trials] == [0.5, 0.6]
        assert result.sensitivity.keys() == {"fc1", "fc2"}

    @pytest.mark.parametrize("on_miss", ["none", "raise", "best"])
    def test_no_model_is_made_for_good_if_none_is_returned(self, on_miss: str, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[int] = []
        finish = quantization.Job.finished
        monkeypatch.setattr(quantization.Job, "finished", lambda *given: made.append(1) or finish(*given))
        conf = PostTrainingQuantConfig(tuning_criterion=TuningCriterion(on_miss=on_miss, max_trials=1))
        with pytest.raises(GoalMissedError) if on_miss == "raise" else nullcontext():
            quantization.fit(M2(), conf, vectors(), eval_func=Script(missing()))
        assert made == ([1] if on_miss == "best" else [])

    def test_whatever_is_measured_will_do_for_performance_only(self) -> None:
        model = fitted(M2(), [1.0, -7.0], vectors(), performance_only=True)
        assert (model.tuning.best.score, model.tuning.reason) == (-7.0, "trial 1 meets the goal")


# --------------------------------------------------------------------------------------------- limits


class Clock:
    """Time that goes on as it does, and jumps."""

    def __init__(self) -> None:
        self.jumped = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.jumped

    def perf_counter(self) -> float:
        return time.perf_counter() + self.jumped

    def sleep(self, seconds: float) -> None:
        self.jumped += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("tuning._search", "tuner._tune", "tuning.objectives.performance"):
        monkeypatch.setattr(f"inc_torch.{module}.time", clock)
    return clock


class TestLimits:
    def test_the_greatest_number_of_trials(self) -> None:
        model = fitted(M2(), missing(), vectors(), max_trials=1)
        assert (len(model.tuning.trials), model.tuning.reason) == (1, "max_trials=1 is reached")

    def test_a_conservative_search_is_limited_too(self) -> None:
        model = fitted(M3(), missing(), images(), max_trials=1, quant_level=0)
        assert tried(model.tuning) == ["s:asym/kl bf16 bf16"]

    def test_time_given_is_used_up_and_the_fastest_model_that_meets_the_goal_wins(self, clock: Clock) -> None:
        seconds = iter([1.0, 3.0, 2.0, 1.0, 4.0, 100.0])
        scores = iter([1.0, 0.999, 0.995, 0.5, 1.0, 1.0])

        def score(_: nn.Module) -> float:
            clock.jumped += next(seconds)
            return next(scores)

        conf = PostTrainingQuantConfig(timeout=9.5, **LEVEL_1)
        model: Any = quantization.fit(M2(), conf, vectors(), eval_func=score)
        result = model.tuning
        assert result.reason == "timeout=9.5 seconds is over"
        assert [round(trial.objectives["performance"]) for trial in result.trials] == [3, 2, 1, 4]
        assert [round(trial.seconds) for trial in result.trials] == [3, 2, 1, 4]
        assert round(result.baseline["performance"]) == 1
        assert result.best.number == 2

    def test_trials_end_a_search_that_has_time(self, clock: Clock) -> None:
        model = fitted(M2(), [1.0] * 9, vectors(), timeout=1e6, max_trials=3, **LEVEL_1)
        assert (len(model.tuning.trials), model.tuning.reason) == (3, "max_trials=3 is reached")

    @pytest.mark.parametrize("on_miss", ["best", "none", "raise"])
    def test_a_search_without_a_trial_has_no_model(self, on_miss: str, strategies: None) -> None:
        conf = PostTrainingQuantConfig(tuning_criterion=TuningCriterion(on_miss=on_miss, **propose(lambda _: [])))
        message = "ended without a trial, as the strategy has no more to propose: there is no model to return"
        if on_miss == "none":
            with pytest.warns(GoalMissedWarning, match=message):
                assert quantization.fit(M2(), conf, vectors(), eval_func=Script([1.0])) is None
        else:
            with pytest.raises(GoalMissedError, match=message):
                quantization.fit(M2(), conf, vectors(), eval_func=Script([1.0]))

    def test_an_evaluation_ends_once_the_goal_is_out_of_reach(self) -> None:
        data = [(batch, output(M2(), batch).argmax(1)) for batch in vectors()]
        coarse = {"op_type_dict": {"Linear": {"weight": {"bits": 2}}}}
        plain = quantization.fit(M2(), PostTrainingQuantConfig(**coarse), vectors())
        first = (output(plain, data[0][0]).argmax(1) == data[0][1]).float().mean().item()
        conf = PostTrainingQuantConfig(**coarse, tuning_criterion=TuningCriterion(early_stop=True, max_trials=1))
        model: Any = quantization.fit(M2(), conf, vectors(), eval_dataloader=data, eval_metric={"topk": 1})
        (trial,) = model.tuning.trials
        assert (trial.state, trial.is_met, trial.score) == ("cut", False, pytest.approx(first))
        assert math.isnan(trial.objectives["performance"])
        assert 0 < first < 1

    def test_an_evaluation_of_the_users_own_cannot_end_early(self) -> None:
        conf = PostTrainingQuantConfig(tuning_criterion=TuningCriterion(early_stop=True))
        script = Script([1.0])
        with pytest.raises(ConfigError, match=r"early_stop=True cannot work: eval_func evaluates"):
            quantization.fit(M2(), conf, vectors(), eval_func=script)
        assert script.calls == 0


# --------------------------------------------------------------------------------------------- objectives


class TestObjectives:
    def test_the_smallest_model_that_meets_the_goal(self) -> None:
        conf = {"objective": "modelsize", "timeout": 1e6, "max_trials": 7, **LEVEL_1}
        model = fitted(M2(), [1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0], vectors(), **conf)
        assert changed(model.tuning)[4:] == [["fc2"], ["fc1"], ["fc1", "fc2"]]
        sizes = [trial.objectives["modelsize"] for trial in model.tuning.trials]
        assert sizes[0] < sizes[4] < sizes[5] < sizes[6] == pytest.approx(model.tuning.baseline["modelsize"])
        assert model.tuning.best.number == 5
        assert model.tuning.best.objectives["modelsize"] * 1e6 == sum(
            tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()
        )

    @pytest.mark.parametrize(("weights", "best"), [([1.0, 0.1], 5), ([0.001, 1.0], 7)])
    def test_weights_say_how_much_each_of_several_counts(self, weights: list[float], best: int) -> None:
        objective = {"objective": ["modelsize", "accuracy"], "weight": weights}
        conf = {"objective": objective, "timeout": 1e6, "max_trials": 7, **LEVEL_1}
        model = fitted(M2(), [1.0, 0.5, 0.5, 0.5, 0.5, 0.995, 0.996, 0.999], vectors(), **conf)
        assert model.tuning.best.number == best

    def test_without_time_to_spend_the_first_that_meets_the_goal_is_taken(self) -> None:
        model = fitted(M2(), [1.0, 0.5, 1.0, 1.0], vectors(), objective=["modelsize", "footprint"], **LEVEL_1)
        assert model.tuning.best.number == 2
        assert model.tuning.trials[0].objectives.keys() == {"modelsize", "footprint"}

    def test_one_of_the_users_own(self, strategies: None) -> None:
        class Floats(Objective):
            """Counts what is left in float; the more the better."""

            representation, higher_is_better = "Layers in float", True

            def measure(self, model: nn.Module, batches: Sequence[Any]) -> float:
                return sum(type(module) is nn.Linear for module in model.modules())

        objective_custom_registry("floats", Floats)
        conf = {"objective": "floats", "timeout": 1e6, "max_trials": 7, **LEVEL_1}
        model = fitted(M2(), [1.0] * 8, vectors(), **conf)
        assert [trial.objectives["floats"] for trial in model.tuning.trials] == [0, 0, 0, 0, 1, 1, 2]
        assert (model.tuning.best.number, model.tuning.baseline["floats"]) == (7, 2)
        assert "Layers in float" in str(model.tuning)

    def test_latency_needs_a_batch(self) -> None:
        with pytest.raises(ConfigError, match="'latency' got no batch to run the model on"):
            quantization.fit(
                M2(),
                PostTrainingQuantConfig(objective="latency"),
                calib_func=lambda model: model(vectors()[0]),
                eval_func=Script([1.0]),
            )


# --------------------------------------------------------------------------------------------- strategies


class TestStrategies:
    @pytest.mark.parametrize(
        ("conf", "name"),
        [
            ({}, "auto"),
            ({"quant_level": 0}, "conservative"),
            ({"quant_level": 1}, "basic"),
            ({"quant_level": 0, "strategy": "exhaustive"}, "exhaustive"),
            ({"strategy": "conservative"}, "conservative"),
            *(({"strategy": name}, name) for name in ("mse", "mse_v2", "random", "tpe", "bayesian", "lower_bit")),
        ],
    )
    def test_who_proposes(self, conf: dict[str, Any], name: str) -> None:
        model = fitted(M2(), missing(), vectors(), max_trials=2, **conf)
        assert (model.tuning.strategy, len(model.tuning.trials)) == (name, 2 if name != "conservative" else 1)

    def test_fewer_bits_as_long_as_the_goal_is_met(self) -> None:
        model = fitted(M2(), [1.0, 1.0, 0.5, 1.0, 1.0], vectors(), strategy="lower_bit", **NO_BF16)
        assert [trial.recipe.labels for trial in model.tuning.trials] == [
            ("int8 asym/kl", "int8 asym/kl"),
            ("int4 asym/kl", "int8 asym/kl"),
            ("int8 asym/kl", "int4 asym/kl"),
            ("int4 asym/kl", "int4 asym/kl"),
        ]
        assert model.tuning.best.number == 4
        assert {row.name: row.scheme for row in model.report().modules} == {"fc1": "w4a8-static", "fc2": "w4a8-static"}

    def test_samplers_leave_fewer_bits_out(self) -> None:
        modes = {
            choice.mode for one in fitted(M2(), [1.0, 1.0], vectors()).tuning.space.operations for choice in one.choices
        }
        model = fitted(M2(), [1.0, 1.0], vectors(), strategy="tpe")
        assert Mode.LOWER in modes
        assert {choice.mode for one in model.tuning.space.operations for choice in one.choices} == modes - {Mode.LOWER}

    def test_a_planned_one_of_the_users_own(self, strategies: None) -> None:
        @STRATEGIES.register("ends in float", summary="the first and the last in float")
        class Ends(PlannedStrategy):
            def __init__(self, mode: str = "fp32") -> None:
                self.mode = Mode(mode)

            def stages(self, search: Search) -> Stages:
                names = [one.name for one in search.space.operations]
                outcomes = yield Stage([search.space.default], ends_at_goal=False)
                assert [outcome.is_met for outcome in outcomes] == [True]
                yield Stage([search.space.fallen_back(search.space.default, [names[0], names[-1]], self.mode)])

        criterion = TuningCriterion("ends in float", strategy_kwargs={"mode": "bf16"})
        model = fitted(M3(), [1.0, 1.0, 1.0], images(), tuning_criterion=criterion)
        assert tried(model.tuning) == ["s:asym/kl s:asym/kl s:asym/kl", "bf16 s:asym/kl bf16"]
        assert (model.tuning.best.number, model.tuning.strategy) == (2, "ends in float")

    def test_a_sampled_one_of_the_users_own(self, strategies: None) -> None:
        import optuna

        numbers: list[int] = []

        @STRATEGIES.register("brute force", summary="all of it")
        class BruteForce(SampledStrategy):
            def sampler(self, search: Search, number: int) -> Any:
                numbers.append(number)
                return optuna.samplers.RandomSampler(seed=number)

        rules = {"Linear": {"activation": {"algorithm": "kl", "scheme": "asym"}}}
        model = fitted(M2(), missing(), vectors(), strategy="brute force", op_type_dict=rules, **NO_BF16)
        assert sorted(tried(model.tuning)) == ["fp32 fp32", "fp32 s:asym/kl", "s:asym/kl fp32", "s:asym/kl s:asym/kl"]
        assert numbers[0] == 1

    def test_options_that_do_not_fit_are_refused_before_any_work(self) -> None:
        loader, script = Loader(vectors()), Script([1.0])
        criterion = TuningCriterion("mse_v2", strategy_kwargs={"confidence_batch": 3})
        with pytest.raises(ConfigError, match=r"strategy 'mse_v2'.*Did you mean 'confidence_batches'"):
            quantization.fit(M2(), PostTrainingQuantConfig(tuning_criterion=criterion), loader, eval_func=script)
        wrong = TuningCriterion("mse_v2", strategy_kwargs={"confidence_batches": 0})
        with pytest.raises(ConfigError, match=r"mse_v2.confidence_batches=0: expected an integer of 1 or more"):
            quantization.fit(M2(), PostTrainingQuantConfig(tuning_criterion=wrong), loader, eval_func=script)
        assert (loader.passes, script.calls) == (0, 0)

    @pytest.mark.parametrize(("name", "message"), [("mse", "no batches to measure on"), ("hawq_v2", "has a label")])
    def test_what_has_to_measure_says_what_it_lacks(self, name: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            quantization.fit(
                M2(),
                PostTrainingQuantConfig(strategy=name),
                calib_func=lambda model: model(vectors()[0]),
                eval_func=Script(missing()),
            )

    def test_a_loss_of_the_users_own_ranks_by_its_curvature(self) -> None:
        asked: list[torch.Size] = []

        def loss(result: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
            asked.append(truth.shape)
            return (result.flatten() - truth).square().mean()

        labelled = [(batch, torch.zeros(32)) for batch in vectors()]
        criterion = TuningCriterion("hawq_v2", strategy_kwargs={"hawq_v2_loss": loss})
        model = fitted(M2(), missing(), labelled, tuning_criterion=criterion)
        assert set(asked) == {(32,)}
        assert len(model.tuning.trials) == 3


# --------------------------------------------------------------------------------------------- rules


def choices(model: Any) -> dict[str, list[str]]:
    """By operation what could be chosen for it, without fewer bits and float."""
    kept = (Mode.STATIC, Mode.DYNAMIC, Mode.WEIGHT_ONLY)
    return {one.name: [choice.label for choice in one.of(*kept)] for one in model.tuning.space.operations}


class TestRules:
    def test_a_list_is_what_a_search_chooses_from_the_first_is_the_default(self) -> None:
        rule = {"Linear": {"activation": {"algorithm": ["percentile", "kl"], "scheme": "sym"}}}
        model = fitted(M3(), missing(), images(), op_type_dict=rule, max_trials=3, **LEVEL_1)
        labels = ["int8 sym/percentile", "int8 sym/kl"]
        grid = ["int8 asym/kl", "int8 asym/minmax", "int8 sym/kl", "int8 sym/minmax"]
        assert choices(model) == {"conv": grid, "fc1": labels, "fc2": labels}
        assert tried(model.tuning) == [
            "s:asym/kl s:sym/percentile s:sym/percentile",
            "s:asym/kl s:sym/kl s:sym/kl",
            "s:asym/minmax s:sym/percentile s:sym/percentile",
        ]

    def test_a_single_word_leaves_no_choice_and_names_count_after_types(self) -> None:
        types = {"Linear": {"activation": {"algorithm": ["kl", "minmax"]}}}
        names = {"fc2": {"activation": {"algorithm": "mse", "scheme": ["sym", "asym"]}}}
        model = fitted(M2(), [1.0, 1.0], vectors(), op_type_dict=types, op_name_dict=names)
        assert choices(model) == {
            "fc1": ["int8 asym/kl", "int8 asym/minmax", "int8 sym/kl", "int8 sym/minmax"],
            "fc2": ["int8 sym/mse", "int8 asym/mse"],
        }

    def test_granularities_and_bits_are_choices(self) -> None:
        activation = {"algorithm": "kl", "scheme": "asym"}
        weight = {"granularity": ["per_channel", "per_tensor"], "bits": [8, 4]}
        rule = {"Linear": {"weight": weight, "activation": activation}}
        model = fitted(M2(), missing(), vectors(), op_type_dict=rule, **LEVEL_1)
        labels = ["int8 asym/kl", "int4 asym/kl", "int8 asym/kl per tensor", "int4 asym/kl per tensor"]
        assert choices(model) == {"fc1": labels, "fc2": labels}
        assert [trial.recipe.labels for trial in model.tuning.trials[:4]] == [(label, label) for label in labels]

    def test_bits_and_groups_of_weights_alone_are_choices(self) -> None:
        rule = {"Linear": {"weight": {"bits": [8, 4], "group_size": [-1, 4], "scheme": "sym"}}}
        model = fitted(M2(), missing(), approach="weight_only", op_type_dict=rule, **LEVEL_1)
        labels = ["w8-per-row-sym", "w8-g4-sym", "w4-per-row-sym", "w4-g4-sym"]
        assert sorted(choices(model)["fc1"]) == sorted(labels)
        assert {trial.recipe.labels[0] for trial in model.tuning.trials[:4]} == set(labels)
        assert model.tuning.trials[0].recipe.labels == ("w8-per-row-sym", "w8-per-row-sym")

    @pytest.mark.parametrize("approach", ["static", "dynamic", "weight_only"])
    def test_what_a_rule_leaves_in_float_is_not_searched(self, approach: str) -> None:
        model = fitted(M2(), missing(), vectors(), approach=approach, op_name_dict={"fc1": FP32}, **LEVEL_1)
        assert choices(model).keys() == {"fc2"}
        assert type(model.fc1) is nn.Linear

    @pytest.mark.parametrize("approach", ["static", "dynamic"])
    def test_what_a_recipe_leaves_in_float_is_not_searched_and_no_other_takes_its_place(self, approach: str) -> None:
        recipe = {"first_conv_or_matmul_quantization": False}
        net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
        model = fitted(net, missing(), vectors(), approach=approach, recipes=recipe, **LEVEL_1)
        assert choices(model).keys() == {"1", "2"}
        assert tried(model.tuning)[-1] == "fp32 fp32"
        assert [row.scheme is None for row in model.report().modules] == [True, False, False]

    def test_what_no_data_reach_is_not_searched(self) -> None:
        config = {"approach": "auto", **LEVEL_1}
        model = fitted(OneSide(), missing(), vectors(), **config)
        static = ["int8 asym/kl", "int8 asym/minmax", "int8 sym/kl", "int8 sym/minmax"]
        assert choices(model) == {"used": [*static, "int8 dynamic asym"], "unused": ["int8 dynamic asym"]}
        with pytest.warns(InexactWarning, match="No calibration data reached 'unused'"):
            model = fitted(OneSide(), missing(), vectors(), **LEVEL_1)
        assert choices(model) == {"used": static}
        assert len(model.tuning.trials) == 5

    def test_without_data_every_range_is_dynamic_and_nothing_is_tried_twice(self) -> None:
        model = fitted(M2(), missing(), approach="auto", **LEVEL_1)
        assert tried(model.tuning) == [
            "d:asym/minmax d:asym/minmax",
            "d:asym/minmax fp32",
            "fp32 d:asym/minmax",
            "fp32 fp32",
        ]
        assert {row.notes for row in fitted(M2(), [1.0, 1.0], approach="auto").report().modules} == {
            ("no calibration data reached it: dynamic range",)
        }

    def test_alphas_of_smoothing_are_tried_first_and_the_best_one_stays(self) -> None:
        script = Script([1.0, 0.5, 0.6, 0.5, 0.5], vectors()[0])
        conf = PostTrainingQuantConfig(recipes=SMOOTHED, max_trials=4, **LEVEL_1)
        model: Any = quantization.fit(M2(), conf, vectors(), eval_func=script)
        assert [trial.recipe.alpha for trial in model.tuning.trials] == [0.3, 0.7, 0.7, 0.7]
        assert tried(model.tuning)[1:3] == ["s:asym/kl s:asym/kl", "s:asym/minmax s:asym/minmax"]
        assert not torch.equal(script.outputs[1], script.outputs[2])
        assert {row.notes for row in model.report().modules} == {("smoothed, alpha 0.7",)}

    def test_excluded_precisions_are_no_choice(self) -> None:
        both = (fitted(M2(), [1.0, 1.0], vectors(), excluded_precisions=names) for names in ([], ["bf16"]))
        modes = [{choice.mode for one in model.tuning.space.operations for choice in one.choices} for model in both]
        assert modes[0] - modes[1] == {Mode.BFLOAT16}

    def test_tied_weights_do_not_go_to_bfloat16_alone(self) -> None:
        model = fitted(Sequences(), [1.0, 1.0], tokens())
        able = {one.name: one.first(Mode.BFLOAT16) is not None for one in model.tuning.space.operations}
        assert able == {"table": False, "middle": True, "output": False}


class OneSide(nn.Module):
    """Of two layers only one runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.unused = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


# --------------------------------------------------------------------------------------------- results


@pytest.mark.usefixtures("strategies")
class TestResults:
    def test_the_report_says_what_the_search_left_in_float(self) -> None:
        wanted = {"conv": "bf16", "fc2": "fp32"}
        recipe = propose(
            lambda space: [space.of({name: space.operation(name).labelled(to) for name, to in wanted.items()})]
        )
        model = fitted(M3(), [1.0, 1.0], images(), **recipe)
        assert {row.name: (row.scheme, row.notes) for row in model.report().modules} == {
            "conv": ("bfloat16", ("left in float by the search",)),
            "fc1": ("w8a8-static", ()),
            "fc2": (None, ("left in float by the search",)),
        }
        assert model.tuning.fallen_back == ("conv", "fc2")

    def test_rules_are_told_from_searches(self) -> None:
        recipe = propose(partial(fallen_back, names=["fc2"], mode=Mode.FLOAT32))
        rules = {"fc1": FP32, "conv": {"weight": {"dtype": "bf16"}}}
        extra = nn.Sequential(M3(), nn.Linear(4, 4), nn.Linear(4, 4))
        rules = {f"0.{name}": rule for name, rule in rules.items()}
        recipe = propose(partial(fallen_back, names=["0.fc2"], mode=Mode.FLOAT32), "nested")
        model = fitted(extra, [1.0, 1.0], images(), op_name_dict=rules, **recipe)
        notes = {row.name: row.notes for row in model.report().modules}
        assert notes["0.fc2"] == ("left in float by the search",)
        assert notes["0.fc1"] == ("left in float by the configuration",)
        assert notes["0.conv"] == ("as the configuration asks",)

    @pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("llama")])
    def test_a_mixed_model_is_saved_and_loaded_bit_for_bit(self, name: str, tmp_path: Path) -> None:
        build, data, config = MODELS[name]
        model = fitted(build(), [1.0, 0.5, 1.0], data and data(), **config, **propose(mixed(5, 2)))
        model.save(tmp_path)
        loaded: Any = load(tmp_path, model=build())
        batch = probe(build)
        assert torch.equal(output(loaded, batch), output(model, batch))
        assert attached_report(loaded) == model.report()

    def test_the_history_is_there_and_reads_back(self, tmp_path: Path) -> None:
        result = fitted(M2(), [1.0, 0.5, 0.75, 1.0], vectors(), **LEVEL_1).tuning
        assert [(entry["number"], entry["score"], entry["met"], entry["changes"]) for entry in result.history] == [
            (1, 0.5, False, {}),
            (2, 0.75, False, {"fc1": "int8 asym/minmax", "fc2": "int8 asym/minmax"}),
            (3, 1.0, True, {"fc1": "int8 sym/kl", "fc2": "int8 sym/kl"}),
        ]
        assert (result.reason, result.goal.baseline, result.goal.target) == ("trial 3 meets the goal", 1.0, 0.99)
        assert json.loads(json.dumps(result.history)) == result.history
        result.save(tmp_path / "tuning.json")
        assert TuningResult.load(tmp_path / "tuning.json") == result

    def test_sensitivity_is_measured_only_if_a_trial_misses(self) -> None:
        assert fitted(M2(), [1.0, 1.0], vectors()).tuning.sensitivity == {}
        coarse = {"fc2": {"weight": {"bits": 2}}}
        found = fitted(M2(), [1.0, 0.5, 1.0], vectors(), op_name_dict=coarse).tuning.sensitivity
        assert found["fc1"] > 30 > found["fc2"] > 0

    def test_without_a_search_there_is_no_result(self) -> None:
        model: Any = quantization.fit(M2(), PostTrainingQuantConfig(), vectors())
        assert model.tuning is None

    def test_a_copy_has_the_result_too(self) -> None:
        model = fitted(M2(), [1.0, 1.0], vectors())
        assert copy.deepcopy(model).tuning == model.tuning
