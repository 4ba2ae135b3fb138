"""The sections that files of every kind have: the model, tuning, evaluation, data, and a built-in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from inc_torch.conf._schema import Alternatives, Field, Named, Section
from inc_torch.conf._words import any_case, as_it_is, one_or_more, share, split
from inc_torch.config import AccuracyCriterion, BenchmarkConfig, TuningCriterion
from inc_torch.config._checks import Place, choice, flag, integer, list_of, number, optional, text
from inc_torch.core.errors import ConfigError

__all__ = [
    "DEVICE",
    "EVALUATION",
    "MODEL",
    "TRAIN",
    "TUNING",
    "accuracy_criterion",
    "benchmark_config",
    "count",
    "metric_of",
    "tuning_criterion",
]

FRAMEWORKS: Final = ("pytorch", "pytorch_fx", "pytorch_ipex", "torch", "NA")
_OTHERS: Final = ("tensorflow", "inteltensorflow", "keras", "mxnet", "onnx", "engine")
_TENSORFLOW: Final = "modules of PyTorch have no such names"
_positive = integer("a number of 1 or more", lambda x: x >= 1)
count = integer("a number of 0 or more", lambda x: x >= 0)
_all_or = integer("a number of 1 or more, or -1 for all", lambda x: x >= 1 or x == -1)


def _framework(value: object, place: Place) -> str:
    word = text(value, place)
    if any(word.lower().startswith(other) for other in _OTHERS):
        raise place.error(value, f"one of {', '.join(map(repr, FRAMEWORKS))}", " inc_torch is for PyTorch only.")
    return any_case(FRAMEWORKS)(word, place)


MODEL = Section(
    {
        "name": Field(text, ""),
        "framework": Field(_framework, "pytorch"),
        "inputs": Field(one_or_more(as_it_is), (), idle=_TENSORFLOW),
        "outputs": Field(one_or_more(as_it_is), (), idle=_TENSORFLOW),
    },
    present=True,
)
DEVICE = Field(choice(("cpu", "gpu")), "cpu")


# ------------------------------------------------------------------------------ tuning


_ELSEWHERE = "it is of a paid service; the strategies 'bayesian' and 'tpe' search in the same way"


def _strategy(value: object, place: Place) -> str:
    return TuningCriterion(strategy=text(value, place)).strategy


TUNING = Section(
    {
        "strategy": Section(
            {
                "name": Field(_strategy, "basic"),
                "sigopt_api_token": Field(as_it_is, idle=_ELSEWHERE),
                "sigopt_project_id": Field(as_it_is, idle=_ELSEWHERE),
                "sigopt_experiment_name": Field(as_it_is, idle=_ELSEWHERE),
                "accuracy_weight": Field(as_it_is, idle="strategies here take weights of objectives alone"),
                "latency_weight": Field(as_it_is, idle="strategies here take weights of objectives alone"),
                "confidence_batches": Field(_positive),
                "hawq_v2_loss": Field(as_it_is),
            },
            present=True,
        ),
        "accuracy_criterion": Section(
            {"relative": Field(share), "absolute": Field(share), "higher_is_better": Field(flag, default=True)},
            present=True,
        ),
        "objective": Field(text, "performance"),
        "multi_objectives": Section(
            {
                "objective": Field(one_or_more(text), ()),
                "weight": Field(one_or_more(share)),
                "higher_is_better": Field(list_of("a list of True and False", flag)),
            }
        ),
        "exit_policy": Section(
            {
                "timeout": Field(number("a number of seconds, 0 or more", lambda x: x >= 0), 0.0),
                "max_trials": Field(_positive, 100),
                "performance_only": Field(flag, default=False),
            },
            present=True,
        ),
        "random_seed": Field(count),
        "tensorboard": Field(flag, default=False, idle="results have tables and pictures of their own"),
        "workspace": Section({"path": Field(text), "resume": Field(text)}, present=True),
        "diagnosis": Field(as_it_is, default=False, idle="the report of a result lists every module"),
    },
    present=True,
)


def accuracy_criterion(tuning: Any) -> AccuracyCriterion:  # noqa: ANN401  the section `TUNING`
    """The goal of a search.

    Raises:
        ConfigError: Both kinds of loss are given.
    """
    section = tuning.accuracy_criterion
    if section.relative is not None and section.absolute is not None:
        message = (
            f"tuning.accuracy_criterion has relative={section.relative!r} and absolute={section.absolute!r}: a "
            "tolerable loss is one or the other. Leave one out."
        )
        raise ConfigError(message)
    if section.absolute is not None:
        return AccuracyCriterion(section.higher_is_better, "absolute", section.absolute)
    loss = 0.01 if section.relative is None else section.relative
    return AccuracyCriterion(section.higher_is_better, "relative", loss)


def tuning_criterion(tuning: Any) -> TuningCriterion:  # noqa: ANN401  the section `TUNING`
    """How a search goes."""
    strategy, policy = tuning.strategy, tuning.exit_policy
    options = {
        name: value
        for name, value in (
            ("confidence_batches", strategy.confidence_batches),
            ("hawq_v2_loss", strategy.hawq_v2_loss),
        )
        if value is not None
    }
    several = tuning.multi_objectives
    return TuningCriterion(
        strategy=strategy.name,
        strategy_kwargs=options or None,
        timeout=policy.timeout,
        max_trials=policy.max_trials,
        objective=tuning.objective if several is None else {k: v for k, v in several.items() if v is not None},
        performance_only=policy.performance_only,
    )


# ------------------------------------------------------------------------------ data


_IN_EVALUATION = "it belongs under 'evaluation.performance', and a loader takes what it gets"

DATALOADER = Section(
    {
        "batch_size": Field(_positive),
        "last_batch": Field(choice(("rollover", "discard")), "rollover"),
        "shuffle": Field(flag, default=False),
        "distributed": Field(flag, default=False),
        "dataset": Named(most=1),
        "transform": Named(),
        "filter": Named(most=1),
        "warmup": Field(as_it_is, idle=_IN_EVALUATION),
        "iteration": Field(as_it_is, idle=_IN_EVALUATION),
    }
)
POSTPROCESS = Section({"transform": Named()})


# ------------------------------------------------------------------------------ evaluation


_SETTINGS = Section(
    {
        "cores_per_instance": Field(_positive),
        "num_of_instance": Field(_positive, 1),
        "inter_num_of_threads": Field(_positive),
        "intra_num_of_threads": Field(_positive),
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
                "iteration": Field(_all_or, -1),
                "dataloader": DATALOADER,
                "postprocess": POSTPROCESS,
                "configs": _SETTINGS,
            }
        ),
        "performance": Section(
            {
                "warmup": Field(count, 5),
                "iteration": Field(_all_or, -1),
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


# ------------------------------------------------------------------------------ training


_OPTIMIZERS: Final = ("SGD", "Adam", "AdamW")
_KERAS: Final = "torch's cross entropy takes logits"


def _reduction(value: object, place: Place) -> str:
    """What torch calls it; "None", as INC's own templates have it, cannot be trained with."""
    word = text(value, place)
    return "mean" if word == "None" else choice(("mean", "sum", "none"))(word, place)


