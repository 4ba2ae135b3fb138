"""Pruning under FSDP2: masks are those of one process, whatever the shards, and so is what is saved."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from inc_torch.callbacks.pruning import PruningCallbacks
from inc_torch.core.errors import InexactWarning, LoopWarning, ModelError, StateError
from inc_torch.core.hooks import Progress
from inc_torch.core.sharding import unshard_model_
from inc_torch.pruners import REGULARIZERS, Limits, PrunerSpec, select_layers
from inc_torch.pruners._progressive import InParts
from tests.distributed.worlds import run_world
from tests.unit.pruners.make import spec_of

pytestmark = pytest.mark.skipif(
    torch.__version__.startswith("2.8."),
    reason="torch 2.8 adds up gradients of FSDP2 over gloo instead of averaging them: no run is as that of one process",
)

STEPS = 5


class Conv1D(nn.Module):
    """Like transformers' ``Conv1D``: the weight is stored [in, out]."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch @ self.weight


def linears(*widths: int) -> nn.Sequential:
    """Linears of these widths with ReLUs, the last one too, so that none is a classifier head."""
    pairs = itertools.pairwise(widths)
    return nn.Sequential(*(module for pair in pairs for module in (nn.Linear(*pair), nn.ReLU())))


def convolutions() -> nn.Sequential:
    """12 channels, so that 4x1 blocks straddle shards of 6 and of 3, and a transposed one stored [in, out]."""
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)),
        nn.Conv2d(2, 12, 2, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 8, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2),
        nn.Tanh(),
    )


def transformer_like() -> nn.Sequential:
    return nn.Sequential(Conv1D(12, 8), nn.ReLU(), Conv1D(8, 12), nn.ReLU(), nn.Linear(8, 20), nn.ReLU())


class Attending(nn.Module):
    """Four heads of two channels, which attend to each other instead of to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def made(self, batch: torch.Tensor) -> list[torch.Tensor]:
        return [maker(batch) for maker in (self.query, self.key, self.value)]

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        query, key, value = (own.unflatten(-1, (4, 2)) for own in self.made(batch))
        return self.out(((query * key).sum(-1, keepdim=True).sigmoid() * value).flatten(1))


class FusedAttending(Attending):
    """As in GPT-2: one turned layer for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        del self.query, self.key, self.value, self.out
        self.split_size = 8
        self.c_attn, self.out = Conv1D(24, 8), Conv1D(8, 8)

    def made(self, batch: torch.Tensor) -> list[torch.Tensor]:
        return list(self.c_attn(batch).split(8, -1))


@dataclass(frozen=True)
class Case:
    """One pruner on one model; with every second case the model is sharded before its pruner is made."""

    build: Callable[[], nn.Sequential]
    spec: PrunerSpec
    prepare: Callable[[nn.Module], None] = field(default=lambda _: None)


def case(build: Callable[[], nn.Sequential], pattern: str, criterion: str = "snip_momentum", **options: Any) -> Case:
    prepare = options.pop("prepare", lambda _: None)
    return Case(build, spec_of(pattern, criterion, **{"start": 1, "end": 3, **options}), prepare)


def zeros(model: nn.Module) -> None:
    """Zeros in whole blocks, those that straddle shards too, and in parts of others."""
    with torch.no_grad():
        for module in model[::2]:
            module.weight[3:9] = 0
            module.weight[:, :5] = 0


def even() -> nn.Sequential:
    return linears(8, 16, 32)


def straddling() -> nn.Sequential:
    return linears(8, 12, 20, 4)


def odd() -> nn.Sequential:
    return linears(8, 3, 7, 5)


def attending() -> nn.Sequential:
    return nn.Sequential(Attending(), nn.ReLU(), FusedAttending(), nn.ReLU())


def in_parts(build: Callable[[], nn.Sequential], pattern: str, criterion: str = "snip_momentum", **more: Any) -> Case:
    """Updates at steps 0, 2 and 4, of which the last is half done when training ends."""
    plain = case(build, pattern, criterion, start=0, end=5, frequency=2, is_progressive=True, **more)
    return Case(build, replace(plain.spec, pattern=InParts(plain.spec.pattern)))


