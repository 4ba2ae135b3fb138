"""Pruning with two local configs."""

from __future__ import annotations

import torch
from neural_compressor.training import WeightPruningConfig, prepare_compression


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU())
        self.layer2 = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU())
        self.head = torch.nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.layer2(self.layer1(x)))


torch.manual_seed(0)
model = Net()
configs = WeightPruningConfig(
    [
        {"start_step": 0, "end_step": 4, "target_sparsity": 0.75, "op_names": ["layer1.*"], "pattern": "4x1"},
        {"start_step": 0, "end_step": 4, "target_sparsity": 0.5, "op_names": ["layer2.*"], "pattern": "1x1"},
    ],
    pruning_type="snip_momentum",
    pruning_frequency=1,
)
compression_manager = prepare_compression(model=model, confs=configs)
compression_manager.callbacks.on_train_begin()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for step in range(8):
    compression_manager.callbacks.on_step_begin(step)
    loss = model(torch.randn(4, 16)).square().sum()
    loss.backward()
    compression_manager.callbacks.on_before_optimizer_step()
    optimizer.step()
    compression_manager.callbacks.on_after_optimizer_step()
    optimizer.zero_grad()
    compression_manager.callbacks.on_step_end()
compression_manager.callbacks.on_train_end()
zeros = {name: float((weight == 0).float().mean()) for name, weight in model.named_parameters() if "weight" in name}
print("zeros:", {name: round(share, 2) for name, share in zeros.items()})
