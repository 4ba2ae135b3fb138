"""Metrics by name and of one's own, the wrapper, an own data set with a method called len, and an evaluation."""

from __future__ import annotations

import sys

import torch
from neural_compressor import METRICS, Metric, quantization, set_random_seed, set_workspace
from neural_compressor.config import AccuracyCriterion, PostTrainingQuantConfig
from neural_compressor.data import DataLoader
from neural_compressor.metric import BaseMetric, metric_registry
from neural_compressor.model import Model


class OwnDataset:
    def __getitem__(self, index):
        if index >= 20:
            raise IndexError
        return torch.full((4,), float(index)), index % 2

    def len(self):
        return 20


@metric_registry("always_one", "pytorch")
class AlwaysOne(BaseMetric):
    def reset(self):
        self.samples = 0

    def update(self, preds, labels):
        self.samples += len(labels)

    def result(self):
        return 1.0 if self.samples == 20 else 0.0


set_random_seed(9527)
set_workspace("./nc_workspace")
top1 = METRICS("pytorch")["topk"](k=1)
top1.update([[0.1, 0.9]], [1])
model = Model(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)))
loader = DataLoader("pytorch", OwnDataset(), batch_size=5)
q_model = quantization.fit(
    model.model,
    PostTrainingQuantConfig(accuracy_criterion=AccuracyCriterion(criterion="relative", tolerable_loss=0.1)),
    calib_dataloader=loader,
    eval_dataloader=loader,
    eval_metric=Metric(name="always_one"),
)
print(sys.argv[1:], __name__, top1.result(), [row.bits for row in q_model.report().modules])
