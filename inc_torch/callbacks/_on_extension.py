"""A trained int8 model on the extension of Intel, which traces it on calls that training made."""

from __future__ import annotations

from typing import Final, final

from torch import nn
from torch.utils.hooks import RemovableHandle

from inc_torch.core.batches import LABEL_NAMES, Inputs, copied
from inc_torch.core.errors import CalibrationError
from inc_torch.ipex import Observation, deploy, float_counterpart, require_extension

__all__ = ["SeenCalls"]

_KEPT: Final = 4
"""Calls that are kept; the first is the example."""


@final
class SeenCalls:
    """The first calls of a model in training, and what is made of them in the end.

    Layers compute in int8 by what was trained. Additions, matrix products and pools stay in float, as they did in
    training.
    """

    def __init__(self) -> None:
        self._calls: list[Inputs] = []
        self._handle: RemovableHandle | None = None

    def require_extension(self) -> None:
        """Refuse to begin where the extension is not."""
        require_extension("QuantizationAwareTrainingConfig(backend='ipex')")

    def watch(self, model: nn.Module) -> None:
        """Keep the next calls of a model, without labels."""
        if self._handle is None:
            self._handle = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def let_go(self) -> None:
        """Watch no longer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _note(self, _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if len(self._calls) < _KEPT:
            named = {name: value for name, value in kwargs.items() if name not in LABEL_NAMES and value is not None}
            self._calls.append(copied(Inputs(args, named)))

    def deploy(self, model: nn.Module) -> None:
        """Let a converted model run on the extension.

        Raises:
            CalibrationError: The model was never called in training.
        """
        self.let_go()
        if not self._calls:
            message = (
                "backend='ipex' traces the model on a call that training made, and there was none between "
                "on_train_begin and on_train_end: run a batch through the model there."
            )
            raise CalibrationError(message)
        observation = Observation(float_counterpart(model), self._calls[0])
        for call in self._calls:
            observation.run(call)
        deploy(model, observation.summary, observation.example, {})
