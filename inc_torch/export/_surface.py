"""What a compressed model can do by itself: ``save``, ``report``, ``export`` and others; ``model`` for old scripts."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.fx import GraphModule

from inc_torch.core.report import CompressionReport
from inc_torch.export._artifact import save
from inc_torch.export._inc_members import INC_MEMBERS
from inc_torch.export._packed import export_compressed_model
from inc_torch.export._proof import attached_report, measured_report

if TYPE_CHECKING:
    from inc_torch.config import Torch2ONNXConfig
    from inc_torch.export.onnx import OnnxExport
    from inc_torch.tuning import TuningResult

__all__ = ["adorn", "attach_tuning"]

_ORIGINAL = "_inc_torch_original_class"
_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def adorn(model: nn.Module) -> None:
    """Give ``model`` the members of a compressed model, in place.

    These are ``save``, ``report``, ``export``, ``export_compressed_model``, ``tuning``, ``model`` for itself, and what
    else INC's wrapper had (`inc_torch.export._inc_members`).

    The object stays the same; its class becomes a subclass of the same name. A member that the class or the
    object has already is left alone. Doing it twice changes nothing.
    """
    if not hasattr(type(model), _ORIGINAL):
        # Attributes of submodules (``LlamaForCausalLM.model``) are found by hasattr on the object only.
        members = tuple(name for name in _MEMBERS if not hasattr(model, name))
        if isinstance(model, GraphModule):  # has a class for itself alone, which its recompile() must find again
            for name in members:
                setattr(type(model), name, _MEMBERS[name])
            setattr(type(model), _ORIGINAL, type(model))
        else:
            model.__class__ = _adorned_class(type(model), members)


def _save(self: nn.Module, directory: str | PathLike[str]) -> None:
    """Write the model to ``directory`` as safetensors and JSON; `inc_torch.load` reads it."""
    save(self, directory, _report(self))


def _report(self: nn.Module) -> CompressionReport:
    """Measure what was asked for against the weights as they are now."""
    return measured_report(self, attached_report(self))


def _itself(self: nn.Module) -> nn.Module:
    """The model itself; INC handed out a wrapper with the model in it."""
    return self


def _tuning(self: nn.Module) -> TuningResult | None:
    """What the search that made the model tried and found; None if there was no search."""
    result: TuningResult | None = self.__dict__.get(_TUNING)
    return result


def attach_tuning(model: nn.Module, result: TuningResult) -> None:
    """Let ``model.tuning`` be ``result``."""
    model.__dict__[_TUNING] = result


def _export(self: nn.Module, path: str | PathLike[str], config: Torch2ONNXConfig) -> OnnxExport:
    """Write the model as ONNX, see `inc_torch.export.onnx.export_onnx`."""
    from inc_torch.export.onnx import export_onnx  # which needs packages that other models do not

    return export_onnx(self, path, config)


_TUNING = "_inc_torch_tuning"
_MEMBERS: dict[str, Any] = {
    "save": _save,
    "report": _report,
    "export": _export,
    "export_compressed_model": export_compressed_model,
    "tuning": property(_tuning),
    "model": property(_itself),
    **INC_MEMBERS,
}


def _adorned_class(original: type[nn.Module], members: tuple[str, ...]) -> type[nn.Module]:
    if (original, members) not in _CLASSES:
        _CLASSES[original, members] = _make_class(original, members)
    return _CLASSES[original, members]


def _make_class(original: type[nn.Module], members: tuple[str, ...]) -> type[nn.Module]:
    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:  # noqa: ANN401  SupportsIndex, as in object
        own: Any = self
        if original.__reduce_ex__ is object.__reduce_ex__ and original.__reduce__ is object.__reduce__:
            return _restore, (original, members), own.__getstate__()
        reduced: Any = original.__reduce_ex__(own, protocol)
        return _rebuild, reduced[:2], *reduced[2:]

    namespace = {name: _MEMBERS[name] for name in members} | {
        _ORIGINAL: original,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": reduce,
    }
    return type(original.__name__, (original,), namespace)


def _rebuild(build: Callable[..., nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    """Make the object as its class says by a ``__reduce__`` of its own."""
    model = build(*arguments)
    adorn(model)
    return model


def _restore(original: type[nn.Module], members: tuple[str, ...]) -> nn.Module:
    """Make the empty object that pickle and deepcopy fill."""
    adorned = _adorned_class(original, members)
    return adorned.__new__(adorned)
