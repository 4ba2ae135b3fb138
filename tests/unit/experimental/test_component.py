"""What 1.X objects do with what they are given, beyond the snippets of the documentation."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inc_torch import BenchmarkConfig, DistillationConfig, PostTrainingQuantConfig, WeightPruningConfig, options
from inc_torch.conf import pythonic_config
from inc_torch.conf.config import DistillationConf, PruningConf, QuantConf, conf
from inc_torch.core.errors import ConfigError, ConfigTypeError, HookOrderError, InexactWarning
from inc_torch.experimental import (
    Benchmark,
    Component,
    Distillation,
    MixedPrecision,
    Pruning,
    Quantization,
    common,
    component,
)
from inc_torch.objective import OBJECTIVES
from tests.scenarios.models import classifier, digits, fraction_of_zeros

TRAIN = {"criterion": {"CrossEntropyLoss": {}}, "end_epoch": 2, "optimizer": {"SGD": {"learning_rate": 0.1}}}


def pruning(train=None, **section) -> Pruning:
    settings = {"approach": {"weight_compression": {"target_sparsity": 0.5, "end_epoch": 1} | section}}
    made = Pruning({"pruning": settings | ({"train": train} if train else {})})
    made.model = classifier()
    return made


# ------------------------------------------------------------------------------ the built-in loop


def test_the_built_in_loop_is_the_loop_by_hand():
    made = pruning(TRAIN | {"iteration": 4})
    made.train_dataloader = digits()
    model = made.fit()
    twin, by_hand = classifier(), pruning()
    by_hand.model = twin

    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for epoch in range(2):
            by_hand.on_epoch_begin(epoch)
            for index, (inputs, labels) in enumerate(digits()[:4]):
                by_hand.on_step_begin(index)
                loss = F.cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                by_hand.on_before_optimizer_step()
                optimizer.step()
                by_hand.on_after_optimizer_step()
                by_hand.on_step_end()
            by_hand.on_epoch_end()

    by_hand.train_func = train
    by_hand.fit()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert fraction_of_zeros(model[0], model[2]) == 0.5
    assert not model.training


def test_epochs_begin_and_end_where_the_file_says():
    epochs = []
    made = pruning({"criterion": {"CrossEntropyLoss": {}}, "start_epoch": 1, "epoch": 3}, end_epoch=2)
    made.train_dataloader = digits(1)
    made.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.01)
    original = made.on_epoch_begin
    made.__dict__["on_epoch_begin"] = lambda epoch: (epochs.append(epoch), original(epoch))
    made.fit()
    assert epochs == [1, 2, 3]


def test_a_loss_of_ones_own_is_what_is_trained_by():
    made = pruning(TRAIN)
    made.train_dataloader = digits(2)
    calls = []
    made.criterion = lambda output, label: (calls.append(output.shape), output.square().mean())[1]
    made.fit()
    assert calls == [torch.Size([16, 4])] * 4


def test_a_loader_of_unknown_length_is_a_loader():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(inputs[0], labels[0]) for inputs, labels in digits()])

    made = pruning(TRAIN)
    made.train_dataloader = torch.utils.data.DataLoader(Stream(), batch_size=2)
    made.fit()
    assert fraction_of_zeros(made.model[0], made.model[2]) == 0.5


def test_what_a_built_in_loop_lacks():
    made = pruning(TRAIN)
    with pytest.raises(ConfigError, match="Pruning has no data to train with: assign train_dataloader, or train_func"):
        made.fit()
    made.train_dataloader = [inputs for inputs, _ in digits(1)]
    with pytest.raises(ConfigError, match="Pruning: a batch of the training loader has no label"):
        made.fit()
    with pytest.raises(ConfigError, match="Pruning has nothing to train with: assign train_func"):
        pruning().fit()
    empty = Pruning()
    empty.train_func = print
    with pytest.raises(ConfigError, match=r"Pruning has no model: assign one, pruning\.model = model\."):
        empty.fit()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_device_that_is_not_there():
    made = Pruning({"device": "gpu", "pruning": {"train": TRAIN}})
    made.model, made.train_dataloader = classifier(), digits(1)
    with pytest.raises(ConfigError, match="Pruning: device='gpu' needs CUDA, and there is none"):
        made.fit()


# ------------------------------------------------------------------------------ hooks


def test_hooks_without_fit_begin_a_training():
    made = pruning()
    made.on_epoch_begin(0)
    made.on_epoch_begin(1)
    assert fraction_of_zeros(made.model[0], made.model[2]) == 0.5
    made.post_epoch_end()
    assert made.report().sparsity == 0.5


def test_old_names_of_hooks_are_the_hooks():
    for old, new in {
        "pre_epoch_begin": "on_train_begin",
        "post_epoch_end": "on_train_end",
        "on_batch_begin": "on_step_begin",
        "on_batch_end": "on_step_end",
        "on_post_grad": "on_before_optimizer_step",
    }.items():
        assert getattr(Component, old) is getattr(Component, new)
    with pytest.raises(HookOrderError, match=r"Distillation\.on_post_forward is no more: call loss = on_after_compute"):
        Distillation().on_post_forward(1, teacher_output=2)


def test_a_component_without_a_technique_has_hooks_that_do_nothing():
    made = Component()
    made.model = classifier()
    made.on_train_begin()
    made.on_epoch_begin(0)
    assert made.on_after_compute_loss(None, None, 2.0) == 2.0
    made.on_train_end()


def test_a_training_that_raises_is_over():
    made = pruning()

    def train(model):
        raise RuntimeError("mine")

    made.train_func = train
    with pytest.raises(RuntimeError, match="mine"):
        made.fit()
    made.train_func = lambda model: [made.on_epoch_begin(epoch) for epoch in range(2)] and None
    assert made.fit() is made.model
    assert fraction_of_zeros(made.model[0], made.model[2]) == 0.5


# ------------------------------------------------------------------------------ pruning


def test_options_of_all_pruners_can_be_changed_before_the_first_step():
    made = pruning(pruners=[{"names": ["0.weight"]}, {"names": ["2.weight"], "target_sparsity": 0.25}])
    made.update_items_for_all_pruners(end_epoch=0)

    def train(model):
        made.update_items_for_all_pruners(target_sparsity=0.75)
        made.on_epoch_begin(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        made.on_step_begin(0)
        model(torch.ones(2, 8)).sum().backward()
        made.on_before_optimizer_step()
        optimizer.step()
        made.on_after_optimizer_step()
        with pytest.raises(HookOrderError, match="was called after 1 optimizer steps: expected it before the first"):
            made.update_items_for_all_pruners(target_sparsity=0.5)

    made.train_func = train
    made.fit()
    assert [fraction_of_zeros(made.model[index]) for index in (0, 2)] == [0.75, 0.75]
    assert [pruner.spec.target for pruner in made.pruners] == [0.75, 0.75]
    everything = sum(parameter.numel() for parameter in made.model.parameters())
    linear, all_of_it, units = made.get_sparsity_ratio()
    assert linear == pytest.approx(192 / 288)
    assert all_of_it == pytest.approx(192 / everything)
    assert units == pytest.approx(192 / 288)


def test_a_misspelt_option_of_pruners():
    with pytest.raises(ConfigTypeError, match=r"has no option 'target_sparsty'\. Did you mean 'target_sparsity'"):
        pruning().update_items_for_all_pruners(target_sparsty=0.5)


def test_a_report_before_there_is_anything_to_report():
    with pytest.raises(HookOrderError, match=r"Pruning\.report was called before a training"):
        pruning().report()
    assert pruning().pruners == []


# ------------------------------------------------------------------------------ distillation


@pytest.mark.parametrize("lower", [False, True])
def test_the_best_weights_are_those_that_are_left(lower):
    made = Distillation({"tuning": {"accuracy_criterion": {"higher_is_better": not lower}}, "distillation": None})
    made.student_model, made.teacher_model = classifier(), classifier(1)
    scores = iter([5.0, 1.0, 9.0, 3.0, 7.0])  # before, at the end of four epochs; then once more
    values = []

    def evaluate(model):
        values.append(model[0].bias[0].item())
        return next(scores, 0.0)

    def train(model):
        for epoch in range(4):
            made.on_epoch_begin(epoch)
            with torch.no_grad():
                model[0].bias[0] = epoch
            made.on_epoch_end()

    made.eval_func, made.train_func = evaluate, train
    made.fit()
    assert made.best_score == (1.0 if lower else 9.0)
    assert made.model[0].bias[0].item() == (0.0 if lower else 1.0)
    assert made.best_model is made.model
    assert values[1:5] == [0.0, 1.0, 2.0, 3.0]


def test_evaluations_between_epochs():
    made = Distillation()
    made.student_model, made.teacher_model = classifier(), classifier(1)
    made.eval_frequency = 2
    calls = []
    made.eval_func = lambda model: float(len(calls.append(1) or calls))
    made.train_func = lambda model: [made.on_epoch_end() for _ in range(5)] and None
    made.fit()
    assert len(calls) == 1 + 2 + 1
    with pytest.raises(ConfigTypeError, match=r"Distillation\.eval_frequency=0: expected a number of epochs"):
        made.eval_frequency = 0


def test_a_plain_loss_is_no_criterion_of_distillation():
    made = Distillation()
    made.student_model, made.teacher_model = classifier(), classifier(1)
    made.criterion, made.train_func = nn.CrossEntropyLoss(), lambda model: None
    with pytest.raises(
        ConfigTypeError, match=r"expected a distillation loss, such as common\.criterion\.PyTorchKnowle"
    ):
        made.fit()


# ------------------------------------------------------------------------------ quantization


def test_calibration_by_a_function():
    made = Quantization()
    made.model = classifier()
    calls = []
    made.calib_func = lambda model: [calls.append(len(model(inputs))) for inputs, _ in digits(3)]
    assert type(made.fit()[0]).__name__ == "Int8Linear"
    assert calls == [16] * 3
    assert made.q_func is made.train_func is made.calib_func


def test_a_loader_without_a_metric_is_told_and_topk_is_the_default_without_a_file():
    made = Quantization()
    made.model, made.calib_dataloader, made.eval_dataloader = classifier(), digits(), digits()
    made.fit()
    assert made.strategy.goal.baseline == pytest.approx(0.25, abs=0.25)
    made = Quantization({"quantization": {}})
    made.model, made.calib_dataloader, made.eval_dataloader = classifier(), digits(), digits()
    with pytest.raises(ConfigError, match="got eval_dataloader without eval_metric"):
        made.fit()
    made = Quantization({"quantization": {}})
    made.model, made.calib_dataloader, made.metric = classifier(), digits(), common.Metric("topk")
    with pytest.raises(ConfigError, match="got eval_metric without eval_dataloader"):
        made.fit()


def test_a_file_describes_data_metric_and_how_many_batches():
    data = {"batch_size": 4, "dataset": {"dummy": {"shape": [16, 8], "low": -1.0, "high": 1.0}}, "shuffle": True}
    settings = {
        "quantization": {"calibration": {"sampling_size": 8, "dataloader": data}},
        "evaluation": {"accuracy": {"metric": {"topk": 1}, "iteration": 2, "dataloader": data}},
        "tuning": {"accuracy_criterion": {"absolute": 1.0}, "random_seed": 7},
    }
    made = Quantization(settings)
    made.model = classifier()
    seed = options.random_seed
    assert [len(batch[0]) for batch in made.calib_dataloader] == [4] * 4
    assert torch.equal(next(iter(made.calib_dataloader))[0], next(iter(made.calib_dataloader))[0])
    seen = []

    class Count:
        def reset(self):
            seen.append(0)

        def update(self, preds, labels):
            seen[-1] += len(labels)

        def result(self):
            return 1.0

    with pytest.warns(InexactWarning, match=r"Quantization\.metric is assigned, that of QuantConf is not used"):
        made.metric = Count()
        made.fit()
    assert set(seen) <= {0, 8}
    assert 8 in seen
    assert options.random_seed == seed


def test_an_objective_of_ones_own(monkeypatch):
    OBJECTIVES.names()
    monkeypatch.setattr(OBJECTIVES, "_entries", dict(OBJECTIVES._entries))

    class Sizes:
        def measure(self, model, batches):
            return 1.0

    made = Quantization()
    made.model, made.calib_dataloader, made.eval_func = classifier(), digits(), lambda model: 1.0
    made.objective = Sizes()
    made.fit()
    assert made.objective == "Sizes"
    assert "Sizes" in made.strategy.trials[0].objectives
    with pytest.raises(ConfigTypeError, match=r"Quantization\.objective='latency': expected an object"):
        made.objective = "latency"


@pytest.mark.parametrize(("asked", "kind"), [("1", "Int8Linear"), ("0", "Linear")])
def test_the_environment_decides_whether_accuracy_counts(monkeypatch, asked, kind):
    monkeypatch.setenv("PERFORMANCE_ONLY", asked)
    made = Quantization()
    made.model, made.calib_dataloader = classifier(), digits()
    made.eval_func = lambda model: 1.0 if type(model[0]).__name__ == "Linear" else 0.0
    assert type(made.fit()[0]).__name__ == kind


def test_a_built_in_data_set():
    assert len(Quantization().dataset("dummy", shape=(5, 3))) == 5


# ------------------------------------------------------------------------------ the others


def test_float32_alone_leaves_the_model():
    made = MixedPrecision()
    made.model = classifier()
    made.precisions = "fp32"
    assert made.fit() is made.model
    made = MixedPrecision({"mixed_precision": {"precisions": "fp32"}})
    made.model = classifier()
    assert made.fit() is made.model


def test_a_benchmark_of_accuracy():
    made = Benchmark({"evaluation": {"accuracy": {"metric": {"topk": 1}}}})
    made.model, made.b_dataloader = classifier(), digits()
    expected = torch.cat([classifier()(inputs).argmax(1) == labels for inputs, labels in digits()])
    assert made("accuracy", quiet=True)["performance"][0] == pytest.approx(float(expected.float().mean()))
    assert made.eval_dataloader is made.dataloader is made.b_dataloader
    with pytest.raises(ConfigError, match=r"Benchmark got mode='accurcy': .* Did you mean 'accuracy'"):
        made("accurcy")
    made = Benchmark()
    made.model = classifier()
    with pytest.raises(ConfigError, match="Benchmark has no metric to measure accuracy with"):
        made("accuracy")


def test_the_global_tree_of_settings():
    try:
        conf.tuning.exit_policy.max_trials = 3
        conf.quantization.approach = "post_training_dynamic_quant"
        made = Quantization(conf)
        made.model = classifier()
        with pytest.warns(InexactWarning, match="tuning_criterion has no effect: nothing says how accurate a model is"):
            assert type(made.fit()[0]).__name__ == "Int8DynamicLinear"
        assert made.conf.usr_cfg.tuning.exit_policy.max_trials == 3
    finally:
        conf.clear()


@pytest.mark.parametrize(
    ("kind", "made"), [(Pruning, PruningConf()), (Distillation, DistillationConf()), (Quantization, QuantConf())]
)
def test_objects_of_conf_are_taken(kind, made):
    assert kind(made).conf.usr_cfg == made.usr_cfg


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train_func", 5, r"Component\.train_func=5: expected a function of the model, not int"),
        ("train_dataloader", 5, r"Component\.train_dataloader=5: expected a loader of batches"),
        ("eval_dataloader", 5, r"Component\.eval_dataloader=5: expected a loader of batches"),
    ],
)
def test_wrong_values_are_refused_as_they_are_assigned(name, value, message):
    with pytest.raises(ConfigTypeError, match=message):
        setattr(Component(), name, value)


def test_each_class_says_once_that_it_is_old():
    component._OLD.discard(Pruning)
    with pytest.warns(DeprecationWarning, match=r"inc_torch\.experimental\.Pruning has the interface of Neural Comp"):
        Pruning()
    assert Pruning in component._OLD

    class Mine(Component):
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Mine()


def test_notes_of_a_file_are_told(tmp_path):
    path = tmp_path / "conf.yaml"
    path.write_text("model:\n  name: x\n  inputs: a\npruning:\n")
    with pytest.warns(InexactWarning, match=r"conf\.yaml: line 3: model\.inputs has no effect: modules of PyTorch ha"):
        Pruning(path)


# ------------------------------------------------------------------------------ configurations of today


def test_configurations_in_place_of_a_file():
    made = Pruning(WeightPruningConfig(target_sparsity=0.5, pruning_type="magnitude", pattern="1x1"))
    made.model = classifier()
    made.update_config(target_sparsity=0.25)
    made.on_step_begin(0)
    assert fraction_of_zeros(made.model[0], made.model[2]) == 0.25
    made.on_train_end()
    made = Quantization(pythonic_config.Config(quantization=PostTrainingQuantConfig(approach="dynamic")))
    made.model = classifier()
    assert type(made.fit()[0]).__name__ == "Int8DynamicLinear"
    teacher = classifier(1)
    made = Distillation(DistillationConfig(teacher))
    made.model = classifier()
    assert made._training_configs()[0].teacher_model is teacher
    made = Benchmark(BenchmarkConfig(warmup=1, iteration=4))
    made.model, made.b_dataloader = classifier(), [inputs for inputs, _ in digits()]
    assert len(made(quiet=True)["performance"][2]) == 3


def test_a_configuration_of_another_technique_is_refused():
    made = Pruning(PostTrainingQuantConfig())
    made.model = classifier()
    with pytest.raises(
        ConfigTypeError, match="Pruning got PostTrainingQuantConfig: expected a WeightPruningConfig, or"
    ):
        made.on_train_begin()
