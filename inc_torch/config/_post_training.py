"""The configuration of post-training quantization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar
from typing import Literal, final

from inc_torch.config._base import Config, config, option
from inc_torch.config._checks import Place, choice, flag, integer, items_of, list_of, names, optional, text
from inc_torch.config._criteria import ACCURACY, TUNING, AccuracyCriterion, Objectives, TuningCriterion
from inc_torch.config._op_rules import POST_TRAINING, WEIGHT_ONLY, WEIGHT_ONLY_NUMBERS, check_rules, spec_of
from inc_torch.config._quantization import NO_NAMES, check_backend, check_graph, check_level
from inc_torch.config._readonly import FrozenDict
from inc_torch.config._recipes import (
    DEFAULT_RECIPES,
    check_recipes,
    recipes_without_effect,
    rounding_of,
    smoothing_of,
)
from inc_torch.config._tuned import TunedConfig
from inc_torch.core.errors import ConfigError, did_you_mean
from inc_torch.ipex import for_extension
from inc_torch.quantizers import OBSERVERS, PostTrainingSpec, QuantScheme, QuantSpec

__all__ = ["PostTrainingQuantConfig"]

_APPROACHES = ("static", "dynamic", "auto", "weight_only")
_KNOWN_BEFORE = ("post_training_static_quant", "post_training_auto_quant")
"""Approaches in which ranges of inputs come from calibration."""
_sizes = list_of("a number of samples or a list of them", integer("a number of samples, 1 or more", lambda x: x >= 1))

_SEARCHED_OBSERVERS = ("kl", "minmax")
"""Of inputs that no rule speaks of; the first is the default."""

_NO_SEARCH = "nothing says how accurate a model is: give an eval_func, or an eval_dataloader and an eval_metric"


def _approach(value: object, place: Place) -> str:
    """One of the approaches by INC's long name; short names and whatever contains "static" or "dynamic" do as well."""
    word = text(value, place)
    for short in _APPROACHES:
        if word in (short, f"post_training_{short}_quant") or (short in ("static", "dynamic") and short in word):
            return "post_training_weight_only" if short == "weight_only" else f"post_training_{short}_quant"
    if word == "post_training_weight_only":
        return word
    hint = " That is training: use QuantizationAwareTrainingConfig." if "aware" in word else ""
    raise place.error(value, f"one of {', '.join(map(repr, _APPROACHES))}", hint or did_you_mean(word, _APPROACHES))


def _sampling_sizes(value: object, place: Place) -> tuple[int, ...]:
    sizes = _sizes([value] if isinstance(value, int) else value, place)
    if not sizes:
        raise place.error(value, "at least one number of samples")
    return sizes


def _rules(value: object, place: Place) -> Mapping[str, object]:
    """Rules as they are: with what words they are checked depends on the approach."""
    return items_of(value, place, "a dict of rules or None")


def _anything(value: object, place: Place) -> object:  # noqa: ARG001  a check
    return value


