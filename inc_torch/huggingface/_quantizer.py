"""The quantization config and the quantizer that transformers calls to open a compressed directory.

Only imported once transformers is; everything that subclasses its classes is here.
"""

from __future__ import annotations

import copy
import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, final

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from inc_torch.core.errors import ArtifactError, did_you_mean
from inc_torch.core.sharding import plain_class
from inc_torch.export._files import check_tables, read_json
from inc_torch.export._proof import attach_report, measured_report, prove_report, read_report
from inc_torch.export._tensors import (
    bfloat16_modules,
    checksum,
    int8_modules,
    share_equal_codes,
    split_name,
    tied_groups,
)
from inc_torch.huggingface._float import to_float
from inc_torch.huggingface._layout import SAVE_AGAIN, TABLES, VERSION, alarms, ignore_alarms, untie
from inc_torch.huggingface._source import Source, files_of
from inc_torch.huggingface.registration import QUANT_METHOD, install
from inc_torch.inference import fuse_half_precision
from inc_torch.precision import (
    Bfloat16Module,
    compute_in_float,
    describe_bfloat16,
    reasons_against_bfloat16,
    rebuild_bfloat16,
)
from inc_torch.quantizers import WeightOnlyLinear, describe_int8, rebuild_int8

__all__ = ["IncTorchConfig", "IncTorchQuantizer", "adopt"]

logger = logging.getLogger("inc_torch.huggingface")


