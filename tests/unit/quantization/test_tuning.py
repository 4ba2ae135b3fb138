"""`quantization.fit` as a search: what is tried, what is returned, and what the caller's model and data go through."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inc_torch import AccuracyCriterion, PostTrainingQuantConfig, quantization
from inc_torch.config import options
from inc_torch.core.errors import ConfigError
from inc_torch.objective import OBJECTIVES
from inc_torch.tuning import (
    STRATEGIES,
    Mode,
    PlannedStrategy,
    Recipe,
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
