"""Pruning, quantization and distillation in one loop, in every order."""

from __future__ import annotations

import copy
import gc
import itertools
from functools import cache

import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer
from transformers import BertConfig, BertForSequenceClassification

import inc_torch
from inc_torch import prepare_compression
from inc_torch.quantizers import QuantSpec, observer_state, prepare_fake_quant
from tests.loops.driver import ConvNet, assert_equal_states, confs_of, images, train

ORDERS = ["".join(order) for order in itertools.permutations("pqd")]
STEPS = 4
BERT = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def bert(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(BERT)


def train_bert(manager, optimizer) -> None:
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(11)
    manager.on_train_begin()
    for index in range(STEPS):
        batch = {
            "input_ids": torch.randint(0, 50, (4, 7), generator=generator),
            "attention_mask": torch.ones(4, 7, dtype=torch.long),
            "labels": torch.randint(0, 2, (4,), generator=generator),
        }
        manager.on_step_begin(index)
        output = manager.model(**batch)
        manager.on_after_compute_loss(batch, output, output.loss).backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        optimizer.zero_grad()
        manager.on_step_end()
    manager.on_train_end()


def conv_inputs() -> torch.Tensor:
    return next(images(1))[0]


def bert_inputs() -> torch.Tensor:
    return torch.arange(14).view(2, 7)


@cache
def trained(kind: str, letters: str):
    """A finished run: its manager, and the masks and float weights before it was converted."""
    model, teacher = (ConvNet(), ConvNet(1)) if kind == "conv" else (bert(), bert(1))
    manager = prepare_compression(model, confs_of(letters, teacher))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    before = {}

    def look(_=None) -> None:
        for callback in manager.callbacks.callbacks_list:
            for pruner in getattr(callback, "pruners", ()):
                before.update(copy.deepcopy(pruner.masks))

    manager.register_hook("on_epoch_end", look)
    manager.register_hook("on_step_end", look)
    if kind == "conv":
        train(manager, optimizer, images(STEPS))
    else:
        train_bert(manager, optimizer)
    return manager, before


@pytest.mark.parametrize("kind", ["conv", "bert"])
@pytest.mark.parametrize("order", ORDERS[1:])
def test_the_order_of_the_configs_does_not_matter(kind, order):
    (first, masks), (other, other_masks) = trained(kind, ORDERS[0]), trained(kind, order)
    assert_equal_states(other.model.state_dict(), first.model.state_dict())
    assert_equal_states(other_masks, masks)
    assert other.report() == first.report()
    inputs = conv_inputs() if kind == "conv" else bert_inputs()
    with torch.no_grad():
        ours, theirs = first.model(inputs), other.model(inputs)
    if kind == "bert":
        ours, theirs = ours.logits, theirs.logits
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("order", ORDERS)
def test_the_list_of_callbacks_is_in_the_users_order(order):
    names = {
        "p": "Pruning Callbacks",
        "q": "Quantization Aware Training Callbacks",
        "d": "Distillation Callbacks",
    }
    manager = prepare_compression(ConvNet(), confs_of(order, ConvNet(1)))
    expected = f"[{', '.join(names[letter] for letter in order)}]"
    assert str(manager.callbacks.callbacks_list) == expected
    assert repr(manager.callbacks) == f"Dispatcher({expected})"
    assert repr(manager) == f"CompressionManager(ConvNet, {expected})"


@pytest.mark.parametrize("letters", ["pq", "pqd"])
@pytest.mark.parametrize("kind", ["conv", "bert"])
def test_zeros_of_the_masks_are_zeros_in_int8(kind, letters):
    manager, masks = trained(kind, letters)
    assert len(masks) > 1
    pruned = total = 0
    for name, mask in masks.items():
        codes = manager.model.get_submodule(name).qweight
        assert codes.dtype == torch.int8
        assert not codes[~mask].any(), name
        assert not manager.model.get_submodule(name).weight[~mask].any(), name
        pruned, total = pruned + int((~mask).sum()), total + mask.numel()
    assert pruned / total == 0.5
    # Rounding adds zeros, and never takes one away.
    assert 0.5 <= manager.report().sparsity < 0.53
    head = "head" if kind == "conv" else "classifier"
    assert head not in masks
    rows = {row.name: row for row in manager.report().modules}
    assert rows[head].asked_sparsity is None
    assert rows[head].notes == ("classifier head, not pruned",)


@pytest.mark.parametrize("letters", ["p", "q", "d", "pd", "qd", "pq"])
@pytest.mark.parametrize("kind", ["conv", "bert"])
def test_every_selection_of_techniques(kind, letters):
    manager, masks = trained(kind, letters)
    report = manager.report()
    matrices = [row for row in report.modules if "Embedding" not in row.kind]
    assert {row.bits for row in matrices} == ({8} if "q" in letters else {32})
    assert all(row.kind.startswith("Int8") == ("q" in letters) for row in matrices)
    assert bool(masks) == ("p" in letters)
    assert (report.sparsity >= 0.5) == ("p" in letters)
    assert {row.scheme for row in matrices} == ({"w8a8-static"} if "q" in letters else {None})
    assert manager.model.training == ("q" not in letters)


def test_quantization_is_what_the_fake_quantized_model_computes():
    """The int8 model gives what the model under training gave in eval mode, up to float32 rounding."""
    model = ConvNet()
    manager = prepare_compression(model, confs_of("pqd", ConvNet(1)))
    inputs, outputs = conv_inputs(), []

    class Last(inc_torch.Callback):
        def on_train_end(self):
            mode = self.model.training
            with torch.no_grad():
                outputs.append(self.model.eval()(inputs))
            self.model.train(mode)

    last = Last()
    model = ConvNet()
    manager = prepare_compression(model, [*confs_of("pqd", ConvNet(1)), last])
    train(manager, torch.optim.AdamW(model.parameters(), lr=0.01), images(STEPS))
    with torch.no_grad():
        assert torch.allclose(model(inputs), outputs[0], atol=1e-5)


def test_distillation_changes_the_weights_and_the_teacher_stays():
    teacher = ConvNet(1)
    state = copy.deepcopy(teacher.state_dict())
    model = ConvNet()
    manager = prepare_compression(model, confs_of("pd", teacher))
    train(manager, torch.optim.AdamW(model.parameters(), lr=0.01), images(STEPS))
    assert teacher.training
    assert_equal_states(teacher.state_dict(), state)
    assert not torch.equal(model.head.weight, trained("conv", "p")[0].model.head.weight)


@pytest.mark.parametrize("kind", ["conv", "bert"])
@pytest.mark.parametrize("letters", ["p", "q", "d", "pqd"])
def test_nothing_is_left_behind(kind, letters):
    gc.collect()
    before = [*torch_optimizer._global_optimizer_pre_hooks, *torch_optimizer._global_optimizer_post_hooks]
    manager, _ = trained(kind, letters)
    gc.collect()
    after = [*torch_optimizer._global_optimizer_pre_hooks, *torch_optimizer._global_optimizer_post_hooks]
    assert set(after) <= set(before)  # of runs that other tests gave up
    pristine = ConvNet() if kind == "conv" else bert()
    hooks = ["_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks"]
    for module in manager.model.modules():
        for hook in hooks:
            assert not getattr(module, hook), (type(module), hook)
    known = {name for module in pristine.modules() for name in vars(module)}
    for name, module in manager.model.named_modules():
        if not type(module).__name__.startswith("Int8"):
            extra = set(vars(module)) - known - ({"_inc_torch_report"} if name == "" else set())
            assert not {entry for entry in extra if "quant" in entry or "range" in entry}, name
    assert observer_state(manager.model) == {}
    assert list(manager.model._modules) == list(pristine._modules)


@pytest.mark.parametrize("order", ["pqd", "qpd"])
def test_parameters_and_optimizer_stay_the_users_until_the_end(order):
    model = ConvNet()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    keys = list(model.state_dict())
    manager = prepare_compression(model, confs_of(order, ConvNet(1)))
    assert manager.model is model
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert list(model.state_dict()) == keys
    manager.on_train_begin()
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert list(model.state_dict()) == keys
    for index, (inputs, labels) in enumerate(images(STEPS)):
        manager.on_step_begin(index)
        output = model(inputs)
        manager.on_after_compute_loss(inputs, output, nn.functional.cross_entropy(output, labels)).backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        optimizer.zero_grad()
        assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
        assert list(model.state_dict()) == keys
    manager.on_train_end()
    assert manager.model is model


@pytest.mark.parametrize("kind", ["conv", "bert"])
@pytest.mark.parametrize("letters", ["p", "q", "pqd"])
def test_saved_and_loaded_gives_the_same_bits(kind, letters, tmp_path):
    manager, _ = trained(kind, letters)
    model = manager.model
    manager.save(tmp_path / "one")
    model.save(tmp_path / "two")
    was_training = model.training
    model.eval()
    inputs = conv_inputs() if kind == "conv" else bert_inputs()
    for directory in ("one", "two"):
        loaded = inc_torch.load(tmp_path / directory, model=ConvNet(7) if kind == "conv" else bert(7))
        with torch.no_grad():
            expected, got = model(inputs), loaded(inputs)
        if kind == "bert":
            expected, got = expected.logits, got.logits
        assert torch.equal(got, expected)
        assert_equal_states(loaded.state_dict(), model.state_dict())
        assert loaded.__dict__["_inc_torch_report"] == manager.report() == model.report()
    model.train(was_training)


def test_one_run_after_another():
    """Prune first; then keep the zeros while the model is distilled and quantized."""
    model = ConvNet()
    first = prepare_compression(model, confs_of("p", ConvNet(1)))
    train(first, torch.optim.AdamW(model.parameters(), lr=0.01), images(STEPS))
    zeros = {name: module.weight == 0 for name, module in model.named_children() if name in {"conv", "hidden"}}
    assert sum(int(zero.sum()) for zero in zeros.values()) == sum(zero.numel() for zero in zeros.values()) / 2
    lock = inc_torch.WeightPruningConfig(pruning_type="pattern_lock")
    second = prepare_compression(model, [*confs_of("qd", ConvNet(1)), lock])
    train(second, torch.optim.AdamW(model.parameters(), lr=0.01), images(STEPS))
    for name, zero in zeros.items():
        assert not model.get_submodule(name).qweight[zero].any()
    assert "zeros locked" in second.report().modules[0].notes
    assert type(model).__name__ == "ConvNet"


def test_the_user_may_have_prepared_the_model_himself():
    model = ConvNet()
    prepare_fake_quant(model, QuantSpec())
    with pytest.raises(inc_torch.core.errors.ModelError, match="'conv' is already prepared for quantization"):
        prepare_compression(model, confs_of("q", model))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda parameters: torch.optim.AdamW(parameters, lr=0.01), "exp_avg"),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), "momentum_buffer"),
    ],
    ids=["AdamW", "SGD"],
)
def test_pruned_weights_keep_no_momentum(make, key):
    model = ConvNet()
    manager = prepare_compression(model, confs_of("pq", model))
    (pruner,) = manager.callbacks.callbacks_list[0].pruners
    optimizer, pruned = make(model.parameters()), []
    weights = {name: model.get_submodule(name).weight for name in pruner.masks}

    def look() -> None:
        is_before_an_update = len(pruned) < 2
        for name, mask in pruner.masks.items():
            momentum = optimizer.state[weights[name]][key]
            assert not is_before_an_update or not momentum[~mask].any()
            assert not weights[name][~mask].any()
            assert momentum[mask].any()
        pruned.append(sum(int((~mask).sum()) for mask in pruner.masks.values()))

    manager.register_hook("on_after_optimizer_step", look)
    train(manager, optimizer, images(STEPS))
    assert pruned == [0, 180, 364, 364]  # of 728, in blocks of 4
    for name, mask in pruner.masks.items():
        assert not optimizer.state[weights[name]][key][~mask].any()
