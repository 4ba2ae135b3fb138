"""Quantization-aware training for the extension; INC cannot do that."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import inc_torch
from inc_torch import QuantizationAwareTrainingConfig, prepare_compression, training
from inc_torch.core.errors import CalibrationError
from inc_torch.ipex import deployed
from tests.ipex.models import Images, images, int8_kernels, int8_names, natively, pictures, residual, rows

pytestmark = pytest.mark.ipex


def train(model: nn.Module, batches: list, manager: object = None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in batches * 3:
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("make", "batches"), [(residual, rows), (images, pictures)])
def test_what_was_trained_is_what_the_extension_computes(make, batches):
    model, given = make().train(), batches()
    manager = prepare_compression(model, QuantizationAwareTrainingConfig(backend="ipex"))
    manager.callbacks.on_train_begin()
    train(manager.model, given)
    simulated = manager.model.eval()(given[0])
    manager.callbacks.on_train_end()
    int8 = manager.model
    layers = ["fc1", "fc2", "head"] if make is residual else ["conv1", "conv2", "head"]
    assert int8_names(int8) == layers
    assert int8_kernels(int8, given[0]) == 3
    assert (int8(given[0]) - natively(int8, given[0])).abs().max() < 1e-5
    assert (int8(given[0]) - simulated).abs().max() < 1e-2


def test_trained_model_is_saved_and_loaded(tmp_path):
    model, given = images().train(), pictures()
    manager = prepare_compression(model, QuantizationAwareTrainingConfig(backend="ipex"))
    manager.callbacks.on_train_begin()
    train(manager.model, given)
    manager.callbacks.on_train_end()
    manager.save(tmp_path)
    loaded = inc_torch.load(tmp_path, Images())
    assert deployed(loaded) is not None
    assert torch.equal(loaded(given[1]), manager.model(given[1]))


def test_training_without_a_batch_is_refused():
    manager = prepare_compression(residual(), QuantizationAwareTrainingConfig(backend="ipex"))
    manager.callbacks.on_train_begin()
    with pytest.raises(CalibrationError):
        manager.callbacks.on_train_end()


def test_search_trains_for_the_extension():
    model, given = residual(), rows()
    config = QuantizationAwareTrainingConfig(backend="ipex", max_trials=2)
    manager = prepare_compression(model, config)
    scores = iter([1.0, 0.5, 1.0])
    int8 = training.fit(manager, lambda model: train(model, given), eval_func=lambda model: next(scores))
    assert int8 is model
    assert deployed(model) is not None
    assert len(int8.tuning.trials) == 2
    assert (model(given[0]) - natively(model, given[0])).abs().max() < 1e-5
