"""Where the loss of a LightningModule passes through the manager."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import nn

from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.training import CompressionManager

__all__ = ["LossSeam"]


@final
class LossSeam:
    """Hands the loss of each batch on to ``manager.on_after_compute_loss``.

    Under automatic optimization it stands in for ``training_step`` of the one LightningModule, whose result is what
    ``backward`` gets; under manual optimization for ``manual_backward``. Strategies find it there too: they look
    ``training_step`` up by its name. What the compressed module gets and returns meanwhile is seen by a forward hook.

    Args:
        pl_module: The LightningModule.
        manager: Whose hook it is; its model is ``pl_module`` or a part of it.
    """

    def __init__(self, pl_module: Any, manager: CompressionManager) -> None:
        self._pl_module = pl_module
        self._manager = manager
        self._is_automatic = bool(pl_module.automatic_optimization)
        self._name = "training_step" if self._is_automatic else "manual_backward"
        self._own: Any = vars(pl_module).get(self._name)
        self._method: Any = getattr(pl_module, self._name)
        self._installed: Any = None
        self._hook: Any = None
        self._forward: tuple[object, object] | None = None
        self._is_used = False

    def install(self) -> None:
        """Take the method's place."""
        stand_in = self._training_step if self._is_automatic else self._backward

        @functools.wraps(self._method)  # Lightning reads its signature
        def passing_by(*args: Any, **kwargs: Any) -> object:
            return stand_in(*args, **kwargs)

        self._installed = passing_by
        self._hook = self._manager.model.register_forward_hook(self._keep, with_kwargs=True)
        vars(self._pl_module)[self._name] = passing_by

    def remove(self) -> None:
        """Give the LightningModule its own back."""
        if self._installed is None:
            return
        self._hook.remove()
        if vars(self._pl_module).get(self._name) is self._installed:
            del vars(self._pl_module)[self._name]
            if self._own is not None:
                vars(self._pl_module)[self._name] = self._own
        self._installed = self._forward = None

    def begin_batch(self) -> None:
        """Forget what was seen before; DistributedDataParallel ends a batch with a call of the LightningModule."""
        self._forward = None

    def require_use(self) -> None:
        """Make sure that some loss came by before the optimizer steps.

        Raises:
            ConfigError: None did, so distillation has no part in the gradients.
        """
        if not self._is_used:
            message = (
                f"{type(self._pl_module).__name__} steps its optimizer without calling self.manual_backward, so "
                "distillation has no part in the loss. Call self.manual_backward(loss) in place of loss.backward()."
            )
            raise ConfigError(message)

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        if torch.is_grad_enabled():
            self._forward = _inputs(module, args, kwargs), output

    def _training_step(self, *args: object, **kwargs: object) -> object:
        result = self._method(*args, **kwargs)
        self._is_used = True
        loss = result.get("loss") if isinstance(result, Mapping) else result
        if loss is None:  # a batch that is skipped
            return result
        if self._forward is None:
            message = (
                f"training_step of {type(self._pl_module).__name__} did not call the compressed "
                f"{type(self._manager.model).__name__}, whose output is compared with the teacher's. Call it, as "
                "self(inputs) if it is the LightningModule itself; or name the part of it that is called: "
                "INCLightningCallback(conf, submodule='model')."
            )
            raise ModelError(message)
        folded = self._folded(loss)
        return {**result, "loss": folded} if isinstance(result, Mapping) else folded

    def _backward(self, loss: torch.Tensor, *args: object, **kwargs: object) -> None:
        self._is_used = True
        if self._forward is not None:  # else it is the loss of another part, such as a discriminator's
            loss = self._folded(loss)
        self._method(loss, *args, **kwargs)

    def _folded(self, loss: Any) -> torch.Tensor:
        inputs, output = self._forward or (None, None)
        self._forward = None
        return self._manager.on_after_compute_loss(inputs, output, loss)


def _inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """What ``module`` was called with: a tuple, or a dict if something was named."""
    return inspect.signature(module.forward).bind(*args, **kwargs).arguments if args and kwargs else kwargs or args
