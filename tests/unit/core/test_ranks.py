"""The hash by which ranks compare masks; what needs several processes is in tests/distributed."""

from __future__ import annotations

import pytest
import torch

from inc_torch.core.ranks import Ranks, _mixed, _words


@pytest.mark.parametrize("size", [1, 7, 8, 9, 300])
def test_any_changed_value_changes_the_hash_in_its_own_way(size):
    mask = torch.rand(size) > 0.5
    hashes = {int(_mixed(_words(mask)))}
    for index in range(size):
        changed = mask.clone()
        changed[index] = not changed[index]
        hashes.add(int(_mixed(_words(changed))))
    assert len(hashes) == size + 1


def test_a_moved_value_changes_the_hash():
    masks = torch.eye(64, dtype=torch.bool)
    assert len({int(_mixed(_words(mask))) for mask in masks}) == 64


def test_one_process_agrees_with_itself():
    ranks = Ranks()
    assert (ranks.count, ranks.index) == (1, 0)
    ranks.require_equal("Masks", [torch.tensor([True])])
    values = torch.tensor([3.0])
    assert ranks.maximum_(values) is values
    assert ranks.sum_(values) is values
    assert ranks.gather(values) == [values]
