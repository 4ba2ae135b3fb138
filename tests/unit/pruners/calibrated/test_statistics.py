"""What is remembered of inputs, against straight sums."""

from __future__ import annotations

import pytest
import torch

from inc_torch.pruners.calibrated._statistics import Hessian, Moments, SquareSums

CPU = torch.device("cpu")
BATCHES = [torch.arange(40.0).sin().view(2, 5, 4) + 1, torch.arange(84.0).cos().view(3, 7, 4)]
ROWS = torch.cat([batch.flatten(0, 1) for batch in BATCHES])


def fed(statistics, batches=BATCHES):
    for batch in batches:
        statistics.add(batch)
    return statistics


@pytest.mark.parametrize("kind", [SquareSums, Moments])
def test_squares_are_summed_over_tokens_and_averaged_over_sequences(kind):
    seen = fed(kind(4, CPU))
    assert seen.tokens == 31
    torch.testing.assert_close(seen.mean_squares(), ROWS.square().sum(0) / 5)


def test_sums_and_variances():
    seen = fed(Moments(4, CPU))
    torch.testing.assert_close(seen.sums(), ROWS.sum(0) / 5)
    variances = [batch.flatten(0, 1).var(0, correction=0) for batch in BATCHES]
    torch.testing.assert_close(seen.variances(), (10 * variances[0] + 21 * variances[1]) / 31)


def test_a_matrix_is_one_sequence():
    seen = fed(Moments(4, CPU), [ROWS])
    torch.testing.assert_close(seen.mean_squares(), ROWS.square().sum(0))
    torch.testing.assert_close(seen.sums(), ROWS.sum(0))


def test_the_hessian_is_the_mean_of_outer_products():
    torch.testing.assert_close(fed(Hessian(4, CPU)).matrix(), ROWS.t() @ ROWS / 31)


@pytest.mark.parametrize("kind", [SquareSums, Moments, Hessian])
class TestAll:
    def test_nothing_seen(self, kind):
        seen = fed(kind(4, CPU), [torch.zeros(0, 3, 4)])
        assert seen.tokens == 0
        assert seen.is_finite()

    def test_half_precision_is_summed_in_float32(self, kind):
        seen = fed(kind(1, CPU), [torch.full((1, 64, 1), 60.0, dtype=torch.float16)] * 4)
        squares = seen.matrix() if kind is Hessian else seen.mean_squares()
        assert squares.flatten().tolist() == [3600.0 if kind is Hessian else 64 * 3600.0]

    @pytest.mark.parametrize("value", [torch.inf, torch.nan])
    def test_what_is_not_finite_is_noticed(self, kind, value):
        batch = torch.ones(2, 3, 4)
        batch[1, 1, 1] = value
        assert not fed(kind(4, CPU), [batch]).is_finite()
