"""Distillation from a copy of the model itself, and pruning by the default config, in one training."""

from __future__ import annotations

import torch
from neural_compressor.config import DistillationConfig, KnowledgeDistillationLossConfig, WeightPruningConfig
from neural_compressor.training import prepare_compression

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
distillation_criterion = KnowledgeDistillationLossConfig()
d_conf = DistillationConfig(model, distillation_criterion)
p_conf = WeightPruningConfig()
compression_manager = prepare_compression(model=model, confs=[d_conf, p_conf])
compression_manager.callbacks.on_train_begin()
compression_manager.on_train_begin()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(4):
    compression_manager.on_step_begin(step)
    x, y = torch.randn(8, 16), torch.randint(0, 4, (8,))
    output = model(x)
    loss = torch.nn.functional.cross_entropy(output, y)
    loss = compression_manager.on_after_compute_loss(x, output, loss)
    optimizer.zero_grad()
    loss.backward()
    compression_manager.on_before_optimizer_step()
    optimizer.step()
    compression_manager.on_step_end()
compression_manager.on_train_end()
model.save("./path/to/save")
print("zeros:", round(float((model[0].weight == 0).float().mean()), 2))
