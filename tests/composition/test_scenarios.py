"""The snippets of Neural Compressor's documentation, with their undefined names filled in."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import inc_torch
from inc_torch.core.errors import CalibrationError, ConfigError, InexactWarning, LoopWarning
from inc_torch.quantizers import observer_state
from inc_torch.training import (
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
    prepare_compression,
)
from tests.loops.driver import ConvNet, images, mlp, pruning, rows


def test_s6_qat_with_a_trainer_that_holds_the_original_model(tmp_path):
    """Neural Compressor's own snippet gives a model whose output is all zeros."""

    class Trainer:
        def __init__(self, model, data):
            self.model, self.data = model, data
            self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

        def train(self):
            self.model.train()
            for inputs, labels in self.data:
                F.cross_entropy(self.model(inputs), labels).backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                steps.append(int(observer_state(self.model)["conv"]["steps"]))

    steps = []
    model = ConvNet()
    trainer = Trainer(model, images(5))
    conf = QuantizationAwareTrainingConfig()
    compression_manager = prepare_compression(model, conf)
    compression_manager.callbacks.on_train_begin()
    trainer.train()
    compression_manager.callbacks.on_train_end()
    compression_manager.save(tmp_path)

    assert steps == [1, 2, 3, 4, 5]
    assert compression_manager.model is model is trainer.model
    inputs, _ = next(images(1))
    float_model = ConvNet()
    with torch.no_grad():
        output = model(inputs)
        loaded = inc_torch.load(tmp_path, model=float_model)(inputs)
    assert output.abs().max() > 0.1
    assert torch.equal(output, loaded)
    assert [type(module).__name__ for module in (model.conv, model.hidden, model.head)] == [
        "Int8Conv2d",
        "Int8Linear",
        "Int8Linear",
    ]


def test_s6_without_training_is_an_error_and_not_a_model_of_zeros():
    manager = prepare_compression(ConvNet(), QuantizationAwareTrainingConfig())
    manager.on_train_begin()
    with pytest.raises(CalibrationError, match="no input of 'conv', 'hidden', 'head' was observed") as caught:
        manager.on_train_end()
    assert caught.value.__notes__ == [
        "In on_train_end of QuantizationAwareTrainingCallbacks, called by inc_torch at optimizer step 0."
    ]
    # The run can go on from there.
    manager.model(next(images(1))[0])
    manager.on_train_end()
    assert type(manager.model.conv).__name__ == "Int8Conv2d"


def test_s6_with_distillation_says_that_it_had_no_part():
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager = prepare_compression(model, [QuantizationAwareTrainingConfig(), DistillationConfig(ConvNet(1))])
    manager.on_train_begin()
    with pytest.warns(LoopWarning, match="on_after_compute_loss, so DistillationCallbacks had no part") as caught:
        for inputs, labels in images(3):
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        manager.on_train_end()
    assert len(caught) == 1


def test_s8_hooks_of_1x_with_gradient_accumulation():
    model = mlp()
    manager = prepare_compression(model, pruning())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with pytest.warns(LoopWarning) as caught:
        for epoch in range(2):
            manager.on_epoch_begin(epoch)
            for step, (inputs, labels) in enumerate(rows(6)):
                manager.on_step_begin(step)
                (F.cross_entropy(model(inputs), labels) / 3).backward()
                if (step + 1) % 3 == 0:
                    manager.on_before_optimizer_step()
                    optimizer.step()
                    optimizer.zero_grad()
                manager.on_step_end()
            manager.on_epoch_end()
        manager.on_train_end()
    assert sorted(str(warning.message).split(";")[0].split()[-1] for warning in caught) == [
        "on_after_optimizer_step",
        "on_train_begin",
    ]
    assert manager.callbacks.progress.step == 4
    assert manager.report().sparsity == 0.5


