"""Post-training quantization: `fit` returns an int8 copy of a trained model, or one with weights of a few bits."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, final

import torch
from torch import nn

from inc_torch.callbacks import left_to_bfloat16
from inc_torch.config import AccuracyCriterion, PostTrainingQuantConfig, read_configs
from inc_torch.core.batches import Inputs, count_samples, run, split
from inc_torch.core.borrowing import Snapshot, borrowing_copy, own_parameters_
from inc_torch.core.errors import (
    CalibrationError,
    ConfigError,
    ConfigTypeError,
    GoalMissedError,
    GoalMissedWarning,
    InexactWarning,
    ModelError,
    did_you_mean,
)
from inc_torch.core.evaluation import evaluate
from inc_torch.core.modes import evaluating, without_compiling
from inc_torch.core.names import unwrapped
from inc_torch.core.progress import with_progress
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.core.sharding import held
from inc_torch.core.streaming import attached_weights
from inc_torch.core.user_warning import warn_user
from inc_torch.export import adorn, attach_report, attached_report
from inc_torch.inference import run_graph_fused
from inc_torch.metric import Measure, read_metric
from inc_torch.quantizers import (
    Calibration,
    GraphStage,
    Prepared,
    calibrate,
    convert_calibrated,
    enable_fake_quant,
    fake_quant_modules,
    prepare_fake_quant,
    quantize_weights,
    realise,
    trace_flow,
    ungraft,
)

__all__ = ["fit"]

logger = logging.getLogger("inc_torch.quantization")

Score = Callable[[nn.Module], float]

_RERUN_SAMPLES = 32
"""Samples that are kept to run a model on again, where a recipe has to."""


def fit(  # noqa: PLR0913  the arguments of INC
    model: nn.Module,
    conf: PostTrainingQuantConfig | None = None,
    calib_dataloader: Iterable[Any] | None = None,
    calib_func: Callable[[nn.Module], object] | None = None,
    eval_func: Callable[[nn.Module], float] | None = None,
    eval_dataloader: Iterable[Any] | None = None,
    eval_metric: object = None,
    *,
    config: PostTrainingQuantConfig | None = None,
    inplace: bool = False,
    **unknown: object,
) -> nn.Module | None:
    """Quantize a trained model to int8; the model that is given stays as it is.

    Linear, convolution and embedding modules change their class in a copy that borrows the weights, so that at no time
    more than one layer's weights are held in float twice. One pass over the calibration data collects statistics,
    from which every range and correction is computed. What stays in float is in the report, with the reason.

    With ``approach="weight_only"`` the weights of linear layers become packed codes of 4 bits, or as many as rules say,
    and inputs stay in float; that takes no data.

    Args:
        model: Any module; what wraps it (torch.compile, DDP) is left behind.
        conf: What to do; by default static int8.
        calib_dataloader: Batches for ranges of inputs: tensors, dicts, tuples of inputs, or ``(input, label)``.
            Static quantization needs it, or ``calib_func``.
        calib_func: Runs the model that it is given on data of its own; preferred to ``calib_dataloader``. It is called
            once, and once more by the recipe smooth_quant with ``folding`` or a search by blocks.
        eval_func: Returns the accuracy of the model that it is given.
        eval_dataloader: Labelled batches to evaluate on, together with ``eval_metric``.
        eval_metric: A `Metric`, a dict such as ``{"topk": 1}``, or an object with ``reset``, ``update``, ``result``.
        config: The same as ``conf``.
        inplace: Change the model itself instead of a copy; what stays in float keeps its Parameters. If an error is
            raised before weights become int8, the model is as it was.
        **unknown: Refused; there to say what was meant.

    Returns:
        The quantized model, with ``save`` and ``report``. None only if accuracy was evaluated, missed its goal, and
        ``TuningCriterion(on_miss="none")`` asks for None.

    Raises:
        ConfigError: An argument is wrong, or the configuration fits no layer.
        CalibrationError: There is no calibration data, or it is not finite.
        ModelError: The model cannot be quantized or copied.
        GoalMissedError: The accuracy goal was missed and ``on_miss="raise"``.

    Example:
        >>> from inc_torch import PostTrainingQuantConfig, quantization
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> batches = [torch.randn(4, 8) for _ in range(8)]
        >>> quantized = quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=batches)
        >>> type(quantized[0]).__name__, type(model[0]).__name__
        ('Int8Linear', 'Linear')
    """
    given = _config_of(conf, config)
    if unknown:
        name = next(iter(unknown))
        message = f"quantization.fit has no argument {name!r}.{did_you_mean(name, fit.__annotations__)}"
        raise ConfigTypeError(message)
    source = _model_of(model)
    _check_data(calib_dataloader, calib_func)
    _check_feasible(source, given)
    measure = _measure_of(eval_func, eval_dataloader, eval_metric, inplace=inplace)
    if measure is not None and not measure.higher_is_better:
        given = given.replace(accuracy_criterion=given.accuracy_criterion.replace(higher_is_better=False))
    score = _score_of(source, eval_func, eval_dataloader, measure)
    stored = attached_weights(source)
    with nullcontext() if stored is None else stored.streaming():
        job = _Job(source, given, inplace)
        try:
            job.require_data(calib_dataloader, calib_func)
            job.require_finite_weights()
            baseline = None if score is None else _baseline(source, score)
            job.calibrate(calib_dataloader, calib_func)
            if score is None or baseline is None:
                _warn_of_untried_alphas(given)
                return job.finished()
            return _judged(job, score, baseline, given)
        except BaseException:
            job.undo()
            raise


@final
class _Job:
    """One quantization: a prepared model, what calibration saw, and the way to a finished one.

    Attributes:
        model: Prepared: computes in float until it is realised.
    """

    def __init__(self, source: nn.Module, config: PostTrainingQuantConfig, inplace: bool) -> None:
        self.spec = config.to_spec()
        self._source, self._inplace = source, inplace
        self._weight_only = config.is_weight_only
        self._before = Snapshot(source) if inplace and not self._weight_only else None
        self._samples = config.calibration_sampling_size[0]
        self._calibration = Calibration()
        self._kept: list[Inputs] = []
        self._rerun: Callable[[nn.Module], object] = self._run_kept
        self.model = source if inplace else borrowing_copy(source)
        self._stage = GraphStage() if config.as_graph else None
        prepare = quantize_weights if self._weight_only else prepare_fake_quant
        prepare = prepare if self._stage is None else self._stage.prepare
        self._decisions = prepare(self.model, self.spec.quant)
        self.model.eval()
        self._observing = [name for name, module in fake_quant_modules(self.model) if module.is_static]

    def undo(self) -> None:
        """Make a model that was to change in place what it was, unless its weights are int8 already."""
        if self._before is not None:
            ungraft(self.model)
            self._before.restore_()

    def require_data(self, dataloader: Iterable[Any] | None, function: Callable[[nn.Module], object] | None) -> None:
        """Refuse to begin where ranges have to be known and there is nothing to know them from."""
        if self._observing and dataloader is None and function is None and not self.spec.dynamic_where_unseen:
            message = (
                f"Static quantization of {len(self._observing)} modules, such as {self._observing[0]!r}, needs the "
                "ranges of their inputs: expected a calib_dataloader or a calib_func, got neither. Without data: "
                "approach='dynamic'."
            )
            raise CalibrationError(message)

    def require_finite_weights(self) -> None:
        """Refuse to begin where a weight has no codes."""
        for name, module in fake_quant_modules(self.model):
            if not module.has_weight:
                continue
            weight = held(module.get_parameter("weight")).detach()
            if weight.numel() and not torch.stack(torch.aminmax(weight)).isfinite().all():
                rule = {name: {"weight": {"dtype": "fp32"}}}
                message = (
                    f"The weight of module {name!r} holds NaN or infinity: expected finite values. Load a model that "
                    f"is sound, or leave the module in float: op_name_dict={rule}."
                )
                raise ModelError(message)

    def calibrate(self, dataloader: Iterable[Any] | None, function: Callable[[nn.Module], object] | None) -> None:
        """Run the data through the prepared model, once; nothing is done where no range has to be known."""
        feed: Callable[[], object]
        if function is not None:
            self._rerun, feed = function, partial(function, self.model)
        elif dataloader is not None:
            feed = partial(self._feed, dataloader)
        else:
            return
        if not self._observing:
            return
        with torch.no_grad(), without_compiling():
            self._calibration = calibrate(self.model, feed, keep=self.spec.kept_samples)
            if self.spec.smoothing is not None and self.spec.smoothing.folding and self._calibration.inputs:
                self._calibration.flow = trace_flow(self.model, self._rerun)

    def _feed(self, dataloader: Iterable[Any]) -> None:
        """Run batches until enough samples went through."""
        count = seen = 0
        for batch in with_progress(dataloader, "Calibrating"):
            count += 1
            inputs, _ = split(batch, self.model)
            if seen < _RERUN_SAMPLES and self.spec.smoothing is not None:
                self._kept.append(inputs)
            run(self.model, inputs)
            seen += count_samples(inputs)
            if seen >= self._samples:
                return
        if not seen:
            given = f"{count} batches without a sample" if count else "no batch"
            message = (
                f"calib_dataloader yielded {given}: expected at least one sample. A generator can be used only once; "
                "give a list or a DataLoader."
            )
            raise CalibrationError(message)

    def _run_kept(self, model: nn.Module) -> None:
        for inputs in self._kept:
            run(model, inputs)

    def _realise(self, model: nn.Module, alpha: float | None) -> dict[str, Prepared]:
        with torch.no_grad(), without_compiling():
            return realise(model, self.spec, self._calibration, self._decisions, self._rerun, alpha)

    def simulated(self, alpha: float) -> nn.Module:
        """A copy that computes what the finished model with this ``alpha`` of smoothing would."""
        model = borrowing_copy(self.model)
        self._realise(model, alpha)
        enable_fake_quant(model, observe=False)
        return model

    def finished(self, alpha: float | None = None) -> nn.Module:
        """The int8 model, with its report; the job is over."""
        earlier = attached_report(self.model)
        decisions = self._decisions if self._weight_only else self._converted(alpha)
        if self._stage is not None:
            decisions = self._stage.noted(self.model, decisions)
        stored = attached_weights(self.model)
        if stored is not None:
            stored.materialise_(self.model)
        if not self._inplace:
            own_parameters_(self.model, self._source)
        decisions = left_to_bfloat16(self.model, decisions, unasked=self.spec.bfloat16)
        run_graph_fused(self.model)
        adorn(self.model)
        findings = [Finding(name, scheme=made.scheme, note=made.reason) for name, made in decisions.items()]
        before = () if earlier is None else earlier.findings()
        attach_report(self.model, CompressionReport.measure(self.model, [*before, *findings]))
        return self.model

    def _converted(self, alpha: float | None) -> dict[str, Prepared]:
        decisions = self._realise(self.model, alpha)
        self._before = None  # it holds every float weight
        convert_calibrated(self.model)
        return decisions


def _config_of(conf: object, config: object) -> PostTrainingQuantConfig:
    if conf is not None and config is not None:
        message = "quantization.fit got both conf and config: they are the same argument. Leave one out."
        raise ConfigError(message)
    given = conf if config is None else config
    if given is None:
        return PostTrainingQuantConfig()
    if isinstance(given, nn.Module):
        message = "quantization.fit got a model as conf: expected fit(model, conf, ...)."
        raise ConfigTypeError(message)
    configs = read_configs(given)
    if len(configs) != 1 or not isinstance(configs[0], PostTrainingQuantConfig):
        shown = ", ".join(type(entry).__name__ for entry in configs)
        message = f"quantization.fit got conf of type {shown or 'nothing'}: expected one PostTrainingQuantConfig."
        raise ConfigTypeError(message)
    return configs[0]


def _model_of(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        message = f"quantization.fit got a model of type {type(model).__name__}: expected a torch.nn.Module."
        raise ConfigTypeError(message)
    return unwrapped(model)


def _check_data(dataloader: object, function: object) -> None:
    if dataloader is not None and not (hasattr(dataloader, "__iter__") or hasattr(dataloader, "__getitem__")):
        message = (
            f"quantization.fit got calib_dataloader of type {type(dataloader).__name__}: expected an iterable of "
            "batches, such as a DataLoader or a list."
        )
        raise ConfigTypeError(message)
    if isinstance(dataloader, Mapping | torch.Tensor):
        message = (
            f"quantization.fit got calib_dataloader of type {type(dataloader).__name__}, which is one batch: expected "
            "an iterable of batches. Put it into a list."
        )
        raise ConfigTypeError(message)
    if function is not None and not callable(function):
        message = f"quantization.fit got calib_func of type {type(function).__name__}: expected a function of a model."
        raise ConfigTypeError(message)


def _warn_of_untried_alphas(config: PostTrainingQuantConfig) -> None:
    smoothing = config.to_spec().smoothing
    if smoothing is not None and isinstance(smoothing.alpha, tuple) and len(smoothing.alpha) > 1:
        message = (
            f"Of the alphas {smoothing.alpha} only {smoothing.alpha[0]} is used, as nothing says which is best: give "
            "an eval_func, or alpha='auto'."
        )
        warn_user(message, InexactWarning)


_DEVICES = {"gpu": "cuda", "xpu": "xpu", "npu": "npu"}


def _check_feasible(model: nn.Module, config: PostTrainingQuantConfig) -> None:
    """Refuse what cannot work, and warn of what has no effect, before any work is done."""
    places = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    if "meta" in places and (attached_weights(model) is None or not config.recipes["layer_wise_quant"]):
        message = (
            f"{type(model).__name__} has weights on the meta device, which holds no values: expected a loaded model, "
            "or one of load_empty_model(path) together with recipes={'layer_wise_quant': True}."
        )
        raise ModelError(message)
    wanted = _DEVICES.get(config.device)
    if wanted is not None and wanted not in places:
        found = ", ".join(sorted(places)) or "no device"
        message = (
            f"PostTrainingQuantConfig.device={config.device!r}, but {type(model).__name__} is on {found}: a model is "
            f"quantized where it is. Move it there with model.to({wanted!r}), or leave device out."
        )
        raise ConfigError(message)
    for name, reason in config.options_without_effect().items():
        warn_user(f"PostTrainingQuantConfig.{name} has no effect: {reason}.", InexactWarning)


def _measure_of(function: object, dataloader: Iterable[Any] | None, metric: object, *, inplace: bool) -> Measure | None:
    """What a loader is evaluated with; None if a function evaluates, or nobody."""
    if function is not None:
        if not callable(function):
            message = (
                f"quantization.fit got eval_func of type {type(function).__name__}: expected a function of a model."
            )
            raise ConfigTypeError(message)
        if dataloader is not None or metric is not None:
            warn_user("eval_func is given: eval_dataloader and eval_metric are not used.", InexactWarning)
        return None
    if (dataloader is None) != (metric is None):
        given, missing = ("eval_dataloader", "eval_metric") if metric is None else ("eval_metric", "eval_dataloader")
        message = f"quantization.fit got {given} without {missing}: expected both, or an eval_func."
        raise ConfigError(message)
    if dataloader is None:
        return None
    if isinstance(dataloader, Iterator):
        message = (
            f"quantization.fit got eval_dataloader of type {type(dataloader).__name__}, which can be read only once: "
            "it is read for the float model and again for the int8 model. Pass a list or a DataLoader."
        )
        raise ConfigTypeError(message)
    measure = read_metric(metric)
    if inplace and measure.needs_reference:
        message = (
            "quantization.fit got inplace=True and an eval_metric with compare_label=False, which compares with the "
            "outputs of the float model: there is none any more once its weights are int8. Pass inplace=False."
        )
        raise ConfigError(message)
    return measure


def _score_of(
    model: nn.Module,
    function: Callable[[nn.Module], object] | None,
    dataloader: Iterable[Any] | None,
    measure: Measure | None,
) -> Score | None:
    if function is not None:
        return _function_score(function)
    if dataloader is None or measure is None:
        return None
    return partial(_measured, dataloader=dataloader, measure=measure, reference=partial(_float_output, model))


def _measured(
    model: nn.Module, dataloader: Iterable[Any], measure: Measure, reference: Callable[[Inputs], object]
) -> float:
    return evaluate(model, dataloader, measure, reference=reference)


def _float_output(model: nn.Module, inputs: Inputs) -> object:
    with evaluating(model):
        return run(model, inputs)


def _function_score(function: Callable[[nn.Module], object]) -> Score:
    def score(model: nn.Module) -> float:
        value = function(model)
        try:
            return float(value)  # type: ignore[arg-type]  # what fails here is explained
        except (TypeError, ValueError) as error:
            message = f"eval_func returned {value!r}: expected a number, the accuracy of the model it was given."
            raise ConfigTypeError(message) from error

    return score


def _scored(model: nn.Module, score: Score) -> float:
    with evaluating(model):
        return score(model)


def _baseline(model: nn.Module, score: Score) -> float:
    reached = _scored(model, score)
    if not math.isfinite(reached):
        message = f"{type(model).__name__} scores {reached} in float: expected a finite number to measure int8 against."
        raise ModelError(message)
    return reached


def _judged(job: _Job, score: Score, baseline: float, config: PostTrainingQuantConfig) -> nn.Module | None:
    criterion, tuning = config.accuracy_criterion, config.tuning_criterion
    model = job.finished(_best_alpha(job, score, baseline, criterion))
    reached = _scored(model, score)
    target = criterion.target(baseline)
    logger.info("Accuracy: %.4f in float, %.4f quantized; the goal is %.4f.", baseline, reached, target)
    if tuning.performance_only or criterion.is_met(reached, baseline):
        return model
    kind, remedy = _REMEDIES[config.is_weight_only]
    message = (
        f"The {kind} model scores {reached:.4f}, the float model {baseline:.4f}: expected "
        f"{'at least' if criterion.higher_is_better else 'at most'} {target:.4f} ({criterion.criterion} loss "
        f"{criterion.tolerable_loss}). Leave sensitive layers in float by op_name_dict, {remedy}, or allow a greater "
        "tolerable_loss."
    )
    if tuning.on_miss == "raise":
        raise GoalMissedError(message)
    warn_user(message, GoalMissedWarning)
    return None if tuning.on_miss == "none" else model


_REMEDIES = {
    False: ("int8", "try the recipe smooth_quant or more calibration data"),
    True: ("weight_only", "give weights more bits or smaller groups"),
}
"""By whether weights alone are quantized: a word for the model, and what may make it better."""


def _best_alpha(job: _Job, score: Score, baseline: float, criterion: AccuracyCriterion) -> float | None:
    """Of several alphas for smoothing the first that meets the goal, else the best; None if there is no choice."""
    smoothing = job.spec.smoothing
    if smoothing is None or not isinstance(smoothing.alpha, tuple):
        return None
    reached: dict[float, float] = {}
    for alpha in smoothing.alpha:
        reached[alpha] = _scored(job.simulated(alpha), score)
        logger.info("smooth_quant with alpha %s: %.4f", alpha, reached[alpha])
        if criterion.is_met(reached[alpha], baseline):
            return alpha
    worst = -math.inf if criterion.higher_is_better else math.inf
    comparable = {alpha: worst if math.isnan(found) else found for alpha, found in reached.items()}
    return (max if criterion.higher_is_better else min)(comparable, key=comparable.__getitem__)
