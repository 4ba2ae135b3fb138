"""The quantization config and the quantizer that transformers calls to open a compressed directory.

Only imported once transformers is; everything that subclasses its classes is here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from inc_torch.core.errors import ArtifactError, did_you_mean
from inc_torch.core.report import CompressionReport
from inc_torch.export._files import read_json, tensor_names
from inc_torch.export._proof import attach_report, measured_report, prove_report, read_report
from inc_torch.export._tensors import checksum, int8_modules, share_equal_codes, split_name
from inc_torch.huggingface._layout import REPORT, SAVE_AGAIN, VERSION, untie
from inc_torch.huggingface.registration import QUANT_METHOD
from inc_torch.quantizers import dequantize, describe_int8, rebuild_int8

__all__ = ["IncTorchConfig", "IncTorchQuantizer", "adopt"]

logger = logging.getLogger("inc_torch.huggingface")


@final
class IncTorchConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a compressed model's ``config.json``.

    Attributes:
        version: Of this layout.
        modules: Int8 modules by name, as `describe_int8` describes them.
        aliases: Int8 codes that are stored once and used twice: second name -> name in the file.
        checksums: CRC-32 of each int8 module's tensors.
    """

    def __init__(
        self,
        version: int = VERSION,
        modules: Mapping[str, Mapping[str, object]] | None = None,
        aliases: Mapping[str, str] | None = None,
        checksums: Mapping[str, str] | None = None,
        **unknown: object,
    ) -> None:
        if not isinstance(version, int) or version > VERSION:
            message = (
                f"quantization_config.version={version!r}: expected {VERSION} or older, so a newer inc_torch wrote it. "
                "Upgrade: pip install -U inc_torch."
            )
            raise ArtifactError(message)
        if extra := sorted(set(unknown) - {"quant_method"}):
            known = ("version", "modules", "aliases", "checksums")
            message = (
                f"quantization_config.{extra[0]}={unknown[extra[0]]!r}: expected one of {', '.join(known)}."
                f"{did_you_mean(extra[0], known)} {SAVE_AGAIN}"
            )
            raise ArtifactError(message)
        self.quant_method = QUANT_METHOD
        self.version = version
        self.modules = {name: dict(entry) for name, entry in (modules or {}).items()}
        self.aliases = dict(aliases or {})
        self.checksums = dict(checksums or {})


@final
class IncTorchQuantizer(HfQuantizer):
    """Rebuilds the int8 modules before transformers loads weights, and checks afterwards that it got them all."""

    requires_calibration = True

    def __init__(self, quantization_config: IncTorchConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._names: dict[str, str] = {}
        self._source: _Source | None = None

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype

    def update_torch_dtype(self, dtype: torch.dtype | None) -> torch.dtype | None:
        """The name that transformers 4.57 calls."""
        return dtype

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> nn.Module:
        config: IncTorchConfig = self.quantization_config
        self._names = _names_in(model, config)
        self._source = _Source.of(model, checkpoint_files)
        rebuild_int8(model, {self._names[name]: entry for name, entry in config.modules.items() if name in self._names})
        int8 = int8_modules(model)
        _keep_scales_exact(int8)
        untie(model, int8)
        for second in self._aliases():
            owner, leaf = split_name(second)
            # Not in the files and not missing either: `_tie` puts it in place.
            int8[owner]._non_persistent_buffers_set.add(leaf)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        int8 = int8_modules(model)
        for second, first in self._aliases().items():
            owner, leaf = split_name(second)
            other, other_leaf = split_name(first)
            int8[owner]._buffers[leaf] = int8[other]._buffers[other_leaf]
            int8[owner]._non_persistent_buffers_set.discard(leaf)
        _keep_scales_exact(int8)
        self._check(model, int8)
        self._names, self._source = {}, None
        return model

    def _aliases(self) -> dict[str, str]:
        """The aliases under the names of the model that is being loaded, as far as it has both."""
        found = {}
        for second, first in self.quantization_config.aliases.items():
            names = [(self._names.get(owner), leaf) for owner, leaf in map(split_name, (second, first))]
            if all(owner is not None for owner, _ in names):
                found[".".join(filter(None, names[0]))] = ".".join(filter(None, names[1]))
        return found

    def _check(self, model: nn.Module, int8: Mapping[str, nn.Module]) -> None:
        config: IncTorchConfig = self.quantization_config
        source = self._source or _Source(())
        for saved_name, name in self._names.items():
            value = checksum(int8[name])
            if value is None or value == config.checksums.get(saved_name):
                continue
            missing = [leaf for leaf in int8[name].state_dict() if not source.has(saved_name, leaf)]
            found = f"the files lack {', '.join(map(repr, missing))}" if missing else f"got checksum {value!r}"
            message = (
                f"Int8 module {name!r} of {type(model).__name__} was not loaded from {source.where!r} as it was saved: "
                f"{found}, expected checksum {config.checksums.get(saved_name)!r}. The weights and config.json are of "
                f"two different saves, or a file is damaged. {SAVE_AGAIN}"
            )
            raise ArtifactError(message)
        stored = source.report(model)
        same_model = type(model).__name__ in (model.config.architectures or ())  # type: ignore[union-attr, operator]
        if stored is None or not same_model or any(value.is_meta for value in model.state_dict().values()):
            attach_report(model, measured_report(model, None))
        else:
            attach_report(model, prove_report(model, stored, source.report_path))

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        dequantize(model)
        return model.to(dtype) if dtype is not None else model

    def get_state_dict_and_metadata(
        self, model: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The state to save: shared codes once, every other tensor of an int8 module with memory of its own."""
        int8 = int8_modules(model)
        state = dict(model.state_dict())
        for second in self.quantization_config.aliases:
            state.pop(second, None)
        memory = [tensor.untyped_storage().data_ptr() for tensor in state.values()]
        for name, tensor in state.items():
            if split_name(name)[0] in int8 and memory.count(tensor.untyped_storage().data_ptr()) > 1:
                state[name] = tensor.clone()
        return state, {}

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True
