"""`training.fit`: each trial begins alike, the best one's model is returned, and nothing else is left behind."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from inc_torch import (
    Callback,
    CompressionManager,
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    QuantizationAwareTrainingConfig,
    TuningCriterion,
    WeightPruningConfig,
    load,
    prepare_compression,
    training,
)
from inc_torch.core.errors import (
    CalibrationError,
    ConfigError,
    ConfigTypeError,
    GoalMissedError,
    GoalMissedWarning,
    HookOrderError,
    ModelError,
)
from inc_torch.export import attached_report
from inc_torch.quantizers import Int8Module
from inc_torch.tuning import STRATEGIES, PlannedStrategy, Recipe, Search, Space, Stage, Stages

NO_BF16 = {"excluded_precisions": ["bf16"]}
LEFT = "left in float by the search"

pytestmark = pytest.mark.filterwarnings("ignore::inc_torch.core.errors.GoalMissedWarning")


@pytest.fixture(autouse=True)
def _bfloat16_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same choices on every processor."""
    monkeypatch.setenv("FORCE_BF16", "1")


class Net(nn.Module):
    """``M`` of the reference, with what else training changes: normalization, dropout, a table, a buffer."""

    count: torch.Tensor
    passed: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.dropout, self.scale = nn.Dropout(0.1), nn.LayerNorm(8)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("passed", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.count.add_(1)
            self.passed.add_(1)
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.fc2(torch.relu(self.fc1(self.dropout(self.scale(x)))))


class Plain(nn.Module):
    """A model that is one graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.fc2(torch.relu(self.fc1(x)))


class Sequences(nn.Module):
    """A recurrent layer, and an output that is tied to the table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.rnn = nn.Embedding(16, 8), nn.LSTM(8, 8)
        self.middle, self.output = nn.Linear(8, 8), nn.Linear(8, 16, bias=False)
        self.output.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(torch.relu(self.middle(self.rnn(self.table(x))[0])))


def images(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 6, 6, generator=generator) for _ in range(count)]


def tokens(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 16, (4, 6), generator=generator) for _ in range(count)]


def data_of(model: nn.Module) -> list[torch.Tensor]:
    return tokens() if isinstance(model, Sequences) else images()


