"""Let transformers know of our quantizer, whichever of the two packages is imported first."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import final

from inc_torch.core.errors import IncTorchWarning
from inc_torch.core.user_warning import warn_user

__all__ = ["QUANT_METHOD", "install"]

QUANT_METHOD = "inc_torch"
HOST = "transformers.quantizers.auto"


def install() -> None:
    """Register now if transformers' quantizers are imported, else as soon as they are. Doing it twice changes nothing.

    ``import inc_torch`` calls it. After it, ``AutoModelFor….from_pretrained`` opens what
    `save_for_huggingface_upstream` wrote.
    """
    if HOST in sys.modules:
        # Importing it again waits for another thread that may be at it.
        # Importing it again waits for another thread that may be at it.
        register(importlib.import_module(HOST))
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def register(host: ModuleType) -> None:
    """Add config and quantizer to ``host`` (the module ``transformers.quantizers.auto``) unless they are there.

    A registration that is there, even of another copy of this package, stays.
    """
    if not (hasattr(host, "register_quantizer") and hasattr(host, "register_quantization_config")):
        warn_user(
            "This transformers is too old to open compressed models with from_pretrained: expected 4.57 or newer. "
            "Upgrade it, or save with manager.save and load with inc_torch.load.",
            IncTorchWarning,
        )
        return
    # Imported here, as it imports transformers, which `import inc_torch` must not.
    from inc_torch.huggingface import _quantizer

    if not hasattr(_quantizer, "IncTorchQuantizer"):  # it is being imported, and installs itself at its end
        return
    if QUANT_METHOD not in host.AUTO_QUANTIZATION_CONFIG_MAPPING:
        host.register_quantization_config(QUANT_METHOD)(_quantizer.IncTorchConfig)
    if QUANT_METHOD not in host.AUTO_QUANTIZER_MAPPING:
        host.register_quantizer(QUANT_METHOD)(_quantizer.IncTorchQuantizer)


@final
class _AfterImport(MetaPathFinder):
    """Finds one module as everybody else would, and has it registered with once its body has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != HOST:
            return None
        _remove(self)
        for finder in list(sys.meta_path):
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _ThenRegister(spec.loader)
                return spec
        return None


@final
class _ThenRegister(Loader):
    """Stands in for ``loader`` until the module runs, so that nothing of it remains on the module."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        register(module)


def _remove(finder: _AfterImport) -> None:
    if finder in sys.meta_path:
        sys.meta_path.remove(finder)