@final
class IncTorchConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a compressed model's ``config.json``.

    Attributes:
        version: Of this layout.
        modules: Int8 modules by name, as `describe_int8` describes them.
        aliases: Int8 codes that are stored once and used twice: second name -> name in the file.
        checksums: CRC-32 of the tensors of each int8 module, and each that computes in bfloat16.
        bfloat16: Modules that compute in bfloat16 by name, as `describe_bfloat16` describes them.
    """

    def __init__(
        self,
        version: object = VERSION,
        modules: Mapping[str, Mapping[str, object]] | None = None,
        aliases: Mapping[str, str] | None = None,
        checksums: Mapping[str, str] | None = None,
        bfloat16: Mapping[str, str] | None = None,
        **unknown: object,
    ) -> None:
        if not isinstance(version, int) or version > VERSION:
            message = (
                f"quantization_config.version={version!r}: expected {VERSION} or older, so a newer inc_torch wrote it. "
                "Upgrade: pip install -U inc_torch."
            )
            raise ArtifactError(message)
        if extra := sorted(set(unknown) - {"quant_method"}):
            known = ("version", "modules", "aliases", "checksums", "bfloat16")
            message = (
                f"quantization_config.{extra[0]}={unknown[extra[0]]!r}: expected one of {', '.join(known)}."
                f"{did_you_mean(extra[0], known)} {SAVE_AGAIN}"
            )
            raise ArtifactError(message)
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]  # an enum that cannot be extended
        self.version = version
        given: dict[str, Any] = {"modules": modules, "aliases": aliases, "checksums": checksums, "bfloat16": bfloat16}
        tables = {name: {} if table is None else table for name, table in given.items()}
        check_tables(tables, TABLES, "quantization_config", SAVE_AGAIN)
        self.modules: dict[str, dict[str, object]] = {name: dict(entry) for name, entry in tables["modules"].items()}
        self.aliases: dict[str, str] = dict(tables["aliases"])
        self.checksums: dict[str, str] = dict(tables["checksums"])
        self.bfloat16: dict[str, str] = dict(tables["bfloat16"])


@final
class IncTorchQuantizer(HfQuantizer):
    """Rebuilds the compressed modules before transformers loads weights, and checks afterwards that it got them all.

    These are the int8 modules, and those that compute in bfloat16.
    """

    requires_calibration = True

    def __init__(self, quantization_config: IncTorchConfig, **kwargs: object) -> None:
        super().__init__(quantization_config, **kwargs)
        self._config = quantization_config
        self._names: dict[str, str] = {}
        self._source: Source | None = None

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: object
    ) -> nn.Module:
        config = self._config
        self._names = _names_in(model, config)
        self._source = Source(checkpoint_files or files_of(model))
        names = self._names
        rebuild_int8(model, {names[name]: entry for name, entry in config.modules.items() if name in names})
        rebuild_bfloat16(model, _described_for(model, names, config))
        self._names = names = _with_members(model, names, config)
        int8 = int8_modules(model)
        untie(model, int8)
        ignore_alarms(model, int8)
        for second in self._aliases():
            owner, leaf = split_name(second)
            # Not in the files, and not to be missed: its place is taken until the codes it shares are loaded.
            int8[owner].register_buffer(leaf, torch.empty(0, dtype=torch.int8, device="cpu"), persistent=False)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: object) -> nn.Module:
        int8 = int8_modules(model)
        for second, first in self._aliases().items():
            owner, leaf = split_name(second)
            other, other_leaf = split_name(first)
            int8[owner].register_buffer(leaf, int8[other]._buffers[other_leaf])
        modules = int8 | bfloat16_modules(model)
        self._restore_rounded(model, modules)
        self._check(model, modules)
        self._names, self._source = {}, None
        fuse_half_precision(model)
        return model

    def _aliases(self) -> dict[str, str]:
        """The aliases under the names of the model that is being loaded, as far as it has both."""
        found = {}
        for second, first in self._config.aliases.items():
            names = [(self._names.get(owner), leaf) for owner, leaf in map(split_name, (second, first))]
            if all(owner is not None for owner, _ in names):
                found[".".join(filter(None, names[0]))] = ".".join(filter(None, names[1]))
        return found

    def _restore_rounded(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        """Read float tensors of compressed modules again where transformers 4.57 cast them to the model's dtype."""
        source = self._source or Source(())
        low = _low_dtypes(model)
        for saved_name, name in self._names.items():
            own = modules[name]
            dtype = own.layout.scale_dtype if isinstance(own, WeightOnlyLinear) else torch.float32
            dtype = low.get(id(own), dtype)
            held = [*own._parameters.items(), *([] if id(own) in low else own._buffers.items())]
            for leaf, tensor in held:
                if tensor is None or not tensor.is_floating_point() or tensor.dtype == dtype:
                    continue
                exact = source.tensor(saved_name, leaf)
                tensor.data = (tensor.to(dtype) if exact is None else exact).to(tensor.device)

    def _check(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        """Make sure that each compressed module holds what was saved, and prove the report."""
        source = self._source or Source(())
        tied = tied_groups(dict(model.named_parameters(remove_duplicate=False)))
        seconds = {*tied, *tied.values()}
        for saved_name, name in self._names.items():
            self._check_module(saved_name, name, modules[name], source, seconds)
        for name, reason in reasons_against_bfloat16(model, describe_bfloat16(model)).items():
            message = f"Module {name!r} of {type(model).__name__} was saved to compute in bfloat16, but here {reason}."
            raise ArtifactError(message)
        path = source.report_path()
        same_model = type(model).__name__ in (model.config.architectures or ())  # type: ignore[union-attr, operator]
        if path is None or not same_model or any(tensor.is_meta for tensor in model.state_dict().values()):
            attach_report(model, measured_report(model, None))
            return
        stored = read_report(read_json(path, SAVE_AGAIN), os.fspath(path))
        attach_report(model, prove_report(model, stored, os.fspath(path)))

    def _check_module(
        self, saved_name: str, name: str, module: nn.Module, source: Source, tied: Collection[str]
    ) -> None:
        # Tied tensors are in the files once, under either name.
        leaves = [leaf for leaf in module.state_dict() if f"{name}.{leaf}" not in tied]
        stored = [leaf for leaf in leaves if f"{saved_name}.{leaf}" not in self._config.aliases]
        missing = [leaf for leaf in stored if source.name_of(saved_name, leaf) is None]
        value, expected = checksum(module), self._config.checksums.get(saved_name)
        # Loading may convert all names of a module; that some are there and some are not is a loss.
        is_whole = not missing or len(missing) == len(stored)
        if is_whole and (value is None or value == expected):
            return
        found = f"the files lack {', '.join(map(repr, missing))}" if missing else f"got checksum {value!r}"
        kind = "Int8" if saved_name in self._config.modules else "Bfloat16"
        message = (
            f"{kind} module {name!r} was not loaded from {source.where} as it was saved: {found}, expected checksum "
            f"{expected!r}. The weights and config.json are of two different saves, or a file is damaged. {SAVE_AGAIN}"
        )
        raise ArtifactError(message)

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | str | None = None) -> nn.Module:
        for name, entry in describe_int8(model).items():
            to_float(model.get_submodule(name), str(entry["kind"]))
        compute_in_float(model)
        # transformers passes config.dtype, which save_pretrained turns into text.
        wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        return model if wanted is None else model.to(wanted)

    def get_state_dict_and_metadata(
        self, model: nn.Module, *args: object, **kwargs: object
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The state to save: shared codes once, every other tensor of an int8 module with memory of its own."""
        self._config = model.config.quantization_config = describe(model, self._config)  # type: ignore[union-attr]
        int8 = int8_modules(model)
        state = dict(model.state_dict())
        for second in self._config.aliases:
            state.pop(second, None)
        memory = Counter(tensor.untyped_storage().data_ptr() for tensor in state.values())
        for name, tensor in state.items():
            if split_name(name)[0] in int8 and memory[tensor.untyped_storage().data_ptr()] > 1:
                state[name] = tensor.clone()
        seconds = {split_name(second)[0] for second in self._config.aliases}
        return state | alarms(name for name in int8 if name not in seconds), {}

    def is_serializable(self, *args: object, **kwargs: object) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def adopt(model: nn.Module) -> None:
    """Let transformers see a model that was converted in memory as it would see it after loading.

    From then on its ``save_pretrained`` writes a directory that ``from_pretrained`` opens, and the Trainer refuses to
    train it. A model without int8 modules, and without any that computes in bfloat16, is left alone.
    """
    if not describe_int8(model) and not describe_bfloat16(model):
        return
    config = describe(model)
    if getattr(model, "hf_quantizer", None) is None:
        _part_from_shared_config(model)
    untie(model, int8_modules(model))
    marks: dict[str, object] = {
        "hf_quantizer": IncTorchQuantizer(config),
        "is_quantized": True,
        "quantization_method": QUANT_METHOD,
        # transformers saves some models under other names, for which it puts together or splits weights. It must not
        # do that to codes, whose scales it does not know, and reads its own names as well.
        "_weight_conversions": [],
    }
    model.__dict__.update(marks)
    model.config.quantization_config = config  # type: ignore[union-attr]  # nn.Module knows tensors and modules only


def _part_from_shared_config(model: nn.Module) -> None:
    """Give a model a config of its own: others may be made from the same object, and are not compressed."""
    own: dict[int, Any] = {}
    copy.deepcopy(model.config, own)
    for module in model.modules():
        attributes = vars(module)
        for name, value in attributes.items():
            if isinstance(value, PretrainedConfig):
                attributes[name] = own.get(id(value), value)


def describe(model: nn.Module, earlier: IncTorchConfig | None = None) -> IncTorchConfig:
    """Describe the compressed modules as they are now.

    Args:
        model: The model.
        earlier: Knows the checksums of what was moved out of memory.
    """
    aliases = share_equal_codes(model)
    known = earlier.checksums if earlier is not None else {}
    modules = int8_modules(model) | bfloat16_modules(model)
    checksums = {name: checksum(module) or known.get(name, "") for name, module in modules.items()}
    return IncTorchConfig(VERSION, describe_int8(model), aliases, checksums, describe_bfloat16(model))


def _names_in(model: nn.Module, config: IncTorchConfig) -> dict[str, str]:
    """Saved name -> name in ``model``, which may be the saved model, its body, or another head on the same body.

    Raises:
        ArtifactError: ``model`` is of the saved class and lacks a module.
    """
    modules = dict(model.named_modules())
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    names = {}
    for name in [*config.modules, *config.bfloat16]:
        places = (name, prefix + name, f"{name}.".removeprefix(prefix).removesuffix("."))
        found = next((other for other in places if other in modules), None)
        if found is not None:
            names[name] = found
        elif type(model).__name__ in (model.config.architectures or ()):  # type: ignore[union-attr, operator]
            mapping = "modules" if name in config.modules else "bfloat16"
            message = (
                f"quantization_config.{mapping} names {name!r}, which {type(model).__name__} does not have."
                f"{did_you_mean(name, modules)} {SAVE_AGAIN}"
            )
            raise ArtifactError(message)
    return names


def _described_for(model: nn.Module, names: Mapping[str, str], config: IncTorchConfig) -> dict[str, str]:
    """What `rebuild_bfloat16` gets; a model that computes in it as a whole may be opened as another class."""
    whole = {name: kind for name, kind in config.bfloat16.items() if name == "" or names.get(name) == ""}
    own = {names[name]: kind for name, kind in config.bfloat16.items() if name in names}
    for kind in whole.values():
        half = kind[: len(kind) - len(kind.split(" ")[-1])]
        own[""] = half + plain_class(type(model)).__name__
    return own


def _with_members(model: nn.Module, names: Mapping[str, str], config: IncTorchConfig) -> dict[str, str]:
    """The names of `_names_in`, with those of what is inside parts that compute in bfloat16, as far as it was saved."""
    members = bfloat16_modules(model)
    found = {name: other for name, other in names.items() if name not in config.bfloat16}
    for saved, name in names.items():
        if saved in config.bfloat16:
            within = f"{name}." if name else ""
            for member in members:
                if member == name or member.startswith(within):
                    inner = member.removeprefix(name).removeprefix(".")
                    whole = ".".join(filter(None, (saved, inner)))
                    places = (whole, f"{getattr(model, 'base_model_prefix', '')}.{whole}")
                    saved_as = [place for place in places if place in config.checksums]
                    if not saved_as and saved and member == name:
                        saved_as = [whole]  # it is named itself, so that it has to be there
                    found.update(dict.fromkeys(saved_as, member))
    return found


def _low_dtypes(model: nn.Module) -> dict[int, torch.dtype]:
    """By identity of the module, what its Parameters are to be where it computes in half precision."""
    outermost = [module for module in model.modules() if isinstance(module, Bfloat16Module)]
    return {id(inner): module.low_dtype for module in outermost for inner in module.modules()}


install()
