"""Attention heads: found in any model, scored over all their layers, pruned as one."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from inc_torch.config import WeightPruningConfig
from inc_torch.core.errors import ConfigError, InexactWarning
from inc_torch.pruners import MatrixView, parse_pattern
from inc_torch.pruners._attention import Attention, HeadChannels, find_attentions
from inc_torch.pruners._parts import Part
from inc_torch.pruners.patterns.heads import HeadGrid
from inc_torch.training import prepare_compression
from tests.unit.pruners.vectors import VECTORS, Conv1D, Vector, config_of, pruners_of

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}


class Core(nn.Module):
    """Queries, keys and values, and a head count, as in BERT."""

    def __init__(self, width: int, heads: int, keys: int | None = None) -> None:
        super().__init__()
        self.num_heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, keys or width, bias=False)
        self.value = nn.Linear(width, keys or width, bias=False)


class Block(nn.Module):
    def __init__(self, width: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.attn = Core(width, heads)
        self.out = nn.Linear(width, width, bias=False)


class Blocks(nn.Module):
    def __init__(self, count: int = 2, **more: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(**more) for _ in range(count))

    def members(self, index: int) -> list[nn.Linear]:
        block = self.blocks[index]
        return [block.attn.query, block.attn.key, block.attn.value, block.out]


# ---------------------------------------------------------------------------- as INC, and better


def replayed(vector: Vector, *, asks: str | None = None) -> tuple[Any, Blocks]:
    """Run a vector's gradients; the masks and scores of each step are compared on the way."""
    inputs, expected = vector["inputs"], vector["expected"]
    model = Blocks(len(inputs["weights"]))
    for index, weights in enumerate(inputs["weights"]):
        for module, weight in zip(model.members(index), weights, strict=True):
            module.weight.data.copy_(torch.tensor(weight))
    manager = prepare_compression(model, config_of(vector))
    (pruner,) = pruners_of(manager)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    manager.on_train_begin()
    for step, (gradients, at_step) in enumerate(zip(inputs["grads_per_step"], expected["steps"], strict=True)):
        manager.on_step_begin(step)
        masks = {
            f"blocks.{index}.attn": [pruner.stored_masks.get(f"blocks.{index}.out", torch.ones(2)).int().tolist()]
            for index in range(2)
        }
        if asks is None:
            assert masks == at_step["head_masks_after_step_begin"], step
        for index, own in enumerate(gradients):
            for module, gradient in zip(model.members(index), own, strict=True):
                module.weight.grad = torch.tensor(gradient)
        is_update = pruner.window.ratio_at(step) is not None
        for name, scores in at_step["head_scores"].items() if is_update and pruner.scores and asks is None else ():
            own = [pruner.scores[layer.name] for layer in pruner.layers if layer.name.startswith(name[:8])]
            torch.testing.assert_close(torch.stack(own).mean(0), torch.tensor(scores), rtol=1e-5, atol=0)
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
    return pruner, model


@pytest.mark.parametrize("name", ["H01-mha-global", "H04-mha-criterion_type"])
def test_heads_are_pruned_as_by_inc(name):
    vector = VECTORS[name]
    _, model = replayed(vector)
    for index, weights in enumerate(vector["expected"]["final_weights"]):
        for module, weight in zip(model.members(index), weights, strict=True):
            torch.testing.assert_close(module.weight.data, torch.tensor(weight), rtol=0, atol=0)


def test_the_pruning_type_is_the_criterion_of_heads_too():
    """H03: INC always takes snip_momentum; H04 is what magnitude gives."""
    _, model = replayed(VECTORS["H03-mha-magnitude-name-ignored"], asks="better")
    for index, weights in enumerate(VECTORS["H04-mha-criterion_type"]["expected"]["final_weights"]):
        for module, weight in zip(model.members(index), weights, strict=True):
            torch.testing.assert_close(module.weight.data, torch.tensor(weight), rtol=0, atol=0)


def test_no_attention_loses_all_of_its_heads():
    """H05: INC takes both heads of the first block, which leaves it nothing to attend with."""
    pruner, model = replayed(VECTORS["H05-mha-whole-layer-removed"], asks="better")
    assert pruner.sparsity == 0.5
    for index in range(2):
        assert [int(mask.sum()) for mask in (pruner.stored_masks[f"blocks.{index}.out"],)] == [1]
        assert all(module.weight.count_nonzero() == 8 for module in model.members(index))


