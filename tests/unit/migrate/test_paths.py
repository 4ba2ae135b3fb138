"""Many files: which are read, how they are written, and what becomes of those that fail."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from inc_torch.migrate import migrate_paths

OLD, NEW = "from neural_compressor import quantization", "from inc_torch import quantization"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_directories_are_walked_without_other_peoples_code(folder):
    for name in ("a.py", "sub/b.py", ".git/c.py", "venv/d.py", "own/pyvenv.cfg", "own/e.py", "__pycache__/f.py"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(OLD)
    Path("notes.txt").write_text(OLD)
    Path("conf.yaml").write_text("quantization: {}\n")
    outcome = migrate_paths(["."], write=True)
    assert [file.path.as_posix() for file in outcome.files] == ["a.py", "sub/b.py"]
    assert outcome.skipped == 2
    assert Path("sub/b.py").read_text() == NEW
    assert Path("venv/d.py").read_text() == OLD


def test_nothing_is_written_without_being_asked(folder):
    Path("a.py").write_text(OLD)
    outcome = migrate_paths(["a.py"])
    assert len(outcome.changed) == 1
    assert Path("a.py").read_text() == OLD
    assert [path.name for path in Path().iterdir()] == ["a.py"]


def test_a_second_run_changes_nothing(folder):
    Path("a.py").write_text(OLD)
    migrate_paths(["a.py"], write=True)
    before = Path("a.py").stat().st_mtime_ns
    assert migrate_paths(["a.py"], write=True).changed == []
    assert Path("a.py").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("content", "written"),
    [
        (f"{OLD}\r\nx = 'é'\r\n".encode(), f"{NEW}\r\nx = 'é'\r\n".encode()),
        (
            f"# coding: latin-1\n{OLD}\nx = 'é'\n".encode("latin-1"),
            f"# coding: latin-1\n{NEW}\nx = 'é'\n".encode("latin-1"),
        ),
        (b"\xef\xbb\xbf" + f"{OLD}\n".encode(), b"\xef\xbb\xbf" + f"{NEW}\n".encode()),
        (f"#!/usr/bin/env python\n{OLD}".encode(), f"#!/usr/bin/env python\n{NEW}".encode()),
        (f"{OLD}\rx = 1\r".encode(), f"{NEW}\rx = 1\r".encode()),
    ],
    ids=["CRLF", "latin-1", "byte order mark", "no newline at the end", "CR"],
)
def test_bytes_that_are_not_meant_stay(folder, content, written):
    Path("a.py").write_bytes(content)
    migrate_paths(["a.py"], write=True)
    assert Path("a.py").read_bytes() == written


def test_mode_and_links_stay(folder):
    Path("real").mkdir()
    Path("real/a.py").write_text(OLD)
    Path("real/a.py").chmod(0o750)
    Path("a.py").symlink_to("real/a.py")
    migrate_paths(["a.py"], write=True)
    assert Path("a.py").is_symlink()
    assert Path("real/a.py").read_text() == NEW
    assert stat.S_IMODE(Path("real/a.py").stat().st_mode) == 0o750
    assert [path.name for path in Path("real").iterdir()] == ["a.py"]


def test_files_that_fail_are_told_and_the_others_go_on(folder):
    Path("bad.py").write_text(f"{OLD}\nprint 'x'\n")
    Path("bytes.py").write_bytes(OLD.encode() + b"\n# \xff\n")
    Path("cookie.py").write_text(f"# coding: nonsense\n{OLD}\n")
    Path("good.py").write_text(OLD)
    outcome = migrate_paths(["bad.py", "bytes.py", "cookie.py", "good.py", "gone.py"], write=True)
    assert [file.path.name for file in outcome.failed] == ["bad.py", "bytes.py", "cookie.py", "gone.py"]
    begins = ["line 2: ", "'utf-8' codec can't decode byte 0xff", "unknown encoding", "No such file or directory"]
    for file, begin in zip(outcome.failed, begins, strict=True):
        assert file.error.startswith(begin)
    assert Path("bad.py").read_text().startswith(OLD)
    assert Path("good.py").read_text() == NEW


def test_a_file_that_cannot_be_written_is_told(folder, monkeypatch):
    Path("a.py").write_text(OLD)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    (file,) = migrate_paths(["a.py"], write=True).failed
    assert file.error == "Permission denied"
    assert not file.is_changed


def test_a_write_that_breaks_off_leaves_the_file_and_nothing_beside_it(folder, monkeypatch):
    Path("a.py").write_text(OLD)

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copymode", refuse)
    (file,) = migrate_paths(["a.py"], write=True).failed
    assert file.error == "No space left on device"
    assert Path("a.py").read_text() == OLD
    assert [path.name for path in Path().iterdir()] == ["a.py"]


def test_the_diff_is_one_that_git_applies(folder):
    contents = {
        "crlf.py": f"{OLD}\r\nx = 1\r\n",
        "sub/end.py": f"x = 1\n{OLD}",
        "tabs.py": f"def f():\n\t{OLD}\n\treturn 1\n",
    }
    for name, content in contents.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content.encode())
    outcome = migrate_paths(["."])
    Path("patch").write_bytes("".join(file.diff() for file in outcome.changed).encode())
    subprocess.run(["git", "init", "-q", "."], check=True)
    subprocess.run(["git", "apply", "patch"], check=True)
    for name, content in contents.items():
        assert Path(name).read_bytes() == content.replace(OLD, NEW).encode()


def test_notebooks_are_told_by_name(folder):
    Path("a.ipynb").write_text('{"cells": ["import neural_compressor"]}')
    Path("b.ipynb").write_text('{"cells": []}')
    outcome = migrate_paths(["."])
    (finding,) = [finding for file in outcome.files for finding in file.findings]
    assert finding.at("a.ipynb").splitlines() == [
        "a.ipynb  a.ipynb",
        "    why    notebooks are not read",
        "    to do  Write it as a script: jupyter nbconvert --to script a.ipynb, and migrate that.",
    ]


# ------------------------------------------------------------------------------ YAML

PTQ = """\
model: {name: bert, framework: pytorch_fx}
quantization:
  approach: post_training_static_quant
  calibration:
    sampling_size: 100, 200
    dataloader:
      dataset: {ImageFolder: {root: data}}
