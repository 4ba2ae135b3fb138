"""Data sets by name: what they read, from files that are written here."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from inc_torch.core.errors import ArtifactError, ConfigError, MissingPackageError
from inc_torch.data import FILTERS, DataLoader, Datasets, Filter, dataset_registry, filter_registry, loader_of
from tests.support.vision import imported

DATASETS = Datasets("pytorch")


class TestDummy:
    def test_values_are_those_of_the_seed_and_the_global_generator_is_left_alone(self):
        before = np.random.get_state()[1].copy()
        images = DATASETS["dummy"](shape=(4, 2, 3), low=0.0, high=1.0)
        assert np.array_equal(np.random.get_state()[1], before)
        expected = np.random.RandomState(9527).uniform(0.0, 1.0, (4, 2, 3)).astype("float32")
        assert len(images) == 4
        assert all(np.array_equal(images[index][0], expected[index]) for index in range(4))
        assert [images[index][1] for index in range(4)] == [0] * 4

    def test_two_shapes_give_pairs(self):
        loader = DataLoader(DATASETS["dummy"]([(6, 3), (6, 2)], dtype=["float32", "int64"], low=1, high=[2, 9]), 6)
        ((first, second), labels) = next(iter(loader))
        assert (first.shape, second.shape, second.dtype) == ((6, 3), (6, 2), torch.int64)
        assert first.min() >= 1 > first.max() - 1
        assert labels.tolist() == [0] * 6

    def test_without_a_label_and_with_a_filter_and_a_transform(self):
        assert DATASETS["dummy"]((2, 3), label=False)[0].shape == (3,)
        kept = DATASETS["dummy"](
            (50, 1), transform=lambda sample: (abs(sample[0]), 1), filter=lambda image, _: image[0] < 0
        )
        assert 0 < len(kept) < 50
        assert all(image[0] > 0 and label == 1 for image, label in (kept[index] for index in range(len(kept))))
        with pytest.raises(IndexError):
            kept[len(kept)]

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            ({"shape": "big"}, "dummy.shape='big': expected a shape such as (100, 3, 32, 32)"),
            ({"shape": (0, 3)}, "dummy.shape=(0, 3)"),
            ({"shape": [(2, 3), (4, 3)]}, "expected the same number of samples"),
            ({"shape": (2, 3), "dtype": "flaot32"}, "dummy.dtype='flaot32': expected a type of numpy"),
            ({"shape": (2, 3), "low": 5, "high": 1}, "dummy.low=5: expected at most high=1"),
            ({"shape": (2, 3), "low": [1, 2]}, "expected one value, or one for each of 1 arrays"),
        ],
    )
    def test_what_is_wrong_is_told(self, arguments, told):
        with pytest.raises(ConfigError) as caught:
            DATASETS["dummy"](**arguments)
        assert told in str(caught.value)


class TestStreams:
    def test_shapes_labels_filter_and_transform(self):
        (one, two), label = next(iter(DATASETS["dummy_v2"]([(3,), (2, 2)], (1,), low=0, high=[1, 1, 9])))
        assert (one.shape, two.shape, label.shape) == ((3,), (2, 2), (1,))
        assert next(iter(DATASETS["dummy_v2"]((3,)))).shape == (3,)
        stream = iter(
            DATASETS["dummy_v2"](
                (1,), (1,), filter=lambda image, _: image[0] < 0, transform=lambda pair: (abs(pair[0]), pair[1])
            )
        )
        assert all(next(stream)[0] > 0 for _ in range(20))

    def test_workers_draw_other_values(self):
        batches = torch.stack([image for image, _ in DataLoader(DATASETS["dummy_v2"]((2,), (1,)), 1, num_workers=2)])
        assert len(batches.unique(dim=0)) == 10

    def test_the_sparse_one_has_its_zeros_at_changing_places(self):
        stream = iter(DATASETS["sparse_dummy_v2"]((10, 10), (5,), sparse_ratio=0.9, low=1, high=2))
        (first, label), (second, _) = next(stream), next(stream)
        assert (first == 0).sum() == (second == 0).sum() == 90
        assert not np.array_equal(first == 0, second == 0)
        assert (label != 0).all()
        with pytest.raises(ConfigError, match=r"sparse_dummy_v2.sparse_ratio=2: expected a number from 0 to 1"):
            DATASETS["sparse_dummy_v2"]((10,), sparse_ratio=2)


class TestBert:
    ROWS = TensorDataset(*(torch.full((2, 4), value) for value in range(3)), torch.tensor([7, 8]))

    def test_columns_become_inputs_by_name(self):
        inputs, label = next(iter(DataLoader(DATASETS["bert"](self.ROWS, "classifier"), 2)))
        assert {name: value[0, 0].item() for name, value in inputs.items()} == {
            "input_ids": 0,
            "attention_mask": 1,
            "token_type_ids": 2,
        }
        assert label.tolist() == [7, 8]
        assert "token_type_ids" not in DATASETS["bert"](self.ROWS, "squad", model_type="distilbert")[0][0]

    def test_what_is_wrong_is_told(self):
        with pytest.raises(ConfigError, match="task='qa': expected one of 'classifier', 'squad'"):
            DATASETS["bert"](self.ROWS, "qa")
        with pytest.raises(ConfigError, match="got a row of 2 columns"):
            DATASETS["bert"]([(1, 2)])[0]


@pytest.fixture
def photos(tmp_path):
    """Two classes with a picture each; a list of them; boxes around nothing."""
    for name, colour in (("cats", (255, 0, 0)), ("dogs", (0, 0, 255))):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 4), colour).save(tmp_path / "images" / name / "one.png")
    (tmp_path / "images" / "val.txt").write_text("cats/one.png 3\ndogs/one.png 5\n\n")
    annotations = {
        "images": [
            {"id": 9, "file_name": "cats/one.png", "height": 4, "width": 8},
            {"id": 4, "file_name": "dogs/one.png", "height": 4, "width": 8},
        ],
        "categories": [{"id": 17, "name": "cat"}],
        "annotations": [{"image_id": 9, "bbox": [2, 1, 4, 2], "category_id": 17}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(annotations))
    return tmp_path


def test_imagenet_reads_a_list(photos):
    images = DATASETS["ImagenetRaw"](photos / "images", transform=lambda pair: (pair[0].getpixel((0, 0)), pair[1]))
    assert [images[0], images[1]] == [((255, 0, 0), 3), ((0, 0, 255), 5)]
    with pytest.raises(ArtifactError, match="does not exist: expected a text file"):
        DATASETS["ImagenetRaw"](photos)
    (photos / "bad.txt").write_text("cats/one.png three\n")
    with pytest.raises(ArtifactError, match=r"line 1: got 'cats/one.png three', expected an image and its class"):
        DATASETS["ImagenetRaw"](photos, photos / "bad.txt")
    (photos / "gone.txt").write_text("gone.png 3\n")
    with pytest.raises(ArtifactError, match=r"gone.png' cannot be read as an image"):
        DATASETS["ImagenetRaw"](photos, photos / "gone.txt")[0]


class TestCoco:
    def test_boxes_are_shares_of_the_image(self, photos):
        images = DATASETS["COCORaw"](photos, "images", "boxes.json")
        image, (boxes, names, classes, number) = images[0]
        assert image.size == (8, 4)
        assert boxes.tolist() == [[0.25, 0.25, 0.75, 0.75]]
        assert (names, classes.tolist(), number) == (["cat"], [17], 9)
        assert images[1][1][0].shape == (0, 4)

    def test_a_filter_reads_no_image_and_batches_fit_the_metric(self, photos):
        keeps = FILTERS("pytorch")["LabelBalance"](1)
        (photos / "images" / "dogs" / "one.png").unlink()
        batch, labels = next(iter(DataLoader(DATASETS["COCORaw"](photos, "images", "boxes.json", filter=keeps), 4)))
        assert batch.shape == (1, 4, 8, 3)
        assert [len(part) for part in labels] == [1, 1, 1, 1]
        assert (labels[1], labels[3]) == ([["cat"]], [9])

    def test_arrays_beside_the_boxes(self, photos):
        (photos / "arrays" / "cats").mkdir(parents=True)
        np.save(photos / "arrays" / "cats" / "one.png.npy", np.full((3, 4, 8), 2.0))
        images = DATASETS["COCONpy"](photos, "arrays", "boxes.json")
        assert images[0][0].sum() == 192
        with pytest.raises(ArtifactError, match="cannot be read as an array"):
            images[1]

    def test_what_is_no_such_file(self, photos):
        with pytest.raises(ArtifactError, match="does not exist: expected the JSON file of boxes"):
            DATASETS["COCORaw"](photos)
        (photos / "other.json").write_text("{}")
        with pytest.raises(ArtifactError, match="is no file of boxes as COCO has them"):
            DATASETS["COCORaw"](photos, "images", "other.json")


class TestTorchvision:
    @pytest.fixture(autouse=True)
    def _torchvision(self):
        imported("torchvision.datasets")

    def test_a_folder_of_images(self, photos):
        images = DATASETS["ImageFolder"](photos / "images", transform=lambda pair: (pair[0].size, pair[1]))
        assert [images[0], images[1]] == [((8, 4), 0), ((8, 4), 1)]
        with pytest.raises(ArtifactError, match="The data set ImageFolder is not in"):
            DATASETS["ImageFolder"](photos / "nowhere")

    @pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST"])
    def test_nothing_is_downloaded_unless_asked_for(self, name, tmp_path, monkeypatch):
        asked = []
        owner = getattr(imported("torchvision.datasets"), name)
        monkeypatch.setattr(owner, "download", lambda self: asked.append(name))
        with pytest.raises(ArtifactError, match=f"The data set {name} is not in .*download: true in a file"):
            DATASETS[name](root=tmp_path)
        assert not asked
        with pytest.raises(ArtifactError):
            DATASETS[name](root=tmp_path, download=True)
        assert asked == [name]

    def test_mnist_reads_its_files(self, tmp_path):
        folder = tmp_path / "MNIST" / "raw"
        folder.mkdir(parents=True)
        for part, count in (("train", 3), ("t10k", 2)):
            head = np.array([0x803, count, 28, 28], dtype=">i4").tobytes()
            (folder / f"{part}-images-idx3-ubyte").write_bytes(head + bytes(count * 784))
            head = np.array([0x801, count], dtype=">i4").tobytes()
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + bytes(range(count)))
        assert [label for _, label in DATASETS["MNIST"](tmp_path, train=True)] == [0, 1, 2]
        assert len(DATASETS["MNIST"](tmp_path)) == 2


def test_without_torchvision_the_way_out_is_told(monkeypatch, tmp_path):
    from importlib import util

    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "torchvision" else real(name, *rest))
    with pytest.raises(
        MissingPackageError, match=r"The data set ImageFolder needs the package 'torchvision'.*\[vision\]"
    ):
        DATASETS["ImageFolder"](tmp_path)
    from inc_torch.data import TRANSFORMS

    with pytest.raises(MissingPackageError, match=r"The transform Resize needs .*pip install 'inc_torch\[vision\]'"):
        TRANSFORMS("pytorch")["Resize"](8)


class TestOwn:
    def test_a_class_of_the_user_is_wrapped(self):
        @dataset_registry("Mine", "pytorch, pytorch_fx")
        class Mine:
            def __init__(self, size):
                self.size = size

            def __getitem__(self, index):
                return np.full(2, index), index

            def __len__(self):
                return self.size

        @filter_registry("AboveOne")
        class AboveOne(Filter):
            def __call__(self, image, label):
                return label > 1

        loader = loader_of(
            {"batch_size": 8, "dataset": {"Mine": {"size": 4}}, "transform": {"Cast": {}}, "filter": {"AboveOne": None}}
        )
        ((images, labels),) = loader
        assert images.tolist() == [[2.0, 2.0], [3.0, 3.0]]
        assert images.dtype == torch.float32
        assert labels.tolist() == [2, 3]
        Datasets("pytorch").register("Mine", Mine)  # the same class again

    def test_taken_and_unknown_names(self):
        with pytest.raises(ConfigError, match="The data set 'dummy' is already registered"):
            dataset_registry("dummy")(type("Other", (), {}))
        with pytest.raises(ConfigError, match=r"Unknown data set 'imagefolder'. Did you mean 'ImageFolder'?"):
            DATASETS["imagefolder"]
        with pytest.raises(ConfigError, match=r"Unknown filter 'LabelBalanc'. Did you mean 'LabelBalance'?"):
            FILTERS("pytorch")["LabelBalanc"]
        with pytest.raises(ConfigError, match=r"Datasets.framework='mxnet'"):
            Datasets("mxnet")