# ---------------------------------------------------------------------------- found in real models


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, vocab_size=30))


def roberta() -> nn.Module:
    return transformers.RobertaModel(transformers.RobertaConfig(**SMALL, vocab_size=30))


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(vocab_size=30, dim=16, n_layers=2, n_heads=4, hidden_dim=24)
    return transformers.DistilBertModel(config)


def gpt2() -> nn.Module:
    sizes = {"vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, vocab_size=30, num_key_value_heads=2))


def vit() -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(**SMALL, image_size=8, patch_size=4))


def opt() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 24}
    return transformers.OPTModel(transformers.OPTConfig(**sizes, vocab_size=30, word_embed_proj_dim=16))


def t5() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
    return transformers.T5Model(transformers.T5Config(**sizes, vocab_size=30))


FOUND = {
    bert: ("bert.encoder.layer.0.attention", 4, [(4,), (4,), (4,), (4,)]),
    roberta: ("encoder.layer.0.attention", 4, [(4,), (4,), (4,), (4,)]),
    distilbert: ("transformer.layer.0.attention", 4, [(4,), (4,), (4,), (4,)]),
    gpt2: ("transformer.h.0.attn", 4, [(4, 4, 4), (4,)]),
    llama: ("model.layers.0.self_attn", 2, [(8,), (4,), (4,), (8,)]),
    vit: ("layers.0.attention", 4, [(4,), (4,), (4,), (4,)]),
    opt: ("decoder.layers.0.self_attn", 4, [(4,), (4,), (4,), (4,)]),
    t5: ("encoder.block.0.layer.0.SelfAttention", 4, [(4,), (4,), (4,), (4,)]),
}


@pytest.mark.parametrize("make", FOUND, ids=lambda make: make.__name__)
def test_the_attentions_of_a_model_are_found(make):
    name, heads, sizes = FOUND[make]
    model = make()
    attentions, unknown = find_attentions(model)
    assert unknown == {}
    assert len(attentions) == (3 if make is t5 else 2)
    first = attentions[0]
    assert (first.name, first.heads, [member.sizes for member in first.members]) == (name, heads, sizes)
    assert [member.of_outputs for member in first.members] == [True] * (len(sizes) - 1) + [False]
    assert all(member.layer.startswith(name) for member in first.members)


