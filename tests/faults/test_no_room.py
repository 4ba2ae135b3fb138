"""A full disk and a read-only folder: an error that says so, the old content, and nothing left beside it."""

from __future__ import annotations

import os

import pytest

from inc_torch.core.errors import UnwritableError
from tests.faults.children import in_child, no_room, nobody
from tests.faults.subjects import SUBJECTS

KINDS = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
ONLY_NEW = {"a pipeline", "teacher logits"}
LEFT_OVERS = (".unfinished", ".part", ".previous")


def tree(place):
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def left_over(place):
    return [str(path) for path in place.rglob("*") if any(end in path.name for end in LEFT_OVERS)]


@KINDS
@pytest.mark.parametrize("size", [0, 1000])
def test_a_full_disk_is_said_and_changes_nothing(subject, size, tmp_path):
    subject.write(tmp_path, "first")
    before = tree(tmp_path)

    def write() -> None:
        with (
            no_room(size),
            pytest.raises(UnwritableError, match=r"could not be written: .*[Ff]ile too large.* Make room"),
        ):
            subject.write(tmp_path, "second")

    assert in_child(write) == 0
    after = tree(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert not left_over(tmp_path)
    if subject not in [SUBJECTS[name] for name in ONLY_NEW]:
        assert after == before
        assert subject.read(tmp_path) == "first"


@KINDS
def test_a_read_only_folder_is_said_and_nothing_changes(subject, tmp_path, monkeypatch):
    subject.write(tmp_path, "first")
    for folder in (tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)  # parents of the folder are not looked at, which may be closed to others

    def write() -> None:
        place = type(tmp_path)()
        with nobody(), pytest.raises(UnwritableError, match=r"Permission denied.*(may|right to) write"):
            subject.write(place, "second")

    try:
        assert in_child(write) == 0
    finally:
        for path, _, _ in os.walk(tmp_path):
            os.chmod(path, 0o755)  # noqa: PTH101
    assert tree(tmp_path) == before
    assert subject.read(tmp_path) == "first"
