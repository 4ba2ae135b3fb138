"""Post-training quantization with accuracy in view, all keys of the config, saving and loading."""

from __future__ import annotations

import torch
from neural_compressor import quantization
from neural_compressor.config import AccuracyCriterion, PostTrainingQuantConfig, TuningCriterion
from neural_compressor.data import DATALOADERS, Datasets
from neural_compressor.utils import logger
from neural_compressor.utils.pytorch import load


class M(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.linear = torch.nn.Linear(8 * 6 * 6, 4)

    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).flatten(1))


torch.manual_seed(0)
model = M().eval()
dataset = Datasets("pytorch")["dummy"](shape=(100, 3, 8, 8), low=0.0, high=1.0, label=True)
dataloader = DATALOADERS["pytorch"](dataset, batch_size=10)
evaluated = []


def eval_func(model):
    evaluated.append(model)
    return 1.0


conf = PostTrainingQuantConfig(
    device="cpu",
    backend="default",
    inputs="image_tensor",
    outputs="num_detections,detection_boxes",
    approach="post_training_static_quant",
    calibration_sampling_size=[10, 20],
    strategy="basic",
    objective="performance",
    performance_only=False,
    tuning_criterion=TuningCriterion(timeout=0, max_trials=3),
    accuracy_criterion=AccuracyCriterion(tolerable_loss=0.01),
    an_option_of_a_newer_release=True,
)
q_model = quantization.fit(model, conf=conf, calib_dataloader=dataloader, eval_func=eval_func)
q_model.save("./saved")
logger.info("saved")
loaded = load("./saved", M())
x = torch.rand(2, 3, 8, 8)
assert torch.equal(loaded(x), q_model(x))
assert len(evaluated) >= 2
print("int8:", sorted(row.name for row in q_model.report().modules if row.bits == 8))