def run(model: nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    if isinstance(model, transformers.ViTModel):
        return model(torch.randn(2, 3, 8, 8)).last_hidden_state
    tokens = {"input_ids": torch.randint(30, (2, 5))}
    if isinstance(model, transformers.T5Model):
        tokens["decoder_input_ids"] = tokens["input_ids"]
    return model(**tokens)[0]


@pytest.mark.parametrize("make", FOUND, ids=lambda make: make.__name__)
def test_a_pruned_head_has_no_say_in_the_output_and_the_others_have(make):
    """What a head's own values are does not matter any more; what the heads that stay are does."""
    torch.manual_seed(0)
    model = make().eval()
    config = WeightPruningConfig(
        pattern="mha",
        pruning_type="magnitude",
        target_sparsity=0.5,
        pruning_scope="local",
        max_sparsity_ratio_per_op=0.5,
    )
    manager = prepare_compression(model, config)
    manager.on_train_begin()
    manager.on_step_begin(0)
    (pruner,) = pruners_of(manager)
    assert pruner.sparsity == 0.5
    attention = find_attentions(model)[0][0]
    *_, values, output = attention.members
    kept = pruner.stored_masks[output.layer]
    assert int(kept.sum()) == attention.heads // 2
    with torch.no_grad():
        before = run(model)
        module = model.get_submodule(values.layer)
        matrix = module.weight.t() if type(module).__name__ == "Conv1D" else module.weight
        (*_, (start, size)) = list(values.runs(attention.heads))
        of_head = [slice(start + head * size, start + (head + 1) * size) for head in range(attention.heads)]
        for head in torch.nonzero(~kept).flatten().tolist():
            assert matrix[of_head[head]].count_nonzero() == 0
            matrix[of_head[head]] = 7.0
        torch.testing.assert_close(run(model), before, rtol=0, atol=0)
        for head in torch.nonzero(kept).flatten().tolist():
            assert matrix[of_head[head]].count_nonzero() > 0
            matrix[of_head[head]] *= 3.0
            assert not torch.equal(run(model), before)


def test_queries_that_share_a_key_go_together():
    model = llama()
    config = WeightPruningConfig(pattern="mha", pruning_type="magnitude", target_sparsity=0.5, pruning_scope="local")
    manager = prepare_compression(model, config)
    manager.on_train_begin()
    manager.on_step_begin(0)
    (pruner,) = pruners_of(manager)
    for index, layer in enumerate(model.model.layers):
        kept = pruner.stored_masks[f"model.layers.{index}.self_attn.q_proj"]
        expected = kept.repeat_interleave(8)
        assert (layer.self_attn.q_proj.weight.count_nonzero(1) > 0).tolist() == expected.tolist()
        assert (layer.self_attn.o_proj.weight.count_nonzero(0) > 0).tolist() == expected.tolist()
        assert (layer.self_attn.k_proj.weight.count_nonzero(1) > 0).tolist() == kept.repeat_interleave(4).tolist()
        assert (layer.self_attn.v_proj.weight.count_nonzero(1) > 0).tolist() == kept.repeat_interleave(4).tolist()


# ---------------------------------------------------------------------------- the ranking


def filled(*heads_of_blocks: list[float]) -> Blocks:
    """Blocks in which all weights of a head have one value."""
    model = Blocks(len(heads_of_blocks), width=2 * len(heads_of_blocks[0]), heads=len(heads_of_blocks[0]))
    for index, values in enumerate(heads_of_blocks):
        wide = torch.tensor(values).repeat_interleave(2)
        *makers, out = model.members(index)
        for maker in makers:
            maker.weight.data.copy_(wide[:, None].expand_as(maker.weight))
        out.weight.data.copy_(wide.expand_as(out.weight))
    return model


def kept_heads(model: nn.Module, **options: Any) -> list[list[int]]:
    defaults = {"pattern": "mha", "pruning_type": "magnitude", "target_sparsity": 0.5}
    manager = prepare_compression(model, WeightPruningConfig(**(defaults | options)))
    manager.on_train_begin()
    manager.on_step_begin(0)
    (pruner,) = pruners_of(manager)
    masks = {layer.name: pruner.stored_masks[layer.name].int().tolist() for layer in pruner.layers}
    blocks = dict.fromkeys(name[:8] for name in masks)
    of_attention = [[mask for name, mask in masks.items() if name.startswith(block)] for block in blocks]
    assert all(own == members[0] for members in of_attention for own in members)
    return [members[0] for members in of_attention]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [[0, 0, 0, 1], [0, 1, 1, 1]]),
        ({"pruning_scope": "local"}, [[0, 0, 1, 1], [0, 0, 1, 1]]),
        ({"max_sparsity_ratio_per_op": 0.5}, [[0, 0, 1, 1], [0, 0, 1, 1]]),
        ({"min_sparsity_ratio_per_op": 0.5}, [[0, 0, 1, 1], [0, 0, 1, 1]]),
        ({"target_sparsity": 0.9}, [[0, 0, 0, 1], [0, 0, 0, 1]]),
        ({"op_names": ["blocks.1.out"]}, [[0, 0, 1, 1]]),
        ({"excluded_op_names": ["blocks.0.attn.key"]}, [[0, 0, 1, 1]]),
        ({"criterion_reduce_type": "max"}, [[0, 0, 0, 1], [0, 1, 1, 1]]),
        ({"criterion_reduce_type": "sum"}, [[0, 0, 0, 1], [0, 1, 1, 1]]),
    ],
)
def test_heads_of_all_attentions_are_ranked_within_the_limits_of_each(options, kept):
    model = filled([1.0, 2.0, 3.0, 9.0], [4.0, 5.0, 6.0, 7.0])
    assert kept_heads(model, **options) == kept


def test_a_head_is_worth_what_all_of_its_layers_are():
    """Its output alone would keep the first, all four layers together the second."""
    model = filled([1.0, 1.0])
    model.blocks[0].out.weight.data[:, :2] = 3.0
    model.blocks[0].attn.key.weight.data[2:] = 4.0
    assert kept_heads(model) == [[0, 1]]


def test_zeros_are_locked_where_a_whole_head_is_zero():
    model = filled([0.0, 2.0], [1.0, 2.0])
    model.blocks[1].attn.query.weight.data[:2] = 0.0  # the rest of that head is not
    assert kept_heads(model, pruning_type="pattern_lock", target_sparsity=0.9) == [[0, 1], [1, 1]]


