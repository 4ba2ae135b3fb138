"""Everything that is done over and over: one entry makes a cycle, which leaves nothing behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inc_torch
from inc_torch import (
    AccuracyCriterion,
    CompressionManager,
    DistillationConfig,
    INCCallback,
    IntermediateLayersKnowledgeDistillationLossConfig,
    MixedPrecisionConfig,
    PostTrainingQuantConfig,
    TuningCriterion,
    mix_precision,
    optimize_for_inference,
    prepare_compression,
    prepare_pruning,
    quantization,
)
from tests.loops.driver import ConvNet, confs_of, images, pruning, train
from tests.trainer.setup import bert, techniques, trainer_of

LENGTHS = [pytest.param(12, id="short"), pytest.param(1000, id="long", marks=pytest.mark.slow)]
"""How many cycles: in each run, and in the nightly one."""
STEPS = 3

Cycle = Callable[[], list[Any]]
"""Returns what its user then throws away."""


def layers(teacher: nn.Module | None) -> DistillationConfig:
    """Compares a layer in the middle, so that hooks stand on student and teacher."""
    loss = IntermediateLayersKnowledgeDistillationLossConfig([["hidden", "hidden"]], loss_types=["MSE"])
    return DistillationConfig(teacher, loss)


def confs(letters: str, teacher: nn.Module) -> list[Any]:
    """Those of the driver, and h: half precision, l: layers of the teacher."""
    further: dict[str, Callable[[], Any]] = {"h": MixedPrecisionConfig, "l": lambda: layers(teacher)}
    return [further[letter]() if letter in further else confs_of(letter, teacher)[0] for letter in letters]


def managed(letters: str) -> tuple[CompressionManager, torch.optim.Optimizer, nn.Module]:
    model, teacher = ConvNet(), ConvNet(1)
    manager = prepare_compression(model, confs(letters, teacher))
    return manager, torch.optim.AdamW(model.parameters(), lr=0.01), teacher


def trained(letters: str) -> Callable[[Path], Cycle]:
    """A whole training with its report."""

    def cycle() -> list[Any]:
        manager, optimizer, teacher = managed(letters)
        train(manager, optimizer, images(STEPS))
        assert manager.report().modules
        return [manager, manager.model, optimizer, teacher]

    return lambda folder: cycle


def broken(folder: Path) -> Cycle:
    """The user's loop raises in its second step, inside of a hook."""

    def cycle() -> list[Any]:
        manager, optimizer, teacher = managed("pqdlh")
        manager.register_hook("on_step_end", lambda: 1 / manager.callbacks.progress.step.__rsub__(1))
        with suppress(ZeroDivisionError):
            train(manager, optimizer, images(STEPS))
        assert manager.callbacks.is_training
        return [manager, manager.model, optimizer, teacher]

    return cycle


def begun(manager: CompressionManager, optimizer: torch.optim.Optimizer) -> None:
    """A few steps in the midst of a training."""
    manager.on_train_begin()
    for index, (inputs, labels) in enumerate(images(STEPS)):
        step(manager, optimizer, index, inputs, labels)


def step(
    manager: CompressionManager,
    optimizer: torch.optim.Optimizer,
    index: int,
    inputs: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """One step by all hooks; returns the output."""
    manager.on_step_begin(index)
    output = manager.model(inputs)
    manager.on_after_compute_loss(inputs, output, F.cross_entropy(output, labels)).backward()
    manager.on_before_optimizer_step()
    optimizer.step()
    manager.on_after_optimizer_step()
    optimizer.zero_grad()
    manager.on_step_end()
    return output.detach()


def abandoned(folder: Path) -> Cycle:
    """Nobody calls on_train_end."""

    def cycle() -> list[Any]:
        manager, optimizer, teacher = managed("pqdlh")
        begun(manager, optimizer)
        return [manager, manager.model, optimizer, teacher]

    return cycle


def given_up(folder: Path) -> Cycle:
    """One model and one teacher go from one manager to the next, and none comes to its end."""
    model, teacher = ConvNet(), ConvNet(1)
    held: list[CompressionManager] = []

    def cycle() -> list[Any]:
        manager = prepare_compression(model, confs("plh", teacher))
        held[:] = [manager]
        begun(manager, torch.optim.SGD(model.parameters(), lr=0.01))
        assert [hooks_on(model), hooks_on(teacher)] == [3, 1]
        return []

    cycle()  # with nothing to give up
    return cycle


def forgotten(folder: Path) -> Cycle:
    """The same, but each manager is gone before the next is made."""
    model, teacher = ConvNet(), ConvNet(1)

    def cycle() -> list[Any]:
        begun(prepare_compression(model, confs("plh", teacher)), torch.optim.SGD(model.parameters(), lr=0.01))
        gc.collect()
        assert [hooks_on(model), hooks_on(teacher)] == [3, 1]
        return []

    return cycle


def without_hooks(folder: Path) -> Cycle:
    """`prepare_pruning` on one model, which is left each time."""
    model = ConvNet()

    def cycle() -> list[Any]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        prepare_pruning(model, pruning(), optimizer)
        for inputs, labels in images(STEPS):
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert hooks_on(model) == 1
        return []

    cycle()  # with nothing to give up
    return cycle


def hooks_on(model: nn.Module) -> int:
    """How many hooks all modules of a model have."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return sum(len(getattr(module, name)) for module in model.modules() for name in names)


def calibration() -> list[torch.Tensor]:
    return [inputs for inputs, _ in images(2)]


def int8(approach: str = "static", kind: type[nn.Module] = ConvNet) -> nn.Module:
    model = quantization.fit(kind().eval(), PostTrainingQuantConfig(approach=approach), calibration())
    assert model is not None
    return model


def quantized(approach: str) -> Callable[[Path], Cycle]:
    def cycle() -> list[Any]:
        model = int8(approach)
        assert model(calibration()[0]).shape == (4, 4)
        return [model]

    return lambda folder: cycle


def saved(folder: Path) -> Cycle:
    model, inputs = int8(), calibration()[0]

    def cycle() -> list[Any]:
        model.save(folder / "saved")
        loaded = inc_torch.load(folder / "saved", model=ConvNet(7))
        assert torch.equal(loaded(inputs), model(inputs))
        return [loaded]

    return cycle


class Untraced(ConvNet):
    """A model that is no graph, so that torch.compile captures it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * float(x.shape[0] > int(x.numel() == 0)))


