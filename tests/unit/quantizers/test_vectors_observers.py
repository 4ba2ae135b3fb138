"""Scales and zero points that INC was seen to choose."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from inc_torch.quantizers import OBSERVERS, Levels, TensorStatistics, fit_float_grid, fit_grid, observe
from inc_torch.quantizers.observers.ema_minmax import EmaMinMax
from inc_torch.quantizers.observers.minmax import MinMax

_FILE = Path(__file__).parents[2] / "vectors" / "quantization.json"
VECTORS = json.loads(_FILE.read_text(encoding="utf-8"))["observers"]
SMALL, OUTLIER = VECTORS["small_tensor"], VECTORS["outlier_tensor"]


def small_tensor():
    torch.manual_seed(0)
    return torch.cat([torch.randn(500), torch.tensor([12.0, -3.0])]).reshape(2, 251)


def outlier_tensor():
    torch.manual_seed(0)
    values = torch.randn(20000)
    values[0] = 60.0
    return values


def names(section, start):
    return [name for name in section if name.startswith(start)]


def quantized_with(values, algorithm, levels):
    scale, zero_point = observe(values, OBSERVERS.get(algorithm)(), levels)
    return scale.item(), zero_point.item()


def close(algorithm):
    return {"minmax": 1e-6, "kl": 0.02}[algorithm]


def test_the_vectors_are_there_and_all_are_used():
    used = {"act": 4, "fq": 3, "lowbit": 2, "wt": 2}
    assert {start: len(names(SMALL, start + "/")) for start in used} == used
    assert set(SMALL) - {name for start in used for name in names(SMALL, start)} == {"T_first10", "T_recipe", "engine"}
    assert set(OUTLIER) == {"recipe"} | {
        f"{reduced}{algorithm}/{scheme}"
        for reduced in ("", "reduce/")
        for algorithm in ("minmax", "kl")
        for scheme in ("asym", "sym")
    }


def test_the_small_tensor_is_that_of_the_recipe():
    assert small_tensor().flatten()[:10].tolist() == pytest.approx(SMALL["T_first10"], rel=1e-6)


@pytest.mark.parametrize("name", names(SMALL, "act/"))
def test_inputs(name):
    _, algorithm, scheme = name.split("/")
    levels = Levels.of(8, signed=False, symmetric=scheme == "sym")
    assert (levels.low, levels.high) == (SMALL[name]["quant_min"], SMALL[name]["quant_max"])
    scale, zero_point = quantized_with(small_tensor(), algorithm, levels)
    assert scale == pytest.approx(SMALL[name]["scale"][0], rel=close(algorithm))
    assert zero_point == SMALL[name]["zero_point"][0]


@pytest.mark.parametrize("name", [name for name in OUTLIER if name != "recipe"])
def test_inputs_with_an_outlier(name):
    *_, algorithm, scheme = name.split("/")
    symmetric = scheme == "sym"
    bits = 7 if name.startswith("reduce") and not symmetric else 8  # INC reduces asymmetric ranges only
    levels = Levels.of(bits, signed=False, symmetric=symmetric)
    expected = OUTLIER[name]
    assert (levels.low, levels.high) == (expected.get("qmin", 0), expected.get("qmax", 255))
    scale, zero_point = quantized_with(outlier_tensor(), algorithm, levels)
    assert scale == pytest.approx(expected["scale"], rel=close(algorithm))
    assert zero_point == expected["zero_point"]


@pytest.mark.parametrize("name", names(SMALL, "lowbit/"))
def test_fewer_bits(name):
    expected = SMALL[name]
    unsigned, bits = re.fullmatch(r"lowbit/(u?)int(\d)", name).groups()
    levels = Levels.of(int(bits), signed=not unsigned)
    assert (levels.low, levels.high) == (expected["quant_min"], expected["quant_max"])
    scale, zero_point = quantized_with(small_tensor(), "minmax", levels)
    [expected_scale], [expected_zero_point] = expected["qp"]
    assert scale == pytest.approx(expected_scale, rel=1e-6)
    assert zero_point == expected_zero_point


WEIGHT = torch.tensor([[-0.25, 1.0, 0.5], [0.0, -2.0, 0.75], [0.5, -0.125, 0.25]])
"""With the extremes of the weight behind the vectors."""


def test_weight_of_one_scale():
    expected = SMALL["wt/sym/per_tensor/int8"]
    scale, zero_point = observe(WEIGHT, MinMax(), Levels.of(8, signed=True))
    assert scale.tolist() == pytest.approx(expected["scale"], rel=1e-6)
    assert zero_point.tolist() == expected["zero_point"]


def test_rows_of_an_embedding():
    scale, zero_point = fit_float_grid(WEIGHT.amin(1), WEIGHT.amax(1))
    expected_scale, expected_zero_point = SMALL["wt/asym_float"]["qp"]
    assert scale.tolist() == pytest.approx(expected_scale, rel=1e-6)
    assert zero_point.tolist() == pytest.approx(expected_zero_point, rel=1e-6)


@pytest.mark.parametrize("name", names(SMALL, "fq/"))
def test_fake_quant(name):
    expected = SMALL[name]
    _, scheme, _, dtype = name.split("/")
    levels = Levels.of(8, signed=dtype == "int8", symmetric=scheme == "sym")
    assert (levels.low, levels.high) == (expected["qmin"], expected["qmax"])
    assert levels.symmetric == expected["qscheme"].endswith("symmetric")
    assert expected["obs"] == "MovingAverageMinMaxObserver"
    assert EmaMinMax().rate == expected["avg_const"]


def test_moving_average_is_that_of_torch():
    moving_average = pytest.importorskip("torch.ao.quantization").MovingAverageMinMaxObserver
    batches = [torch.randn(40) * k for k in range(1, 6)]
    theirs, seen = moving_average(averaging_constant=0.2), TensorStatistics.of(batches[0])
    theirs(batches[0])
    for batch in batches[1:]:
        theirs(batch)
        seen.add(TensorStatistics.of(batch))
    low, high = EmaMinMax(rate=0.2).range(seen, Levels.of(8, signed=False))
    assert (low.item(), high.item()) == pytest.approx((theirs.min_val.item(), theirs.max_val.item()), rel=1e-5)


TAILS = {
    "normal": lambda: torch.randn(10000),
    "after a ReLU": lambda: torch.randn(10000).relu(),
    "after a GELU": lambda: torch.nn.functional.gelu(torch.randn(10000)),
    "heavy tails": lambda: torch.distributions.StudentT(3.0).sample((10000,)),
    "exponential": lambda: torch.randn(10000).exp(),
    "shifted": lambda: torch.rand(10000) + 5,
    "negative": lambda: -torch.rand(10000),
    "outliers": lambda: torch.cat([torch.randn(9998), torch.tensor([300.0, -80.0])]),
    "constant": lambda: torch.full((100,), 3.0),
}


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize("make", TAILS.values(), ids=TAILS)
def test_kl_is_the_range_of_torchs_histogram_observer(make, batches):
    histogram_observer = pytest.importorskip("torch.ao.quantization").HistogramObserver
    theirs, seen = histogram_observer(), None
    for number in range(batches):
        batch = make() * (1 + number / 4)
        theirs(batch)
        later = TensorStatistics.of(batch)
        seen = later if seen is None else (seen.add(later) or seen)
    for levels in (Levels.of(8, signed=False, symmetric=False), Levels.of(8, signed=False)):
        theirs.qscheme = torch.per_tensor_symmetric if levels.symmetric else torch.per_tensor_affine
        expected_scale, expected_zero_point = theirs.calculate_qparams()
        scale, zero_point = fit_grid(*OBSERVERS.get("kl")().range(seen, levels), levels)
        assert scale.item() == pytest.approx(expected_scale.item(), rel=0.03)
        assert abs(zero_point.item() - expected_zero_point.item()) <= 2
