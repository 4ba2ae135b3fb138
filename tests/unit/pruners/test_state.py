"""A pruner cut at any moment goes on bit for bit, and refuses what does not fit."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from inc_torch.core.errors import StateError
from inc_torch.pruners import Pruner
from tests.unit.pruners.make import backward, mlp, spec_of, stack

STEPS = 7
PHASES = ("before_begin", "after_begin", "after_scores", "after_update", "after_masking")


def through_a_file(state: dict) -> dict:
    """What a training state goes through: ``torch.save``, and loading without unpickling code."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


class Run:
    """A model, an optimizer and a pruner, driven phase by phase."""

    def __init__(self, **options: object) -> None:
        torch.manual_seed(1)
        self.model = mlp()
        with torch.no_grad():
            self.model[0].weight[:8] = 0
        self.pruner = Pruner(spec_of(**options), self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)

    def go(self, step: int, phase: str) -> None:
        match phase:
            case "before_begin":
                self.pruner.begin_step(step)
            case "after_begin":
                torch.manual_seed(100 + step)
                backward(self.model)
                self.pruner.collect_scores()
            case "after_scores":
                self.optimizer.step()
            case "after_update":
                self.pruner.mask_weights()
                self.pruner.mask_momentum(self.optimizer)
            case "after_masking":
                pass

    def cut(self) -> Run:
        """The same run in another process: everything made anew, only states are taken over."""
        other = copy.copy(self)
        other.model = mlp()
        other.model.load_state_dict(through_a_file(self.model.state_dict()))
        for parameter, own in zip(other.model.parameters(), self.model.parameters(), strict=True):
            parameter.grad = None if own.grad is None else own.grad.clone()
        other.optimizer = torch.optim.SGD(other.model.parameters(), lr=0.05, momentum=0.9)
        other.optimizer.load_state_dict(through_a_file(self.optimizer.state_dict()))
        other.pruner = Pruner(self.pruner.spec, other.model)
        other.pruner.load_state_dict(through_a_file(self.pruner.state_dict()))
        return other

    def outcome(self) -> dict[str, torch.Tensor]:
        named = dict(self.model.state_dict())
        named |= {f"mask {name}": mask for name, mask in self.pruner.stored_masks.items()}
        named |= {f"score {name}": score for name, score in self.pruner.scores.items()}
        for index, state in enumerate(self.optimizer.state.values()):
            named[f"momentum {index}"] = state["momentum_buffer"]
        return named


def finish(run: Run, step: int = 0, phase: int = 0) -> dict[str, torch.Tensor]:
    while step < STEPS:
        run.go(step, PHASES[phase])
        step, phase = (step, phase + 1) if phase + 1 < len(PHASES) else (step + 1, 0)
    return run.outcome()


