"""The package's name, and what is taken from it."""

from __future__ import annotations

import pytest

from inc_torch.migrate import migrate_source


def told(text):
    return [(finding.line, finding.what, finding.why) for finding in migrate_source(text).findings]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import neural_compressor\n", "import inc_torch\n"),
        ("import neural_compressor as nc\nnc.quantization.fit\n", "import inc_torch as nc\nnc.quantization.fit\n"),
        ("import os, neural_compressor.training as t\n", "import os, inc_torch.training as t\n"),
        ("from neural_compressor import quantization as q\n", "from inc_torch import quantization as q\n"),
        (
            "from neural_compressor.training import (  # both\n    fit,\n    prepare_compression as prepare,\n)\n",
            "from inc_torch.training import (  # both\n    fit,\n    prepare_compression as prepare,\n)\n",
        ),
        (
            "import neural_compressor.training, neural_compressor.config\n"
            "x = neural_compressor.training.fit; y = (neural_compressor . config.options)\nprint(neural_compressor)\n",
            "import inc_torch.training, inc_torch.config\n"
            "x = inc_torch.training.fit; y = (inc_torch . config.options)\nprint(inc_torch)\n",
        ),
        (
            "def f():\n    from neural_compressor import quantization\n    return quantization.fit\n",
            "def f():\n    from inc_torch import quantization\n    return quantization.fit\n",
        ),
        (
            "try:\n\timport neural_compressor\nexcept ImportError:\n\tneural_compressor = None\n",
            "try:\n\timport inc_torch as neural_compressor\nexcept ImportError:\n\tneural_compressor = None\n",
        ),
        (
            "from neural_compressor.utils.pytorch import load\nfrom neural_compressor.metric import METRICS\n",
            "from inc_torch.utils.pytorch import load\nfrom inc_torch.metric import METRICS\n",
        ),
        (
            "# neural_compressor\nx = 'about neural_compressor'\n",
            "# neural_compressor\nx = 'about neural_compressor'\n",
        ),
        ("from .neural_compressor import mine\n", "from .neural_compressor import mine\n"),
        ("from intel_extension_for_pytorch import x\n", "from intel_extension_for_pytorch import x\n"),
        ("neural_compressor_version = 1\n", "neural_compressor_version = 1\n"),
    ],
)
def test_names(before, after):
    assert migrate_source(before).text == after
    assert migrate_source(after).text == after
    assert told(before) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "from neural_compressor.config import (\n    PostTrainingQuantConfig,\n    PostTrainingQuantConfg,\n)\n",
            (3, "PostTrainingQuantConfg", "inc_torch.config has no 'PostTrainingQuantConfg'"),
        ),
        ("import neural_compressor.adaptor.pytorch\n", (1, "neural_compressor.adaptor.pytorch", "it was INC's inside")),
        (
            "import neural_compressor as nc\nnc.quantization.fit\n\nnc.strategy.basic\n",
            (4, "nc.strategy.basic", "it was INC's inside"),
        ),
        (
            "from neural_compressor.torch.quantization import RTNConfig\n",
            (
                1,
                "from neural_compressor.torch.quantization import RTNConfig",
                "it is the 3.X API, which is not replaced here",
            ),
        ),
        (
            "from neural_compressor import *\n",
            (1, "from neural_compressor import *", "what a star brings is another set of names"),
        ),
        (
            "import neural_compressor\nassert neural_compressor.__version__ > '2'\n",
            (2, "neural_compressor.__version__", "inc_torch counts its own versions"),
        ),
        (
            "from neural_compressor import quantization\nquantization.fitt(1)\n",
            (2, "quantization.fitt", "inc_torch.quantization has no 'fitt'"),
        ),
    ],
)
def test_an_import_stays_whole_if_something_of_it_is_missing(text, expected):
    assert migrate_source(text).text == text
    assert told(text) == [expected]


def test_what_to_do_names_the_nearest():
    (finding,) = migrate_source("from neural_compressor.quantization import fitt").findings
    assert finding.todo == "Did you mean 'fit'? The import is left as it is until then."


def test_what_to_do_names_the_module_that_has_it():
    (finding,) = migrate_source("from neural_compressor.experimental.data.datasets import x").findings
    assert finding.why == "inc_torch.experimental has no 'data'"
    assert finding.todo.startswith("Take it from inc_torch.data. ")


def test_other_imports_of_the_same_file_are_renamed():
    text = "from neural_compressor.ux import gui\nfrom neural_compressor import quantization\n"
    assert migrate_source(text).text == "from neural_compressor.ux import gui\nfrom inc_torch import quantization\n"


def test_module_paths_in_strings_are_told():
    text = "import importlib\nimportlib.import_module('neural_compressor.quantization')\n"
    assert migrate_source(text).text == text
    (finding,) = migrate_source(text).findings
    assert (finding.line, finding.todo) == (2, "If it names the module: 'inc_torch.quantization'.")


@pytest.mark.parametrize(
    ("line", "page"),
    [
        ("from optimum.intel import INCTrainer", "docs/training_loops.md"),
        ("from optimum import intel", "docs/training_loops.md"),
        ("from optimum.intel.neural_compressor import INCQuantizer", "docs/quantization.md"),
        ("import sparseml.pytorch as s", "docs/pruning.md"),
        ("from nncf import NNCFConfig", "docs/pruning.md"),
        ("import intel_extension_for_transformers", "docs/training_loops.md"),
    ],
)
def test_other_packages_are_told_with_the_page_to_read(line, page):
    migrated = migrate_source(f"{line}\n")
    assert migrated.text == f"{line}\n"
    (finding,) = migrated.findings
    assert finding.line == 1
    assert page in finding.todo


def test_a_line_that_was_looked_at_is_not_told_again():
    assert told("import nncf  # inc-torch: keep\nimport nncf\n") == [
        (2, "import nncf", "its configuration has other units than that of inc_torch")
    ]
