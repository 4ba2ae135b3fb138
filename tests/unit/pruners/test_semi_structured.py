"""The hand-over of 2:4 weights to torch's sparse kernels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inc_torch import WeightPruningConfig, prepare_compression
from inc_torch.core.errors import InexactWarning, ModelError
from inc_torch.pruners.semi_structured import to_sparse_semi_structured


def pruned(device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 36), nn.ReLU(), nn.Linear(36, 7)).to(
        device, dtype
    )
    config = WeightPruningConfig(pattern="2:4", pruning_type="magnitude", target_sparsity=0.5)
    manager = prepare_compression(model, config)
    manager.on_train_begin()
    manager.on_step_begin(0)
    manager.on_train_end()
    return model


def test_on_a_cpu_it_is_refused_with_the_way_out_and_the_weights_stay():
    model = pruned()
    weight = model[0].weight
    with pytest.raises(ModelError, match=r"2 of 2 2:4 layers cannot be compressed.*on cpu: expected a CUDA device"):
        to_sparse_semi_structured(model)
    assert model[0].weight is weight


@pytest.mark.parametrize("zeros", [0, 1])
def test_a_dense_model_is_refused(zeros):
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight.data.view(-1, 4)[:, :zeros] = 0
    with pytest.raises(ModelError, match="no Linear with two zeros in each four inputs"):
        to_sparse_semi_structured(model)


def test_layers_that_fit_are_compressed_and_others_named(monkeypatch):
    """With a stand-in for the conversion, which torch does on CUDA alone."""
    converted = []

    def convert(weight):
        if weight.shape[0] % 32:
            message = "Both dimensions must be larger or equal than and a multiple of (32, 64)"
            raise RuntimeError(message)
        converted.append(weight.clone())
        return weight * 2

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", convert)
    monkeypatch.setattr("inc_torch.pruners.semi_structured._hindrance", lambda weight: None)
    model = pruned()
    before = model[0].weight.detach().clone()
    with pytest.warns(InexactWarning, match=r"1 of 2 2:4 layers cannot be compressed: '2'; '2': Both dimensions"):
        assert to_sparse_semi_structured(model) is model
    assert len(converted) == 1
    assert torch.equal(converted[0], before)
    assert torch.equal(model[0].weight, before * 2)
    assert not model[0].weight.requires_grad
    assert model[2].weight.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch compresses on CUDA alone")
def test_on_a_gpu_it_gives_the_same():
    model = pruned("cuda", torch.float16)
    batch = torch.randn(64, 64, device="cuda", dtype=torch.float16)
    before = model(batch)
    with pytest.warns(InexactWarning, match="1 of 2"):
        to_sparse_semi_structured(model)
    assert isinstance(model[0].weight, torch.sparse.SparseSemiStructuredTensor)
    torch.testing.assert_close(model(batch), before, rtol=1e-2, atol=1e-2)
