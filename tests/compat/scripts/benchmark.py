"""Timing a model on a loader of INC's."""

from __future__ import annotations

import torch
from neural_compressor.benchmark import fit
from neural_compressor.config import BenchmarkConfig
from neural_compressor.data import DataLoader, Datasets

dataset = Datasets("pytorch")["dummy"](shape=(12, 8))
conf = BenchmarkConfig(warmup=2, iteration=10, cores_per_instance=1, num_of_instance=1)
model = torch.nn.Linear(8, 2)
result = fit(model=model, config=conf, b_dataloader=DataLoader("pytorch", dataset))
accuracy, batch_size, seconds = result["performance"]
print("timed:", accuracy, batch_size, len(seconds))
