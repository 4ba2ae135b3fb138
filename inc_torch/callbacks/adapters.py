"""Adapters of PEFT over layers that are compressed."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, cast, final

from torch import nn

from inc_torch.callbacks._lora import (
    MergedLora,
    adapted_layers,
    base_of,
    merge_adapters,
    obstacle_to_merging,
    obstacle_to_training,
)
from inc_torch.callbacks.pruning import PruningCallbacks
from inc_torch.callbacks.quantization import QuantizationAwareTrainingCallbacks
from inc_torch.core.callback import Callback
from inc_torch.core.errors import ModelError, StateError
from inc_torch.core.hooks import Progress, Stage
from inc_torch.core.merged import lend
from inc_torch.core.state import check_keys

__all__ = ["AdapterCallbacks"]


@final
class AdapterCallbacks(Callback):
    """Trains LoRA adapters over a pruned or fake-quantized base as what they become, and merges them at the end.

    `build_callbacks` adds it to a model with adapters that is pruned or quantized; adapters have to be put on before
    ``prepare_compression``. Layers whose base is compressed are exchanged (`MergedLora`), all others stay PEFT's.
    ``on_train_end``, after the last masks and before the conversion to int8, adds the active adapters to the weights
    and takes PEFT's layers out of the model, which is a plain one from then on. A ``PeftModel`` around it goes on
    working: it computes with the merged weights, its ``save_pretrained`` writes the whole model, and its
    ``merge_and_unload`` returns it.

    A step costs about what it costs to train the weights of these layers themselves: the merged weight of each is made
    in every forward and kept for backward. Gradients and optimizer states stay those of the adapters. Scores that need
    gradients keep that of each merged weight during a step.

    Args:
        model: The model, in whatever the user wrapped it, before the pruners choose their layers.
    """

    stage: ClassVar[Stage] = Stage.OBSERVE
    exact_when_late: ClassVar[frozenset[str]] = frozenset({"on_before_optimizer_step", "on_after_optimizer_step"})

    def __init__(self, model: nn.Module) -> None:
        self._outer = model
        self._pruned: frozenset[str] = frozenset()
        self._scored: frozenset[str] = frozenset()
        self._quantizers: list[QuantizationAwareTrainingCallbacks] = []
        self._layers: dict[str, MergedLora] = {}
        self._is_merged = False
        for _, layer in adapted_layers(model):
            lend(base_of(layer), cast("MergedLora", layer))  # which it will be, if its base is compressed

    def __repr__(self) -> str:
        return "Adapter Callbacks"

    def serve(self, others: Sequence[Callback]) -> None:
        """Look which layers ``others`` compress; called once, before `prepare`."""
        pruners = [pruner for other in others if isinstance(other, PruningCallbacks) for pruner in other.pruners]
        self._pruned = frozenset(layer.name for pruner in pruners for layer in pruner.layers)
        self._scored = frozenset(
            layer.name for pruner in pruners if pruner.spec.criterion.needs_gradient for layer in pruner.layers
        )
        self._quantizers = [other for other in others if isinstance(other, QuantizationAwareTrainingCallbacks)]

    def prepare(self, model: nn.Module, progress: Progress) -> None:
        """Exchange the layers with adapters whose base is compressed.

        Raises:
            ModelError: Adapters that cannot be merged in every step, or not at all.
        """
        super().prepare(model, progress)
        findings = [finding for quantizer in self._quantizers for finding in quantizer.findings()]
        compressed = self._pruned | {finding.module for finding in findings if finding.scheme is not None}
        layers = list(adapted_layers(model))
        for name, layer in layers:
            if isinstance(layer, MergedLora):  # of a run that was given up
                layer.release()
            if (reason := obstacle_to_merging(layer)) is not None:
                message = (
                    f"The adapters of layer {name!r} cannot be merged at the end of the compression: {reason}; or "
                    "leave the layer out of target_modules."
                )
                raise ModelError(message)
            inside = sorted(other for other in compressed if other == name or other.startswith(f"{name}."))
            if inside and (reason := obstacle_to_training(layer)) is not None:
                message = (
                    f"Layer {inside[0]!r} cannot be compressed under its adapters: {reason}; or leave the layer out "
                    "of the compression (excluded_op_names, op_name_dict), or out of the adapters' target_modules."
                )
                raise ModelError(message)
        _refuse_shared_weights(model, layers)
        self._layers = {
            name: MergedLora.adopt(layer, keeps_zeros=name in self._pruned, keeps_gradient=name in self._scored)
            for name, layer in layers
            if name in compressed
        }

    def tracked_parameters(self) -> Iterable[nn.Parameter]:
        """What is trained: the weights that others track may all be frozen, and in no optimizer."""
        return (parameter for parameter in self.model.parameters() if parameter.requires_grad)

    def on_train_begin(self, dataloader: object = None) -> None:
        for name, layer in adapted_layers(self.model):
            if any(hasattr(weight, "placements") for weight in base_of(layer).parameters()):
                message = (
                    f"Layer {name!r} is sharded (fully_shard), and adapters cannot be merged into a sharded weight. "
                    "Train with DistributedDataParallel, or without adapters."
                )
                raise ModelError(message)

    def on_before_optimizer_step(self) -> None:
        ranks = self.progress.ranks
        for layer in self._scored_layers():
            if ranks.count > 1:  # as DDP does it with the gradients of Parameters
                layer.merged_gradient = ranks.sum_(layer.gradient_or_zeros()) / ranks.count
            layer.has_whole_gradient = True

    def on_after_optimizer_step(self) -> None:
        for layer in self._scored_layers():
            layer.merged_gradient = None

    def _scored_layers(self) -> Iterable[MergedLora]:
        return (layer for name, layer in self._layers.items() if name in self._scored)

    def on_train_end(self) -> None:
        if not self._is_merged:
            merge_adapters(self.model)
            self._layers = {}
            self._is_merged = True
            _note_untied_embeddings(self.model)
            _forget_adapters(self.model, self._outer)

    def state_dict(self) -> dict[str, Any]:
        """Whether adapters are merged, and by layer what is summed up so far of a gradient that scores are taken of."""
        gradients = {
            name: layer.merged_gradient.clone()
            for name, layer in self._layers.items()
            if layer.merged_gradient is not None and not layer.has_whole_gradient
        }
        return {"is_merged": self._is_merged, "gradients": gradients}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_keys(repr(self), state, {"is_merged", "gradients"})
        if state["is_merged"] != self._is_merged:
            saved, present = ("merged", "apart") if state["is_merged"] else ("apart", "merged")
            message = (
                f"The state of {self!r} was saved with the adapters {saved}, but they are {present} now. Load it into "
                "a run that is as far: before on_train_end, or after."
            )
            raise StateError(message)
        check_keys(f"the gradients of {self!r}", state["gradients"], state["gradients"].keys() & self._layers.keys())
        for name, gradient in state["gradients"].items():
            device = base_of(self._layers[name]).get_parameter("weight").device
            self._layers[name].__dict__.update(merged_gradient=gradient.to(device).clone(), has_whole_gradient=False)


def _refuse_shared_weights(model: nn.Module, layers: Iterable[tuple[str, nn.Module]]) -> None:
    """An adapter that is merged into a weight changes every layer that uses it."""
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for used in (*module._parameters.values(), *module._modules.values()):
            users.setdefault(id(used), []).append(name.replace(".base_layer", ""))
    for name, layer in layers:
        base = base_of(layer)
        weight = base._parameters.get("weight")
        if weight is None or not hasattr(layer, "get_delta_weight"):  # which only exchanges rows, as often as it likes
            continue
        if others := {*users[id(weight)], *users[id(base)]} - {name}:
            message = (
                f"The adapters of layer {name!r} are to be merged into its weight, which {min(others)!r} uses too: "
                "that would change both. Leave the layer out of the adapters' target_modules, or untie the two "
                "(tie_word_embeddings=False)."
            )
            raise ModelError(message)


def _note_untied_embeddings(model: nn.Module) -> None:
    """Say in the configuration, by which transformers ties what it loads, that a trained copy of one part is untied."""
    config, any_model = getattr(model, "config", None), cast("Any", model)
    if getattr(config, "tie_word_embeddings", False) and (output := any_model.get_output_embeddings()) is not None:
        config.tie_word_embeddings = output.weight is any_model.get_input_embeddings().weight  # type: ignore[union-attr]


def _forget_adapters(model: nn.Module, outer: nn.Module) -> None:
    """Let nobody save the adapters, of which nothing is left, instead of the model."""
    model.__dict__.pop("peft_config", None)
    if hasattr(model, "_hf_peft_config_loaded"):  # adapters that transformers put in, without a PeftModel
        model.__dict__["_hf_peft_config_loaded"] = False
    for wrapper in outer.modules():
        if any(kind.__name__ == "PeftModel" for kind in type(wrapper).__mro__):
            # Bound methods and partials of functions are copied and pickled together with their objects.
            wrapper.__dict__["save_pretrained"] = getattr(model, "save_pretrained", None) or model.save
            wrapper.__dict__["merge_and_unload"] = functools.partial(_plain, model)


def _plain(model: nn.Module, *_: object, **__: object) -> nn.Module:
    return model