def _said_of_reduction(value: object) -> str | None:
    return "counts as 'mean': a loss for each sample cannot be trained with." if value == "None" else None


CRITERION = Alternatives(
    {
        "CrossEntropyLoss": Section(
            {
                "reduction": Field(_reduction, "mean", remark=_said_of_reduction),
                "from_logits": Field(as_it_is, idle=_KERAS),
            },
            present=True,
        ),
        "KnowledgeDistillationLoss": Section(
            dict.fromkeys(("temperature", "loss_types", "loss_weights"), Field(as_it_is)), present=True
        ),
        "IntermediateLayersKnowledgeDistillationLoss": Section(
            dict.fromkeys(("layer_mappings", "loss_types", "loss_weights", "add_origin_loss"), Field(as_it_is)),
            required=("layer_mappings",),
            present=True,
        ),
        "SelfKnowledgeDistillationLoss": Section(
            dict.fromkeys(
                ("layer_mappings", "temperature", "loss_types", "loss_weights", "add_origin_loss"), Field(as_it_is)
            ),
            required=("layer_mappings",),
            present=True,
        ),
    }
)

TRAIN = Section(
    {
        "criterion": CRITERION,
        "optimizer": Named(most=1, names=_OPTIMIZERS),
        "dataloader": DATALOADER,
        "epoch": Field(count, 1),
        "start_epoch": Field(count, 0),
        "end_epoch": Field(optional(count)),
        "iteration": Field(optional(_all_or)),
        "frequency": Field(as_it_is, idle="nothing asks for it, in Neural Compressor neither"),
        "execution_mode": Field(as_it_is, idle="PyTorch has one mode"),
        "postprocess": POSTPROCESS,
        "hostfile": Field(as_it_is, idle="start several processes by torchrun"),
    }
)
"""What a built-in training loop needs; a loop of the user's needs none of it."""
