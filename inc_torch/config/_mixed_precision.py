"""The configuration of mixed precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar
from typing import ClassVar, Literal, final

from inc_torch.config._base import Config, config, option
from inc_torch.config._checks import Place, choice, list_of, names, text
from inc_torch.config._criteria import ACCURACY, TUNING, AccuracyCriterion, Objectives, TuningCriterion
from inc_torch.config._op_rules import MIXED_PRECISION, check_rules, precision_rules
from inc_torch.config._quantization import NO_NAMES, check_backend, check_level
from inc_torch.config._readonly import FrozenDict
from inc_torch.config._tuned import TunedConfig
from inc_torch.core.errors import ConfigError, did_you_mean
from inc_torch.precision import PrecisionSpec

__all__ = ["MixedPrecisionConfig"]

_SPELLINGS = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16"}
_NO_SEARCH = "nothing says how accurate a model is: give an eval_func, or an eval_dataloader and an eval_metric"
_RULES = check_rules(MIXED_PRECISION, {})


def _precision(value: object, place: Place) -> str:
    word = text(value, place)
    word = _SPELLINGS.get(word, word)
    if word not in ("bf16", "fp16"):
        hint = " Leave it out: what gains nothing stays in float32 anyway." if word in ("fp32", "float32") else ""
        raise place.error(value, "'bf16' or 'fp16'", hint or did_you_mean(word, ("bf16", "fp16")))
    return word


_precisions = list_of("'bf16', 'fp16' or a list of them", _precision)


def _wanted(value: object, place: Place) -> tuple[str, ...]:
    listed = tuple(dict.fromkeys(_precisions(value, place)))
    if not listed:
        raise place.error(value, "at least one of 'bf16' and 'fp16'")
    return listed


def _anything(value: object, place: Place) -> object:  # noqa: ARG001  a check
    return value


@final
@config
class MixedPrecisionConfig(TunedConfig):
    """Compute in bfloat16 (or float16) what gains by it, and in float32 the rest.

    `inc_torch.mix_precision.fit` converts a trained model for inference; in the list of `prepare_compression` it lets
    a model be trained under autocast, with weights that stay in float32.

    Rules are ``{pattern: {"weight": {"dtype": ...}, "activation": {"dtype": ...}}}``, where the pattern is a regular
    expression that must match the whole class name (``op_type_dict``) or the whole module name (``op_name_dict``), and
    the dtype is ``"fp32"``, ``"bf16"``, ``"fp16"`` or a list, the preferred one first; a single word need not
    be in a list. Either side will do. ``"fp32"`` keeps a module out, whatever class it is of. The last rule that
    matches counts, names after types.

    Args:
        device: Where INC would run; the model's own device is what counts here. ``"gpu"`` needs CUDA.
        backend: ``"default"``, or ``"ipex"``: what computes in bfloat16 runs on the kernels of Intel Extension for
            PyTorch 2.8, which only torch 2.8 has.
        precisions: ``"bf16"``, ``"fp16"`` or both, the preferred one first. fp16 is for CUDA, on a CPU nothing gains
            by it.
        model_name: A label, without effect.
        inputs: Names of inputs, without effect for PyTorch.
        outputs: Names of outputs, without effect for PyTorch.
        quant_level: How models are searched for if all in half precision misses the goal: 0 puts back one class of
            operations to float32, 1 single operations, ``"auto"`` first this, then that.
        tuning_criterion: The bounds of a search, what else counts, and what becomes of a missed goal.
        accuracy_criterion: The goal of a search.
        excluded_precisions: Of ``precisions``, those that are not wanted after all.
        op_name_dict: Rules by module name.
        op_type_dict: Rules by class name.
        example_inputs: One call of the model, for ``backend="ipex"``, which traces it: a tensor, a tuple or list of
            arguments, or a mapping of names. Without them the first call is traced. Nothing else traces.
        precision: The same as ``precisions``.
        strategy: Old spelling, goes into a copy of ``tuning_criterion``; so do ``timeout``, ``max_trials``,
            ``objective`` and ``performance_only``.
        relative: Old spelling, goes into a copy of ``accuracy_criterion``; so does ``absolute``.

    Raises:
        ConfigError: An option is unknown or wrong.

    Example:
        >>> config = MixedPrecisionConfig(op_name_dict={"head": {"weight": {"dtype": "fp32"}}})
        >>> config.precisions, config.to_spec().words_of("head", "Linear")
        (('bf16',), ('fp32',))

    Source: INC 2.6.1 ``MixedPrecisionConfig``; differs in that ``excluded_precisions`` has an effect, that a dtype need
    not be in a list, and that a rule may name any module.
    """

    keyword_only_inputs: ClassVar[tuple[str, ...]] = (*TunedConfig.keyword_only_inputs, "precision")

    device: str = option(choice(("cpu", "gpu", "npu", "xpu")), default="cpu")
    backend: str = option(check_backend, default="default")
    precisions: Sequence[str] = option(_wanted, default=("bf16",))
    model_name: str = option(text, default="")
    inputs: Sequence[str] = option(names, default=())
    outputs: Sequence[str] = option(names, default=())
    quant_level: Literal["auto", 0, 1] = option(check_level, default="auto")
    tuning_criterion: TuningCriterion = option(TUNING, default=TuningCriterion())
    accuracy_criterion: AccuracyCriterion = option(ACCURACY, default=AccuracyCriterion())
    excluded_precisions: Sequence[str] = option(_precisions, default=())
    op_name_dict: Mapping[str, object] | None = option(_RULES, default=FrozenDict())
    op_type_dict: Mapping[str, object] | None = option(_RULES, default=FrozenDict())
    example_inputs: object = option(_anything, default=None)
    _: KW_ONLY
    strategy: InitVar[str | None] = None
    relative: InitVar[float | None] = None
    absolute: InitVar[float | None] = None
    timeout: InitVar[float | None] = None
    max_trials: InitVar[int | None] = None
    objective: InitVar[Objectives | None] = None
    performance_only: InitVar[bool | None] = None
    precision: InitVar[str | Sequence[str] | None] = None

    def __post_init__(self, *older: object) -> None:
        *others, precision = older
        if precision is not None:
            wanted = _wanted(precision, Place(type(self).__name__, "precision"))
            if tuple(self.precisions) not in (("bf16",), wanted):
                message = (
                    f"MixedPrecisionConfig got precisions={self.precisions!r} and precision={precision!r}: they are "
                    "the same option. Leave one out."
                )
                raise ConfigError(message)
            object.__setattr__(self, "precisions", wanted)
        TunedConfig.__post_init__(self, *others)

    @property
    def approach(self) -> str:
        """A word for this kind of compression."""
        return "mixed_precision"

    @property
    def wanted(self) -> tuple[str, ...]:
        """The precisions that are not excluded, the preferred one first."""
        return tuple(word for word in self.precisions if word not in self.excluded_precisions)

    def options_without_effect(self, *, is_evaluated: bool, in_training: bool = False) -> dict[str, str]:
        """Name the options that were set and change nothing, each with the reason.

        Args:
            is_evaluated: There is something that says how accurate a model is.
            in_training: The configuration is in a training loop.

        Example:
            >>> MixedPrecisionConfig(model_name="net").options_without_effect(is_evaluated=False)
            {'model_name': 'nothing asks for the label'}
        """
        searches = "there is no search in a training loop" if in_training else _NO_SEARCH
        idle = in_training or not is_evaluated
        default = TuningCriterion()
        autocast = "autocast decides for each operation of torch by itself"
        finished = "the extension runs finished models; give it to mix_precision.fit after training"
        reasons = {
            "tuning_criterion": (self.tuning_criterion != default and idle, searches),
            "accuracy_criterion": (self.accuracy_criterion != AccuracyCriterion() and idle, searches),
            "quant_level": (self.quant_level != "auto" and idle, searches),
            "model_name": (bool(self.model_name), "nothing asks for the label"),
            "inputs": (bool(self.inputs), NO_NAMES),
            "outputs": (bool(self.outputs), NO_NAMES),
            "backend": (self.backend != "default" and in_training, finished),
            "op_type_dict": (bool(self.op_type_dict) and in_training, autocast),
            "op_name_dict": (bool(self.op_name_dict) and in_training, autocast),
        }
        return {name: reason for name, (is_idle, reason) in reasons.items() if is_idle}

    def to_spec(self) -> PrecisionSpec:
        """Return the same as typed values, for the layer below."""
        rules = (
            *precision_rules("type", self.op_type_dict or {}),
            *precision_rules("name", self.op_name_dict or {}),
        )
        return PrecisionSpec(self.wanted, rules)

    def _encode(self, name: str) -> object:
        # Example inputs are tensors; nothing needs them to build the same configuration.
        return None if name == "example_inputs" else Config._encode(self, name)

    def _shown(self, name: str) -> str:
        return "..." if name == "example_inputs" else repr(getattr(self, name))
