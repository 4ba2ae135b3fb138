"""How a batch of a loader reaches a model: decided by its type and the signature of ``forward``, never by trying.

    batch --split--> Inputs, label --run--> output

| batch | inputs | label |
|---|---|---|
| anything that is none of those below | the batch | None |
| ``(a, b)``, ``forward`` requires at most one positional argument | ``a`` | ``b`` |
| ``n`` items, ``forward`` requires ``n > 1`` | all | None |
| one item more than ``forward`` requires, or than it takes at most | all but the last | the last |
| any other number of items that ``forward`` takes | all | None |
| a mapping, a named tuple or a dataclass | its entries that ``forward`` names | its ``labels`` or ``label`` |

Where the inputs are one tuple, list or mapping, as in ``((a, b), label)``, it is laid out over the arguments of
``forward`` in the same way, unless the first of them is annotated with its type.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, final

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from inc_torch.core.errors import ModelError
from inc_torch.core.modes import evaluating, without_compiling
from inc_torch.core.names import unwrapped

__all__ = ["Inputs", "copied", "count_samples", "described", "on_device", "one_call", "output_of", "run", "split"]

LABEL_NAMES = ("labels", "label")
"""Where a mapping keeps its labels; the first one found counts."""

_PAIR = 2
_NUMERIC_KINDS = "biufc"


@final
@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """The arguments of one call of ``forward``.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = dataclasses.field(default_factory=dict)


def split(batch: object, model: nn.Module) -> tuple[Inputs, object]:
    """Divide a batch into the arguments of ``model`` and the label, by the table above.

    Arrays become tensors, and all tensors are moved to the device of the model's first parameter. A label that
    ``forward`` names as an argument is given to it as well. Entries of a mapping that ``forward`` does not take are
    left out; where it takes none of them by name, the mapping is the one argument, or the one entry beside its label.

    Returns:
        The arguments, and the label, None if the batch has none.

    Raises:
        ModelError: ``forward`` cannot take the batch.

    Example:
        >>> inputs, label = split((torch.ones(4, 2), torch.zeros(4)), nn.Linear(2, 3))
        >>> len(inputs.args), inputs.args[0].shape, label.shape
        (1, torch.Size([4, 2]), torch.Size([4]))
        >>> split({"input": torch.ones(1, 2), "label": torch.zeros(1)}, nn.Linear(2, 3))[0].kwargs
        {'input': tensor([[1., 1.]])}
    """
    forward = _Forward.of(model)
    items, label = forward.divide(batch)
    args, kwargs = forward.arrange(items[0]) if len(items) == 1 else (items, {})
    forward.check(args, kwargs, batch)
    device = _device_of(model)
    return Inputs(on_device(tuple(args), device), on_device(dict(kwargs), device)), on_device(label, device)


def one_call(example: object, model: nn.Module) -> Inputs | None:
    """Example inputs of any form: a tensor, a tuple or list of arguments, a mapping of names; None stays None.

    Example:
        >>> one_call([torch.ones(1), torch.ones(2)], nn.Bilinear(1, 2, 3)).args
        (tensor([1.]), tensor([1., 1.]))
    """
    if example is None or isinstance(example, Inputs):
        return example
    if isinstance(example, tuple | list) and not hasattr(example, "_fields"):
        return Inputs(tuple(example))
    return split(example, model)[0]


def run(model: nn.Module, inputs: Inputs) -> object:
    """Return what ``model`` returns for ``inputs``; an error that it raises gets a note on where.

    Example:
        >>> run(nn.Identity(), Inputs(args=(3,)))
        3
    """
    try:
        return model(*inputs.args, **inputs.kwargs)
    except Exception as error:
        given = ", ".join(
            [*map(described, inputs.args), *(f"{name}={described(value)}" for name, value in inputs.kwargs.items())]
        )
        error.add_note(f"While running {type(model).__name__} with ({given}).")
        raise


def output_of(model: nn.Module, inputs: Inputs) -> object:
    """The same in evaluation mode and without gradients, on copies of the inputs, into which a model may write."""
    with evaluating(model), torch.no_grad(), without_compiling():
        return run(model, copied(inputs))


def copied(inputs: Inputs) -> Inputs:
    """``inputs`` with a copy of each tensor."""
    args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.clone, (inputs.args, dict(inputs.kwargs)))
    return Inputs(args, kwargs)


