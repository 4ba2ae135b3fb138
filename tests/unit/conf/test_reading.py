"""YAML as it is written: lines, defaults, and what is said of mistakes."""

from __future__ import annotations

import textwrap

import pytest

from inc_torch.conf import read_conf
from inc_torch.conf.config import BenchmarkConf, PruningConf, QuantConf, conf
from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.core.plain_yaml import read_text


@pytest.fixture
def file_of(tmp_path):
    def write(text: str):
        path = tmp_path / "conf.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def message_of(path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_conf(path).translate()
    return str(caught.value).replace(str(path), "conf.yaml")


# ------------------------------------------------------------------------------ text


def test_values_and_their_lines():
    read = read_text("a: 1\nb:\n  - x\n  - {c: null}\n", "conf.yaml")
    assert read.value == {"a": 1, "b": ["x", {"c": None}]}
    assert {path: read.lines[path] for path in [("a",), ("b", 0), ("b", 1, "c")]} == {
        ("a",): 1,
        ("b", 0): 3,
        ("b", 1, "c"): 4,
    }


def test_anchors_and_merged_keys_are_followed():
    read = read_text("base: &base {x: 1, y: 2}\nown:\n  <<: *base\n  y: 3\n", "conf.yaml")
    assert read.value == {"base": {"x": 1, "y": 2}, "own": {"x": 1, "y": 3}}


def test_dates_stay_words():
    assert read_text("a: 2024-01-01\n", "conf.yaml").value == {"a": "2024-01-01"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1\n", "conf.yaml, line 2: this is no YAML: expected ',' or ']', but got '<stream end>'."),
        ("a:\n\tb: 1\n", "conf.yaml, line 2: this is no YAML: found character '\\t' that cannot start any token. "
         "YAML is indented by spaces, not by tabs."),
        ("model:\n  name: x\n  name: y\n", "conf.yaml, line 3: the key 'name' stands here a second time."),
        ("a: !!python/name:os.system\n", "conf.yaml, line 1: unknown tag 'tag:yaml.org,2002:python/name:os.system': "
         "expected plain values, or !Pruner {...}."),
        ("a: &a\n  b: *a\n", "conf.yaml, line 1: an alias stands inside of what it stands for."),
        ("- a\n", "conf.yaml, line 1: expected a mapping with sections such as quantization, pruning, distillation, "
         "not ['a']."),
    ],
)  # fmt: skip
def test_what_is_no_file_of_ours(file_of, text, expected):
    path = file_of("")
    path.write_text(text, encoding="utf-8")
    assert message_of(path) == expected


def test_a_bomb_of_aliases_is_refused_at_once(file_of):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "more than 100,000 values" in message_of(file_of("\n".join(lines)))


def test_the_file_and_other_readers_of_yaml_stay_as_they_are(file_of):
    import yaml

    path = file_of("quantization:\n  approach: static\n")
    before = path.read_bytes()
    QuantConf(path)
    assert path.read_bytes() == before
    assert yaml.safe_load("a: null") == {"a": None}
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.safe_load("!Pruner {}")


def test_a_missing_file_names_those_beside_it(tmp_path):
    (tmp_path / "ptq.yaml").write_text("")
    with pytest.raises(FileNotFoundError, match=r"there is no such file.* There are: ptq\.yaml\."):
        QuantConf(tmp_path / "pqt.yaml")


