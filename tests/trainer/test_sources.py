"""What INCCallback is made from, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import yaml
from torch import nn

import inc_torch
import inc_torch.huggingface
from inc_torch import INCCallback, WeightPruningConfig, prepare_compression
from inc_torch.config import read_configs
from inc_torch.core.errors import ConfigError, ConfigTypeError, ModelError
from tests.trainer.setup import arguments, bert, pruning, quantization, techniques, trainer_of

PRUNING = {"target_sparsity": 0.5, "pattern": "4x1", "start_step": 1, "end_step": 4}
DISTILLATION = {"criterion": {"KnowledgeDistillationLoss": {"temperature": 2.0, "loss_types": ["CE", "KL"]}}}
ALL = {
    "WeightPruningConfig": PRUNING,
    "QuantizationAwareTrainingConfig": None,
    "DistillationConfig": DISTILLATION,
}


def types(configs) -> list[str]:
    return [type(config).__name__ for config in configs]


@pytest.mark.parametrize("shape", ["mapping", "list"])
def test_a_yaml_file_says_what_objects_say(shape, tmp_path):
    path = tmp_path / "compression.yaml"
    path.write_text(yaml.safe_dump(ALL if shape == "mapping" else [{name: options} for name, options in ALL.items()]))
    teacher = bert(seed=1)
    by_file = INCCallback(path, teacher_model=teacher)
    by_objects = INCCallback(techniques("pqd", teacher))
    models = []
    for callback in (by_file, by_objects):
        trainer = trainer_of(bert(), tmp_path, [callback])
        trainer.train()
        models.append(trainer.model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[1])
    assert path.read_text() == yaml.safe_dump(ALL if shape == "mapping" else [{n: o} for n, o in ALL.items()])


def test_dicts_lists_and_objects_mix():
    sources = [{"WeightPruningConfig": PRUNING}, quantization(), json.loads(json.dumps(pruning().to_dict()))]
    assert types(read_configs(sources)) == [
        "WeightPruningConfig",
        "QuantizationAwareTrainingConfig",
        "WeightPruningConfig",
    ]
    assert read_configs({"WeightPruningConfig": PRUNING}) == [WeightPruningConfig(**PRUNING)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("WeightPruningConfg: {}", r"no configuration 'WeightPruningConfg' in '.*c.yaml'.*WeightPruningConfig"),
        ("WeightPruningConfig: {target_sparsty: 0.5}", "target_sparsity"),
        ("WeightPruningConfig: {target_sparsity: 1.5}", r"target_sparsity=1.5"),
        ("WeightPruningConfig: [1]", r"got \[1\]: expected a mapping"),
        ("", r"Got None in '.*c.yaml': expected a mapping such as"),
        ("- 3", "Got 3 in"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_wrong_file_is_refused(content, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        INCCallback(str(path))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no configuration file 'nowhere\.yaml'"):
        INCCallback("nowhere.yaml")


def test_an_object_that_is_none_is_refused_when_the_trainer_is_made(tmp_path):
    with pytest.raises(ConfigTypeError, match="expected WeightPruningConfig"):
        trainer_of(bert(), tmp_path, [INCCallback(3)])


def test_a_manager_goes_on_in_the_trainer(tmp_path):
    model = bert()
    manager = prepare_compression(model, pruning())
    callback = INCCallback(manager)
    trainer_of(model, tmp_path, [callback]).train()
    assert callback.manager is manager
    assert manager.callbacks.has_ended
    assert manager.report().sparsity == pytest.approx(0.5, abs=0.01)


def test_a_manager_of_another_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="manager of another model"):
        trainer_of(bert(), tmp_path, [INCCallback(prepare_compression(bert(), pruning()))])


def test_a_callback_added_later_works_too(tmp_path):
    trainer = trainer_of(bert(), tmp_path, [])
    trainer.add_callback(callback := INCCallback(pruning()))
    trainer.train()
    assert callback.manager.report().sparsity == pytest.approx(0.5, abs=0.01)


def test_it_is_found_at_both_places_and_imported_late():
    assert inc_torch.INCCallback is inc_torch.huggingface.INCCallback
    code = (
        "import sys, inc_torch; assert 'transformers' not in sys.modules; inc_torch.INCCallback; "
        "assert 'transformers' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="INCCallbak"):
        inc_torch.INCCallbak  # noqa: B018
    with pytest.raises(AttributeError, match="INCCallbak"):
        inc_torch.huggingface.INCCallbak  # noqa: B018


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch):
    options = arguments(tmp_path)
    monkeypatch.setattr(type(options), "n_gpu", property(lambda self: 2))
    callback = INCCallback(pruning())
    with pytest.raises(ModelError, match=r"DataParallel.*torchrun --nproc_per_node 2"):
        callback.on_init_end(options, None, None, model=bert())


def test_deepspeed_is_refused(tmp_path):
    class DeepSpeedTrainer:
        is_deepspeed_enabled = True

    callback = INCCallback(pruning()).attach(DeepSpeedTrainer())
    with pytest.raises(ModelError, match=r"DeepSpeed.*DistributedDataParallel"):
        callback.on_init_end(arguments(tmp_path), None, None, model=bert())


def test_data_parallel_is_refused_by_name():
    with pytest.raises(ModelError, match=r"it is wrapped by DataParallel, which.*torchrun"):
        prepare_compression(nn.DataParallel(bert()), pruning())


def test_events_before_any_model_are_refused(tmp_path):
    callback = INCCallback(pruning())
    with pytest.raises(ConfigError, match=r"Trainer\(..., callbacks=\[callback\]\)"):
        callback.on_step_begin(arguments(tmp_path), bert(), None)
