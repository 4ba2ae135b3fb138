"""The entry point, the manager, and what the model looks like afterwards."""

from __future__ import annotations

import copy
import io
import json
import threading

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import inc_torch
from inc_torch import (
    Callback,
    CompressionManager,
    CompressionReport,
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
    prepare_compression,
)
from inc_torch.core.errors import (
    ConfigError,
    ConfigTypeError,
    HookOrderError,
    IncTorchWarning,
    InexactWarning,
    LoopWarning,
    ModelError,
)
from inc_torch.core.report import Finding
from inc_torch.training import CallBacks
from tests.loops.driver import ConvNet, assert_equal_states, confs_of, images, mlp, pruning, rows, train

MAGNITUDE = WeightPruningConfig(target_sparsity=0.5, pruning_type="magnitude")


class Holder(nn.Module):
    """A class that pickle finds by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(F.relu(self.hidden(x)))


class WithOwnModel(Holder):
    """A submodule called model, as in many classes of transformers."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.model = nn.Identity()
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)


class WithOwnMethods(Holder):
    """Already has the names that are given to others."""

    model = "mine"

    def save(self, path):
        return f"my save to {path}"

    def report(self):
        return "my report"


class WithLock(Holder):
    """Says by itself what is to be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def __getstate__(self):
        return {**self.__dict__, "lock": None}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.lock = threading.Lock()


class Reduced(Holder):
    """Says by itself how it is made again."""

    made = "first"

    def __reduce__(self):
        return _reduced, (), {name: value for name, value in self.__dict__.items() if name != "made"}


def _reduced():
    model = Reduced()
    model.made = "again"
    return model


def prune_now(manager: CompressionManager) -> None:
    """The shortest run that prunes: one mask update, no training."""
    manager.on_train_begin()
    manager.on_step_begin(0)
    manager.on_train_end()


class TestArguments:
    def test_one_config_a_list_or_a_tuple(self):
        for confs in (MAGNITUDE, [MAGNITUDE], (MAGNITUDE,)):
            manager = prepare_compression(mlp(), confs)
            assert isinstance(manager, CompressionManager)
            assert manager.configs == (MAGNITUDE,)
            assert isinstance(manager.callbacks, CallBacks)

    def test_keywords_have_the_names_of_inc(self):
        assert prepare_compression(model=mlp(), confs=MAGNITUDE).configs == (MAGNITUDE,)

    def test_swapped_are_put_right_with_a_warning(self):
        model = mlp()
        with pytest.warns(IncTorchWarning) as caught:
            manager = prepare_compression(MAGNITUDE, model)
        assert manager.model is model
        assert [str(warning.message) for warning in caught] == [
            "prepare_compression(model, confs) was called with its arguments swapped; they were put right."
        ]
        assert caught[0].filename == __file__

    def test_swapped_with_a_list(self):
        model = mlp()
        with pytest.warns(IncTorchWarning, match="arguments swapped"):
            manager = prepare_compression([MAGNITUDE], model)
        assert (manager.model, manager.configs) == (model, (MAGNITUDE,))

    @pytest.mark.parametrize("confs", [[], ()])
    def test_no_config_is_refused(self, confs):
        with pytest.raises(ConfigError) as caught:
            prepare_compression(mlp(), confs)
        assert str(caught.value) == (
            "prepare_compression got an empty list: expected at least one config, such as WeightPruningConfig()."
        )

    @pytest.mark.parametrize("model", [None, "model.pt", MAGNITUDE, nn.Linear, {"model": 1}], ids=repr)
    def test_what_is_no_model_is_refused(self, model):
        with pytest.raises(ConfigTypeError) as caught:
            prepare_compression(model, MAGNITUDE)
        assert str(caught.value) == (
            f"prepare_compression got a model of type {type(model).__name__}: expected a torch.nn.Module."
        )

    @pytest.mark.parametrize(
        "conf",
        [None, "prune", WeightPruningConfig, Callback, {"target_sparsity": 0.5}, 3, KnowledgeDistillationLossConfig()],
        ids=repr,
    )
    @pytest.mark.parametrize("in_list", [True, False])
    def test_what_is_no_config_is_refused(self, conf, in_list):
        model = mlp()
        with pytest.raises(ConfigTypeError) as caught:
            prepare_compression(model, [MAGNITUDE, conf] if in_list else conf)
        assert str(caught.value).startswith(
            f"prepare_compression got {conf!r} of type {type(conf).__name__}: expected "
        )
        for kind in ("WeightPruningConfig", "QuantizationAwareTrainingConfig", "DistillationConfig", "Callback"):
            assert kind in str(caught.value)
        assert type(model) is nn.Sequential

    def test_unknown_keywords_are_refused(self):
        with pytest.raises(TypeError, match="train_func"):
            prepare_compression(mlp(), MAGNITUDE, train_func=None)

    def test_errors_of_a_config_leave_the_model_as_it_was(self):
        model = mlp()
        with pytest.raises(ConfigError, match="matches no layer"):
            prepare_compression(model, [QuantizationAwareTrainingConfig(), WeightPruningConfig(op_names=["nowhere"])])
        assert type(model) is nn.Sequential
        assert type(model[0]) is nn.Linear

    def test_quantizing_twice_is_refused(self):
        model = mlp()
        prepare_compression(model, QuantizationAwareTrainingConfig())
        with pytest.raises(ModelError, match="Module '0' is already prepared for quantization"):
            prepare_compression(model, QuantizationAwareTrainingConfig())

    def test_two_distillations_are_chained(self):
        teacher = mlp(1).eval()
        conf = DistillationConfig(teacher, KnowledgeDistillationLossConfig(1.0, ["CE", "MSE"], [0.5, 0.5]))
        model = mlp().eval()
        manager = prepare_compression(model, [conf, conf])
        manager.on_train_begin()
        inputs, labels = next(rows(1))
        output = model(inputs)
        loss = F.cross_entropy(output, labels)
        with torch.no_grad():
            distance = F.mse_loss(output, teacher(inputs))
        folded = manager.on_after_compute_loss(inputs, output, loss)
        assert torch.allclose(folded, 0.25 * loss + 0.75 * distance, atol=1e-6)


class TestSecondManager:
    def test_an_interrupted_run_of_the_same_model_is_given_up(self):
        model = mlp()
        first = prepare_compression(model, pruning(target_sparsity=0.9))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        first.on_train_begin()
        with pytest.warns(
            LoopWarning, match="earlier compression of this Sequential did not reach on_train_end"
        ) as got:
            second = prepare_compression(model, pruning(target_sparsity=0.25))
        assert [warning.filename for warning in got] == [__file__]
        train(second, optimizer, rows(4))
        assert second.report().sparsity == pytest.approx(0.25, abs=0.01)
        with pytest.raises(HookOrderError):
            first.on_step_begin(0)

    def test_a_finished_run_is_no_reason_to_warn(self):
        model = mlp()
        first = prepare_compression(model, pruning())
        train(first, torch.optim.SGD(model.parameters(), lr=0.1), rows(4))
        assert prepare_compression(model, pruning()).callbacks.is_training is False

    def test_layers_of_two_pruning_configs_are_warned_about(self):
        with pytest.warns(InexactWarning, match=r"1 layer\(s\) are taken by several pruning configs: '0'") as got:
            prepare_compression(mlp(), [pruning(op_names="^0$"), pruning(op_names=["^0$", "^3$"])])
        assert [warning.filename for warning in got] == [__file__]


class TestUserCallbacks:
    def test_take_part_beside_configs(self):
        class Watch(Callback):
            def __init__(self):
                self.sparsities = []

            def on_step_end(self):
                weight = self.model[0].weight
                self.sparsities.append(int((weight == 0).sum()) / weight.numel())

            def findings(self):
                yield Finding("0", note="watched")

            def state_dict(self):
                return {"sparsities": self.sparsities}

            def load_state_dict(self, state):
                self.sparsities = list(state["sparsities"])

        watch, model = Watch(), mlp()
        manager = prepare_compression(model, [watch, pruning(pruning_scope="local")])
        train(manager, torch.optim.SGD(model.parameters(), lr=0.1), rows(4))
        assert watch.sparsities == [0, 0.25, 0.5, 0.5]
        assert manager.report().modules[0].notes == ("watched",)

        again = Watch()
        prepare_compression(mlp(), [again, pruning(pruning_scope="local")]).load_state_dict(manager.state_dict())
        assert again.sparsities == watch.sparsities

    def test_may_be_alone(self):
        class Count(Callback):
            steps = 0

            def on_after_optimizer_step(self):
                self.steps += 1

        model, count = mlp(), Count()
        train(prepare_compression(model, count), torch.optim.SGD(model.parameters(), lr=0.1), rows(3))
        assert count.steps == 3

    def test_with_a_wrong_signature_are_refused(self):
        class Wrong(Callback):
            def on_step_begin(self):
                pass

        with pytest.raises(ConfigError, match=r"Wrong\.on_step_begin must accept \(batch_id\)"):
            prepare_compression(mlp(), Wrong())


class TestIdentity:
    """The model stays the user's own object, of a class of the same name."""

    @pytest.mark.parametrize("letters", ["p", "q", "d", "pqd"])
    def test_before_training(self, letters):
        model = Holder()
        parameters = list(model.parameters())
        keys = list(model.state_dict())
        manager = prepare_compression(model, confs_of(letters, Holder()))
        assert manager.model is model
        assert isinstance(model, Holder)
        assert type(model).__name__ == "Holder"
        assert type(model).__qualname__ == Holder.__qualname__
        assert type(model).__module__ == Holder.__module__
        assert type(model).__doc__ == Holder.__doc__
        assert repr(model).startswith("Holder(")
        assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
        assert list(model.state_dict()) == keys

    def test_after_training(self):
        model = ConvNet()
        reference = model
        manager = prepare_compression(model, confs_of("pqd", ConvNet(1)))
        train(manager, torch.optim.AdamW(model.parameters()), images(3))
        assert manager.model is reference
        assert isinstance(model, ConvNet)
        assert type(model).__name__ == "ConvNet"

    def test_a_model_that_is_one_layer(self, tmp_path):
        model = nn.Linear(4, 2)
        manager = prepare_compression(model, QuantizationAwareTrainingConfig())
        assert isinstance(model, nn.Linear)
        assert isinstance(model.report(), CompressionReport)
        manager.on_train_begin()
        model(torch.randn(8, 4))
        manager.on_train_end()
        assert type(model).__name__ == "Int8Linear"
        assert model.report().modules[0].bits == 8
        model.save(tmp_path)
        loaded = inc_torch.load(tmp_path, model=nn.Linear(4, 2))
        assert torch.equal(loaded(torch.ones(1, 4)), model(torch.ones(1, 4)))

    def test_preparing_twice_keeps_the_class(self):
        model = Holder()
        prepare_compression(model, MAGNITUDE)
        kind = type(model)
        prepare_compression(model, MAGNITUDE)
        assert type(model) is kind
        assert type(model).__mro__[1] is Holder

    def test_two_models_of_a_class_share_the_generated_one(self):
        models = Holder(), Holder()
        for model in models:
            prepare_compression(model, MAGNITUDE)
        assert type(models[0]) is type(models[1])
        assert type(Holder()) is Holder

    def test_an_optimizer_made_before_trains_the_model(self):
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        before = copy.deepcopy(model.state_dict())
        train(prepare_compression(model, pruning()), optimizer, rows(4))
        assert not torch.equal(model[5].weight, before["5.weight"])

    def test_the_model_property_is_the_model(self):
        model = Holder()
        manager = prepare_compression(model, MAGNITUDE)
        assert model.model is model
        assert manager.model.model.model is model
        assert "model" not in dict(model.named_modules())

    def test_a_submodule_called_model_is_kept(self):
        model = WithOwnModel()
        inner = model.model
        prepare_compression(model, MAGNITUDE)
        assert model.model is inner
        assert isinstance(model.report(), CompressionReport)

    def test_llama_keeps_its_model(self):
        config = LlamaConfig(
            vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        model = LlamaForCausalLM(config)
        inner = model.model
        manager = prepare_compression(model, MAGNITUDE)
        assert model.model is inner
        assert type(model).__name__ == "LlamaForCausalLM"
        prune_now(manager)
        assert model.report().sparsity == 0.5

    def test_members_of_the_class_are_kept(self):
        model = WithOwnMethods()
        manager = prepare_compression(model, MAGNITUDE)
        assert (model.model, model.save("x"), model.report()) == ("mine", "my save to x", "my report")
        assert isinstance(manager.report(), CompressionReport)

    @pytest.mark.parametrize("trained", [False, True])
    @pytest.mark.parametrize("letters", ["p", "pq"])
    def test_copies(self, letters, trained):
        model = ConvNet()
        manager = prepare_compression(model, confs_of(letters, ConvNet(1)))
        if trained:
            train(manager, torch.optim.AdamW(model.parameters()), images(3))
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        inputs, _ = next(images(1))
        model.eval()
        for twin in (copy.deepcopy(model), torch.load(file, weights_only=False).eval()):
            assert twin is not model
            assert type(twin) is type(model)
            assert twin.report() == model.report()
            assert_equal_states(twin.state_dict(), model.state_dict())
            with torch.no_grad():
                assert torch.equal(twin(inputs), model(inputs))
            assert twin.conv is not model.conv

    @pytest.mark.parametrize("kind", [WithLock, Reduced])
    def test_copies_of_classes_that_pickle_in_their_own_way(self, kind):
        model = kind()
        prune_now(prepare_compression(model, MAGNITUDE))
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            assert isinstance(twin, kind)
            assert type(twin).__name__ == kind.__name__
            assert twin.report() == model.report()
            assert torch.equal(twin(torch.ones(1, 8)), model(torch.ones(1, 8)))
        if kind is WithLock:
            assert isinstance(twin.lock, type(threading.Lock()))
        else:
            assert (model.made, twin.made) == ("first", "again")

    def test_a_graph_module_can_still_be_recompiled(self):
        model = torch.fx.symbolic_trace(Holder())
        manager = prepare_compression(model, MAGNITUDE)
        prune_now(manager)
        model.recompile()
        assert model(torch.ones(1, 8)).shape == (1, 2)
        assert model.report() == manager.report()
        assert type(torch.fx.symbolic_trace(Holder())).__dict__.get("report") is None
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        assert torch.equal(loaded(torch.ones(1, 8)), model(torch.ones(1, 8)))

    def test_the_report_is_no_part_of_the_weights(self):
        model = Holder()
        manager = prepare_compression(model, MAGNITUDE)
        assert model.__dict__["_inc_torch_report"] == manager.report()
        assert "_inc_torch_report" not in model.state_dict()


class TestReport:
    def test_is_measured_when_asked(self):
        model = Holder()
        manager = prepare_compression(model, MAGNITUDE)
        assert (manager.report().sparsity, model.report().sparsity) == (0.0, 0.0)
        manager.on_train_begin()
        manager.on_step_begin(0)
        assert (manager.report().sparsity, model.report().sparsity) == (0.5, 0.5)
        with torch.no_grad():
            model.hidden.weight.zero_()
        assert (manager.report().sparsity, model.report().sparsity) == (1.0, 1.0)

    def test_says_why_a_layer_was_left_alone(self):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 2))
        with pytest.warns(InexactWarning, match="leaves 1 of the selected layers dense"):
            manager = prepare_compression(model, [MAGNITUDE, QuantizationAwareTrainingConfig()])
        rows = manager.report().modules
        assert [row.scheme for row in rows] == ["w8a8-static"] * 3
        assert [row.asked_sparsity for row in rows] == [0.5, None, None]
        assert rows[1].notes[0].startswith("left dense: ")
        assert rows[2].notes == ("classifier head, not pruned",)

    def test_is_readable(self):
        manager = prepare_compression(Holder(), MAGNITUDE)
        prune_now(manager)
        assert str(manager.report()).splitlines()[:5] == [
            "module  shape  asked    zeros  bits",
            "------  -----  -------  -----  ----",
            "hidden  8x8    50% 4x1  50.0%  32",
            "head    2x8             0.0%   32",
            "head: classifier head, not pruned",
        ]


