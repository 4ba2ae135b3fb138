"""Post-training quantization: `fit` returns an int8 copy of a trained model, or one with weights of a few bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

from torch import nn

from inc_torch.config import PostTrainingQuantConfig
from inc_torch.config._given import given_config, given_model
from inc_torch.core.errors import ConfigTypeError, InexactWarning, did_you_mean
from inc_torch.core.streaming import attached_weights
from inc_torch.core.user_warning import warn_user
from inc_torch.quantization._arguments import check_data, check_feasible
from inc_torch.quantization._job import Job
from inc_torch.tuner import Tuning, read_evaluator

__all__ = ["fit"]


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
        ``TuningCriterion(on_miss="none")`` asks for None; with ``inplace`` the model is as it was then.

    Raises:
        ConfigError: An argument is wrong, or the configuration fits no layer.
        CalibrationError: There is no calibration data, or it is not finite.
        ModelError: The model cannot be quantized or copied.
        GoalMissedError: The accuracy goal was missed and ``on_miss="raise"``.

    Example:
        >>> import torch
        >>> from inc_torch import PostTrainingQuantConfig, quantization
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> batches = [torch.randn(4, 8) for _ in range(8)]
        >>> quantized = quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=batches)
        >>> type(quantized[0]).__name__, type(model[0]).__name__
        ('Int8Linear', 'Linear')
    """
    given = given_config("quantization.fit", PostTrainingQuantConfig, conf, config)
    if unknown:
        name = next(iter(unknown))
        message = f"quantization.fit has no argument {name!r}.{did_you_mean(name, fit.__annotations__)}"
        raise ConfigTypeError(message)
    source = given_model("quantization.fit", model)
    check_data(calib_dataloader, calib_func)
    evaluator = read_evaluator(
        "quantization.fit", source, eval_func, eval_dataloader, eval_metric, keeps_reference=not inplace
    )
    check_feasible(source, given, is_evaluated=evaluator is not None)
    stored = attached_weights(source)
    with nullcontext() if stored is None else stored.streaming():
        job = Job(source, given, inplace=inplace, for_search=evaluator is not None)
        try:
            job.require_data(calib_dataloader, calib_func)
            job.require_finite_weights()
            tuning = None if evaluator is None else Tuning(given, evaluator)
            job.calibrate(calib_dataloader, calib_func)
            if tuning is None:
                _warn_of_untried_alphas(given)
                return job.finished()
            fitted = tuning.run(job)
        except BaseException:
            job.undo()
            raise
        if fitted is None:
            job.undo()
        return fitted


def _warn_of_untried_alphas(config: PostTrainingQuantConfig) -> None:
    smoothing = config.to_spec().smoothing
    if smoothing is not None and isinstance(smoothing.alpha, tuple) and len(smoothing.alpha) > 1:
        message = (
            f"Of the alphas {smoothing.alpha} only {smoothing.alpha[0]} is used, as nothing says which is best: give "
            "an eval_func, or alpha='auto'."
        )
        warn_user(message, InexactWarning)
