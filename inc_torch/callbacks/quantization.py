"""Quantization-aware training in a training loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

from torch import nn

from inc_torch.core.callback import Callback
from inc_torch.core.errors import HookOrderError, StateError
from inc_torch.core.hooks import Progress, Stage
from inc_torch.core.report import Finding
from inc_torch.core.sharding import require_unshardable
from inc_torch.core.state import check_keys
from inc_torch.quantizers import (
    Prepared,
    QuantSpec,
    convert,
    enable_fake_quant,
    fold_ranges,
    load_observer_state,
    observer_state,
    prepare_fake_quant,
    rounding_share,
)

__all__ = ["QuantizationAwareTrainingCallbacks"]


@final
class QuantizationAwareTrainingCallbacks(Callback):
    """Trains a model under int8 rounding, and converts it at the end.

    Modules are exchanged when the callback is bound, before the optimizer exists; they compute as in float until
    training begins. From ``on_train_begin`` on inputs and weights are rounded and the extremes of inputs noted.
    Before each optimizer step these enter the ranges, for all modules, micro-batches and ranks at once; inputs are
    rounded by the ranges of the steps before, so those of the first step are not. ``on_train_end`` makes int8 modules
    of what was learnt.

    Args:
        spec: What to quantize how.
    """

    stage = Stage.REWRITE
    state_version = 2
    exact_when_late = frozenset({"on_before_optimizer_step"})

    def __init__(self, spec: QuantSpec) -> None:
        self.spec = spec
        self._decisions: dict[str, Prepared] = {}
        self._is_converted = False

    def __repr__(self) -> str:
        return "Quantization Aware Training Callbacks"

    def prepare(self, model: nn.Module, progress: Progress) -> None:
        super().prepare(model, progress)
        self._decisions = prepare_fake_quant(model, self.spec)

    def findings(self) -> Iterable[Finding]:
        for name, decision in self._decisions.items():
            yield Finding(name, scheme=decision.scheme, note=decision.reason)

    def metrics(self) -> dict[str, float]:
        """``fake_quant``: the share of prepared modules whose weights and inputs are rounded in a forward.

        0 before training, and for all modules with inputs until the first step has given them ranges; 1 from then
        on, unless a module is never run. Nothing after conversion, when all of them compute in int8.
        """
        return {} if self._is_converted else {"fake_quant": rounding_share(self.model)}

    def on_train_begin(self, dataloader: object = None) -> None:
        if self._is_converted:
            message = "on_train_begin was called after on_train_end: the model is int8 and can no longer be trained."
            raise HookOrderError(message)
        require_unshardable(self.model)  # now, not at the end of the training
        enable_fake_quant(self.model, observe=True)

    def on_before_optimizer_step(self) -> None:
        fold_ranges(self.model, self.progress.ranks)

    def on_train_end(self) -> None:
        if not self._is_converted:
            convert(self.model, self.progress.ranks)
            self._is_converted = True

    def state_dict(self) -> dict[str, Any]:
        """Ranges and what is to enter them; under distribution every rank has to call this and gets the same."""
        return {"observers": observer_state(self.model, self.progress.ranks), "is_converted": self._is_converted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_keys(repr(self), state, {"observers", "is_converted"})
        if state["is_converted"] != self._is_converted:
            saved, present = ("int8", "float") if state["is_converted"] else ("float", "int8")
            message = (
                f"The state of {self!r} was saved with a model in {saved}, but the model is in {present} now. "
                "Load it into a run that is as far: before on_train_end, or after."
            )
            raise StateError(message)
        load_observer_state(self.model, state["observers"])