def test_s9_keys_of_1x_and_s11_two_local_configs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer1 = nn.ModuleDict({"first": nn.Linear(8, 16), "second": nn.Linear(16, 8)})
            self.layer2 = nn.ModuleDict({"first": nn.Linear(8, 8)})
            self.layer3 = nn.Linear(8, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x, labels):
            x = self.layer2["first"](self.layer1["second"](F.relu(self.layer1["first"](x))))
            logits = self.head(F.relu(self.layer3(x)))
            return SimpleNamespace(logits=logits, loss=F.cross_entropy(logits, labels))

    config = {
        "target_sparsity": 0.9,
        "pruning_type": "snip_momentum",
        "pattern": "4x1",
        "op_names": [],
        "excluded_op_names": ["layer3"],
        "start_step": 1,
        "end_step": 4,
        "pruning_scope": "global",
        "pruning_frequency": 1,
        "min_sparsity_ratio_per_op": 0.0,
        "max_sparsity_ratio_per_op": 0.98,
        "sparsity_decay_type": "exp",
        "pruning_op_types": ["Conv", "Linear"],
    }
    configs = WeightPruningConfig(
        [
            {"op_names": ["layer1.*"], "pattern": "4x1"},
            {"op_names": ["layer2.*"], "pattern": "1x1", "target_sparsity": 0.5},
        ],
        **config,
    )
    model = Net()
    compression_manager = prepare_compression(model=model, confs=configs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    compression_manager.callbacks.on_train_begin()
    for epoch in range(2):
        model.train()
        compression_manager.callbacks.on_epoch_begin(epoch)
        for step in range(4):
            batch = {"x": torch.randn(8, 8), "labels": torch.randint(0, 2, (8,))}
            compression_manager.callbacks.on_step_begin(step)
            outputs = model(**batch)
            outputs.loss.backward()
            compression_manager.callbacks.on_before_optimizer_step()
            optimizer.step()
            compression_manager.callbacks.on_after_optimizer_step()
            optimizer.zero_grad()
            compression_manager.callbacks.on_step_end()
        compression_manager.callbacks.on_epoch_end()
    compression_manager.callbacks.on_train_end()

    rows_of = {row.name: row for row in compression_manager.report().modules}
    blocks = [rows_of[f"layer1.{name}"] for name in ("first", "second")]
    assert [row.asked_sparsity for row in blocks] == [0.9, 0.9]
    # floor(0.9 * 64 blocks) = 57, all of them whole columns of four.
    assert sum(row.zeros for row in blocks) == 57 * 4
    for name in ("first", "second"):
        weight = model.layer1[name].weight
        columns = (weight == 0).view(-1, 4, weight.shape[1]).sum(1)
        assert set(columns.unique().tolist()) <= {0, 4}
    assert (rows_of["layer2.first"].pattern, rows_of["layer2.first"].sparsity) == ("1x1", 0.5)
    assert rows_of["layer3"].zeros == rows_of["head"].zeros == 0
    groups = {row.name: row.group for row in compression_manager.report().modules}
    assert groups == {"layer1.first": 0, "layer1.second": 0, "layer2.first": 1, "layer3": None, "head": None}


def test_s10_all_hooks_of_2x_in_both_spellings():
    for of in (lambda manager: manager, lambda manager: manager.callbacks):
        model = mlp()
        manager = prepare_compression(model, pruning())
        hooks, optimizer = of(manager), torch.optim.SGD(model.parameters(), lr=0.1)
        hooks.on_train_begin()
        hooks.on_epoch_begin(0)
        for batch, (inputs, labels) in enumerate(rows(4)):
            hooks.on_step_begin(batch)
            F.cross_entropy(model(inputs), labels).backward()
            hooks.on_before_optimizer_step()
            optimizer.step()
            hooks.on_after_optimizer_step()
            hooks.on_step_end()
        hooks.on_epoch_end()
        hooks.on_train_end()
        assert manager.report().sparsity == 0.5


def test_s13_precomputed_teacher_logits_and_few_hooks():
    """Batches of five, the teacher's logits first; no epoch begin, no step hooks, no teacher at all."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertForSequenceClassification(config).eval()
    loss_config = KnowledgeDistillationLossConfig(temperature=2.0, loss_types=["CE", "KL"], loss_weights=[0.25, 0.75])
    distiller = prepare_compression(model, DistillationConfig(criterion=loss_config))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    distiller.on_train_begin()
    for _ in range(3):
        teacher_logits = torch.randn(4, 2)
        ids, labels = torch.randint(0, 30, (4, 5)), torch.randint(0, 2, (4,))
        batch = (teacher_logits, ids, torch.zeros_like(ids), torch.ones_like(ids), labels)
        inputs = {"input_ids": batch[1], "token_type_ids": batch[2], "attention_mask": batch[3], "labels": batch[4]}
        output = model(**inputs)
        loss = distiller.on_after_compute_loss(inputs, output, output.loss, batch[0])
        student, teacher = F.log_softmax(output.logits / 2, -1), F.softmax(teacher_logits / 2, -1)
        expected = 0.25 * output.loss + 0.75 * 4 * F.kl_div(student, teacher, reduction="none").mean()
        assert torch.allclose(loss, expected, atol=1e-6)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    distiller.on_epoch_end()
    # No on_train_end: nothing is converted, and nothing hangs on it.
    assert type(model).__name__ == "BertForSequenceClassification"


def test_s13_without_teacher_and_logits_is_an_error():
    distiller = prepare_compression(mlp(), DistillationConfig())
    distiller.on_train_begin()
    with pytest.raises(ConfigError, match="neither a teacher nor a teacher_output") as caught:
        distiller.on_after_compute_loss(torch.ones(2, 12), torch.ones(2, 4), torch.tensor(1.0))
    assert "In on_after_compute_loss of DistillationCallbacks" in caught.value.__notes__[-1]


@pytest.mark.parametrize(
    "criterion",
    [
        KnowledgeDistillationLossConfig,
        "KnowledgeDistillationLoss",
        {"KnowledgeDistillationLoss": {"temperature": 1.0, "loss_types": ["CE", "CE"], "loss_weights": [0.5, 0.5]}},
        KnowledgeDistillationLossConfig(),
    ],
    ids=["class", "name", "1.X dict", "object"],
)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, "SGD", {"SGD": {"learning_rate": 0.1}}], ids=str)
def test_s14_names_and_classes_for_criterion_and_optimizer(criterion, optimizer):
    conf = DistillationConfig(teacher_model=mlp(1).eval(), criterion=criterion, optimizer=optimizer)
    model = mlp().eval()
    manager = prepare_compression(model, conf)
    manager.on_train_begin()
    inputs, labels = next(rows(1))
    output = model(inputs)
    loss = manager.on_after_compute_loss(inputs, output, F.cross_entropy(output, labels))
    with torch.no_grad():
        soft = F.softmax(mlp(1).eval()(inputs), -1)
    expected = 0.5 * F.cross_entropy(output, labels) + 0.5 * F.cross_entropy(output, soft)
    assert torch.allclose(loss, expected, atol=1e-6)


def test_s15_loop_on_the_manager_without_on_after_optimizer_step():
    """A callback that does not listen to a hook is no reason to warn of it; an output is a plain tensor."""
    model, teacher = ConvNet(), ConvNet(1)
    conf = DistillationConfig(teacher_model=teacher, criterion=KnowledgeDistillationLossConfig())
    compression_manager = prepare_compression(model, conf)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def training_func(model):
        compression_manager.on_train_begin()
        for epoch in range(1):
            compression_manager.on_epoch_begin(epoch)
            for index, (batch, labels) in enumerate(images(3)):
                compression_manager.on_step_begin(index)
                output = model(batch)
                loss = F.cross_entropy(output, labels)
                loss = compression_manager.on_after_compute_loss(batch, output, loss)
                optimizer.zero_grad()
                loss.backward()
                compression_manager.on_before_optimizer_step()
                optimizer.step()
                compression_manager.on_step_end()
            compression_manager.on_epoch_end()
        compression_manager.on_train_end()

    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training_func(model)
    assert not torch.equal(before["conv.weight"], model.conv.weight)
    assert compression_manager.callbacks.progress.step == 3


@pytest.mark.parametrize("order", ["dp", "pd"])
def test_s21_the_student_as_teacher_and_default_pruning(order, tmp_path):
    model = ConvNet()
    start = copy.deepcopy(model)
    distillation_criterion = KnowledgeDistillationLossConfig()
    d_conf = DistillationConfig(model, distillation_criterion)
    p_conf = WeightPruningConfig()
    with pytest.warns(
        InexactWarning, match="The teacher ConvNet shares weights with the student. A frozen copy"
    ) as copied:
        compression_manager = prepare_compression(
            model=model, confs=[d_conf, p_conf] if order == "dp" else [p_conf, d_conf]
        )
    assert len(copied) == 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def train_loop():
        compression_manager.on_train_begin()
        for epoch in range(2):
            compression_manager.on_epoch_begin(epoch)
            for index, (batch, labels) in enumerate(images(4)):
                compression_manager.on_step_begin(index)
                output = model(batch)
                loss = F.cross_entropy(output, labels)
                folded = compression_manager.on_after_compute_loss(batch, output, loss)
                with torch.no_grad():
                    soft = F.softmax(start.eval()(batch), -1)
                assert torch.allclose(folded, 0.5 * loss + 0.5 * F.cross_entropy(output, soft), atol=1e-5)
                folded.backward()
                compression_manager.on_before_optimizer_step()
                optimizer.step()
                optimizer.zero_grad()
                compression_manager.on_step_end()
            compression_manager.on_epoch_end()
        compression_manager.on_train_end()

    with pytest.warns(UserWarning) as caught:
        compression_manager.callbacks.on_train_begin()
        train_loop()
    assert sorted(str(warning.message).split(" yet")[0].split(";")[0] for warning in caught) == [
        "Pruning criterion SnipMomentum has seen no gradient",
        "The training loop does not call on_after_optimizer_step",
    ]
    report = compression_manager.report()
    # conv 8x27 and hidden 16x32 in blocks of 4x1: floor(0.9 * (54 + 128)) = 163 of 182
    assert sum(row.pruned_units for row in report.modules if row.units) == 163
    assert report.sparsity == 163 * 4 / (8 * 27 + 16 * 32)
    assert model.training

    model.save(tmp_path / "save")
    loaded = inc_torch.load(tmp_path / "save", model=ConvNet(3))
    with torch.no_grad():
        assert torch.equal(loaded(torch.ones(1, 3, 4, 4)), model.eval()(torch.ones(1, 3, 4, 4)))
    assert loaded.__dict__["_inc_torch_report"] == report


def one_shot(model, confs):
    """The loop of Neural Compressor's orchestration page."""
    compression_manager = prepare_compression(model=model, confs=confs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    compression_manager.callbacks.on_train_begin()
    for epoch in range(2):
        compression_manager.callbacks.on_epoch_begin(epoch)
        for index, (batch, labels) in enumerate(images(4)):
            compression_manager.callbacks.on_step_begin(index)
            output = compression_manager.model(batch)
            loss = F.cross_entropy(output, labels)
            loss = compression_manager.callbacks.on_after_compute_loss(batch, output, loss)
            loss.backward()
            compression_manager.callbacks.on_before_optimizer_step()
            optimizer.step()
            compression_manager.callbacks.on_after_optimizer_step()
            optimizer.zero_grad()
            compression_manager.callbacks.on_step_end()
        compression_manager.callbacks.on_epoch_end()
    compression_manager.callbacks.on_train_end()
    return compression_manager


def half_empty() -> ConvNet:
    model = ConvNet()
    with torch.no_grad():
        for module in (model.conv, model.hidden):
            module.weight.mul_(torch.rand_like(module.weight) > 0.5)
    return model


@pytest.mark.parametrize("order", ["pq", "qp"])
def test_s32_pruning_during_quantization_aware_training(order):
    confs = {"p": pruning(), "q": QuantizationAwareTrainingConfig(start_step=3)}
    manager = one_shot(ConvNet(), [confs[letter] for letter in order])
    rows = {row.name: row for row in manager.report().modules}
    assert {row.bits for row in rows.values()} == {8}
    assert 0.5 <= manager.report().sparsity < 0.53
    assert manager.plan(8).notes == ()


@pytest.mark.parametrize("order", ["dl", "ld"])
@pytest.mark.parametrize("quantizes", [False, True], ids=["S33", "S34"])
def test_s33_and_s34_distillation_with_a_pattern_lock(order, quantizes):
    model, teacher = half_empty(), ConvNet(1)
    zeros = {name: model.get_submodule(name).weight == 0 for name in ("conv", "hidden")}
    confs = {
        "d": DistillationConfig(teacher, KnowledgeDistillationLossConfig()),
        "l": WeightPruningConfig(pruning_type="pattern_lock", target_sparsity=0.5),
    }
    manager = one_shot(model, [confs[letter] for letter in order] + [QuantizationAwareTrainingConfig()] * quantizes)
    for name, zero in zeros.items():
        module = model.get_submodule(name)
        assert not (module.qweight if quantizes else module.weight)[zero].any()
    assert {row.bits for row in manager.report().modules} == {8 if quantizes else 32}


@pytest.mark.parametrize("shots", [["p"], ["d"], ["d", "p"]], ids=["S35", "S36", "S37"])
def test_s35_to_s37_one_shot_after_another_by_hand(shots):
    """As 2.X does it: the model of one manager goes into the next, and into `quantization.fit`."""
    model = ConvNet()
    for shot in shots:
        conf = pruning() if shot == "p" else DistillationConfig(ConvNet(1), KnowledgeDistillationLossConfig())
        manager = one_shot(model, conf)
    zeros = {name: model.get_submodule(name).weight == 0 for name in ("conv", "hidden")}
    # INC's wrapper holds the model in .model, and both are taken.
    for given in (manager.model, manager.model.model):
        int8 = inc_torch.quantization.fit(given, calib_dataloader=[batch for batch, _ in images(3)])
        for name, zero in zeros.items():
            assert not int8.get_submodule(name).qweight[zero].any()
        assert (int8.report().sparsity >= 0.5) == ("p" in shots)


def test_the_teacher_may_be_a_frozen_copy_of_the_student():
    model = ConvNet()
    teacher = copy.deepcopy(model).eval()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    manager = prepare_compression(model, [DistillationConfig(teacher), pruning(), QuantizationAwareTrainingConfig()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    state = copy.deepcopy(teacher.state_dict())
    manager.on_train_begin()
    for index, (inputs, labels) in enumerate(images(4)):
        manager.on_step_begin(index)
        output = model(inputs)
        manager.on_after_compute_loss(inputs, output, F.cross_entropy(output, labels)).backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        optimizer.zero_grad()
        manager.on_step_end()
    manager.on_train_end()
    assert all(torch.equal(tensor, state[name]) for name, tensor in teacher.state_dict().items())
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert type(teacher.conv) is nn.Conv2d
    assert type(model.conv).__name__ == "Int8Conv2d"


@pytest.mark.parametrize("times", [2])
def test_each_snippet_twice_in_one_process_gives_the_same(times):
    def once():
        model = mlp()
        manager = prepare_compression(model, pruning(pruning_type="magnitude"))
        optimizer = torch.optim.SGD(model.eval().parameters(), lr=0.1)
        manager.on_train_begin()
        for index, (inputs, labels) in enumerate(rows(4)):
            manager.on_step_begin(index)
            F.cross_entropy(model(inputs), labels).backward()
            manager.on_before_optimizer_step()
            optimizer.step()
            manager.on_after_optimizer_step()
            optimizer.zero_grad()
            manager.on_step_end()
        manager.on_train_end()
        return model.state_dict()

    results = [once() for _ in range(times)]
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())