class TestSave:
    def test_before_the_end_is_said(self, tmp_path):
        model = Holder()
        manager = prepare_compression(model, [QuantizationAwareTrainingConfig(), MAGNITUDE])
        manager.on_train_begin()
        with pytest.warns(InexactWarning) as caught:
            manager.save(tmp_path)
        assert [str(warning.message) for warning in caught] == [
            "manager.save was called before on_train_end: the model is saved in float, masks may still change."
        ]
        assert caught[0].filename == __file__
        loaded = inc_torch.load(tmp_path, model=Holder())
        assert_equal_states(loaded.state_dict(), model.state_dict())
        assert type(loaded.hidden) is nn.Linear

    def test_at_the_end_in_a_hook_is_after_the_end(self, tmp_path):
        model = Holder()
        manager = prepare_compression(model, [MAGNITUDE, QuantizationAwareTrainingConfig()])
        manager.register_hook("on_train_end", lambda: manager.save(tmp_path))
        manager.on_train_begin()
        manager.on_step_begin(0)
        model(torch.randn(4, 8))
        manager.on_train_end()
        description = json.loads((tmp_path / "compression.json").read_text())
        assert description["modules"].keys() == {"hidden", "head"}
        assert CompressionReport.from_dict(description["report"]) == manager.report()

    def test_holds_the_report(self, tmp_path):
        model = Holder()
        manager = prepare_compression(model, MAGNITUDE)
        prune_now(manager)
        manager.save(tmp_path)
        loaded = inc_torch.load(tmp_path, model=Holder())
        assert loaded.__dict__["_inc_torch_report"] == manager.report() == model.report()
        assert torch.equal(loaded(torch.ones(1, 8)), model(torch.ones(1, 8)))


def test_state_is_read_with_weights_only():
    model = ConvNet()
    manager = prepare_compression(model, confs_of("pqd", ConvNet(1)))
    train(manager, torch.optim.AdamW(model.parameters()), images(3))
    file = io.BytesIO()
    torch.save(manager.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["format"] == "inc_torch/1"
    assert state["progress"] == {"step": 3, "epoch": 0}
    assert list(state["callbacks"]) == [
        "0:PruningCallbacks",
        "1:QuantizationAwareTrainingCallbacks",
        "2:DistillationCallbacks",
    ]
    assert [config["type"] for config in state["configs"]] == [
        "WeightPruningConfig",
        "QuantizationAwareTrainingConfig",
        "DistillationConfig",
    ]
