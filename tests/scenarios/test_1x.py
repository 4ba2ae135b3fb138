"""Snippets for 1.X: one class for each technique, told by YAML."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn
from transformers import AutoModelForSequenceClassification

import inc_torch
from inc_torch import BenchmarkConfig
from inc_torch.conf import read_conf
from inc_torch.core.errors import ArtifactError, ConfigError, InexactWarning, LoopWarning
from inc_torch.experimental import Benchmark, Distillation, MixedPrecision, Pruning, Quantization
from inc_torch.experimental.common.criterion import PyTorchKnowledgeDistillationLoss
from tests.scenarios.models import (
    bert,
    classifier,
    digits,
    fraction_of_zeros,
    glue,
    sentences,
    write,
)
from tests.scenarios.running import put, run, snippet, twice

PTQ = """
model:
  name: bert
  framework: pytorch_fx
quantization:
  approach: post_training_static_quant
tuning:
  accuracy_criterion:
    absolute: 1.0
  exit_policy:
    timeout: 0
"""
QAT = PTQ.replace("post_training_static_quant", "quant_aware_training").replace("pytorch_fx", "pytorch")
PRUNE = """
model:
  name: net
  framework: pytorch
pruning:
  approach:
    weight_compression:
      initial_sparsity: 0.0
      target_sparsity: 0.6
      start_epoch: 0
      end_epoch: 1
      pruners:
        - !Pruner
            prune_type: basic_magnitude
            names: ['bert.encoder.layer.*.attention.self.query.weight']
