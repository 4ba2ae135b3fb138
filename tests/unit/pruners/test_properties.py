"""What holds for any shapes, patterns, shares and dtypes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from inc_torch import WeightPruningConfig, prepare_compression
from inc_torch.core.errors import ConfigError, InexactWarning
from tests.unit.pruners.vectors import pruners_of

PATTERNS = ["1x1", "4x1", "1x4", "2x2", "channelx1", "1xchannel", "channel", "2:4", "1:4", "4:8"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CRITERIA = ["magnitude", "gradient", "snip", "snip_momentum", "magnitude_progressive", "snip_momentum_progressive"]


@st.composite
def models(draw: Any) -> nn.Sequential:
    """Linears and convolutions of any size, many weights equal, and a tail that is not pruned."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        rows, columns = draw(st.integers(1, 20)), draw(st.integers(1, 20))
        is_linear = draw(st.booleans())
        layer = nn.Linear(columns, rows) if is_linear else nn.Conv2d(columns, rows, draw(st.sampled_from([1, (2, 3)])))
        if draw(st.booleans()):
            layer.weight.data = layer.weight.data.sign()
        layers.append(layer)
    return nn.Sequential(*layers, nn.LayerNorm(3), nn.Linear(3, 2)).to(draw(st.sampled_from(DTYPES)))


@given(
    model=models(),
    pattern=st.sampled_from(PATTERNS),
    kind=st.sampled_from(CRITERIA),
    scope=st.sampled_from(["global", "local"]),
    share=st.floats(0, 1, exclude_max=True),
    is_short=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None)
def test_exactly_what_was_asked_for_is_zero_and_nothing_else_is_touched(
    model, pattern, kind, scope, share, is_short, seed
):
    options = {"pattern": pattern, "pruning_type": kind, "pruning_scope": scope, "target_sparsity": share}
    steps = {"start_step": 1, "end_step": 7, "pruning_frequency": 2, "max_sparsity_ratio_per_op": 0.999999}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InexactWarning)
        try:
            manager = prepare_compression(
                model, WeightPruningConfig(**options, **steps, low_memory_usage=is_short, excluded_op_names=["4"])
            )
        except ConfigError:  # nothing divides, or the pattern cannot reach it: the message has a test of its own
            return
    (pruner,) = pruners_of(manager)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    untouched = {layer.parameter_name for layer in pruner.layers}
    before = {name: value.clone() for name, value in model.state_dict().items() if name not in untouched}
    manager.on_train_begin()
    for step in range(9):
        manager.on_step_begin(step)
        for name, parameter in model.named_parameters():
            is_pruned = name in untouched
            noise = torch.randn(parameter.shape, generator=generator) * is_pruned
            parameter.grad = noise.to(parameter.dtype)
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager.on_train_end()  # would warn if the target were missed
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name
    density = pruner.spec.pattern.density
    units = [layer.grid.units for layer in pruner.layers]
    pruned = [layer.grid.pruned_units(pruner.stored_masks[layer.name]) for layer in pruner.layers]
    exact = share / density
    if scope == "global":
        assert exact * sum(units) - 1 < sum(pruned) <= exact * sum(units) + 1e-3 * sum(units)
    for layer, count, size in zip(pruner.layers, pruned, units, strict=True):
        weight, mask = pruner.weight(layer), pruner.masks[layer.name]
        assert not weight[~mask].any()
        assert bool(weight.isfinite().all())
        if scope == "local":
            assert exact * size - 1 < count <= exact * size + 1e-3 * size


@given(
    value=st.one_of(st.floats(), st.integers(), st.text(max_size=3)),
    name=st.sampled_from(["target_sparsity", "min_sparsity_ratio_per_op", "max_sparsity_ratio_per_op"]),
)
@settings(deadline=None)
def test_a_share_is_a_number_from_0_to_below_1_or_refused_by_name(value, name):
    is_share = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    options = {"target_sparsity": 0.0, "min_sparsity_ratio_per_op": 0.0, "max_sparsity_ratio_per_op": 0.9}
    try:
        config = WeightPruningConfig(**options | {name: value})
    except ConfigError as error:
        assert f".{name}=" in str(error)
        assert not is_share or name == "min_sparsity_ratio_per_op"  # at most the greatest
    else:
        assert is_share
        assert getattr(config, name) == value
