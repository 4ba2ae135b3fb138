"""Run the examples that stand in the docstrings."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

# A module that needs one of these cannot be imported everywhere; any other failure to import is an error.
OPTIONAL = {
    "intel_extension_for_pytorch",
    "libcst",
    "lightning",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "peft",
    "psycopg",
    "scipy",
    "torchmetrics",
    "torchvision",
    "trl",
}


NOISY = {
    # Lightning's _pytree.py asks for a class that torch has deprecated
    "inc_torch.lightning._callback": "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning",
}


def _modules() -> list[str]:
    paths = sorted((ROOT / "inc_torch").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.name != "__main__.py"]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.filterwarnings(NOISY[name]) if name in NOISY else []) for name in _modules()],
)
def test_docstring_examples(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OPTIONAL:
            pytest.skip(f"needs {error.name}")
        raise
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(example, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_the_package_has_examples_to_run():
    """Guard the test above: it must not pass because nothing is found."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "inc_torch").rglob("*.py")]
    assert any(re.search(r"^\s+>>> ", source, re.MULTILINE) for source in sources)
