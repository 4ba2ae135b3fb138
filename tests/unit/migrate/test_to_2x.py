"""Scripts of 1.X as they were written: with the package renamed, and moved to functions and configs.

Each script is run in three ways, renamed, moved, and moved again; what it leaves has to be equal to the last bit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inc_torch.migrate import migrate_paths, migrate_source

HEAD = """\
import torch
from torch import nn

torch.manual_seed(0)
data = [(torch.randn(8, 8), torch.randint(4, (8,))) for _ in range(6)]
criterion = nn.CrossEntropyLoss()


def build():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


model, teacher = build(), build()


def evaluate(model):
    return sum((model(x).argmax(1) == y).float().mean().item() for x, y in data) / len(data)


"""
FILES = {
    "ptq.yaml": "quantization: {approach: post_training_static_quant, calibration: {sampling_size: 24}}\n"
    "tuning: {accuracy_criterion: {relative: 0.5}, exit_policy: {max_trials: 3}}\n",
    "metric.yaml": "quantization: {approach: post_training_dynamic_quant}\n"
    "tuning: {accuracy_criterion: {absolute: 0.9}, random_seed: 7}\nevaluation: {accuracy: {metric: {topk: 1}}}\n",
    "qat.yaml": "quantization: {approach: quant_aware_training}\n",
    "prune.yaml": "pruning:\n  approach:\n    weight_compression:\n      target_sparsity: 0.5\n      end_epoch: 1\n"
    "      pattern: tile_pattern_4x1\n",
    "kd.yaml": "distillation: {train: {criterion: {KnowledgeDistillationLoss: {temperature: 2.0,"
    " loss_types: [CE, KL], loss_weights: [0.5, 0.5]}}}}\n",
    "bf16.yaml": "mixed_precision: {precisions: bf16}\n",
    "bench.yaml": "evaluation: {performance: {warmup: 1, iteration: 3}}\n",
}
SCRIPTS = {
    "calibration": (
        """\
from neural_compressor.experimental import Quantization, common

quantizer = Quantization("ptq.yaml")  # the tuner
quantizer.eval_func = evaluate
quantizer.calib_dataloader = [x for x, _ in data]
quantizer.model = common.Model(model)
result = quantizer.fit()
""",
        """\
from inc_torch import AccuracyCriterion, PostTrainingQuantConfig, TuningCriterion, quantization

quantizer_conf = PostTrainingQuantConfig(
    calibration_sampling_size=(24,),
    accuracy_criterion=AccuracyCriterion(tolerable_loss=0.5),
    tuning_criterion=TuningCriterion(max_trials=3),
)  # the tuner
quantizer_calib_dataloader = [x for x, _ in data]
result = quantization.fit(model, quantizer_conf, calib_dataloader=quantizer_calib_dataloader, eval_func=evaluate)
""",
    ),
    "a metric of the file": (
        """\
from neural_compressor.experimental import Quantization

quantizer = Quantization("metric.yaml")
quantizer.model = model
quantizer.eval_dataloader = data
result = quantizer()
""",
        """\
from inc_torch import AccuracyCriterion, PostTrainingQuantConfig, quantization, set_random_seed

set_random_seed(7)
quantizer_conf = PostTrainingQuantConfig(
    approach='post_training_dynamic_quant',
    accuracy_criterion=AccuracyCriterion(criterion='absolute', tolerable_loss=0.9),
)
result = quantization.fit(model, quantizer_conf, eval_dataloader=data, eval_metric={'topk': 1})
""",
    ),
    "training with rounding": (
        """\
