"""Transforms of samples, postprocessing, and the sections of files that name them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from inc_torch.core.errors import ConfigError, ConfigTypeError, ModelError
from inc_torch.core.evaluation import evaluate
from inc_torch.data import TRANSFORMS, BaseTransform, Postprocess, loader_of, postprocess_of, transform_registry
from inc_torch.metric import METRICS
from tests.support.vision import imported

RAMP = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def apply(name, image, *args, process="preprocess", **kwargs):
    out, label = TRANSFORMS("pytorch", process)[name](*args, **kwargs)((image, "label"))
    assert label == "label"
    return out


class TestArrays:
    def test_types_and_axes(self):
        assert apply("ToArray", Image.fromarray(RAMP)).tolist() == RAMP.tolist()
        assert apply("Transpose", RAMP, perm=[2, 0, 1]).tolist() == RAMP.transpose(2, 0, 1).tolist()
        assert apply("Transpose", torch.from_numpy(RAMP), [2, 0, 1]).shape == (3, 2, 4)
        assert apply("Cast", RAMP).dtype == np.float32
        assert apply("Cast", torch.ones(1), "bfloat16").dtype == torch.bfloat16
        with pytest.raises(
            ConfigError, match=r"Cast.dtype='flot32': expected a type of torch .* Did you mean 'float32'"
        ):
            TRANSFORMS()["Cast"]("flot32")

    def test_channels(self):
        grey = apply("AlignImageChannel", RAMP, 1)
        assert grey.shape == (2, 4, 1)
        assert grey[0, 0, 0] == int(0.299 * 0 + 0.587 * 1 + 0.114 * 2)
        assert apply("AlignImageChannel", RAMP[..., 0], 3).tolist() == np.repeat(RAMP[..., :1], 3, -1).tolist()
        assert apply("AlignImageChannel", np.concatenate([RAMP, RAMP[..., :1]], -1)).tolist() == RAMP.tolist()
        with pytest.raises(ConfigError, match="dim=2: expected 1 or 3"):
            TRANSFORMS()["AlignImageChannel"](2)
        with pytest.raises(ModelError, match=r"shape \(2, 4, 2\): expected 1, 3 or 4 channels"):
            apply("AlignImageChannel", RAMP[..., :2])

    def test_sizes_keep_their_proportions(self):
        assert apply("ResizeWithRatio", RAMP, 4, 100).shape == (4, 8, 3)
        assert apply("ResizeWithRatio", RAMP, 4, 6).shape == (3, 6, 3)  # the longer side is bounded
        padded = apply("ResizeWithRatio", RAMP + 1, 2, 4, padding=True, constant_value=99)
        assert padded.shape == (4, 4, 3)
        assert padded[1:3].tolist() == (RAMP + 1).tolist()
        assert (padded[[0, 3]] == 99).all()
        with pytest.raises(ModelError, match="ResizeWithRatio got an image of shape"):
            apply("ResizeWithRatio", np.ones(3))


class TestTorchvision:
    @pytest.fixture(autouse=True)
    def _torchvision(self):
        imported("torchvision.transforms")

    def test_each_does_what_torchvision_does(self):
        from torchvision import transforms

        image = Image.fromarray(RAMP)
        for name, arguments in (("Resize", {"size": 4}), ("CenterCrop", {"size": 2}), ("Pad", {"padding": 1})):
            expected = getattr(transforms, name)(**arguments)(image)
            assert np.array(apply(name, image, **arguments)).tolist() == np.array(expected).tolist()
        tensor = apply("ToTensor", image)
        assert tensor.shape == (3, 2, 4)
        assert apply("Normalize", tensor, mean=[0.5], std=[0.25]).allclose((tensor - 0.5) / 0.25)
        assert np.array(apply("ToPILImage", tensor)).tolist() == RAMP.tolist()
        assert np.array(apply("RandomHorizontalFlip", image, p=1.0)).tolist() == RAMP[:, ::-1].tolist()
        assert np.array(apply("RandomVerticalFlip", image, p=1.0)).tolist() == RAMP[::-1].tolist()
        assert apply("RandomCrop", image, 2).size == (2, 2)
        assert apply("RandomResizedCrop", image, [3, 5]).size == (5, 3)
        assert apply("ColorJitter", image, brightness=0.5).size == (4, 2)

    def test_crops(self):
        image = Image.fromarray(RAMP)
        assert np.array(apply("CropToBoundingBox", image, 1, 2, 1, 2)).tolist() == RAMP[1:, 2:].tolist()
        assert apply("CropResize", image, x=1, y=0, width=2, height=2, size=[6, 4]).size == (4, 6)
        one = apply("CropResize", image, x=2, y=1, width=1, height=1, size=[2, 2], interpolation="nearest")
        assert np.array(one).tolist() == [[RAMP[1, 2].tolist()] * 2] * 2

    @pytest.mark.parametrize(
        ("name", "arguments", "told"),
        [
            (
                "Resize",
                {"size": 4, "interpolation": "cubic"},
                "Resize.interpolation='cubic': expected one of 'nearest'",
            ),
            ("Normalize", {"std": [0.0]}, "Normalize.std=[0.0]: expected numbers other than 0"),
            ("Pad", {"paddin": 1}, "Did you mean 'padding'?"),
        ],
    )
    def test_what_is_wrong_is_told(self, name, arguments, told):
        with pytest.raises(ConfigError) as caught:
            TRANSFORMS()[name](**arguments)
        assert told in str(caught.value)


class TestNames:
    def test_processes_have_their_own_and_the_general_ones(self):
        assert set(TRANSFORMS("pytorch", "general").transforms) >= {"Cast", "Compose"}
        assert {"LabelShift", "Cast"} <= set(TRANSFORMS("pytorch", "postprocess").transforms)
        assert "LabelShift" not in TRANSFORMS("pytorch", "preprocess").transforms
        with pytest.raises(ConfigError, match=r"Unknown transform of outputs 'LabelShif'. Did you mean 'LabelShift'?"):
            TRANSFORMS("pytorch", "postprocess")["LabelShif"]
        with pytest.raises(
            ConfigError, match=r"TRANSFORMS.process='post': expected one of 'preprocess', 'postprocess'"
        ):
            TRANSFORMS("pytorch", "post")

    def test_one_of_the_user(self):
        @transform_registry("Minus", "preprocess", "pytorch")
        class Minus(BaseTransform):
            def __call__(self, sample):
                return -sample[0], sample[1]

        TRANSFORMS("pytorch_fx", "preprocess").register("Minus", Minus)
        section = {"dataset": {"dummy": {"shape": [3, 2], "low": 1, "high": 2}}, "transform": {"Minus": None}}
        ((images, _),) = loader_of(section)
        assert (images < 0).all()


class Best:
    def __init__(self, axis=-1):
        self.axis = axis

    def __call__(self, sample):
        output, label = sample
        return output.argmax(self.axis), label


class TestPostprocess:
    @pytest.mark.parametrize(
        "given",
        [
            Postprocess(Best, "best"),
            Postprocess("best", Best),
            Postprocess(Best, axis=1),
            Best,
            Best(),
            {"Best": {"axis": 1}},
        ],
    )
    def test_every_form_reaches_the_metric(self, given):
        transform_registry("Best", "postprocess")(Best)
        loader = [(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))]
        prepare = postprocess_of(given)
        assert evaluate(torch.nn.Identity(), loader, METRICS("pytorch")["Accuracy"](), prepare) == 0.5

    def test_several_run_in_order_and_names_can_be_used_again(self):
        assert postprocess_of({"LabelShift": 1, "Cast": "int64"})(torch.ones(1), [3, (4,)])[1] == [2, (3,)]
        assert (
            repr(Postprocess(Best, "best", axis=1))
            == repr(Postprocess(Best, "best", axis=1))
            == ("Postprocess(Best, 'best', axis=1)")
        )

    def test_errors_say_where(self):
        with pytest.raises(AttributeError) as caught:
            postprocess_of(Best)("no tensor", 0)
        assert caught.value.__notes__ == ["In the transform Best."]
        with pytest.raises(ConfigError, match=r"The postprocess 'best' cannot be made: .* Did you mean 'axis'?"):
            Postprocess(Best, "best", axes=1)
        with pytest.raises(ConfigTypeError, match="expected a class with a method __call__"):
            Postprocess(int)
        with pytest.raises(ConfigTypeError, match="postprocess is 5: expected a mapping"):
            postprocess_of(5)


class TestSections:
    def test_defaults_and_options(self):
        loader = loader_of({"dataset": {"dummy": {"shape": [70, 2]}}})
        assert (loader.batch_size, len(loader)) == (64, 2)
        section = {"batch_size": 8, "last_batch": "discard", "shuffle": True, "distributed": None, "filter": None}
        loader = loader_of({**section, "dataset": {"dummy": {"shape": [70, 2]}}})
        assert len(loader) == 8
        assert isinstance(loader.sampler, torch.utils.data.RandomSampler)

    @pytest.mark.parametrize(
        ("section", "told"),
        [
            ({}, "dataloader.dataset=None: expected one name with its arguments"),
            ({"dataset": {"dummy": {}, "MNIST": {}}}, "expected one name with its arguments"),
            ({"dataset": {"dummy": 5}}, "dataloader.dataset.dummy=5: expected a mapping of arguments"),
            ({"dataset": {"dummy": {"shap": [1, 2]}}}, "The data set 'dummy' cannot be made"),
            ({"dataset": {"dumy": {}}}, "Unknown data set 'dumy'. Did you mean 'dummy'?"),
            ({"batchsize": 1}, "dataloader.batchsize is unknown. Did you mean 'batch_size'?"),
            ({"dataset": {"dummy": {"shape": [1, 2]}}, "transform": {"Resise": 5}}, "Did you mean 'Resize'?"),
            (
                {"dataset": {"dummy": {"shape": [1, 2]}}, "transform": 5},
                "dataloader.transform is 5: expected a mapping",
            ),
        ],
    )
    def test_what_is_wrong_is_told(self, section, told):
        with pytest.raises(ConfigError) as caught:
            loader_of(section)
        assert told in str(caught.value)
