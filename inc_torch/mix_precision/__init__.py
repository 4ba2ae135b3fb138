"""Mixed precision after training: `fit` returns a model that computes in bfloat16 (or float16) where it gains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from inc_torch.config import MixedPrecisionConfig
from inc_torch.config._given import given_config, given_model
from inc_torch.core.errors import ConfigTypeError, did_you_mean
from inc_torch.mix_precision._arguments import check_feasible
from inc_torch.mix_precision._job import Job
from inc_torch.mix_precision._search import searched
from inc_torch.tuner import Tuning, read_evaluator

__all__ = ["fit"]


def fit(
    model: nn.Module,
    conf: MixedPrecisionConfig | None = None,
    eval_func: Callable[[nn.Module], float] | None = None,
    eval_dataloader: Iterable[Any] | None = None,
    eval_metric: object = None,
    *,
    config: MixedPrecisionConfig | None = None,
    inplace: bool = False,
    **unknown: object,
) -> nn.Module | None:
    """Convert a trained model to mixed precision for inference; the model that is given stays as it is.

    Linear, convolution, embedding, recurrent and attention modules compute in half precision, and between them values
    stay in it: matrix products, normalizations and activations in between read and write half as much. Tensors that
    the model is called with may be float32, and what it returns is float32. Weights are cast once. On the CPU they are
    kept in the order that the processor's matrix instructions read, and convolutions also do the batch normalization
    and the ReLU after them. The result is not for training; for that, put the configuration into `prepare_compression`.

    If something says how accurate a model is, operations go back to float32 until the goal is met: all of one class,
    then single ones, then more and more of them. The greatest parts of the model in which all operations are in half
    precision compute in it as a whole.

    On hardware without instructions for it the model is converted all the same, with a warning that it is slower.

    With ``backend="ipex"`` the same parts run on the kernels of Intel's extension, which traces the model: its forward
    becomes a program, and all else is the same.

    Args:
        model: Any module; what wraps it (torch.compile, DDP) is left behind.
        conf: What to do; by default bfloat16 wherever it is possible.
        eval_func: Returns the accuracy of the model that it is given.
        eval_dataloader: Labelled batches to evaluate on, together with ``eval_metric``.
        eval_metric: A `Metric`, a dict such as ``{"topk": 1}``, or an object with ``reset``, ``update``, ``result``.
        config: The same as ``conf``.
        inplace: Change the model itself instead of a copy; Parameters stay the same objects.
        **unknown: Refused; there to say what was meant.

    Returns:
        The converted model in evaluation mode, with ``save`` and ``report``. None only if accuracy was evaluated,
        missed its goal, and ``TuningCriterion(on_miss="none")`` asks for None; with ``inplace`` the model is as it was
        then.

    Raises:
        ConfigError: An argument is wrong, or a rule speaks of no module.
        MissingPackageError: ``backend="ipex"``, and the extension is not there.
        ModelError: The model has no values, cannot be copied, or cannot be traced for ``backend="ipex"``; a model that
            was to change in place is as it was then.
        GoalMissedError: The accuracy goal was missed and ``on_miss="raise"``.

    Warns:
        InexactWarning: The hardware has no instructions for the precision, so the model gets slower; or an option has
            no effect.

    Example:
        >>> import torch
        >>> from inc_torch import mix_precision
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> converted = mix_precision.fit(model)
        >>> converted(torch.ones(1, 8)).dtype, converted[0].weight.dtype, model[0].weight.dtype
        (torch.float32, torch.bfloat16, torch.float32)

    Source: INC 2.6.1 ``mix_precision.fit``; differs in that it never ends the process, converts convolutions and
    embeddings too, keeps values in half precision between modules, and that recurrent modules work.
    """
    given = given_config("mix_precision.fit", MixedPrecisionConfig, conf, config)
    if unknown:
        name = next(iter(unknown))
        message = f"mix_precision.fit has no argument {name!r}.{did_you_mean(name, fit.__annotations__)}"
        raise ConfigTypeError(message)
    source = given_model("mix_precision.fit", model)
    evaluator = read_evaluator(
        "mix_precision.fit", source, eval_func, eval_dataloader, eval_metric, keeps_reference=not inplace
    )
    word = check_feasible(source, given, is_evaluated=evaluator is not None)
    job = Job(source, given, word, inplace=inplace)
    if evaluator is None or word is None:
        return job.finished()
    return Tuning(searched(given), evaluator).run(job)