from neural_compressor.experimental import Quantization
from neural_compressor.conf.config import QuantConf


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in data:
        criterion(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


quantizer = Quantization(QuantConf("qat.yaml"))
quantizer.model = model
quantizer.q_func = train
result = quantizer.fit()
""",
        """\
from inc_torch import QuantizationAwareTrainingConfig, prepare_compression, training


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in data:
        criterion(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


quantizer_conf = QuantizationAwareTrainingConfig()
result = training.fit(prepare_compression(model, quantizer_conf), train)
""",
    ),
    "pruning": (
        """\
from neural_compressor.experimental import Pruning

prune = Pruning("prune.yaml")


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        prune.on_epoch_begin(epoch)
        for step, (x, y) in enumerate(data):
            prune.on_batch_begin(step)
            criterion(model(x), y).backward()
            prune.on_post_grad()
            optimizer.step()
            optimizer.zero_grad()
            prune.on_batch_end()
        prune.on_epoch_end()


prune.model = model
prune.train_func = train
result = prune.fit()
""",
        """\
from inc_torch import WeightPruningConfig, prepare_compression

prune_conf = WeightPruningConfig(
    target_sparsity=0.5,
    pruning_type='magnitude',
    pattern='4x1',
    end_step=1,
    pruning_scope='local',
    sparsity_decay_type='linear',
    clock='epoch',
)


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        prune.on_epoch_begin(epoch)
        for step, (x, y) in enumerate(data):
            prune.on_step_begin(step)
            criterion(model(x), y).backward()
            prune.on_before_optimizer_step()
            optimizer.step()
            prune.on_after_optimizer_step()
            optimizer.zero_grad()
            prune.on_step_end()
        prune.on_epoch_end()


prune = prepare_compression(model, prune_conf)
prune.on_train_begin()
prune.model.train()
train(prune.model)
prune.on_train_end()
result = prune.model.eval()
""",
    ),
    "distillation": (
        """\
from neural_compressor.experimental import Distillation
from neural_compressor.experimental.common.criterion import PyTorchKnowledgeDistillationLoss

distiller = Distillation("kd.yaml")
distiller.student_model = model
distiller.teacher_model = teacher
distiller.criterion = PyTorchKnowledgeDistillationLoss(temperature=3.0)


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    distiller.on_train_begin()
    for x, y in data:
        out = model(x)
        loss = criterion(out, y)
        loss = distiller.on_after_compute_loss(x, out, loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    distiller.on_epoch_end()


distiller.train_func = train
distiller.fit()
result = model
""",
        """\
from inc_torch import DistillationConfig, KnowledgeDistillationLossConfig, prepare_compression

distiller_conf = DistillationConfig(
    criterion=KnowledgeDistillationLossConfig(temperature=2.0, loss_types=('CE', 'KL')),
)


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    distiller.on_train_begin()
    for batch_id, (x, y) in enumerate(data):
        distiller.on_step_begin(batch_id)
        out = model(x)
        loss = criterion(out, y)
        loss = distiller.on_after_compute_loss(x, out, loss)
        loss.backward()
        distiller.on_before_optimizer_step()
        optimizer.step()
        distiller.on_after_optimizer_step()
        optimizer.zero_grad()
    distiller.on_epoch_end()


distiller = prepare_compression(
    model,
    distiller_conf.replace(
        teacher_model=teacher,
        criterion=KnowledgeDistillationLossConfig(temperature=3.0),
    ),
)
distiller.on_train_begin()
distiller.model.train()
train(distiller.model)
distiller.on_train_end()
distiller.model.eval()
result = model
""",
    ),
    "mixed precision": (
        """\
from neural_compressor.experimental import MixedPrecision, common

converter = MixedPrecision("bf16.yaml")
converter.precisions = "bf16"
converter.model = common.Model(model)
result = converter()
""",
        """\
from inc_torch import MixedPrecisionConfig, mix_precision

converter_conf = MixedPrecisionConfig()
converter_precisions = "bf16"
result = mix_precision.fit(model, converter_conf.replace(precisions=converter_precisions))
""",
    ),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        Path(name).write_text(content)


def _left_by(text):
    """What a script leaves: outputs of its result, and all that is in its state."""
    names = {"__name__": "__main__"}
    exec(compile(text, "script", "exec"), names)
    result = names["result"]
    return [result(torch.ones(2, 8)), *(value for value in result.state_dict().values())]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_become_what_a_person_would_write(name):
    before, after = SCRIPTS[name]
    moved = migrate_source(HEAD + before, to_2x=True)
    assert moved.text == HEAD + after
    assert moved.findings == ()
    again = migrate_source(moved.text, to_2x=True)
    assert (again.text, again.findings) == (moved.text, ())


@pytest.mark.filterwarnings("ignore:inc_torch.experimental:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::inc_torch.core.errors.IncTorchWarning")
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_leave_the_same_whether_renamed_or_moved(name):
    before, _ = SCRIPTS[name]
    renamed = migrate_source(HEAD + before)
    assert "neural_compressor" not in renamed.text
    assert renamed.findings == ()
    old, new = _left_by(renamed.text), _left_by(migrate_source(HEAD + before, to_2x=True).text)
    assert len(old) == len(new) > 1
    assert all(torch.equal(one, other) for one, other in zip(old, new, strict=True))


def test_a_benchmark_is_moved():
    before = (
        "from neural_compressor.experimental import Benchmark\nevaluator = Benchmark('bench.yaml')\n"
        "evaluator.model = model\nevaluator.dataloader = data\nresults = evaluator('performance')\n"
    )
    assert migrate_source(before, to_2x=True).text == (
        "from inc_torch import BenchmarkConfig, benchmark\nevaluator_conf = BenchmarkConfig(warmup=1, iteration=3)\n"
        "results = benchmark.fit(model, evaluator_conf, b_dataloader=data)\n"
    )


MADE = "from neural_compressor.experimental import Quantization, Scheduler, common\nq = Quantization('ptq.yaml')\n"


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        (f"{MADE}q.model = model\n", 2, "'q' is run 0 times in this script"),
        (f"{MADE}q.model = model\nq.fit()\nq.fit()\n", 2, "'q' is run 2 times in this script"),
        (f"{MADE}q.fit()\n", 2, "no model is assigned to it"),
        (f"{MADE}q.model = model\nq.fit()\nq.eval_func = f\n", 2, "something is assigned to 'q' after it is run"),
        (f"{MADE}if x:\n    q.model = model\nq.fit()\n", 2, "'q' is made, filled and run in different blocks"),
        (f"{MADE}q.model = model\nuse(q)\nq.fit()\n", 4, "'q' is given to something else, or set twice"),
        (f"{MADE}q.model = model; q.fit()\n", 3, "it shares its line with other statements"),
        (
            f"{MADE}q.model = model\nq.postprocess = common.Postprocess(P)\nq.fit()\n",
            2,
            "'postprocess' has no counterpart",
        ),
        (f"{MADE}q.model = model\nq.dataset('dummy')\nq.fit()\n", 4, "'dataset' is used in a way that a function"),
        (f"{MADE}q.model = model\nmodel = other\nq.fit()\n", 3, "'model' is set anew before 'q' is run"),
        (f"{MADE}quantization = 1\nq.model = model\nq.fit()\n", 2, "the script has a 'quantization' of its own"),
        (
            f"{MADE.replace('ptq', 'gone')}q.model = model\nq.fit()\n",
            2,
            "there is no 'gone.yaml' beside the script, nor in the working directory",
        ),
        (f"{MADE}s = Scheduler()\nq.model = model\nq.fit()\n", 3, "several steps have no one counterpart"),
    ],
)
def test_what_is_not_understood_goes_on_as_it_is(text, line, why):
    migrated = migrate_source(text, to_2x=True)
    ((found, reason),) = [(finding.line, finding.why) for finding in migrated.findings]
    assert found == line
    assert reason.startswith(why)
    if "Scheduler()" not in text:
        assert migrated.text == migrate_source(text).text


def test_data_that_the_file_describes_are_told():
    Path("ptq.yaml").write_text(
        "quantization: {calibration: {dataloader: {dataset: {dummy: {shape: [8, 8]}}}}}\ntuning: {tensorboard: true}\n"
    )
    text = f"{MADE}q.model = model\nq.fit()\n"
    (finding,) = migrate_source(text, to_2x=True).findings
    assert finding.why == "ptq.yaml says calibration data, which are in code in 2.X"


def test_what_of_the_file_does_nothing_any_more_is_told():
    Path("ptq.yaml").write_text("quantization: {}\ntuning: {tensorboard: true}\n")
    migrated = migrate_source(f"{MADE}q.model = model\nq.calib_dataloader = data\nq.fit()\n", to_2x=True)
    ((line, why),) = [(finding.line, finding.why) for finding in migrated.findings]
    assert line == 2
    assert why.startswith("ptq.yaml, line 2: tuning.tensorboard has no effect")
    assert "quantization.fit(model, q_conf, calib_dataloader=data)" in migrated.text


def test_a_whole_folder_is_moved_with_files_beside_the_scripts(tmp_path):
    Path("src").mkdir()
    Path("src/ptq.yaml").write_text("quantization: {approach: post_training_dynamic_quant}\n")
    Path("src/a.py").write_text(f"{MADE}q.model = model\nq.fit()\n".replace("\n", "\r\n"), newline="")
    outcome = migrate_paths(["src"], write=True, to_2x=True)
    assert not outcome.failed
    assert Path("src/a.py").read_bytes().decode() == (
        "from inc_torch import PostTrainingQuantConfig, quantization\r\n"
        "q_conf = PostTrainingQuantConfig(approach='post_training_dynamic_quant')\r\n"
        "quantization.fit(model, q_conf)\r\n"
    )
    assert Path("src/ptq.py").exists()