@final
@config
class PostTrainingQuantConfig(TunedConfig):
    """Quantize a trained model to int8, or its weights alone to a few bits, with a little data or none.

    Linear, convolution and embedding modules are quantized unless a rule leaves them in float. Rules are
    ``{pattern: {"weight": {...}, "activation": {...}}}``, where the pattern is a regular expression that must match
    the whole class name (``op_type_dict``) or the whole module name (``op_name_dict``). Each side may name ``dtype``
    (``"fp32"`` or ``"bf16"`` on either leaves the module in that type; weights may also be ``"int4"``, in int8),
    ``scheme`` (activation: ``"asym"``, the default, or ``"sym"``), ``granularity`` (weight: ``"per_channel"``, the
    default, or ``"per_tensor"``), ``algorithm`` (activation: see below) and ``bits`` (weight); a list counts as
    choices, the first one is taken. All rules that match a module are applied, each on top of those before it, names
    after types.

    With ``approach="weight_only"`` the weights of linear layers, the output layer included, become packed codes of a
    few bits, and inputs stay in float. Rules for weights then name ``bits`` (2 to 8; 4 is the default, also through
    the dtypes ``"int"``, ``"int4"`` and ``"int8"``), ``group_size`` (how many weights of a row share a scale; 32 is the
    default, -1 the whole row), ``scheme`` (``"sym"``, the default, or ``"asym"``) and ``algorithm``: ``"RTN"``,
    rounding to the nearest; ``"GPTQ"`` and ``"AWQ"``, which round the layers in the blocks of a transformer for the
    inputs that they see; or ``"TEQ"``, which learns scales by the model's own loss, or in a ``calib_func`` that trains
    the model that it is given. As in INC a rule that leaves one of bits, group size and algorithm out asks for its
    default.

    The algorithm of activations finds the range in what calibration saw: ``"kl"`` (the default) is INC's search for
    the least squared error, ``"kl_divergence"`` a real Kullback-Leibler search, and there are ``"minmax"``,
    ``"ema_minmax"``, ``"percentile"`` and ``"mse"``.

    Args:
        device: Where INC would run; the model's own device is what counts here. ``"gpu"`` needs CUDA.
        backend: ``"default"``, or ``"ipex"``: layers, additions, matrix products and pools run on the kernels of Intel
            Extension for PyTorch 2.8, which only torch 2.8 has; static ranges alone.
        domain: A label of INC, without effect for PyTorch.
        recipes: ``smooth_quant`` with ``smooth_quant_args`` (``alpha``: a number, a list to choose from, or
            ``"auto"``; ``folding``), ``fast_bias_correction``, ``weight_correction``,
            ``first_conv_or_matmul_quantization`` and ``last_conv_or_matmul_quantization`` (False leaves that module in
            float), ``layer_wise_quant`` (a model on the meta device is loaded and quantized layer by layer);
            ``rtn_args`` of ``"weight_only"`` (``enable_full_range``: symmetric codes use the least one too;
            ``enable_mse_search``: ranges are narrowed where that makes the error of the weight less), ``gptq_args``
            (``percdamp``, ``act_order``, ``block_size``, ``static_groups``, ``nsamples``, see
            `inc_torch.quantizers.GptqSettings`), ``awq_args`` (``enable_auto_scale``, ``enable_mse_search``,
            ``folding``, see `inc_torch.quantizers.AwqSettings`) and ``teq_args`` (``folding``, ``steps``, ``lr``, see
            `inc_torch.quantizers.TeqSettings`).
        quant_format: Of an ONNX export, without effect here.
        inputs: Names of inputs, without effect for PyTorch.
        outputs: Names of outputs, without effect for PyTorch.
        approach: ``"static"`` (ranges of inputs from calibration data), ``"dynamic"`` (ranges of each batch, no
            data needed), ``"auto"`` (static, and dynamic where no data came by) or ``"weight_only"``; also in INC's
            long spellings.
        calibration_sampling_size: Samples to calibrate with; several sizes are choices of a search, without which the
            first counts.
        op_type_dict: Rules by class name.
        op_name_dict: Rules by module name.
        reduce_range: Asymmetric inputs take 7 bits instead of 8, for CPUs whose int8 products saturate.
        example_inputs: One call of the model, for ``backend="ipex"``, which traces it: a tensor, a tuple or list of
            arguments, or a mapping of names. Without them the first batch of calibration is taken. Nothing else
            traces.
        excluded_precisions: Float types that modules left in float must not be given.
        quant_level: How models are searched for, unless ``tuning_criterion`` names a strategy: ``"auto"`` tries the
            default model, then kinds of operations one after the other, then everything that ``"basic"`` tries; 0 is
            the strategy ``"conservative"``, 1 is ``"basic"``.
        accuracy_criterion: The goal of a search.
        tuning_criterion: Its strategy, its bounds, what else counts, and what becomes of a missed goal.
        diagnosis: INC's switch for a profile of the quantized model; the report of the result has what it shows.
        ni_workload_name: A label of INC, without effect.
        strategy: Old spelling, goes into a copy of ``tuning_criterion``; so do ``timeout``, ``max_trials``,
            ``objective`` and ``performance_only``.
        relative: Old spelling, goes into a copy of ``accuracy_criterion``; so does ``absolute``.
        graph: ``"auto"`` quantizes a model that `torch.fx` traces whole as one graph: batch normalization is folded,
            and tensors stay in int8 between layers. ``"off"`` quantizes every model layer by layer.

    Raises:
        ConfigError: An option is unknown or wrong.

    Example:
        >>> config = PostTrainingQuantConfig(approach="dynamic", op_name_dict={"head": {"weight": {"dtype": "fp32"}}})
        >>> config.approach, config.calibration_sampling_size, config.recipes.smooth_quant
        ('post_training_dynamic_quant', (100,), False)
        >>> config.to_spec().quant.treatment_of("head", "Linear")
        <FloatType.FLOAT32: 'float32'>
    """

    device: str = option(choice(("cpu", "gpu", "npu", "xpu")), default="cpu")
    backend: str = option(check_backend, default="default")
    domain: str = option(choice(("auto", "cv", "object_detection", "nlp", "recommendation_system")), default="auto")
    recipes: Mapping[str, object] = option(check_recipes, default=DEFAULT_RECIPES)
    quant_format: str = option(choice(("default", "QDQ", "QOperator")), default="default")
    inputs: Sequence[str] = option(names, default=())
    outputs: Sequence[str] = option(names, default=())
    approach: str = option(_approach, default="post_training_static_quant")
    calibration_sampling_size: Sequence[int] = option(_sampling_sizes, default=(100,))
    op_type_dict: Mapping[str, object] | None = option(_rules, default=FrozenDict())
    op_name_dict: Mapping[str, object] | None = option(_rules, default=FrozenDict())
    reduce_range: bool | None = option(optional(flag), default=None)
    example_inputs: object = option(_anything, default=None)
    excluded_precisions: Sequence[str] = option(list_of("a list of precisions", choice(("bf16", "fp16"))), default=())
    quant_level: Literal["auto", 0, 1] = option(check_level, default="auto")
    accuracy_criterion: AccuracyCriterion = option(ACCURACY, default=AccuracyCriterion())
    tuning_criterion: TuningCriterion = option(TUNING, default=TuningCriterion())
    diagnosis: bool = option(flag, default=False)
    ni_workload_name: str = option(text, default="quantization")
    _: KW_ONLY
    strategy: InitVar[str | None] = None
    relative: InitVar[float | None] = None
    absolute: InitVar[float | None] = None
    timeout: InitVar[float | None] = None
    max_trials: InitVar[int | None] = None
    objective: InitVar[Objectives | None] = None
    performance_only: InitVar[bool | None] = None
    graph: Literal["auto", "off"] = option(check_graph, default="auto", kw_only=True)

    def options_without_effect(self, *, is_evaluated: bool) -> dict[str, str]:
        """Name the options and recipes that were set and change nothing, each with the reason.

        Args:
            is_evaluated: There is something that says how accurate a model is.

        Example:
            >>> PostTrainingQuantConfig(outputs="logits").options_without_effect(is_evaluated=False)
            {'outputs': 'modules of PyTorch have no such names'}
        """
        reasons = {
            "tuning_criterion": (self.tuning_criterion != TuningCriterion() and not is_evaluated, _NO_SEARCH),
            "inputs": (bool(self.inputs), NO_NAMES),
            "outputs": (bool(self.outputs), NO_NAMES),
            "quant_format": (self.quant_format != "default", "it is of an ONNX export"),
            "diagnosis": (self.diagnosis, "the report of the result lists every module"),
            "reduce_range": (bool(self.reduce_range) and self.is_weight_only, "inputs are not quantized"),
        }
        idle = {name: reason for name, (is_idle, reason) in reasons.items() if is_idle}
        recipes = recipes_without_effect(self.recipes, self.approach, self.to_spec().quant.all_of("algorithm"))
        return idle | {f"recipes[{name!r}]": reason for name, reason in recipes.items()}

    def _check_relations(self) -> None:
        if self.backend == "ipex" and self.approach not in _KNOWN_BEFORE:
            want = "'default', as the extension computes with ranges that are known before: approach='static'"
            raise ConfigError.field(type(self).__name__, "backend", self.backend, want)
        check = check_rules(WEIGHT_ONLY, WEIGHT_ONLY_NUMBERS) if self.is_weight_only else check_rules(POST_TRAINING)
        for name in ("op_type_dict", "op_name_dict"):
            object.__setattr__(self, name, check(getattr(self, name), Place(type(self).__name__, name)))

    @property
    def is_weight_only(self) -> bool:
        """Whether inputs stay in float."""
        return self.approach == "post_training_weight_only"

    @property
    def as_graph(self) -> bool:
        """Whether a model that is one graph is quantized as such: only where ranges of inputs are known before."""
        return self.graph == "auto" and self.backend == "default" and self.approach in _KNOWN_BEFORE

    def to_spec(self) -> PostTrainingSpec:
        """Return the same as typed values, for the layer below."""
        if self.is_weight_only:
            return PostTrainingSpec(quant=self._weight_only_spec())
        observers = tuple(OBSERVERS.get(name)() for name in _SEARCHED_OBSERVERS)
        scheme = QuantScheme(dynamic="dynamic" in self.approach, input_observer=observers[0])
        options = {} if scheme.dynamic else {"symmetric_input": (False, True), "input_observer": observers}
        recipes = self.recipes
        quant = spec_of(self, scheme, POST_TRAINING, options)
        on_extension = self.backend == "ipex"
        return PostTrainingSpec(
            quant=for_extension(quant) if on_extension else quant,
            dynamic_where_unseen="auto" in self.approach and not on_extension,
            first_in_float=not recipes["first_conv_or_matmul_quantization"],
            last_in_float=not recipes["last_conv_or_matmul_quantization"],
            smoothing=smoothing_of(recipes) if isinstance(recipes, FrozenDict) else None,
            bias_correction=bool(recipes["fast_bias_correction"]),
            weight_correction=bool(recipes["weight_correction"]),
            bfloat16="bf16" not in self.excluded_precisions,
        )

    def _weight_only_spec(self) -> QuantSpec:
        return spec_of(self, rounding_of(self.recipes), WEIGHT_ONLY, {"symmetric": (True, False)})

    def _encode(self, name: str) -> object:
        # Example inputs are tensors; nothing needs them to build the same configuration.
        return None if name == "example_inputs" else Config._encode(self, name)

    def _shown(self, name: str) -> str:
        return "..." if name == "example_inputs" else repr(getattr(self, name))
