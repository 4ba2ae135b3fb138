"""Conversion to bfloat16."""

from __future__ import annotations

import torch
from neural_compressor import mix_precision
from neural_compressor.config import AccuracyCriterion, MixedPrecisionConfig, TuningCriterion

conf = MixedPrecisionConfig(
    backend="default",
    inputs="image_tensor",
    outputs="num_detections",
    device="cpu",
    tuning_criterion=TuningCriterion(max_trials=2),
    accuracy_criterion=AccuracyCriterion(tolerable_loss=0.5),
    precision="bf16",
)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)).eval()
converted_model = mix_precision.fit(model, config=conf)
converted_model.save("./converted")
print("bits:", [row.bits for row in converted_model.report().modules], converted_model(torch.ones(1, 8)).dtype)