# ------------------------------------------------------------------------------ keys


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quantisation:\n", "conf.yaml, line 1: The top level has no key 'quantisation'. Did you mean 'quantization'?"),
        ("quantization:\n  aproach: x\n", "conf.yaml, line 2: 'quantization' has no key 'aproach'. Did you mean "
         "'approach'?"),
        ("quantization:\n  approach: PTQ\n", "conf.yaml, line 2: quantization.approach='PTQ': expected one of "),
        ("model:\n  framework: tensorflow\n", "conf.yaml, line 2: model.framework='tensorflow': expected one of "
         "'pytorch', 'pytorch_fx', 'pytorch_ipex', 'torch', 'NA'. inc_torch is for PyTorch only."),
        ("model_conversion:\n  source: QAT\n", "conf.yaml, line 1: model_conversion is not for PyTorch: "),
        ("tuning:\n  accuracy_criterion:\n    relative: much\n", "conf.yaml, line 3: tuning.accuracy_criterion."
         "relative='much': expected a number, or a share such as '1%', not a str."),
        ("tuning:\n  strategy:\n    name: sigopt\n", "conf.yaml, line 3: TuningCriterion.strategy='sigopt': "),
        ("evaluation:\n  accuracy:\n    metric:\n      topk: 1\n      MSE:\n", "conf.yaml, line 3: evaluation.accuracy."
         "metric has 2 entries, ['topk', 'MSE']: expected one entry."),
        ("pruning:\n  train:\n    criterion:\n      CrossEntropy:\n", "conf.yaml, line 4: 'pruning.train.criterion' "
         "has no key 'CrossEntropy'. Did you mean 'CrossEntropyLoss'?"),
        ("pruning:\n  approach:\n    weight_compression:\n      target_sparsity: 1.5\n", "conf.yaml, line 4: pruning."
         "approach.weight_compression.target_sparsity=1.5: expected a number in [0, 1)."),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(file_of, text, expected):
    assert message_of(file_of(text)).startswith(expected)


def test_a_wrong_indentation_is_guessed(file_of):
    """The file of scenario S12: 'train' stands beside 'distillation' instead of under it."""
    path = file_of("""\
        distillation:
        train:
          start_epoch: 0
        """)
    assert message_of(path).startswith(
        "conf.yaml, line 2: The top level has no key 'train'. It belongs under 'quantization' or 'pruning' or "
        "'distillation': is the line indented as it should be?"
    )


def test_dots_and_nothing_leave_a_section_out(file_of):
    read = read_conf(file_of("mixed_precision:\n  precisions: bf16\nevaluation: ...\ntuning:\n")).usr_cfg
    assert read.evaluation.accuracy is None
    assert read.tuning.exit_policy.max_trials == 100


def test_a_misspelt_attribute_is_an_error():
    with pytest.raises(AttributeError, match=r"There is no value 'exit_polcy' here\. Did you mean 'exit_policy'\?"):
        _ = QuantConf().usr_cfg.tuning.exit_polcy


def test_a_source_of_another_kind_is_refused():
    with pytest.raises(ConfigTypeError, match=r"PruningConf got 5 of type int: expected a path to YAML, a dict"):
        PruningConf(5)


# ------------------------------------------------------------------------------ objects


def test_the_global_tree_is_merged_over_the_defaults():
    try:
        conf.tuning.accuracy_criterion.absolute = 0.2
        conf.evaluation.accuracy.metric = {"topk": 5}
        assert conf.pruning.approach == {}  # only looked at
        read = QuantConf(conf)
        assert [type(config).__name__ for config in read.translate().configs] == ["PostTrainingQuantConfig"]
        assert read.translate().configs[0].accuracy_criterion.absolute == 0.2
        assert read.usr_cfg.evaluation.accuracy.metric == {"topk": 5}
        conf.tuning.acuracy_criterion.relative = 0.1
        with pytest.raises(ConfigError, match=r"'tuning' has no key 'acuracy_criterion'\. Did you mean"):
            QuantConf(conf)
    finally:
        conf.clear()


def test_one_conf_of_another_says_the_same(file_of):
    path = file_of("evaluation:\n  performance:\n    warmup: 7\n    configs:\n      num_of_instance: 2\n")
    config = BenchmarkConf(BenchmarkConf(path)).translate().configs[0]
    assert (config.warmup, config.iteration, config.num_of_instance) == (7, -1, 2)


def test_notes_are_told_once_a_translation(file_of):
    path = file_of("model:\n  name: x\n  inputs: image\nquantization:\n  advance:\n    bias_correction: x\n")
    read = QuantConf(path)
    first, second = read.translate().notes, read.translate().notes
    assert first == second
    assert [note.line for note in first] == [3, 5]
    assert str(first[0]) == "line 3: model.inputs has no effect: modules of PyTorch have no such names."
