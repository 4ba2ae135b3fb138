"""What a compressed model can do by itself: ``save``, ``report`` and, for old scripts, ``model``."""

from __future__ import annotations

from os import PathLike
from typing import Any

from torch import nn

from inc_torch.core.report import CompressionReport
from inc_torch.export._artifact import save

__all__ = ["adorn", "attach_report", "attached_report"]

_REPORT = "_inc_torch_report"
_ORIGINAL = "_inc_torch_original_class"
_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def adorn(model: nn.Module) -> None:
    """Give ``model`` the methods ``save`` and ``report``, and ``model`` returning itself, in place.

    The object stays the same; its class becomes a subclass of the same name. A member that the class or the
    object has already is left alone. Doing it twice changes nothing.
    """
    if not hasattr(type(model), _ORIGINAL):
        # Attributes of submodules (``LlamaForCausalLM.model``) are found by hasattr on the object only.
        members = tuple(name for name in ("save", "report", "model") if not hasattr(model, name))
        model.__class__ = _adorned_class(type(model), members)


def attach_report(model: nn.Module, report: CompressionReport) -> None:
    """Let ``model`` carry ``report`` about; it is copied and pickled with it and is no part of its weights."""
    model.__dict__[_REPORT] = report


def attached_report(model: nn.Module) -> CompressionReport | None:
    """The report that ``model`` carries, or None."""
    report = model.__dict__.get(_REPORT)
    return report if isinstance(report, CompressionReport) else None


def _save(self: nn.Module, directory: str | PathLike[str]) -> None:
    """Write the model to ``directory`` as safetensors and JSON; `inc_torch.load` reads it."""
    save(self, directory, _report(self))


def _report(self: nn.Module) -> CompressionReport:
    """Measure what was asked for against the weights as they are now."""
    carried = attached_report(self)
    return CompressionReport.measure(self, carried.findings() if carried else ())


def _itself(self: nn.Module) -> nn.Module:
    """The model itself; INC handed out a wrapper with the model in it."""
    return self


def _adorned_class(original: type[nn.Module], members: tuple[str, ...]) -> type[nn.Module]:
    if (original, members) not in _CLASSES:
        _CLASSES[original, members] = _make_class(original, members)
    return _CLASSES[original, members]


def _make_class(original: type[nn.Module], members: tuple[str, ...]) -> type[nn.Module]:
    available: dict[str, Any] = {"save": _save, "report": _report, "model": property(_itself)}

    def reduce(self: nn.Module, _protocol: object) -> tuple[Any, ...]:
        return _restore, (original, members), self.__dict__

    namespace = {name: available[name] for name in members} | {
        _ORIGINAL: original,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": reduce,
    }
    return type(original.__name__, (original,), namespace)


def _restore(original: type[nn.Module], members: tuple[str, ...]) -> nn.Module:
    """Make the empty object that pickle and deepcopy fill."""
    adorned = _adorned_class(original, members)
    return adorned.__new__(adorned)