def output(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(batch)
    return result


def loss_of(result: torch.Tensor) -> torch.Tensor:
    targets = torch.arange(result.shape[0]) % 4
    return F.cross_entropy(result.flatten(1), targets)


def trained(model: nn.Module) -> None:
    """A loop that knows nothing of us."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for batch in data_of(model):
        loss_of(model(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()


class Search3:
    """One search with scripted scores: what trainings began with, and what was scored."""

    def __init__(
        self,
        model: nn.Module,
        scores: Iterable[float],
        *others: Any,
        train: Callable[[nn.Module], Any] = trained,
        **config: Any,
    ) -> None:
        config = {"graph": "off"} | config if isinstance(model, Net) else config
        self.model, self._scores, self._train = model, iter(scores), train
        self.manager = prepare_compression(model, [QuantizationAwareTrainingConfig(**config), *others])
        self.starts: list[tuple[float, dict[str, torch.Tensor], dict[str, bool]]] = []
        self.outputs: list[torch.Tensor] = []
        self.losses: list[torch.Tensor] = []
        self.found: Any = None

    def run(self) -> Any:
        self.found = training.fit(self.manager, self.train, self.score)
        return self.found

    def train(self, model: nn.Module) -> Any:
        assert model is self.model
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self.starts.append((torch.rand(()).item(), values, flags))
        return self._train(model)

    def score(self, model: nn.Module) -> float:
        assert not any(module.training for module in model.modules())
        self.outputs.append(output(model, data_of(model)[0]))
        return next(self._scores)

    @property
    def tried(self) -> list[str]:
        return [
            " ".join(label.removeprefix("int8 ").removesuffix("/minmax") for label in trial.recipe.labels)
            for trial in self.found.tuning.trials
        ]


def missing(trials: int = 50) -> list[float]:
    return [1.0] + [0.5] * trials


# --------------------------------------------------------------------------------------------- trials


class TestTrials:
    @pytest.mark.parametrize("graph", ["auto", "off"])
    def test_they_come_in_the_order_of_inc(self, graph: str) -> None:
        search = Search3(Plain(), missing(), graph=graph, **NO_BF16)
        search.run()
        assert search.tried == [
            "asym asym asym",
            "asym fp32 fp32",
            "fp32 asym asym",
            "asym sym sym",
            "sym asym asym",
            "sym sym sym",
            "sym sym fp32",
            "sym fp32 sym",
            "fp32 sym sym",
            "sym fp32 fp32",
            "fp32 fp32 fp32",
        ]
        assert len(search.starts) == 11

    def test_bfloat16_comes_before_float32(self) -> None:
        search = Search3(Plain(), missing(), quant_level=1)
        search.run()
        assert search.tried[4:] == [
            "sym sym bf16",
            "sym bf16 sym",
            "bf16 sym sym",
            "sym bf16 bf16",
            "bf16 bf16 bf16",
            "sym sym fp32",
            "sym fp32 sym",
            "fp32 sym sym",
            "sym fp32 fp32",
            "fp32 fp32 fp32",
        ]

    @pytest.mark.parametrize("build", [Net, Plain, Sequences])
    def test_each_begins_with_equal_weights_and_random_numbers(self, build: Callable[[], nn.Module]) -> None:
        model = build()
        search = Search3(model, missing(), quant_level=1)
        search.run()
        first = search.starts[0]
        assert len(search.starts) >= 8
        for chance, values, flags in search.starts[1:]:
            assert chance == first[0]
            assert flags == first[2]
            assert values.keys() == first[1].keys()
            for name, value in values.items():
                assert value.dtype == first[1][name].dtype, name
                assert torch.equal(value, first[1][name]), name

    def test_they_begin_with_the_random_numbers_of_now(self) -> None:
        chances = []
        for _ in range(2):
            torch.manual_seed(7)
            expected = torch.rand(()).item()
            torch.manual_seed(7)
            search = Search3(prepared := Plain(), missing(), max_trials=2)
            torch.manual_seed(7)
            search.run()
            assert search.found is prepared
            chances += [start[0] for start in search.starts]
        assert chances == [expected] * 4

    def test_they_begin_without_gradients_and_with_the_flags_that_were(self) -> None:
        seen: list[list[bool]] = []

        def train(model: Any) -> None:
            seen.append([parameter.grad is None and parameter.requires_grad for parameter in model.parameters()])
            trained(model)
            loss_of(model(images()[0])).backward()
            model.fc1.weight.requires_grad_(False)

        model = Plain()
        model.fc2.weight.requires_grad_(False)
        Search3(model, missing(), train=train, max_trials=3).run()
        frozen = [parameter is not model.fc2.weight for parameter in Plain().parameters()]
        frozen[-2] = False
        assert seen == [frozen] * 3

    def test_equal_trials_train_equal_models(self) -> None:
        searches = []
        for _ in range(2):
            torch.manual_seed(3)
            searches.append(Search3(Net(), missing(), max_trials=3))
            torch.manual_seed(5)
            searches[-1].run()
        assert all(map(torch.equal, searches[0].outputs, searches[1].outputs))
        assert not torch.equal(searches[0].outputs[0], searches[0].outputs[1])


# --------------------------------------------------------------------------------------------- what is returned

MODELS: Mapping[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "graph": (Plain, {}),
    "layers": (Plain, {"graph": "off"}),
    "buffers": (Net, {"graph": "off"}),
    "sequences": (Sequences, {}),
}


def recipes_of(space: Space) -> list[Recipe]:
    """One in int8, one of everything, one in float."""
    mixed = [operation.choices[-1 - index % 2].label for index, operation in enumerate(space.operations)]
    floats = [operation.choices[-1].label for operation in space.operations]
    return [space.default, Recipe(tuple(mixed)), Recipe(tuple(floats)), Recipe((*mixed[:-1], space.default.labels[-1]))]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a strategy that tries `recipes_of`."""
    STRATEGIES.names()
    monkeypatch.setattr(STRATEGIES, "_entries", dict(STRATEGIES._entries))

    @STRATEGIES.register("listed", summary="four recipes")
    class Listed(PlannedStrategy):
        def stages(self, search: Search) -> Stages:
            yield Stage(recipes_of(search.space))

    return "listed"


class TestTheModelThatIsReturned:
    @pytest.mark.parametrize("winner", [1, 2, 3, 4])
    @pytest.mark.parametrize("name", MODELS)
    def test_it_is_the_users_object_and_the_best_trial_bit_for_bit(self, name: str, winner: int, listed: str) -> None:
        build, config = MODELS[name]
        model = build()
        scores = [1.0, *(0.8 if number == winner else 0.5 for number in range(1, 5))]
        search = Search3(model, scores, strategy=listed, **config)
        kept: dict[str, torch.Tensor] = {}
        score = search.score

        def keeping(given: nn.Module) -> float:
            if len(search.outputs) == winner:
                kept.update({key: value.clone() for key, value in given.state_dict().items()})
            return score(given)

        found: Any = training.fit(search.manager, search.train, keeping)
        assert found is model
        assert found.tuning.best.number == winner
        assert len(search.starts) == 4
        assert torch.equal(output(found, data_of(model)[0]), search.outputs[winner])
        state = found.state_dict()
        assert state.keys() == kept.keys()
        assert all(torch.equal(state[key], value) and state[key].dtype == value.dtype for key, value in kept.items())
        assert not any(module.training for module in found.modules())
        int8 = sum(isinstance(module, Int8Module) for module in found.modules())
        labels = found.tuning.best.recipe.labels
        assert int8 == sum(label.startswith("int8") for label in labels)

    def test_a_later_training_disturbs_no_tensor_of_an_earlier_best(self) -> None:
        search = Search3(Net(), [1.0, 0.5, 0.9, *[0.5] * 20], quant_level=1, graph="off", max_trials=8)
        found = search.run()
        assert (found.tuning.best.number, found.count.item(), found.passed.item()) == (2, 3, 3)
        assert found.norm.num_batches_tracked.item() == 3
        assert torch.equal(output(found, images()[0]), search.outputs[2])

    def test_the_goal_ends_the_search(self) -> None:
        search = Search3(Plain(), [1.0, 0.5, 0.995, 0.5], quant_level=1)
        found = search.run()
        assert (found.tuning.reason, len(search.starts)) == ("trial 2 meets the goal", 2)
        assert torch.equal(output(found, images()[0]), search.outputs[2])

    def test_the_smallest_of_those_that_meet_the_goal(self) -> None:
        config = {"objective": "modelsize", "timeout": 1e6, "quant_level": 0, **NO_BF16}
        search = Search3(Plain(), [1.0, 1.0, 1.0], **config)
        found = search.run()
        assert search.tried == ["asym fp32 fp32", "asym asym asym"]
        assert found.tuning.best.number == 2
        assert torch.equal(output(found, images()[0]), search.outputs[2])

    def test_the_report_says_what_the_search_left_in_float(self, listed: str) -> None:
        found = Search3(Plain(), [1.0, 0.5, 0.8, 0.5, 0.5], strategy=listed).run()
        assert {row.name: (row.scheme, row.notes) for row in found.report().modules} == {
            "conv": (None, (LEFT,)),
            "fc1": ("bfloat16", (LEFT,)),
            "fc2": (None, (LEFT,)),
        }
        rules = {"fc1": {"weight": {"dtype": "fp32"}}}
        found = Search3(Plain(), [1.0, 0.8], op_name_dict=rules, max_trials=1).run()
        assert {row.name: row.notes for row in found.report().modules if row.scheme is None} == {
            "fc1": ("left in float by the configuration",)
        }

    @pytest.mark.parametrize("winner", [1, 2, 4])
    def test_it_is_saved_and_loaded_bit_for_bit(self, winner: int, listed: str, tmp_path: Path) -> None:
        scores = [1.0, *(0.8 if number == winner else 0.5 for number in range(1, 5))]
        search = Search3(Net(), scores, strategy=listed)
        found = search.run()
        found.save(tmp_path / "model")
        loaded: Any = load(tmp_path / "model", model=Net())
        assert torch.equal(output(loaded, images()[0]), search.outputs[winner])
        assert attached_report(loaded) == found.report() == search.manager.report()

    def test_a_wrapped_model_is_found_in_what_wraps_it(self) -> None:
        model = Plain()
        search = Search3(model, [1.0, 1.0], train=lambda inner: (trained(inner), checkpoint_wrapper(inner))[1])
        assert search.run() is model


class TestWithoutAnEvaluation:
    def test_there_is_one_training_as_configured(self) -> None:
        model, calls = Plain(), []
        rules = {"fc2": {"weight": {"dtype": "fp32"}}}
        manager = prepare_compression(model, QuantizationAwareTrainingConfig(op_name_dict=rules))
        found: Any = training.fit(manager, lambda given: calls.append(given) or trained(given))
        assert found is model
        assert calls == [model]
        assert found.tuning is None
        assert [row.scheme for row in found.report().modules] == ["w8a8-static", "w8a8-static", None]

    def test_it_is_what_a_loop_of_ones_own_gives(self) -> None:
        models = []
        for loop in (True, False):
            manager = prepare_compression(Plain(), QuantizationAwareTrainingConfig())
            if loop:
                manager.on_train_begin()
                manager.model.train()
                trained(manager.model)
                manager.on_train_end()
                models.append(manager.model.eval())
            else:
                models.append(training.fit(manager, trained))
        assert torch.equal(*(output(model, images()[0]) for model in models))

    def test_a_loader_and_a_metric_evaluate(self) -> None:
        model = Plain()
        labelled = [(batch, output(model.eval(), batch).argmax(1)) for batch in images()]
        manager = prepare_compression(model, QuantizationAwareTrainingConfig(max_trials=1, relative=1.0))
        found: Any = training.fit(manager, trained, eval_dataloader=labelled, eval_metric={"topk": 1})
        assert found.tuning.goal.baseline == 1.0
        assert found.tuning.trials[0].score == pytest.approx(
            sum((output(found, batch).argmax(1) == truth).float().mean().item() for batch, truth in labelled) / 3
        )


# --------------------------------------------------------------------------------------------- other techniques

PRUNING = WeightPruningConfig(
    target_sparsity=0.5, pruning_type="magnitude", pattern="4x1", start_step=0, end_step=2, excluded_op_names=["fc2"]
)


def hooked(manager: CompressionManager, model: nn.Module, rate: float = 0.05, losses: Any = None) -> None:
    """A loop with all hooks, on whatever the manager is at the time."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    callbacks = manager.callbacks
    callbacks.on_train_begin()
    for epoch in range(2):
        manager.on_epoch_begin(epoch)
        for index, batch in enumerate(images()):
            callbacks.on_step_begin(index)
            result = model(batch)
            loss = manager.on_after_compute_loss(batch, result, loss_of(result))
            if losses is not None:
                losses.append(loss.item())
            loss.backward()
            callbacks.on_before_optimizer_step()
            optimizer.step()
            callbacks.on_after_optimizer_step()
            optimizer.zero_grad()
            manager.on_step_end()
        manager.on_epoch_end()


class TestOtherTechniques:
    @pytest.mark.parametrize("winner", [1, 2, 3])
    def test_masks_hold_in_the_model_that_is_returned(self, winner: int, listed: str) -> None:
        scores = [1.0, *(0.8 if number == winner else 0.5 for number in range(1, 5))]
        search = Search3(Net(), scores, PRUNING, strategy=listed)
        search._train = lambda model: hooked(search.manager, model)
        found = search.run()
        rows = {row.name: row for row in found.report().modules}
        layers = [rows["conv"], rows["fc1"]]
        assert sum(row.zeros for row in layers) >= 0.5 * sum(
            Net().get_submodule(row.name).weight.numel() for row in layers
        )
        assert [row.asked_sparsity for row in rows.values()] == [0.5, 0.5, None]
        assert search.manager.metrics()["sparsity"] == 0.5
        assert search.manager.has_reached_goal()
        assert torch.equal(output(found, images()[0]), search.outputs[winner])

    def test_masks_begin_anew_with_each_trial(self) -> None:
        zeros: list[int] = []
        search = Search3(Net(), missing(), PRUNING, max_trials=4)

        def train(model: Any) -> None:
            zeros.append(int((model.conv.weight == 0).sum()))
            hooked(search.manager, model)
            assert search.manager.metrics()["sparsity"] == 0.5

        search._train = train
        search.run()
        assert zeros == [0] * 4

    def test_a_teacher_has_a_say_in_each_trial(self) -> None:
        teacher = Net().eval()
        nn.init.normal_(teacher.fc2.weight)
        losses: dict[bool, list[float]] = {}
        for with_teacher in (False, True):
            distances = KnowledgeDistillationLossConfig(2.0, ["CE", "KL"], [0.5, 0.5])
            others = [DistillationConfig(teacher, distances)] if with_teacher else []
            search = Search3(Net(), missing(), *others, max_trials=3)
            own = losses[with_teacher] = []
            search._train = lambda model: hooked(search.manager, model, losses=own)  # noqa: B023
            torch.manual_seed(1)
            search.run()
        assert len(losses[True]) == len(losses[False]) == 18
        firsts = losses[True][0::6]
        assert max(firsts) - min(firsts) < 0.01
        assert abs(losses[True][0] - losses[False][0]) > 0.01
        assert search.manager.metrics().keys() >= {"distillation_loss"}

    def test_hooks_that_the_user_registered_are_called_in_each_trial(self) -> None:
        search = Search3(Net(), missing(), max_trials=3)
        calls: list[Any] = []
        search.manager.register_hook("on_step_end", calls.append, ["mine"])
        search.manager.callbacks.register_hook("on_train_end", lambda: calls.append("end"))
        search._train = lambda model: hooked(search.manager, model)
        search.run()
        assert calls == [*["mine"] * 6, "end"] * 3

    def test_hooks_of_one_trial_are_not_called_in_the_next(self) -> None:
        search = Search3(Net(), missing(), max_trials=3)
        calls: list[int] = []

        def train(model: nn.Module) -> None:
            number = len(search.starts)
            search.manager.register_hook("on_epoch_end", lambda: calls.append(number))
            hooked(search.manager, model)

        search._train = train
        search.run()
        assert calls == [1, 1, 2, 2, 3, 3]

    def test_a_training_that_ends_itself_is_as_good(self) -> None:
        search = Search3(Net(), [1.0, 0.5, 1.0])

        def train(model: nn.Module) -> nn.Module:
            hooked(search.manager, model)
            search.manager.on_train_end()
            assert isinstance(model.fc1, Int8Module) == (len(search.starts) == 1)
            return model

        search._train = train
        found = search.run()
        assert torch.equal(output(found, images()[0]), search.outputs[2])

    def test_what_guides_a_search_is_not_warned_of(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Search3(Net(), [1.0, 1.0], relative=0.5, quant_level=1, max_trials=3).run()

    def test_optimizer_steps_count_from_the_start_of_each_trial(self) -> None:
        seen: list[float] = []
        config = {"freeze_batch_norm_step": 1, "freeze_observers_step": 2, "graph": "off", "max_trials": 3}
        search = Search3(Net(), missing(), **config)

        def train(model: Any) -> None:
            hooked(search.manager, model)
            seen.append(model.norm.num_batches_tracked.item())

        search._train = train
        search.run()
        assert seen == [1, 1, 1]


# --------------------------------------------------------------------------------------------- what is left behind


class State:
    """All of a model that somebody could notice to have changed."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.before = model, self._now(model)

    @staticmethod
    def _now(model: nn.Module) -> dict[str, Any]:
        named = dict(model.named_modules())
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {
            "classes": [type(module) for module in named.values()],
            "attributes": [sorted(vars(module)) for module in named.values()],
            "names": list(named),
            "modes": [module.training for module in named.values()],
            "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in named.values()],
            "tensors": {name: (id(tensor), tensor.dtype, tensor.requires_grad) for name, tensor in tensors.items()},
            "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        }

    def assert_unchanged(self) -> None:
        now = self._now(self.model)
        for key in ("classes", "attributes", "names", "modes", "hooks", "tensors"):
            assert now[key] == self.before[key], key
        for name, value in self.before["values"].items():
            assert torch.equal(now["values"][name], value), name


def in_use() -> Net:
    model = Net().train()
    model.norm.eval()
    model.fc1.register_forward_hook(lambda *_: None)
    model.fc2.bias.requires_grad_(False)
    return model


class TestTheFloatModel:
    @pytest.mark.parametrize("others", [[], [PRUNING]], ids=["alone", "pruned"])
    @pytest.mark.parametrize("on_miss", ["none", "raise"])
    def test_it_is_as_it_was_if_no_model_is_returned(self, on_miss: str, others: list[Any]) -> None:
        model = in_use()
        state = State(model)
        criterion = TuningCriterion(on_miss=on_miss)
        search = Search3(model, missing(), *others, tuning_criterion=criterion)
        search._train = lambda given: hooked(search.manager, given)
        if on_miss == "raise":
            with pytest.raises(GoalMissedError) as caught:
                search.run()
            assert len(caught.value.result.trials) == len(search.starts) > 10  # type: ignore[attr-defined]
        else:
            with pytest.warns(GoalMissedWarning, match=r"an int8 model, scores 0.5000.*train longer"):
                assert search.run() is None
        state.assert_unchanged()

    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
    @pytest.mark.parametrize("where", ["first training", "baseline", "first evaluation"])
    def test_it_is_as_it_was_after_an_error_before_a_trial_is_through(
        self, where: str, error: type[BaseException]
    ) -> None:
        model = in_use()
        state = State(model)
        manager = prepare_compression(model, [QuantizationAwareTrainingConfig(graph="off"), PRUNING])
        calls: list[str] = []

        def train(given: nn.Module) -> None:
            hooked(manager, given)
            if where == "first training":
                raise error

        def score(_: nn.Module) -> float:
            calls.append("scored")
            if where == {1: "baseline", 2: "first evaluation"}[len(calls)]:
                raise error
            return 1.0

        with pytest.raises(error):
            training.fit(manager, train, score)
        state.assert_unchanged()

    def test_it_is_as_it_was_after_an_error_in_a_later_trial(self) -> None:
        model = in_use()
        state = State(model)
        search = Search3(model, missing())

        def train(given: nn.Module) -> None:
            trained(given)
            if len(search.starts) == 3:
                raise ZeroDivisionError

        search._train = train
        with pytest.raises(ZeroDivisionError) as caught:
            search.run()
        assert "In trial 3 of the tuning search" in caught.value.__notes__[0]
        state.assert_unchanged()

    def test_ctrl_c_in_a_later_training_gives_the_best_so_far(self) -> None:
        search = Search3(Net(), [1.0, 0.6, 0.5])

        def train(given: nn.Module) -> None:
            trained(given)
            if len(search.starts) == 3:
                raise KeyboardInterrupt

        search._train = train
        found = search.run()
        assert (found.tuning.reason, found.tuning.best.number) == ("it was interrupted", 1)
        assert torch.equal(output(found, images()[0]), search.outputs[1])
        assert search.manager.callbacks.has_ended

    @pytest.mark.parametrize("trial", [1, 3])
    def test_the_search_can_be_run_again_after_an_error(self, trial: int, listed: str) -> None:
        search = Search3(Plain(), [1.0, *[0.5] * (trial - 1), 1.0, 1.0], strategy=listed)
        calls: list[str] = []
        search.manager.register_hook("on_train_end", lambda: calls.append("end"))

        def failing(model: nn.Module) -> None:
            trained(model)
            if len(search.starts) == trial:
                raise ZeroDivisionError

        search._train = failing
        with pytest.raises(ZeroDivisionError):
            search.run()
        search._train = trained
        calls.clear()
        assert search.run() is search.model
        assert isinstance(search.model.fc1, Int8Module)
        assert calls == ["end"]
        fresh = Search3(Plain(), [1.0, 1.0], strategy=listed)
        fresh.run()
        assert torch.equal(search.outputs[-1], fresh.outputs[-1])

    def test_after_a_missed_goal_the_model_can_be_prepared_anew(self) -> None:
        model = Plain()
        criterion = TuningCriterion(on_miss="none", max_trials=2)
        assert Search3(model, missing(), tuning_criterion=criterion).run() is None
        again = Search3(model, [1.0, 1.0])
        assert again.run() is model
        assert isinstance(model.fc1, Int8Module)

    def test_weights_in_float_are_let_go_of_in_the_end(self) -> None:
        search = Search3(Plain(), [1.0, 1.0])
        weight = weakref.ref(search.model.fc1.weight)
        search.run()
        search.starts.clear()
        gc.collect()
        assert weight() is None


# --------------------------------------------------------------------------------------------- refusals


class TestRefusals:
    def test_a_model_other_than_the_one_to_train(self) -> None:
        model = in_use()
        state = State(model)
        search = Search3(model, [1.0, 1.0], train=copy.deepcopy)
        with pytest.raises(ModelError, match="train_func returned another Net than it was given"):
            search.run()
        state.assert_unchanged()

    def test_a_training_that_runs_no_batch(self) -> None:
        with pytest.raises(CalibrationError, match="no input of 'conv', 'fc1', 'fc2'"):
            Search3(Net(), [1.0, 1.0], train=lambda _: None).run()

    def test_a_manager_without_quantization(self) -> None:
        manager = prepare_compression(Net(), PRUNING)
        with pytest.raises(ConfigError, match=r"a manager with WeightPruningConfig: expected a QuantizationAware"):
            training.fit(manager, trained)
        hooked(manager, manager.model)
        manager.on_train_end()

    def test_a_callback_that_was_prepared(self) -> None:
        manager = prepare_compression(Net(), [QuantizationAwareTrainingConfig(), Callback()])
        with pytest.raises(ConfigError, match=r"with the callback .*each trial trains anew"):
            training.fit(manager, trained)

    def test_what_has_begun(self) -> None:
        manager = prepare_compression(Net(), QuantizationAwareTrainingConfig())
        manager.on_train_begin()
        with pytest.raises(HookOrderError, match=r"called after on_train_begin.*expected a new manager"):
            training.fit(manager, trained)

    def test_what_is_finished(self) -> None:
        search = Search3(Plain(), [1.0, 1.0])
        found = search.run()
        before = output(found, images()[0])
        with pytest.raises(HookOrderError, match="expected a new manager"):
            training.fit(search.manager, trained)
        assert torch.equal(output(found, images()[0]), before)
        with pytest.raises(HookOrderError, match="the model is finished"):
            search.manager.on_step_begin(0)

    def test_what_is_no_function(self) -> None:
        manager = prepare_compression(Plain(), QuantizationAwareTrainingConfig())
        with pytest.raises(ConfigTypeError, match="train_func of type NoneType"):
            training.fit(manager, None)  # type: ignore[arg-type]
        with pytest.raises(ConfigTypeError, match=r"training.fit got eval_func of type int"):
            training.fit(manager, trained, 3)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="eval_metric without eval_dataloader"):
            training.fit(manager, trained, eval_metric={"topk": 1})
        assert training.fit(manager, trained, lambda _: 1.0) is manager.model

    @pytest.mark.parametrize("strategy", ["mse", "mse_v2"])
    def test_a_strategy_that_would_train_for_each_measurement(self, strategy: str) -> None:
        with pytest.raises(ConfigError, match="each model would have to be trained"):
            Search3(Net(), missing(), strategy=strategy).run()

    def test_an_objective_that_runs_the_model_without_a_batch(self) -> None:
        search = Search3(Net(), missing(), objective="latency")
        with pytest.raises(ConfigError, match="'latency' got no batch"):
            search.run()
        assert search.starts == []
