"""What scripts call on INC's wrapper, on the model itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from inc_torch import quantization
from inc_torch.core.errors import LayerNotFoundError, ModelError
from inc_torch.model import Model


def model() -> nn.Module:
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))


def test_weights_by_name():
    made = model()
    assert made.get_all_weight_names() == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert made.get_weight("0.weight") is made[0].weight
    parameter = made[0].weight
    made.update_weights("0.weight", np.ones((8, 4)))
    assert made[0].weight is parameter
    assert parameter.sum().item() == 32.0
    mask = torch.zeros(8, 4)
    mask[0] = 1
    made.prune_weights_("0.weight", mask)
    assert parameter.sum().item() == 4.0
    assert made.graph_info == {"0": "Linear", "1": "ReLU", "2": "Linear"}


def test_gradients_by_name():
    made = model()
    with pytest.raises(ModelError, match=r"get_gradient\('0\.weight'\): there is none; expected a backward before"):
        made.get_gradient("0.weight")
    made(torch.ones(1, 4)).sum().backward()
    assert made.get_gradient("2.bias").tolist() == [1.0, 1.0]
    assert made.get_gradient(made[2].bias) is made[2].bias.grad
    made.update_gradient("2.bias", [2.0, 3.0])
    assert made[2].bias.grad.tolist() == [2.0, 3.0]


def test_sparsity_in_percent():
    made = model()
    with torch.no_grad():
        made[0].weight[:4] = 0
    report, total = made.report_sparsity()
    assert total == pytest.approx(100 * 16 / 48)
    assert str(made.report_sparsity()) == f"{report}\nzeros in all modules: 33.3%"


def test_states_of_int8_models():
    int8 = quantization.fit(model(), calib_dataloader=[torch.randn(4, 4)])
    other = quantization.fit(model(), calib_dataloader=[torch.randn(4, 4) * 3])
    other.load_quantized_state_dict(int8.quantized_state_dict())
    inputs = torch.randn(2, 4)
    assert torch.equal(other(inputs), int8(inputs))


def test_wrong_names_and_shapes():
    with pytest.raises(LayerNotFoundError, match=r"Sequential has no parameter '0\.weigh'\. Did you mean '0\.weight'"):
        model().get_weight("0.weigh")
    with pytest.raises(ModelError, match=r"'0\.weight' has the shape \(8, 4\): got values of shape \(2,\)\."):
        model().update_weights("0.weight", [1.0, 2.0])


def test_a_class_keeps_its_own():
    class Net(nn.Linear):
        def get_weight(self, name):
            return "mine"

    assert Model(Net(2, 2)).get_weight("x") == "mine"
