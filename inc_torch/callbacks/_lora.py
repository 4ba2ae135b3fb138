"""LoRA layers that compute with the merged weight, as the compressed model will, and the way back to a plain model.

They are made by ``layer.__class__ = MergedLinear``, never constructed. PEFT is not imported here: who has a LoRA layer
has imported it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import torch
from torch import nn
from torch.func import functional_call

from inc_torch.core.errors import ModelError
from inc_torch.core.merged import take_back
from inc_torch.core.names import named_layers

__all__ = [
    "MergedLora",
    "adapted_layers",
    "base_of",
    "holds_adapters",
    "merge_adapters",
    "obstacle_to_merging",
    "obstacle_to_training",
]

_PEFT_LAYERS: Final = "peft.tuners.lora.layer"
_PREFIX: Final = "Merged"
_KINDS: Final = ("Linear", "Embedding")
"""LoRA layers of which the merged weight is exact. That of a dilated convolution is not."""
_NEVER_MERGED: Final = frozenset({"ALoraLinearVariant", "ArrowLinearVariant"})


class MergedLora(nn.Module):
    """What the exchanged layers share: the base runs with the merged weight, not beside the adapters.

    ::

        y = base(x; W + keep * sum_a(s_a * B_a @ A_a), b)        keep = (W != 0) if the base is pruned, else 1

    PEFT computes ``W x + s B A x``: merged at the end, that loses the zeros of ``W``, and the sum was never rounded as
    int8 will be. Here the rounding of the base sees the sum, and what is zero in a pruned base stays zero. Where the
    base is neither pruned nor rounded, both are equal but for the order of additions.

    ``lora_dropout`` drops inputs of ``A``. Merged weights have no inputs of their own, so that whole columns of ``A``
    are dropped: the same inputs for all samples of a batch, at the same rate and with the same mean.

    Attributes:
        base_layer: The layer under the adapters.
        merged_gradient: See `inc_torch.core.merged.Merged`; only kept where `adopt` was told so.

    Reference:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685. Dropout on columns of ``A``:
        Lin et al., LoRA Dropout as a Sparsity Regularizer for Overfitting Control, arXiv 2404.09610.
    """

    base_layer: nn.Module
    active_adapters: list[str]
    disable_adapters: bool
    merged: bool
    fan_in_fan_out: bool
    scaling: Mapping[str, float]
    lora_bias: Mapping[str, bool]
    lora_dropout: nn.ModuleDict
    lora_B: nn.ModuleDict  # noqa: N815  PEFT's name
    merged_gradient: torch.Tensor | None
    has_whole_gradient: bool
    _keeps_zeros: bool
    _keeps_gradient: bool

    @staticmethod
    def adopt(layer: nn.Module, *, keeps_zeros: bool, keeps_gradient: bool) -> MergedLora:
        """Turn ``layer``, to which there is no `obstacle`, into one of these classes, in place.

        Args:
            layer: A LoRA layer.
            keeps_zeros: The base is pruned.
            keeps_gradient: Someone asks for `merged_gradient`, which takes the memory of one more weight.
        """
        layer.__class__ = getattr(importlib.import_module(__name__), _PREFIX + type(layer).__name__)
        layer.__dict__.update(
            merged_gradient=None,
            has_whole_gradient=True,
            _keeps_zeros=keeps_zeros,
            _keeps_gradient=keeps_gradient,
        )
        return cast("MergedLora", layer)

    def release(self) -> None:
        """Turn the layer into PEFT's own class again."""
        self.__class__ = getattr(importlib.import_module(_PEFT_LAYERS), type(self).__name__.removeprefix(_PREFIX))
        for name in ("merged_gradient", "has_whole_gradient", "_keeps_zeros", "_keeps_gradient"):
            del self.__dict__[name]

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """What the adapter adds to the weight; PEFT's ``merge`` and ``unmerge`` take it from here too."""
        delta: torch.Tensor = super().get_delta_weight(adapter)  # type: ignore[misc]  # of PEFT's class, the other base
        return delta * (self.base_layer.get_parameter("weight") != 0) if self._keeps_zeros else delta

    @torch.no_grad()
    def merged_weight(self) -> torch.Tensor:
        """The weight with all active adapters, as the model in eval computes with it."""
        return self._merged_tensors(drops=False)["weight"]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401  as in PEFT
        """Run the base layer with the merged weight.

        Raises:
            ModelError: The batch names an adapter for each sample.
        """
        if self.disable_adapters or self.merged:
            plain: torch.Tensor = super().forward(x, *args, **kwargs)
            return plain
        if kwargs.pop("adapter_names", None) is not None:
            message = (
                "A batch with adapter_names cannot run while the layers under the adapters are compressed: one merged "
                "weight serves all samples. Call set_adapter, and run one batch for each adapter."
            )
            raise ModelError(message)
        tensors = self._merged_tensors(drops=self.training)
        if self._keeps_gradient and tensors["weight"].grad_fn is not None:
            tensors["weight"].register_hook(self._add_gradient)  # type: ignore[no-untyped-call]  # of torch
        result: torch.Tensor = functional_call(self.base_layer, tensors, (x, *args), kwargs, tie_weights=False)
        return result

    def _merged_tensors(self, *, drops: bool) -> dict[str, torch.Tensor]:
        """Weight, and bias if an adapter has one, rounded after each adapter as PEFT does when it merges."""
        merged: dict[str, torch.Tensor] = {"weight": self.base_layer.get_parameter("weight")}
        # As it is merged at the end, where there is no autocast.
        with torch.autocast(merged["weight"].device.type, enabled=False):
            for adapter in self.active_adapters:
                if adapter not in self.scaling:  # put on other layers only
                    continue
                delta = self.get_delta_weight(adapter)
                delta = self._dropped(delta, adapter) if drops else delta
                merged["weight"] = (merged["weight"] + delta).to(merged["weight"].dtype)
                if self.lora_bias.get(adapter):
                    bias = merged.get("bias", self.base_layer.get_parameter("bias"))
                    delta = self.lora_B[adapter].get_parameter("bias") * self.scaling[adapter]
                    merged["bias"] = (bias + delta).to(bias.dtype)
        return merged

    def _dropped(self, delta: torch.Tensor, adapter: str) -> torch.Tensor:
        dropout = self.lora_dropout[adapter]
        if not isinstance(dropout, nn.Dropout) or isinstance(self.base_layer, nn.Embedding):
            return delta  # of an embedding PEFT drops nothing either
        columns: torch.Tensor = dropout(delta.new_ones(delta.shape[0 if self.fan_in_fan_out else 1]))
        return delta * (columns.unsqueeze(1) if self.fan_in_fan_out else columns)

    def gradient_or_zeros(self) -> torch.Tensor:
        """`merged_gradient`, or zeros where this process has none."""
        gradient = self.merged_gradient
        return torch.zeros_like(self.base_layer.get_parameter("weight")) if gradient is None else gradient

    def _add_gradient(self, gradient: torch.Tensor) -> None:
        """Sum up over the forwards of a step; the first one after a whole gradient starts anew."""
        if self.has_whole_gradient or self.merged_gradient is None:
            self.merged_gradient = gradient.clone()  # autograd goes on with its own
        else:
            self.merged_gradient += gradient
        self.has_whole_gradient = False


