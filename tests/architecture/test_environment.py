"""The environment that `make` builds is the one that pyproject.toml and constraints/ describe."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import inc_torch

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CI_EXTRAS = ("hf", "trainers", "dev", "docs")


def _requirements(name: str) -> list[Requirement]:
    text = (ROOT / "constraints" / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [re.sub(r"(^|\s)#.*|\s--hash=\S+", "", line).strip() for line in text.splitlines()]
    return [Requirement(line) for line in lines if line]


def test_the_version_is_the_same_everywhere():
    assert inc_torch.__version__ == PROJECT["version"] == importlib.metadata.version("inc_torch")


def test_every_direct_dependency_of_ci_is_pinned():
    pins = {canonicalize_name(requirement.name) for requirement in _requirements("main.txt")}
    wanted = list(PROJECT["dependencies"])
    for extra in CI_EXTRAS:
        wanted += PROJECT["optional-dependencies"][extra]
    missing = {canonicalize_name(Requirement(text).name) for text in wanted} - pins
    assert not missing, f"constraints/main.txt does not pin {sorted(missing)}"


@pytest.mark.parametrize("name", ["main.txt", "assets.txt"])
def test_a_constraint_is_one_exact_version(name):
    loose = [str(r) for r in _requirements(name) if not re.fullmatch(r"==[^*,]+", str(r.specifier))]
    assert not loose, f"constraints/{name}: {loose}"


def test_only_declared_packages_have_an_upper_bound():
    bounded = {
        canonicalize_name(requirement.name)
        for texts in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
        for requirement in map(Requirement, texts)
        if any(clause.operator != ">=" for clause in requirement.specifier)
    }
    assert bounded == {"torch", "intel-extension-for-pytorch"}  # both in the extra `ipex` only
    assert all(">=" in text for text in PROJECT["dependencies"])
