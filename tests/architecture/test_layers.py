"""Imports go down only, as drawn in ARCHITECTURE.md; the contracts are in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT = Path(sys.executable).with_name("lint-imports")


def _lint(folder: Path) -> subprocess.CompletedProcess:
    command = [LINT, "--no-cache", "--no-logo", "--config", ROOT / "pyproject.toml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _package(folder: Path, files: dict[str, str]) -> Path:
    """Write a stand-in ``inc_torch`` that has one small module for each given path."""
    for name, text in {"__init__.py": "", **files}.items():
        path = folder / "inc_torch" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for parent in path.relative_to(folder).parents:
            if parent != Path():
                (folder / parent / "__init__.py").touch()
    return folder


def test_the_package_keeps_its_layers():
    result = _lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_folder_of_the_package_has_an_init():
    """Without one, the folder is invisible to the layer check, to mypy and to the wheel."""
    folders = {path.parent for path in (ROOT / "inc_torch").rglob("*.py")}
    missing = sorted(str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists())
    assert not missing


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"core/a.py": "import inc_torch.config.b", "config/b.py": ""}, id="upward"),
        pytest.param({"core/a.py": "def f():\n    import inc_torch.config.b", "config/b.py": ""}, id="in a function"),
        pytest.param({"pruners/a.py": "import inc_torch.quantizers.b", "quantizers/b.py": ""}, id="techniques"),
        pytest.param({"training.py": "import inc_torch.quantization", "quantization.py": ""}, id="verbs"),
        pytest.param({"training.py": "import inc_torch.testing.b", "testing/b.py": ""}, id="test kits"),
        pytest.param({"config/a.py": "import transformers"}, id="transformers below the adapters"),
        pytest.param({"training.py": "import lightning"}, id="Lightning below the adapters"),
        pytest.param({"helpers.py": ""}, id="module without a layer"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, files):
    result = _lint(_package(tmp_path, files))
    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout or "not listed" in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"config/a.py": "import inc_torch.core.b", "core/b.py": ""}, id="downward"),
        pytest.param({"cli.py": "import inc_torch.migrate", "migrate.py": ""}, id="tools"),
        pytest.param({"huggingface/a.py": "import transformers"}, id="transformers in the adapter"),
        pytest.param({"huggingface/__init__.py": "import transformers"}, id="transformers in the adapter's init"),
        pytest.param({"pipeline.py": "import transformers"}, id="transformers in pipeline"),
        pytest.param(
            {
                "core/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import inc_torch.config.b",
                "config/b.py": "",
            },
            id="only for types",
        ),
    ],
)
def test_an_allowed_import_passes(tmp_path, files):
    result = _lint(_package(tmp_path, files))
    assert result.returncode == 0, result.stdout + result.stderr
