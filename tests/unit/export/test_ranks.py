"""Several processes: one writes, the others wait, and a model that is spread over them is put together."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from inc_torch.core.errors import ArtifactError
from inc_torch.core.report import CompressionReport
from inc_torch.export import attached_report, load, save
from inc_torch.export._ranks import write_once
from tests.distributed.worlds import run_world


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Embedding(7, 6)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6, bias=False))
        self.head = nn.Linear(6, 7)
        self.head.weight = self.rows.weight
        self.register_buffer("count", torch.tensor(3))

    def forward(self, ids):
        return self.head(self.body(self.rows(ids)))


IDS = torch.tensor([[0, 3, 6]])


def save_from_two(folder):
    """Save a sharded model, then from the first rank alone, then fail; return what happened."""
    model = Tied()
    with torch.no_grad():
        model.body[0].weight[:3] = 0
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model.body, mesh=mesh)
    fully_shard(model, mesh=mesh)
    before = model(IDS)
    save(model, folder / "saved")
    loaded = load(folder / "saved", model=Tied())  # on every rank, right away
    report = CompressionReport.measure(loaded)
    results = {
        "equal": torch.equal(loaded(IDS), before),
        "still_runs": torch.equal(model(IDS), before),
        "tied": loaded.head.weight is loaded.rows.weight,
        "kinds": sorted({row.kind for row in attached_report(loaded).modules}),
        "zeros": [row.zeros for row in report.modules],
        "class": (folder / "saved" / "compression.json").read_text().count('"class": "Tied"'),
    }
    if distributed.get_rank() == 0:
        save(Tied(), folder / "alone")  # returns, though the other rank does not come
    (folder / "file").touch()
    try:
        save(model, folder / "file")
    except ArtifactError as error:
        results["error"] = str(error)
    return results


def test_two_processes(tmp_path):
    results = run_world(save_from_two, 2, tmp_path)
    assert "is a file: expected a directory" in results[0].pop("error")
    assert "was not saved: the process of rank 0, which writes it, failed" in results[1].pop("error")
    for result in results:
        assert result.pop("zeros")[1] == 18
        assert result == {
            "equal": True,
            "still_runs": True,
            "tied": True,
            "kinds": ["Embedding", "Linear"],
            "class": 1,
        }
    assert load(tmp_path / "alone", model=Tied())(IDS).shape == (1, 3, 7)


@pytest.fixture
def as_rank(monkeypatch):
    """Let each thread be a rank of its own, with one store for all."""
    store, here = distributed.HashStore(), threading.local()
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(distributed, "get_rank", lambda group=None: here.rank)
    monkeypatch.setattr(distributed.distributed_c10d, "_get_default_store", lambda: store)
    # Each process counts for itself.
    monkeypatch.setattr("inc_torch.export._ranks._WRITES", _CountsByRank(here))

    def run(rank, *arguments):
        here.rank = rank
        write_once(*arguments)

    return run


class _CountsByRank(dict):
    def __init__(self, here):
        super().__init__()
        self.here = here

    def __getitem__(self, path):
        return self.get((self.here.rank, path), 0)

    def __setitem__(self, path, count):
        super().__setitem__((self.here.rank, path), count)


def test_the_second_rank_waits_until_the_first_has_written(as_rank, tmp_path):
    events, may_write = [], threading.Event()

    def write():
        may_write.wait()
        events.append("written")

    def second():
        as_rank(1, tmp_path, lambda: events.append("wrong"))
        events.append("returned")

    for _ in range(2):  # a second save into the same directory is not mistaken for the first
        threads = [
            threading.Thread(target=as_rank, args=(0, tmp_path, write), daemon=True),
            threading.Thread(target=second, daemon=True),
        ]
        for thread in threads:
            thread.start()
        threads[1].join(timeout=0.2)
        assert threads[1].is_alive()
        may_write.set()
        for thread in threads:
            thread.join()
        may_write.clear()
    assert events == ["written", "returned"] * 2


def test_one_process_just_writes(tmp_path):
    events = []
    write_once(os.fspath(tmp_path), lambda: events.append("written"))
    assert events == ["written"]
