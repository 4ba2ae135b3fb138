"""Workers of data loaders, forked and spawned, beside a manager in the midst of its training."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from inc_torch import PostTrainingQuantConfig, QuantizationAwareTrainingConfig, prepare_compression, quantization
from tests.loops.driver import ConvNet, assert_equal_states, images
from tests.soak.cycles import confs, int8, step

STARTS = ["fork", pytest.param("spawn", marks=pytest.mark.slow)]
"""A spawned worker imports torch anew, which takes seconds."""
LETTERS = ["p", "pqdl"]


class Images(Dataset):
    """Images by their number, and something that the workers get with them."""

    def __init__(self, held: object = None) -> None:
        self.held = held

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(3, 4, 4, generator=generator)
        if isinstance(self.held, nn.Module):
            with torch.no_grad():
                image = image + self.held(image[None]).mean()
        if isinstance(self.held, QuantizationAwareTrainingConfig):
            image = image * self.held.start_step
        return image, index % 4


def loader(start: str | None, held: object = None) -> DataLoader[Any]:
    if start is None:
        return DataLoader(Images(held), batch_size=4)
    return DataLoader(Images(held), batch_size=4, num_workers=1, multiprocessing_context=start)


def trained(letters: str, start: str | None, *, holds_model: bool) -> dict[str, torch.Tensor]:
    """Two epochs, each with new workers, which start while the manager trains."""
    model = ConvNet()
    model.dropout.p = 0.0
    manager = prepare_compression(model, confs(letters, ConvNet(1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    held = ConvNet(2).eval() if holds_model else QuantizationAwareTrainingConfig(start_step=2)
    manager.on_train_begin()
    for _ in range(2):
        for index, (inputs, labels) in enumerate(loader(start, held)):
            step(manager, optimizer, index, inputs, labels)
    manager.on_train_end()
    assert manager.callbacks.progress.step == 6
    return model.state_dict()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("letters", LETTERS)
@pytest.mark.parametrize("holds_model", [False, True], ids=["config", "model"])
def test_training_is_the_same_with_workers(letters, start, holds_model):
    assert_equal_states(
        trained(letters, start, holds_model=holds_model), trained(letters, None, holds_model=holds_model)
    )
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("letters", LETTERS)
def test_workers_get_the_model_in_training(letters, start):
    """They compute by a copy of it, which takes no part in the training."""
    model = ConvNet()
    model.dropout.p = 0.0
    manager = prepare_compression(model, confs(letters, ConvNet(1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    manager.on_train_begin()
    for index, (inputs, labels) in enumerate(images(2)):
        step(manager, optimizer, index, inputs, labels)
    model.eval()
    expected = [inputs for inputs, _ in loader(None, model)]
    found = [inputs for inputs, _ in loader(start, model)]
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    assert manager.callbacks.progress.step == 2


@pytest.mark.parametrize("start", STARTS)
def test_workers_get_an_int8_model(start):
    model = int8()
    expected = [inputs for inputs, _ in loader(None, model)]
    for one, other in zip(expected, loader(start, model), strict=True):
        assert torch.equal(one, other[0])


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("holds_model", [False, True], ids=["config", "model"])
def test_calibration_is_the_same_with_workers(start, holds_model):
    held = ConvNet(2).eval() if holds_model else QuantizationAwareTrainingConfig(start_step=2)
    config = PostTrainingQuantConfig(calibration_sampling_size=12)
    expected, found = (quantization.fit(ConvNet().eval(), config, loader(each, held)) for each in (None, start))
    assert_equal_states(found.state_dict(), expected.state_dict())
    assert multiprocessing.active_children() == []
