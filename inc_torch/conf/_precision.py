"""The sections ``mixed_precision`` and ``graph_optimization``, which here are the same."""

from __future__ import annotations

from typing import Any

from inc_torch.conf._schema import Field, Section
from inc_torch.conf._tuning import accuracy_criterion, tuning_criterion
from inc_torch.conf._words import as_it_is, one_or_more
from inc_torch.config import MixedPrecisionConfig
from inc_torch.config._checks import Place, choice, items_of

__all__ = ["MIXED_PRECISION", "mixed_precision_config"]

_DTYPES = ("fp32", "bf16", "fp16")
_SIDES = ("weight", "activation")


def _op_wise(value: object, place: Place) -> dict[str, object]:
    """Names of operations with their rule; or, as the schema of INC has it, a rule for all of them."""
    given = items_of(value, place, "a mapping from names to rules")
    return {".*": value} if given and set(given) <= set(_SIDES) else dict(given)


MIXED_PRECISION = Section(
    {
        "precisions": Field(one_or_more(choice(_DTYPES)), ("bf16", "fp32")),
        "op_wise": Field(_op_wise),
        "quant_level": Field(as_it_is),
    }
)


def mixed_precision_config(content: Any) -> MixedPrecisionConfig | None:  # noqa: ANN401  a whole file
    """The configuration that says the same; None where everything stays in float32."""
    section = content.mixed_precision or content.graph_optimization
    wanted = [word for word in section.precisions if word != "fp32"]
    if not wanted:
        return None
    return MixedPrecisionConfig(
        device=content.device,
        precisions=wanted,
        op_name_dict=section.op_wise,
        quant_level=section.quant_level,
        accuracy_criterion=accuracy_criterion(content.tuning),
        tuning_criterion=tuning_criterion(content.tuning),
    )
