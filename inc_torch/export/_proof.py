"""Measure a report again and compare it with what was written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from inc_torch import precision
from inc_torch.core.errors import ArtifactError, did_you_mean
from inc_torch.core.report import CompressionReport, Finding, ModuleReport

__all__ = [
    "CODE_BITS",
    "attach_report",
    "attached_report",
    "bits_asked",
    "measured_report",
    "precision_findings",
    "prove_report",
    "read_report",
]

REPORT_ATTRIBUTE = "_inc_torch_report"
CODE_BITS = 8
"""Bits of an int8 code; whatever takes more is float."""
BFLOAT16_BITS = 16


def bits_asked(row: ModuleReport) -> int | None:
    """How many bits the weight of a module has if it was compressed as asked; None if that was not asked."""
    if row.scheme is None:
        return None
    return BFLOAT16_BITS if row.scheme in precision.SCHEMES else CODE_BITS


def attached_report(model: nn.Module) -> CompressionReport | None:
    """The report that ``model`` carries, or None."""
    report = model.__dict__.get(REPORT_ATTRIBUTE)
    return report if isinstance(report, CompressionReport) else None


def attach_report(model: nn.Module, report: CompressionReport) -> None:
    """Let ``model`` carry ``report`` about; it is copied and pickled with it and is no part of its weights."""
    model.__dict__[REPORT_ATTRIBUTE] = report


def measured_report(model: nn.Module, report: CompressionReport | None) -> CompressionReport:
    """Measure the weights as they are now; what was asked comes from ``report``.

    Modules that compute in bfloat16 have that as their scheme, unless something else was asked of them.
    """
    in_bfloat16 = precision_findings(model)
    if report is None:
        return CompressionReport.measure(model, in_bfloat16)
    return CompressionReport.measure(model, [*report.findings(), *in_bfloat16], report.sparsity_over_steps)


def precision_findings(model: nn.Module) -> list[Finding]:
    """A finding for each module that computes in half precision."""
    return [Finding(name, scheme=scheme) for name, scheme in precision.layers_of(model).items()]


def read_report(data: object, where: str) -> CompressionReport:
    """Read a report that was written as JSON.

    Raises:
        ArtifactError: It is no report.
    """
    if not isinstance(data, Mapping):
        message = f"The report in {where!r} is {type(data).__name__!r}, expected a JSON object. {_way_out(where)}"
        raise ArtifactError(message)
    try:
        return CompressionReport.from_dict(dict[str, Any](data))
    except ArtifactError as error:
        error.add_note(f"It was read from {where!r}. {_way_out(where)}")
        raise


def prove_report(model: nn.Module, stored: CompressionReport, where: str) -> CompressionReport:
    """Measure the report again from the weights of ``model`` and compare zeros and bits, module by module.

    A float weight that was cast on loading (``dtype=torch.bfloat16``) may have other bits, and more zeros, not fewer;
    that of a module that computes in bfloat16 is never cast.

    Args:
        model: The loaded model.
        stored: The report that was saved with it.
        where: The file that the report was read from.

    Returns:
        The new report.

    Raises:
        ArtifactError: A module differs.
    """
    measured = measured_report(model, stored)
    found = {row.name: row for row in measured.modules}
    for row in stored.modules:
        if row.name not in found:
            message = (
                f"Module {row.name!r} is in the report {where!r}, but {type(model).__name__} has no such weight."
                f"{did_you_mean(row.name, found)} {_way_out(where)}"
            )
            raise ArtifactError(message)
        _compare(row, found.pop(row.name), where)
    if found:
        message = (
            f"Module {next(iter(found))!r} of {type(model).__name__} is not in the report {where!r}. {_way_out(where)}"
        )
        raise ArtifactError(message)
    return measured


def _compare(stored: ModuleReport, found: ModuleReport, where: str) -> None:
    cast = found.bits != stored.bits and min(found.bits, stored.bits) > CODE_BITS
    if cast and stored.scheme not in precision.SCHEMES and found.shape == stored.shape and found.zeros >= stored.zeros:
        return
    for field in ("shape", "bits", "zeros"):
        got, want = getattr(found, field), getattr(stored, field)
        if got != want:
            message = (
                f"Module {found.name or '(root)'!r}: the loaded weight has {field} {got!r}, but the report in "
                f"{where!r} says {want!r}. The weights are not the ones that the report was made for. {_way_out(where)}"
            )
            raise ArtifactError(message)


def _way_out(where: str) -> str:
    return f"Save the model again; if its weights were changed on purpose, remove the report ({where!r}) first."
