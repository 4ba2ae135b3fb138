"""The section ``quantization``: what a file asks for, and the configuration that says the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from inc_torch.conf._data import DATALOADER
from inc_torch.conf._schema import Field, Section
from inc_torch.conf._training import TRAIN
from inc_torch.conf._tuning import accuracy_criterion, tuning_criterion
from inc_torch.conf._words import as_it_is, one_or_more, whole_numbers
from inc_torch.config import PostTrainingQuantConfig, QuantizationAwareTrainingConfig
from inc_torch.config._checks import Place, choice, flag, items_of, text
from inc_torch.core.errors import did_you_mean

__all__ = ["QUANTIZATION", "is_trained", "quantization_config"]

_APPROACHES: Final = {
    "post_training_static_quant": "static",
    "post_training_dynamic_quant": "dynamic",
    "post_training_auto_quant": "auto",
    "quant_aware_training": "quant_aware_training",
}
_SHORT: Final = {"static", "dynamic", "auto"}
_SIDES: Final = {
    "weight": ("granularity", "scheme", "dtype", "algorithm", "bit"),
    "activation": ("granularity", "scheme", "dtype", "compute_dtype", "algorithm"),
}
_RULE_KEYS: Final = ("dtype", "scheme", "granularity", "algorithm")
"""What of a rule the configurations know by the same name."""
_AS_INC_DOES: Final = "the other frameworks of Neural Compressor have it; here it follows from the model"


def _approach(value: object, place: Place) -> str:
    word = text(value, place)
    return word if word in _SHORT else _APPROACHES[choice(_APPROACHES)(word, place)]


def _rule(value: object, place: Place) -> Mapping[str, Mapping[str, tuple[Any, ...]]]:
    """``{weight: {...}, activation: {...}}``; values may be single words or lists."""
    sides = items_of(value, place, "a mapping with 'weight' and 'activation'", tuple(_SIDES))
    rule: dict[str, Mapping[str, tuple[Any, ...]]] = {}
    for side, content in sides.items():
        words = items_of({} if content is None else content, place.item(side), "a mapping", _SIDES[side])
        rule[side] = {
            key: one_or_more(as_it_is)(entry, place.item(side).item(key))
            for key, entry in words.items()
            if entry is not None
        }
    return rule


def _rules(value: object, place: Place) -> Mapping[str, Mapping[str, Mapping[str, tuple[Any, ...]]]]:
    entries = items_of(value, place, "a mapping from types or names to rules")
    return {name: _rule(entry, place.item(name)) for name, entry in entries.items()}


def _level(value: object, place: Place) -> str | int:
    if value in ("auto", "0", "1", 0, 1) and not isinstance(value, bool):
        return value if value == "auto" else int(value)
    raise place.error(value, "'auto', 0 or 1", did_you_mean(str(value), ["auto"]))


QUANTIZATION = Section(
    {
        "approach": Field(_approach, "static"),
        "calibration": Section({"sampling_size": Field(whole_numbers, (100,)), "dataloader": DATALOADER}, present=True),
        "recipes": Section(
            {
                "scale_propagation_max_pooling": Field(flag, idle=_AS_INC_DOES),
                "scale_propagation_concat": Field(flag, idle=_AS_INC_DOES),
                "first_conv_or_matmul_quantization": Field(flag),
                "last_conv_or_matmul_quantization": Field(flag),
                "pre_post_process_quantization": Field(flag, idle=_AS_INC_DOES),
                "fast_bias_correction": Field(flag),
                "weight_correction": Field(flag),
            },
            present=True,
        ),
        "model_wise": Field(_rule),
        "optype_wise": Field(_rules),
        "op_wise": Field(_rules),
        "quant_level": Field(_level, "auto"),
        "advance": Field(as_it_is, idle="give recipes: fast_bias_correction, weight_correction"),
        "train": TRAIN,
    }
)


def is_trained(section: Any) -> bool:  # noqa: ANN401  the section `QUANTIZATION`
    """Whether the model is quantized while it trains."""
    return bool(section.approach == "quant_aware_training")


def quantization_config(content: Any) -> PostTrainingQuantConfig | QuantizationAwareTrainingConfig:  # noqa: ANN401
    """The configuration that says what ``content``, a whole file, says in its section ``quantization``."""
    section = content.quantization
    shared: dict[str, Any] = {
        "device": content.device,
        "backend": "ipex" if content.model.framework == "pytorch_ipex" else "default",
        "op_type_dict": _types(section),
        "op_name_dict": _translated(section.op_wise or {}),
        "excluded_precisions": () if content.use_bf16 else ("bf16",),
        "quant_level": section.quant_level,
        "accuracy_criterion": accuracy_criterion(content.tuning),
        "tuning_criterion": tuning_criterion(content.tuning),
    }
    if is_trained(section):
        return QuantizationAwareTrainingConfig(**shared)
    return PostTrainingQuantConfig(
        approach=section.approach,
        calibration_sampling_size=section.calibration.sampling_size,
        recipes={name: value for name, value in section.recipes.items() if value is not None},
        **shared,
    )


def _types(section: Any) -> Mapping[str, object]:  # noqa: ANN401
    """What is said of the whole model comes first, so that what is said of a type counts more."""
    of_all = {} if section.model_wise is None else _translated({".*": section.model_wise})
    return of_all | _translated(section.optype_wise or {})


def _translated(rules: Mapping[str, Any]) -> dict[str, object]:
    """Rules in the words of the configurations."""
    return {name: translated for name, rule in rules.items() if (translated := _translated_rule(rule))}


def _translated_rule(rule: Mapping[str, Any]) -> dict[str, object]:
    sides = {
        side: {key: list(words[key]) for key in _RULE_KEYS if key in words and list(words[key]) != ["placeholder"]}
        for side, words in rule.items()
    }
    return {side: words for side, words in sides.items() if words}
