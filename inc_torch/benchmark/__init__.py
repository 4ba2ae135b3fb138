"""How fast a model is, and which kernels it really runs: INC's ``benchmark.fit``.

Instances are processes that are bound to cores of their own and begin together; on a GPU, and on other systems than
Linux, the model is measured in the process itself. The user's script is never run a second time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from inc_torch.benchmark._cores import Placement, allowed_cpus, cpu_quota, physical_cores, place
from inc_torch.benchmark._diagnosis import profile_table, write_profile
from inc_torch.benchmark._raw_command import benchmark_with_raw_cmd
from inc_torch.benchmark._result import BenchmarkResult, InstanceResult, ModelResult
from inc_torch.benchmark._result_view import inc_lines, inc_summary
from inc_torch.benchmark._run import AccuracyTask, accuracy_of, can_fork, measured
from inc_torch.benchmark._sources import Source, source_of, told_apart
from inc_torch.benchmark._task import MeasureTask
from inc_torch.config import BenchmarkConfig
from inc_torch.core.errors import ConfigError, ConfigTypeError, InexactWarning, did_you_mean
from inc_torch.core.user_warning import warn_user
from inc_torch.metric import read_metric

__all__ = ["BenchmarkResult", "InstanceResult", "ModelResult", "benchmark_with_raw_cmd", "fit"]

AnyModel = nn.Module | str | os.PathLike[str]


def fit(  # noqa: PLR0913  the arguments of INC, and what its files of settings had beside them
    model: AnyModel,
    conf: BenchmarkConfig | None = None,
    b_dataloader: Iterable[Any] | None = None,
    b_func: Callable[[nn.Module], object] | None = None,
    *,
    config: BenchmarkConfig | None = None,
    compare: AnyModel | None = None,
    architecture: nn.Module | None = None,
    metric: object = None,
    batch_size: int = 1,
    clip: bool = False,
    quiet: bool = False,
    **unknown: object,
) -> BenchmarkResult:
    """Time a model, in as many processes at once as the config says, each bound to cores of its own.

    Only the call of the model is timed, in evaluation mode and without gradients; batches are read before. Nothing of
    the caller changes: not the model, the config, the environment, or the working directory.

    Args:
        model: A module; a directory of ``manager.save`` or ``save_for_huggingface_upstream``; any Hugging Face
            directory; or a file of `torch.save` with a ``state_dict``. Nothing that is opened can run code.
        conf: Warm-up, iterations, instances, cores and threads.
        b_dataloader: Batches: tensors, dicts, tuples of inputs, or ``(input, label)``. Each instance reads them for
            itself. It is read again if ``iteration`` asks for more. Without it, and without ``b_func``, inputs are made
            up from what the model says of itself.
        b_func: A benchmark of your own, run instead: each call of the model that it is given is an iteration.
        config: The same as ``conf``.
        compare: Another model to measure in the same way, such as the float one.
        architecture: The float model as your code builds it, for saved weights that do not say what class they belong
            to. It is copied.
        metric: Accuracy is measured too, on all of ``b_dataloader``, see `inc_torch.metric.read_metric`.
        batch_size: Of made-up inputs.
        clip: Take what cores there are where more are asked for, with a warning instead of an error.
        quiet: Print nothing.
        **unknown: Refused; there to say what was meant.

    Returns:
        Everything measured. ``result["performance"]`` is INC's ``(accuracy, batch size, seconds of each iteration)``.

    Raises:
        ConfigError: An argument is wrong, or there are not so many cores.
        ArtifactError: A saved model is missing, damaged, could run code, or needs ``architecture``.
        ModelError: Every instance failed; the trace is in the message. If only some fail it is a warning.

    Example:
        >>> import torch
        >>> from inc_torch import BenchmarkConfig, benchmark
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> batches = [torch.randn(4, 8) for _ in range(12)]
        >>> result = benchmark.fit(model, BenchmarkConfig(warmup=2), b_dataloader=batches, quiet=True)
        >>> accuracy, batch_size, seconds = result["performance"]
        >>> accuracy, batch_size, len(seconds)
        (None, 4, 10)
        >>> dict(result.model.kernels), result.model.percentile(50) <= result.model.percentile(99)
        ({'aten::addmm': 2}, True)
    """
    settings = _config_of(conf, config)
    if unknown:
        name = next(iter(unknown))
        message = f"benchmark.fit has no argument {name!r}.{did_you_mean(name, fit.__annotations__)}"
        raise ConfigTypeError(message)
    _check_arguments(b_dataloader, b_func, metric, batch_size)
    sources = [source_of(model, architecture, "model")]
    if compare is not None:
        sources = list(told_apart(sources[0], source_of(compare, architecture, "compare")))
    for source in sources:
        _check_device(source, settings)
    placements = _placements(settings, sources, clip=clip)
    scores = _accuracies(sources, b_dataloader, metric)
    found: list[ModelResult] = []
    profile: list[dict[str, Any]] = []
    for source, score in zip(sources, scores, strict=True):
        diagnosis = settings.diagnosis and not found
        task = MeasureTask(source.model, settings.replace(diagnosis=diagnosis), b_dataloader, b_func, batch_size)
        one, rows = measured(source, placements, task, score)
        found.append(one)
        profile += rows
    result = BenchmarkResult(found[0], found[1] if found[1:] else None, tuple(profile))
    folder = write_profile(profile) if profile else None
    if not quiet:
        _print(result)
        if folder is not None:
            _say(f"The profile is in {folder}.")
    return result


def _config_of(conf: object, config: object) -> BenchmarkConfig:
    if conf is not None and config is not None:
        message = "benchmark.fit got both conf and config: they are the same argument, give one."
        raise ConfigTypeError(message)
    given = conf if conf is not None else config
    if given is None:
        return BenchmarkConfig()
    if not isinstance(given, BenchmarkConfig):
        message = f"benchmark.fit got conf of type {type(given).__name__}: expected a BenchmarkConfig or None."
        raise ConfigTypeError(message)
    if idle := given.options_without_effect():
        names = ", ".join(idle)
        warn_user(f"BenchmarkConfig.{names}: accepted, as INC has it, and without effect for PyTorch.", InexactWarning)
    return given


def _check_arguments(data: object, function: object, metric: object, batch_size: object) -> None:
    if data is not None and not isinstance(data, Iterable):
        message = f"benchmark.fit got b_dataloader of type {type(data).__name__}: expected batches, as in a list."
        raise ConfigTypeError(message)
    if function is not None and not callable(function):
        message = f"benchmark.fit got b_func of type {type(function).__name__}: expected a function of a model."
        raise ConfigTypeError(message)
    if metric is not None and data is None:
        message = "benchmark.fit got metric without b_dataloader: accuracy needs labelled batches."
        raise ConfigError(message)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        message = f"benchmark.fit got batch_size={batch_size!r}: expected a number of 1 or more."
        raise ConfigError(message)


def _check_device(source: Source, config: BenchmarkConfig) -> None:
    if config.device not in {"gpu", "cuda"}:
        return
    devices = {tensor.device.type for tensor in [*source.model.parameters(), *source.model.buffers()]}
    if devices - {"cuda"}:
        message = (
            f"BenchmarkConfig.device={config.device!r}, but {source.name} lies on {', '.join(sorted(devices))}: "
            "expected it on 'cuda'. Move it there first: model.to('cuda')."
        )
        raise ConfigError(message)


def _placements(config: BenchmarkConfig, sources: list[Source], *, clip: bool) -> tuple[Placement, ...]:
    if can_fork(*(source.model for source in sources)):
        placements = place(config, physical_cores(allowed_cpus()), clip=clip)
        used, quota = sum(len(placement.cpus) for placement in placements), cpu_quota()
        if quota is not None and quota < used:
            message = (
                f"The instances run on {used} cores, but this container may use the time of {quota:g}: it is stopped "
                "again and again, which the slowest batches show. Ask for fewer cores, or run with a greater limit."
            )
            warn_user(message, InexactWarning)
        return placements
    if config.num_of_instance > 1:
        where = (
            "a model on another device than the CPU is" if torch.cuda.is_available() else "on this system a model is"
        )
        message = (
            f"BenchmarkConfig.num_of_instance={config.num_of_instance}: expected 1, as {where} measured in this "
            "process. Processes of their own need Linux and models on the CPU."
        )
        if not clip:
            raise ConfigError(message)
        warn_user(message, InexactWarning)
    return (Placement(0, (), config.intra_num_of_threads),)


def _accuracies(sources: list[Source], data: Iterable[Any] | None, metric: object) -> list[float | None]:
    """Of each model, by all cores; None of each if nobody asked."""
    if metric is None or data is None:
        return [None] * len(sources)
    if isinstance(data, Iterator):
        message = (
            f"benchmark.fit got b_dataloader of type {type(data).__name__}, which can be read only once, and a metric: "
            "it is read for the accuracy and again for the time. Pass a list or a DataLoader."
        )
        raise ConfigTypeError(message)
    measure, reference = read_metric(metric), sources[-1].model
    cores = physical_cores(allowed_cpus())
    placement = Placement(0, tuple(core.cpu for core in cores), len(cores))
    if not can_fork(*(source.model for source in sources)):
        placement = Placement(0, (), None)
    return [accuracy_of(source, AccuracyTask(source.model, data, measure, reference), placement) for source in sources]


def _print(result: BenchmarkResult) -> None:
    """INC's lines, then the tables."""
    for instance in result.model.finished:
        if len(result.model.instances) > 1:
            _say(f"Instance {instance.index}:")
        for line in inc_lines(instance):
            _say(line)
    if result.model.accuracy is not None:
        _say(f"Accuracy is {result.model.accuracy:.4f}")
    for line in inc_summary(result.model.latency / 1000, result.model.throughput):
        _say(line)
    _say("")
    result.print()
    if result.profile:
        _say("")
        _say(profile_table(result.profile))


def _say(line: str) -> None:
    from rich.console import Console

    Console(soft_wrap=True, highlight=False, markup=False).print(line)
