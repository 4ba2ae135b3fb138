"""`optimize_for_inference` from outside: what it keeps, when it computes anew, and what it leaves alone."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import re
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from inc_torch import (
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    optimize_for_inference,
    prepare_compression,
    quantization,
)
from inc_torch.core.errors import ConfigError, ConfigTypeError, InexactWarning, ModelError
from inc_torch.inference._fused_graph import FusedGraph
from inc_torch.inference._plan import Plan
from tests.unit.inference.made import assert_close, distance, executor_of, fitted, graphs, pair, unfused

X = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Not traceable by torch.fx, so that the model is captured by torch.compile."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.norm = nn.Linear(32, 48), nn.Linear(48, 32), nn.LayerNorm(32)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        if x.shape[0] == 77:
            return x
        return self.norm(self.drop(self.second(F.gelu(self.first(x)))) + x)


class Results(Net):
    """Gives back views, duplicates, constants and inputs."""

    def forward(self, x):
        if x.shape[0] == 77:
            return x
        both = self.first(x), self.first(x)
        return *both, x, x.clone(), x.view(-1), self.norm.weight + 1, x.shape[0], self.second(both[0])[..., :16]


class Sequence(Net):
    """A graph for torch.fx."""

    def forward(self, x):
        return self.norm(self.drop(self.second(F.gelu(self.first(x)))) + x)


def made(kind=Net):
    return pair(kind(), X)


@pytest.fixture(scope="module")
def ready():
    return made()


@pytest.fixture(params=[Net, Sequence])
def fresh(request):
    with torch.no_grad():
        plain, optimized = made(request.param)
        for _ in range(3):
            assert_close(optimized(X), plain(X))
    return optimized


def assert_computes_as_a_copy(model, x=X):
    for _ in range(3):
        with torch.no_grad():
            assert_close(model(x), unfused(copy.deepcopy(model))(x))


def test_the_model_is_the_same_object_with_the_same_class_and_state():
    plain = fitted(Net(), X)
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    optimized = optimize_for_inference(plain, X)
    assert optimized is plain
    assert type(plain).__name__ == "Net"
    assert isinstance(plain, Net)
    assert isinstance(plain.first, type(fitted(Net(), X).first))
    assert not plain.training
    assert not any(parameter.requires_grad for parameter in plain.parameters())
    assert plain.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items())
    plain.load_state_dict(state)
    optimize_for_inference(plain)
    assert_computes_as_a_copy(plain)


def test_a_model_without_int8_modules_is_refused():
    with pytest.raises(ModelError, match="Sequential has no int8 layers"):
        optimize_for_inference(nn.Sequential(nn.Linear(2, 2)))


def test_a_model_in_training_is_told_to_finish_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    prepare_compression(model, QuantizationAwareTrainingConfig())
    with pytest.raises(ModelError, match="in quantization-aware training: call on_train_end of its manager first"):
        optimize_for_inference(model)


@pytest.mark.parametrize(
    ("given", "said"), [(None, "a model of type NoneType"), ([1], "a model of type list"), (Net, "the class Net")]
)
def test_what_is_no_model_is_refused(given, said):
    with pytest.raises(ConfigTypeError, match=f"optimize_for_inference got {said}: expected a torch.nn.Module"):
        optimize_for_inference(given)


@pytest.mark.parametrize(
    ("tolerance", "error", "said"),
    [
        ("a", ConfigTypeError, "a tolerance of type str: expected a number"),
        (True, ConfigTypeError, "a tolerance of type bool"),
        (-1, ConfigError, "got tolerance -1: expected 0 or more"),
        (math.nan, ConfigError, "got tolerance nan"),
    ],
)
def test_a_tolerance_that_is_none_is_refused_before_anything_changes(tolerance, error, said):
    model = fitted(Net(), X)
    kind = type(model.first)
    with pytest.raises(error, match=said):
        optimize_for_inference(model, tolerance=tolerance)
    assert type(model.first) is kind


@pytest.mark.parametrize("build", [Net, Sequence])
def test_examples_that_do_not_fit_leave_the_model_as_it_was(build):
    model = fitted(build(), X)
    model.train()
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(RuntimeError) as plain, torch.no_grad():
        copy.deepcopy(model)(torch.randn(2, 5, 31))
    with pytest.raises(RuntimeError, match=re.escape(str(plain.value).splitlines()[0])):
        optimize_for_inference(model, torch.randn(2, 5, 31))
    assert model._compiled_call_impl is None
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(module.training for module in model.modules())


def test_it_saves_what_it_saved_before(tmp_path):
    plain = fitted(Net(), X)
    plain.save(tmp_path / "before")
    optimize_for_inference(plain, X).save(tmp_path / "after")
    for before in sorted((tmp_path / "before").iterdir()):
        assert (tmp_path / "after" / before.name).read_bytes() == before.read_bytes()


@pytest.mark.parametrize("kind", [Net, Sequence])
def test_inputs_are_never_written_to_and_results_are_new_memory(kind):
    plain, optimized = made(kind)
    with torch.no_grad():
        expected, results = plain(X), []
        for _ in range(4):
            kept = X.clone()
            results.append(optimized(kept))
            assert torch.equal(kept, X)
        before = results[2].clone()
        optimized(X + 1)
        assert torch.equal(results[2], before)
        assert len({result.data_ptr() for result in results}) == 4
        assert all(distance(result, expected) < 0.01 for result in results)


def test_results_share_memory_as_those_of_the_model_do():
    plain, optimized = made(Results)
    with torch.no_grad():
        for step in range(3):
            x = X + step
            found, expected = optimized(x), plain(x)
            for mine, other in zip(found, expected, strict=True):
                if isinstance(other, torch.Tensor):
                    assert_close(mine, other)
                    assert mine.stride() == other.stride() or not other.is_contiguous()
            assert found[2] is x
            assert found[4].data_ptr() == x.data_ptr()
            assert found[6] == 3
            for index in (0, 3, 5):
                found[index].add_(100)
            assert torch.equal(x, X + step)
            assert_close(found[1], expected[1])
            assert_close(optimized(x)[5], expected[5])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_mode_gives_the_same_in_any_order(ready, mode):
    plain, optimized = ready
    for _ in range(3):
        with mode():
            found, expected = optimized(X), plain(X)
        assert_close(found, expected)
        assert found.requires_grad == expected.requires_grad
        assert found.is_inference() == expected.is_inference()


def test_a_graph_runs_in_inference_mode_and_out_of_it(fresh):
    y = X[:2].clone()
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            for _ in range(3):
                fresh(y)
                assert_close(fresh(y), fresh(X)[:2])


def test_autocast_writes_the_dtype_that_it_wrote_before(fresh):
    with torch.autocast("cpu", torch.bfloat16):
        expected = unfused(copy.deepcopy(fresh))(X)
        for _ in range(3):
            assert_close(fresh(X), expected)
    assert_computes_as_a_copy(fresh)


def test_gradients_pass_where_they_passed_before(ready):
    gradients = []
    for model in (*ready, ready[1]):
        x = X.clone().requires_grad_()
        model(x).square().sum().backward()
        gradients.append(x.grad)
    assert gradients[0].abs().max() > 0
    assert_close(gradients[1], gradients[0])
    assert_close(gradients[2], gradients[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_and_back(fresh, dtype):
    fresh.to(dtype)
    assert_computes_as_a_copy(fresh, X.to(dtype))
    fresh.to(torch.float32)
    assert_computes_as_a_copy(fresh)


def test_dropout_that_is_on_draws_the_numbers_that_it_drew(fresh):
    for switch in (fresh, fresh.drop):
        for seed in range(2):
            outputs = []
            for model in (fresh, unfused(copy.deepcopy(fresh))):
                (model if switch is fresh else model.drop).train()
                torch.manual_seed(seed)
                with torch.no_grad():
                    outputs.append(model(X))
            assert_close(*outputs)
        fresh.eval()
    assert_computes_as_a_copy(fresh)


@torch.no_grad()
def test_parameters_and_codes_that_change_are_seen(fresh):
    fresh.norm.weight.mul_(3)
    assert_computes_as_a_copy(fresh)
    fresh.norm.weight = nn.Parameter(torch.randn(32), requires_grad=False)
    assert_computes_as_a_copy(fresh)
    fresh.norm.weight.data = torch.randn(32)
    assert_computes_as_a_copy(fresh)
    fresh.norm.weight = nn.Parameter(torch.randn(32, 2)[:, 0], requires_grad=False)
    assert_computes_as_a_copy(fresh)
    before = fresh(X)
    state = {name: tensor.flip(0) if tensor.dim() else tensor for name, tensor in fresh.state_dict().items()}
    fresh.load_state_dict(state)
    assert distance(fresh(X), before) > 0.1
    assert_computes_as_a_copy(fresh)
    fresh.norm = nn.LayerNorm(32, elementwise_affine=False)
    assert_computes_as_a_copy(fresh)


@torch.no_grad()
def test_copies_compute_by_themselves(fresh):
    expected = fresh(X)
    copies = [copy.deepcopy(fresh), pickle.loads(pickle.dumps(fresh))]
    for part in ("first", "second"):
        fresh.get_submodule(part).weight_scale.mul_(5)
    assert distance(fresh(X), expected) > 0.1
    for copied in copies:
        assert_close(copied(X), expected)


@torch.no_grad()
def test_a_single_layer_is_a_model_too():
    plain, optimized = pair(nn.Linear(32, 8), X)
    for copied in (
        optimized,
        copy.deepcopy(optimized),
        pickle.loads(pickle.dumps(optimized)),
        nn.Sequential(optimized),
    ):
        assert_close(copied(X), plain(X))
    with torch.enable_grad():
        assert not optimized(X.clone().requires_grad_()).requires_grad
    copied = copy.deepcopy(optimized)
    copied.weight_scale.mul_(2)
    assert distance(copied(X), plain(X)) > 0.5


@torch.no_grad()
def test_hooks_of_the_user_fire(fresh):
    seen = []
    for _ in range(2):
        handle = fresh.norm.register_forward_hook(lambda *_: seen.append(1))
        for _ in range(3):
            fresh(X)
        handle.remove()
        fresh(X)
    assert len(seen) == 6
    changing = fresh.first.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 0,))
    for _ in range(3):
        assert_close(fresh(X), fresh.norm(fresh.second(F.gelu(fresh.first(X))) + X))
    changing.remove()
    assert_computes_as_a_copy(fresh)


@torch.no_grad()
def test_tracers_and_modes_see_the_operators_of_torch(fresh):
    fresh(X)
    with FlopCounterMode(display=False) as counter:
        fresh(X)
    assert counter.get_total_flops() >= 0
    assert_close(torch.func.functionalize(fresh)(X), fresh(X))


def test_a_model_of_the_user_around_it_computes_and_compiles(fresh):
    around = nn.Sequential(fresh, nn.ReLU())
    with torch.no_grad():
        expected = fresh(X).relu()
        assert_close(around(X), expected)
        assert_close(torch.compile(around, backend="eager")(X), expected)


@torch.no_grad()
def test_twelve_shapes_and_nine_models_run_fused():
    plain, optimized = made()
    for size in range(1, 13):
        x = torch.randn(size, 14 - size, 32)
        assert_close(optimized(x), plain(x))
    assert 1 <= len(graphs(optimized)) <= 6
    kept = [optimize_for_inference(copy.deepcopy(plain)) for _ in range(9)]
    for model in kept:
        assert_close(model(X), plain(X))
        assert len(graphs(model)) == 1


@torch.no_grad()
def test_empty_and_wrong_inputs(ready):
    plain, optimized = ready
    for _ in range(3):
        assert optimized(X[:0]).shape == (0, 5, 32)
        with pytest.raises(RuntimeError):
            plain(torch.randn(2, 5, 31))
        with pytest.raises(Exception, match=r"31|must match"):
            optimized(torch.randn(2, 5, 31))
        assert_close(optimized(X), plain(X))


@torch.no_grad()
def test_values_that_are_no_numbers_stay_so_and_spoil_nothing():
    plain, optimized = made()
    for step in range(3):
        x = X.clone()
        x[0, 0, 0], x[1, 1, 1], x[2, 2, 2] = float("nan"), float("inf"), -float("inf")
        found, expected = optimized(x), plain(x)
        assert torch.equal(found.isnan(), expected.isnan())
        assert_close(optimized(X + step), plain(X + step))
    assert all(graph._state.fused is not None for graph in graphs(optimized))


@torch.no_grad()
def test_a_fused_graph_that_is_too_far_off_is_not_used():
    plain = fitted(Net(), X)
    optimized = optimize_for_inference(copy.deepcopy(plain), tolerance=0.0)
    with pytest.warns(InexactWarning, match="left the model as it was") as told:
        first = optimized(X)
    assert {warning.filename for warning in told} == {__file__}
    for found in (first, optimized(X), optimized(X)):
        assert torch.equal(found, plain(X))


@torch.no_grad()
def test_without_kernels_operators_of_torch_compute(monkeypatch):
    monkeypatch.setenv("INC_TORCH_KERNELS", "0")
    plain, optimized = made()
    for x in (X, X, X[:2]):
        assert_close(optimized(x), plain(x))
    assert all(graph._state.fused is not None and not graph._state.plans for graph in graphs(optimized))


@pytest.mark.parametrize("approach", ["dynamic", "weight_only"])
@torch.no_grad()
def test_other_approaches_compute_as_before(approach):
    plain = quantization.fit(Net(), PostTrainingQuantConfig(approach=approach))
    if approach == "weight_only":
        with pytest.raises(ModelError, match="no int8 layers"):
            optimize_for_inference(plain)
        return
    optimized = optimize_for_inference(copy.deepcopy(plain))
    for _ in range(3):
        assert_close(optimized(X), plain(X))
    x = X.clone()
    x[0, 0, 0] = float("inf")
    assert optimized(x)[plain(x).isnan()].isnan().all()


def test_threads_get_what_is_theirs(fresh):
    with torch.no_grad():
        expected = [fresh(X + step) for step in range(8)]
    wrong = []

    def work(step):
        with torch.no_grad():
            wrong.extend(step for _ in range(10) if distance(fresh(X + step), expected[step]) > 0.03)

    threads = [threading.Thread(target=work, args=(step,)) for step in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def parts_of(model):
    executor = executor_of(model)
    fused = graphs(model) if executor is None else executor._fused.values()
    return [weakref.ref(part) for part in (model, model.first, *fused)]


class Residual(nn.Module):
    """Convolutions whose images become rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8 * 16, 5)

    def forward(self, x):
        if x.shape[0] == 77:
            return x
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.relu(self.second(x) + x)
        return self.head(x.flatten(1)), x, x.view(x.shape[0], -1)


