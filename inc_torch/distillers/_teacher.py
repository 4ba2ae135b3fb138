"""Running a teacher beside the training, without leaving a trace in it or in the student."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, final

import torch
from torch import nn

from inc_torch.core.errors import ConfigTypeError, InexactWarning
from inc_torch.core.modes import evaluating
from inc_torch.core.user_warning import warn_user

__all__ = ["Teacher"]

WRAPPED = ("_orig_mod", "module")
"""Where torch.compile, DistributedDataParallel and DataParallel keep the module that they wrap."""

COMPUTED = frozenset({torch.bfloat16, torch.float16, torch.float32})
"""Types of weights that inputs are cast to."""

TARGETS = frozenset(
    {
        "end_positions",
        "label",
        "label_ids",
        "labels",
        "next_sentence_label",
        "num_items_in_batch",
        "return_loss",
        "start_positions",
    }
)
"""Keys of a batch that only serve to compute a loss."""

IGNORED = -100
"""The label of a position that no loss looks at."""


@final
class Teacher:
    """A module that is asked for its output and stays as it is.

    It runs in evaluation mode and without gradients; afterwards every submodule has its training flag back.
    ``requires_grad`` is never touched and batch norm statistics do not move. A `Teacher` is no `torch.nn.Module`, so
    a model that holds one neither trains nor saves it.

    The call follows the signature of the module's ``forward``:

    - A mapping becomes keyword arguments, restricted to those that ``forward`` accepts, without labels and what
      else only serves to compute a loss (unless ``forward`` requires it). Where no key is accepted, the mapping is
      the one argument. A Hugging Face sequence-to-sequence model gets the decoder inputs that it would have made
      from the labels.
    - A tuple or list becomes positional arguments, as many as ``forward`` accepts: of a pair ``(x, y)``, a
      ``forward`` with one input gets ``x``.
    - Anything else is the one argument.

    Inputs are moved to the teacher's device. If they were elsewhere, the output is moved back there, and mappings
    in it become plain dicts. Without autocast floating point inputs get the type of the teacher's weights, so that one
    in bfloat16 can teach a student in float32.

    Args:
        module: The teacher.

    Attributes:
        is_snapshot: The module is a frozen copy, made by `separate_from`.

    Raises:
        ConfigTypeError: ``module`` is no `torch.nn.Module`.

    Example:
        >>> import torch
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout())
        >>> output = Teacher(module)((torch.ones(4, 2), torch.zeros(4)))
        >>> output.shape, output.requires_grad, module.training
        (torch.Size([4, 3]), False, True)
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = _checked(module)
        self.is_snapshot = False
        self._signature = _Signature.of(module)
        self._fingerprint = ""

    def __repr__(self) -> str:
        return f"Teacher({type(self.module).__name__}{', frozen copy' if self.is_snapshot else ''})"

    def __call__(self, inputs: object) -> object:
        """Return what the teacher's ``forward`` returns for a batch; an error that it raises gets a note on where."""
        args, kwargs = self._signature.arrange(self._with_decoder_inputs(inputs))
        device = next((tensor.device for tensor in _weights(self.module)), None)
        home = next((tensor.device for tensor in _tensors(inputs)), None)
        dtype = self._input_dtype(device)
        try:
            with evaluating(self.module), torch.no_grad():
                output = self.module(*_moved(args, device, dtype), **_moved(kwargs, device, dtype))
        except Exception as error:
            given = ", ".join([*(type(value).__name__ for value in args), *(f"{name}=" for name in kwargs)])
            error.add_note(f"While running the teacher {type(self.module).__name__} with the arguments ({given}).")
            raise
        return _moved(output, home)

    def _input_dtype(self, device: torch.device | None) -> torch.dtype | None:
        """The one type that all floating point weights have; None if there are several, or autocast chooses."""
        kind = None if device is None else device.type
        if kind and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            return None
        found = {parameter.dtype for parameter in self.module.parameters() if parameter.is_floating_point()}
        return found.pop() if len(found) == 1 and found <= COMPUTED else None

    def separate_from(self, student: nn.Module) -> None:
        """Become a frozen copy if the module shares weights with ``student``, or is it; else do nothing.

        Training and rewriting the student would change such a teacher as well. Call it before they do.

        Warns:
            InexactWarning: A copy was made.
        """
        shared = {_identity(tensor) for tensor in _weights(student)}
        if self.module is not student and shared.isdisjoint(map(_identity, _weights(self.module))):
            return
        try:
            self.module = copy.deepcopy(self.module).eval().requires_grad_(False)
        except Exception as error:
            error.add_note(
                f"While copying the teacher {type(self.module).__name__}, which shares weights with the student. "
                "Pass a teacher_model of its own, or teacher_output."
            )
            raise
        self.is_snapshot = True
        message = (
            f"The teacher {type(self.module).__name__} shares weights with the student. A frozen copy of it, as it is "
            "now, is the teacher instead. Pass copy.deepcopy(model) as teacher_model to say so yourself."
        )
        warn_user(message, InexactWarning)

    def fingerprint(self) -> str:
        """SHA-256 over names and values of all parameters and buffers; of a snapshot it is computed once."""
        if self._fingerprint:
            return self._fingerprint
        digest = hashlib.sha256()
        for name, tensor in chain(self.module.named_parameters(), self.module.named_buffers()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if self.is_snapshot:
            self._fingerprint = digest.hexdigest()
        return digest.hexdigest()

    def _with_decoder_inputs(self, inputs: object) -> object:
        if not isinstance(inputs, Mapping) or not isinstance(inputs.get("labels"), torch.Tensor):
            return inputs
        if "decoder_input_ids" in inputs or "decoder_inputs_embeds" in inputs:
            return inputs
        prepare = getattr(self.module, "prepare_decoder_input_ids_from_labels", None)
        if callable(prepare):
            return {**inputs, "decoder_input_ids": prepare(inputs["labels"])}
        if _shifts_labels(self.module):
            return {**inputs, "decoder_input_ids": _shifted(inputs["labels"], self.module.config)}
        return inputs


def _shifts_labels(module: nn.Module) -> bool:
    """Whether labels are the texts of a decoder, as of Whisper; a classifier with a decoder has other ones."""
    can_generate = getattr(module, "can_generate", None)
    return bool(
        getattr(getattr(module, "config", None), "is_encoder_decoder", False) and can_generate and can_generate()
    )


def _shifted(labels: torch.Tensor, config: Any) -> torch.Tensor:  # noqa: ANN401  # of transformers
    """What a decoder is given to answer ``labels``: its first token, then all labels but the last."""
    first = labels.new_full((len(labels), 1), config.decoder_start_token_id)
    before = torch.cat([first, labels[:, :-1]], dim=1)
    return before.masked_fill(before == IGNORED, config.pad_token_id)


@final
@dataclass(frozen=True, slots=True)
class _Signature:
    """What a ``forward`` accepts.

    Attributes:
        names: Parameters that may be given by keyword; None accepts any.
        required: Those of them without a default.
        positions: How many positional arguments fit; None is any number.
    """

    names: frozenset[str] | None = None
    required: frozenset[str] = frozenset()
    positions: int | None = None

    @classmethod
    def of(cls, module: nn.Module) -> _Signature:
        """Read it from ``module``, or from the module inside if this is a wrapper that passes everything on."""
        try:
            parameters = list(inspect.signature(module.forward).parameters.values())
        except ValueError:  # a builtin without a signature
            return cls()
        kinds = {parameter.kind for parameter in parameters}
        inner = next((module._modules[name] for name in WRAPPED if name in module._modules), None)
        if inner is not None and kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
            return cls.of(inner)
        by_name = [
            parameter
            for parameter in parameters
            if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
        ]
        by_position = [
            parameter
            for parameter in parameters
            if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}
        ]
        return cls(
            names=None
            if inspect.Parameter.VAR_KEYWORD in kinds
            else frozenset(parameter.name for parameter in by_name),
            required=frozenset(parameter.name for parameter in by_name if parameter.default is parameter.empty),
            positions=None if inspect.Parameter.VAR_POSITIONAL in kinds else len(by_position),
        )

    def arrange(self, inputs: object) -> tuple[tuple[object, ...], dict[str, object]]:
        """Return the positional and the keyword arguments for a batch."""
        if isinstance(inputs, Mapping):
            accepted = {name: value for name, value in inputs.items() if self._takes(name)}
            return ((), accepted) if accepted else ((inputs,), {})
        if isinstance(inputs, tuple | list):
            return tuple(inputs[: self.positions]), {}
        return (inputs,), {}

    def _takes(self, name: str) -> bool:
        if name in self.required:
            return True
        return name not in TARGETS and (self.names is None or name in self.names)


