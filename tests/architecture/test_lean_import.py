"""``import inc_torch`` must cost little beyond ``import torch``, and must not drag optional packages in."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

TORCH_ONLY = """
import json, sys
import torch
print(json.dumps({"modules": sorted(sys.modules)}))
"""

TORCH_THEN_INC_TORCH = """
import json, sys, time
import torch
start = time.perf_counter()
import inc_torch
seconds = time.perf_counter() - start
print(json.dumps({"modules": sorted(sys.modules), "seconds": seconds}))
"""

# Packages of the extras, the required ones that come in on first use, and heavy ones that these would bring along.
ON_FIRST_USE = {
    "accelerate",
    "alembic",
    "datasets",
    "huggingface_hub",
    "intel_extension_for_pytorch",
    "libcst",
    "lightning",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "pandas",
    "peft",
    "psycopg",
    "requests",
    "rich",
    "scipy",
    "sklearn",
    "sqlalchemy",
    "tokenizers",
    "torchmetrics",
    "torchvision",
    "transformers",
    "trl",
    "typer",
    "yaml",
}
MOST_OF_OTHERS, MOST_OF_OURS = 8, 161


def _measure(program: str) -> dict:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def added():
    before = set(_measure(TORCH_ONLY)["modules"])
    after = _measure(TORCH_THEN_INC_TORCH)
    return sorted(set(after["modules"]) - before), after["seconds"]


def test_import_loads_no_package_that_is_not_needed_yet(added):
    modules, _ = added
    loaded = sorted({name.partition(".")[0] for name in modules} & ON_FIRST_USE)
    assert not loaded, f"import inc_torch loads {loaded}; import them where they are first used"


def test_import_adds_few_modules_to_torch(added, note):
    modules, seconds = added
    note(f"import inc_torch: {len(modules)} modules and {1000 * seconds:.0f} ms beyond torch")
    assert "inc_torch" in modules
    ours = [name for name in modules if name.partition(".")[0] == "inc_torch"]
    others = sorted(set(modules) - set(ours))
    assert len(others) < MOST_OF_OTHERS, "\n".join(others)
    assert len(ours) < MOST_OF_OURS, "\n".join(ours)


def test_import_changes_no_torch_setting():
    program = (
        "import torch\n"
        "def look(): return (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(),"
        " torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().sum().item())\n"
        "torch.manual_seed(3); before = look()\n"
        "import inc_torch\n"
        "assert look() == before, (before, look())\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_import_prints_nothing_and_sets_no_log_handler():
    program = (
        "import logging, inc_torch\n"
        "assert not logging.getLogger().handlers, logging.getLogger().handlers\n"
        "handlers = logging.getLogger('inc_torch').handlers\n"
        "assert all(isinstance(handler, logging.NullHandler) for handler in handlers), handlers\n"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
