"""Models that compute with weights which are not in memory: each is read when an operation needs it, then forgotten.

Such a model has its Parameters on torch's ``meta`` device, where they have shape and dtype and no values. While it is
streamed, a `torch.overrides.TorchFunctionMode` stands before every torch function and puts the values in place of
these Parameters. So it does not matter which module owns a weight and which one reads it, whether it is tied, or
whether the forward fails: modules never hold what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, final
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from inc_torch.core.errors import ArtifactError, ModelError, did_you_mean, listed

__all__ = ["StreamedWeights", "attach_weights", "attached_weights"]

Loader = Callable[[], torch.Tensor]

_ATTRIBUTE: Final = "_inc_torch_streamed_weights"
_SHOWN_NAMES: Final = 5


@final
@dataclass(frozen=True, slots=True)
class _Streamed:
    parameter: nn.Parameter
    name: str
    load: Loader

    def values(self, *, own: bool = False) -> torch.Tensor:
        """The values as the Parameter has them; with ``own`` in memory that nobody else has."""
        loaded = self.load().detach()
        if loaded.shape != self.parameter.shape:
            message = (
                f"The Parameter {self.name!r} has shape {tuple(self.parameter.shape)}, but shape {tuple(loaded.shape)} "
                "was read for it. Give the weights that belong to this model."
            )
            raise ArtifactError(message)
        return loaded.to(self.parameter.dtype, copy=own)


@final
class StreamedWeights:
    """Where the values of the Parameters are that a model has on the ``meta`` device.

    Copies of the model that share its Parameters can be streamed by the same object. Weights are for reading:
    gradients do not reach them.

    Args:
        model: Some or all of its Parameters are on the ``meta`` device.
        loaders: By the name of a Parameter, a function that reads its values. A tied Parameter needs one of its names.

    Raises:
        ModelError: A Parameter on the ``meta`` device has no loader, or a loader has no Parameter.

    Example:
        >>> stored = {"weight": torch.eye(2), "bias": torch.zeros(2)}
        >>> layer = nn.Linear(2, 2, device="meta")
        >>> weights = StreamedWeights(layer, {"weight": lambda: stored["weight"], "bias": lambda: stored["bias"]})
        >>> with torch.no_grad(), weights.streaming():
        ...     layer(torch.tensor([3.0, 4.0]))
        tensor([3., 4.])
        >>> layer.weight.is_meta
        True
    """

    def __init__(self, model: nn.Module, loaders: Mapping[str, Loader]) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        if unknown := [name for name in loaders if name not in parameters]:
            message = (
                f"There are weights to stream for {unknown[0]!r}, which {type(model).__name__} does not have."
                f"{did_you_mean(unknown[0], parameters)} Expected names of its Parameters."
            )
            raise ModelError(message)
        known = {id(parameters[name]): (name, load) for name, load in loaders.items()}
        missing = [name for name, entry in parameters.items() if entry.is_meta and id(entry) not in known]
        if missing:
            message = (
                f"{type(model).__name__} has {listed(missing)} on the meta device, which holds no values, and there "
                "are no weights to stream for them: expected a loader for each."
            )
            raise ModelError(message)
        by_id = {id(parameter): parameter for parameter in parameters.values() if parameter.is_meta}
        self._entries = tuple(_Streamed(parameter, *known[key]) for key, parameter in by_id.items())
        self._loaded: WeakValueDictionary[str, nn.Parameter] = WeakValueDictionary()

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamedWeights:
        """Follow a copy of the model: to the copies of Parameters, if there are any."""
        copied = StreamedWeights(nn.Module(), {})
        copied._entries = tuple(
            replace(entry, parameter=memo.get(id(entry.parameter), entry.parameter)) for entry in self._entries
        )
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {"_entries": self._entries}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _loaded=WeakValueDictionary())

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Give every torch function of this thread the values of a Parameter in place of the Parameter.

        They are read for each operation anew, so that no more is in memory than what one operation takes. What asks
        for all values, as ``model.state_dict()`` does, gets all. torch's own attention and transformer layers do not
        take the fused path that eval mode has for them; the last bits of their results may differ.

        Raises:
            ModelError: A weight is written to; it would not last.
            ArtifactError: What was read for a weight has another shape.
        """
        with _Streaming(self._entries):
            yield

    def materialise_(self, module: nn.Module) -> None:
        """Load what ``module`` and all modules in it still have on the ``meta`` device, for good.

        They get new Parameters; tied ones are tied again, also if they are loaded by several calls.
        """
        entries = {id(entry.parameter): entry for entry in self._entries}
        for owner in module.modules():
            for name, parameter in list(owner._parameters.items()):
                if parameter is not None and id(parameter) in entries:
                    setattr(
                        owner, name, self._kept(entries[id(parameter)])
                    )  # RNNs keep a list beside: setattr updates it
        if not any(parameter.is_meta for parameter in module.parameters()):
            module.__dict__.pop(_ATTRIBUTE, None)

    def _kept(self, entry: _Streamed) -> nn.Parameter:
        kept = self._loaded.get(entry.name)
        if kept is None:
            kept = nn.Parameter(entry.values(own=True), requires_grad=entry.parameter.requires_grad)
            self._loaded[entry.name] = kept
        return kept


