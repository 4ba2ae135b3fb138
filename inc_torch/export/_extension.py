"""Models on the extension of Intel in files: what it needs besides the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from inc_torch.core.errors import ArtifactError, InexactWarning
from inc_torch.core.user_warning import warn_user
from inc_torch.export._files import as_noted, file_facts, write_json
from inc_torch.ipex import SUMMARY, Summary, deployed, deployment_of, is_available, read_summary, redeploy
from inc_torch.quantizers import describe_int8

__all__ = ["rerun_on_extension", "write_summary"]


def write_summary(model: nn.Module, directory: Path) -> dict[str, Any]:
    """Write the summary of an int8 model on the extension; returns what else stands in ``compression.json``."""
    program, description = deployed(model), deployment_of(model)
    if program is None or program.summary is None:
        return description
    write_json(directory / SUMMARY, program.summary)
    return {**description, "summary": {"file": SUMMARY, **file_facts(directory / SUMMARY)}}


def rerun_on_extension(model: nn.Module, directory: Path, description: Mapping[str, Any]) -> bool:
    """Let a loaded model run on the extension as the saved one did.

    Returns:
        False if the extension is not there: the model runs as it is.

    Raises:
        ArtifactError: The summary is not the one that was saved.
    """
    if not is_available():
        message = (
            f"{os.fspath(directory)!r} was saved with backend='ipex', and the extension is not here in a version that "
            "fits: its int8 and bfloat16 layers run on the default backend, everything else in float."
        )
        warn_user(message, InexactWarning)
        return False
    has_summary = "summary" in description or describe_int8(model)
    facts = description.get("summary", {})
    summary = _read(as_noted(directory / SUMMARY, facts), facts) if has_summary else None
    redeploy(model, summary, description, os.fspath(directory))
    return True


def _read(path: Path, facts: Mapping[str, Any]) -> Summary:
    if not path.is_file() or file_facts(path)["sha256"] != facts.get("sha256"):
        message = (
            f"{os.fspath(path)!r} is not the file that was saved: copy the whole directory again, or save again with "
            "manager.save(directory)."
        )
        raise ArtifactError(message)
    return read_summary(path)
