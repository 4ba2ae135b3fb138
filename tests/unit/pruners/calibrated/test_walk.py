"""Going through the blocks of a model: what they are called with, what is left alone, what is put back."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from inc_torch.core.errors import CalibrationError, ConfigError, InexactWarning, ModelError
from inc_torch.core.report import Finding
from inc_torch.pruners import parse_pattern
from inc_torch.pruners.calibrated import Technique, Wanda, prune_by_blocks, prune_sparse_gpt, prune_wanda
from tests.unit.pruners.calibrated.models import (
    BLOCKS,
    MODELS,
    Chain,
    ReluBlock,
    chain,
    random_batches,
    random_chain,
    tokens,
)


@dataclass
class Inputs:
    """All that a layer was given."""

    batches: list = field(default_factory=list)
    tokens: int = 0

    def add(self, inputs):
        self.batches.append(inputs.clone())
        self.tokens += inputs[..., 0].numel()

    def is_finite(self):
        return True


@dataclass
class Spy(Technique):
    """Keeps what layers were given, and halves the weights of the first ``halved`` layers that come."""

    halved: int = 0
    seen: dict = field(default_factory=dict)

    def watch(self, width, device):
        return Inputs()

    def prune(self, layer, seen):
        self.seen[layer.name] = seen.batches
        if len(self.seen) <= self.halved:
            layer.matrix().mul_(0.5)
        return Finding(layer.name)


def given_in_whole_runs(model, batches, names):
    """What the layers are given when the model runs as a whole."""
    seen = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0].clone())
        )
        for name in names
    ]
    with torch.no_grad():
        for batch in batches:
            model.eval()(**batch) if isinstance(batch, dict) else model.eval()(batch)
    for hook in hooks:
        hook.remove()
    return seen


def assert_same(own, expected):
    assert own.keys() == expected.keys()
    for name in own:
        assert len(own[name]) == len(expected[name])
        for one, other in zip(own[name], expected[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", MODELS)
class TestTransformers:
    def test_each_batch_runs_with_its_own_arguments(self, name):
        """Lengths and masks differ; in Gemma and T5 also from block to block."""
        model, batches, spy = MODELS[name](), tokens(name), Spy()
        prune_by_blocks(model, batches, spy)
        assert all(layer.startswith(BLOCKS[name]) for layer in spy.seen)
        assert_same(spy.seen, given_in_whole_runs(model, batches, list(spy.seen)))

    def test_later_blocks_are_given_what_pruned_ones_make(self, name):
        model, batches = MODELS[name](), tokens(name)
        of_first = sum(layer.startswith(f"{BLOCKS[name]}.0.") for layer in _linear(model))
        dense, spy = copy.deepcopy(model), Spy(halved=of_first)
        prune_by_blocks(model, batches, spy)
        later = {layer: seen for layer, seen in spy.seen.items() if not layer.startswith(f"{BLOCKS[name]}.0.")}
        assert later
        assert_same(later, given_in_whole_runs(model, batches, list(later)))
        before = given_in_whole_runs(dense, batches, list(later))
        of_encoder = ("EncDecAttention.k", "EncDecAttention.v")
        changed = [layer for layer in later if not layer.endswith(of_encoder)]
        assert not any(torch.equal(later[layer][0], before[layer][0]) for layer in changed)

    @pytest.mark.parametrize("technique", ["wanda", "sparse_gpt"])
    def test_sparsity_is_exact_in_blocks_and_nothing_else_changes(self, name, technique):
        model = MODELS[name]()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        if technique == "wanda":
            report = prune_wanda(model, tokens(name), 0.5)
        else:
            report = prune_sparse_gpt(model, tokens(name), parse_pattern("2:4"))
        inside = [layer for layer in _linear(model) if layer.startswith(f"{BLOCKS[name]}.")]
        for key, value in model.state_dict().items():
            if key.removesuffix(".weight") in inside:
                assert int((value == 0).sum()) * 2 == value.numel(), key
            else:
                assert torch.equal(value, before[key]), key
        rows = {row.name: row for row in report.modules}
        assert all(rows[layer].asked_sparsity == rows[layer].sparsity == 0.5 for layer in inside)
        assert [row.name for row in report.modules if row.asked_sparsity is not None] == inside
        assert report.sparsity == 0.5

    def test_modes_hooks_gradients_and_settings_are_put_back(self, name):
        model = MODELS[name]().train()
        prune_wanda(model, tokens(name), 0.5)
        assert all(module.training for module in model.modules())
        assert model.config.use_cache
        assert not _hooks(model)
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def _linear(model):
    return [name for name, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")]


def _hooks(model):
    return [hook for module in model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]


def test_conv1d_groups_run_along_its_inputs():
    model = MODELS["gpt2"]()
    prune_wanda(model, tokens("gpt2"), 0.5, 1, 4)
    weight = model.transformer.h[0].mlp.c_fc.weight  # [in, out]
    assert bool(((weight.t().reshape(64, 4, 4) == 0).sum(2) == 1).all())


# ------------------------------------------------------------------------------------- batches


def test_tensors_and_pairs_are_taken():
    one, batches = random_chain(8, 6, 4), random_batches()
    other = copy.deepcopy(one)
    prune_wanda(one, batches, 0.5)
    prune_wanda(other, [(batch, torch.zeros(2)) for batch in batches], 0.5)
    assert torch.equal(one.blocks[1].lin.weight, other.blocks[1].lin.weight)


class WithScale(nn.Module):
    """Its blocks need a second positional argument that differs by batch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([ScaledBlock(), ScaledBlock()])

    def forward(self, x, scale):
        for layer in self.layers:
            (x,) = layer(x, scale)
        return x


class ScaledBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def forward(self, x, scale):
        return (self.lin(x) * scale,)


def test_positional_arguments_are_those_of_their_batch():
    model, spy = WithScale(), Spy()
    batches = [(torch.randn(2, 3, 8), torch.tensor(scale)) for scale in (1.0, 7.0, -2.0)]
    prune_by_blocks(model, batches, spy)
    for own, (x, scale) in zip(spy.seen["layers.1.lin"], batches, strict=True):
        torch.testing.assert_close(own, model.layers[0](x, scale)[0])


def test_batches_are_taken_until_there_are_samples_enough():
    taken = []

    def loader():
        for batch in random_batches(9):
            taken.append(batch)
            yield batch

    spy = Spy()
    prune_by_blocks(random_chain(8, 8), loader(), spy, nsamples=5)
    assert len(taken) == len(spy.seen["blocks.0.lin"]) == 3


def test_no_batch():
    with pytest.raises(CalibrationError, match=r"yielded no batch: expected one at least.*give a list or a DataLoader"):
        prune_wanda(random_chain(8, 8), [], 0.5)


def test_inputs_that_are_not_finite():
    model = random_chain(8, 8)
    with pytest.raises(CalibrationError, match=r"Layer 'blocks.0.lin' was given infinities or NaN"):
        prune_wanda(model, [torch.full((1, 2, 8), torch.nan)], 0.5)


# ------------------------------------------------------------------------------------- blocks


class WriteBlock(ReluBlock):
    """Writes into what it is given."""

    def forward(self, x):
        x += 1
        return torch.relu(self.lin(x))


def test_blocks_may_write_into_what_they_are_given():
    model, spy = Chain([WriteBlock(torch.randn(8, 8)) for _ in range(3)]), Spy()
    batches = random_batches()
    start = [batch.clone() for batch in batches]
    prune_by_blocks(model, batches, spy)
    assert_same(spy.seen, given_in_whole_runs(model, start, list(spy.seen)))


def test_blocks_without_layers_run_too():
    weights = torch.randn(8, 8), torch.randn(8, 8)
    model, spy = Chain([ReluBlock(weights[0]), nn.Tanh(), ReluBlock(weights[1])]), Spy()
    (batch,) = random_batches(1)
    prune_by_blocks(model, [batch], spy)
    torch.testing.assert_close(spy.seen["blocks.2.lin"][0], torch.relu(batch @ weights[0].t()).tanh())


