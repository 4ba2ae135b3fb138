"""What a captured graph becomes, operation by operation, and what must stay as it is."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from inc_torch.inference._fused_graph import FusedGraph
from inc_torch.inference._opaque import capturing, hide
from tests.support.vision import family
from tests.support.vision import images as pictures
from tests.unit.inference.made import (
    assert_close,
    computed,
    distance,
    executor_of,
    fitted,
    graphs,
    names,
    pair,
    unfused,
)

X = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
OPERATIONS = (
    "Encode", "Decode", "FindRange", "EncodeInRange", "LinearOnCodes", "ConvOnCodes", "Normalize", "Attend", "Gate",
    "MaxPoolOfCodes", "AverageOfCodes", "ScaleChannels", "Rotate", "Affine", "AveragePoolOfCodes", "Concatenate",
    "Interleave", "Requantize",
)  # fmt: skip


class Block(nn.Module):
    """Layers to be combined; the function is what a test looks at."""

    def __init__(self, function, width=32):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.thin = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.norm, self.plane = nn.LayerNorm(width), nn.LayerNorm((5, width))
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def fused(function, x=X, calls=1):
    """The names of operations and the others, after the result was compared with that of the model as it is."""
    model = fitted(Block(function).requires_grad_(requires_grad=False), x)
    with torch.no_grad():
        expected = unfused(model)(x)
        for module in model.modules():
            if "Int8" in type(module).__name__:
                hide(module)
        with capturing():
            captured = torch.fx.experimental.proxy_tensor.make_fx(
                torch.func.functionalize(model), tracing_mode="fake", _allow_non_fake_inputs=True
            )(x)
        graph = FusedGraph(captured, tolerance=0.1, plans=True)
        for _ in range(3):
            assert_close(graph(x), expected)
    return names(graph)


def operations(found):
    return [name for name in found if name in OPERATIONS]


@pytest.mark.filterwarnings("ignore:No calibration data reached")
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, x: m.second(F.gelu(m.first(x))), ["Encode", "LinearOnCodes", "LinearOnCodes"]),
        (lambda m, x: m.norm(m.first(x) + x), ["Encode", "LinearOnCodes", "Normalize"]),
        (lambda m, x: m.second(m.norm(x)), ["Normalize", "LinearOnCodes"]),
        (lambda m, x: torch.cat([m.first(x), m.second(x)], -1), ["Encode", "LinearOnCodes"]),
    ],
)
def test_what_follows_a_product_goes_into_it(function, expected):
    found = operations(fused(function))
    assert found == expected


@pytest.mark.filterwarnings("ignore:No calibration data reached")
@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda m, x: F.relu(p := m.first(x)) + p, "relu"),
        (lambda m, x: F.mish(m.first(x)), "mish"),
        (lambda m, x: torch.where(x > 0, m.first(x), x), "where"),
        (lambda m, x: m.plane(m.first(x)), "native_layer_norm"),
        (lambda m, x: m.first(x) + x[:, :1], "add"),
        (lambda m, x: torch.add(m.first(x), x, alpha=2), "add"),
        (lambda m, x: F.sigmoid(m.thin(x)) * m.first(x), "mul"),
        (lambda m, x: F.sigmoid(m.first(x)) * m.second(x.flip(0)), "mul"),
        (lambda m, x: F.layer_norm(m.first(x), (32,), None, m.norm.bias + 1), "native_layer_norm"),
        (lambda m, x: m.first(x).double() + x, "add"),
        (lambda m, x: x * torch.rsqrt(torch.add(x.pow(2).mean(-1, keepdim=True), 1e-5, alpha=3)) * m.norm.weight
         + m.first(x), "rsqrt"),
    ],
)  # fmt: skip
def test_what_is_something_else_stays(function, left):
    assert left in fused(function)


@pytest.mark.filterwarnings("ignore:No calibration data reached")
@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.norm(m.second(x.transpose(0, 1)) + m.first(x).transpose(0, 1)),
        lambda m, x: m.norm(m.first(x).transpose(0, 1)),
        lambda m, x: m.first(x).transpose(0, 1).reshape(-1, 32),
        lambda m, x: m.second(m.first(x)[:, ::2, :]),
        lambda m, x: m.second(m.first(x).unsqueeze(1).expand(-1, 3, -1, -1)),
        lambda m, x: (p := m.first(x)) + p,
        lambda m, x: m.first(x) + m.first(x),
        lambda m, x: m.first(x.half().float()) + m.second(x),
        lambda m, x: m.first(x[0, 0]) + m.second(x),
        lambda m, x: m.second(m.first(x)).sum() + m.norm.weight,
    ],
)
def test_views_and_double_readers_give_what_the_model_gives(function):
    assert "LinearOnCodes" in fused(function)


def test_layers_of_bert_use_eight_operations_each():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 32}
    model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=2, **sizes), add_pooling_layer=False)
    inputs = {"input_ids": torch.randint(0, 50, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    inputs["attention_mask"][1, 6:] = 0
    plain, optimized = pair(model, inputs)
    with torch.no_grad():
        expected = plain(**inputs)
        for _ in range(3):
            found = optimized(**inputs)
            assert type(found) is type(expected)
            assert_close(found.last_hidden_state, expected.last_hidden_state)
    (graph,) = graphs(optimized)
    layer = ["LinearOnCodes", "Attend", "LinearOnCodes", "Normalize", "LinearOnCodes", "LinearOnCodes", "Normalize"]
    assert operations(names(graph)) == ["Normalize", *layer, *layer]


def test_layers_of_llama_use_nine_operations_each():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    model = LlamaModel(LlamaConfig(**sizes, **heads, use_cache=False))
    inputs = {"input_ids": torch.randint(0, 50, (2, 9))}
    plain, optimized = pair(model, inputs)
    with torch.no_grad():
        expected = plain(**inputs)
        for _ in range(3):
            assert_close(optimized(**inputs).last_hidden_state, expected.last_hidden_state)
    found = operations(names(graphs(optimized)[-1]))
    layer = ["Normalize", "LinearOnCodes", "Rotate", "Rotate", "Attend", "LinearOnCodes"]
    feed_forward = ["Normalize", "LinearOnCodes", "Gate", "LinearOnCodes"]
    assert found == [*layer, *feed_forward, *layer, *feed_forward, "Normalize"]


class Pictures(nn.Module):
    """Two convolutions, a residual, pools, a concatenation and a flat head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.branch, self.other = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head, self.mean = nn.Linear(16 * 9, 4), nn.Linear(8, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        x = F.relu(self.branch(x) + x)
        both = F.max_pool2d(torch.cat([x, F.relu(self.other(x))], 1), 2)
        return self.head(both.flatten(1)) + self.mean(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_images_stay_codes_from_the_first_layer_to_the_last():
    images = torch.randn(2, 3, 12, 12)
    model = fitted(Pictures().requires_grad_(requires_grad=False), images)
    with torch.no_grad():
        expected = unfused(copy.deepcopy(model))(images)
        for _ in range(3):
            assert_close(model(images), expected)
    (graph,) = executor_of(model)._fused.values()
    found = names(graph)
    assert operations(found).count("ConvOnCodes") == 3
    assert operations(found).count("MaxPoolOfCodes") == 2
    assert "AverageOfCodes" in found
    assert "Decode" not in found
    assert operations(found).count("Encode") <= 2
    assert distance(model(images.flip(0)), model(images).flip(0)) < 1e-5


class Around(nn.Conv2d):
    """A convolution that pads by itself, not alike on every side."""

    def __init__(self, *args, around, **options):
        super().__init__(*args, **options)
        self.around = around

    def forward(self, x):
        return super().forward(F.pad(x, self.around))


class Uneven(nn.Module):
    """A convolution at first, two that keep channels apart, one of groups and a residual: none padded evenly."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = Around(3, 8, 3, stride=2, around=(0, 1, 0, 1))
        self.apart = Around(8, 8, 3, groups=8, around=(2, 0, 1, 1))
        self.halves = Around(8, 8, 3, stride=2, groups=8, padding=1, around=(1, 0, 0, 2))
        self.dense = Around(8, 8, 3, dilation=2, around=(1, 3, 4, 0))
        self.groups = Around(8, 8, (3, 2), groups=2, around=(1, 0, 2, 0))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu6(self.apart(F.relu6(self.stem(x))))
        x = F.relu6(self.halves(x))
        x = self.groups(F.relu(self.dense(x))) + x
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_zeros_that_differ_from_side_to_side_stay_in_the_convolution():
    images = torch.randn(2, 3, 16, 18)
    model = fitted(Uneven().requires_grad_(requires_grad=False), images)
    with torch.no_grad():
        expected = unfused(copy.deepcopy(model))(images)
        for _ in range(3):
            assert_close(model(images), expected)
    (graph,) = executor_of(model)._fused.values()
    found = [name for name in names(graph) if name != "reshape"]
    assert found == ["Encode", *["ConvOnCodes"] * 5, "AverageOfCodes", "LinearOnCodes"]


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}, {"groups": 3}, {"stride": (1, 2)}], ids=str)
@pytest.mark.parametrize("around", [(1, 0, 0, 0), (0, 2, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (3, 1, 0, 2)], ids=str)
def test_a_convolution_that_pads_by_itself_computes_as_its_module(around, options):
    images = torch.rand(2, 3, 9, 10) + 0.2 * torch.randn(2, 3, 9, 10)
    model = fitted(nn.Sequential(Around(3, 6, 3, around=around, **options)).requires_grad_(requires_grad=False), images)
    assert model[0].input_zero_point > 0
    with torch.no_grad():
        expected = unfused(copy.deepcopy(model))(images)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    (graph,) = executor_of(model)._fused.values()
    assert operations(names(graph)) == ["Encode", "ConvOnCodes"]


def computed_by(model, x, limit=0.03):
    """What the fused graph of an int8 model computes, after its results were compared with those of the graph."""
    with torch.no_grad():
        expected = unfused(copy.deepcopy(model))(x)
        results = [model(x) for _ in range(3)]
        for found in results:
            assert_close(found, expected, limit)
    (graph,) = executor_of(model)._fused.values()
    assert distance(model(x.flip(0)), model(x).flip(0)) < 1e-5
    return computed(graph)


def with_statistics(model, x):
    """In evaluation mode, with statistics and affine parameters that make a difference."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                module.weight.data.uniform_(-1, 2)
                module.bias.data.uniform_(-1, 1)
    return fitted(model.requires_grad_(requires_grad=False), x)


class Dense(nn.Module):
    """Every layer reads all before it, normalized anew; then a transition, as in DenseNet."""

    def __init__(self, activation=F.relu, affine=True):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.activation = nn.Conv2d(3, 8, 3, padding=1), activation
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=affine) for width in (8, 12, 16, 10))
        self.layers = nn.ModuleList(nn.Conv2d(width, 4, 3, padding=1) for width in (8, 12))
        self.transition, self.head = nn.Conv2d(16, 10, 1), nn.Conv2d(10, 6, 1)

    def forward(self, x):
        parts = [F.relu(self.stem(x))]
        for norm, layer in zip(self.norms, self.layers, strict=False):
            parts.append(layer(self.activation(norm(torch.cat(parts, 1)))))
        x = self.transition(self.activation(self.norms[2](torch.cat(parts, 1))))
        x = F.avg_pool2d(x, 2)
        return self.head(self.activation(self.norms[3](x)))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("activation", [F.relu, F.relu6, F.silu], ids=["relu", "relu6", "silu"])
