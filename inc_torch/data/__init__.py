"""Loaders, data sets, transforms and filters under the names that Intel Neural Compressor gave them.

A sample is ``(image, label)``; a transform maps one to another. Everything can be named in a file of settings, see
`loader_of` and `postprocess_of`. torchvision is imported when one of its data sets or transforms is made.
"""

from __future__ import annotations

from torch.utils.data import Dataset, IterableDataset

from inc_torch.data._dataset import Datasets, dataset_registry
from inc_torch.data._filter import FILTERS, Filter, filter_registry
from inc_torch.data._loader import DATALOADERS, DataLoader, check_dataloader
from inc_torch.data._postprocess import Postprocess
from inc_torch.data._sections import loader_of, postprocess_of
from inc_torch.data._transform import TRANSFORMS, BaseTransform, transform_registry

PyTorchDataLoader = DataLoader
"""The name that it has in tests and examples of INC."""

__all__ = [
    "DATALOADERS",
    "FILTERS",
    "TRANSFORMS",
    "BaseTransform",
    "DataLoader",
    "Dataset",
    "Datasets",
    "Filter",
    "IterableDataset",
    "Postprocess",
    "PyTorchDataLoader",
    "check_dataloader",
    "dataset_registry",
    "filter_registry",
    "loader_of",
    "postprocess_of",
    "transform_registry",
]