CASES = {
    "magnitude 1x1": {"target": 0.7, "start": 1, "end": 5, "frequency": 2},
    "snip_momentum 4x1": {"pattern": "4x1", "criterion": "snip_momentum", "start": 1, "end": 5, "frequency": 2},
    "snip 2:4": {"pattern": "2:4", "criterion": "snip", "start": 1, "end": 4},
    "gradient channelx1 local": {
        "pattern": "channelx1",
        "criterion": "gradient",
        "scope": "local",
        "start": 2,
        "end": 5,
    },
    "initial zeros": {"criterion": "snip_momentum", "target": 0.8, "start": 0, "end": 5, "keeps_initial_zeros": True},
    "lock": {"locks_zeros": True, "start": 2, "end": 2},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_cut_at_every_phase_of_every_step(options):
    expected = finish(Run(**options))
    assert any(name.startswith("mask") for name in expected)
    run = Run(**options)
    for step in range(STEPS):
        for phase in range(len(PHASES)):
            resumed = finish(run.cut(), step, phase)
            assert resumed.keys() == expected.keys()
            for name, value in expected.items():
                assert torch.equal(resumed[name], value), (step, PHASES[phase], name)
            run.go(step, PHASES[phase])


@pytest.mark.filterwarnings("ignore:Pruning criterion:inc_torch.core.errors.LoopWarning")
def test_cut_while_a_one_shot_waits_for_gradients():
    options = {"criterion": "snip", "pattern": "4x1"}
    expected = finish(Run(**options))
    run = Run(**options)
    run.go(0, "before_begin")
    assert run.pruner.state_dict()["postponed"] == 0.5
    resumed = run.cut()
    assert torch.equal(finish(resumed, 0, 1)["mask 0"], expected["mask 0"])
    assert resumed.pruner.sparsity == 0.5


def test_the_update_of_a_step_is_not_done_again():
    """Cut between two micro-batches of one step, whose ``on_step_begin`` comes again."""
    run = Run(start=0, end=0)
    assert run.pruner.begin_step(0) == 0.5
    masks = {name: mask.clone() for name, mask in run.pruner.stored_masks.items()}
    run.model[0].weight.data.normal_()
    resumed = run.cut()
    assert resumed.pruner.begin_step(0) is None
    assert all(torch.equal(resumed.pruner.stored_masks[name], mask) for name, mask in masks.items())


def pruned(criterion: str = "snip_momentum", pattern: str = "4x1") -> Pruner:
    model = mlp()
    pruner = Pruner(spec_of(pattern, criterion, start=1, end=1), model)
    backward(model)
    pruner.collect_scores()
    pruner.begin_step(1)
    return pruner


def test_state_is_tensors_and_plain_values_by_parameter_name():
    state = pruned().state_dict()
    assert set(state) == {"masks", "scores", "goal", "initial", "last_step", "postponed"}
    assert list(state["masks"]) == list(state["scores"]) == ["0.weight", "2.weight"]
    assert {mask.dtype for mask in state["masks"].values()} == {torch.bool}
    assert through_a_file(state).keys() == state.keys()


def test_state_is_a_copy_both_ways():
    pruner = pruned()
    state = pruner.state_dict()
    saved = copy.deepcopy(state)
    pruner._scores.add_(1)
    for mask in pruner.stored_masks.values():
        mask.logical_not_()
    for kind in ("masks", "scores"):
        for name, tensor in state[kind].items():
            assert torch.equal(tensor, saved[kind][name])
    pruner.load_state_dict(state)
    pruner._scores.add_(1)
    pruner.stored_masks["0"].logical_not_()
    assert torch.equal(state["scores"]["0.weight"], saved["scores"]["0.weight"])
    assert torch.equal(state["masks"]["0.weight"], saved["masks"]["0.weight"])


def test_a_fresh_state_clears_masks_and_scores():
    model = mlp()
    fresh = Pruner(spec_of("4x1", "snip_momentum", start=1, end=1), model).state_dict()
    pruner = pruned()
    pruner.load_state_dict(fresh)
    assert pruner.stored_masks == {}
    assert pruner.scores == {}


def spoilt(change) -> dict:
    state = pruned().state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("masks"), ["Pruner(SnipMomentum, 4x1, 0.5, 2 layers)", "missing ['masks']"]),
        (lambda s: s.update(extra=1), ["unexpected ['extra']"]),
        (
            lambda s: s["masks"].update({"9.weight": torch.ones(1)}),
            ["a pruning mask for '9.weight', which this run does not prune"],
        ),
        (
            lambda s: s["scores"].update({"9.weight": torch.ones(1)}),
            ["a pruning score for '9.weight', which this run does not prune"],
        ),
        (
            lambda s: s["masks"].update({"0.weight": torch.ones(4, 9, dtype=torch.bool)}),
            ["pruning mask of '0.weight' has shape (4, 9); this run needs (4, 8)"],
        ),
        (
            lambda s: s["scores"].update({"2.weight": torch.ones(16)}),
            ["pruning score of '2.weight' has shape (16,); this run needs (2, 16)"],
        ),
        (lambda s: s["masks"].pop("2.weight"), ["no pruning mask for ['2.weight']", "another run or damaged"]),
        (lambda s: s["scores"].pop("0.weight"), ["no pruning score for ['0.weight']", "another run or damaged"]),
        (
            lambda s: s["masks"].update({"0.weight": torch.ones(4, 8)}),
            ["mask of '0.weight' has dtype torch.float32; this run needs torch.bool"],
        ),
        (
            lambda s: s["scores"].update({"0.weight": torch.ones(4, 8).half()}),
            ["score of '0.weight' has dtype torch.float16; this run needs torch.float32"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(change, words):
    pruner = pruned()
    before = pruner.state_dict()
    with pytest.raises(StateError) as caught:
        pruner.load_state_dict(spoilt(change))
    for word in words:
        assert word in str(caught.value)
    after = pruner.state_dict()
    for kind in ("masks", "scores"):
        assert all(torch.equal(after[kind][name], tensor) for name, tensor in before[kind].items())


def test_a_state_of_another_model_is_refused():
    other = stack(torch.nn.Linear(4, 4))
    pruner = Pruner(spec_of(), other)
    pruner.begin_step(0)
    with pytest.raises(StateError, match=r"pruning mask of '0.weight' has shape \(4, 4\)"):
        pruned("magnitude", "1x1").load_state_dict(pruner.state_dict())
