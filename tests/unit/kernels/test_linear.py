"""Linear layers on codes, against exact integers and float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_torch import kernels
from inc_torch.kernels import Activation, Grid, OperandError, Program
from tests.unit.kernels.needed import ACTIVATIONS, assert_rounded, codes, grid, needs_processor, run, weights

pytestmark = [needs_processor, pytest.mark.usefixtures("instructions")]


def exact_sums(source, weight, zero_point):
    return (source.int() - zero_point) @ weight.int().T


def sums(source, weight, zero_point):
    output = torch.full((len(source), len(weight)), math.nan)
    run(
        kernels.linear(
            source, kernels.pack_linear(weight), Grid(1.0, zero_point), torch.ones(len(weight)), None, output
        )
    )
    return output


@pytest.mark.parametrize("rows", [*range(1, 18), 193, 391])
def test_sums_are_the_exact_integers_for_any_number_of_rows_and_columns(rows):
    torch.manual_seed(rows)
    for outputs, inputs in ((1, 1), (17, 5), (64, 64), (80, 63), (100, 130), (48, 3), (33, 259), (320, 10)):
        source, weight = codes(rows, inputs), weights(outputs, inputs)
        assert torch.equal(sums(source, weight, 7), exact_sums(source, weight, 7).float())


@given(rows=st.integers(1, 40), outputs=st.integers(1, 150), inputs=st.integers(1, 200), zero_point=st.integers(0, 255))
@settings(max_examples=30, deadline=None)
def test_sums_are_exact_for_any_shape_and_zero_point(rows, outputs, inputs, zero_point):
    source, weight = codes(rows, inputs), weights(outputs, inputs)
    assert torch.equal(sums(source, weight, zero_point), exact_sums(source, weight, zero_point).float())


def test_the_greatest_codes_do_not_overflow():
    source, weight = torch.full((3, 3072), 255, dtype=torch.uint8), torch.full((20, 3072), -128, dtype=torch.int8)
    assert torch.equal(sums(source, weight, 0), torch.full((3, 20), -255.0 * 128 * 3072))


def test_rows_may_be_at_any_distance_in_all_operands():
    source, weight = codes(9, 200)[:, 30:93], weights(70, 63)
    output, residual = torch.zeros(9, 100), torch.randn(9, 300)[:, 100:170]
    run(
        kernels.linear(
            source, kernels.pack_linear(weight), Grid(1.0, 3), torch.ones(70), None, output[:, 20:90], residual=residual
        )
    )
    torch.testing.assert_close(output[:, 20:90], exact_sums(source, weight, 3) + residual)
    assert not output[:, :20].any()
    assert not output[:, 90:].any()


@pytest.mark.parametrize("residual_dtype", [None, torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("last", [True, False], ids=["activation last", "residual last"])
def test_outputs_follow_the_formula(dtype, residual_dtype, last):
    torch.manual_seed(0)
    source, weight, scale, bias = codes(13, 37), weights(90, 37), torch.rand(90) * 0.01 + 0.001, torch.randn(90)
    input_grid, output_grid, residual_grid = grid(0.01, 100), grid(0.0517, 90), grid(0.0313, 50)
    residual, added = None, 0
    if residual_dtype == torch.uint8:
        residual = codes(13, 90)
        added = (residual.double() - 50) * residual_grid.scale
    elif residual_dtype is not None:
        residual = torch.randn(13, 90).to(residual_dtype)
        added = residual.double()
    sums = exact_sums(source, weight, 100).double() * input_grid.scale * scale.double() + bias.double()
    for activation, function in ACTIVATIONS.items():
        output = torch.zeros(13, 90, dtype=dtype)
        run(
            kernels.linear(
                source,
                kernels.pack_linear(weight),
                input_grid,
                scale,
                bias,
                output,
                activation=activation,
                output_grid=output_grid if dtype == torch.uint8 else None,
                residual=residual,
                residual_grid=residual_grid if residual_dtype == torch.uint8 else None,
                activation_after_residual=last,
            )
        )
        exact = function(sums + added) if last else function(sums) + added
        if dtype == torch.uint8:
            assert_rounded(output, exact, output_grid)
        else:
            near = {"rtol": 1e-5, "atol": 4e-6} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 1e-5}
            torch.testing.assert_close(output.double(), exact, **near)


@pytest.mark.parametrize("activation", [Activation.NONE, Activation.RELU, Activation.GELU])
def test_codes_saturate_however_great_the_values_are(activation):
    source, weight = torch.full((2, 64), 255, dtype=torch.uint8), weights(2, 64)
    weight[0], weight[1] = 127, -128
    for scale in (1.0, 1e6, 1e30):
        output = torch.full((2, 2), 7, dtype=torch.uint8)
        packed = kernels.pack_linear(weight)
        scales = torch.full((2,), scale)
        step = kernels.linear(
            source, packed, Grid(1.0, 0), scales, None, output, activation=activation, output_grid=Grid(0.1, 0)
        )
        run(step)
        assert output.tolist() == [[255, 0]] * 2


def test_a_dynamic_grid_is_read_when_the_step_runs():
    source, weight, scale = codes(5, 40), weights(30, 40), torch.rand(30)
    output, dynamic = torch.empty(5, 30), torch.empty(2)
    step = kernels.linear(source, kernels.pack_linear(weight), None, scale, None, output, dynamic=dynamic)
    for size, zero_point in ((0.5, 3), (0.125, 200)):
        dynamic.copy_(torch.tensor([size, zero_point]))
        run(step)
        torch.testing.assert_close(output, exact_sums(source, weight, zero_point) * scale * size)


@pytest.mark.parametrize("rows", [1, 5, 128])
def test_two_threads_and_one_give_the_same_bits(rows):
    source, weight, outputs = codes(rows, 768), weights(1000, 768), []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            output = torch.empty(rows, 1000)
            packed, scale, bias = kernels.pack_linear(weight), torch.full((1000,), 0.01), torch.ones(1000)
            run(kernels.linear(source, packed, Grid(0.3, 7), scale, bias, output, activation=Activation.GELU))
            outputs.append(output)
        finally:
            torch.set_num_threads(before)
    assert torch.equal(*outputs)


def test_operands_can_be_bound_to_other_memory():
    first, second, weight = codes(4, 20), codes(4, 20), weights(6, 20)
    outputs = torch.zeros(4, 6), torch.zeros(4, 6)
    residuals = torch.randn(4, 6), torch.randn(4, 6)
    step = kernels.linear(
        first, kernels.pack_linear(weight), Grid(1.0, 1), torch.ones(6), None, outputs[0], residual=residuals[0]
    )
    program = Program([step])
    program.run()
    step.rebind("input", second.data_ptr())
    step.rebind("output", outputs[1].data_ptr())
    step.rebind("residual", residuals[1].data_ptr())
    program.run()
    for source, output, residual in zip((first, second), outputs, residuals, strict=True):
        torch.testing.assert_close(output, exact_sums(source, weight, 1) + residual)


GOOD = {"input": codes(3, 8), "scale": torch.ones(5), "bias": None, "output": torch.empty(3, 5), "grid": Grid(1.0, 0)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": codes(3, 8).int()}, "input is int32, expected uint8"),
        ({"input": codes(3, 9)}, r"input is of shape \(3, 9\), expected \[m, 8\]"),
        ({"input": codes(8)}, r"input is of shape \(8,\), expected \[rows, columns\]"),
        ({"input": codes(8, 3).T}, "input is of strides .*, expected a dense last dimension"),
        ({"input": codes(1, 8).expand(3, 8)}, "expected rows that do not overlap"),
        ({"input": torch.empty(3, 8, dtype=torch.uint8, device="meta")}, "input is on meta, expected on the CPU"),
        ({"input": [1]}, "input is a list, expected a tensor"),
        ({"scale": torch.ones(4)}, r"weight_scale is of shape \(4,\), expected \(5,\)"),
        ({"bias": torch.ones(5, dtype=torch.float64)}, "bias is float64, expected float32"),
        ({"output": torch.empty(3, 6)}, r"output is of shape \(3, 6\), expected \(3, 5\)"),
        ({"output": codes(3, 5)}, "output_grid is None, expected a Grid, as the tensor is uint8"),
        ({"grid": None}, "input_grid is None, expected a Grid"),
    ],
)
def test_wrong_operands_are_refused_when_the_step_is_built(change, message):
    given = GOOD | change
    with pytest.raises(OperandError, match=message):
        kernels.linear(
            given["input"],
            kernels.pack_linear(weights(5, 8)),
            given["grid"],
            given["scale"],
            given["bias"],
            given["output"],
        )


def test_what_was_not_packed_and_what_is_no_linear_weight_are_refused():
    for weight, message in (
        (weights(5, 8), "expected what pack_linear"),
        (kernels.pack_conv(weights(5, 8, 3, 3), 1), "conv"),
    ):
        with pytest.raises(OperandError, match=message):
            kernels.linear(codes(3, 8), weight, Grid(1.0, 0), torch.ones(5), None, torch.empty(3, 5))
    with pytest.raises(OperandError, match="codes is float32, expected int8"):
        kernels.pack_linear(torch.ones(3, 3))


def test_a_packed_weight_knows_its_shape_and_sums():
    weight = weights(70, 33)
    packed = kernels.pack_linear(weight)
    assert (packed.rows, packed.columns) == (70, 33)
    assert packed.data.data_ptr() % 64 == 0
    assert torch.equal(packed.column_sums, weight.sum(1, dtype=torch.int32))