TIGHT = Limits(0.3, 0.6)
CASES = {
    "4x1 even": case(even, "4x1"),
    "4x1 straddling": case(straddling, "4x1"),
    "4x1 straddling, max": case(straddling, "4x1", reduction="max"),
    "4x1 straddling, sum, limits": case(straddling, "4x1", reduction="sum", limits=TIGHT),
    "4x1 straddling, block mask": case(straddling, "4x1", "block_mask", reduction="net"),
    "4x1 straddling, group lasso": case(straddling, "4x1", regularizer=REGULARIZERS.get("group_lasso")(0.03)),
    "channelx1 odd, group lasso": case(odd, "channelx1", regularizer=REGULARIZERS.get("group_lasso")(0.03)),
    "1x1 odd": case(odd, "1x1"),
    "1x1 odd, limits": case(odd, "1x1", limits=TIGHT),
    "1x1 odd, local": case(odd, "1x1", "snip", scope="local", limits=TIGHT),
    "1x1 magnitude": case(straddling, "1x1", "magnitude"),
    "channelx1": case(straddling, "channelx1"),
    "channelx1 odd": case(odd, "channelx1", "magnitude"),
    "1xchannel": case(odd, "1xchannel"),
    "channel": case(convolutions, "channel", scope="local"),
    "channel in inputs": case(transformer_like, "channel", "magnitude"),
    "2:4": case(even, "2:4", "gradient"),
    "4x1 convolutions": case(convolutions, "4x1"),
    "1x1 convolutions, local": case(convolutions, "1x1", scope="local"),
    "2:4 in inputs": case(transformer_like, "2:4"),
    "1x4 in inputs": case(transformer_like, "1x4"),
    "4x1 in inputs": case(transformer_like, "4x1"),
    "4x1 in parts": in_parts(straddling, "4x1"),
    "channelx1 in parts": in_parts(odd, "channelx1", "magnitude"),
    "4:8 in parts": in_parts(even, "4:8", target=0.4),
    "heads": case(attending, "mha"),
    "heads, local": case(attending, "mha", "magnitude", scope="local"),
    "lock": case(straddling, "4x1", locks_zeros=True, start=0, end=0, prepare=zeros),
    "lock 2:4": case(transformer_like, "2:4", start=0, end=0, locks_zeros=True, prepare=zeros),
    "initial zeros": case(straddling, "1x1", "magnitude", keeps_initial_zeros=True, target=0.8, prepare=zeros),
}


def batch_of(step: int) -> torch.Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(step))


def mesh_of(*shape: int) -> DeviceMesh:
    """All ranks, or replicas of shards."""
    shape = shape or (distributed.get_world_size(),)
    return init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards")[-len(shape) :])


def shard(model: nn.Sequential, **options: Any) -> None:
    """Some layers in groups of their own, the rest with the root, as users do."""
    for module in model[:3]:
        if "weight" in module._parameters:
            fully_shard(module, **options)
    fully_shard(model, **options)


def shard_all(model: nn.Sequential) -> None:
    shard(model, mesh=mesh_of())


