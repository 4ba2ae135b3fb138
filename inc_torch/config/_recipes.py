"""The recipes of post-training quantization."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from inc_torch.config._checks import (
    Check,
    Place,
    choice,
    flag,
    integer,
    items_of,
    list_of,
    mapping,
    number,
    optional,
    text,
)
from inc_torch.config._readonly import FrozenDict
from inc_torch.quantizers import AwqSettings, GptqSettings, SmoothQuant, TeqSettings, WeightOnlyScheme

__all__ = [
    "DEFAULT_RECIPES",
    "check_recipes",
    "recipes_without_effect",
    "rounding_of",
    "smoothing_of",
]

_GRAPH_LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")
_share = number("a number in [0, 1]", lambda x: 0 <= x <= 1)


def _alpha(value: object, place: Place) -> float | tuple[float, ...] | str:
    """How much of the difficulty goes from inputs into weights: a number, several to choose from, or "auto"."""
    if value == "auto":
        return "auto"
    if isinstance(value, str):
        raise place.error(value, "a number in [0, 1], a list of them, or 'auto'")
    if not isinstance(value, (list, tuple)):
        return _share(value, place)
    if not value:
        raise place.error(value, "at least one number in [0, 1]")
    return tuple(_share(entry, place.item(index)) for index, entry in enumerate(value))


def _always_clipped(value: object, place: Place) -> bool:
    """INC can leave weights near 0 as they are, and then divides by them."""
    if not flag(value, place):
        raise place.error(value, "True", " Weights below 1e-5 count as 1e-5, or scales would have no end.")
    return True


_AUTO_ALPHA: Mapping[str, Check[object]] = {
    "alpha_min": _share,
    "alpha_max": _share,
    "alpha_step": number("a number in (0, 1]", lambda x: 0 < x <= 1),
    "shared_criterion": choice(("mean", "min", "max")),
    "do_blockwise": flag,
    "init_alpha": _share,
    "enable_blockwise_loss": flag,
    "n_samples": integer("a number of samples above 0", lambda x: x >= 1),
}


def _options(checks: Mapping[str, Check[object]]) -> Check[FrozenDict]:
    def check(value: object, place: Place) -> FrozenDict:
        entries = items_of(value, place, "a dict", tuple(checks))
        return FrozenDict({key: checks[key](entry, place.item(key)) for key, entry in entries.items()})

    return check


def _search(value: object, place: Place) -> FrozenDict:
    options = _options(_AUTO_ALPHA)(value, place)
    low, high = _share(options.get("alpha_min", 0.0), place), _share(options.get("alpha_max", 1.0), place)
    if low > high:
        raise place.error(value, "an alpha_min that is not above alpha_max (by default 0 and 1)")
    return options


_SMOOTH_QUANT: Mapping[str, Check[object]] = {
    "alpha": _alpha,
    "folding": optional(flag),
    "default_alpha": _share,
    "auto_alpha_args": _search,
    "weight_clip": _always_clipped,
}


def _group_dim(value: object, place: Place) -> int:
    if value != 1:
        raise place.error(value, "1", " Groups lie along the inputs of a layer.")
    return 1


_RTN: Mapping[str, Check[object]] = {
    "enable_full_range": flag,
    "enable_mse_search": flag,
    "group_dim": _group_dim,
    "return_int": flag,
}
"""Of these ``return_int`` changes nothing: weights are packed codes at once."""

_GPTQ: Mapping[str, Check[object]] = {
    "percdamp": number("a number above 0", lambda x: x > 0),
    "act_order": flag,
    "block_size": integer("a number of columns above 0", lambda x: x >= 1),
    "static_groups": flag,
    "nsamples": integer("a number of samples above 0", lambda x: x >= 1),
    "true_sequential": flag,
    "lm_head": flag,
    "use_max_length": flag,
    "pad_max_length": integer("a number of tokens above 0", lambda x: x >= 1),
}
_GPTQ_WITHOUT_EFFECT = {
    "true_sequential": "the layers of a block are rounded for one and the same inputs",
    "lm_head": "layers outside of the blocks are rounded to the nearest",
    "use_max_length": "batches are run as they come",
    "pad_max_length": "batches are run as they come",
}

_AWQ: Mapping[str, Check[object]] = {
    "enable_auto_scale": flag,
    "enable_mse_search": flag,
    "folding": flag,
}

_TEQ: Mapping[str, Check[object]] = {
    "folding": flag,
    "steps": integer("a number of optimizer steps above 0", lambda x: x >= 1),
    "lr": number("a learning rate above 0", lambda x: x > 0),
}

_CHECKS: Mapping[str, tuple[Check[object], object]] = {
    "smooth_quant": (flag, False),
    "smooth_quant_args": (_options(_SMOOTH_QUANT), {}),
    "layer_wise_quant": (flag, False),
    "layer_wise_quant_args": (mapping, {}),
    "fast_bias_correction": (flag, False),
    "weight_correction": (flag, False),
    "first_conv_or_matmul_quantization": (flag, True),
    "last_conv_or_matmul_quantization": (flag, True),
    "pre_post_process_quantization": (flag, True),
    "gemm_to_matmul": (flag, True),
    "graph_optimization_level": (optional(choice(_GRAPH_LEVELS)), None),
    "add_qdq_pair_to_weight": (flag, False),
    "optypes_to_exclude_output_quant": (list_of("a list of operator types", text), ()),
    "dedicated_qdq_pair": (flag, False),
    "rtn_args": (_options(_RTN), {}),
    "awq_args": (_options(_AWQ), {}),
    "gptq_args": (_options(_GPTQ), {}),
    "teq_args": (_options(_TEQ), {}),
    "autoround_args": (mapping, {}),
}
"""By recipe: its check and its default."""

DEFAULT_RECIPES = FrozenDict({name: default for name, (_, default) in _CHECKS.items()})

_NEVER: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "pre_post_process_quantization",
            "gemm_to_matmul",
            "graph_optimization_level",
            "add_qdq_pair_to_weight",
            "optypes_to_exclude_output_quant",
            "dedicated_qdq_pair",
        ),
        "it speaks of ONNX graphs",
    ),
    "layer_wise_quant_args": "smoothing is asked for by smooth_quant",
}
_OF_WEIGHT_ONLY = ("rtn_args", "awq_args", "gptq_args", "teq_args", "autoround_args")
_OF_DATA = ("smooth_quant", "fast_bias_correction")
_OF_INT8 = (
    *_OF_DATA,
    "weight_correction",
    "first_conv_or_matmul_quantization",
    "last_conv_or_matmul_quantization",
)


def recipes_without_effect(
    recipes: Mapping[str, object], approach: str, algorithms: Collection[object] = ()
) -> dict[str, str]:
    """Name the recipes that were given and change nothing under this approach, and why.

    Args:
        recipes: All of them.
        approach: In INC's long spelling.
        algorithms: Of weights alone, those that a rule asks for.

    Example:
        >>> recipes = {**DEFAULT_RECIPES, "gemm_to_matmul": False}
        >>> recipes_without_effect(recipes, "post_training_static_quant")
        {'gemm_to_matmul': 'it speaks of ONNX graphs'}
    """
    idle = dict(_NEVER)
    if "weight_only" in approach:
        for algorithm in ("gptq", "awq", "teq"):
            if algorithm not in algorithms:
                idle[f"{algorithm}_args"] = f"no rule asks for the algorithm {algorithm.upper()!r}"
        idle["autoround_args"] = "AutoRound is a package of its own; take the algorithm GPTQ or AWQ"
        idle |= dict.fromkeys(
            _OF_INT8, "approach='weight_only' rounds weights alone; leave layers in float by op_name_dict"
        )
    else:
        idle |= dict.fromkeys(_OF_WEIGHT_ONLY, "it belongs to approach='weight_only'")
    if "dynamic" in approach:
        idle |= dict.fromkeys(_OF_DATA, "approach='dynamic' looks at no calibration data")
    if not recipes["smooth_quant"]:
        idle["smooth_quant_args"] = "recipes['smooth_quant'] is not True"
    found = {name: reason for name, reason in idle.items() if recipes[name] != DEFAULT_RECIPES[name]}
    gptq = recipes["gptq_args"]
    if "gptq_args" not in found and isinstance(gptq, Mapping):
        found |= {f"gptq_args.{key}": reason for key, reason in _GPTQ_WITHOUT_EFFECT.items() if gptq.get(key)}
    return found


_SEARCH_FIELDS: Mapping[str, str] = {
    "init_alpha": "default_alpha",
    "alpha_min": "alpha_min",
    "alpha_max": "alpha_max",
    "alpha_step": "alpha_step",
    "shared_criterion": "shared_criterion",
    "enable_blockwise_loss": "do_blockwise",
    "do_blockwise": "do_blockwise",
    "n_samples": "search_samples",
}
"""By the name in ``auto_alpha_args``, two of which INC spelled in two ways: the field of `SmoothQuant`."""


def check_recipes(value: object, place: Place) -> FrozenDict:
    """Check recipes and complete them: every recipe has a value afterwards."""
    given = {} if value is None else items_of(value, place, "a dict of recipes", tuple(_CHECKS))
    return FrozenDict(
        {
            name: default if given.get(name) is None else check(given[name], place.item(name))
            for name, (check, default) in _CHECKS.items()
        }
    )


def smoothing_of(recipes: FrozenDict) -> SmoothQuant | None:
    """What the recipes say of smoothing, or None."""
    if not recipes.smooth_quant:
        return None
    arguments: FrozenDict = recipes.smooth_quant_args
    auto = arguments.get("auto_alpha_args", FrozenDict())
    options: dict[str, object] = {
        name: arguments[name] for name in ("alpha", "folding", "default_alpha") if arguments.get(name) is not None
    }
    if isinstance(auto, Mapping):
        options |= {field: auto[name] for name, field in _SEARCH_FIELDS.items() if name in auto}
    return SmoothQuant(**options)  # type: ignore[arg-type]  # checked above


_S = TypeVar("_S", AwqSettings, GptqSettings, TeqSettings)


def rounding_of(recipes: Mapping[str, object]) -> WeightOnlyScheme:
    """What the recipes say of the rounding of weights alone."""
    nearest = _given(recipes, "rtn_args")

    def named(name: str, fields: Mapping[str, str], kind: type[_S]) -> _S | None:
        given = {fields[key]: value for key, value in _given(recipes, name).items() if key in fields}
        return kind(**given) if given else None

    return WeightOnlyScheme(
        full_range=bool(nearest.get("enable_full_range")),
        clip_search=bool(nearest.get("enable_mse_search")),
        gptq=named("gptq_args", _GPTQ_FIELDS, GptqSettings),
        awq=named("awq_args", _AWQ_FIELDS, AwqSettings),
        teq=named("teq_args", _TEQ_FIELDS, TeqSettings),
    )


_GPTQ_FIELDS: Mapping[str, str] = {
    "percdamp": "damping",
    "act_order": "act_order",
    "block_size": "block_size",
    "static_groups": "static_groups",
    "nsamples": "samples",
}
"""By the name in ``gptq_args``: the field of `GptqSettings`."""

_AWQ_FIELDS: Mapping[str, str] = {"enable_auto_scale": "scale", "enable_mse_search": "clip", "folding": "folding"}
"""By the name in ``awq_args``: the field of `AwqSettings`."""

_TEQ_FIELDS: Mapping[str, str] = {"folding": "folding", "steps": "steps", "lr": "learning_rate"}
"""By the name in ``teq_args``: the field of `TeqSettings`."""


def _given(recipes: Mapping[str, object], name: str) -> Mapping[str, Any]:
    arguments = recipes[name]
    return arguments if isinstance(arguments, Mapping) else {}
