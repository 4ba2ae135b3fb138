"""The sections ``model`` and ``device``."""

from __future__ import annotations

from typing import Final

from inc_torch.conf._schema import Field, Section
from inc_torch.conf._words import any_case, as_it_is, one_or_more
from inc_torch.config._checks import Place, choice, text

__all__ = ["DEVICE", "MODEL"]

FRAMEWORKS: Final = ("pytorch", "pytorch_fx", "pytorch_ipex", "torch", "NA")
_OTHERS: Final = ("tensorflow", "inteltensorflow", "keras", "mxnet", "onnx", "engine")
_TENSORFLOW: Final = "modules of PyTorch have no such names"


def _framework(value: object, place: Place) -> str:
    word = text(value, place)
    if any(word.lower().startswith(other) for other in _OTHERS):
        raise place.error(value, f"one of {', '.join(map(repr, FRAMEWORKS))}", " inc_torch is for PyTorch only.")
    return any_case(FRAMEWORKS)(word, place)


MODEL = Section(
    {
        "name": Field(text, ""),
        "framework": Field(_framework, "pytorch"),
        "inputs": Field(one_or_more(as_it_is), (), idle=_TENSORFLOW),
        "outputs": Field(one_or_more(as_it_is), (), idle=_TENSORFLOW),
    },
    present=True,
)
DEVICE = Field(choice(("cpu", "gpu")), "cpu")