def count_samples(inputs: object) -> int:
    """Return the length of the first axis of the first tensor in ``inputs``; a tensor without axes is one sample.

    Args:
        inputs: `Inputs`, or tensors in tuples, lists and mappings.

    Raises:
        ModelError: There is no tensor.

    Example:
        >>> count_samples(Inputs(kwargs={"input_ids": torch.zeros(4, 7)}))
        4
    """
    given = (inputs.args, inputs.kwargs) if isinstance(inputs, Inputs) else inputs
    first = next(_tensors(given), None)
    if first is None:
        message = (
            f"There is no tensor in {described(given)}: expected one, whose first axis counts the samples. Let the "
            "loader collate samples into tensors."
        )
        raise ModelError(message)
    return first.shape[0] if first.dim() else 1


def described(value: object) -> str:
    """Return the type of ``value``, with shapes, for messages.

    Example:
        >>> described((torch.ones(2, 3), {"mask": None}))
        'tuple (float32 [2, 3], dict {mask: NoneType})'
    """
    if isinstance(value, torch.Tensor | np.ndarray):
        kind = "" if isinstance(value, torch.Tensor) else "array "
        return f"{kind}{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} {{{', '.join(f'{name}: {described(item)}' for name, item in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} ({', '.join(map(described, value))})"
    return type(value).__name__


@final
@dataclasses.dataclass(frozen=True, slots=True)
class _Forward:
    """What a ``forward`` takes.

    Attributes:
        owner: Name of the model's class.
        signature: Its parameters, without ``self``.
    """

    owner: str
    signature: inspect.Signature

    @classmethod
    def of(cls, model: nn.Module) -> _Forward:
        """Read it from the user's own model inside wrappers; one without a signature takes anything."""
        inner = unwrapped(model)
        try:
            signature = inspect.signature(inner.forward)
        except ValueError:  # a builtin
            signature = inspect.signature(lambda *args, **kwargs: (args, kwargs))
        return cls(type(inner).__name__, signature)

    @property
    def positional(self) -> list[inspect.Parameter]:
        kinds = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
        return [parameter for parameter in self.signature.parameters.values() if parameter.kind in kinds]

    @property
    def required(self) -> int:
        return sum(parameter.default is parameter.empty for parameter in self.positional)

    def divide(self, batch: object) -> tuple[tuple[object, ...], object]:
        """Return the items that are inputs, and the label."""
        entries = self._entries(batch)
        if entries is not None:
            return (batch,), _label_in(entries)
        if not isinstance(batch, tuple | list) or _is_text(batch):
            return (batch,), None
        if not batch:
            raise self._error(batch, "it is empty")
        return self._divide_items(tuple(batch))

    def arrange(self, value: object) -> tuple[tuple[object, ...], Mapping[str, object]]:
        """Return positional and keyword arguments for the inputs of a batch, which are one object."""
        if self._wants(value):
            return (value,), {}
        entries = self._entries(value)
        if entries is not None:
            return self._arrange_entries(value, entries)
        if isinstance(value, tuple | list) and not _is_text(value) and self._takes_count(len(value)):
            return tuple(value), {}
        return (value,), {}

    def check(self, args: Sequence[object], kwargs: Mapping[str, object], batch: object) -> None:
        """Refuse arguments that ``forward`` does not take."""
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise self._error(batch, str(error)) from None

    def _divide_items(self, items: tuple[object, ...]) -> tuple[tuple[object, ...], object]:
        count, needed = len(items), max(self.required, 1)
        if count == 1:
            return items, None
        if count == needed + 1 or (count == _PAIR and self._fits_alone(items[0])):
            return items[:-1], items[-1]
        if self._takes_count(count):
            return items, self._label_among(items)
        if self._takes_count(count - 1):
            return items[:-1], items[-1]
        raise self._error(items, f"it has {count} items")

    def _fits_alone(self, first: object) -> bool:
        """Whether the first of two items holds all that ``forward`` requires."""
        if self._wants(first):
            return False
        entries = self._entries(first)
        if entries is not None:
            return any(map(self._takes_name, entries))
        return isinstance(first, tuple | list) and self._takes_count(len(first))

    def _label_among(self, items: tuple[object, ...]) -> object:
        places = zip(self.positional, items, strict=False)
        return next((item for parameter, item in places if parameter.name in LABEL_NAMES), None)

    def _arrange_entries(
        self, value: object, entries: Mapping[str, object]
    ) -> tuple[tuple[object, ...], Mapping[str, object]]:
        accepted = {name: item for name, item in entries.items() if self._takes_name(name)}
        others = [name for name in entries if name not in LABEL_NAMES]
        is_named = any(self._takes_name(name, by_any=not self.positional) for name in others)
        if not is_named and len(others) == 1 and len(entries) > 1:
            return (entries[others[0]],), {name: item for name, item in accepted.items() if name in LABEL_NAMES}
        return ((), accepted) if accepted.keys() & set(others) else ((value,), {})

    def _entries(self, value: object) -> Mapping[str, object] | None:
        """The entries of ``value`` by name, or None if it has none or they say nothing to ``forward``."""
        if isinstance(value, Mapping):
            return value if all(isinstance(name, str) for name in value) else None
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            entries: dict[str, object] = value._asdict()
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            entries = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        else:
            return None
        is_known = any(name in LABEL_NAMES or self._takes_name(name, by_any=False) for name in entries)
        return entries if is_known else None

    def _takes_name(self, name: str, *, by_any: bool = True) -> bool:
        """Whether ``name`` may be given by keyword; a label never through ``**kwargs``."""
        parameter = self.signature.parameters.get(name)
        if parameter is not None and parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            return True
        return by_any and name not in LABEL_NAMES and self._has(inspect.Parameter.VAR_KEYWORD)

    def _takes_count(self, count: int) -> bool:
        most = len(self.positional)
        return self.required <= count and (count <= most or self._has(inspect.Parameter.VAR_POSITIONAL))

    def _has(self, kind: inspect._ParameterKind) -> bool:
        return any(parameter.kind == kind for parameter in self.signature.parameters.values())

    def _wants(self, value: object) -> bool:
        """Whether the first argument is annotated with the type of ``value``, a container."""
        if not self.positional or isinstance(value, torch.Tensor):
            return False
        names = {kind.__name__ for kind in type(value).__mro__ if kind is not object}
        if isinstance(value, Mapping):
            names |= {"Mapping", "MutableMapping", "dict"}
        if isinstance(value, tuple | list):
            names |= {"Sequence", "list", "tuple"}
        return _head(self.positional[0].annotation).lower() in {name.lower() for name in names}

    def _error(self, batch: object, reason: str) -> ModelError:
        return ModelError(
            f"{self.owner}.forward{self.signature} cannot take a batch of type {described(batch)}: {reason}. Expected "
            "its input, (input, label), ((input, input, ...), label), or a dict whose keys are its arguments. Change "
            "the collate_fn of the loader."
        )