def test_the_list_with_most_weights_counts_and_layers_are_found_by_identity():
    """Neural Compressor takes the first list, and the layers of block 0 would be all with ``.0.`` in their names."""

    class Model(Chain):
        def __init__(self):
            super().__init__([])
            del self.blocks
            self.heads = nn.ModuleList([nn.Linear(8, 2)])
            self.blocks = nn.ModuleList([Chain([ReluBlock(torch.randn(8, 8))]) for _ in range(2)])

        def forward(self, x):
            return self.heads[0](super().forward(x))

    model = Model()
    report = prune_wanda(model, random_batches(), 0.5)
    assert [row.name for row in report.modules if row.asked_sparsity == 0.5] == [
        "blocks.0.blocks.0.lin",
        "blocks.1.blocks.0.lin",
    ]
    assert report.modules[0].notes == ("left dense: outside of the blocks 'blocks'",)


def test_of_lists_with_as_many_weights_the_outermost_counts():
    model, spy = Chain([random_chain(8, 8, 8)]), Spy()
    report = prune_by_blocks(model, random_batches(), Wanda(0.5))
    assert report.sparsity == 0.5
    with pytest.raises(ModelError, match=r"after 1 of its 1 blocks, 'blocks.0' is"):
        prune_by_blocks(Twice([random_chain(8, 8, 8)]), random_batches(), spy)


def test_only_named_layers_are_pruned():
    model = random_chain(8, 8, 8)
    report = prune_wanda_of(model, ["blocks.1.lin"])
    assert [row.zeros for row in report.modules] == [0, 32]


def prune_wanda_of(model, layers):
    return prune_by_blocks(model, random_batches(), Wanda(0.5), layers=layers)


def test_an_unknown_layer():
    with pytest.raises(
        ConfigError, match=r"name 'blocks.1.lim', which the model does not have. Did you mean 'blocks.1.lin'"
    ):
        prune_wanda_of(random_chain(8, 8, 8), ["blocks.1.lim"])


def test_convolutions_computed_and_shared_weights_stay_dense():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.conv = nn.Linear(8, 8), nn.Conv1d(5, 5, 1)
            self.computed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
            self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
            self.other.weight = self.one.weight

        def forward(self, x):
            return self.other(self.one(self.computed(self.conv(self.first(x)))))

    model = Chain([Block()])
    report = prune_wanda(model, random_batches(), 0.5)
    notes = {row.name: row.notes for row in report.modules}
    assert notes["blocks.0.first"] == ()
    assert notes["blocks.0.conv"] == ("left dense: Conv1d is neither nn.Linear nor Conv1D",)
    assert notes["blocks.0.computed"] == ("left dense: its weight is computed from other tensors",)
    assert "left dense: it shares its weight with 'blocks.0.other'" in notes["blocks.0.one"]
    assert [row.name for row in report.modules if row.zeros] == ["blocks.0.first"]


def test_layers_that_no_data_reached_stay_dense_with_a_warning():
    model = random_chain(8, 8)
    model.blocks[0].unused = nn.Linear(8, 8)
    with pytest.warns(InexactWarning, match="leaves 1 layers dense that the calibration data never reached") as caught:
        report = prune_wanda(model, random_batches(), 0.5)
    assert caught[0].filename == __file__
    assert bool((model.blocks[0].unused.weight != 0).all())
    assert report.modules[1].notes == ("left dense: the calibration data never reached it",)


def test_a_model_without_blocks():
    with pytest.raises(
        ModelError, match=r"Sequential has no torch.nn.ModuleList with nn.Linear or Conv1D.*'magnitude'"
    ):
        prune_wanda(nn.Sequential(nn.Linear(8, 8)), random_batches(), 0.5)


def test_a_model_with_no_layer_to_prune():
    with pytest.raises(ModelError, match="Chain has no layer to prune in its blocks 'blocks'"):
        prune_wanda_of(random_chain(8, 8), ["blocks"])


class Backwards(Chain):
    def forward(self, x):
        for block in reversed(self.blocks):
            x = block(x)
        return x


class Twice(Chain):
    def forward(self, x):
        return super().forward(super().forward(x))


class Between(Chain):
    def forward(self, x):
        for block in self.blocks:
            x = block(x) + 1
        return x


