"""What every pruning criterion must do."""

from __future__ import annotations

import pytest
import torch

from inc_torch.pruners import CRITERIA

SHAPES = [(1,), (4, 6), (2, 3, 5), (2, 3, 2, 2), (2, 3, 1, 2, 2)]


@pytest.fixture(params=CRITERIA.names())
def criterion(request):
    return CRITERIA.get(request.param)()


def test_those_of_inc_are_registered():
    assert {"magnitude", "gradient", "snip", "snip_momentum"} <= set(CRITERIA.names())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_every_element_and_leaves_its_inputs_alone(criterion, shape):
    weight, gradient = torch.randn(shape), torch.randn(shape)
    if not criterion.needs_gradient:
        gradient = weight
    before = weight.clone(), gradient.clone()
    score = criterion.score(weight, gradient)
    assert score.shape == weight.shape
    assert score.dtype == torch.float32
    assert torch.isfinite(score).all()
    assert torch.equal(weight, before[0])
    assert torch.equal(gradient, before[1])


def test_sees_magnitudes_only(criterion):
    """Signs of weights and gradients do not matter to what counts of a score: its magnitude."""
    weight, gradient = torch.randn(5, 7), torch.randn(5, 7)
    if not criterion.needs_gradient:
        gradient = weight
    score = criterion.score(weight, gradient).abs()
    turned = criterion.score(-weight, gradient if criterion.needs_gradient else -gradient).abs()
    assert torch.equal(score, turned)


def test_takes_each_element_by_itself(criterion):
    weight, gradient = torch.randn(64), torch.randn(64)
    if not criterion.needs_gradient:
        gradient = weight
    order = torch.randperm(64)
    assert torch.equal(criterion.score(weight, gradient)[order], criterion.score(weight[order], gradient[order]))


def test_is_the_product_that_it_says(criterion):
    weight, gradient = torch.randn(5, 7), torch.randn(5, 7)
    inputs = {"weight": weight, "gradient": gradient if criterion.needs_gradient else weight}
    product = torch.ones(5, 7)
    for name in criterion.factors:
        product = product * inputs[name]
    assert len(criterion.factors) <= 2
    assert not criterion.factors or torch.equal(criterion.score(*inputs.values()), product)


def test_declares_what_it_needs(criterion):
    assert isinstance(criterion.needs_gradient, bool)
    assert 0.0 <= criterion.momentum < 1.0
    assert criterion.needs_gradient or criterion.momentum == 0.0, "weights are looked at only at updates"


def test_equal_configurations_are_equal(criterion):
    assert criterion == type(criterion)()
    assert hash(criterion) == hash(type(criterion)())