def fast(kind: type[nn.Module]) -> Callable[[Path], Cycle]:
    def cycle() -> list[Any]:
        inputs = calibration()[0]
        model = optimize_for_inference(int8(kind=kind), inputs)
        with torch.no_grad():
            assert model(inputs).shape == (4, 4)
        return [model]

    return lambda folder: cycle


def half(folder: Path) -> Cycle:
    def cycle() -> list[Any]:
        model = mix_precision.fit(ConvNet().eval())
        assert model is not None
        assert model(calibration()[0]).dtype is torch.float32
        return [model]

    return cycle


def tuned(folder: Path) -> Cycle:
    """A study of three trials, none of which reaches its goal but the last."""

    def cycle() -> list[Any]:
        scores = iter([1.0, 0.5, 0.5, 1.0, 1.0, 1.0])
        config = PostTrainingQuantConfig(
            accuracy_criterion=AccuracyCriterion(tolerable_loss=0.1), tuning_criterion=TuningCriterion(max_trials=3)
        )
        model = quantization.fit(ConvNet().eval(), config, calibration(), eval_func=lambda _: next(scores))
        assert model is not None
        assert len(model.tuning.trials) == 3
        return [model]

    return cycle


def by_trainer(folder: Path) -> Cycle:
    def cycle() -> list[Any]:
        model, teacher = bert(), bert(1)
        callback = INCCallback([pruning(), *techniques("qd", teacher)])
        trainer = trainer_of(model, folder / "trainer", [callback], max_steps=STEPS)
        trainer.train()
        assert callback.manager.report().modules
        return [trainer, callback, model, teacher]

    return cycle


class Kind(NamedTuple):
    """How a cycle is made.

    Attributes:
        make: Makes it; there is a folder to write to.
        costs: What the number of cycles is divided by, as they take longer.
        is_captured: Torch captures graphs in it.
        keeps: Its user throws nothing away.
        foreign: Blocks of memory that another package keeps in each cycle.
    """

    make: Callable[[Path], Cycle]
    costs: int = 1
    is_captured: bool = False
    keeps: bool = False
    foreign: int = 0


KINDS = {
    "prune": Kind(trained("p")),
    "quantize": Kind(trained("q")),
    "distil": Kind(trained("d")),
    "distil layers": Kind(trained("l")),
    "half precision": Kind(trained("h")),
    "all together": Kind(trained("pqdlh")),
    "broken off": Kind(broken),
    "abandoned": Kind(abandoned),
    "given up": Kind(given_up, keeps=True),
    "forgotten": Kind(forgotten, keeps=True),
    "prepare_pruning": Kind(without_hooks, keeps=True),
    "static": Kind(quantized("static")),
    "dynamic": Kind(quantized("dynamic")),
    # get_tensor of safetensors keeps two or three for each tensor, in load_file too.
    "saved and loaded": Kind(saved, foreign=40),
    "fast graph": Kind(fast(ConvNet), costs=4, is_captured=True),
    "fast captured": Kind(fast(Untraced), costs=10, is_captured=True),
    "mix_precision.fit": Kind(half),
    "tuning study": Kind(tuned, costs=4),
    "Trainer": Kind(by_trainer, costs=10),
}

SLOW = {"fast captured", "Trainer", "tuning study"}
"""So slow by themselves that even a few cycles wait for the night."""


def kinds(*, keeping: bool = True) -> list[Any]:
    """The names of all kinds, or of those whose user throws something away."""
    names = [name for name, kind in KINDS.items() if keeping or not kind.keeps]
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in names]