class Run:
    """A model, its pruner and an optimizer, driven as the dispatcher does.

    Args:
        case: What to prune.
        shard: Shards the model; before its pruner is made if ``is_early``, else after that, and after it is loaded.
        saved: Where to go on.
    """

    def __init__(
        self,
        case: Case,
        shard: Callable[[nn.Module], None] = lambda _: None,
        *,
        is_early: bool = False,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        torch.manual_seed(7)
        self.model = case.build()
        case.prepare(self.model)
        if saved:
            self.model.load_state_dict(saved["weights"])
        if is_early:
            shard(self.model)
        self.callback = PruningCallbacks([case.spec], self.model)
        self.progress = Progress()
        self.callback.prepare(self.model, self.progress)
        if saved:
            self.callback.load_state_dict(saved["pruning"])
            self.progress.step = saved["step"]
        if not is_early:
            shard(self.model)
        (self.pruner,) = self.callback.pruners
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.progress.optimizers.add(self.optimizer)
        for name, momentum in saved["momentum"].items() if saved else ():
            weight = self.model.get_parameter(name)
            is_sharded = isinstance(weight, DTensor)
            own = distribute_tensor(momentum, weight.device_mesh, weight.placements) if is_sharded else momentum
            self.optimizer.state[weight]["momentum_buffer"] = own

    def begin(self) -> Run:
        self.callback.on_train_begin()
        return self

    def step(self) -> None:
        step = self.progress.step
        self.callback.on_step_begin(step)
        self.optimizer.zero_grad()
        self.model(batch_of(step)).square().sum().backward()
        self.callback.on_before_optimizer_step()
        self.optimizer.step()
        self.callback.on_after_optimizer_step()
        self.progress.step += 1

    def finish(self, steps: int = STEPS) -> Run:
        for _ in range(self.progress.step, steps):
            self.step()
        return self

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: whole(weight) for name, weight in self.model.state_dict().items()}

    def saved(self) -> dict[str, Any]:
        momentum = {
            name: whole(self.optimizer.state[weight]["momentum_buffer"])
            for name, weight in self.model.named_parameters()
        }
        pruning, weights = self.callback.state_dict(), self.weights()
        return {"pruning": pruning, "weights": weights, "momentum": momentum, "step": self.progress.step}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def require_as_alone(found: Run, alone: Run, name: str) -> None:
    """Masks are equal; scores and weights up to the rounding of sums over ranks."""
    state, expected = found.callback.state_dict()["pruners"][0], alone.callback.state_dict()["pruners"][0]
    assert list(state["masks"]) == list(expected["masks"]) == [layer.parameter_name for layer in alone.pruner.layers]
    for key, mask in expected["masks"].items():
        assert torch.equal(state["masks"][key], mask), (name, key)
    assert state["scores"].keys() == expected["scores"].keys()
    for key, score in expected["scores"].items():
        torch.testing.assert_close(state["scores"][key], score, rtol=1e-5, atol=1e-7)
    assert {key: state[key] for key in ("initial", "last_step", "postponed")} == {
        key: expected[key] for key in ("initial", "last_step", "postponed")
    }
    torch.testing.assert_close(found.weights(), alone.weights(), rtol=1e-4, atol=1e-6)
    assert found.callback.metrics() == alone.callback.metrics()
    assert list(found.callback.findings()) == list(alone.callback.findings())
    assert found.pruner.sparsity > 0.1


def require_masked(run: Run) -> None:
    """Weights of this rank are zero where its masks prune, and momentum is as soon as it is cleared."""
    run.pruner.mask_momentum(run.optimizer)
    for layer in run.pruner.layers:
        weight, mask = run.pruner.weight(layer), run.pruner.masks[layer.name]
        momentum = run.optimizer.state[weight]["momentum_buffer"].to_local()
        assert mask.shape == weight.to_local().shape == momentum.shape
        assert not weight.to_local()[~mask].any()
        assert not momentum[~mask].any()


def prune_as_alone(names: list[str]) -> list[float]:
    reached = []
    for index, name in enumerate(names):
        found = Run(CASES[name], shard_all, is_early=index % 2 == 0).begin().finish()
        require_as_alone(found, Run(CASES[name]).begin().finish(), name)
        require_masked(found)
        reached.append(found.pruner.sparsity)
    return reached


QUICK = {
    2: [name for name in CASES if name not in ("1x1 odd", "4x1 straddling, max", "2:4", "lock")],
    3: ["1x1 odd", "channelx1 odd", "4x1 convolutions", "2:4 in inputs", "heads", "4x1 in parts"],
    4: ["4x1 even", "4x1 straddling, max", "1x1 odd, limits", "channelx1", "2:4", "1x4 in inputs", "lock"],
}


@pytest.mark.parametrize("ranks", QUICK)
def test_masks_are_those_of_one_process(ranks):
    first, *others = run_world(prune_as_alone, ranks, QUICK[ranks])
    assert all(reached == first for reached in others)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", QUICK)
def test_masks_of_all_cases_are_those_of_one_process(ranks):
    run_world(prune_as_alone, ranks, list(CASES))


