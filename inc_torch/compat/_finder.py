"""What Python asks for modules by INC's names."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final, final

from inc_torch.compat._names import counterpart, hint_for, known_names
from inc_torch.core.errors import NoCounterpartError

__all__ = ["FINDER", "TOP", "take_back_attributes"]

TOP: Final = "neural_compressor"
_NEAR: Final = 5
_ADDED: Final[list[tuple[ModuleType, str]]] = []
"""Modules of ours that Python gives an attribute by INC's name, and its name: parents have their children."""


@final
class _Loader(Loader):
    """Gives a module that is there already, and leaves it as it was."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._asked = ""
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self._asked = spec.name
        module = importlib.import_module(self._target)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # Python has just put ours there
        above, _, name = self._asked.rpartition(".")
        parent = sys.modules.get(above)
        if parent is not None and name not in vars(parent):
            _ADDED.append((parent, name))


def take_back_attributes() -> None:
    """Remove what modules of ours have as attributes because they were imported by INC's names."""
    while _ADDED:
        parent, name = _ADDED.pop()
        vars(parent).pop(name, None)


@final
class _Finder(MetaPathFinder):
    """Finds counterparts, and says of every other name of INC that there is none."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        top, _, name = fullname.partition(".")
        if top != TOP:
            return None
        ours = counterpart(name)
        if ours is None:
            raise NoCounterpartError(_no_counterpart(name), name=fullname)
        return ModuleSpec(fullname, _Loader(ours))


FINDER: Final = _Finder()


def _no_counterpart(name: str) -> str:
    known = known_names()
    last = name.rpartition(".")[2]
    near = difflib.get_close_matches(name, known, n=_NEAR, cutoff=0.5)
    near += [other for other in known if last in other.split(".") and other not in near]
    shown = [f"{TOP}.{other}" for other in near[:_NEAR] or known if "." not in other or near]
    hint = hint_for(name)
    return (
        f"{TOP}.{name} has no counterpart in inc_torch. {hint + ' ' if hint else ''}"
        f"{'Near it are' if near else 'There are'} {', '.join(shown)}."
    )
