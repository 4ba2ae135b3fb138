"""The configuration of quantization-aware training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar
from typing import Literal, final

from inc_torch.config._base import config, option
from inc_torch.config._checks import Place, choice, flag, integer, list_of, names, optional, text
from inc_torch.config._criteria import (
    ACCURACY,
    TUNING,
    AccuracyCriterion,
    Objectives,
    TuningCriterion,
)
from inc_torch.config._op_rules import DEFAULT_RULE, TRAINING, check_rules, rules_of, spec_of
from inc_torch.config._readonly import FrozenDict
from inc_torch.config._tuned import TunedConfig
from inc_torch.core.errors import ConfigError, did_you_mean
from inc_torch.ipex import for_extension
from inc_torch.quantizers import FloatType, QuantScheme, QuantSpec

__all__ = ["QuantizationAwareTrainingConfig"]

_BACKENDS = ("default", "ipex")
_LEVELS = ("auto", 0, 1)


def check_backend(value: object, place: Place) -> str:
    name = text(value, place)
    if name not in _BACKENDS:
        hint = did_you_mean(name, _BACKENDS) or " The backends of other frameworks have no meaning for PyTorch."
        raise place.error(value, "'default' or 'ipex'", hint)
    return name


def check_level(value: object, place: Place) -> Literal["auto", 0, 1]:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise place.type_error(value, "'auto', 0 or 1")
    if value == "auto":
        return "auto"
    if value == 0:
        return 0
    if value == 1:
        return 1
    raise place.error(value, "'auto', 0 or 1")


def check_graph(value: object, place: Place) -> Literal["auto", "off"]:
    word = text(value, place)
    if word == "auto":
        return "auto"
    if word == "off":
        return "off"
    raise place.error(value, "'auto' or 'off'")


@final
@config
class QuantizationAwareTrainingConfig(TunedConfig):
    """Train with simulated int8, and convert at the end of training.

    Linear, convolution and embedding modules are quantized unless a rule leaves them in float. Rules are
    ``{pattern: {"weight": {...}, "activation": {...}}}``, where the pattern is a regular expression that must
    match the whole class name (``op_type_dict``) or the whole module name (``op_name_dict``). Each side may
    name ``dtype`` (``"fp32"`` on either leaves the module in float), ``scheme`` (activation: ``"asym"``, the
    default, or ``"sym"``), ``granularity`` (weight: ``"per_channel"``, the default, or ``"per_tensor"``) and
    ``algorithm``; a list counts as choices, the first one is taken. All rules that match a module are applied, each
    on top of those before it, names after types. The key ``"default_qconfig"`` of ``op_name_dict`` speaks, as in INC,
    of operations that are no modules of their own; these stay in float here anyway.

    Args:
        device: Where INC would run; the model's own device is what counts here, so another one is warned about.
        backend: ``"default"``, or ``"ipex"``: the model is trained layer by layer, and runs on the kernels of Intel
            Extension for PyTorch 2.8 afterwards, which only torch 2.8 has.
        inputs: Names of inputs, without effect for PyTorch; `prepare_compression` warns of all such options.
        outputs: Names of outputs, without effect for PyTorch.
        op_type_dict: Rules by class name.
        op_name_dict: Rules by module name.
        reduce_range: Asymmetric inputs take 7 bits instead of 8, for CPUs without VNNI, whose int8 products saturate.
        model_name: A label, without effect.
        quant_format: Of an ONNX export, without effect in training.
        excluded_precisions: Float types that modules left in float must not be given: with ``"bf16"`` a rule that asks
            for bfloat16 leaves its modules as they are.
        quant_level: How `inc_torch.training.fit` searches, see `PostTrainingQuantConfig`; without effect in a plain
            training loop, as the next two.
        accuracy_criterion: The goal of the search.
        tuning_criterion: Its strategy, its bounds, what else counts, and what becomes of a missed goal.
        start_step: Optimizer steps that compute in float; the first that rounds comes after them. Nothing is observed
            before.
        freeze_observers_step: Optimizer steps after which the ranges of inputs stay as they are; None is never. What
            weights are rounded to follows their present range to the end.
        freeze_batch_norm_step: Optimizer steps after which batch normalization uses and keeps its running statistics,
            also in training mode; its scale and shift go on learning. None is never.
        strategy: Old spelling, goes into a copy of ``tuning_criterion``; so do ``timeout``, ``max_trials``,
            ``objective`` and ``performance_only``.
        relative: Old spelling, goes into a copy of ``accuracy_criterion``; so does ``absolute``.
        graph: ``"auto"`` trains a model that `torch.fx` traces whole as one graph: batch normalization is folded, and
            tensors stay in int8 between layers. ``"off"`` trains every model layer by layer.

    Raises:
        ConfigError: An option is unknown or wrong. A rule that speaks of no layer is found by `prepare_compression`.

    Example:
        >>> config = QuantizationAwareTrainingConfig(op_name_dict={"classifier": {"weight": {"dtype": "fp32"}}})
        >>> config.to_spec().treatment_of("classifier", "Linear")
        <FloatType.FLOAT32: 'float32'>
        >>> QuantizationAwareTrainingConfig(timeout=60).tuning_criterion
        TuningCriterion(timeout=60.0)
    """

    device: str = option(choice(("cpu", "gpu", "npu", "xpu")), default="cpu")
    backend: str = option(check_backend, default="default")
    inputs: Sequence[str] = option(names, default=())
    outputs: Sequence[str] = option(names, default=())
    op_type_dict: Mapping[str, object] | None = option(check_rules(TRAINING), default=FrozenDict())
    op_name_dict: Mapping[str, object] | None = option(check_rules(TRAINING), default=FrozenDict())
    reduce_range: bool | None = option(optional(flag), default=None)
    model_name: str = option(text, default="")
    quant_format: str = option(choice(("default", "QDQ", "QOperator")), default="default")
    excluded_precisions: Sequence[str] = option(list_of("a list of precisions", choice(("bf16", "fp16"))), default=())
    quant_level: Literal["auto", 0, 1] = option(check_level, default="auto")
    accuracy_criterion: AccuracyCriterion = option(ACCURACY, default=AccuracyCriterion())
    tuning_criterion: TuningCriterion = option(TUNING, default=TuningCriterion())
    _: KW_ONLY
    start_step: int = option(integer("an integer, 0 or more", lambda x: x >= 0), default=0, kw_only=True)
    freeze_observers_step: int | None = option(
        optional(integer("an integer, 1 or more, or None", lambda x: x >= 1)), default=None, kw_only=True
    )
    freeze_batch_norm_step: int | None = option(
        optional(integer("an integer, 0 or more, or None", lambda x: x >= 0)), default=None, kw_only=True
    )
    strategy: InitVar[str | None] = None
    relative: InitVar[float | None] = None
    absolute: InitVar[float | None] = None
    timeout: InitVar[float | None] = None
    max_trials: InitVar[int | None] = None
    objective: InitVar[Objectives | None] = None
    performance_only: InitVar[bool | None] = None
    graph: Literal["auto", "off"] = option(check_graph, default="auto", kw_only=True)

    def _check_relations(self) -> None:
        """Refuse to freeze what has not begun."""
        least = {"freeze_observers_step": self.start_step + 1, "freeze_batch_norm_step": self.start_step}
        for name, first in least.items():
            step = getattr(self, name)
            if step is not None and step < first:
                want = f"{first} or more, as start_step={self.start_step} is the first that rounds, or None"
                raise ConfigError.field(type(self).__name__, name, step, want)

    @property
    def as_graph(self) -> bool:
        """Whether a model that is one graph is trained as such; the extension traces models by itself."""
        return self.graph == "auto" and self.backend == "default"

    @property
    def approach(self) -> str:
        """INC's word for this kind of quantization."""
        return "quant_aware_training"

    def options_without_effect(self, devices: Collection[str]) -> dict[str, str]:
        """Name the options that were set and change nothing in a training loop, each with the reason.

        Args:
            devices: Types of the devices that the model lies on.

        Example:
            >>> QuantizationAwareTrainingConfig(outputs="logits").options_without_effect({"cpu"})
            {'outputs': 'modules of PyTorch have no such names'}
        """
        device = _DEVICE_TYPES.get(self.device)
        default_rule = {DEFAULT_RULE: (self.op_name_dict or {}).get(DEFAULT_RULE)}
        outcomes = [rule.outcome for rule in rules_of("name", default_rule, TRAINING)]
        reasons = {
            "device": (device not in {None, *devices}, f"the model does not lie there; use model.to({device!r})"),
            "inputs": (bool(self.inputs), NO_NAMES),
            "outputs": (bool(self.outputs), NO_NAMES),
            f"op_name_dict[{DEFAULT_RULE!r}]": (
                any(not isinstance(outcome, FloatType) for outcome in outcomes),
                "operations that are no modules stay in float",
            ),
            "model_name": (bool(self.model_name), "nothing asks for the label"),
            "quant_format": (self.quant_format != "default", "it is of an ONNX export"),
        }
        return {name: reason for name, (is_idle, reason) in reasons.items() if is_idle}

    def options_of_search(self) -> list[str]:
        """Name the options that were set and only guide a search, see `inc_torch.training.fit`."""
        default = type(self)()
        names = ("quant_level", "accuracy_criterion", "tuning_criterion")
        return [name for name in names if getattr(self, name) != getattr(default, name)]

    def to_spec(self) -> QuantSpec:
        """Return the same as typed values, for the layer below."""
        spec = spec_of(self, QuantScheme(), TRAINING, {"symmetric_input": (False, True)})
        return for_extension(spec) if self.backend == "ipex" else spec


_DEVICE_TYPES = {"gpu": "cuda", "npu": "npu", "xpu": "xpu"}
NO_NAMES = "modules of PyTorch have no such names"