# ------------------------------------------------------------------------------------ what lies on a rank


def what_is_held() -> dict[str, Any]:
    run = Run(CASES["4x1 even"], shard_all).begin().finish()
    scores, masks = run.pruner.scores, run.pruner.stored_masks
    return {"scores": [len(score) for score in scores.values()], "masks": [len(mask) for mask in masks.values()]}


def nothing_is_pruned_on_empty_shards() -> dict[str, Any]:
    """Five rows on four ranks, and one layer of two rows: the last ranks have nothing."""
    tiny = case(lambda: linears(8, 2), "1x1", start=1, end=1)
    run = Run(tiny, shard_all).begin().finish()
    return {"held": run.pruner.masks["0"].numel(), "sparsity": run.pruner.sparsity}


def model_with_head() -> nn.Sequential:
    return nn.Sequential(Conv1D(6, 8), nn.Linear(6, 5), nn.Linear(5, 8), nn.Dropout(0.1), nn.Linear(8, 2))


def chosen(model: nn.Module) -> list[Any]:
    """Layers with the shapes of their masks, and what is said of the others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InexactWarning)
        selection = select_layers(model, spec_of("2x1"))
    return [[(layer.name, layer.grid.mask_shape) for layer in selection.layers], list(selection.left_dense)]


def chosen_in_shards() -> list[Any]:
    model = model_with_head()
    for module in model:
        fully_shard(module, mesh=mesh_of())
    return chosen(model)


def test_layers_are_chosen_as_in_a_model_that_is_not_sharded():
    expected = chosen(model_with_head())
    assert expected[0] == [("0", (3, 8)), ("2", (4, 5))]
    assert [finding.module for finding in expected[1]] == ["1", "4"]
    assert run_world(chosen_in_shards, 2) == [expected] * 2


def test_a_rank_holds_its_share_only():
    assert run_world(what_is_held, 2) == [{"scores": [2, 4], "masks": [2, 4]}] * 2


def test_ranks_without_rows_take_part():
    found = run_world(nothing_is_pruned_on_empty_shards, 4)
    assert [own["held"] for own in found] == [8, 8, 0, 0]
    assert {own["sparsity"] for own in found} == {0.5}


# ------------------------------------------------------------------------------------ save and resume

RESUMED = [
    "4x1 straddling",
    "2:4 in inputs",
    "1x1 odd, local",
    "channelx1",
    "4x1 convolutions",
    "heads",
    "4x1 in parts",
]


def go_on(saved: dict[str, Any], steps: int, *, is_early: bool) -> dict[str, Any]:
    """Begin or go on, and return for each case what is saved after ``steps`` in all."""
    after = {}
    for name in RESUMED:
        shard = shard_all if distributed.is_initialized() else lambda _: None
        run = Run(CASES[name], shard, is_early=is_early, saved=saved.get(name)).begin()
        if saved:
            require_same_state(run.callback.state_dict(), saved[name]["pruning"])
        after[name] = run.finish(steps).saved()
    return after


def require_same_state(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Masks and scores are the same bit for bit."""
    for kind in ("masks", "scores"):
        own, other = found["pruners"][0][kind], expected["pruners"][0][kind]
        assert own.keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in own.items())


