"""No file names a folder of somebody's machine or the host of a package registry."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Written in pieces, so that this file does not find itself.
_FOLDERS = "|".join(["work", "root", "home"])
_HOSTS = "|".join(["pypi" + r"\.org", "python" + r"hosted\.org", "download" + r"\.pytorch\.org", "npm" + r"js\.org"])
_OPTIONS = "|".join(["--index" + "-url", "--extra-index" + "-url", "--find" + "-links", "--trusted" + "-host"])
PRIVATE = re.compile(rf"(?<![\w.~$)}}*-])/(?:{_FOLDERS})/|(?:{_HOSTS})|(?:{_OPTIONS})\b")


def _project_files() -> list[Path]:
    """List the files that are tracked, or will be once they are added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


def _offences(name: str, text: str) -> list[str]:
    lines = enumerate(text.splitlines(), start=1)
    return [f"{name}:{number}: {line.strip()[:120]}" for number, line in lines if PRIVATE.search(line)]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout: cannot tell which files are ours")
def test_no_file_names_a_machine_or_a_registry():
    files = _project_files()
    assert any(path.name == "pyproject.toml" for path in files)
    offences = []
    for path in files:
        offences += _offences(str(path.relative_to(ROOT)), path.read_bytes().decode("utf-8", errors="ignore"))
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize(
    "line",
    [
        "model = '/" + "root/.cache/model'",
        "see /" + "work/data",
        "/" + "home/me/file",
        "https://" + "pypi" + ".org/simple",
        "pip install --index" + "-url=x",
    ],
)
def test_an_offence_is_found(line):
    assert _offences("file", line)


@pytest.mark.parametrize("line", ["model/root/head", "./work/x", "framework/", "tests/home/x", "${WORK}/root/"])
def test_innocent_text_passes(line):
    assert not _offences("file", line)