def test_batch_norms_of_concatenations_read_codes_and_write_them(activation, affine):
    x = torch.randn(2, 3, 10, 12)
    model = with_statistics(Dense(activation, affine), x)
    layer = ["Affine", "ConvOnCodes"]
    pool = ["AveragePoolOfCodes"]
    assert computed_by(model, x) == ["Encode", "ConvOnCodes", *layer, *layer, *layer, *pool, *layer, "contiguous"]
    (graph,) = executor_of(model)._fused.values()
    (plan,) = graph._state.plans.values()
    assert len(plan._work) == 2


def test_a_batch_norm_that_changes_is_seen():
    x = torch.randn(2, 3, 10, 12)
    model = with_statistics(Dense(), x)
    with torch.no_grad():
        before = model(x)
        model.norms[1].weight.mul_(-1)
        model.norms[2].running_mean.add_(1)
        after = model(x)
        assert distance(after, before) > 0.1
        assert_close(after, unfused(copy.deepcopy(model))(x))


class Joints(nn.Module):
    """Two branches, and what a test makes of them."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head, self.thin = nn.BatchNorm2d(16), nn.Conv2d(16, 6, 1), nn.Conv2d(8, 8, 1)
        self.other, self.function = nn.Conv2d(8, 8, 1), function

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.function(self, F.relu(self.first(x)), F.relu(self.second(x)))


def shuffled(x, groups=2):
    samples, channels, height, width = x.shape
    return x.view(samples, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


@pytest.mark.filterwarnings("ignore:No calibration data reached")
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, a, b: m.head(torch.cat([a, b], 1)), ["Concatenate", "ConvOnCodes"]),
        (lambda m, a, b: m.head(torch.cat([a, b], -3)), ["Concatenate", "ConvOnCodes"]),
        (lambda m, a, b: m.head(F.max_pool2d(torch.cat([a, b], 1), 2)),
         ["Concatenate", "MaxPoolOfCodes", "ConvOnCodes"]),
        (lambda m, a, b: m.head(shuffled(torch.cat([a, b], 1))), ["Interleave", "ConvOnCodes"]),
        (lambda m, a, b: m.head(shuffled(torch.cat([a, b], 1), 4)), ["Concatenate", "Interleave", "ConvOnCodes"]),
        (lambda m, a, b: m.thin(torch.cat([a, b], 1).chunk(2, 1)[1]), []),
        (lambda m, a, b: m.thin((parts := torch.cat([a, b], 1).chunk(2, 1))[0]) + m.other(parts[1].sin()),
         ["ConvOnCodes", "sin", "Encode", "ConvOnCodes"]),
        (lambda m, a, b: m.thin(torch.cat([a, b], 1)[:, 4:12]), ["Concatenate", "ConvOnCodes"]),
        (lambda m, a, b: m.thin(torch.cat([a, b], 1).split([3, 8, 5], 1)[1]), ["Concatenate", "ConvOnCodes"]),
    ],
)  # fmt: skip
def test_codes_are_joined_shuffled_and_split(function, expected):
    x = torch.randn(2, 3, 8, 10)
    found = computed_by(with_statistics(Joints(function), x), x)
    assert found == ["Encode", *["ConvOnCodes"] * 3, *expected, "contiguous"]


@pytest.mark.filterwarnings("ignore:No calibration data reached")
@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda m, a, b: m.norm(torch.cat([a, torch.sin(b)], 1)), "native_batch_norm"),
        (lambda m, a, b: shuffled(torch.sin(torch.cat([a, b], 1)), 4), "Interleave"),
        (lambda m, a, b: F.avg_pool2d(m.thin(a) + b, 3, 2, ceil_mode=True), "avg_pool2d"),
        (lambda m, a, b: F.avg_pool2d(m.thin(a) + b, 2, divisor_override=3), "avg_pool2d"),
        (lambda m, a, b: torch.cat([a, b], 2) + m.thin(torch.cat([a, b], 2)), "cat"),
        (lambda m, a, b: a.view(2, 2, 4, 8, 10).transpose(1, 3).reshape(2, 8, 8, 10) + m.thin(b), "clone"),
    ],
)  # fmt: skip
def test_what_only_looks_alike_stays_and_is_right(function, left):
    x = torch.randn(2, 3, 8, 10)
    assert left in computed_by(with_statistics(Joints(function), x), x)


@pytest.mark.filterwarnings("ignore:No calibration data reached")
def test_a_batch_norm_at_the_end_writes_floats_to_new_memory_in_each_run():
    x = torch.randn(2, 3, 8, 10).contiguous(memory_format=torch.channels_last)
    model = with_statistics(Joints(lambda m, a, b: m.norm(torch.cat([a, b], 1))), x)
    assert computed_by(model, x)[-1] == "Affine"
    with torch.no_grad():
        first, second = model(x), model(-x)
        assert first.data_ptr() != second.data_ptr()
        assert_close(first, unfused(copy.deepcopy(model))(x))


@pytest.mark.filterwarnings("ignore:No calibration data reached")
def test_pieces_of_a_concatenation_are_results_of_their_own():
    x = torch.randn(2, 3, 8, 10)

    def function(m, a, b):
        first, second = torch.cat([a, b], 1).chunk(2, 1)
        return first, m.thin(second), first, a

    model = with_statistics(Joints(function), x)
    with torch.no_grad():
        expected = unfused(copy.deepcopy(model))(x)
        for _ in range(3):
            found = model(x)
            for mine, wanted in zip(found, expected, strict=True):
                assert_close(mine, wanted)
            assert found[0].data_ptr() == found[2].data_ptr()
            assert found[0].data_ptr() != found[3].data_ptr()


class Shuffling(nn.Module):
    """A unit of ShuffleNet at each size: with and without a way around."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(16, 4)
        self.down = nn.ModuleList([nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.Conv2d(8, 8, 1)])
        self.side = nn.Conv2d(8, 8, 3, 2, 1)
        self.units = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(2))

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = shuffled(torch.cat([F.relu(self.down[1](self.down[0](x))), F.relu(self.side(x))], 1))
        for unit in self.units:
            kept, changed = x.chunk(2, 1)
            x = shuffled(torch.cat([kept, F.relu(unit(changed))], 1))
        return self.head(x.mean((2, 3)))