def test_a_run_goes_on_with_another_number_of_ranks():
    """Two ranks, then four, then one: from before the first masks, and from between two updates."""
    (saved, _) = run_world(go_on, 2, {}, 1, is_early=False)
    of_ranks = run_world(go_on, 4, saved, 3, is_early=False)
    for own in of_ranks[1:]:
        for name in RESUMED:
            require_same_state(own[name]["pruning"], of_ranks[0][name]["pruning"])
    (saved, _) = run_world(go_on, 2, of_ranks[2], 4, is_early=True)
    end = go_on(saved, STEPS, is_early=False)
    for name in RESUMED:
        alone = Run(CASES[name]).begin().finish().saved()
        (found,), (expected,) = end[name]["pruning"]["pruners"], alone["pruning"]["pruners"]
        assert not all(mask.all() for mask in expected["masks"].values())
        assert all(torch.equal(found["masks"][key], mask) for key, mask in expected["masks"].items()), name
        torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(end[name]["weights"], alone["weights"], rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------ steps that must not count


def what_happens_with_bad_steps() -> dict[str, Any]:
    """A NaN on the last rank only; a one-shot that waits; gradients of nothing but zeros."""
    rank, last = distributed.get_rank(), distributed.get_world_size() - 1
    run = Run(CASES["4x1 straddling"], shard_all).begin()
    run.step()
    before = run.callback.state_dict()["pruners"][0]["scores"]
    if rank == last:
        run.model[2].weight.grad.to_local()[-1, 0] = float("nan")
    with pytest.warns(LoopWarning, match="Non-finite values") as caught:
        run.pruner.collect_scores()
    after = run.callback.state_dict()["pruners"][0]["scores"]
    said = {
        "non-finite": str(caught[0].message),
        "is_as_before": all(torch.equal(score, before[key]) for key, score in after.items()),
    }

    waiting = Run(case(straddling, "1x1", "snip", start=0, end=0), shard_all).begin()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LoopWarning)
        waiting.pruner.begin_step(0)
        waiting.pruner.collect_scores()
        said["without gradients"] = (waiting.pruner.sparsity, waiting.callback.has_reached_goal())
        waiting.model(batch_of(0)).sum().backward()
        for parameter in waiting.model.parameters():
            parameter.grad.zero_()
        waiting.pruner.collect_scores()
        said["with zeros"] = (waiting.pruner.sparsity, waiting.callback.has_reached_goal())
        waiting.model(batch_of(0)).sum().backward()
        for parameter in waiting.model.parameters() if rank else ():
            parameter.grad.zero_()
        waiting.pruner.collect_scores()
        said["with gradients on the first rank"] = (waiting.pruner.sparsity, waiting.callback.has_reached_goal())
    return said


def test_bad_steps_are_skipped_on_every_rank():
    found = run_world(what_happens_with_bad_steps, 2)
    assert [own.pop("non-finite").split(": ")[0].split(" of ")[1] for own in found] == [
        "another process's shard",
        "'2'",
    ]
    assert (
        found
        == [
            {
                "is_as_before": True,
                "without gradients": (0.0, False),
                "with zeros": (0.0, False),
                "with gradients on the first rank": (0.5, True),
            }
        ]
        * 2
    )


def prune_around_evaluations() -> None:
    """FSDP leaves the root's weights gathered after a forward without a backward."""
    run = Run(CASES["4x1 straddling"], shard_all)
    alone = Run(CASES["4x1 straddling"]).begin()
    with torch.no_grad():
        run.model(batch_of(0))
        assert not isinstance(run.model[4].weight, DTensor)
        run.begin()
        for _ in range(STEPS):
            run.model(batch_of(0))
            assert not isinstance(run.model[4].weight, DTensor)
            with torch.enable_grad():
                run.step()
                alone.step()
            run.model(batch_of(0))
            expected = alone.model(batch_of(0))
            torch.testing.assert_close(run.model(batch_of(0)), expected, rtol=1e-4, atol=1e-5)
    require_as_alone(run, alone, "around evaluations")


def test_evaluations_between_steps_do_no_harm():
    run_world(prune_around_evaluations, 2)


# ------------------------------------------------------------------------------------ other layouts


def beside_copies_and_replicas() -> dict[str, Any]:
    """Layers that FSDP ignores; two replicas of two shards; and what is said where copies differ."""
    names = ["4x1 straddling", "1x1 odd", "2:4 in inputs", "lock"]
    for name in names:
        run = Run(CASES[name], lambda model: fully_shard(model, mesh=mesh_of(), ignored_params={model[2].weight}))
        assert not isinstance(run.model[2].weight, DTensor)
        require_as_alone(run.begin().finish(), Run(CASES[name]).begin().finish(), name)
        replicated = Run(CASES[name], lambda model: shard(model, mesh=mesh_of(2, 2))).begin().finish()
        require_as_alone(replicated, Run(CASES[name]).begin().finish(), name)
    said = {}
    for kind, shape in (("copies", (4,)), ("replicas", (2, 2))):
        run = Run(case(even, "1x1", "magnitude", start=0, end=0))
        mesh = mesh_of(*shape)
        ignored = {run.model[2].weight} if kind == "copies" else set()
        fully_shard(run.model, mesh=mesh, ignored_params=ignored)
        run.begin()
        with torch.no_grad():
            weight = run.model[2].weight if kind == "copies" else run.model[2].weight.to_local()
            if distributed.get_rank() > 1:
                weight.copy_(weight.flip(0))
        with pytest.raises(StateError) as caught:
            run.callback.on_step_begin(0)
        said[kind] = str(caught.value).split(",")[0]
    return said