tuning:
  random_seed: 9527
  workspace: {path: runs}
  accuracy_criterion: {relative: 0.02}
  tensorboard: true
evaluation:
  accuracy:
    metric: {topk: 5}
"""


def test_yaml_becomes_a_module_that_says_the_same(folder):
    from inc_torch import PostTrainingQuantConfig, options
    from inc_torch.config import AccuracyCriterion

    Path("ptq-bert.yaml").write_text(PTQ)
    (file,) = migrate_paths(["ptq-bert.yaml"], write=True).files
    before = options.random_seed, options.workspace
    names = {}
    try:
        exec(Path("ptq_bert.py").read_text(), names)
        assert (options.random_seed, options.workspace) == (9527, "runs")
    finally:
        options.random_seed, options.workspace = before
    assert names["conf"] == PostTrainingQuantConfig(
        calibration_sampling_size=(100, 200), accuracy_criterion=AccuracyCriterion(tolerable_loss=0.02)
    )
    assert names["eval_metric"] == {"topk": 5}
    assert [(finding.line, finding.why.partition(":")[0]) for finding in file.findings] == [
        (6, "data come from code now"),
        (12, "tuning.tensorboard has no effect"),
    ]
    assert "# ptq-bert.yaml, line 6: data come from code now" in Path("ptq_bert.py").read_text()
    assert Path("ptq-bert.yaml").read_text() == PTQ
    assert migrate_paths(["ptq-bert.yaml"], write=True).changed == []


def test_several_techniques_become_a_list(folder):
    from inc_torch import DistillationConfig, QuantizationAwareTrainingConfig, WeightPruningConfig

    Path("all.yml").write_text(
        "quantization: {approach: quant_aware_training}\n"
        "pruning: {approach: {weight_compression: {target_sparsity: 0.8, end_epoch: 3}}}\n"
        "distillation: {train: {criterion: {KnowledgeDistillationLoss: {temperature: 2.0}}}}\n"
    )
    migrate_paths(["all.yml"], write=True)
    names = {}
    exec(Path("all.py").read_text(), names)
    quantization, pruning, distillation = names["confs"]
    assert quantization == QuantizationAwareTrainingConfig()
    assert isinstance(pruning, WeightPruningConfig)
    assert (pruning.target_sparsity, pruning.end_step, pruning.clock) == (0.8, 3, "epoch")
    assert isinstance(distillation, DistillationConfig)
    assert distillation.criterion.temperature == 2.0


def test_a_module_that_is_there_is_never_written_over(folder):
    Path("conf.yaml").write_text("quantization: {}\n")
    Path("conf.py").write_text("mine = 1\n")
    (file,) = migrate_paths(["conf.yaml"], write=True).failed
    assert file.error == "conf.py is there already and says something else. Move it away, or compare the two by hand."
    assert Path("conf.py").read_text() == "mine = 1\n"


def test_wrong_yaml_is_told_with_its_line(folder):
    Path("conf.yaml").write_text("quantization:\n  approach: nonsense\n")
    (file,) = migrate_paths(["conf.yaml"]).failed
    assert file.error.startswith("line 2: quantization.approach='nonsense'")


def test_yaml_for_something_else_is_not_read(folder):
    Path("compose.yaml").write_text("services: {}\n")
    Path("conf.yaml").write_text("quantization: {}\n")
    outcome = migrate_paths(["."], to_2x=True)
    assert [file.target.name for file in outcome.changed] == ["conf.py"]
    assert outcome.skipped == 1
