"""Tests in the manner of INC's own: small models in a file that is run by itself."""

from __future__ import annotations

import shutil
import unittest

import torch
from neural_compressor import PostTrainingQuantConfig, quantization
from neural_compressor.config import QuantizationAwareTrainingConfig, WeightPruningConfig
from neural_compressor.data import DATALOADERS, DataLoader, Datasets
from neural_compressor.training import fit as fit_training
from neural_compressor.training import prepare_compression
from neural_compressor.utils.constant import FP32
from neural_compressor.utils.pytorch import load


class M(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.bn = torch.nn.BatchNorm2d(4)
        self.relu = torch.nn.ReLU()
        self.linear = torch.nn.Linear(4 * 4 * 4, 2)

    def forward(self, x):
        x = self.relu(self.bn(self.conv(x)))
        return self.linear(x.reshape(x.shape[0], -1))


class CalibDataloader:
    def __init__(self, data, label):
        self.data = data
        self.label = label
        self.batch_size = 1

    def __iter__(self):
        yield self.data, self.label


class TestPytorch(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dataset = Datasets("pytorch")["dummy"](shape=(16, 3, 6, 6), low=0.0, high=1.0)
        cls.dataloader = DATALOADERS["pytorch"](cls.dataset)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree("./saved", ignore_errors=True)

    def test_static(self):
        model = M().eval()
        conf = PostTrainingQuantConfig(approach="static", op_type_dict={"Linear": FP32})
        q_model = quantization.fit(model, conf, calib_dataloader=self.dataloader)
        q_model.save("./saved")
        saved_model = load("./saved", model)
        x = torch.rand(1, 3, 6, 6)
        self.assertTrue(torch.equal(q_model(x), saved_model(x)))
        self.assertIs(type(q_model.model.linear), torch.nn.Linear)

    def test_dynamic_and_default_conf(self):
        q_model = quantization.fit(M(), PostTrainingQuantConfig(approach="dynamic"))
        self.assertEqual({row.bits for row in q_model.report().modules if row.name == "linear"}, {8})

    def test_a_loader_of_ones_own(self):
        loader = CalibDataloader(torch.rand(1, 3, 6, 6), torch.zeros(1))
        q_model = quantization.fit(M(), PostTrainingQuantConfig(), calib_dataloader=loader)
        self.assertEqual({row.bits for row in q_model.report().modules}, {8})

    def test_qat_by_fit(self):
        model = M()

        def train_func(model):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0001)
            for image, _ in DataLoader("pytorch", self.dataset, batch_size=4):
                optimizer.zero_grad()
                model(image).sum().backward()
                optimizer.step()
            return model

        manager = prepare_compression(model, QuantizationAwareTrainingConfig())
        q_model = fit_training(compression_manager=manager, train_func=train_func, eval_func=lambda model: 1.0)
        self.assertEqual({row.bits for row in q_model.report().modules}, {8})

    def test_pruning(self):
        model = M()
        config = WeightPruningConfig([{"pruning_type": "magnitude"}], target_sparsity=0.5, pattern="1x1", end_step=2)
        compression_manager = prepare_compression(model, config)
        compression_manager.callbacks.on_train_begin()
        optimizer = torch.optim.SGD(compression_manager.model.parameters(), lr=0.01)
        for step in range(4):
            compression_manager.callbacks.on_step_begin(step)
            compression_manager.model(torch.rand(2, 3, 6, 6)).sum().backward()
            compression_manager.callbacks.on_before_optimizer_step()
            optimizer.step()
            compression_manager.callbacks.on_after_optimizer_step()
            compression_manager.callbacks.on_step_end()
        compression_manager.callbacks.on_train_end()
        self.assertAlmostEqual(float((model.conv.weight == 0).float().mean()), 0.5, delta=0.2)
        self.assertEqual(len(compression_manager.callbacks.callbacks_list[0].pruners), 1)


if __name__ == "__main__":
    unittest.main()
