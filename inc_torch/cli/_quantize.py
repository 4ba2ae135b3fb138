"""``inc-torch quantize``: a saved model in, a smaller one out."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from torch import nn

from inc_torch import quantization
from inc_torch.cli._errors import FAILED, told_briefly
from inc_torch.cli._references import is_reference, made, module_of, resolve
from inc_torch.config import AccuracyCriterion, PostTrainingQuantConfig, TuningCriterion
from inc_torch.core.errors import ConfigError
from inc_torch.export import adorn
from inc_torch.huggingface import save_for_huggingface_upstream
from inc_torch.huggingface._processor import processor_of
from inc_torch.model import open_model
from inc_torch.tuning import TuningResult

__all__ = ["quantize"]

_HOW: Final = "How it is quantized"
_GOAL: Final = "How accurate it has to stay"
_FILES: Final = "What is read and written"
FLOAT32: Final = {"weight": {"dtype": "fp32"}, "activation": {"dtype": "fp32"}}


class Approach(StrEnum):
    """How inputs and weights are rounded."""

    static = "static"
    dynamic = "dynamic"
    weight_only = "weight_only"


def quantize(  # noqa: PLR0913, PLR0917  as many as there are options
    model: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face directory, or module:function (or file.py:function) that returns a model.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The directory to write.", show_default=False, metavar="DIR")
    ],
    approach: Annotated[
        Approach | None,
        typer.Option(
            help="static: fastest, needs --data. dynamic: needs no data. weight_only: weights of a few bits, smallest.",
            rich_help_panel=_HOW,
            show_default="static with --data, else dynamic",
        ),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Of a weight, 2 to 8.", rich_help_panel=_HOW, show_default="4 or 8")
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Weights that share a scale; weight_only.", rich_help_panel=_HOW, show_default="32"),
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(help="sym or asym: codes around zero or not; weight_only.", rich_help_panel=_HOW)
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(help="RTN, GPTQ, AWQ or TEQ; weight_only. All but RTN need --data.", rich_help_panel=_HOW),
    ] = None,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(help="A layer to leave alone, by name or regular expression; repeatable.", rich_help_panel=_HOW),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="module:name of a loader, or of a function that returns one.", rich_help_panel=_FILES),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="How many of the data to look at.", rich_help_panel=_FILES, show_default="100")
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--eval",
            help="module:function that takes a model and returns its accuracy.",
            rich_help_panel=_GOAL,
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Or the name of a metric, such as topk, on --data.", rich_help_panel=_GOAL)
    ] = None,
    tolerable_loss: Annotated[
        float | None,
        typer.Option(help="Share of the accuracy that may be lost.", rich_help_panel=_GOAL, show_default="0.01"),
    ] = None,
    max_trials: Annotated[
        int | None, typer.Option(help="Most models to try.", rich_help_panel=_GOAL, show_default="100")
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="module:function that returns the float model, if MODEL is a file of weights.", rich_help_panel=_FILES
        ),
    ] = None,
    gptq: Annotated[
        bool,
        typer.Option(
            "--gptq", help="Write the layout of GPTQ, for other programs; weight_only.", rich_help_panel=_FILES
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a directory that has files.", rich_help_panel=_FILES)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but problems.")] = False,
) -> None:
    """Quantize a trained model, without training it again, and save it.

    With --eval or --metric settings are searched until the model is
    accurate enough. If none is, the best one is saved all the same, and the
    exit code is 1.

    A model of Hugging Face becomes a directory that from_pretrained opens
    after import inc_torch; any other one that inc_torch.load opens. Code that
    you name is run; nothing else that is read can run code.

    Example: inc-torch quantize minilm -o minilm-int8 --data my_data.py:loader

    Example: inc-torch quantize llama -o llama-int4 --approach weight_only
    """
    with told_briefly():
        _check_output(output, overwrite=overwrite)
        loader = None if data is None else made(data, "--data")
        if metric is not None and loader is None:
            message = f"--metric {metric} needs --data, whose batches have labels."
            raise ConfigError(message)
        chosen = approach or (Approach.dynamic if loader is None else Approach.static)
        weights = {"bits": bits, "group_size": group_size, "scheme": scheme, "algorithm": algorithm}
        config = _config(chosen, weights, keep_float or [], samples, tolerable_loss, max_trials)
        quantized: Any = quantization.fit(
            _opened(model, architecture),
            config,
            calib_dataloader=loader,
            eval_func=None if evaluation is None else _function(evaluation),
            eval_dataloader=None if metric is None else loader,
            eval_metric=metric,
        )
        _save(quantized, output, processor_of(model) if Path(model).is_dir() else None, gptq=gptq)
        if not quiet:
            _show(quantized, output, chosen)
    search: TuningResult | None = quantized.tuning
    if search is not None and not (search.best is not None and search.best.is_met):
        raise typer.Exit(FAILED)


def _check_output(output: Path, *, overwrite: bool) -> None:
    if output.is_file():
        message = f"--output {os.fspath(output)!r} is a file: expected a directory to write."
        raise ConfigError(message)
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        message = f"--output {os.fspath(output)!r} has files already. Name another directory, or say --overwrite."
        raise ConfigError(message)


def _config(
    approach: Approach,
    weights: dict[str, Any],
    keep_float: list[str],
    samples: int | None,
    tolerable_loss: float | None,
    max_trials: int | None,
) -> PostTrainingQuantConfig:
    """What the options say, with the defaults of the configuration for what they do not."""
    rule = {key: value for key, value in weights.items() if value is not None}
    options: dict[str, Any] = {"approach": approach.value}
    if rule:
        options["op_type_dict"] = {".*": {"weight": rule}}
    if keep_float:
        options["op_name_dict"] = dict.fromkeys(keep_float, FLOAT32)
    if samples is not None:
        options["calibration_sampling_size"] = samples
    if tolerable_loss is not None:
        options["accuracy_criterion"] = AccuracyCriterion(tolerable_loss=tolerable_loss)
    if max_trials is not None:
        options["tuning_criterion"] = TuningCriterion(max_trials=max_trials)
    return PostTrainingQuantConfig(**options)


def _opened(model: str, architecture: str | None) -> nn.Module:
    if is_reference(model):
        return module_of(model, "MODEL").eval()
    given = None if architecture is None else module_of(architecture, "--architecture")
    return open_model(model, given, owner="inc-torch quantize", argument="MODEL").eval()


def _function(text: str) -> Callable[[nn.Module], float]:
    found = resolve(text, "--eval")
    if not callable(found):
        message = f"--eval got {text!r}, which is {type(found).__name__}: expected a function of the model."
        raise ConfigError(message)
    function: Callable[[nn.Module], float] = found
    return function


def _save(model: nn.Module, output: Path, processor: object, *, gptq: bool) -> None:
    if hasattr(model, "save_pretrained"):  # a model of Hugging Face
        save_for_huggingface_upstream(model, processor, output, **({"quant_method": "gptq"} if gptq else {}))
        return
    if gptq:
        message = f"--gptq writes language models of Hugging Face: got a {type(model).__name__}. Leave it out."
        raise ConfigError(message)
    adorn(model)
    saved: Any = model
    saved.save(output)


def _show(model: Any, output: Path, approach: Approach) -> None:  # noqa: ANN401  with the members of `adorn`
    console = Console()
    console.print(model.report())
    search: TuningResult | None = model.tuning
    if search is not None:
        console.print(f"Search: {search.reason}.", markup=False)
    console.print(f"Quantized ({approach.value}), saved in {os.fspath(output)}. See: inc-torch inspect", markup=False)
