"""The section ``pruning``: its three dialects, and the configuration that says the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from inc_torch.conf._schema import Field, ListOf, Reading, Section
from inc_torch.conf._training import TRAIN
from inc_torch.conf._words import as_it_is, count, one_or_more, share
from inc_torch.config import WeightPruningConfig
from inc_torch.config._base import option_names
from inc_torch.config._checks import Check, Place, choice, number, text
from inc_torch.config._readonly import freeze

__all__ = ["ENTRY_KEYS", "PRUNING", "pruning_config"]

_BY_EPOCH, _BY_STEP, _AS_2X = _DIALECTS = ("weight_compression", "weight_compression_pytorch", "weight_compression_v2")
_EPOCH_TYPES: Final = ("basic_magnitude", "pattern_lock", "gradient_sensitivity", "group_lasso")
_STEP_TYPES: Final = ("magnitude", "snip", "snip_momentum", "pattern_lock")
_DECAYS: Final = ("exp", "cos", "cube", "linear")
_ALPHA: Final = 0.001
"""Of group lasso, where none is given."""

_share_below_one = number("a number in [0, 1)", lambda x: 0 <= x < 1)
_names = one_or_more(text)
_epochs = number("a number above 0", lambda x: x > 0)


def _sparsity(value: object, place: Place) -> float:
    return _share_below_one(share(value, place), place)


def _type(value: object, place: Place) -> str:
    known = dict.fromkeys((*_EPOCH_TYPES, *_STEP_TYPES))
    return choice(known)(value, place)


_PRUNER: Final[Mapping[str, Check[Any]]] = {
    "initial_sparsity": _sparsity,
    "target_sparsity": _sparsity,
    "start_epoch": count,
    "end_epoch": count,
    "update_frequency": _epochs,
    "start_step": count,
    "end_step": count,
    "update_frequency_on_step": count,
    "prune_type": _type,
    "prune_domain": choice(("global", "local")),
    "sparsity_decay_type": choice(_DECAYS),
    "pattern": text,
    "names": _names,
    "extra_excluded_names": _names,
    "parameters": as_it_is,
}
"""What an entry of ``pruners`` may say; the section around it says it for all entries that do not."""

_ENTRY = Section(
    {
        **{name: Field(check) for name, check in _PRUNER.items()},
        "method": Field(choice(("per_tensor", "per_channel")), idle="the pattern says what is ranked together"),
    },
    present=True,
)
ENTRY_KEYS = tuple(_ENTRY.fields)
_SECTION = Section(
    {
        **{name: Field(check) for name, check in _PRUNER.items() if name != "parameters"},
        "excluded_names": Field(_names, ()),
        "max_sparsity_ratio_per_layer": Field(_sparsity, 0.98),
        "prune_layer_type": Field(_names),
        "pruners": ListOf(_ENTRY),
    }
)
_DEFAULTS: Final[Mapping[str, object]] = {
    "initial_sparsity": 0.0,
    "target_sparsity": 0.97,
    "start_epoch": 0,
    "end_epoch": 4,
    "update_frequency": 1.0,
    "start_step": 0,
    "end_step": 0,
    "update_frequency_on_step": 1,
    "prune_domain": "global",
    "sparsity_decay_type": "exp",
    "pattern": "tile_pattern_1x1",
    "names": (),
    "extra_excluded_names": (),
    "parameters": {},
}
_V2_OPTIONS = [name for name in option_names(WeightPruningConfig) if name != "pruning_configs"]
_V2_ENTRY = Section({name: Field(as_it_is) for name in _V2_OPTIONS}, present=True)
_V2 = Section({**{name: Field(as_it_is) for name in _V2_OPTIONS}, "pruners": ListOf(_V2_ENTRY)})

PRUNING = Section(
    {
        "train": TRAIN,
        "approach": Section({_BY_EPOCH: _SECTION, _BY_STEP: _SECTION, _AS_2X: _V2}, present=True),
    }
)


def pruning_config(content: Any, reading: Reading) -> WeightPruningConfig:  # noqa: ANN401  a whole file
    """The configuration that says what ``content`` says in its section ``pruning``."""
    approach = content.pruning.approach
    given = [dialect for dialect in _DIALECTS if approach[dialect] is not None]
    if len(given) > 1:
        problem = f"pruning.approach has {' and '.join(given)}: expected one of {', '.join(_DIALECTS)}."
        raise reading.error(("pruning", "approach"), problem)
    dialect = given[0] if given else _BY_EPOCH
    section = approach[dialect]
    if dialect == _AS_2X:
        return _as_2x(section)
    if section is None:
        section = _SECTION.read({"target_sparsity": _DEFAULTS["target_sparsity"]}, ("pruning", "approach"), reading)
    translator = _Translator(section, reading, ("pruning", "approach", dialect), by_epoch=dialect == _BY_EPOCH)
    configs = [_changed(config) for config in translator.configs()]
    return WeightPruningConfig(configs) if section.pruners else WeightPruningConfig(**configs[0])


def _changed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that are no defaults, which they would be without being named."""
    default = WeightPruningConfig()
    return {name: value for name, value in options.items() if freeze(value) != getattr(default, name)}


def _as_2x(section: Any) -> WeightPruningConfig:  # noqa: ANN401
    own = {name: section[name] for name in _V2_OPTIONS if section[name] is not None}
    local = [{name: entry[name] for name in _V2_OPTIONS if entry[name] is not None} for entry in section.pruners]
    return WeightPruningConfig(local, **own)