def test_heads_that_were_pruned_before_stay_so_and_count():
    model = filled([0.0, 2.0, 3.0, 4.0], [1.0, 5.0, 6.0, 7.0])
    kept = kept_heads(model, resume_from_pruned_checkpoint=True, target_sparsity=0.25)
    assert kept == [[0, 1, 1, 1], [0, 1, 1, 1]]


def test_the_report_counts_heads():
    model = filled([1.0, 2.0, 3.0, 9.0], [4.0, 5.0, 6.0, 7.0])
    manager = prepare_compression(
        model, WeightPruningConfig(pattern="mha", pruning_type="magnitude", target_sparsity=0.5)
    )
    manager.on_train_begin()
    manager.on_step_begin(0)
    manager.on_after_optimizer_step()
    manager.on_train_end()
    rows = {row.name: row for row in manager.report().modules if row.pattern == "mha"}
    assert len(rows) == 8
    assert {(row.units, row.pruned_units) for name, row in rows.items() if "blocks.0" in name} == {(4, 3)}
    assert all(row.zeros == 64 * row.pruned_units // 4 for row in rows.values())


def test_a_run_goes_on_from_its_state():
    def manager_of(model: nn.Module) -> Any:
        config = WeightPruningConfig(pattern="mha", target_sparsity=0.5, start_step=1, end_step=3)
        return prepare_compression(model, config)

    def steps(manager: Any, model: nn.Module, first: int, last: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        manager.on_train_begin()
        for step in range(first, last):
            manager.on_step_begin(step)
            for index, parameter in enumerate(model.parameters()):
                parameter.grad = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(step * 99 + index)
                )
            manager.on_before_optimizer_step()
            optimizer.step()
            manager.on_after_optimizer_step()

    torch.manual_seed(0)
    whole, cut = Blocks(width=8, heads=4), Blocks(width=8, heads=4)
    cut.load_state_dict(whole.state_dict())
    manager = manager_of(whole)
    steps(manager, whole, 0, 5)
    first = manager_of(cut)
    steps(first, cut, 0, 2)
    again = Blocks(width=8, heads=4)
    second = manager_of(again)
    again.load_state_dict(cut.state_dict())
    second.load_state_dict(first.state_dict())
    steps(second, again, 2, 5)
    assert pruners_of(manager)[0].sparsity == 0.5
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


# ---------------------------------------------------------------------------- a head's channels in one weight


def grid_of(module: nn.Module, heads: int, sizes: tuple[int, ...], *, of_outputs: bool) -> tuple[HeadGrid, MatrixView]:
    view = MatrixView.of(module, module.weight.shape)
    return HeadGrid.over(view, heads, sizes, "mean", of_outputs=of_outputs), view


LAYOUTS = {
    "outputs": (nn.Linear(6, 8), 4, (2,), True),
    "inputs": (nn.Linear(8, 6), 4, (2,), False),
    "three runs": (nn.Linear(6, 24), 4, (2, 2, 2), True),
    "runs of several sizes": (nn.Linear(6, 16), 2, (4, 2, 2), True),
    "three runs, turned": (Conv1D(24, 6), 4, (2, 2, 2), True),
    "inputs, turned": (Conv1D(6, 8), 4, (2,), False),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_masks_and_scores_of_heads_against_plain_slices(name):
    module, heads, sizes, of_outputs = LAYOUTS[name]
    grid, view = grid_of(module, heads, sizes, of_outputs=of_outputs)
    torch.manual_seed(0)
    weight = torch.randn(module.weight.shape)
    matrix = view.ordered(weight) if of_outputs else view.ordered(weight).t()
    expected = torch.zeros(heads)
    wide = torch.ones(matrix.shape, dtype=torch.bool)
    keep = torch.arange(heads) % 2 == 0
    for start, size in HeadChannels("", sizes, of_outputs).runs(heads):
        for head in range(heads):
            rows = slice(start + head * size, start + (head + 1) * size)
            expected[head] += matrix[rows].abs().mean()
            wide[rows] = keep[head]
    torch.testing.assert_close(grid.reduce(weight), expected)
    mask = grid.expand(keep)
    assert torch.equal(view.ordered(mask) if of_outputs else view.ordered(mask).t(), wide)
    masked = weight.clone()
    grid.apply_(masked, keep)
    assert torch.equal(masked, weight * mask)
    assert grid.pruned_units(keep) == heads // 2


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("name", LAYOUTS)
def test_heads_of_a_weight_that_is_sharded_add_up_to_those_of_the_whole(name, ranks):
    module, heads, sizes, of_outputs = LAYOUTS[name]
    grid, _ = grid_of(module, heads, sizes, of_outputs=of_outputs)
    torch.manual_seed(0)
    weight, keep = torch.randn(module.weight.shape), torch.arange(heads) % 2 == 0
    parts = [Part.of_shard(grid, len(weight), rank, ranks) for rank in range(ranks)]
    if name.startswith(("three runs", "runs of")) and not name.endswith("turned"):
        assert parts == [None] * ranks  # refused with the layer's name
        return
    total = torch.zeros(1, heads)
    for part, shard in zip(parts, torch.chunk(weight, ranks), strict=False):
        own = part.reduce(shard).reshape(part.outer, part.places, -1)
        total.view(part.outer, part.along, -1)[:, part.first : part.first + part.places] += own
        mask = part.cut(keep, part.grid.mask_shape)
        masked = shard.clone()
        part.apply_(masked, mask)
        start = int(sum(len(piece) for piece in torch.chunk(weight, ranks)[: part.holder]))
        assert torch.equal(masked, shard * grid.expand(keep)[start : start + len(shard)])
    torch.testing.assert_close(total.flatten(), grid.reduce(weight))


# ---------------------------------------------------------------------------- refused, with a way out


def test_mha_is_a_pattern_with_one_form():
    assert parse_pattern("mha") == parse_pattern("tile_pattern_mha")
    with pytest.raises(ConfigError, match="mha: whole attention heads"):
        parse_pattern("mhb")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruning_type": "block_mask", "end_step": 5}, "pattern='mha': expected a block pattern"),
        ({"reg_type": "group_lasso"}, "pattern='mha': expected a block pattern"),
        ({"pruning_type": "sparse_gpt"}, "pattern='mha': expected '1x1' or N:M"),
    ],
)
def test_what_does_not_go_with_heads_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        WeightPruningConfig(pattern="mha", **options)


