"""Configs that are built first and filled by assigning, as old scripts do."""

from __future__ import annotations

import torch
from neural_compressor import PostTrainingQuantConfig, WeightPruningConfig
from neural_compressor.quantization import fit

conf = PostTrainingQuantConfig()
conf.approach = "dynamic"
conf.op_name_dict = {"1": {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}}
pruning = WeightPruningConfig(pruning_type="magnitude", keep_mask_layers=True)
pruning.target_sparsity = 0.5
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
q_model = fit(model, config=conf)
print(conf.approach, pruning.target_sparsity, [row.bits for row in q_model.model.report().modules])
