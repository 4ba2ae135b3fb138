"""Mixed precision in a training loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, final

import torch

from inc_torch.core.callback import Callback
from inc_torch.core.errors import InexactWarning
from inc_torch.core.hooks import Phase, Stage
from inc_torch.core.names import unwrapped
from inc_torch.core.user_warning import warn_user
from inc_torch.precision import precision_for

if TYPE_CHECKING:
    from inc_torch.callbacks._autocast import AutocastHooks

__all__ = ["MixedPrecisionCallbacks"]

_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


@final
class MixedPrecisionCallbacks(Callback):
    """Runs every forward of the model under autocast from ``on_train_begin`` to ``on_train_end``.

    Weights, gradients, masks, ranges and the optimizer stay in float32; what the model returns is float32, and the loss
    is computed outside. Backward runs in the precisions of the forward, as autocast has it. With float16 small
    gradients need a gradient scaler, which is the loop's own: steps that it skips do not count.

    Args:
        wanted: Of ``"bf16"`` and ``"fp16"``, the preferred one first.
    """

    stage = Stage.OBSERVE
    exact_when_late = frozenset({"on_train_begin"})

    def __init__(self, wanted: Sequence[str]) -> None:
        self.wanted = tuple(wanted)
        self._hooks: AutocastHooks | None = None
        self._has_ended = False

    def __repr__(self) -> str:
        return "Mixed Precision Callbacks"

    def phases(self) -> Iterable[Phase]:
        yield Phase("mixed precision", f"autocast to {' or '.join(self.wanted) or 'nothing'}", 0)

    def on_train_begin(self, dataloader: object = None) -> None:
        if self._hooks is not None or self._has_ended:
            return
        module = unwrapped(self.model)
        device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
        word, warning = precision_for(device, self.wanted)
        if warning:
            warn_user(warning, InexactWarning)
        if word is not None:
            from inc_torch.callbacks._autocast import AutocastHooks  # which other trainings do without

            self._hooks = AutocastHooks(module, _DTYPES[word])

    def on_train_end(self) -> None:
        self._has_ended = True
        self.let_go()

    def let_go(self) -> None:
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None
