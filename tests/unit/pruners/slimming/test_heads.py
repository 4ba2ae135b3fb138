"""Physical removal of attention heads."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from inc_torch import WeightPruningConfig, prepare_compression
from inc_torch.core.errors import InexactWarning
from inc_torch.pruners._attention import find_attentions
from inc_torch.pruners.slimming import model_slim, parse_auto_slim_config
from tests.unit.pruners.test_heads import bert, distilbert, gpt2, llama, opt, roberta, run, t5, vit

BATCH = {
    vit: {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))},
    t5: {"input_ids": torch.arange(10).view(2, 5) + 3, "decoder_input_ids": torch.arange(10).view(2, 5) + 3},
}
LOADABLE = (llama, vit)
NOT_LOADABLE = (bert, roberta, distilbert, gpt2, opt)


def batch_of(make) -> dict[str, torch.Tensor]:
    return BATCH.get(make, {"input_ids": torch.arange(10).view(2, 5) + 3})


def pruned(make, *, sparsity: float = 0.5, scope: str = "local", **more: float) -> nn.Module:
    torch.manual_seed(0)
    model = make().eval()
    for name, parameter in model.named_parameters():  # biases that are not zero, as in a trained model
        if name.endswith("bias"):
            parameter.data.normal_()
    configs = parse_auto_slim_config(model, [batch_of(make)], mha_sparsity=sparsity, **more)
    config = WeightPruningConfig(configs, pruning_type="magnitude", pruning_scope=scope)
    manager = prepare_compression(model, config)
    manager.on_train_begin()
    manager.on_step_begin(0)
    manager.on_train_end()
    return model


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("make", [*LOADABLE, *NOT_LOADABLE], ids=lambda make: make.__name__)
def test_dead_heads_are_gone_and_the_outputs_are_the_same(make):
    model = pruned(make)
    before = run(model).detach()
    attentions = find_attentions(model)[0]
    slim = model_slim(model, [batch_of(make)], loadable=make in LOADABLE)
    assert slim is model
    torch.testing.assert_close(run(model), before, rtol=1e-5, atol=1e-5)
    for old, new in zip(attentions, find_attentions(model)[0], strict=True):
        assert (new.name, new.heads, new.size) == (old.name, old.heads // 2, old.size)
        assert [member.sizes for member in new.members] == [member.sizes for member in old.members]
        for member in new.members:
            assert model.get_submodule(member.layer).weight.numel() == 16 * new.heads * sum(member.sizes)


@pytest.mark.parametrize("make", LOADABLE, ids=lambda make: make.__name__)
def test_what_is_saved_is_opened_by_from_pretrained(make, tmp_path):
    model = pruned(make)
    before = run(model).detach()
    model_slim(model, [batch_of(make)])
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert shapes(again) == shapes(model)
    assert (again.config.num_attention_heads, again.config.head_dim) == (2, 4)
    torch.testing.assert_close(run(again), before, rtol=1e-5, atol=1e-5)


def test_keys_and_values_go_with_all_queries_that_share_them(tmp_path):
    model = pruned(llama)
    model_slim(model, [batch_of(llama)])
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 1)
    with torch.no_grad():
        text = model.generate(torch.tensor([[5, 6]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert text.shape == (1, 6)


@pytest.mark.parametrize("make", NOT_LOADABLE, ids=lambda make: make.__name__)
def test_heads_that_a_configuration_cannot_describe_stay_in_with_a_warning(make):
    model = pruned(make)
    before, config = shapes(model), copy.deepcopy(model.config)
    with pytest.warns(InexactWarning, match=r"stay in, as zeros: its configuration cannot say.*loadable=False"):
        model_slim(model, [batch_of(make)])
    assert shapes(model) == before
    assert model.config.to_dict() == config.to_dict()
    assert all(attention.heads == 4 for attention in find_attentions(model)[0])


def test_feed_forward_parts_shrink_all_the_same():
    model = pruned(bert, ffn2_sparsity=0.5)
    before = run(model).detach()
    with pytest.warns(InexactWarning, match="cannot say that there are fewer heads"):
        model_slim(model, [batch_of(bert)], round_multiplier=4)
    assert model.config.intermediate_size == 12
    torch.testing.assert_close(run(model), before, rtol=1e-5, atol=1e-5)


def test_heads_and_feed_forward_parts_together(tmp_path):
    model = pruned(llama, ffn2_sparsity=0.5)
    before = run(model).detach()
    count = sum(parameter.numel() for parameter in model.parameters())
    model_slim(model, [batch_of(llama)], round_multiplier=4)
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.8 * count
    assert (model.config.intermediate_size, model.config.num_attention_heads) == (12, 2)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(run(type(model).from_pretrained(tmp_path).eval()), before, rtol=1e-5, atol=1e-5)


def test_attentions_of_a_model_keep_equally_many_heads():
    model = pruned(llama, sparsity=0.25, scope="global")  # one of four groups
    assert [int(m.self_attn.o_proj.weight.any(0).sum()) for m in model.model.layers] in ([16, 8], [8, 16])
    with pytest.warns(InexactWarning, match="found nothing to take out"):
        model_slim(model, [batch_of(llama)])


def test_a_model_that_has_more_to_say_of_its_heads_keeps_them():
    model = pruned(t5)
    before = run(model).detach()
    with pytest.warns(InexactWarning, match="dead heads of T5Model stay in, as zeros"):
        model_slim(model, [batch_of(t5)])
    assert torch.equal(run(model), before)


def test_a_live_head_is_never_taken():
    """All but one weight of what the output takes of a head are zero."""
    model = pruned(llama)
    for layer in model.model.layers:
        (first, *_) = torch.nonzero(layer.self_attn.o_proj.weight.count_nonzero(0) == 0).flatten().tolist()
        layer.self_attn.o_proj.weight.data[3, first] = 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InexactWarning)
        model_slim(model, [batch_of(llama)])
    assert [attention.heads for attention in find_attentions(model)[0]] == [2, 2]


def test_the_slimmed_model_can_be_trained_and_quantized():
    from inc_torch import PostTrainingQuantConfig, quantization

    model = pruned(vit, ffn2_sparsity=0.5)
    model_slim(model, [batch_of(vit)], round_multiplier=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run(model).square().mean().backward()
    optimizer.step()
    expected = run(model.eval()).detach()
    quantized = quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=[batch_of(vit)] * 4)
    with torch.no_grad():
        found = run(quantized)
    assert not torch.equal(found, expected)
    assert (found - expected).norm() < 0.1 * expected.norm()