def _head(annotation: object) -> str:
    """The outermost name in an annotation, ``list`` of ``Optional[list[Tensor]]``."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"^(typing\.)?Optional\[", "", text.strip())
    return re.split(r"[\[\]|\s]", text, maxsplit=1)[0].rpartition(".")[2]


def _label_in(entries: Mapping[str, object]) -> object:
    return next((entries[name] for name in LABEL_NAMES if name in entries), None)


def _is_text(items: Sequence[object]) -> bool:
    return bool(items) and all(isinstance(item, str) for item in items)


def _device_of(model: nn.Module) -> torch.device | None:
    weights = chain(model.parameters(), model.buffers())
    return next((weight.device for weight in weights if not weight.is_meta), None)


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def on_device(value: Any, device: torch.device | None) -> Any:  # noqa: ANN401  any batch, kept in its form
    """Return ``value`` with tensors for arrays, all on ``device`` (None: anywhere); itself if nothing changes."""
    if isinstance(value, torch.Tensor):
        return value if device is None else value.to(device)
    if isinstance(value, np.ndarray | np.generic):
        return _as_tensor(value).to(device) if value.dtype.kind in _NUMERIC_KINDS else value
    if isinstance(value, Mapping):
        entries = {name: on_device(item, device) for name, item in value.items()}
        return entries if any(entries[name] is not item for name, item in value.items()) else value
    if isinstance(value, tuple | list):
        items = [on_device(item, device) for item in value]
        return _like(value, items) if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def _as_tensor(array: np.ndarray[Any, Any] | np.generic) -> torch.Tensor:
    """Copy an array: torch takes none that is read-only, or reversed."""
    return torch.from_numpy(np.array(array, order="C"))


def _like(value: tuple[Any, ...] | list[Any], items: list[Any]) -> object:
    """Return ``items`` as a list, a tuple or a named tuple, as ``value`` is."""
    if isinstance(value, list):
        return items
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
