"""Pruning under LoRA adapters by scores of the merged weight: by its values, and by its gradient."""

from __future__ import annotations

import re

import pytest
import torch

from inc_torch import prepare_compression
from inc_torch.callbacks._lora import adapted_layers
from inc_torch.core.errors import ConfigError, InexactWarning
from tests.composition.test_peft import IDS, adapted, confs_of, cut_and_uncut, gpt2, llama, pruning

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks


def pruner_of(manager):
    return manager.callbacks.callbacks_list[0].pruners[0]


def test_scores_are_of_the_merged_weight_and_its_gradient():
    model = adapted(gpt2, init_lora_weights=False)
    manager = prepare_compression(model, pruning(pruning_type="snip", pattern="1x1"))
    layers = dict(adapted_layers(model))
    manager.on_train_begin()
    manager.on_step_begin(0)
    for ids in (IDS[:2], IDS[2:]):
        model(input_ids=ids, labels=ids).loss.backward()
    manager.on_before_optimizer_step()
    pruner = pruner_of(manager)
    assert pruner.scores.keys() == layers.keys()
    for name, layer in layers.items():
        weight = layer.base_layer.weight + layer.get_delta_weight("default")
        expected = (weight * layer.merged_gradient).abs()
        torch.testing.assert_close(pruner.scores[name].T.reshape(-1).sort()[0], expected.reshape(-1).sort()[0])
        assert layer.merged_gradient.count_nonzero()


def test_magnitude_is_that_of_the_sum():
    model = adapted(gpt2, init_lora_weights=False)
    manager = prepare_compression(model, pruning(pattern="1x1", pruning_scope="local", start_step=0, end_step=0))
    layers = dict(adapted_layers(model))
    sums = {name: layer.merged_weight().abs() for name, layer in layers.items()}
    manager.on_train_begin()
    manager.on_step_begin(0)
    for name, layer in layers.items():
        pruned = layer.base_layer.weight == 0
        assert pruned.sum() == pruned.numel() // 2
        assert sums[name][pruned].max() <= sums[name][~pruned].min()


@pytest.mark.parametrize(("criterion", "letters"), [("gradient", "p"), ("snip", "p"), ("snip_momentum", "pq")])
def test_goes_on_bit_for_bit_and_reaches_the_target(criterion, letters, tmp_path):
    """Also where scores would let a pruned weight come back, which a frozen one must not: its value is lost."""
    _, uncut = cut_and_uncut(gpt2, lambda: confs_of(letters, pruning_type=criterion, pattern="1x1"), 3, tmp_path)
    masks = pruner_of(uncut.manager).masks
    assert sum(int((~mask).sum()) for mask in masks.values()) == sum(mask.numel() for mask in masks.values()) // 2
    if letters == "p":
        assert uncut.manager.report().sparsity == 0.5
        assert all(
            torch.equal(uncut.model.get_base_model().get_submodule(name).weight != 0, masks[name]) for name in masks
        )


def test_frozen_layers_without_adapters_stay_dense():
    model = adapted(llama, target_modules=["q_proj"])
    with pytest.warns(InexactWarning, match="leaves 12 of the selected layers dense") as caught:
        manager = prepare_compression(model, pruning(pruning_type="snip_momentum"))
    assert "frozen" in str(caught[0].message)
    assert [layer.name for layer in pruner_of(manager).layers] == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    with pytest.raises(ConfigError, match=re.escape("its weight is frozen, and SnipMomentum needs gradients")):
        prepare_compression(
            adapted(llama, target_modules=["q_proj"]), pruning(pruning_type="snip_momentum", op_names=["k_proj"])
        )
