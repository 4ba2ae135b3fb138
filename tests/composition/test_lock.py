"""A pattern lock beside distillation and quantization, in every order: no zero is lost, and order changes nothing."""

from __future__ import annotations

import itertools
import pickle
from functools import cache

import pytest
import torch

import inc_torch
from inc_torch import QuantizationAwareTrainingConfig, WeightPruningConfig, prepare_compression
from inc_torch.quantizers import QuantSpec
from tests.composition.test_all_together import bert, bert_inputs, conv_inputs, train_bert
from tests.loops.driver import ConvNet, assert_equal_states, distillation, images, pruning, train

STEPS = 4
SETS = ("dl", "dlq", "lq", "pq", "dpq")
ORDERS = [(letters, "".join(order)) for letters in SETS for order in itertools.permutations(letters)]
HEADS = {"conv": "head", "bert": "classifier"}


def layers(model) -> dict[str, torch.nn.Module]:
    """What is pruned or locked: all but the head and embeddings."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and name not in HEADS.values()
    }


def half_empty(kind: str, seed: int = 0):
    """A model of which every other weight was pruned, one by one."""
    model = ConvNet(seed) if kind == "conv" else bert(seed)
    with torch.no_grad():
        for module in layers(model).values():
            module.weight.mul_(torch.rand_like(module.weight) > 0.5)
    return model


@cache
def trained(kind: str, letters: str):
    """The finished run, and where weights were zero before and masked after it."""
    model = half_empty(kind)
    teacher = ConvNet(1) if kind == "conv" else bert(1)
    made = {
        "d": lambda: distillation(teacher),
        "l": lambda: WeightPruningConfig(pruning_type="pattern_lock"),
        "p": lambda: pruning(pattern="1x1", target_sparsity=0.75),
        # Phases: masks first, then rounding, then frozen ranges.
        "q": lambda: QuantizationAwareTrainingConfig(start_step=2, freeze_observers_step=3, freeze_batch_norm_step=3),
    }
    zeros = {name: module.weight.detach() == 0 for name, module in layers(model).items()}
    nonzero = {name: module.weight.detach().clone() for name, module in layers(model).items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inc_torch.callbacks.quantization.warn_user", lambda *_: None)  # BERT has no batch norm
        manager = prepare_compression(model, [made[letter]() for letter in letters])
    (pruner,) = [pruner for each in manager.callbacks.callbacks_list for pruner in getattr(each, "pruners", ())]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    if kind == "conv":
        train(manager, optimizer, images(STEPS))
    else:
        train_bert(manager, optimizer)
    return manager, zeros, nonzero, {name: ~mask for name, mask in pruner.masks.items()}


@pytest.mark.parametrize("kind", ["conv", "bert"])
@pytest.mark.parametrize(("letters", "order"), ORDERS)
def test_every_order_gives_the_same_bits(kind, letters, order):
    (first, *_, masked), (other, *_, also_masked) = trained(kind, letters), trained(kind, order)
    assert_equal_states(other.model.state_dict(), first.model.state_dict())
    assert_equal_states(also_masked, masked)
    assert other.report() == first.report()
    assert {phase.what for phase in other.plan().phases} == {phase.what for phase in first.plan().phases}


@pytest.mark.parametrize("kind", ["conv", "bert"])
@pytest.mark.parametrize("letters", ["dl", "dlq", "lq"])
def test_every_single_zero_is_kept_and_the_others_learn(kind, letters):
    manager, zeros, before, masked = trained(kind, letters)
    assert_equal_states(masked, zeros)
    share = sum(int(zero.sum()) for zero in zeros.values()) / sum(zero.numel() for zero in zeros.values())
    assert 0.45 < share < 0.55
    for name, zero in zeros.items():
        module = manager.model.get_submodule(name)
        assert module.weight[zero].count_nonzero() == 0, name
        assert not torch.equal(module.weight[~zero], before[name][~zero]), name
        if "q" in letters:
            assert module.qweight.dtype == torch.int8
            assert module.qweight[zero].count_nonzero() == 0, name


@pytest.mark.parametrize("kind", ["conv", "bert"])
@pytest.mark.parametrize("letters", ["dlq", "lq", "pq", "dpq"])
def test_codes_are_the_zero_point_exactly_where_weights_are_masked(kind, letters):
    """But for weights of less than half a code, which round to it: of them the float model tells."""
    manager, *_, masked = trained(kind, letters)
    pruned = total = rounded = 0
    for name, mask in masked.items():
        module = manager.model.get_submodule(name)
        assert module.qweight[mask].count_nonzero() == 0, name
        rounded += int((module.qweight[~mask] == 0).sum())
        pruned, total = pruned + int(mask.sum()), total + mask.numel()
    assert rounded < 0.02 * (total - pruned)
    assert pruned / total == (0.75 if "p" in letters else pytest.approx(0.5, abs=0.05))


@pytest.mark.parametrize("kind", ["conv", "bert"])
@pytest.mark.parametrize("letters", ["dl", "dlq", "dpq"])
def test_nothing_is_left_and_files_and_pickles_hold_it_all(kind, letters, tmp_path):
    manager, *_ = trained(kind, letters)
    model = manager.model
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not [module for module in model.modules() if any(getattr(module, hook) for hook in hooks)]
    assert not [name for name, module in model.named_modules() if type(module).__name__.startswith("FakeQuant")]
    manager.save(tmp_path)
    loaded = inc_torch.load(tmp_path, model=ConvNet(7) if kind == "conv" else bert(7))
    copied = pickle.loads(pickle.dumps(model))
    inputs = conv_inputs() if kind == "conv" else bert_inputs()
    was_training = model.training
    with torch.no_grad():
        outputs = [each.eval()(inputs) for each in (model, loaded, copied)]
    model.train(was_training)
    expected, *others = [output if kind == "conv" else output.logits for output in outputs]
    assert all(torch.equal(other, expected) for other in others)
    assert_equal_states(loaded.state_dict(), model.state_dict())


def test_an_explicit_block_pattern_locks_whole_blocks_only():
    model = half_empty("conv")
    lock = WeightPruningConfig(pruning_type="pattern_lock", pattern="4x1")
    manager = prepare_compression(model, lock)
    blocks = (model.hidden.weight.detach().view(4, 4, 32) == 0).all(1)
    train(manager, torch.optim.AdamW(model.parameters(), lr=0.01), images(2))
    assert torch.equal((model.hidden.weight.view(4, 4, 32) == 0).all(1), blocks)
    assert 4 * int(blocks.sum()) < int((model.hidden.weight == 0).sum()) < 100  # of 256 before; some get no gradient


def test_rounding_of_a_wrong_spec_would_be_seen():
    """The codes above are those of one scale for each output channel, in which 0 is the code 0."""
    assert QuantSpec().treatment_of("conv", "Conv2d").per_channel
