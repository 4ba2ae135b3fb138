"""Scripts for INC 2.X in the style of its documents, migrated and run; what they leave is asserted."""

from __future__ import annotations

import warnings

import pytest
import torch

from inc_torch.core.errors import InexactWarning
from inc_torch.migrate import migrate_source

HEAD = """\
import torch
from torch import nn

torch.manual_seed(0)
loader = [(torch.randn(8, 8), torch.randint(4, (8,))) for _ in range(6)]
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
"""


def left_by(script):
    """Migrate and run a script, which may leave nothing to decide, and return its variables."""
    migrated = migrate_source(HEAD + script)
    assert "neural_compressor" not in migrated.text
    assert migrated.findings == ()
    assert migrate_source(migrated.text) == type(migrated)(migrated.text, ())
    names = {"__name__": "__main__"}
    exec(compile(migrated.text, "script", "exec"), names)
    return names


def zeros(module):
    return (module.weight == 0).float().mean().item()


def test_pruning_by_local_configs():
    names = left_by("""
from neural_compressor.training import WeightPruningConfig, prepare_compression

configs = WeightPruningConfig(
    [{"op_names": ["0"], "pattern": "4x1"}, {"op_names": ["2"], "pattern": "1x1", "target_sparsity": 0.5}],
    target_sparsity=0.75, start_step=0, end_step=4,
)
compression_manager = prepare_compression(model=model, confs=configs)
compression_manager.callbacks.on_train_begin()
for epoch in range(2):
    for step, (x, y) in enumerate(loader):
        compression_manager.callbacks.on_step_begin(step)
        loss = criterion(model(x), y)
        loss.backward()
        compression_manager.callbacks.on_before_optimizer_step()
        optimizer.step()
        optimizer.zero_grad()
compression_manager.callbacks.on_train_end()
""")
    first, second, last = (names["model"][index] for index in (0, 2, 4))
    assert (zeros(first), zeros(second), zeros(last)) == (0.75, 0.5, 0.0)


def test_the_loop_of_the_documents_loses_nothing_for_want_of_a_hook():
    script = """
from neural_compressor.config import DistillationConfig, KnowledgeDistillationLossConfig, WeightPruningConfig
from neural_compressor import training

distillation_criterion = KnowledgeDistillationLossConfig(loss_types=["CE", "KL"])
d_conf = DistillationConfig(model, distillation_criterion)
p_conf = WeightPruningConfig(pruning_type="magnitude", target_sparsity=0.5, end_step=3)
compression_manager = training.prepare_compression(model=model, confs=[d_conf, p_conf])
compression_manager.callbacks.on_train_begin()
for epoch in range(2):
    compression_manager.on_epoch_begin(epoch)
    for i, batch in enumerate(loader):
        compression_manager.on_step_begin(i)
        output = model(batch[0])
        loss = criterion(output, batch[1])
        compression_manager.on_after_compute_loss(batch[0], output, loss)
        loss.backward()
        compression_manager.on_before_optimizer_step()
        optimizer.step()
        optimizer.zero_grad()
        compression_manager.on_step_end()
    compression_manager.on_epoch_end()
compression_manager.on_train_end()
"""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The teacher Sequential shares weights", InexactWarning)
        migrated = migrate_source(HEAD + script).text
        names = left_by(script)
    assert "loss = compression_manager.on_after_compute_loss(batch[0], output, loss)" in migrated
    assert migrated.count("on_after_optimizer_step()") == 1
    assert names["compression_manager"].report().sparsity == 0.5


def test_quantization_after_training():
    names = left_by("""
import neural_compressor as nc
from neural_compressor.config import AccuracyCriterion, TuningCriterion

conf = nc.PostTrainingQuantConfig(approach="static", calibration_sampling_size=[24])
conf.tuning_criterion.max_trials = 2
conf.accuracy_criterion = AccuracyCriterion(tolerable_loss=0.9)
q_model = nc.quantization.fit(
    model, conf, calib_dataloader=[x for x, _ in loader],
    eval_func=lambda m: float((m(loader[0][0]).argmax(1) == loader[0][1]).float().mean()) + 1,
)
""")
    assert names["conf"].tuning_criterion.max_trials == 2
    assert [type(module).__name__ for module in names["q_model"]][::2] == ["Int8Linear"] * 3
    assert isinstance(names["model"][0], torch.nn.Linear)


def test_quantization_aware_training():
    names = left_by("""
import neural_compressor.training
import neural_compressor.config

conf = neural_compressor.config.QuantizationAwareTrainingConfig()
manager = neural_compressor.training.prepare_compression(model, conf)
for epoch in range(2):
    for x, y in loader:
        criterion(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
""")
    assert {row.bits for row in names["manager"].report().modules} == {8}
    assert [type(module).__name__ for module in names["model"]][::2] == ["Int8Linear"] * 3


def test_mixed_precision_and_benchmark():
    names = left_by("""
from neural_compressor import mix_precision
from neural_compressor.benchmark import fit
from neural_compressor.config import BenchmarkConfig, MixedPrecisionConfig

converted = mix_precision.fit(model, config=MixedPrecisionConfig())
result = fit(model=model, config=BenchmarkConfig(warmup=1, iteration=4), b_dataloader=loader)
""")
    assert names["converted"][0].weight.dtype == torch.bfloat16
    assert len(names["result"]["performance"][2]) == 3


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Quantization(conf.yaml)", 'Quantization("conf.yaml")'),
        ("Quantization(conf_fname_or_obj=conf.yml)", 'Quantization(conf_fname_or_obj="conf.yml")'),
        ("Quantization(args.yaml)", "Quantization(args.yaml)"),
    ],
)
def test_names_of_files_that_are_written_as_code(before, after):
    head = "from inc_torch.experimental import Quantization\nargs = parse()\nq = "
    assert migrate_source(head + before).text == head + after


def test_saving_without_a_folder_is_told():
    text = "from inc_torch import prepare_compression\nm = prepare_compression(model, conf)\nm.save()\nm.save('int8')\n"
    ((line, todo),) = [(finding.line, finding.todo) for finding in migrate_source(text).findings]
    assert (line, todo) == (3, "Name a folder: m.save('int8').")