def attach_weights(model: nn.Module, weights: StreamedWeights) -> None:
    """Let ``model`` remember where its values are; see `attached_weights`."""
    model.__dict__[_ATTRIBUTE] = weights


def attached_weights(model: nn.Module) -> StreamedWeights | None:
    """What `attach_weights` gave to ``model``; None if there is nothing, or all was loaded for good.

    Example:
        >>> attached_weights(nn.Linear(2, 2)) is None
        True
    """
    weights: StreamedWeights | None = model.__dict__.get(_ATTRIBUTE)
    return weights


def _getter(name: str) -> Any:  # noqa: ANN401  a slot of C
    return getattr(torch.Tensor, name).__get__


def _setter(name: str) -> Any:  # noqa: ANN401  a slot of C
    return getattr(torch.Tensor, name).__set__


_WITHOUT_VALUES: Final = frozenset(
    {
        *map(_getter, ("shape", "dtype", "ndim", "layout", "nbytes", "itemsize", "is_sparse", "is_quantized")),
        *map(_getter, ("requires_grad", "grad", "grad_fn", "is_leaf", "is_nested", "_version")),
        *map(_setter, ("requires_grad", "grad")),
        torch.Tensor.requires_grad_,
        torch.Tensor.size,
        torch.Tensor.stride,
        torch.Tensor.dim,
        torch.Tensor.numel,
        torch.Tensor.element_size,
        torch.Tensor.is_floating_point,
        torch.Tensor.is_complex,
        torch.Tensor.__len__,
        torch.is_floating_point,
        torch.is_complex,
        torch.numel,
    }
)
"""Functions whose result is right for a Parameter without values; reading these would only take time."""
_DEVICE: Final = _getter("device")
_IS_META: Final = _getter("is_meta")
_IS_CPU: Final = _getter("is_cpu")
_PLACE: Final = {_DEVICE: torch.device("cpu"), _IS_META: False, _IS_CPU: True}
"""What code that asks where a weight lies has to hear, to put its own tensors there."""


@final
class _Streaming(TorchFunctionMode):
    def __init__(self, entries: tuple[_Streamed, ...]) -> None:
        super().__init__()
        self._entries = {id(entry.parameter): entry for entry in entries}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  whatever the function returns
        keywords = kwargs or {}
        if not self._is_needed((args, tuple(keywords.values()))) or func in _WITHOUT_VALUES:
            return func(*args, **keywords)
        if func in _PLACE:
            return _PLACE[func]
        self._refuse_writing(func, args)
        loaded: dict[int, torch.Tensor] = {}
        values = [self._with_values(value, loaded) for value in args]
        return func(*values, **{name: self._with_values(value, loaded) for name, value in keywords.items()})

    def _is_needed(self, value: object) -> bool:
        if isinstance(value, (tuple, list)):
            return any(map(self._is_needed, value))
        return isinstance(value, nn.Parameter) and id(value) in self._entries

    def _with_values(self, value: Any, loaded: dict[int, torch.Tensor]) -> Any:  # noqa: ANN401  any argument
        if not self._is_needed(value):
            return value
        if isinstance(value, (tuple, list)):
            items = [self._with_values(item, loaded) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if id(value) not in loaded:
            loaded[id(value)] = self._entries[id(value)].values()
        return loaded[id(value)]

    def _refuse_writing(self, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        name = getattr(func, "__name__", "")
        in_place = name in {"__set__", "__setitem__"} or (name.endswith("_") and not name.endswith("__"))
        if in_place and args and id(args[0]) in self._entries:
            message = (
                f"The Parameter {self._entries[id(args[0])].name!r} is streamed from where it is stored, and {name} "
                "would write to it, which would not last: expected code that only reads weights. Load the module that "
                "owns it for good with StreamedWeights.materialise_, or load the model with from_pretrained."
            )
            raise ModelError(message)
