"""transformers learns of the quantizer once, whoever comes first."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
from transformers.quantizers import auto

from inc_torch.core.errors import IncTorchWarning
from inc_torch.huggingface import registration
from inc_torch.huggingface._quantizer import IncTorchConfig, IncTorchQuantizer
from inc_torch.huggingface.registration import QUANT_METHOD, install, register


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    """Leave the tables and finders as they were."""
    monkeypatch.setattr(auto, "AUTO_QUANTIZER_MAPPING", auto.AUTO_QUANTIZER_MAPPING.copy())
    monkeypatch.setattr(auto, "AUTO_QUANTIZATION_CONFIG_MAPPING", auto.AUTO_QUANTIZATION_CONFIG_MAPPING.copy())
    monkeypatch.setattr(sys, "meta_path", sys.meta_path.copy())


def registered():
    return auto.AUTO_QUANTIZATION_CONFIG_MAPPING.get(QUANT_METHOD), auto.AUTO_QUANTIZER_MAPPING.get(QUANT_METHOD)


def forget():
    auto.AUTO_QUANTIZER_MAPPING.pop(QUANT_METHOD, None)
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING.pop(QUANT_METHOD, None)


def test_transformers_was_first():
    forget()
    install()
    assert registered() == (IncTorchConfig, IncTorchQuantizer)


def test_twice_is_once():
    install()
    install()
    register(auto)
    assert registered() == (IncTorchConfig, IncTorchQuantizer)


def test_after_a_reload():
    importlib.reload(registration).install()
    assert registered() == (IncTorchConfig, IncTorchQuantizer)


def test_another_copy_was_first():
    forget()

    class Other(IncTorchQuantizer.__mro__[1]):
        pass

    auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = Other
    install()
    assert registered() == (IncTorchConfig, Other)


def test_an_old_transformers_is_named():
    with pytest.warns(IncTorchWarning, match=r"too old.*expected 4.57 or newer.*inc_torch.load"):
        register(ModuleType("auto"))


def test_we_were_first(monkeypatch, tmp_path):
    """The hook waits for one module, registers when its body has run, and leaves no trace."""
    (tmp_path / "late_host.py").write_text("loader_seen = __loader__, __spec__.loader\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registration, "HOST", "late_host")
    seen = []
    monkeypatch.setattr(registration, "register", seen.append)
    before = sys.meta_path.copy()
    install()
    install()
    assert len(sys.meta_path) == len(before) + 1
    importlib.import_module("colorsys")
    assert not seen
    host = importlib.import_module("late_host")
    assert seen == [host]
    assert sys.meta_path == before
    assert host.loader_seen == (host.__loader__, host.__spec__.loader)
    assert type(host.__loader__).__name__ == "SourceFileLoader"
    importlib.reload(host)
    assert seen == [host]
    del sys.modules["late_host"]


def test_a_host_that_is_not_installed_stays_missing(monkeypatch):
    monkeypatch.setattr(registration, "HOST", "no_such_host")
    before = sys.meta_path.copy()
    install()
    with pytest.raises(ModuleNotFoundError, match="no_such_host"):
        importlib.import_module("no_such_host")
    assert sys.meta_path == before


def test_only_directories_that_are_quantized_can_be_opened():
    with pytest.raises(ValueError, match="pre-quantized"):
        IncTorchQuantizer(IncTorchConfig(), pre_quantized=False)
