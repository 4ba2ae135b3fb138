"""``inc-torch benchmark``: how fast a saved model is, and which kernels it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inc_torch.benchmark import BenchmarkResult, fit
from inc_torch.cli._errors import FAILED, told_briefly
from inc_torch.cli._references import made, model_or_path, module_of
from inc_torch.config import BenchmarkConfig

__all__ = ["benchmark"]

_MEASURE = "What to measure"
_MACHINE = "The machine"
_FILES = "Files to write"


def benchmark(  # noqa: PLR0913, PLR0917  as many as there are options
    model: Annotated[
        str,
        typer.Argument(
            help="A saved directory of inc_torch, a Hugging Face directory, a file of torch.save with a state_dict, or "
            "module:function that returns a model.",
            show_default=False,
        ),
    ],
    compare: Annotated[
        str | None,
        typer.Option(help="Another model to show beside it, such as the float one.", rich_help_panel=_MEASURE),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="module:function or file.py:function that returns the float model, for weights saved without it.",
            rich_help_panel=_MEASURE,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="module:name of a loader, or of a function that returns one. Without it inputs are made up.",
            rich_help_panel=_MEASURE,
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Measure accuracy too, such as topk; needs --data.", rich_help_panel=_MEASURE)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Of made-up inputs.", rich_help_panel=_MEASURE)] = 1,
    warmup: Annotated[int, typer.Option(help="First iterations, which do not count.", rich_help_panel=_MEASURE)] = 5,
    iteration: Annotated[
        int, typer.Option(help="Iterations with the warm-up; -1: all of the data once.", rich_help_panel=_MEASURE)
    ] = -1,
    instances: Annotated[int, typer.Option(help="Processes at the same time.", rich_help_panel=_MACHINE)] = 1,
    cores_per_instance: Annotated[
        int | None, typer.Option(help="Physical cores of each; an equal share by default.", rich_help_panel=_MACHINE)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each; one a core by default.", rich_help_panel=_MACHINE)
    ] = None,
    clip: Annotated[
        bool, typer.Option("--clip", help="Take what cores there are, if there are too few.", rich_help_panel=_MACHINE)
    ] = False,
    diagnosis: Annotated[
        bool, typer.Option("--diagnosis", help="Print the slowest operators too.", rich_help_panel=_MEASURE)
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Everything, as JSON.", rich_help_panel=_FILES)] = None,
    csv: Annotated[Path | None, typer.Option(help="A row for each instance.", rich_help_panel=_FILES)] = None,
    svg: Annotated[Path | None, typer.Option(help="A picture.", rich_help_panel=_FILES)] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but problems.")] = False,
) -> None:
    """Time a model, and show which kernels it really runs.

    Example: inc-torch benchmark minilm-int8 --compare minilm --batch-size 8 --instances 2
    """
    with told_briefly():
        config = BenchmarkConfig(
            warmup=warmup,
            iteration=iteration,
            num_of_instance=instances,
            cores_per_instance=cores_per_instance,
            intra_num_of_threads=threads,
            diagnosis=diagnosis,
        )
        result = fit(
            model_or_path(model, "MODEL"),
            config,
            None if data is None else made(data, "--data"),
            compare=None if compare is None else model_or_path(compare, "--compare"),
            architecture=None if architecture is None else module_of(architecture, "--architecture"),
            metric=metric,
            batch_size=batch_size,
            clip=clip,
            quiet=quiet,
        )
        for path, save in ((json, result.save_json), (csv, result.save_csv), (svg, result.save_svg)):
            if path is not None:
                save(path)
    if _has_failures(result):
        raise typer.Exit(FAILED)


def _has_failures(result: BenchmarkResult) -> bool:
    return any(instance.failure is not None for model in result.models for instance in model.instances)
