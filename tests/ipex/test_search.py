"""Searches on the operations of the extension."""

from __future__ import annotations

import pytest
import torch

from inc_torch import PostTrainingQuantConfig, TuningCriterion, quantization
from inc_torch.ipex import deployed
from tests.ipex.models import images, int8_names, natively, pictures, program_of, residual, rows

pytestmark = pytest.mark.ipex

STRATEGIES = ["auto", "basic", "conservative", "exhaustive", "random", "bayesian", "tpe", "mse", "mse_v2", "hawq_v2"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_searches_the_operations_of_the_extension(strategy):
    model = residual()
    labelled = [(batch, model(batch).argmax(1)) for batch in rows()]
    criterion = TuningCriterion(strategy=strategy, max_trials=4, on_miss="best")
    config = PostTrainingQuantConfig(backend="ipex", tuning_criterion=criterion, quant_level=1)
    seen = []

    def score(candidate):
        seen.append(deployed(candidate) is not None)
        return 1.0 - 0.1 * min(len(seen) - 1, 3)

    with pytest.warns(UserWarning, match="scores"):
        int8 = quantization.fit(model, config, calib_dataloader=labelled, eval_func=score)
    assert seen[0] is False, "the float model"
    assert all(seen[1:])
    assert {operation.kind for operation in int8.tuning.space.operations} == {"Linear", "add"}
    assert len(int8.tuning.trials) >= 1


def test_search_puts_the_addition_back_to_float():
    model, batches = residual(), rows()
    expected = model(batches[0])

    def score(candidate):
        if deployed(candidate) is None:
            return 1.0
        return 1.0 if "/add.0" not in int8_names(candidate) and "fc1" in int8_names(candidate) else 0.0

    criterion = TuningCriterion(strategy="basic", max_trials=60)
    config = PostTrainingQuantConfig(backend="ipex", tuning_criterion=criterion, quant_level=1)
    int8 = quantization.fit(model, config, calib_dataloader=batches, eval_func=score)
    assert "/add.0" not in int8_names(int8)
    assert int8.tuning.best.is_met
    assert (int8(batches[0]) - expected).abs().max() < 0.03


def test_sizes_of_calibration_are_choices():
    model, batches = images(), pictures()
    config = PostTrainingQuantConfig(
        backend="ipex",
        calibration_sampling_size=[4, 16],
        tuning_criterion=TuningCriterion(strategy="exhaustive", max_trials=2, on_miss="best"),
        quant_level=1,
    )
    scales = []

    def score(candidate):
        program = deployed(candidate)
        if program is not None:
            entry = next(iter(program.summary.values()))["q_op_infos"]
            scales.append([tensor.get("scale") for info in entry.values() for tensor in info["input_tensor_infos"]])
        return 1.0 if program is None else 0.0

    with pytest.warns(UserWarning, match="scores"):
        int8 = quantization.fit(model, config, calib_dataloader=batches, eval_func=score)
    assert int8.tuning.space.samples == (4, 16)
    assert torch.isfinite(natively(int8, batches[0])).all()
    assert program_of(int8).summary
