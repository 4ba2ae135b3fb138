"""Whenever a process is killed, nothing half-written is taken for whole, and what was there before can be read."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest

from inc_torch.core.errors import ArtifactError
from tests.faults.children import killed_at, killed_in_the_middle_of_a_file
from tests.faults.subjects import SUBJECTS

KINDS = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
MOST_MOMENTS = 60
RANDOM_MOMENTS = 100
ALWAYS_THERE = [SUBJECTS[name] for name in SUBJECTS if name not in {"a pipeline", "teacher logits"}]
"""These are written over the earlier one; the others refuse to, so their test removes it first."""


def read_or_refused(subject, place):
    try:
        return subject.read(place)
    except ArtifactError:
        return "refused"


@KINDS
def test_killed_before_any_change_of_a_folder_over_what_was_there(subject, tmp_path):
    seen = []
    for moment in range(MOST_MOMENTS):
        place = tmp_path / str(moment)
        place.mkdir()
        subject.write(place, "first")
        code = killed_at(moment, lambda place=place: subject.write(place, "second"))
        assert code in {0, -signal.SIGKILL}
        seen.append(subject.read(place))
        if code == 0:
            break
    assert code == 0, "it is killed at every moment"
    assert len(seen) > 1
    assert seen == sorted(seen), "once the new one is there, it stays"
    assert seen[-1] == "second"


@KINDS
def test_killed_in_the_middle_of_a_file_where_nothing_was(subject, tmp_path):
    for size in (0, 100, 1500):
        place = tmp_path / str(size)
        place.mkdir()
        assert (
            killed_in_the_middle_of_a_file(size, lambda place=place: subject.write(place, "first")) == -signal.SIGXFSZ
        )
        assert read_or_refused(subject, place) in {"refused", "first"}


@pytest.mark.slow
@KINDS
def test_killed_at_random_moments(subject, tmp_path):
    """One process writes both versions in turn for ever, another one kills it; what is there is one of them."""
    draw = random.Random(5)
    subject.write(tmp_path, "first")

    def write_for_ever() -> None:
        while True:
            for version in ("second", "first"):
                for name in (f"run-{version}", f"logits-{version}"):
                    shutil.rmtree(tmp_path / name, ignore_errors=True)
                subject.write(tmp_path, version)

    for _ in range(RANDOM_MOMENTS):
        pid = os.fork()
        if pid == 0:
            write_for_ever()
        time.sleep(draw.uniform(0.0, 0.2))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if subject in ALWAYS_THERE:
            assert subject.read(tmp_path) in {"first", "second"}
        else:
            assert read_or_refused(subject, tmp_path) in {"first", "second", "refused"}