def __getattr__(name: str) -> type[MergedLora]:
    """Make ``MergedLinear`` and its like when first asked for, by us or by pickle: PEFT is an optional package."""
    kind = name.removeprefix(_PREFIX)
    if kind == name or kind not in _KINDS:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    base = getattr(importlib.import_module(_PEFT_LAYERS), kind)
    made = type(name, (MergedLora, base), {"__module__": __name__, "__doc__": MergedLora.__doc__})
    return cast("type[MergedLora]", globals().setdefault(name, made))


def holds_adapters(model: nn.Module) -> bool:
    """Whether PEFT put anything into ``model``: adapters, or a trained copy of a module."""
    return any(_is_adapter(module) or _merges_by_itself(module) for module in model.modules())


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every layer with adapters, under the name that its base has without them."""
    names = {id(module): name for name, module in named_layers(model)}
    for module in model.modules():
        if _is_adapter(module) and id(base_of(module)) in names:
            yield names[id(base_of(module))], module


def base_of(layer: nn.Module) -> nn.Module:
    """The layer under all adapters of ``layer``."""
    any_layer: Any = layer
    base: nn.Module = any_layer.get_base_layer()
    return base


def obstacle_to_merging(layer: nn.Module) -> str | None:
    """Say why the adapters of ``layer`` can never become part of its weight, or None if they can."""
    for name, variant in _variants(layer).items():
        if variant in _NEVER_MERGED:
            return f"its adapter {name!r} is a {variant}, which differs from input to input. Use plain LoRA"
    if any(getattr(layer, "lora_bias", {}).values()) and getattr(base_of(layer), "bias", None) is None:
        return "lora_bias=True adds a bias to a layer that has none. Use lora_bias=False"
    return None


def obstacle_to_training(layer: nn.Module) -> str | None:
    """Say why a compressed base cannot compute with its adapters merged in every step, or None if it can."""
    kind, any_layer = type(layer), cast("Any", layer)
    if kind.__module__ != _PEFT_LAYERS or kind.__name__ not in _KINDS:
        return (
            f"{kind.__name__} of {kind.__module__} has no weight that adapters could be merged into in every step, as "
            f"LoRA's {' and '.join(_KINDS)} have"
        )
    if base_of(layer) is not any_layer.base_layer:
        return "there are adapters on its adapters. Keep one kind"
    dtype = base_of(layer).get_parameter("weight").dtype
    if not dtype.is_floating_point:
        return f"its weight is packed as {dtype}. Load the base model in float"
    if any_layer.merged:
        return f"the adapters {any_layer.merged_adapters} are merged already. Call unmerge_adapter()"
    for name, variant in _variants(layer).items():
        return f"its adapter {name!r} is no plain LoRA but {variant}, whose weight is no sum. Use plain LoRA"
    return None


def _variants(layer: nn.Module) -> dict[str, str]:
    """The adapters that are no plain LoRA, and what they are."""
    doubled = {name: "DoRA" for name, is_on in getattr(layer, "use_dora", {}).items() if is_on}  # all of PEFT < 0.16
    return doubled | {name: type(variant).__name__ for name, variant in getattr(layer, "lora_variant", {}).items()}


def merge_adapters(model: nn.Module) -> None:
    """Put every active adapter into the weight under it and take PEFT's layers out of the tree, in place.

    The base layers, and the trained copies of ``modules_to_save``, go on as the same objects under plain names.
    """
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            parent._modules[name] = None if child is None else _without_adapters(child)


def _without_adapters(module: nn.Module) -> nn.Module:
    any_module: Any = module
    if _merges_by_itself(module):
        plain: nn.Module = any_module.unload_and_optionally_merge_module(
            merge=True, safe_merge=False, adapter_names=None
        )
        return plain
    if not _is_adapter(module):
        return module
    if not any_module.merged:
        any_module.merge()
    take_back(base_of(module))
    return base_of(module)


def _is_adapter(module: nn.Module) -> bool:
    return "base_layer" in module._modules and hasattr(module, "active_adapters")


def _merges_by_itself(module: nn.Module) -> bool:
    """Whether it is one of PEFT's special places: attention, ``modules_to_save``, trainable tokens."""
    return hasattr(module, "unload_and_optionally_merge_module")