@torch.no_grad()
def test_images_become_rows_and_leave_as_they_did():
    images = torch.randn(2, 3, 10, 10)
    plain, optimized = pair(Residual(), images)
    for x in (images, images, images[:1], torch.randn(5, 3, 10, 10)):
        for found, expected in zip(optimized(x), plain(x), strict=True):
            assert_close(found, expected)
            assert found.stride() == expected.stride()


def captured(function, *inputs):
    return torch.fx.experimental.proxy_tensor.make_fx(function, tracing_mode="fake")(*inputs)


@torch.no_grad()
def test_a_plan_gives_what_its_graph_gives_and_survives_what_goes_wrong():
    graph = captured(lambda x, y: (x + y, x.t(), (x * 2).sum(0), torch.arange(3) + 1), X[0], X[1])
    plan = Plan(graph, (X[0], X[1]))
    for _ in range(2):
        for found, expected in zip(plan.run((X[1], X[2])), graph(X[1], X[2]), strict=True):
            assert torch.equal(found, expected)
        with pytest.raises(RuntimeError):
            plan.run((X[0][:, :3], X[1]))
    first = plan.run((X[0], X[1]))[3]
    first.zero_()
    assert plan.run((X[0], X[1]))[3].tolist() == [1, 2, 3]


@torch.no_grad()
def test_a_random_graph_runs_once_as_it_was_captured():
    graph = FusedGraph(captured(lambda x: F.dropout(x, 0.5), X), tolerance=0.1, plans=True)
    torch.manual_seed(0)
    found = graph(X)
    torch.manual_seed(0)
    assert torch.equal(found[0] if isinstance(found, tuple) else found, F.dropout(X, 0.5))


@torch.no_grad()
def test_a_graph_on_another_device_runs_as_it_was_captured():
    x = X.to("meta")
    graph = FusedGraph(captured(torch.relu, x), tolerance=0.1, plans=True)
    found = graph(x)
    assert (found[0] if isinstance(found, tuple) else found).shape == X.shape
    assert graph._state is None


def test_nothing_keeps_a_model_alive():
    for kind in (Net, Sequence):
        with torch.no_grad():
            model = made(kind)[1]
            model(X)
        parts = parts_of(model)
        assert len(parts) == 3
        del model
        gc.collect()
        assert [part() for part in parts] == [None] * len(parts)
