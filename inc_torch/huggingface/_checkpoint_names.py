"""Which tensor of a checkpoint belongs to which tensor of a model, as ``from_pretrained`` sees it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from torch import nn

from inc_torch.core.errors import ModelError

__all__ = ["names_in_model", "with_or_without_prefix"]

_OLD_NAMES = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}
"""What transformers 4.57 renames in every checkpoint."""


def names_in_model(model: nn.Module, stored: Iterable[str]) -> dict[str, str]:
    """Find the stored tensors of a Hugging Face model that has not been loaded.

    Args:
        model: A ``PreTrainedModel``; its weights do not matter.
        stored: Names in the files.

    Returns:
        Name in the model -> name in the files. Stored tensors that the model has no use for are left out, as are
        those of the model that are not stored.

    Raises:
        ModelError: transformers would put weights of the model together from several stored tensors, or split one.
    """
    known: Mapping[str, object] = model.state_dict()
    rename = _renamer(model, known)
    prefix = str(getattr(model, "base_model_prefix", ""))
    found = {name if name in known else with_or_without_prefix(rename(name), prefix, known): name for name in stored}
    return {new: old for new, old in found.items() if new in known}


def _renamer(model: nn.Module, known: Mapping[str, object]) -> Callable[[str], str]:
    """How the installed transformers renames what is stored under another name than the model has."""
    try:
        loading = importlib.import_module("transformers.core_model_loading")
        conversions = importlib.import_module("transformers.conversion_mapping").get_model_conversion_mapping(model)
    except ImportError:  # transformers 4.57
        return partial(_renamed_by_patterns, getattr(model, "_checkpoint_conversion_mapping", None) or {})
    renamings = [entry for entry in conversions if isinstance(entry, loading.WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, loading.WeightConverter)]

    def rename(name: str) -> str:
        new, converted = loading.rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if converted is not None and new in known:
            message = (
                f"{type(model).__name__} keeps {new!r} in another shape than the file, which has {name!r}: "
                "transformers converts such weights while it loads the whole model, and one by one they cannot be "
                "read. Load the model with from_pretrained, and quantize it without layer_wise_quant."
            )
            raise ModelError(message)
        return str(new)

    return rename


def _renamed_by_patterns(patterns: Mapping[str, str], name: str) -> str:
    for pattern, replacement in (*patterns.items(), *_OLD_NAMES.items()):
        name = re.sub(pattern, replacement, name)
    return name


def with_or_without_prefix(name: str, prefix: str, known: Collection[str]) -> str:
    """The name among ``known`` that differs by the name of the body in front, which checkpoints of bodies lack.

    Example:
        >>> with_or_without_prefix("wte.weight", "transformer", {"transformer.wte.weight"})
        'transformer.wte.weight'
        >>> with_or_without_prefix("transformer.wte.weight", "transformer", {"wte.weight"})
        'wte.weight'
        >>> with_or_without_prefix("lm_head.weight", "transformer", {"wte.weight"})
        'lm_head.weight'
    """
    candidates = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
    return next((candidate for candidate in candidates if candidate in known), name)