def test_shuffled_channels_stay_codes():
    x = torch.randn(2, 3, 8, 10)
    found = computed_by(with_statistics(Shuffling(), x), x)
    unit = ["ConvOnCodes", "Interleave"]
    first = ["Encode", "ConvOnCodes", "ConvOnCodes", "ConvOnCodes", *unit]
    assert [name for name in found if name != "Requantize"] == [*first, *unit, *unit, "AverageOfCodes", "LinearOnCodes"]


def test_densenet_runs_on_codes_up_to_its_last_normalization():
    (x,) = pictures(1)
    found = computed_by(fitted(family("densenet"), x), x)
    layer, transition = ["Affine", "ConvOnCodes", "ConvOnCodes"], ["Affine", "ConvOnCodes", "AveragePoolOfCodes"]
    stem, head = ["Encode", "ConvOnCodes", "MaxPoolOfCodes"], ["Affine", "mean", "Encode", "LinearOnCodes"]
    assert found == [*stem, *layer * 2, *transition, *layer * 3, *head]


def test_shufflenet_runs_on_codes():
    (x,) = pictures(1)
    found = computed_by(fitted(family("shufflenet"), x), x)
    down = ["ConvOnCodes"] * 5 + ["Interleave"]
    unit = ["ConvOnCodes"] * 3 + ["Interleave"]
    stem, head = ["Encode", "ConvOnCodes", "MaxPoolOfCodes"], ["ConvOnCodes", "AverageOfCodes", "LinearOnCodes"]
    expected = [*stem, *down, *unit, *down, *unit * 2, *down, *unit, *head]
    assert [name for name in found if name != "Requantize"] == expected
