"""The section ``evaluation``, and the metric and the benchmark that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inc_torch.conf._data import DATALOADER, POSTPROCESS
from inc_torch.conf._schema import Field, Named, Section
from inc_torch.conf._words import all_or_some, as_it_is, count, positive, split
from inc_torch.config import BenchmarkConfig
from inc_torch.config._checks import flag
from inc_torch.core.errors import ConfigError

__all__ = ["EVALUATION", "benchmark_config", "metric_of"]

_SETTINGS = Section(
    {
        "cores_per_instance": Field(positive),
        "num_of_instance": Field(positive, 1),
        "inter_num_of_threads": Field(positive),
        "intra_num_of_threads": Field(positive),
        "kmp_blocktime": Field(as_it_is, idle="it is of Intel's OpenMP: set the variable KMP_BLOCKTIME"),
        "kmp_affinity": Field(as_it_is, idle="instances are bound to their cores anyway"),
    },
    present=True,
)

EVALUATION = Section(
    {
        "accuracy": Section(
            {
                "metric": Named(most=1),
                "multi_metrics": Named(beside=("weight", "higher_is_better")),
                "iteration": Field(all_or_some, -1),
                "dataloader": DATALOADER,
                "postprocess": POSTPROCESS,
                "configs": _SETTINGS,
            }
        ),
        "performance": Section(
            {
                "warmup": Field(count, 5),
                "iteration": Field(all_or_some, -1),
                "dataloader": DATALOADER,
                "postprocess": POSTPROCESS,
                "configs": _SETTINGS,
            }
        ),
        "diagnosis": Field(flag, default=False),
    },
    present=True,
)


def metric_of(evaluation: Any) -> Mapping[str, object] | None:  # noqa: ANN401  the section `EVALUATION`
    """The metric as `inc_torch.metric.read_metric` takes it; None if none is named.

    Raises:
        ConfigError: There are ``metric`` and ``multi_metrics``.
    """
    section = evaluation.accuracy
    if section is None:
        return None
    if section.metric is not None and section.multi_metrics is not None:
        message = "evaluation.accuracy has metric and multi_metrics: expected one of them. Leave the other out."
        raise ConfigError(message)
    given = section.metric or section.multi_metrics
    if given is None:
        return None
    # An empty mapping is what a name without arguments reads as.
    metric = {name: None if value == {} else value for name, value in given.items()}
    for name in ("weight", "higher_is_better"):
        if name in metric:
            metric[name] = [float(entry) if isinstance(entry, str) else entry for entry in split(metric[name])]
    return metric


def benchmark_config(evaluation: Any, device: str, mode: str = "performance") -> BenchmarkConfig:  # noqa: ANN401
    """How a model is timed, or measured with ``mode="accuracy"``."""
    section = getattr(evaluation, mode)
    if section is None:
        return BenchmarkConfig(device=device, diagnosis=evaluation.diagnosis)
    settings = section.configs
    return BenchmarkConfig(
        device=device,
        warmup=section.warmup if mode == "performance" else 0,
        iteration=section.iteration,
        cores_per_instance=settings.cores_per_instance,
        num_of_instance=settings.num_of_instance,
        inter_num_of_threads=settings.inter_num_of_threads,
        intra_num_of_threads=settings.intra_num_of_threads,
        diagnosis=evaluation.diagnosis,
    )