class _Translator:
    """Turns the pruners of one section into local options of `WeightPruningConfig`."""

    def __init__(self, section: Any, reading: Reading, path: tuple[str, ...], *, by_epoch: bool) -> None:  # noqa: ANN401
        self._section, self._reading, self._path, self._by_epoch = section, reading, path, by_epoch

    def configs(self) -> Iterator[dict[str, object]]:
        entries = self._section.pruners or (None,)
        for place, entry in enumerate(entries):
            at = self._path if entry is None else (*self._path, "pruners", place)
            yield self._config(entry, at)

    def _config(self, entry: Any, path: tuple[Any, ...]) -> dict[str, object]:  # noqa: ANN401
        values = {name: self._value(entry, name) for name in _PRUNER}
        kind = values["prune_type"] or ("basic_magnitude" if self._by_epoch else "snip_momentum")
        known = _EPOCH_TYPES if self._by_epoch else _STEP_TYPES
        if kind not in known:
            problem = f"prune_type={kind!r} of {self._path[-1]!r}: expected one of {', '.join(known)}."
            raise self._reading.error((*path, "prune_type"), problem)
        config: dict[str, object] = {
            "target_sparsity": values["target_sparsity"],
            "op_names": self._names(values["names"], path),
            "excluded_op_names": self._excluded(values),
            "max_sparsity_ratio_per_op": self._section.max_sparsity_ratio_per_layer,
            **self._kind(kind, values, path),
        }
        if self._section.prune_layer_type is not None:
            config["pruning_op_types"] = list(self._section.prune_layer_type)
        if kind == "pattern_lock":
            del config["target_sparsity"]
            return config
        window = self._epochs(values, path) if self._by_epoch else self._steps(values)
        return config | window | {"initial_sparsity": values["initial_sparsity"]}

    def _value(self, entry: Any, name: str) -> Any:  # noqa: ANN401
        """What the entry says; else what the section says; else the default."""
        own = None if entry is None else entry[name]
        if own is None and name != "parameters":
            own = self._section[name]
        return _DEFAULTS.get(name) if own is None else own

    def _names(self, names: tuple[str, ...], path: tuple[Any, ...]) -> list[str]:
        """Of epochs' pruners whole names of parameters; a star stands for the number of a layer."""
        if not self._by_epoch:
            return list(names)
        if any(not name.endswith(".weight") for name in names):
            self._note(path, "has names that are no '.weight': only weights of layers are pruned.")
        modules = [name.removesuffix(".weight") for name in names]
        return ["^" + re.escape(name).replace(r"\*", "[^.]+") + "$" for name in modules]

    def _excluded(self, values: Mapping[str, Any]) -> list[str]:
        names = (*self._section.excluded_names, *values["extra_excluded_names"])
        if not self._by_epoch:
            return list(names)
        return ["^" + re.escape(name.removesuffix(".weight")) + "$" for name in names]

    def _kind(self, kind: str, values: Mapping[str, Any], path: tuple[Any, ...]) -> dict[str, object]:
        pattern = values["pattern"].removeprefix("tile_pattern_")
        scope = "local" if self._by_epoch else values["prune_domain"]
        if kind == "pattern_lock":
            return {"pruning_type": "pattern_lock"}
        shared: dict[str, object] = {"pattern": pattern, "pruning_scope": scope}
        parameters = values["parameters"]
        match kind:
            case "basic_magnitude" | "magnitude":
                return {"pruning_type": "magnitude", **shared}
            case "group_lasso":
                coefficient = dict(parameters or {}).get("alpha", _ALPHA)
                return {"pruning_type": "magnitude", "reg_type": "group_lasso", "reg_coeff": coefficient, **shared}
            case "gradient_sensitivity":
                return self._by_sensitivity(parameters, shared, path)
        return {"pruning_type": kind, **shared}

    def _by_sensitivity(
        self, parameters: Mapping[str, object], shared: dict[str, object], path: tuple[Any, ...]
    ) -> dict[str, object]:
        if parameters:
            self._note(
                path,
                "cuts heads or slices by sensitivity; the nearest is pattern 'mha', with masks instead of cuts. "
                "inc_torch.pruners.slimming.model_slim cuts what is masked.",
            )
            return {"pruning_type": "snip_momentum", "pattern": "mha", "pruning_scope": "global"}
        self._note(path, "scores by a smoothed |weight x gradient|, where it was a sum over all steps.")
        return {"pruning_type": "snip_momentum", **shared}

    def _epochs(self, values: Mapping[str, Any], path: tuple[Any, ...]) -> dict[str, object]:
        frequency = max(1, round(values["update_frequency"]))
        if 1 < values["update_frequency"] != frequency:
            self._note((*path, "update_frequency"), f"counts as {frequency}: masks change as an epoch begins.")
        return {
            "clock": "epoch",
            "start_step": values["start_epoch"],
            "end_step": values["end_epoch"],
            "pruning_frequency": frequency,
            "sparsity_decay_type": "linear",
        }

    def _steps(self, values: Mapping[str, Any]) -> dict[str, object]:
        return {
            "start_step": values["start_step"],
            "end_step": values["end_step"],
            "pruning_frequency": max(1, values["update_frequency_on_step"]),
            "sparsity_decay_type": values["sparsity_decay_type"],
        }

    def _note(self, path: tuple[Any, ...], text: str) -> None:
        self._reading.note(path, text)
