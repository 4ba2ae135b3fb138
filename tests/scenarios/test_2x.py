"""Snippets for 2.X: configurations in Python, hooks of a compression manager."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForSequenceClassification

import inc_torch
from inc_torch import KnowledgeDistillationLossConfig
from inc_torch.core.errors import ConfigError, InexactWarning, LoopWarning
from tests.scenarios.models import bert, classifier, digits, glue, sentences
from tests.scenarios.running import run, snippet, twice

FLOAT = {"classifier": {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}}


@twice
def test_s2_all_keys_of_ptq():
    conf = run("s02.py", op_dict=FLOAT).conf
    assert (conf.backend, conf.device, conf.approach) == ("default", "cpu", "post_training_static_quant")
    assert conf.inputs == ("image_tensor",)
    assert conf.calibration_sampling_size == (1000, 2000)
    assert conf.op_name_dict == {"classifier": {"weight": {"dtype": ("fp32",)}, "activation": {"dtype": ("fp32",)}}}
    assert (conf.tuning_criterion.strategy, conf.tuning_criterion.performance_only) == ("basic", False)
    assert (conf.tuning_criterion.timeout, conf.tuning_criterion.max_trials) == (0.0, 100)
    assert conf.accuracy_criterion.relative == 0.01


@twice
def test_s3_ptq():
    done = run("s03.py", **(glue() | {"eval_func": lambda model: 1.0}))
    assert type(done.q_model.bert.encoder.layer[0].output.dense).__name__ == "Int8Linear"
    assert type(done.model.bert.encoder.layer[0].output.dense).__name__ == "Linear"
    batch = sentences(1)[0]
    loaded = AutoModelForSequenceClassification.from_pretrained("out")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, done.q_model(**batch).logits)


@twice
def test_s5_all_keys_of_qat():
    conf = run("s05.py", op_dict=FLOAT).conf
    assert conf.accuracy_criterion.relative == 0.01
    assert (conf.tuning_criterion.timeout, conf.tuning_criterion.max_trials) == (0.0, 100)
    assert conf.outputs == ("num_detections,detection_boxes,detection_scores,detection_classes",)


class Trainer:
    """Holds the model that it was given before anything was prepared."""

    def __init__(self, model):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def train(self):
        self.model.train()
        for batch in sentences():
            self.model(**batch).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


@twice
def test_s6_qat_with_a_trainer():
    names = glue()
    done = run("s06.py", **names, trainer=Trainer(names["model"]))
    assert done.compression_manager.model is names["model"]
    assert type(names["model"].classifier).__name__ == "Int8Linear"
    batch = sentences(1)[0]
    with torch.no_grad():
        logits = names["model"](**batch).logits
        assert logits.abs().max() > 0.01
        assert torch.equal(AutoModelForSequenceClassification.from_pretrained("out")(**batch).logits, logits)


@twice
def test_s9_keys_of_pruning():
    conf = run("s09.py", pruning_config={"op_names": ["layer1"], "pattern": "4x1"}).conf
    (spec,) = conf.to_specs()
    assert (spec.start, spec.end, spec.frequency, spec.target) == (0, 10, 2, 0.97)
    assert (spec.op_names, spec.pattern_text) == (("layer1",), "4x1")


@twice
def test_s10_and_s11_pruning_with_hooks():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer1, self.layer2 = nn.Linear(8, 16), nn.Linear(16, 8)
            self.layer3, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x, labels):
            logits = self.head(F.relu(self.layer3(F.relu(self.layer2(F.relu(self.layer1(x)))))))
            return SimpleNamespace(loss=F.cross_entropy(logits, labels))

    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    config = SimpleNamespace(  # the dict of the snippet, whose keys it reads as attributes
        target_sparsity=0.9, pattern="4x1", pruning_frequency=1, start_step=0, end_step=10, pruning_type="snip_momentum"
    )
    done = run(
        "s11.py",
        config=config,
        model=model,
        num_train_epochs=2,
        train_dataloader=[{"x": inputs, "labels": labels} for inputs, labels in digits(6)],
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0),
    )
    rows = {row.name: row for row in done.compression_manager.report().modules}
    assert rows["layer1"].zeros == int(0.9 * 32) * 4
    assert rows["layer2"].sparsity == 0.5
    assert rows["layer3"].zeros == rows["head"].zeros == 0


@twice
def test_s14_a_criterion_by_its_class_or_name():
    for criterion in (KnowledgeDistillationLossConfig, "KnowledgeDistillationLoss"):
        conf = run("s14.py", KnowledgeDistillationLoss=criterion, SGD=torch.optim.SGD).conf
        assert conf.criterion == KnowledgeDistillationLossConfig()
        assert conf.optimizer is torch.optim.SGD


@twice
def test_s15_self_distillation_of_a_model_with_one_output():
    model = classifier()
    start = model[0].weight.detach().clone()
    scores = []
    with pytest.warns(InexactWarning) as caught:
        done = run(
            "s15.py",
            model=model,
            nn=nn,
            torch=torch,
            epochs=1,
            dataloader=digits(),
            eval_func=lambda given: scores.append(given),
        )
    assert scores == [model]
    assert done.compression_manager.model is model
    (message,) = {str(warning.message) for warning in caught}
    assert "there is nothing to learn from, and the loss stays as it is" in message
    # One output has nothing to learn from: the loss of the task counts, as without distillation.
    twin = classifier()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.0001)
    for inputs, labels in digits():
        optimizer.zero_grad()
        F.cross_entropy(twin(inputs), labels).backward()
        optimizer.step()
    assert not torch.equal(model[0].weight, start)
    assert torch.equal(model[0].weight, twin[0].weight)


@twice
def test_s18_and_s19_mixed_precision():
    conf = run("s18.py").conf
    assert (conf.precisions, conf.tuning_criterion.max_trials) == (("bf16",), 100)
    model = classifier()
    done = run("s19.py", model=model)
    assert done.converted_model[0].weight.dtype == torch.bfloat16
    inputs = torch.randn(4, 8)
    loaded = inc_torch.load("path/to/save", model=classifier(1))
    with torch.no_grad():
        assert torch.equal(loaded(inputs), done.converted_model(inputs))


@twice
def test_s21_distillation_and_pruning_in_one_loop():
    model = classifier()
    with pytest.warns((InexactWarning, LoopWarning)) as caught:
        done = run(
            "s21.py",
            model=model,
            epochs=2,
            dataloader=digits(),
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        )
    assert [" ".join(str(warning.message).split(" ")[:3]) for warning in caught] == [
        "The teacher Sequential",  # is the student: a frozen copy of it teaches
        "Pruning criterion SnipMomentum",  # the default end_step=0 wants to prune before there is a gradient
        "The training loop",  # has no on_after_optimizer_step
    ]
    report = done.compression_manager.report()
    # floor(0.9 * 64 blocks) of the layers that are no head
    assert {row.name: row.zeros for row in report.modules if row.asked_sparsity}.keys() == {"0", "2"}
    assert sum(row.zeros for row in report.modules) == int(0.9 * 64) * 4
    loaded = inc_torch.load("path/to/save", model=classifier(1))
    inputs = torch.randn(4, 8)
    with torch.no_grad():
        assert torch.equal(loaded(inputs), model.eval()(inputs))


@twice
def test_s24_all_keys_of_a_benchmark():
    conf = run("s24.py").conf
    assert (conf.warmup, conf.iteration, conf.cores_per_instance, conf.num_of_instance) == (10, 100, 4, 7)
    assert (conf.inter_num_of_threads, conf.intra_num_of_threads) == (1, 4)


@twice
def test_s25_a_benchmark_of_a_saved_model(capfd):
    int8 = inc_torch.quantization.fit(bert(), calib_dataloader=sentences())
    inc_torch.save_for_huggingface_upstream(int8, None, "int8")
    with pytest.raises(ConfigError, match="28"):  # 4 cores for each of 7 instances
        run("s25.py", eval_dataloader=sentences())
    text = snippet("s25.py").replace("cores_per_instance=4, num_of_instance=7", "cores_per_instance=1")
    text = text.replace("iteration=100", "iteration=30")
    namespace = {"eval_dataloader": sentences()}
    exec(compile(text, "s25.py", "exec"), namespace)
    _, batch_size, seconds = namespace["result"]["performance"]
    assert (batch_size, len(seconds)) == (8, 20)
    assert "Throughput" in capfd.readouterr().out
