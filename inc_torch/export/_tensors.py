"""Questions about the tensors of a model: which are one and the same, and what they hold."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from inc_torch import precision
from inc_torch.core.errors import ModelError
from inc_torch.quantizers import describe_int8

__all__ = [
    "bfloat16_modules",
    "checksum",
    "checksum_of",
    "int8_modules",
    "plain_state",
    "share_equal_codes",
    "split_name",
    "tied_groups",
]

CODES = "qweight"


def split_name(name: str) -> tuple[str, str]:
    """Split ``"a.b.weight"`` into the module ``"a.b"`` and the leaf ``"weight"``."""
    owner, _, leaf = name.rpartition(".")
    return owner, leaf


def int8_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The int8 modules of ``model`` by their fully qualified names."""
    return {name: model.get_submodule(name) for name in describe_int8(model)}


def bfloat16_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of ``model`` with Parameters of their own that compute in half precision, by their full names.

    Left out are those with buffers that no file holds, whose values may depend on how the model is built.
    """
    return {
        name: module
        for name, module in precision.members_of(model).items()
        if not module._non_persistent_buffers_set
        and any(tensor is not None and tensor.dtype in _HALF for tensor in module._parameters.values())
    }


_HALF = (torch.bfloat16, torch.float16)


def checksum(module: nn.Module) -> str | None:
    """`checksum_of` all Parameters and buffers of one module.

    None if a tensor is on the meta device, where there is nothing to read.
    """
    tensors = {name: x for name, x in {**module._parameters, **module._buffers}.items() if x is not None}
    return None if any(tensor.is_meta for tensor in tensors.values()) else checksum_of(tensors)


def checksum_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """CRC-32 of names and bytes, sorted by name, as eight hex digits."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(_bytes(tensor), value)
    return f"{value:08x}"


def share_equal_codes(model: nn.Module) -> dict[str, str]:
    """Let int8 modules whose codes are equal (tied before the conversion) keep them in one tensor.

    Nothing changes but the memory taken, here and in the file.

    Returns:
        Name of the buffer that is a second name -> name of the buffer that holds the codes.
    """
    kept: defaultdict[tuple[torch.Size, int], list[str]] = defaultdict(list)
    aliases: dict[str, str] = {}
    modules = int8_modules(model)
    seen: set[int] = set()
    for name, module in modules.items():
        codes = module._buffers[CODES]
        if codes is None or codes.is_meta or id(module) in seen:
            continue
        seen.add(id(module))
        group = kept[codes.shape, zlib.crc32(_bytes(codes))]
        for other in group:
            original = modules[other]._buffers[CODES]
            if original is not None and original.device == codes.device and torch.equal(original, codes):
                module._buffers[CODES] = original
                aliases[_join(name, CODES)] = _join(other, CODES)
                break
        else:
            group.append(name)
    return aliases


def tied_groups(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Second names of tensors that are the same memory seen through the same shape and strides.

    Returns:
        Second name -> first name.
    """
    first: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel() == 0 or tensor.is_meta:
            continue
        key = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
        if key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
    return aliases


def plain_state(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What a file must hold to rebuild ``model``: tensors on the CPU, each once, and the second names of tied ones.

    Raises:
        ModelError: The state holds something that is no tensor, or a tensor on the meta device.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            message = (
                f"{name!r} of {type(model).__name__} is state of type {type(value).__name__!r}: expected a tensor, "
                "as files hold no pickled objects. Return a tensor from get_extra_state, or keep it out of the state."
            )
            raise ModelError(message)
        if value.is_meta:
            message = (
                f"{name!r} of {type(model).__name__} is on the meta device: got no values, expected a loaded tensor. "
                "Load the weights before saving."
            )
            raise ModelError(message)
    aliases = tied_groups(state)
    memory: dict[int, int] = defaultdict(int)
    for name, tensor in state.items():
        if name not in aliases:
            memory[tensor.untyped_storage().data_ptr()] += 1
    tensors = {}
    for name, tensor in state.items():
        if name in aliases:
            continue
        whole = tensor.detach().cpu().contiguous()
        # Other views of the same memory are written as tensors of their own.
        shared = memory[tensor.untyped_storage().data_ptr()] > 1
        tensors[name] = whole.clone() if shared else whole
    return tensors, aliases


def _join(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, not copied where it is contiguous on the CPU."""
    array: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)