def test_a_model_without_attention_is_refused():
    config = WeightPruningConfig(pattern="mha", pruning_type="magnitude")
    with pytest.raises(ConfigError, match="finds no attention in Sequential: expected modules with a number or a size"):
        prepare_compression(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), config)


def test_a_name_that_finds_no_attention_is_refused_with_those_there_are():
    config = WeightPruningConfig(pattern="mha", pruning_type="magnitude", op_names=["blocks.2"])
    with pytest.raises(ConfigError, match=r"matches no attention of 'blocks.0', 'blocks.1'. Did you mean 'blocks.1'"):
        prepare_compression(Blocks(), config)


class Strange(nn.Module):
    """Seven heads in what has room for four."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Core(8, 4, keys=6)
        self.out = nn.Linear(8, 8)


class Fused(nn.Module):
    """Queries, keys and values in one layer, in an order that is not written down."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 2
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Strange(), r"attn: its layers make 8, 6, 6 channels and take 8 in, which are no heads of 2"),
        (Fused(), r"\(root\): the order of queries, keys and values in 'qkv' is not known"),
    ],
)
def test_an_attention_that_is_not_understood_is_named_with_the_reason(model, reason):
    config = WeightPruningConfig(pattern="mha", pruning_type="magnitude")
    with pytest.raises(ConfigError, match=f"leaves no attention to prune: {reason}"):
        prepare_compression(model, config)


def test_an_attention_with_a_frozen_layer_stays_dense_and_is_named():
    model = Blocks()
    model.blocks[0].attn.key.weight.requires_grad_(False)
    config = WeightPruningConfig(pattern="mha", target_sparsity=0.5, start_step=1, end_step=3)
    with pytest.warns(InexactWarning, match="'blocks.0': of 'blocks.0.attn.key', its weight is frozen"):
        manager = prepare_compression(model, config)
    assert {layer.name[:8] for layer in pruners_of(manager)[0].layers} == {"blocks.1"}


def test_all_layers_of_an_attention_are_its_members():
    attentions, _ = find_attentions(Blocks(1))
    assert attentions == [
        Attention(
            "blocks.0",
            "blocks.0.attn",
            2,
            2,
            (
                HeadChannels("blocks.0.attn.query", (2,), True),
                HeadChannels("blocks.0.attn.key", (2,), True),
                HeadChannels("blocks.0.attn.value", (2,), True),
                HeadChannels("blocks.0.out", (2,), False),
            ),
        )
    ]


def test_the_default_options_say_nothing_of_heads():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare_compression(Blocks(), WeightPruningConfig(pattern="mha", pruning_type="magnitude"))
    assert caught == []