class Early(Chain):
    def forward(self, x):
        return self.blocks[0](x)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Backwards, "after 0 of its 2 blocks, 'blocks.1' is not the next one"),
        (Twice, "after 2 of its 2 blocks, 'blocks.0' is not the next one"),
        (Early, "after 1 of its 2 blocks, 'blocks.1' is not the next one"),
        (Between, "no argument of 'blocks.1' is a tensor that 'blocks.0' returned"),
    ],
)
def test_blocks_that_do_not_run_one_after_the_other(kind, message):
    model = kind([ReluBlock(torch.randn(8, 8)) for _ in range(2)])
    with pytest.raises(ModelError, match=message):
        prune_wanda(model, random_batches(), 0.5)
    assert not _hooks(model)


def test_an_error_in_a_block_leaves_no_hooks_and_says_where():
    class Failing(ReluBlock):
        def forward(self, x):
            if self.lin._forward_pre_hooks:
                raise ZeroDivisionError
            return super().forward(x)

    model = Chain([ReluBlock(torch.randn(8, 8)), Failing(torch.randn(8, 8))]).train()
    with pytest.raises(ZeroDivisionError) as caught:
        prune_wanda(model, random_batches(), 0.5)
    assert "While running block 'blocks.1'" in caught.value.__notes__[0]
    assert not _hooks(model)
    assert all(module.training for module in model.modules())


def test_empty_weights_are_refused():
    with torch.device("meta"):
        model = random_chain(8, 8)
    with pytest.raises(ModelError, match=r"The weight of 'blocks.0.lin' has no values yet"):
        prune_wanda(model, random_batches(), 0.5)


# ------------------------------------------------------------------------------------- dtypes and devices


def test_weights_keep_their_dtype_and_memory():
    model = random_chain(8, 8).to(torch.bfloat16)
    weight = model.blocks[0].lin.weight
    place = weight.data_ptr()
    prune_sparse_gpt(model, [batch.bfloat16() for batch in random_batches()], parse_pattern("1x1"), 0.5)
    assert model.blocks[0].lin.weight is weight
    assert (weight.dtype, weight.data_ptr()) == (torch.bfloat16, place)
    assert int((weight == 0).sum()) == 32


class Traced(ReluBlock):
    """Writes down when it moves."""

    moves: list[tuple[str, str]] = []  # noqa: RUF012

    def to(self, device):
        self.moves.append((self.name, str(device)))
        return self


@pytest.mark.parametrize("low_mem_usage", [None, True, False])
def test_blocks_move_one_at_a_time(low_mem_usage):
    model, Traced.moves[:] = Chain([Traced(torch.randn(8, 8)) for _ in range(2)]), []
    for name, block in model.blocks.named_children():
        block.name = name
    prune_wanda(model, random_batches(), 0.5, device="cpu", low_mem_usage=low_mem_usage)
    if low_mem_usage is False:
        assert not Traced.moves  # the whole model did
    else:
        # Through the model with the first batch, then block by block.
        assert [name for name, _ in Traced.moves] == [*"0011", *"0011"]


def test_torch_encoders_call_their_layers():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    with pytest.warns(InexactWarning, match="never reached: 'layers.0.self_attn.out_proj'"):
        report = prune_wanda(model, random_batches(), 0.5)
    pruned = [row.name for row in report.modules if row.zeros]
    assert pruned == ["layers.0.linear1", "layers.0.linear2", "layers.1.linear1", "layers.1.linear2"]
    assert model.use_nested_tensor
    assert model.layers[0].activation_relu_or_gelu == 1


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_models_are_pruned_as_others(whole):
    plain, batches = random_chain(8, 8, 8), random_batches()
    compiled = copy.deepcopy(plain)
    for index, block in enumerate(compiled.blocks):
        compiled.blocks[index] = block if whole else torch.compile(block, backend="eager")
    report = prune_wanda(torch.compile(compiled, backend="eager") if whole else compiled, batches, 0.5)
    prune_wanda(plain, batches, 0.5)
    assert [row.name for row in report.modules] == ["blocks.0.lin", "blocks.1.lin"]
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert torch.equal(one, other)


def test_chain_of_one_block():
    model = chain(torch.randn(4, 8))
    assert prune_wanda(model, random_batches(), 0.25).sparsity == 0.25
