"""Long use leaves nothing behind: neither memory, nor hooks, threads, files, warnings or changed settings."""

from __future__ import annotations

import gc
import logging
import tempfile
import weakref

import pytest
import torch
import torch.nn.functional as F

from inc_torch import prepare_compression
from tests.loops.driver import ConvNet, images, train
from tests.soak.cycles import KINDS, LENGTHS, STEPS, confs, kinds
from tests.soak.ledger import grown, random_states


@pytest.fixture(autouse=True)
def _places(tmp_path, monkeypatch):
    """Folders of their own for what is written here and for temporary files."""
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture(autouse=True)
def _fresh_heap(monkeypatch):
    """The garbage collector passes over all that there is already, which takes its time; pytest keeps no records."""
    gc.freeze()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
    yield
    gc.unfreeze()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", kinds())
def test_cycles_leave_nothing_behind(name, length, tmp_path, note):
    kind = KINDS[name]
    growth = grown(kind.make(tmp_path), max(length // kind.costs, 5))
    note(str(growth))
    growth.require_none(is_captured=kind.is_captured, foreign=kind.foreign)


@pytest.mark.parametrize("name", kinds(keeping=False))
def test_what_is_thrown_away_is_freed(name, tmp_path, note):
    cycle = KINDS[name].make(tmp_path)
    gc.collect()
    gc.disable()
    try:
        references = [weakref.ref(entry) for entry in cycle()]
        waiting = [type(alive).__name__ for reference in references if (alive := reference()) is not None]
        alive = None
    finally:
        gc.enable()
    note(f"freed at once: {len(references) - len(waiting)}; by the garbage collector: {', '.join(waiting) or 'none'}")
    gc.collect()
    assert [type(reference()).__name__ for reference in references if reference() is not None] == []


def _plain(teacher: torch.nn.Module | None) -> None:
    model = ConvNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    torch.manual_seed(11)
    for inputs, labels in images(STEPS):
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("letters", ["p", "q", "d", "l", "h", "pqdlh"])
def test_random_numbers_go_on_as_without_compression(letters):
    """Dropout draws in these loops; what compresses draws nothing, before, in or after them."""
    teacher = ConvNet(1).eval()
    _plain(teacher)
    expected = random_states()
    model = ConvNet()
    before = random_states()
    manager = prepare_compression(model, confs(letters, teacher))
    assert random_states() == before
    train(manager, torch.optim.AdamW(model.parameters(), lr=0.01), images(STEPS))
    manager.report()
    manager.state_dict()
    assert random_states() == expected
