"""One script from beginning to end."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from inc_torch.core.errors import ConfigError
from inc_torch.core.optional import require
from inc_torch.migrate._findings import Finding

__all__ = ["Migrated", "migrate_source"]

_CONCERNED: Final = re.compile(
    r"neural_compressor|inc_torch|on_before_optimizer_step|optimum|intel_extension_for_transformers|sparseml|nncf"
)
"""A text without any of these is none of this tool's business, and is not even parsed."""


@final
@dataclass(frozen=True, slots=True)
class Migrated:
    """What came of a script.

    Attributes:
        text: The script as it should be; the same text if there is nothing to change.
        findings: What is left to decide, by line.
    """

    text: str
    findings: tuple[Finding, ...]


def migrate_source(text: str, *, to_2x: bool = False, folder: str | os.PathLike[str] = ".") -> Migrated:
    """Migrate the text of a script.

    Args:
        text: A script of Python, for INC 1.X or 2.X, or one that was migrated before.
        to_2x: Also rewrite classes of 1.X as functions and configs, if all that is done with an object is understood.
        folder: Where YAML files lie that the script names, for ``to_2x``; the working directory is looked into too.

    Returns:
        The new text, whose white space, comments and newlines are those of the old one, and what is left to decide.

    Raises:
        ConfigError: It cannot be parsed.
        MissingPackageError: libcst is not installed.

    Example:
        >>> print(migrate_source("from neural_compressor import quantization  # int8").text)
        from inc_torch import quantization  # int8
        >>> migrate_source("import neural_compressor.ux").findings[0].why
        'the graphical interface of INC is not replaced'
    """
    if not _CONCERNED.search(text):
        return Migrated(text, ())
    require("libcst", "migrate", "Migrating a script")
    # On first use: `import inc_torch.migrate` must not load libcst.
    from libcst import ParserSyntaxError

    from inc_torch.migrate._calls import adapt_calls
    from inc_torch.migrate._configs import adapt_configs
    from inc_torch.migrate._handles import Handles
    from inc_torch.migrate._hook_names import rename_hooks
    from inc_torch.migrate._hooks import add_hooks
    from inc_torch.migrate._imports import rename_imports
    from inc_torch.migrate._loss import use_returned_loss
    from inc_torch.migrate._others import tell_of_other_packages, tell_of_strings
    from inc_torch.migrate._source import Source
    from inc_torch.migrate._to_2x import Moves

    try:
        source = Source(text)
    except ParserSyntaxError as error:
        message = f"line {error.raw_line}: {error.message} Expected a script of Python 3 that compiles."
        raise ConfigError(message) from error
    handles = Handles(source)
    moves = Moves(source, Path(folder)) if to_2x else None
    rename_imports(source)
    adapt_configs(source)
    adapt_calls(source, handles)
    rename_hooks(source, handles)
    add_hooks(source, handles, set() if moves is None else moves.managers)
    use_returned_loss(source, handles)
    tell_of_other_packages(source)
    tell_of_strings(source)
    if moves is not None:
        moves.write()
    changed = source.edits.applied_to(text)
    if changed != text:
        Source(changed)  # a bug of this package, if it cannot be parsed: nothing is written then
    return Migrated(changed, tuple(sorted(set(source.edits.findings))))
