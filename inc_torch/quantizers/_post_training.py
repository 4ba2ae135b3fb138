"""From what calibration saw to a model that simulates int8, by any recipe and without the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import nn

from inc_torch.core.errors import CalibrationError, ConfigError, InexactWarning, listed
from inc_torch.core.user_warning import warn_user
from inc_torch.quantizers._calibration import Calibration
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule
from inc_torch.quantizers._prepare import Prepared, fake_quant_modules, reasons_of
from inc_torch.quantizers._smoothing import SmoothQuant, apply_smoothing
from inc_torch.quantizers._smoothing_alpha import search_alphas
from inc_torch.quantizers._spec import FloatType, QuantScheme, QuantSpec, Treatment
from inc_torch.quantizers.fx import settle_snaps

__all__ = ["LEFT_BY_SEARCH", "PostTrainingSpec", "open_to_search", "realise", "treat"]

LEFT_BY_SEARCH = "left in float by the search"
"""The reason that reports give."""

_NOT_CORRECTED = "bias not corrected: which inputs a weight of a transposed convolution meets is not counted"


@final
@dataclass(frozen=True, slots=True)
class PostTrainingSpec:
    """How a trained model is quantized.

    Attributes:
        quant: Which modules are quantized how.
        dynamic_where_unseen: Modules that no calibration data reached take dynamic ranges, where they can; otherwise
            they stay in float.
        first_in_float: The linear layer or convolution that runs first stays in float.
        last_in_float: The one that runs last stays in float.
        smoothing: Moves the difficulty of outlying input channels into weights; None is none.
        bias_correction: The mean shift of outputs that rounding of weights causes is taken off the bias.
        weight_correction: Rounded weights keep mean and deviation of each output channel.
        bfloat16: What stays in float may compute in bfloat16.
    """

    quant: QuantSpec = field(default_factory=QuantSpec)
    dynamic_where_unseen: bool = False
    first_in_float: bool = False
    last_in_float: bool = False
    smoothing: SmoothQuant | None = None
    bias_correction: bool = False
    weight_correction: bool = False
    bfloat16: bool = False

    @property
    def kept_samples(self) -> int:
        """How many samples of each input calibration has to keep."""
        return self.smoothing.search_samples if self.smoothing is not None and self.smoothing.alpha == "auto" else 0


def realise(
    model: nn.Module,
    spec: PostTrainingSpec,
    calibration: Calibration,
    decisions: Mapping[str, Prepared],
    run: Callable[[nn.Module], object],
    alpha: float | None = None,
) -> dict[str, Prepared]:
    """Set ranges, smoothing and corrections of a prepared model; `convert` makes int8 of it.

    Args:
        model: Prepared with ``spec.quant``, and calibrated.
        spec: The recipe.
        calibration: What the modules with static ranges were fed.
        decisions: What `prepare_fake_quant` decided.
        run: Calls the model that it is given on a little data; used by the search of smoothing by blocks alone.
        alpha: Of smoothing, instead of what the spec says.

    Returns:
        The decisions, with what changed.

    Raises:
        CalibrationError: No module with a static range was reached by the data.
        ConfigError: Nothing is left to quantize.
    """
    decided = dict(decisions)
    _treat_unseen(model, spec, calibration, decided)
    _leave_ends_in_float(model, spec, calibration, decided)
    settle_snaps(model)
    if not any(made.scheme for made in decided.values()):
        if any(made.reason == LEFT_BY_SEARCH for made in decided.values()):
            return decided
        message = (
            f"Quantization would leave all of {type(model).__name__} in float: {reasons_of(decided)}. Drop the recipe "
            "or the rule that says so, or give calibration data."
        )
        raise ConfigError(message)
    smoothed = _smooth(model, spec, calibration, decided, alpha, run)
    for name, module in fake_quant_modules(model):
        record = calibration.inputs.get(name)
        if module.observes and record is not None and name not in smoothed:
            module.set_range(*calibration.range_of(name, module.scheme))
        if not module.has_input_grid:
            continue
        module.correct_weight(False)
        unrounded = module.effective_weight() if spec.bias_correction and record is not None else None
        module.correct_weight(spec.weight_correction)
        if unrounded is not None and record is not None:
            if record.window_mean is None:
                decided[name] = _with_note(decided[name], _NOT_CORRECTED)
            else:
                _correct_bias(module, unrounded, record.window_mean, smoothed.get(name))
    return decided


def treat(
    model: nn.Module, decisions: Mapping[str, Prepared], treatments: Mapping[str, Treatment]
) -> dict[str, Prepared]:
    """Quantize modules of a prepared model in other ways than it was prepared for, or leave them in float.

    Args:
        model: Prepared, not converted; changed in place.
        decisions: What `prepare_fake_quant` decided.
        treatments: By module name; what is not named stays as it is.

    Returns:
        The decisions, with what changed.

    Example:
        >>> from inc_torch.quantizers import FloatType, prepare_fake_quant
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> decisions = prepare_fake_quant(model, QuantSpec())
        >>> made = treat(model, decisions, {"1": FloatType.FLOAT32})
        >>> made["0"].scheme, made["1"].scheme, type(model[1]) is nn.Linear
        ('w8a8-static', None, True)
    """
    decided = dict(decisions)
    for name, module in list(fake_quant_modules(model)):
        treatment = treatments.get(name)
        if isinstance(treatment, FloatType):
            module.restore()
            decided[name] = Prepared(None, LEFT_BY_SEARCH, treatment)
        elif isinstance(treatment, QuantScheme) and treatment != module.scheme:
            module.set_scheme(treatment)
            decided[name] = decided[name]._replace(scheme=module.name_of(treatment))
    return decided


def open_to_search(
    model: nn.Module, spec: PostTrainingSpec, calibration: Calibration, decisions: Mapping[str, Prepared]
) -> tuple[dict[str, Prepared], dict[str, Treatment]]:
    """What a search may decide: not what `realise` does in any case.

    Args:
        model: Prepared and calibrated.
        spec: The recipe.
        calibration: What calibration saw.
        decisions: What `prepare_fake_quant` decided.

    Returns:
        The decisions, without those for modules that a recipe leaves in float, or that no data reached; and the
        schemes of modules that no data reached and that take dynamic ranges therefore.
    """
    unseen = {name: module for name, module in _unseen(model, calibration).items() if module.is_static}
    dynamic: dict[str, Treatment] = {
        name: replace(module.scheme, dynamic=True)
        for name, module in unseen.items()
        if spec.dynamic_where_unseen and module.can_be_dynamic
    }
    closed = _ends(model, spec, calibration).keys() | (unseen.keys() - dynamic.keys())
    return {name: made for name, made in decisions.items() if name not in closed}, dynamic


def _unseen(model: nn.Module, calibration: Calibration) -> dict[str, FakeQuantModule]:
    """What needs a range, or takes that of each batch, and was not reached by the data."""
    return {
        name: module
        for name, module in fake_quant_modules(model)
        if (module.is_static or module.scheme.dynamic) and name not in calibration.inputs
    }


def _treat_unseen(
    model: nn.Module, spec: PostTrainingSpec, calibration: Calibration, decided: dict[str, Prepared]
) -> None:
    unseen = _unseen(model, calibration)
    static = [name for name, module in unseen.items() if module.is_static]
    if static and not calibration.inputs and not spec.dynamic_where_unseen:
        message = (
            f"No calibration data reached any of the {len(static)} modules to quantize, such as "
            f"{static[0]!r}: expected a calib_dataloader or calib_func that runs the model it is given."
        )
        raise CalibrationError(message)
    in_float = []
    for name, module in unseen.items():
        if spec.dynamic_where_unseen and module.can_be_dynamic:
            scheme = replace(module.scheme, dynamic=True)
            module.set_scheme(scheme)
            decided[name] = Prepared(module.name_of(scheme), "no calibration data reached it: dynamic range")
        elif module.is_static:
            is_layer = module.has_weight
            module.restore()
            if is_layer:
                decided[name] = Prepared(None, "no calibration data reached it", FloatType.FLOAT32)
                in_float.append(name)
    if in_float:
        message = f"No calibration data reached {listed(in_float)}: left in float, as no range of its inputs is known."
        warn_user(message, InexactWarning)


def _leave_ends_in_float(
    model: nn.Module, spec: PostTrainingSpec, calibration: Calibration, decided: dict[str, Prepared]
) -> None:
    modules = dict(fake_quant_modules(model))
    for name, recipe in _ends(model, spec, calibration).items():
        modules[name].restore()
        decided[name] = Prepared(None, f"left in float by the recipe {recipe}=False", FloatType.FLOAT32)


def _ends(model: nn.Module, spec: PostTrainingSpec, calibration: Calibration) -> dict[str, str]:
    """The modules that a recipe leaves in float, and its name."""
    modules = [name for name, module in fake_quant_modules(model) if module.has_input_grid]
    order = [name for name in calibration.inputs if name in modules] or modules
    last = dict.fromkeys(order[-1:] if spec.last_in_float else (), "last_conv_or_matmul_quantization")
    first = dict.fromkeys(order[:1] if spec.first_in_float else (), "first_conv_or_matmul_quantization")
    return last | first


def _smooth(
    model: nn.Module,
    spec: PostTrainingSpec,
    calibration: Calibration,
    decided: dict[str, Prepared],
    alpha: float | None,
    run: Callable[[nn.Module], object],
) -> dict[str, torch.Tensor]:
    """Smooth, and set the ranges of smoothed modules; returns what their input channels are divided by."""
    if spec.smoothing is None:
        return {}
    layers = [name for name, made in decided.items() if made.scheme is not None]
    inputs = {name: record for name, record in calibration.inputs.items() if name in layers}
    wanted = spec.smoothing.alpha if alpha is None else alpha
    chosen: float | dict[str, float]
    if wanted == "auto":
        chosen = search_alphas(model, inputs, spec.smoothing, run, calibration.flow)
    else:
        chosen = float(wanted[0] if isinstance(wanted, tuple) else wanted)
    results = apply_smoothing(model, inputs, chosen, calibration.flow)
    for name, result in results.items():
        note = f"smoothed, alpha {result.alpha:g}" if result.alpha is not None else f"not smoothed: {result.reason}"
        decided[name] = decided[name]._replace(reason=note)
    return {name: result.scale for name, result in results.items() if result.scale is not None}


def _with_note(made: Prepared, note: str) -> Prepared:
    return made._replace(reason=note if made.reason is None else f"{made.reason}; {note}")


def _correct_bias(
    module: FakeQuantModule, weight: torch.Tensor, mean: torch.Tensor, divisor: torch.Tensor | None
) -> None:
    """Take the mean of ``(W' - W) x`` off each output, from the mean of ``x``.

    Args:
        module: Its rounded weight is ``W'``.
        weight: ``W``, arranged and smoothed, neither rounded nor corrected.
        mean: Of the values that each weight of one output was multiplied with, [in, *kernel].
        divisor: What its input channels are divided by; None if they are not.

    Reference: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv:1906.04721,
    section 4.2, with measured means instead of those of BatchNorm.
    """
    codes, scale = module.int8_weight()
    rounded = codes.float() * scale.view(-1, *[1] * (codes.dim() - 1))
    if divisor is not None:
        mean = mean / divisor.to(mean).view(-1, *[1] * (mean.dim() - 1))
    outputs, inputs = weight.shape[:2]
    groups = len(mean) // inputs
    shift = (weight.double() - rounded.double()).view(groups, outputs // groups, -1)
    correction = (shift @ mean.to(shift.device).reshape(groups, -1, 1)).flatten()
    module.correct_bias(correction.to(torch.float32))