def _checked(module: object) -> nn.Module:
    if not isinstance(module, nn.Module):
        message = (
            f"The teacher is of type {type(module).__name__}: expected a torch.nn.Module, or None and a "
            "teacher_output in every call of on_after_compute_loss."
        )
        raise ConfigTypeError(message)
    return module


def _weights(module: nn.Module) -> Iterator[torch.Tensor]:
    return chain(module.parameters(), module.buffers())


def _identity(tensor: torch.Tensor) -> tuple[str, int]:
    """What two tensors have in common if one changes with the other: the memory, or else the object."""
    if type(tensor) in {torch.Tensor, nn.Parameter} and tensor.layout is torch.strided and not tensor.is_meta:
        address = tensor.untyped_storage().data_ptr()
        if address:
            return str(tensor.device), address
    return "object", id(tensor)


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _moved(
    value: Any,  # noqa: ANN401  a batch or an output, kept in its form
    device: torch.device | None,
    dtype: torch.dtype | None = None,
) -> Any:  # noqa: ANN401
    """Return ``value`` with its tensors on ``device``, and those of floating point in ``dtype``; None leaves them.

    What needs no change is returned itself.
    """
    if all(_fits(tensor, device, dtype) for tensor in _tensors(value)):
        return value
    if isinstance(value, torch.Tensor):
        return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    if isinstance(value, Mapping):
        return {key: _moved(item, device, dtype) for key, item in value.items()}
    items = [_moved(item, device, dtype) for item in value]
    if isinstance(value, list):
        return items
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def _fits(tensor: torch.Tensor, device: torch.device | None, dtype: torch.dtype | None) -> bool:
    has_dtype = dtype is None or not tensor.is_floating_point() or tensor.dtype == dtype
    return has_dtype and (device is None or tensor.device == device)
