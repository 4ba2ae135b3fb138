"""Runs stages one after the other, each on the model that the one before left."""

from __future__ import annotations

import copy
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import final

from torch import nn

from inc_torch.config import PostTrainingQuantConfig
from inc_torch.core.errors import ConfigError, ConfigTypeError, GoalMissedError, HookOrderError, LoopWarning, ModelError
from inc_torch.core.names import unwrapped
from inc_torch.core.ranks import Ranks
from inc_torch.core.report import CompressionReport
from inc_torch.core.state import set_random_state
from inc_torch.core.user_warning import warn_user
from inc_torch.export import adorn, attached_report
from inc_torch.pipeline._folder import RunFolder, fingerprint_of
from inc_torch.pipeline._result import PipelineResult, StageResult
from inc_torch.pipeline._run import TrainingRun
from inc_torch.pipeline._stages import TRAINING, Quantize, Stage, Train
from inc_torch.pipeline._zeros import CarriedZeros, layers_pruned_by, lock_of, pruned_layers
from inc_torch.quantization import fit as quantize
from inc_torch.training import prepare_compression

__all__ = ["Pipeline"]


@final
class Pipeline:
    """Compression in several stages: each begins with the model that the one before left.

    Zeros that a stage pruned stay: a later training locks them in every layer that it does not prune itself, and a
    quantization has to leave them zero. Every stage begins with the modes and ``requires_grad`` that the model was
    given with, and without gradients.

    Args:
        stages: `Train` and `Quantize`, in the order in which they run. What makes the model int8 is the last one.

    Raises:
        ConfigError: There is no stage, two have one name, or one stands behind the stage that makes the model int8.

    Example:
        >>> import torch
        >>> from inc_torch import Pipeline, WeightPruningConfig
        >>> from inc_torch.pipeline import Quantize, Train
        >>> batches = [torch.randn(4, 8) for _ in range(4)]
        >>> def train(run):
        ...     optimizer = torch.optim.SGD(run.model.parameters(), lr=0.01)
        ...     step = run.restore(optimizer=optimizer).get("step", 0)
        ...     run.manager.on_train_begin()
        ...     for index in range(step, 4):
        ...         run.manager.on_step_begin(index)
        ...         run.model(batches[index]).square().mean().backward()
        ...         run.manager.on_before_optimizer_step()
        ...         optimizer.step()
        ...         run.manager.on_after_optimizer_step()
        ...         optimizer.zero_grad()
        ...         run.save(optimizer=optimizer, step=index + 1)
        ...     run.manager.on_train_end()
        >>> pruning = WeightPruningConfig(target_sparsity=0.5, pruning_type="magnitude", end_step=2)
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> result = Pipeline([Train(pruning, train), Quantize(calib_dataloader=batches)]).fit(model)
        >>> result.reports["prune"].sparsity, type(result.model[0]).__name__
        (0.5, 'Int8Linear')
        >>> bool((result.model[0].qweight == 0).sum() >= 64)
        True
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = _checked_stages(stages)

    def __repr__(self) -> str:
        return f"Pipeline({[stage.name for stage in self.stages]})"

    def fit(self, model: nn.Module, directory: str | os.PathLike[str] | None = None) -> PipelineResult:
        """Run the stages that are not through yet.

        The model is trained in place; a stage `Quantize` makes an int8 copy of it.

        Args:
            model: The float model, with the weights that the first stage begins with.
            directory: Where every finished stage is kept, and the saved state of an unfinished one. Given again, with
                the same pipeline and a model of the same weights, the run goes on from there, bit for bit.

        Returns:
            The model after the last stage, in evaluation mode, and the report of every stage.

        Raises:
            StateError: The directory is of another pipeline, or of other weights to begin with.
            ArtifactError: The directory is damaged, or holds something else.
            ModelError: A stage lost zeros that an earlier one pruned, or its function returned another model.
            HookOrderError: A training function did not begin the training.
        """
        inner = _checked_model(model)
        folder = None if directory is None else RunFolder(directory, self.stages)
        if folder is not None:
            folder.open(fingerprint_of(self.stages, inner))
        return _Fit(self.stages, model, folder).run()


@final
class _Fit:
    """One call of `Pipeline.fit`."""

    def __init__(self, stages: Sequence[Stage], model: nn.Module, folder: RunFolder | None) -> None:
        self._stages = stages
        self._outer, self._model = model, unwrapped(model)
        self._folder = folder
        self._modes = [(module, module.training) for module in self._model.modules()]
        self._trainable = [(parameter, parameter.requires_grad) for parameter in self._model.parameters()]
        self._results: list[StageResult] = []
        self._pruned: set[str] = set()

    def run(self) -> PipelineResult:
        self._load()
        for number in range(len(self._results), len(self._stages)):
            stage = self._stages[number]
            self._set_out()
            try:
                result = self._trained(stage, number) if isinstance(stage, Train) else self._quantized(stage)
            except Exception as error:
                error.add_note(f"In stage {stage.name!r}, {number + 1} of {len(self._stages)} of the pipeline.")
                raise
            self._take(result)
            if self._folder is not None:
                self._folder.finish(number, self._model, result)
        adorn(self._model)
        return PipelineResult(self._model.eval(), tuple(self._results))

    def _load(self) -> None:
        """Be where the run was that wrote the directory."""
        if self._folder is None:
            return
        done = self._folder.finished()
        for number in range(done):
            self._take(self._folder.result(number))
        if done:
            if isinstance(self._stages[done - 1], Quantize):
                self._model = copy.deepcopy(self._model)
            self._folder.load_model(done - 1, self._model)
        set_random_state(self._folder.random_state(done))

    def _take(self, result: StageResult) -> None:
        """Remember what a stage has done, and whose zeros are to be kept from now on."""
        self._pruned = pruned_layers(result.report)  # what was locked in it is among them
        self._results.append(result)

    def _set_out(self) -> None:
        """Let a stage begin as if the model had been loaded just now."""
        for module, is_training in self._modes:
            module.training = is_training
        for parameter, is_trainable in self._trainable:
            parameter.requires_grad_(is_trainable)
            parameter.grad = None

    def _trained(self, stage: Train, number: int) -> StageResult:
        start = time.perf_counter()
        own = layers_pruned_by(stage.configs, self._model)
        zeros = CarriedZeros.of(self._model, self._pruned - own if stage.keep_zeros else ())
        confs = list(stage.configs)
        if zeros.masks:
            confs.append(lock_of(zeros.masks, self._model))
        manager = prepare_compression(self._outer, confs)
        run = TrainingRun(manager, stage.name, self._folder, number)
        try:
            self._finish(stage, run, stage.train(run))
        except BaseException:
            if not manager.callbacks.has_ended:
                manager.callbacks.give_up()
            raise
        zeros.require(self._model, stage.name)
        return StageResult(
            name=stage.name,
            techniques=stage.techniques,
            report=manager.report(),
            seconds=round(time.perf_counter() - start, 3),
            steps=manager.callbacks.progress.step,
            locked=tuple(zeros.masks),
        )

    def _finish(self, stage: Train, run: TrainingRun, returned: object) -> None:
        """End a training that its function left open, and refuse what was none."""
        callbacks = run.manager.callbacks
        if isinstance(returned, nn.Module) and unwrapped(returned) is not self._model:
            message = (
                f"The training function of stage {stage.name!r} returned another {type(returned).__name__} than "
                "run.model: expected that it is trained in place. To go on with the best epoch, load its state_dict."
            )
            raise ModelError(message)
        if not (callbacks.is_training or callbacks.has_ended):
            message = (
                f"The training function of stage {stage.name!r} called no hook of run.manager, so nothing was "
                "compressed: expected run.manager.on_train_begin() before its loop. With transformers' Trainer, give "
                "it callbacks=[INCCallback(run.manager)]."
            )
            raise HookOrderError(message)
        if not callbacks.has_ended:
            message = (
                f"The training function of stage {stage.name!r} did not call run.manager.on_train_end; it is done all "
                "the same. Call it after the loop."
            )
            warn_user(message, LoopWarning)
            callbacks.on_train_end()
        if run.is_resumed and not run.has_asked:
            message = (
                f"Stage {stage.name!r} was saved before it was interrupted, and its training function did not call "
                "run.restore: it was trained from its begin. Call run.restore(optimizer=...) before on_train_begin."
            )
            warn_user(message, LoopWarning)

    def _quantized(self, stage: Quantize) -> StageResult:
        start = time.perf_counter()
        zeros = CarriedZeros.of(self._model, self._pruned if stage.keep_zeros else ())
        made = quantize(self._model, **stage.arguments)
        if made is None:
            message = (
                f"Stage {stage.name!r}: the accuracy goal was missed, and TuningCriterion(on_miss='none') leaves the "
                "pipeline without a model: expected 'best' or 'raise'."
            )
            raise GoalMissedError(message)
        zeros.require(made, stage.name)
        self._model = made
        report = attached_report(made) or CompressionReport.measure(made)
        return StageResult(
            name=stage.name,
            techniques=stage.techniques,
            report=report,
            seconds=round(time.perf_counter() - start, 3),
            steps=0,
        )


def _checked_model(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        message = f"Pipeline.fit got a model of type {type(model).__name__}: expected a torch.nn.Module."
        raise ConfigTypeError(message)
    if Ranks().count > 1:
        message = (
            "Pipeline.fit was called in a distributed run: expected one process. In several, call prepare_compression "
            "for each stage in a script of your own."
        )
        raise ConfigError(message)
    return unwrapped(model)


def _checked_stages(stages: object) -> tuple[Stage, ...]:
    if not isinstance(stages, list | tuple):
        message = f"Pipeline got {stages!r} of type {type(stages).__name__}: expected a list of stages."
        raise ConfigTypeError(message)
    if not stages:
        message = "Pipeline got an empty list: expected stages, such as Train(config, train) and Quantize()."
        raise ConfigError(message)
    for place, stage in enumerate(stages):
        if not isinstance(stage, Train | Quantize):
            raise ConfigTypeError(_no_stage(place, stage))
    _check_names(stages)
    for place, stage in enumerate(stages[:-1]):
        if stage.quantizes:
            behind = stages[place + 1]
            message = (
                f"Pipeline has the stage {behind.name!r} behind {stage.name!r}, which makes the model int8: expected "
                "that stage to be the last, as codes can neither be trained nor quantized again. Move it to the end."
            )
            raise ConfigError(message)
    return tuple(stages)


def _no_stage(place: int, stage: object) -> str:
    hint = ""
    if isinstance(stage, TRAINING):
        hint = f" Put it into a stage: Train({type(stage).__name__}(...), train)."
    elif isinstance(stage, PostTrainingQuantConfig):
        hint = " Put it into a stage: Quantize(PostTrainingQuantConfig(...), calib_dataloader=...)."
    elif isinstance(stage, type) and issubclass(stage, Train | Quantize):
        hint = " Give an object, not its class."
    return f"Pipeline got stages[{place}]={stage!r} of type {type(stage).__name__}: expected Train or Quantize.{hint}"


def _check_names(stages: Sequence[Stage]) -> None:
    names = Counter(stage.name for stage in stages)
    for name, count in names.items():
        if count > 1:
            message = (
                f"Pipeline has {count} stages with the name {name!r}: expected a name of its own for each. Give them: "
                f"Train(..., name={f'{name}-2'!r})."
            )
            raise ConfigError(message)
