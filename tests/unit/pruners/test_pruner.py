"""A pruner at work: masks, scores, momentum, exactness, and what it does with bad steps."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from inc_torch.core.errors import InexactWarning, LoopWarning, StateError
from inc_torch.core.hooks import Progress
from inc_torch.pruners import Limits, Pruner
from tests.unit.pruners.make import backward, mlp, run, spec_of, stack, zeros
from tests.unit.pruners.vectors import Conv1D

GRADIENT_CRITERIA = ("gradient", "snip", "snip_momentum")


def linear(weight: list, **options: object) -> tuple[nn.Linear, Pruner]:
    values = torch.tensor(weight, dtype=torch.float32)
    layer = nn.Linear(values.shape[1], values.shape[0], bias=False)
    layer.weight.data.copy_(values)
    return layer, Pruner(spec_of(**options), stack(layer))


# ----------------------------------------------------------------------------------- in place


@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2:4", "channelx1"])
def test_masks_are_written_into_the_same_parameters(pattern):
    model = mlp()
    pruner = Pruner(spec_of(pattern, "snip_momentum", start=1, end=3), model)
    before = {name: (id(value), value.data_ptr(), value._version) for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run(pruner, model, optimizer, range(5))
    after = {name: (id(value), value.data_ptr()) for name, value in model.named_parameters()}
    assert after == {name: state[:2] for name, state in before.items()}
    assert pruner.sparsity == 0.5
    for name, mask in pruner.masks.items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        assert torch.equal(weight != 0, mask & (weight != 0))
        assert (weight[~mask] == 0).all()
        assert mask.dtype == torch.bool
        assert mask.shape == weight.shape


def test_masks_are_all_true_before_the_first_update():
    pruner = Pruner(spec_of(start=3, end=3), mlp())
    assert list(pruner.masks) == ["0", "2"]
    assert all(mask.all() for mask in pruner.masks.values())
    assert pruner.stored_masks == {}
    assert pruner.sparsity == 0
    assert pruner.scores == {}


def test_asking_twice_at_one_step_changes_masks_once():
    layer, pruner = linear([[1, 2], [3, 4]])
    assert pruner.begin_step(0) == 0.5
    layer.weight.data.fill_(1).view(-1)[3] = 0.1
    assert pruner.begin_step(0) is None
    assert pruner.masks["0"].tolist() == [[False, False], [True, True]]


def test_bias_is_never_pruned():
    model = mlp()
    Pruner(spec_of(target=0.9), model).begin_step(0)
    assert all((module.bias != 0).all() for module in model if isinstance(module, nn.Linear))


def test_modules_exchanged_later_are_found_again():
    model = mlp()
    pruner = Pruner(spec_of(), model)
    pruner.begin_step(0)
    model[0] = nn.Linear(8, 16)
    pruner.bind(model)
    pruner.mask_weights()
    assert zeros(model[0]) == int((~pruner.masks["0"]).sum()) > 0


def test_a_lost_weight_is_a_clear_error():
    model = mlp()
    pruner = Pruner(spec_of(), model)
    del model[0].weight
    model[0].weight = None
    with pytest.raises(StateError, match="Layer '0' lost its weight Parameter during pruning"):
        pruner.begin_step(0)


# ----------------------------------------------------------------------------------- momentum


@pytest.mark.parametrize(
    ("optimizer_type", "options", "key"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, "momentum_buffer"),
        (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.9}, "momentum_buffer"),
        (torch.optim.Adam, {"lr": 0.01}, "exp_avg"),
        (torch.optim.AdamW, {"lr": 0.01, "foreach": True}, "exp_avg"),
        (torch.optim.NAdam, {"lr": 0.01}, "exp_avg"),
    ],
)
@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2:4"])
def test_momentum_of_pruned_weights_is_cleared(optimizer_type, options, key, pattern):
    model = mlp()
    pruner = Pruner(spec_of(pattern, "snip_momentum", start=2, end=2), model)
    optimizer = optimizer_type(model.parameters(), **options)
    run(pruner, model, optimizer, range(4))
    for name, mask in pruner.masks.items():
        buffer = optimizer.state[model.get_submodule(name).weight][key]
        assert (buffer[~mask] == 0).all()
        assert (buffer[mask] != 0).any()
        assert (~mask).any()


def test_a_weight_that_comes_back_starts_without_momentum():
    """Without clearing, the momentum of the step before it was pruned would move it at once."""
    layer, pruner = linear([[1, 8]], criterion="gradient", start=9, end=9)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
    pruner.stored_masks["0"] = torch.tensor([[False, True]])
    layer.weight.grad = torch.tensor([[4.0, 0.0]])
    optimizer.step()
    pruner.mask_weights()
    pruner.mask_momentum(optimizer)
    assert layer.weight.tolist() == [[0, 8]]
    pruner.stored_masks["0"] = torch.tensor([[True, True]])
    layer.weight.grad = torch.zeros(1, 2)
    optimizer.step()
    assert layer.weight.tolist() == [[0, 8]]


def test_momentum_of_another_shape_is_left_alone():
    layer, pruner = linear([[1, 2], [3, 4]])
    pruner.begin_step(0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    low_rank = torch.ones(1, 2)
    optimizer.state[layer.weight] = {"exp_avg": low_rank, "momentum_buffer": None}
    pruner.mask_momentum(optimizer)
    assert low_rank.tolist() == [[1, 1]]


# ---------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("pattern", "units"), [("1x1", 64 * 64), ("4x1", 16 * 64), ("2:4", 64 * 16)])
def test_exact_count_in_every_dtype(dtype, pattern, units):
    """bfloat16 has 8 bits of precision: among 4096 normal values nearly all are tied with others."""
    layer = nn.Linear(64, 64, bias=False).to(dtype)
    target = 0.45
    pruner = Pruner(spec_of(pattern, target=target), stack(layer))
    pruner.begin_step(0)
    density = pruner.spec.pattern.density
    expected = int(target / density * units + 1e-6) * round(64 * 64 / units * density)
    assert zeros(layer) == expected
    assert layer.weight.dtype == dtype


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("value", [0.5, 0.0])
@pytest.mark.parametrize("target", [0.1, 0.57, 0.9])
def test_exact_count_of_constant_weights(scope, value, target):
    model = stack(nn.Linear(20, 5), nn.Linear(5, 20))
    for module in model[:2]:
        module.weight.data.fill_(value)
    pruner = Pruner(spec_of(scope=scope, target=target, limits=Limits(0.0, 1.0)), model)
    pruner.begin_step(0)
    assert sum(int((~mask).sum()) for mask in pruner.masks.values()) == round(200 * target)
    first = torch.cat([mask.flatten() for mask in pruner.masks.values()])
    if scope == "global":
        assert first.tolist() == sorted(first.tolist()), "the first in order go first"


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 8, 3),
        nn.Conv2d(4, 8, 3),
        nn.Conv3d(4, 8, 2),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 8, (2, 2), groups=8),
        nn.ConvTranspose1d(8, 4, 4),
        nn.ConvTranspose2d(8, 4, 2),
        Conv1D(8, 4),
    ],
    ids=lambda layer: f"{type(layer).__name__}{tuple(layer.weight.shape)}",
)
@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2x2", "2:4", "channelx1"])
def test_every_kind_of_layer_is_half_pruned(layer, pattern):
    layer.weight.data = torch.randn(layer.weight.shape)
    model = stack(layer)
    pruner = Pruner(spec_of(pattern), model)
    pruner.begin_step(0)
    assert zeros(layer) == layer.weight.numel() // 2
    assert pruner.sparsity == 0.5


def test_scores_follow_outputs_and_inputs_of_transposed_layers():
    """One output of a ConvTranspose or HF Conv1D is a slice of its second axis."""
    for layer in (nn.ConvTranspose2d(3, 4, 2, bias=False), Conv1D(4, 3)):
        layer.weight.data.fill_(1.0)
        layer.weight.data[:, 2] = 0.5
        Pruner(spec_of("1xchannel", target=0.25), stack(layer)).begin_step(0)
        assert (layer.weight[:, 2] == 0).all()
        assert zeros(layer) == layer.weight[:, 2].numel()


def test_global_scope_ranks_layers_together_and_local_each_alone():
    def pruned(scope: str) -> list[int]:
        model = stack(nn.Linear(4, 4), nn.Linear(4, 4))
        model[0].weight.data.fill_(1.0)
        model[1].weight.data.fill_(2.0)
        Pruner(spec_of(scope=scope), model).begin_step(0)
        return [zeros(model[0]), zeros(model[1])]

    assert pruned("global") == [15, 1]  # 0.98 of 16 are 15
    assert pruned("local") == [8, 8]


# ----------------------------------------------------------------------------------- criteria


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("gradient", [[2.0, 0.0, 4.0]]),
        ("snip", [[2.0, 0.0, 12.0]]),
        ("snip_momentum", [[0.9 * 5 + 2.0, 0.9 * 4 + 0.0, 0.9 * 3 + 12.0]]),
    ],
)
def test_scores_of_two_steps(criterion, expected):
    layer, pruner = linear([[1, -2, 3]], criterion=criterion, start=9, end=9)
    for gradient in ([[-5.0, 2.0, 1.0]], [[-2.0, 0.0, 4.0]]):
        layer.weight.grad = torch.tensor(gradient)
        pruner.collect_scores()
    torch.testing.assert_close(pruner.scores["0"], torch.tensor(expected))


def test_block_scores_are_smoothed_after_reduction():
    layer, pruner = linear([[1, 2], [3, 4]], pattern="2x1", criterion="snip_momentum", start=9, end=9)
    for scale in (1.0, 2.0):
        layer.weight.grad = torch.full((2, 2), scale)
        pruner.collect_scores()
    torch.testing.assert_close(pruner.scores["0"], torch.tensor([[0.9 * 2 + 4.0, 0.9 * 3 + 6.0]]))


def test_scores_do_not_alias_gradients():
    layer, pruner = linear([[1, 2]], criterion="gradient", start=9, end=9)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    pruner.collect_scores()
    layer.weight.grad.zero_()
    assert pruner.scores["0"].tolist() == [[3, 4]]


def test_half_precision_products_do_not_overflow():
    layer = nn.Linear(2, 1, bias=False).half()
    layer.weight.data.fill_(6e4)
    layer.weight.grad = torch.full((1, 2), 6e4, dtype=torch.float16)
    pruner = Pruner(spec_of(criterion="snip", start=9, end=9), stack(layer))
    pruner.collect_scores()
    assert pruner.scores["0"].dtype == torch.float32
    torch.testing.assert_close(pruner.scores["0"], torch.full((1, 2), 3.6e9), rtol=1e-2, atol=0)


# ------------------------------------------------------------------- steps that must not count


@pytest.mark.parametrize("criterion", GRADIENT_CRITERIA)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_non_finite_gradients_are_skipped_with_one_warning(criterion, bad):
    model = mlp()
    pruner = Pruner(spec_of(criterion=criterion, start=9, end=9), model)
    backward(model)
    pruner.collect_scores()
    before = {name: score.clone() for name, score in pruner.scores.items()}
    model[2].weight.grad[1, 1] = bad
    with pytest.warns(LoopWarning, match=r"Non-finite values in the gradient or weight of '2'") as caught:
        pruner.collect_scores()
        pruner.collect_scores()
    assert len(caught) == 1
    assert all(torch.equal(score, before[name]) for name, score in pruner.scores.items())


def test_large_finite_scores_are_no_reason_to_skip():
    """Their sum overflows; each of them is finite."""
    layer, pruner = linear([[1, 2, 3, 4]], criterion="gradient", start=9, end=9)
    layer.weight.grad = torch.full((1, 4), 3e38)
    pruner.collect_scores()
    assert torch.isfinite(pruner.scores["0"]).all()


@pytest.mark.parametrize("criterion", GRADIENT_CRITERIA)
def test_a_missing_gradient_counts_as_zero_with_one_warning(criterion):
    model = mlp()
    pruner = Pruner(spec_of(criterion=criterion, start=9, end=9), model)
    backward(model)
    model[0].weight.grad = None
    with pytest.warns(LoopWarning) as caught:
        pruner.collect_scores()
        pruner.collect_scores()
    (warning,) = caught
    assert str(warning.message) == (
        "No gradient for '0' (1 of 2 pruned layers) when scores were taken: it counts as zero in that step. "
        "Call on_before_optimizer_step between backward and zero_grad, and do not freeze layers that are pruned."
    )
    assert not pruner.scores["0"].any()
    assert pruner.scores["2"].any()


def test_no_gradient_at_all_leaves_the_scores():
    model = mlp()
    pruner = Pruner(spec_of(criterion="snip_momentum", start=9, end=9), model)
    backward(model)
    pruner.collect_scores()
    before = {name: score.clone() for name, score in pruner.scores.items()}
    model.zero_grad()
    with pytest.warns(LoopWarning, match=r"2 of 2 pruned layers"):
        pruner.collect_scores()
    assert all(torch.equal(score, before[name]) for name, score in pruner.scores.items())


# --------------------------------------------------------------------------- waiting for gradients


@pytest.mark.parametrize("criterion", GRADIENT_CRITERIA)
def test_one_shot_at_step_0_waits_for_the_first_gradients(criterion):
    """The default configuration: start = end = 0 with a gradient criterion."""
    model = mlp()
    pruner = Pruner(spec_of("4x1", criterion), model)
    with pytest.warns(LoopWarning, match=r"has seen no gradient yet, or only zeros, at step 0, where 0\.500") as caught:
        assert pruner.begin_step(0) == 0.5
    assert len(caught) == 1
    assert pruner.sparsity == 0
    backward(model)
    snip = torch.cat(
        [
            (module.weight * module.weight.grad).abs().view(-1, 4, module.in_features).mean(1).flatten()
            for module in model[0:3:2]
        ]
    )
    pruner.collect_scores()
    assert pruner.sparsity == 0.5
    if criterion != "gradient":
        keep = torch.cat([mask.flatten() for mask in pruner.stored_masks.values()])
        assert torch.equal(keep, snip > snip.sort().values[len(snip) // 2 - 1])
    pruner.mask_weights()
    assert zeros(model[0]) + zeros(model[2]) == (8 * 16 + 16 * 8) // 2
    backward(model)
    masks = {name: mask.clone() for name, mask in pruner.stored_masks.items()}
    pruner.collect_scores()
    assert all(torch.equal(mask, masks[name]) for name, mask in pruner.stored_masks.items()), "once only"


@pytest.mark.parametrize("useless", ["missing", "zero", "infinite"])
def test_the_wait_goes_on_while_gradients_say_nothing(useless):
    model = mlp()
    pruner = Pruner(spec_of(criterion="snip"), model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LoopWarning)
        pruner.begin_step(0)
        backward(model)
        for parameter in model.parameters():
            match useless:
                case "missing":
                    parameter.grad = None
                case "zero":
                    parameter.grad.zero_()
                case "infinite":
                    parameter.grad.fill_(float("inf"))
        pruner.collect_scores()
    assert pruner.sparsity == 0
    assert pruner.begin_step(1) is None
    backward(model)
    pruner.collect_scores()
    assert pruner.sparsity == 0.5


def test_scores_of_nothing_but_zeros_never_prune():
    model = mlp()
    pruner = Pruner(spec_of(criterion="snip_momentum", start=1, end=1), model)
    backward(model)
    for parameter in model.parameters():
        parameter.grad.zero_()
    pruner.collect_scores()
    with pytest.warns(LoopWarning, match="no gradient yet, or only zeros, at step 1"):
        pruner.begin_step(1)
    assert pruner.sparsity == 0


def test_an_iterative_schedule_from_step_0_does_not_wait():
    """Its first update asks for nothing, so there is nothing to warn about."""
    model = mlp()
    pruner = Pruner(spec_of(criterion="snip_momentum", start=0, end=2), model)
    run(pruner, model, torch.optim.SGD(model.parameters(), lr=0.1), range(3))
    assert pruner.sparsity == 0.5


def test_a_later_update_replaces_one_that_waits():
    model = mlp()
    pruner = Pruner(spec_of(criterion="snip", start=1, end=3), model)
    with pytest.warns(LoopWarning) as caught:
        for step in range(4):
            pruner.begin_step(step)
    assert len(caught) == 1
    backward(model)
    pruner.collect_scores()
    assert pruner.sparsity == 0.5


# ------------------------------------------------------------------------------ zeros that are there


def test_lock_keeps_exactly_the_zeros():
    layer, pruner = linear([[0, 1, 0, 2], [3, 0, 0, 4]], locks_zeros=True)
    assert pruner.begin_step(0) is None
    assert pruner.masks["0"].int().tolist() == [[0, 1, 0, 1], [1, 0, 0, 1]]
    layer.weight.data.fill_(1)
    pruner.mask_weights()
    assert zeros(layer) == 4
    (finding,) = pruner.findings()
    assert (finding.sparsity, finding.units, finding.pruned_units, finding.note) == (0.5, 8, 4, "zeros locked")


def test_lock_takes_no_scores():
    model = mlp()
    pruner = Pruner(spec_of(criterion="snip", locks_zeros=True), model)
    pruner.begin_step(0)
    backward(model)
    pruner.collect_scores()
    assert pruner.scores == {}


def test_initial_zeros_count_and_stay():
    weight = torch.arange(1.0, 17).view(4, 4)
    weight[:2] = 0
    layer, pruner = linear(weight.tolist(), target=0.75, start=0, end=2, keeps_initial_zeros=True)
    found = []
    for step in range(3):
        pruner.begin_step(step)
        found.append(zeros(layer))
    assert found == [8, 10, 12]


@pytest.mark.parametrize("criterion", GRADIENT_CRITERIA)
def test_initial_zeros_stay_at_the_first_update_whatever_the_gradients(criterion):
    """Weights without gradient tie with zeros; they must not be taken in their place. Nothing to wait for either."""
    layer, pruner = linear(
        [[1, 2], [0, 0]], criterion=criterion, target=0.75, start=0, end=8, frequency=4, keeps_initial_zeros=True
    )
    pruner.begin_step(0)
    layer.weight.grad = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    pruner.collect_scores()
    pruner.mask_weights()
    assert pruner.masks["0"].tolist() == [[True, True], [False, False]]


def test_initial_zeros_are_kept_before_the_first_update_too():
    model = stack(nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[0].weight[0] = 0
    pruner = Pruner(spec_of(target=0.5, start=3, end=3, keeps_initial_zeros=True), model)
    pruner.begin_step(0)
    with torch.no_grad():
        model[0].weight += 1
    pruner.mask_weights()
    assert torch.equal(model[0].weight == 0, torch.tensor([[True] * 4] + [[False] * 4] * 3))


def test_more_initial_zeros_than_the_target_stay_as_they_are():
    layer, pruner = linear([[0, 0, 0, 4]], target=0.5, start=0, end=1, keeps_initial_zeros=True)
    pruner.begin_step(0)
    pruner.begin_step(1)
    assert pruner.sparsity == 0.75
    assert layer.weight.tolist() == [[0, 0, 0, 4]]


def test_a_rounded_target_does_not_stop_updates():
    """1 - 0.9 is a little below 0.1, yet one of ten units is not too many."""
    layer, pruner = linear([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]], target=1 - 0.9, start=0, end=4, schedule="exp")
    pruner.begin_step(4)
    assert zeros(layer) == 1
    layer.weight.data = torch.arange(10.0, 0, -1).view(1, 10)
    pruner._last_step = 3
    pruner.begin_step(4)
    assert layer.weight.tolist() == [[10, 9, 8, 7, 6, 5, 4, 3, 2, 0]]


# -------------------------------------------------------------------------------------- the end


def test_a_missed_target_is_said():
    model = mlp()
    pruner = Pruner(spec_of("4x1", start=0, end=10, target=0.8), model)
    pruner.begin_step(0)
    pruner.begin_step(5)
    with pytest.warns(InexactWarning) as caught:
        pruner.warn_if_missed(Progress(step=6))
    (warning,) = caught
    assert str(warning.message) == (
        "Pruning reached 0.3906 instead of 0.8 (Pruner(Magnitude, 4x1, 0.8, 2 layers)): training ended after 6 "
        "optimizer steps, and the last mask update is due at step 10 (start_step=0, pruning_frequency=1)."
    )


@pytest.mark.parametrize("pattern", ["channelx1", "1xchannel", "4x1"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_missed_target_of_few_units_is_said_too(pattern, scope):
    model = stack(*(nn.Linear(4, 4) for _ in range(10)))
    pruner = Pruner(spec_of(pattern, scope=scope, target=0.25, start=5, end=5), model)
    with pytest.warns(InexactWarning, match=r"Pruning reached 0\.0000 instead of 0\.25"):
        pruner.warn_if_missed(Progress(step=3))


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("pattern", ["1x1", "2x1", "channelx1", "1:4"])
def test_a_reached_target_is_not_warned_about(scope, target, pattern):
    """Rounding down in every layer is no miss, nor are limits."""
    model = stack(nn.Linear(8, 2), nn.Linear(12, 6), nn.Linear(4, 10))
    density = spec_of(pattern).pattern.density
    spec = spec_of(pattern, scope=scope, target=target * density, limits=Limits(0.0, min(density, 0.95)))
    pruner = Pruner(spec, model)
    pruner.begin_step(0)
    pruner.warn_if_missed(Progress(step=1))


def test_findings_say_what_was_asked_and_reached():
    model = stack(nn.Linear(8, 8), nn.Linear(8, 6))
    with pytest.warns(InexactWarning):
        pruner = Pruner(spec_of("4x1", target=0.25), model, group=3)
    before, _ = pruner.findings()
    assert (before.units, before.pruned_units) == (16, 0)
    pruner.begin_step(0)
    pruned, dense = pruner.findings()
    assert (pruned.module, pruned.pattern, pruned.sparsity, pruned.group) == ("0", "4x1", 0.25, 3)
    assert (pruned.units, pruned.pruned_units, pruned.note) == (16, 4, None)
    assert (dense.module, dense.sparsity) == ("1", None)
    assert dense.note.startswith("left dense: a 6x8 weight")


def test_findings_of_n_in_m_count_elements():
    """As the target does, so that reached and asked can be compared."""
    model = stack(nn.Linear(8, 8))
    pruner = Pruner(spec_of("1:4", target=0.25), model)
    pruner.begin_step(0)
    (finding,) = pruner.findings()
    assert (finding.units, finding.pruned_units) == (64, 16)


# -------------------------------------------------------------------------------------- memory


def stored_bytes(pruner: Pruner) -> int:
    tensors = [pruner._scores, *pruner.stored_masks.values()]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors if tensor is not None
    }
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize(
    ("pattern", "criterion", "most"),
    [
        ("1x1", "snip_momentum", 5.0),
        ("1x1", "gradient", 5.0),
        ("1x1", "magnitude", 1.0),
        ("4x1", "snip_momentum", 1.5),
        ("4x1", "magnitude", 0.25),
        ("16x1", "snip_momentum", 0.4),
        ("2:4", "snip_momentum", 5.0),
        ("2:4", "magnitude", 1.0),
    ],
)
def test_bytes_kept_per_parameter(pattern, criterion, most):
    model = stack(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    pruner = Pruner(spec_of(pattern, criterion, start=1, end=3, target=0.5), model)
    for step in range(5):
        pruner.begin_step(step)
        backward(model, 64)
        pruner.collect_scores()
    assert pruner.sparsity == 0.5
    assert stored_bytes(pruner) <= most * 2 * 64 * 64
    held = [value for value in vars(pruner).values() if isinstance(value, torch.Tensor)]
    assert len(held) == (0 if criterion == "magnitude" else 1), "no tensor beside the scores"
