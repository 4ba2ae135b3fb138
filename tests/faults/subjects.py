"""Everything that the package writes: how it is written, and how to tell which of two it is that is read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import nn

import inc_torch
from inc_torch import PostTrainingQuantConfig, WeightPruningConfig
from inc_torch.benchmark import BenchmarkResult
from inc_torch.benchmark._result import InstanceResult, ModelResult
from inc_torch.core.errors import ArtifactError
from inc_torch.distillers.cached_logits import CachedLogits, cache_teacher_logits
from inc_torch.export import load, save
from inc_torch.huggingface import save_for_huggingface_upstream
from inc_torch.huggingface._checkpoint import read_state, write_state
from inc_torch.huggingface._layout import PREVIOUS
from inc_torch.pipeline import Pipeline, Train
from inc_torch.tuning import TuningResult
from inc_torch.utils.load_huggingface import OptimizedModel
from tests.unit.tuning.test_result import result as tuning_result

transformers.logging.disable_progress_bar()  # its lock is shared with forked processes, and kept by killed ones

WIDTHS = {"first": 0.25, "second": 0.5}


@dataclass(frozen=True)
class Subject:
    """What is written, in two versions called ``"first"`` and ``"second"``.

    Attributes:
        write: Called with a folder and the version.
        read: Called with a folder; the version that is there, or one of our errors.
    """

    write: Callable[[Path, str], object]
    read: Callable[[Path], str]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 8))


def filled(model: nn.Module, version: str) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(WIDTHS[version])
    return model


def version_of(tensor: torch.Tensor) -> str:
    """Which version all values of a tensor are of."""
    found = {name for name, value in WIDTHS.items() if torch.allclose(tensor.float(), torch.tensor(value), atol=2e-3)}
    assert len(found) == 1, f"a mixture: {tensor.unique()}"
    return found.pop()


def int8(version: str) -> nn.Module:
    conf = PostTrainingQuantConfig(approach="post_training_dynamic_quant")
    return inc_torch.quantization.fit(filled(net(), version), conf)


def read_model(place: Path) -> str:
    model = load(place / "model", model=net())
    return version_of(model[0].qweight * model[0].weight_scale.flatten()[0])


TINY = transformers.BertConfig(
    vocab_size=20,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=8,
)


def hub(version: str) -> nn.Module:
    """The second one has a configuration of its own too, so that weights of one and configuration of other show."""
    config = transformers.BertConfig(**{**TINY.to_dict(), "layer_norm_eps": WIDTHS[version] / 1000})
    return filled(transformers.BertForSequenceClassification(config), version)


def read_hub(place: Path) -> str:
    where = place / "hub"
    try:
        model = OptimizedModel.from_pretrained(where)
    except ArtifactError as error:
        if (where / PREVIOUS).exists() and not (where / "config.json").exists():
            assert f"What was there before is whole in '{where / PREVIOUS}'" in str(error)
            model = OptimizedModel.from_pretrained(where / PREVIOUS)
        else:
            raise
    found = {version_of(parameter) for parameter in model.parameters()}
    assert len(found) == 1
    version = found.pop()
    assert model.config.layer_norm_eps == WIDTHS[version] / 1000
    return version


def benchmark(version: str) -> BenchmarkResult:
    instance = InstanceResult(0, (0,), 1, 2, (WIDTHS[version],) * 2000, 4)
    return BenchmarkResult(ModelResult("model", (instance,), 100))


def read_benchmark(place: Path) -> str:
    path = place / "result.json"
    if not path.exists():
        raise ArtifactError("none")
    found = inc_torch.core.files.parse_json(path.read_text())["model"]["latency_ms"]
    return {500_000 * WIDTHS[name]: name for name in WIDTHS}[found]


def read_tuning(place: Path) -> str:
    return TuningResult.load(place / "tuning.json").strategy


def read_checkpoint(place: Path) -> str:
    try:
        return version_of(read_state(place / "checkpoint")["manager"]["weights"])
    except inc_torch.core.errors.StateError as error:
        raise ArtifactError(str(error)) from error


def write_checkpoint(place: Path, version: str) -> None:
    state = {"weights": torch.full((4000,), WIDTHS[version])}
    write_state(place / "checkpoint", {"manager": state, "reached_at": None})


def one_step(run) -> None:
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.0)
    run.manager.on_train_begin()
    run.manager.on_step_begin(0)
    run.model(torch.ones(1, 48)).sum().backward()
    run.manager.on_before_optimizer_step()
    optimizer.step()
    run.manager.on_after_optimizer_step()
    run.manager.on_train_end()


def run_pipeline(place: Path, version: str) -> None:
    half = WeightPruningConfig(target_sparsity=0.5, pruning_type="magnitude", pattern="4x1", start_step=0, end_step=0)
    stages = [Train(half.replace(), one_step, name=name) for name in ("prune", "again")]
    Pipeline(stages[:1]).fit(filled(net(), version), place / f"run-{version}")


def read_pipeline(place: Path) -> str:
    """A finished run is taken up as it is, and what is cut goes on; both end with the same zeros."""
    newest = "second" if (place / "run-second").exists() else "first"
    if not (place / f"run-{newest}").exists():
        raise ArtifactError("none")
    run_pipeline(place, newest)
    model = load(place / f"run-{newest}" / "1-prune", model=net())
    assert float((model[0].weight == 0).float().mean()) == 0.5
    return version_of(model[0].weight[model[0].weight != 0])


def write_logits(place: Path, version: str) -> None:
    with warnings.catch_warnings():
        cache_teacher_logits(filled(net(), version), [torch.ones(40, 48)] * 3, place / f"logits-{version}")


def read_logits(place: Path) -> str:
    newest = "second" if (place / "logits-second").exists() else "first"
    cached = CachedLogits(place / f"logits-{newest}")
    assert len(cached) == 120
    assert torch.allclose(cached[119], filled(net(), newest)(torch.ones(48)), rtol=1e-2)
    return newest


SUBJECTS = {
    "a model": Subject(lambda place, version: save(int8(version), place / "model"), read_model),
    "a hub directory": Subject(
        lambda place, version: save_for_huggingface_upstream(hub(version), None, place / "hub"), read_hub
    ),
    "a benchmark": Subject(lambda place, version: benchmark(version).save_json(place / "result.json"), read_benchmark),
    "a search": Subject(
        lambda place, version: tuning_result(strategy=version, reason="r" * 4000).save(place / "tuning.json"),
        read_tuning,
    ),
    "a checkpoint": Subject(write_checkpoint, read_checkpoint),
    "a pipeline": Subject(run_pipeline, read_pipeline),
    "teacher logits": Subject(write_logits, read_logits),
}
