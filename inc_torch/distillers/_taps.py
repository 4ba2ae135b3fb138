"""Watching what modules inside a model return."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from inc_torch.core.errors import LayerNotFoundError, ModelError, did_you_mean, listed
from inc_torch.core.names import named_layers, unwrapped
from inc_torch.core.observed import leave_to_others

__all__ = ["Taps"]


@final
class Taps:
    """Records the outputs of some modules of one model; of several calls in a step the last.

    Args:
        model: The model, in whatever wraps it.
        layers: Names of modules without wrappers, ``""`` for the model itself.
        whose: ``"student"`` or ``"teacher"``. Of a student only calls with gradients count: evaluations do not. Of a
            teacher only those in `listening`, as others may use it too.

    Raises:
        LayerNotFoundError: The model has no such module.

    Example:
        >>> model = nn.Sequential(nn.Identity(), nn.ReLU())
        >>> taps = Taps(model, ["0"], "teacher")
        >>> taps.attach()
        >>> with taps.listening():
        ...     _ = model(torch.tensor([-1.0]))
        >>> taps.take()
        {'0': tensor([-1.])}
        >>> taps.remove()
    """

    def __init__(self, model: nn.Module, layers: Iterable[str], whose: str) -> None:
        self.layers = tuple(dict.fromkeys(layers))
        self.whose = whose
        self._is_listening = False
        self._model = model
        self._features: dict[str, object] = {}
        self._handles: list[RemovableHandle] = []
        self._modules()

    def attach(self) -> None:
        """Begin to watch, if not begun."""
        if self._handles or not self.layers:
            return
        for name, module in self._modules().items():
            self._handles.append(module.register_forward_hook(_Tap(weakref.ref(self), name)))
        leave_to_others(self, self._handles)
        _drop_compiled_code()

    def remove(self) -> None:
        """Watch no longer, and leave no hook on the model."""
        self._features.clear()
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        _drop_compiled_code()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record what a teacher does in this context."""
        self._is_listening = True
        try:
            yield
        finally:
            self._is_listening = False

    def forget(self) -> None:
        """Drop what was recorded."""
        self._features.clear()

    def hear(self, name: str, output: object) -> None:
        """Take note that the module ``name`` returned ``output``."""
        counts = torch.is_grad_enabled() and not _is_recomputing() if self.whose == "student" else self._is_listening
        if counts:
            self._features[name] = output

    def take(self) -> Mapping[str, Any]:
        """Return what was recorded by the names of modules, and forget it.

        Raises:
            ModelError: A module returned nothing since the last time.
        """
        features = dict(self._features)
        self._features.clear()
        missing = [name for name in self.layers if name not in features]
        if missing:
            message = (
                f"The layer {listed(missing)} of the {self.whose} {type(self._model).__name__} did not run since the "
                "last loss: expected it in the forward that this loss is of. For a student only forwards with "
                "gradients count: inside reentrant checkpointing there are none (use_reentrant=False), and "
                "module.forward(...) calls no hooks (call the module itself)."
            )
            raise ModelError(message)
        if self.whose == "student":
            _require_gradients(features)
        return features

    def _modules(self) -> dict[str, nn.Module]:
        inner = unwrapped(self._model)
        known = dict(named_layers(inner)) | {"": inner}
        for name in self.layers:
            if name not in known:
                message = (
                    f"layer_mappings names {name!r}, and the {self.whose} {type(inner).__name__} has no such module."
                    f"{did_you_mean(name, known)} print(model) or model.named_modules() shows all."
                )
                raise LayerNotFoundError(message)
        return {name: known[name] for name in self.layers}


@final
class _Tap:
    """The hook on one module. In a copy of the model, or in a file of it, it does nothing."""

    def __init__(self, taps: Callable[[], Taps | None], name: str) -> None:
        self._taps = taps
        self._name = name

    def __call__(self, _module: nn.Module, _args: object, output: object) -> None:
        taps = self._taps()
        if taps is not None:
            taps.hear(self._name, output)

    def __reduce__(self) -> tuple[type[_Tap], tuple[Callable[[], None], str]]:
        return _Tap, (_no_taps, self._name)


def _no_taps() -> None:
    """Where the hooks of a copy report to."""


def _drop_compiled_code() -> None:
    """Let `torch.compile` look again: what it made of a model before has the hooks that there were then."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _is_recomputing() -> bool:
    """Whether this forward repeats an earlier one in the middle of ``backward``, as gradient checkpointing does."""
    if torch.compiler.is_compiling():
        return False
    in_backward: bool = torch._C._current_graph_task_id() != -1
    return in_backward


def _require_gradients(features: Mapping[str, object]) -> None:
    for name, output in features.items():
        if isinstance(output, torch.Tensor) and not output.requires_grad:
            message = (
                f"The output of the student's layer {name!r} has no gradient, so nothing can be learnt by it: expected "
                "weights that train in it or before it. Unfreeze them, or leave the layer out of layer_mappings."
            )
            raise ModelError(message)
