"""Layer norm and root mean square norm, against torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from inc_torch import kernels
from inc_torch.kernels import OperandError
from tests.unit.kernels.needed import codes, grid, needs_processor, reference_codes, run

pytestmark = needs_processor
GRID = grid(0.031, 120)


@pytest.mark.parametrize("shape", [(128, 768), (3, 17), (5, 64), (1, 1), (2, 20000)], ids=str)
def test_floats_and_codes_of_a_sum_are_normalized(shape):
    torch.manual_seed(0)
    values, residual, weight, bias = (
        torch.randn(shape) * 2 + 1,
        torch.randn(shape),
        torch.randn(shape[1]),
        torch.randn(shape[1]),
    )
    output, rounded = torch.empty(shape), codes(*shape)
    run(kernels.layer_norm(values, weight, bias, 1e-5, output, rounded, GRID, residual=residual))
    expected = F.layer_norm((values + residual).double(), shape[1:], weight.double(), bias.double(), 1e-5)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=2e-5)
    assert torch.equal(rounded, reference_codes(output, GRID))


def test_root_mean_square_keeps_the_mean():
    values, weight, output = torch.randn(5, 70) + 3, torch.randn(70), torch.empty(5, 70)
    run(kernels.layer_norm(values, weight, None, 1e-6, output, None, None, root_mean_square=True))
    torch.testing.assert_close(output, F.rms_norm(values, (70,), weight, 1e-6), rtol=1e-5, atol=1e-5)


def test_the_output_may_be_the_input_and_rows_may_be_at_any_distance():
    memory = torch.randn(6, 90)
    values = memory[:, 10:60]
    expected = F.layer_norm(values, (50,))
    run(kernels.layer_norm(values, None, None, 1e-5, values, None, None))
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


def test_a_row_with_nan_is_nan_and_the_others_are_not():
    values, output = torch.randn(3, 40), torch.empty(3, 40)
    values[1, 5] = torch.nan
    run(kernels.layer_norm(values, None, None, 1e-5, output, None, None))
    assert output[1].isnan().all()
    assert output[::2].isfinite().all()


def test_two_threads_and_one_give_the_same_bits():
    values, outputs = torch.randn(200, 300), []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            outputs.append(torch.empty(200, 300))
            run(kernels.layer_norm(values, None, None, 1e-5, outputs[-1], None, None))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(*outputs)


def test_wrong_operands_are_refused_when_the_step_is_built():
    values = torch.randn(4, 6)
    for output, rounded, known, weight, message in (
        (None, None, None, None, "expected an output, codes or both"),
        (values, codes(4, 6), None, None, "grid is None, expected a Grid"),
        (values[:3], None, None, None, r"output is of shape \(3, 6\)"),
        (values, None, None, torch.ones(5), r"weight is of shape \(5,\), expected \(6,\)"),
        (values.double(), None, None, None, "output is float64"),
    ):
        with pytest.raises(OperandError, match=message):
            kernels.layer_norm(values, weight, None, 1e-5, output, rounded, known)