"""


@twice
def test_s1_ptq_of_a_hugging_face_model():
    write(PTQ)
    names = glue()
    float_model = names["model"]
    done = run("s01.py", **names)
    layer = done.model.bert.encoder.layer[0]
    assert type(layer.output.dense).__name__ == "Int8Linear"
    assert done.model.model is done.model is not float_model
    assert type(float_model.bert.encoder.layer[0].output.dense).__name__ == "Linear"
    batch = sentences(1)[0]
    loaded = AutoModelForSequenceClassification.from_pretrained("out")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, done.model(**batch).logits)
    assert Path("out/tokenizer.json").is_file()
    assert done.quantizer.strategy.reason == "trial 1 meets the goal"


@twice
def test_s4_qat_of_a_hugging_face_model():
    write(QAT)
    names = glue()
    done = run("s04.py", **names)
    assert done.model is names["model"]
    assert type(done.model.bert.encoder.layer[1].intermediate.dense).__name__ == "Int8Linear"
    assert done.model.tuning.goal.baseline == pytest.approx(names["eval_func"](bert()))


@twice
def test_s7_and_s8_pruning_with_hooks_in_a_loop_of_1x():
    write(PRUNE)
    model = bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    batches = [
        (batch["input_ids"], batch["attention_mask"], torch.zeros(8, 12), batch["labels"]) for batch in sentences(4)
    ]
    args = SimpleNamespace(num_train_epochs=3, device="cpu", n_gpu=1, gradient_accumulation_steps=2, max_grad_norm=1.0)
    with pytest.warns(LoopWarning, match="on_after_optimizer_step"):
        done = run(
            "s07_s08.py",
            model=model,
            train_dataloader=batches,
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0),
            args=args,
            torch=torch,
        )
    assert done.model is model
    queries = [layer.attention.self.query for layer in model.bert.encoder.layer]
    assert [fraction_of_zeros(query) for query in queries] == [614 / 1024] * 2  # floor(0.6 * 1024) in each
    assert fraction_of_zeros(model.bert.encoder.layer[0].attention.self.key) == 0.0
    assert done.prune.report().sparsity == pytest.approx(0.6, abs=1e-3)
    assert done.prune.last_score is None


@twice
def test_s12_the_file_says_that_it_is_indented_wrongly():
    put("s12.yaml")
    with pytest.raises(ConfigError, match=r"conf\.yaml, line 2: The top level has no key 'train'\. It belongs under"):
        Distillation("conf.yaml")


@twice
def test_s12_indented_as_it_should_be():
    put("s12_indented.yaml")
    before = Path("conf.yaml").read_bytes()
    distiller = Distillation("conf.yaml")
    assert Path("conf.yaml").read_bytes() == before
    train = distiller.train_cfg
    assert (train.start_epoch, train.end_epoch, train.iteration) == (0, 10, 100)
    assert train.optimizer.SGD.learning_rate == 0.1
    (config,) = distiller.conf.translate().configs
    assert config.criterion.loss_types == ("CE", "KL")


@twice
def test_s12_trains_by_itself_with_loaders_given_in_code():
    put("s12_indented.yaml")
    settings = yaml.safe_load(Path("conf.yaml").read_text())
    del settings["evaluation"]["accuracy"]["dataloader"]
    distiller = Distillation(settings)
    distiller.student_model, distiller.teacher_model = classifier(), classifier(1)
    distiller.train_dataloader = distiller.eval_dataloader = digits()
    student = distiller.fit()
    assert distiller.best_score >= distiller.baseline_score
    assert distiller.last_score == distiller.best_score
    with torch.no_grad():
        right = [student(inputs).argmax(1) == labels for inputs, labels in digits()]
    assert float(torch.cat(right).float().mean()) == pytest.approx(distiller.best_score)
    assert distiller.best_score > 0.9


@twice
def test_s13_distillation_with_logits_of_the_teacher_given():
    put("s12_indented.yaml")
    settings = yaml.safe_load(Path("conf.yaml").read_text())
    del settings["evaluation"]  # its data are not here
    Path("conf.yaml").write_text(yaml.safe_dump(settings))

    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.head = nn.Embedding(32, 8), nn.Linear(8, 3)

        def forward(self, input_ids, segment_ids, input_mask):
            return self.head((self.embedding(input_ids) * input_mask.unsqueeze(-1)).mean(1))

    class Teacher(nn.Module):
        def forward(self, *inputs, **more):
            raise AssertionError("its logits were given")

    def batch(seed):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 32, (8, 12), generator=generator)
        target = torch.randint(0, 3, (8,), generator=generator)
        return torch.randn(8, 3, generator=generator), ids, torch.zeros_like(ids), torch.ones(8, 12), target

    model = Student()
    start = model.head.weight.detach().clone()
    losses = []

    class Criterion(nn.CrossEntropyLoss):
        def forward(self, output, target):
            losses.append((output.detach().clone(), target))
            return super().forward(output, target)

    done = run(
        "s13.py",
        model=model,
        teacher=Teacher(),
        epochs=2,
        iters=3,
        train_dataloader=[batch(seed) for seed in range(5)],
        criterion=Criterion(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        tqdm=lambda items, desc: items,
    )
    assert done.model is model
    assert len(losses) == 6
    assert not torch.equal(model.head.weight, start)
    # The first step, by hand: half of each cross entropy.
    teacher_logits, ids, segments, mask, target = batch(0)
    twin = Student()
    output = twin(ids, segments, mask)
    soft = -(teacher_logits.softmax(-1) * output.log_softmax(-1)).sum(-1).mean()
    loss = 0.5 * nn.functional.cross_entropy(output, target) + 0.5 * soft
    loss.backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    _, ids, segments, mask, _ = batch(1)
    assert torch.allclose(twin(ids, segments, mask), losses[1][0], atol=1e-6)


class Pairs:
    """A data set as the snippets describe it."""

    def __init__(self, count: int = 64):
        batches = digits(count // 16)
        self.inputs = torch.cat([inputs for inputs, _ in batches])
        self.labels = torch.cat([labels for _, labels in batches])

    def __getitem__(self, index):
        return self.inputs[index], self.labels[index]

    def __len__(self):
        return len(self.labels)


class Right:
    def __init__(self):
        self.reset()

    def reset(self):
        self.right = self.all = 0

    def update(self, predict, label):
        self.right += int((torch.as_tensor(predict).argmax(1) == torch.as_tensor(label)).sum())
        self.all += len(label)

    def result(self):
        return self.right / self.all


@twice
def test_s16_and_s17_mixed_precision():
    put("s17.yaml")
    seed = inc_torch.options.random_seed
    with pytest.warns(InexactWarning, match=r"line 4: model\.inputs has no effect: modules of PyTorch have no such"):
        done = run("s16.py", model=classifier(), Dataset=Pairs, Metric=Right)
    assert done.output_model[0].weight.dtype == torch.bfloat16
    assert done.output_model(torch.ones(1, 8)).dtype == torch.float32
    assert done.output_model.tuning.goal.baseline > 0
    assert inc_torch.options.random_seed == seed


def test_s16_a_model_of_tensorflow_is_named_as_such():
    with pytest.raises(ArtifactError, match=r"'model\.pb' is a model of TensorFlow"):
        MixedPrecision().model = "./model.pb"


def test_s17_as_the_documentation_has_it():
    write(snippet("s17.yaml").replace("framework: pytorch", "framework: tensorflow"))
    with pytest.raises(ConfigError, match=r"conf\.yaml, line 3: model\.framework='tensorflow': .*for PyTorch only"):
        MixedPrecision("conf.yaml")


@twice
def test_s22_the_file_of_a_benchmark():
    put("s22.yaml")
    before = Path("conf.yaml").read_bytes()
    (config,) = read_conf("conf.yaml").translate().configs
    assert Path("conf.yaml").read_bytes() == before
    assert config == BenchmarkConfig(
        warmup=10,
        iteration=100,
        cores_per_instance=4,
        num_of_instance=7,
        inter_num_of_threads=1,
        intra_num_of_threads=4,
    )


@twice
def test_s23_a_benchmark(capfd):
    text = snippet("s22.yaml").replace("cores_per_instance: 4", "cores_per_instance: 1")
    text = text.replace("num_of_instance: 7", "num_of_instance: 1").replace("intra_num_of_threads: 4", "")
    write(text.replace("iteration: 100", "iteration: 30"), "config.yaml")

    class Shift:
        def __call__(self, sample):
            output, label = sample
            return output, (label + 1) % 4

    with pytest.warns(InexactWarning, match="inputs has no effect"):
        done = run(
            "s23.py",
            model=classifier(),
            Dataset=Pairs,
            batch_size=4,
            postprocess_cls=Shift,
            metric_cls=Right,
        )
    accuracy, batch_size, seconds = done.results["performance"]
    assert (batch_size, len(seconds)) == (4, 20)
    model, data = classifier(), Pairs()
    expected = float((model(data.inputs).argmax(1) == (data.labels + 1) % 4).float().mean())
    assert accuracy == pytest.approx(expected)
    assert done.evaluator.results is done.results
    assert "Throughput" in capfd.readouterr().out


def test_s23_without_a_model():
    with pytest.raises(ConfigError, match=r"Benchmark has no model: assign one, benchmark\.model = model\."):
        Benchmark()()


@twice
def test_s27_the_typical_launcher(tmp_path):
    write(PTQ)
    directory = tmp_path / "saved"
    bert().save_pretrained(directory)
    batches = sentences(4)
    samples = [
        ({key: batch[key][row] for key in ("input_ids", "attention_mask")}, batch["labels"][row])
        for batch in batches
        for row in range(8)
    ]
    text = snippet("s27.py").replace("/path/to/model", str(directory)).replace("/path/to/output/dir", "out")
    namespace = {"read": lambda *_: samples, "torch": torch}
    exec(compile(text, "s27.py", "exec"), namespace)
    quantized = namespace["q_model"]
    assert type(quantized.bert.encoder.layer[0].output.dense).__name__ == "Int8Linear"
    assert 0 <= quantized.tuning.goal.baseline <= 1
    loaded = inc_torch.load("out", model=bert(1))
    batch = sentences(1)[0]
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, quantized(**batch).logits)


# ------------------------------------------------------------------------------ S26, S28, S29


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            Quantization,
            ["calib_dataloader", "eval_dataloader", "model", "metric", "postprocess", "q_func", "eval_func"],
        ),
        (Pruning, ["model", "q_func", "train_func", "pruning_func"]),
        (Benchmark, ["model", "metric", "b_dataloader", "dataloader", "postprocess"]),
    ],
)
def test_s26_s28_s29_attributes_can_be_assigned_and_read(kind, names):
    made = kind()
    for name in names:
        value = classifier() if name == "model" else print if name.endswith("func") else digits()
        setattr(made, name, value)
        assert getattr(made, name) is value
    with pytest.raises(AttributeError, match=rf"{kind.__name__} has no attribute 'modle'\. Did you mean 'model'"):
        made.modle = classifier()
    assert callable(made)
    if kind is Pruning:
        assert all(callable(getattr(made, f"on_{hook}")) for hook in ("epoch_begin", "step_begin", "step_end"))


def test_the_criterion_of_s13_says_its_defaults():
    criterion = PyTorchKnowledgeDistillationLoss()
    assert (criterion.temperature, criterion.loss_types, criterion.loss_weights) == (1.0, ("CE", "CE"), (0.5, 0.5))
