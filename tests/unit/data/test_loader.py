"""Loaders: both forms of INC's arguments, odd data sets, endless ones, and many processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import IterableDataset as TorchIterable

from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.data import DATALOADERS, DataLoader, Datasets, check_dataloader

NUMBERS = [(torch.tensor(float(index)), index % 2) for index in range(5)]


class Odd:
    """The data set of INC's guide: a method that is literally called ``len``."""

    def __init__(self):
        self.reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return NUMBERS[index]

    def len(self):
        return 4


class OnlyItems:
    colour = "red"

    def __getitem__(self, index):
        return NUMBERS[index]


class Stream:
    def __iter__(self):
        return iter(NUMBERS)


class Torch(TorchIterable):
    def __iter__(self):
        return iter(NUMBERS)


def images(loader):
    return [batch[0].tolist() for batch in loader]


@pytest.mark.parametrize(
    ("dataset", "read"),
    [
        (NUMBERS, [[0.0, 1.0], [2.0, 3.0], [4.0]]),
        (Odd(), [[0.0, 1.0], [2.0, 3.0]]),
        (OnlyItems(), [[0.0, 1.0], [2.0, 3.0], [4.0]]),
        (Stream(), [[0.0, 1.0], [2.0, 3.0], [4.0]]),
        (Torch(), [[0.0, 1.0], [2.0, 3.0], [4.0]]),
    ],
)
def test_any_data_set_is_read_in_both_forms_and_twice(dataset, read):
    for loader in (
        DataLoader("pytorch", dataset, 2),
        DataLoader(dataset, 2),
        DataLoader(framework="pytorch_fx", dataset=dataset, batch_size=2),
        DATALOADERS["pytorch"](dataset, batch_size=2),
    ):
        assert isinstance(loader, TorchLoader)
        assert loader.batch_size == 2
        assert images(loader) == read == images(loader)


def test_a_told_length_costs_no_reads_and_others_are_counted_once():
    odd = Odd()
    loader = DataLoader(odd)
    assert len(loader) == 4
    assert odd.reads == 0
    loader = DataLoader(OnlyItems(), shuffle=True)
    assert len(loader) == len(loader.dataset) == 5
    assert loader.dataset.colour == "red"
    assert sorted(images(loader)) == [[0.0], [1.0], [2.0], [3.0], [4.0]]


def test_the_last_batch_is_kept_or_left_out():
    assert images(DataLoader(NUMBERS, 2, last_batch="discard")) == [[0.0, 1.0], [2.0, 3.0]]
    assert len(DataLoader(NUMBERS, 2)) == 3


def test_another_batch_size_in_place():
    loader = DataLoader("pytorch", NUMBERS, batch_size=1, shuffle=True)
    assert loader.batch(5) is loader
    assert loader.batch_size == 5
    assert sorted(images(loader)[0]) == [0.0, 1.0, 2.0, 3.0, 4.0]  # still shuffled, and all of it
    assert len(loader.batch(2, last_batch="discard")) == 2
    assert len(loader.batch(3)) == 1  # the last choice stays


def test_a_sampler_a_batch_sampler_and_a_collate_function():
    assert images(DataLoader(NUMBERS, 2, sampler=[4, 0])) == [[4.0, 0.0]]
    assert images(DataLoader(NUMBERS, batch_sampler=[[1], [3, 2]])) == [[1.0], [3.0, 2.0]]
    assert list(DataLoader(NUMBERS, 5, collate_fn=len)) == [5]


def test_streams_are_shared_by_workers():
    assert sorted(images(DataLoader(Stream(), num_workers=2))) == [[0.0], [1.0], [2.0], [3.0], [4.0]]


def test_a_pass_over_an_endless_data_set_has_ten_batches():
    endless = Datasets("pytorch")["dummy_v2"]((3,), (1,))
    loader = DataLoader("pytorch", endless, batch_size=4)
    first = [image for image, _ in loader]
    assert len(first) == len(loader) == 10
    assert first[0].shape == (4, 3)
    assert all(torch.equal(one, other) for one, (other, _) in zip(first, loader, strict=True))


def test_processes_read_parts_of_their_own(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda *_, rank=rank: rank)
        parts += images(DataLoader(NUMBERS[:4], distributed=True))
    assert sorted(parts) == [[0.0], [1.0], [2.0], [3.0]]


@pytest.mark.parametrize(
    ("make", "kind", "told"),
    [
        (lambda: DataLoader("tensorflow", NUMBERS), ConfigError, "DataLoader.framework='tensorflow': expected one of"),
        (lambda: DATALOADERS["onnxrt_qlinearops"], ConfigError, "DATALOADERS.framework='onnxrt_qlinearops'"),
        (lambda: DataLoader(NUMBERS, 0), ConfigError, "DataLoader.batch_size=0: expected a whole number above 0."),
        (lambda: DataLoader(NUMBERS, True), ConfigError, "DataLoader.batch_size=True"),
        (lambda: DataLoader(NUMBERS, last_batch="drop"), ConfigError, "expected 'rollover' or 'discard'"),
        (lambda: DataLoader(NUMBERS, ping_memory=True), ConfigError, "Did you mean 'pin_memory'?"),
        (lambda: DataLoader(5), ConfigTypeError, "DataLoader.dataset is 5: expected an object with __getitem__"),
        (
            lambda: DataLoader(NUMBERS, distributed=True),
            ConfigError,
            "no process group. Start the script with torchrun",
        ),
        (lambda: DataLoader(Stream(), distributed=True), ConfigError, "only iterated over (Stream): add __getitem__"),
        (lambda: DataLoader(NUMBERS, distributed=True, sampler=[1]), ConfigError, "a sampler of your own: leave one"),
        (lambda: check_dataloader(NUMBERS), ConfigTypeError, "of type list has no batch_size"),
        (lambda: check_dataloader(5), ConfigTypeError, "of type int has no __iter__ and no batch_size"),
    ],
)
def test_what_is_wrong_is_told(make, kind, told):
    with pytest.raises(kind) as caught:
        make()
    assert told in str(caught.value)


def test_both_loaders_pass_the_check():
    assert check_dataloader(DataLoader(NUMBERS)) is check_dataloader(TorchLoader(NUMBERS)) is True


def test_arrays_become_tensors():
    (batch,) = DataLoader([np.ones(2, dtype=np.float32)] * 3, 3)
    assert torch.equal(batch, torch.ones(3, 2))
