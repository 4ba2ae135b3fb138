"""How an arm is trained and measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import nn

from benchmarks.orchestration.arms import PTQ, TEACHER, Arm, Shot
from benchmarks.orchestration.records import Outcome, Run, bytes_of, zeros_of
from benchmarks.tasks.records import Records
from benchmarks.tasks.task import Inputs, Phase, Task, baseline, is_float, once, train
from inc_torch import CompressionReport, PostTrainingQuantConfig, quantization

CALIBRATION_BATCHES = 4
GENTLER = 0.5  # the learning rate of shots that do not prune, as a share of that of those that do
LOST = 1e-9  # zeros that a share may lack by its rounding


class Study:
    """One task, with one seed; models that others go on from are kept as files.

    Args:
        task: What is trained.
        seed: Of all that is random.
        folder: Where models are kept.
    """

    def __init__(self, task: Task, seed: int, folder: Path) -> None:
        self.task, self.seed, self.folder = task, seed, folder
        self.teacher_logits = cache(self._teacher_logits)

    def run_of(self, arm: Arm) -> Run:
        """What an arm is called in the results."""
        return Run(self.task.name, self.task.phases, self.seed, arm.text, arm.sparsity)

    def perform(self, arm: Arm, records: Records[Outcome]) -> None:
        """Train, test and measure.

        Raises:
            RuntimeError: Something is left in float that should be int8, or zeros were lost.
        """
        start = time.process_time()
        model = self.model(arm)
        right = self.task.right(model).numpy()
        report = CompressionReport.measure(model)
        zeros = zeros_of(report)
        if is_float(model) == arm.is_int8:
            raise RuntimeError(f"{arm}: int8 was {'not ' * (not arm.is_int8)}to come out, but see\n{report}")
        if arm.before is not None and zeros < records[self.run_of(arm.before)].zeros - LOST:
            raise RuntimeError(f"{arm}: {zeros:.4f} zeros are fewer than before.")
        seconds = time.process_time() - start
        records.add(Outcome(self.run_of(arm), right, zeros, seconds, *bytes_of(model)))

    def model(self, arm: Arm) -> nn.Module:
        """What comes out of an arm: from its file, or trained now."""
        if arm.is_int8:
            return self._last_shot(self._start(arm), arm)
        file = self.folder / f"{self.task.slug}-{self.task.phases}-{self.seed}-{arm.slug}.safetensors"
        return once(file, self._start(arm), lambda model: self._last_shot(model, arm))

    def _start(self, arm: Arm) -> nn.Module:
        return baseline(self.task, self.seed, self.folder) if arm.before is None else self.model(arm.before)

    def _last_shot(self, model: nn.Module, arm: Arm) -> nn.Module:
        shot = arm.shots[-1]
        if PTQ in shot:
            return quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=self._calibration())
        phase = phase_of(self.task.second, shot)
        order = 1000 * len(arm.shots) + self.seed
        taught = {"teacher_logits": self.teacher_logits(order, phase.steps)} if "kd" in shot else {}
        train(self.task, model, phase, order, shot.configs(phase.steps, arm.sparsity), **taught)
        return model

    def _calibration(self) -> list[Inputs]:
        return [inputs for inputs, _ in self.task.batches(CALIBRATION_BATCHES, self.seed)]

    def _teacher_logits(self, order: int, steps: int) -> Sequence[torch.Tensor]:
        """What the dense model answers to the batches of a training, after as much training as a student has."""
        teacher = self.model(Arm(TEACHER)).eval()
        with torch.no_grad():
            return [self.task.logits(teacher, inputs).float() for inputs, _ in self.task.batches(steps, order)]


def phase_of(second: Phase, shot: Shot) -> Phase:
    """How long and at which rate a shot trains; what prunes needs a greater rate to recover."""
    rate = second.learning_rate * (1 if "prune" in shot else GENTLER)
    return Phase(second.steps * shot.phases, rate)
