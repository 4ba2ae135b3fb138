"""Move scripts and YAML files of Intel Neural Compressor to this package: what ``inc-torch migrate`` does.

Of a script the package's name is changed, and what is known not to work: old names of hooks, hooks that a loop lacks, a
loss that is dropped, assignments to configs. The rest of the text stays as it is. What cannot be decided is told, with
its line, and never guessed. libcst is imported when something is migrated.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from inc_torch.migrate._findings import Finding

if TYPE_CHECKING:
    from inc_torch.migrate._paths import FileOutcome, Outcome, migrate_paths
    from inc_torch.migrate._script import Migrated, migrate_source

__all__ = ["FileOutcome", "Finding", "Migrated", "Outcome", "migrate_paths", "migrate_source"]

_LATER = {
    "FileOutcome": "_paths",
    "Migrated": "_script",
    "Outcome": "_paths",
    "migrate_paths": "_paths",
    "migrate_source": "_script",
}


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(importlib.import_module(f"inc_torch.migrate.{_LATER[name]}"), name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