def test_copies_and_replicas_of_shards():
    expected = {
        "copies": "Pruning masks of layers that are not sharded differ between the 4 processes",
        "replicas": "Pruning masks differ between the 2 processes",
    }
    assert run_world(beside_copies_and_replicas, 4) == [expected] * 4


def refused_layouts() -> dict[str, str]:
    mesh, grid = mesh_of(), init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))

    def by_columns(model: nn.Sequential) -> None:
        fully_shard(model, mesh=mesh, shard_placement_fn=lambda parameter: Shard(1) if parameter.dim() > 1 else None)

    def in_parallel(model: nn.Sequential) -> None:
        parallelize_module(model, grid["model"], {"0": ColwiseParallel()})
        fully_shard(model, mesh=grid["data"])

    def on_two_meshes(model: nn.Sequential) -> None:
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=grid["data"])

    def by_hand(model: nn.Sequential) -> None:
        own = torch.ones(5 if distributed.get_rank() else 1, 8)
        model[0].weight = nn.Parameter(DTensor.from_local(own, mesh, [Shard(0)], shape=(16, 8), stride=(8, 1)))

    across = Case(lambda: nn.Sequential(nn.ConvTranspose1d(4, 4, 2), nn.ReLU()), spec_of("1x8"))
    said = {}
    for name, build, how in (
        ("by columns", CASES["4x1 even"], by_columns),
        ("tensor parallel", CASES["4x1 even"], in_parallel),
        ("two meshes", CASES["4x1 even"], on_two_meshes),
        ("turned", CASES["4x1 even"], lambda model: fully_shard(model, mesh=DeviceMesh("cpu", [3, 2, 1, 0]))),
        ("by hand", CASES["4x1 even"], by_hand),
        ("across kernel positions", across, lambda model: fully_shard(model, mesh=mesh)),
    ):
        for is_early in (False, True):
            with pytest.raises(ModelError) as caught:
                Run(build, how, is_early=is_early).begin()
            assert said.setdefault(name, str(caught.value)) == str(caught.value)
    return said


def unshard_too_early() -> str:
    run = Run(CASES["1x1 magnitude"], shard_all).begin()
    unshard_model_(run.model)
    with pytest.raises(StateError) as caught:
        run.pruner.begin_step(3)
    return str(caught.value)


def test_a_weight_that_is_sharded_no_longer_is_an_error():
    (said,) = run_world(unshard_too_early, 1)
    assert said.startswith(
        "The weight of layer '0' was sharded when pruning began and is not any more. Shard the model"
    )


def test_other_layouts_are_refused_with_a_way_out():
    words = {
        "by columns": ["Layer '0'", "(16, 8)", "Shard(dim=1)", "cut once, by its first axis"],
        "tensor parallel": ["Layer '0'", "(16, 8)", "cut once, by its first axis"],
        "two meshes": ["Layer '2'", "(32, 16)", "other layers of the same pruner lie on"],
        "turned": ["Layer '0'", "(16, 8)", "the mesh does not have its ranks in ascending order"],
        "by hand": ["Layer '0'", "(16, 8)", " rows, where torch.chunk gives 4"],
        "across kernel positions": ["Layer '0'", "(4, 4, 2)", "the units of the pattern span kernel positions"],
    }
    for said in run_world(refused_layouts, 4):
        assert said.keys() == words.keys()
        for name, message in said.items():
            assert all(word in message for word in words[name]), message
            assert message.endswith("; or take the layer out with excluded_op_names.")
