"""Momentum of pruned weights is cleared where it can have an effect, and nowhere does that change a weight."""

from __future__ import annotations

import pytest
import torch

from inc_torch.config import WeightPruningConfig
from inc_torch.pruners import Pruner
from inc_torch.training import prepare_compression
from tests.unit.pruners.make import backward, mlp, spec_of
from tests.unit.pruners.vectors import pruners_of

STEPS = 14
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "Nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.001, momentum=0.9),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, lr=0.01),
}


class Run:
    """A training whose steps can be looked at; masks are ``gradient``'s or others that let weights come back."""

    def __init__(
        self,
        optimizer: str,
        *,
        always: bool,
        monkeypatch: pytest.MonkeyPatch,
        without_gradient: tuple[int, ...] = (),
        **options: object,
    ) -> None:
        torch.manual_seed(11)
        self.model = mlp()
        settings = {"start_step": 1, "end_step": 10, "pruning_frequency": 3, "target_sparsity": 0.6, "pattern": "1x1"}
        self.manager = prepare_compression(self.model, WeightPruningConfig(**(settings | options)))
        (self.pruner,) = pruners_of(self.manager)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.weights: list[list[torch.Tensor]] = []
        self.masks: list[dict[str, torch.Tensor]] = []
        self.was_clean: list[bool] = []
        with monkeypatch.context() as patched:
            if always:
                patched.setattr(Pruner, "needs_clean_momentum", lambda *_: True)
            self.train(without_gradient)

    def train(self, without_gradient: tuple[int, ...]) -> None:
        self.manager.on_train_begin()
        for step in range(STEPS):
            torch.manual_seed(step)
            self.manager.on_step_begin(step)
            self.masks.append({name: mask.clone() for name, mask in self.pruner.masks.items()})
            backward(self.model)
            for parameter in self.model.parameters() if step in without_gradient else ():
                parameter.grad.zero_()
            self.manager.on_before_optimizer_step()
            self.optimizer.step()
            self.manager.on_after_optimizer_step()
            self.weights.append([parameter.detach().clone() for parameter in self.model.parameters()])
            self.was_clean.append(self.is_clean)
        self.manager.on_train_end()

    @property
    def is_clean(self) -> bool:
        """Whether no pruned weight has momentum."""
        states = {
            name: self.optimizer.state[self.model.get_submodule(name).weight] for name, _ in self.pruner.masks.items()
        }
        return not any(
            state[key][~self.pruner.masks[name]].any()
            for name, state in states.items()
            for key in ("momentum_buffer", "exp_avg")
            if state.get(key) is not None
        )

    @property
    def returned(self) -> int:
        """How many weights came back."""
        pairs = zip(self.masks, self.masks[1:], strict=False)
        return sum(int((later[name] & ~earlier[name]).sum()) for earlier, later in pairs for name in later)


def require_same_weights(found: Run, expected: Run) -> None:
    assert expected.was_clean == [True] * STEPS
    assert found.was_clean != expected.was_clean, "nothing was saved"
    for step, (own, other) in enumerate(zip(found.weights, expected.weights, strict=True)):
        assert all(map(torch.equal, own, other)), step
    assert found.is_clean
    for own, other in zip(found.optimizer.state.values(), expected.optimizer.state.values(), strict=True):
        for key in ("momentum_buffer", "exp_avg"):
            assert key not in own or torch.equal(own[key], other[key])


@pytest.mark.parametrize(
    ("optimizer", "criterion", "pattern"),
    [
        *((optimizer, "gradient", "1x1") for optimizer in OPTIMIZERS),
        *((optimizer, "snip_momentum", "4x1") for optimizer in ("SGD", "AdamW")),
        *(("AdamW", "gradient", pattern) for pattern in ("4x1", "2:4")),
    ],
)
def test_weights_are_those_of_a_run_that_clears_momentum_in_every_step(optimizer, criterion, pattern, monkeypatch):
    options = {"pruning_type": criterion, "pattern": pattern, "target_sparsity": 0.4}
    found = Run(optimizer, always=False, monkeypatch=monkeypatch, **options)
    require_same_weights(found, Run(optimizer, always=True, monkeypatch=monkeypatch, **options))
    if criterion == "gradient":
        assert found.returned > 0, "no weight came back, so that momentum did not count"


@pytest.mark.filterwarnings("ignore:Pruning criterion:inc_torch.core.errors.LoopWarning")
def test_the_same_where_an_update_waits_for_gradients(monkeypatch):
    """Without gradients in steps 6 to 8, the update of step 7 is made in step 9; momentum goes on meanwhile."""
    options = {"pruning_type": "gradient", "without_gradient": (6, 7, 8)}
    found = Run("SGD", always=False, monkeypatch=monkeypatch, **options)
    require_same_weights(found, Run("SGD", always=True, monkeypatch=monkeypatch, **options))
    assert found.returned > 0
    assert found.was_clean[6:9] == [True] * 3


def test_it_would_show_if_momentum_were_never_cleared(monkeypatch):
    expected = Run("SGD", always=True, monkeypatch=monkeypatch, pruning_type="gradient")
    monkeypatch.setattr(Pruner, "needs_clean_momentum", lambda *_: False)
    found = Run("SGD", always=False, monkeypatch=monkeypatch, pruning_type="gradient")
    assert not all(map(torch.equal, found.weights[-1], expected.weights[-1]))


def test_it_is_cleared_before_each_update_and_at_the_end(monkeypatch):
    run = Run("AdamW", always=False, monkeypatch=monkeypatch, pruning_type="gradient")
    assert [step for step, clean in enumerate(run.was_clean) if clean and step > 3] == [6, 9]  # before 7 and 10
    assert run.is_clean


def test_optimizers_that_mix_values_get_clean_momentum_in_every_step(monkeypatch):
    class Normed(torch.optim.SGD):
        """Stands for what norms or orthogonalises whole tensors; only its class counts."""

    monkeypatch.setitem(OPTIMIZERS, "normed", lambda parameters: Normed(parameters, lr=0.01, momentum=0.9))
    assert Run("normed", always=False, monkeypatch=monkeypatch, pruning_type="gradient").was_clean == [True] * STEPS


@pytest.mark.filterwarnings("ignore:Pruning criterion:inc_torch.core.errors.LoopWarning")
def test_it_has_to_be_clean_before_updates_and_while_one_waits():
    model = mlp()
    pruner = Pruner(spec_of("1x1", "gradient", start=2, end=8, frequency=3), model)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    assert [step for step in range(12) if pruner.needs_clean_momentum(optimizer, step)] == [2, 5, 8]
    pruner.begin_step(5)
    assert all(pruner.needs_clean_momentum(optimizer, step) for step in range(12))
    backward(model)
    pruner.collect_scores()
    assert not pruner.needs_clean_momentum(optimizer, 6)
