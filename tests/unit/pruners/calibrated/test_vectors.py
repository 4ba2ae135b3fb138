"""The reference vectors of pruning after training."""

from __future__ import annotations

import pytest
import torch

from inc_torch.pruners import parse_pattern
from inc_torch.pruners.calibrated import prune_sparse_gpt, prune_wanda
from tests.unit.pruners.calibrated.models import chain
from tests.unit.pruners.vectors import VECTORS

RTOL = 1e-4


def _case(name):
    vector = VECTORS[name]
    batches = [torch.tensor(batch) for batch in vector["inputs"]["inputs"]]
    return vector, chain(*map(torch.tensor, vector["inputs"]["weights"])), batches


def _weights(model):
    return [block.lin.weight.detach() for block in model.blocks]


def _masks(model):
    return [(weight != 0).int().tolist() for weight in _weights(model)]


def _check_weights(model, vector):
    for own, expected in zip(_weights(model), vector["expected"]["weights"], strict=True):
        torch.testing.assert_close(own, torch.tensor(expected), rtol=RTOL, atol=1e-6)


def test_sparse_gpt_prunes_as_neural_compressor_with_its_one_weight_more_asked_for():
    vector, model, batches = _case("P01-sparse_gpt-1x1")
    prune_sparse_gpt(model, batches, parse_pattern("1x1"), 25 / 48)
    _check_weights(model, vector)


def test_sparse_gpt_prunes_exactly_what_is_asked_for():
    vector, model, batches = _case("P01-sparse_gpt-1x1")
    prune_sparse_gpt(model, batches, parse_pattern("1x1"), vector["config"]["target_sparsity"])
    assert [int((weight == 0).sum()) for weight in _weights(model)] == [24, 24]
    theirs = torch.tensor(vector["expected"]["weights"][0]) == 0
    assert bool((theirs | (_weights(model)[0] != 0)).all())  # of the first layer theirs and one less


def test_sparse_gpt_n_in_m_keeps_a_ragged_tail_dense():
    vector, model, batches = _case("P02-sparse_gpt-2:4")
    report = prune_sparse_gpt(model, batches, parse_pattern("2:4"))
    theirs = list(map(torch.tensor, vector["expected"]["weights"]))
    torch.testing.assert_close(_weights(model)[0], theirs[0], rtol=RTOL, atol=1e-6)
    torch.testing.assert_close(_weights(model)[1][:, :4], theirs[1][:, :4], rtol=RTOL, atol=1e-6)
    assert int((_weights(model)[1] == 0).sum()) == 16
    assert bool((_weights(model)[1][:, 4:] != 0).all())
    assert report.modules[1].notes == ("its last 2 columns, no whole group of 4, stay dense",)


@pytest.mark.parametrize("name", ["P03-wanda", "P04-wanda-1:2", "P06-wanda-dsnot"])
def test_wanda_prunes_as_neural_compressor(name):
    vector, model, batches = _case(name)
    prune_wanda(model, batches, **vector["config"])
    assert _masks(model) == vector["expected"]["masks"]
    _check_weights(model, vector)


def test_dsnot_stops_a_row_of_a_narrow_layer_whose_candidates_are_used_up():
    vector, model, batches = _case("P06b-wanda-dsnot-narrow")
    prune_wanda(model, batches, **vector["config"])
    for weight in _weights(model):
        assert bool(((weight == 0).sum(1) == weight.shape[1] // 2).all())


def test_dsnot_keeps_n_in_m():
    vector, model, batches = _case("P07-wanda-dsnot-1:2")
    prune_wanda(model, batches, **vector["config"])
    (weight,) = _weights(model)
    assert bool(((weight.view(4, 16, 2) == 0).sum(2) == 1).all())
    plain = _case("P07-wanda-dsnot-1:2")[1]
    prune_wanda(plain, batches, **{**vector["config"], "dsnot": False})
    assert _masks(plain) != _masks(model)  # and does exchange some
