"""Pruning in loops that call no hooks."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import transformers
from torch import nn

import inc_torch
from inc_torch import DistillationConfig, KnowledgeDistillationLossConfig, WeightPruningConfig
from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.training import CompressionManager, prepare_compression, prepare_pruning

CONFIG = WeightPruningConfig(target_sparsity=0.5, start_step=1, end_step=3, pattern="2x1")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).relu())


BATCHES = [torch.randn(4, 8, generator=torch.Generator().manual_seed(step)) for step in range(8)]


def loss_of(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def by_hooks(every: int = 1) -> dict[str, torch.Tensor]:
    """The weights after a loop that calls all hooks."""
    model = Net()
    manager, optimizer = prepare_compression(model, CONFIG), torch.optim.Adam(model.parameters(), lr=0.01)
    manager.on_train_begin()
    for index, batch in enumerate(BATCHES):
        manager.on_step_begin(index)
        loss_of(model, batch).backward()
        if (index + 1) % every == 0:
            manager.on_before_optimizer_step()
            optimizer.step()
            manager.on_after_optimizer_step()
            optimizer.zero_grad()
        manager.on_step_end()
    manager.on_train_end()
    return model.state_dict()


def prepared(**options: object) -> tuple[Net, torch.optim.Optimizer, CompressionManager]:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return model, optimizer, prepare_pruning(model, CONFIG, optimizer, **options)


def assert_same(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("every", [1, 2])
def test_the_loop_does_what_one_with_hooks_does(every):
    """Also where gradients are accumulated, and where an evaluation comes between."""
    model, optimizer, pruning = prepared()
    for index, batch in enumerate(BATCHES):
        loss_of(model, batch).backward()
        if (index + 1) % every == 0:
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        model(batch)
        model.train()
        with torch.no_grad():
            model(batch)
    pruning.on_train_end()
    assert_same(model, by_hooks(every))
    assert (model.body.weight == 0).sum() == 32
    assert pruning.report().sparsity == 0.5


@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_is_scored_when_it_has_computed_gradients(by_name):
    model, optimizer, pruning = prepared()
    for batch in BATCHES:

        def closure(batch: torch.Tensor = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
        assert isinstance(loss, torch.Tensor)
    pruning.on_train_end()
    assert_same(model, by_hooks())


def test_schedulers_and_scalers_go_on_and_a_skipped_step_does_not_count():
    model, optimizer, pruning = prepared()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=1.0)
    for index, batch in enumerate([*BATCHES[:2], BATCHES[0], *BATCHES[2:]]):
        loss = loss_of(model, batch)
        scaler.scale(loss * float("inf") if index == 2 else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scheduler.step()
    assert pruning.callbacks.progress.step == len(BATCHES)
    pruning.on_train_end()
    expected = by_hooks()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def test_evaluation_before_training_prunes_nothing():
    config = WeightPruningConfig(target_sparsity=0.5, pruning_type="magnitude", pattern="2x1")
    model = Net()
    pruning = prepare_pruning(model, config, torch.optim.SGD(model.parameters(), lr=0.1))
    model.eval()
    model(BATCHES[0])
    assert (model.body.weight != 0).all()
    model.train()
    model(BATCHES[0])
    assert (model.body.weight == 0).sum() == 32
    pruning.on_train_end()


def test_model_and_optimizer_can_be_copied_and_saved_whole():
    model, optimizer, pruning = prepared()
    loss_of(model, BATCHES[0]).backward()
    optimizer.step()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(other, model.state_dict())
        loss_of(other, BATCHES[0]).backward()
    assert pruning.callbacks.progress.step == 1
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    pruning.on_train_begin()


def test_at_the_end_everything_is_let_go():
    model, optimizer, pruning = prepared()
    for batch in BATCHES:
        loss_of(model, batch).backward()
        optimizer.step()
    pruning.on_train_end()
    assert not model._forward_pre_hooks
    loss_of(model, BATCHES[0]).backward()
    optimizer.step()


def test_a_yaml_file_is_a_configuration(tmp_path):
    path = tmp_path / "pruning.yaml"
    path.write_text("WeightPruningConfig:\n  target_sparsity: 0.5\n  pruning_type: magnitude\n")
    model = Net()
    pruning = prepare_pruning(model, path, torch.optim.SGD(model.parameters(), lr=0.1))
    assert pruning.configs[0].target_sparsity == 0.5
    model(BATCHES[0])
    pruning.on_train_end()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ConfigTypeError, r"optimizer=None\): expected the optimizer that trains the model"),
        ({"optimizer": "adam"}, ConfigTypeError, r"optimizer='adam'\): expected the optimizer"),
        ({"dataloader": []}, ConfigError, r"dataloader=\.\.\.\): a type that prunes while a model is trained does not"),
        ({"framework": "onnx"}, ConfigError, r"framework='onnx'\): expected 'pytorch'"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_is_touched(options, error, message):
    model = Net()
    with pytest.raises(error, match=message):
        prepare_pruning(model, CONFIG, **options)
    assert not model._forward_pre_hooks


def test_other_techniques_are_refused():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = DistillationConfig(Net(), KnowledgeDistillationLossConfig())
    with pytest.raises(ConfigTypeError, match="expected a WeightPruningConfig or the path"):
        prepare_pruning(model, other, optimizer)


def test_it_is_where_users_of_inc_look_for_it():
    assert inc_torch.prepare_pruning is prepare_pruning


# ------------------------------------------------------------------------------------------- after training


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config).eval()


IDS = [torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(step)) for step in range(3)]


@pytest.mark.parametrize(("pattern", "sparsity"), [("1x1", 0.6), ("2:4", 0.5)])
def test_a_trained_transformer_is_pruned_at_once(pattern, sparsity, tmp_path):
    model = llama()
    config = WeightPruningConfig(pruning_type="sparse_gpt", pattern=pattern, target_sparsity=sparsity, op_names="mlp")
    pruning = prepare_pruning(model, config, dataloader=[{"input_ids": ids} for ids in IDS])
    pruning.on_train_end()  # as scripts for INC do
    rows = {row.name: row for row in pruning.report().modules}
    assert len(rows) == 16
    for name, row in rows.items():
        is_pruned = ".mlp." in name
        assert row.zeros == (int(sparsity * row.numel) if is_pruned else 0), name
        assert row.asked_sparsity == (sparsity if is_pruned else None), name
    if pattern == "2:4":
        groups = model.model.layers[0].mlp.up_proj.weight.view(-1, 4)
        assert ((groups == 0).sum(1) == 2).all()
    pruning.save(tmp_path / "saved")
    again = inc_torch.load(tmp_path / "saved", model=llama())
    assert torch.equal(again(IDS[0]).logits, model(IDS[0]).logits)


def test_it_loses_less_than_magnitude_pruning_of_as_many_weights():
    model = llama()
    before = torch.cat([model(ids).logits for ids in IDS])
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    options = {"pattern": "1x1", "target_sparsity": 0.6, "op_names": "layers", "pruning_scope": "local"}
    prepare_pruning(ours, WeightPruningConfig(pruning_type="sparse_gpt", **options), dataloader=IDS)
    manager = prepare_compression(theirs, WeightPruningConfig(pruning_type="magnitude", **options))
    manager.on_train_begin()
    manager.on_step_begin(0)
    manager.on_train_end()
    errors = [(torch.cat([each(ids).logits for ids in IDS]) - before).square().mean() for each in (ours, theirs)]
    assert errors[0] < 0.7 * errors[1]


def test_hooks_cannot_prune_after_training():
    config = WeightPruningConfig(pruning_type="sparse_gpt", pattern="1x1")
    with pytest.raises(ConfigError, match=r"Call prepare_pruning\(model, config, dataloader=\.\.\.\)"):
        prepare_compression(llama(), config)


def test_what_pruning_after_training_needs_is_asked_for():
    config = WeightPruningConfig(pruning_type="sparse_gpt", pattern="1x1")
    with pytest.raises(ConfigError, match=r"dataloader=None\): expected batches"):
        prepare_pruning(llama(), config)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    with pytest.raises(ConfigError, match=r"optimizer=\.\.\.\): a type that prunes after training does not use it"):
        prepare_pruning(llama(), config, optimizer, IDS)
    mixed = WeightPruningConfig([{"op_names": "mlp"}, {"op_names": "attn", "pruning_type": "magnitude"}],
                                pruning_type="sparse_gpt", pattern="1x1")  # fmt: skip
    with pytest.raises(ConfigError, match="expected one kind"):
        prepare_pruning(llama(), mixed, dataloader=IDS)
