"""The user's own model inside wrappers, and the names that its layers have whatever wraps them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from inc_torch.core.errors import ModelError

__all__ = ["named_layers", "unwrapped"]

_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}
"""Classes that hand every call on to the module inside: `torch.compile`, DDP, activation checkpointing."""

_REFUSED = {
    "DataParallel": (
        "copies the model for every batch and loses what the copies observe. Start one process a device with "
        "torchrun and use DistributedDataParallel (with the Trainer, torchrun is all that is needed)"
    ),
    "FullyShardedDataParallel": (
        "flattens weights, so that pruning patterns and int8 channels are no longer seen in them. Use FSDP2, "
        "torch.distributed.fsdp.fully_shard (with accelerate, fsdp_version: 2)"
    ),
    "DeepSpeedEngine": (
        "keeps weights and gradients in buffers of its own, and steps the optimizer out of sight. Use "
        "DistributedDataParallel, or FSDP2 to shard the model"
    ),
}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's own model inside `torch.compile`, DDP, activation checkpointing and PEFT.

    Raises:
        ModelError: The model, or a part of it, is wrapped by something that hides its weights; the way out is named.
    """
    _refuse_hiding_wrappers(model)
    inner = model
    while (inside := _inside(inner)) is not None:
        inner = inside
    return inner


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Like ``model.named_modules()``, under the names that the layers have without wrappers.

    `torch.compile`, DDP and activation checkpointing around a part of the model leave its names alone. Of a layer
    with a LoRA adapter the layer itself is meant, under its old name; the adapter's own matrices are left out, as is
    the original of a module that PEFT saves a trained copy of.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 2), backend="eager"))
        >>> [name for name, _ in model.named_modules()][2:]
        ['1', '1._orig_mod']
        >>> [name for name, _ in named_layers(model)][2:]
        ['1']
    """
    yield from _walk("", model, set())


def _walk(name: str, module: nn.Module, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    while (inside := _inside(module) or _adapted(module)) is not None:
        module = inside
    if id(module) in seen:
        return
    seen.add(id(module))
    yield name, module
    for child_name, child in module.named_children():
        yield from _walk(f"{name}.{child_name}" if name else child_name, child, seen)


def _inside(module: nn.Module) -> nn.Module | None:
    """The module that a transparent wrapper holds, or None if it is none."""
    for kind in type(module).__mro__:
        if kind.__name__ in _WRAPPERS:
            return module._modules[_WRAPPERS[kind.__name__]]
        if kind.__name__ == "PeftModel":  # whose base_model is the tuner, or with prompts the model itself
            tuner = module._modules["base_model"]
            return tuner._modules.get("model", tuner) if tuner is not None and hasattr(tuner, "peft_config") else tuner
    return None


def _adapted(module: nn.Module) -> nn.Module | None:
    """The layer that PEFT put an adapter on or trains a copy of, or None if it is no such place."""
    if not hasattr(module, "active_adapters"):
        return None
    if "base_layer" in module._modules:
        return module._modules["base_layer"]
    copies = module._modules.get("modules_to_save")
    if isinstance(copies, nn.ModuleDict):
        active = [copies[name] for name in module.active_adapters if name in copies]  # type: ignore[union-attr]
        return active[0] if active else module._modules.get("original_module")
    return None


def _refuse_hiding_wrappers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        for kind in {base.__name__ for base in type(module).__mro__} & _REFUSED.keys():
            where = f"its module {name!r}" if name else "it"
            message = (
                f"{type(model).__name__} cannot be compressed as it is: {where} is wrapped by {kind}, which "
                f"{_REFUSED[kind]}."
            )
            raise ModelError(message)
