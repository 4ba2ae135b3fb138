"""Quantization-aware training in a training loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

from torch import nn

from inc_torch.core.callback import Callback
from inc_torch.core.errors import HookOrderError, StateError
from inc_torch.core.hooks import Progress, Stage
from inc_torch.core.report import Finding
from inc_torch.core.state import check_keys
from inc_torch.quantizers import (
    Prepared,
    QATSpec,
    convert,
    enable_fake_quant,
    load_observer_state,
    observer_state,
    prepare_qat,
)

__all__ = ["QuantizationAwareTrainingCallbacks"]


@final
class QuantizationAwareTrainingCallbacks(Callback):
    """Trains a model under int8 rounding, and converts it at the end.

    Modules are exchanged when the callback is bound, before the optimizer exists; they compute as in float until
    training begins. From ``on_train_begin`` on inputs and weights are rounded and ranges observed; ``on_train_end``
    makes int8 modules of what was learnt.

    Args:
        spec: What to quantize how.
    """

    stage = Stage.REWRITE

    def __init__(self, spec: QATSpec) -> None:
        self.spec = spec
        self._decisions: dict[str, Prepared] = {}
        self._is_converted = False

    def __repr__(self) -> str:
        return "Quantization Aware Training Callbacks"

    def prepare(self, model: nn.Module, progress: Progress) -> None:
        super().prepare(model, progress)
        self._decisions = prepare_qat(model, self.spec)

    def findings(self) -> Iterable[Finding]:
        for name, decision in self._decisions.items():
            yield Finding(name, scheme=decision.scheme, note=decision.reason)

    def on_train_begin(self, dataloader: object = None) -> None:
        if self._is_converted:
            message = "on_train_begin was called after on_train_end: the model is int8 and can no longer be trained."
            raise HookOrderError(message)
        enable_fake_quant(self.model, observe=True)

    def on_train_end(self) -> None:
        if not self._is_converted:
            convert(self.model)
            self._is_converted = True

    def state_dict(self) -> dict[str, Any]:
        return {"observers": observer_state(self.model), "is_converted": self._is_converted}

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
