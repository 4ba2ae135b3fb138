"""The wheel holds the whole package and nothing else, and works outside this checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "inc_torch"

pytestmark = pytest.mark.slow


def _run(*command: object, cwd: Path) -> str:
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build from a copy, so that no build folder is left behind and no old one is picked up."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for path in PACKAGE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    _run(sys.executable, "-m", "pip", "-qq", "wheel", "--no-deps", "-w", target, source, cwd=target)
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        licenses = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == expected
    assert "inc_torch/py.typed" in packed
    assert licenses


def test_the_wheel_works_in_a_clean_environment(wheel, tmp_path):
    clean = tmp_path / "venv"
    venv.create(clean, with_pip=False)
    python = clean / "bin" / "python"
    _run(sys.executable, "-m", "pip", "-qq", "--python", python, "install", "--no-deps", wheel, cwd=tmp_path)
    # Lend it torch and the rest. Path files of a folder added like this are not read, so this checkout's own
    # editable installation stays out.
    (site_packages,) = (clean / "lib").glob("python*/site-packages")
    (site_packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    program = (
        "import importlib.metadata, inc_torch, torch\n"
        "assert inc_torch.__version__ == importlib.metadata.version('inc_torch')\n"
        "for name in inc_torch.__all__: getattr(inc_torch, name)\n"
        "print(inc_torch.__file__)\n"
    )
    where = Path(_run(python, "-I", "-c", program, cwd=tmp_path).strip())
    assert where.is_relative_to(clean), where
