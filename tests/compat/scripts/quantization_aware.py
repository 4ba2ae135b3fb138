"""Quantization-aware training in the user's loop, hooks on ``callbacks``."""

from __future__ import annotations

import torch
from neural_compressor import QuantizationAwareTrainingConfig
from neural_compressor.training import prepare_compression

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
conf = QuantizationAwareTrainingConfig(
    backend="default", relative=0.01, timeout=0, max_trials=100, strategy="basic", objective="performance"
)
compression_manager = prepare_compression(model, conf)
compression_manager.callbacks.on_train_begin()
model = compression_manager.model
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
data = [(torch.randn(4, 8), torch.randint(0, 2, (4,))) for _ in range(4)]
for epoch in range(2):
    compression_manager.callbacks.on_epoch_begin(epoch)
    for step, (x, y) in enumerate(data):
        compression_manager.callbacks.on_step_begin(step)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        compression_manager.callbacks.on_step_end()
    compression_manager.callbacks.on_epoch_end()
compression_manager.callbacks.on_train_end()
compression_manager.save("./saved")
print("bits:", [row.bits for row in compression_manager.model.report().modules])
