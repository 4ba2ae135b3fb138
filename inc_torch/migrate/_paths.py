"""Many files: found in directories, read, migrated one by one, and written."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import shutil
import tempfile
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

from inc_torch.core.errors import ConfigError, IncTorchError, MissingPackageError
from inc_torch.migrate._findings import Finding
from inc_torch.migrate._script import migrate_source
from inc_torch.migrate._yaml_files import is_conf, migrate_yaml, module_path

__all__ = ["FileOutcome", "Outcome", "migrate_paths"]

_SCRIPTS: Final = (".py",)
_NOTEBOOKS: Final = (".ipynb",)
_YAML: Final = (".yaml", ".yml")
_LEFT_ALONE: Final = frozenset({"__pycache__", "node_modules", "site-packages", "venv", "env"})
"""Directories that hold other people's code; those that begin with a dot are left alone too."""


@final
@dataclass(frozen=True, slots=True)
class FileOutcome:
    """What came of one file.

    Attributes:
        path: The file that was read, as it was named or found.
        target: The file to write: the same, or for YAML the module beside it.
        before: The text of the target; None if there is none yet.
        after: Its text as it should be; None if it is not to be written.
        encoding: Of both.
        findings: What is left to decide in it.
        error: Why it could not be migrated; None if it could.
    """

    path: Path
    target: Path
    before: str | None = None
    after: str | None = None
    encoding: str = "utf-8"
    findings: tuple[Finding, ...] = ()
    error: str | None = None

    @property
    def is_changed(self) -> bool:
        """Whether there is something to write."""
        return self.after is not None and self.after != self.before

    def diff(self) -> str:
        """The change as a unified diff, as ``git diff`` prints it; empty if there is none."""
        if not self.is_changed or self.after is None:
            return ""
        name = self.target.as_posix().lstrip("/")
        old = "/dev/null" if self.before is None else f"a/{name}"
        before, after = _lines(self.before or ""), _lines(self.after)
        lines = difflib.unified_diff(before, after, old, f"b/{name}", lineterm="\n")
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of all files.

    Attributes:
        files: Those that were read, in order.
        skipped: How many files of other kinds were found beside them.
    """

    files: tuple[FileOutcome, ...]
    skipped: int

    @property
    def changed(self) -> list[FileOutcome]:
        """Files that there is something to write for."""
        return [file for file in self.files if file.is_changed]

    @property
    def undecided(self) -> list[FileOutcome]:
        """Files in which something is left to decide."""
        return [file for file in self.files if file.findings]

    @property
    def failed(self) -> list[FileOutcome]:
        """Files that could not be migrated."""
        return [file for file in self.files if file.error is not None]


def migrate_paths(paths: Iterable[str | os.PathLike[str]], *, write: bool = False, to_2x: bool = False) -> Outcome:
    """Migrate files, and the scripts in directories.

    A file that cannot be read, parsed or written is noted in the outcome, and the others go on. Files are written aside
    and renamed, and keep their mode, encoding and newlines.

    Args:
        paths: Files and directories. A file that is named is read as a script, whatever it is called, unless it ends
            in ``.yaml``, ``.yml`` or ``.ipynb``.
        write: Write what changes; otherwise nothing is written.
        to_2x: Also rewrite classes of 1.X, see `migrate_source`, and write YAML of 1.X that is found in directories as
            Python. A YAML file that is named always is.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     script = Path(folder, "train.py")
        ...     _ = script.write_text("from neural_compressor import quantization")
        ...     outcome = migrate_paths([folder], write=True)
        ...     script.read_text(), len(outcome.changed)
        ('from inc_torch import quantization', 1)
    """
    found, skipped = _found([Path(path) for path in paths], _SCRIPTS + _NOTEBOOKS + (_YAML if to_2x else ()))
    files = [_migrated(path, to_2x=to_2x) for path in found]
    return Outcome(tuple(_written(file) if write and file.is_changed else file for file in files), skipped)


def _found(paths: Sequence[Path], kinds: tuple[str, ...]) -> tuple[list[Path], int]:
    """Files to read, each once, and how many there are in directories that are not."""
    found: dict[Path, None] = {}
    skipped = 0
    for path in paths:
        if not path.is_dir():
            found[path] = None
            continue
        for file in _files_below(path):
            if file.suffix.lower() in kinds and not (file.suffix.lower() in _YAML and _is_other_yaml(file)):
                found[file] = None
            else:
                skipped += 1
    return list(found), skipped


def _files_below(folder: Path) -> Iterator[Path]:
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_left_alone(Path(at, name)))
        yield from (Path(at, name) for name in sorted(files))


def _is_other_yaml(file: Path) -> bool:
    try:
        return not is_conf(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError):
        return True


def _is_left_alone(folder: Path) -> bool:
    return folder.name in _LEFT_ALONE or folder.name.startswith(".") or (folder / "pyvenv.cfg").exists()


def _migrated(path: Path, *, to_2x: bool) -> FileOutcome:
    kind = path.suffix.lower()
    try:
        if kind in _NOTEBOOKS:
            return _notebook(path)
        return _module(path) if kind in _YAML else _script(path, to_2x=to_2x)
    except MissingPackageError:
        raise  # it is missing for every file
    except RecursionError:
        return FileOutcome(path, path, error="its code is nested too deeply to be read.")
    except (OSError, UnicodeError, SyntaxError, IncTorchError) as error:
        return FileOutcome(path, path, error=_reason(error, path))


def _script(path: Path, *, to_2x: bool) -> FileOutcome:
    text, encoding = _read(path)
    migrated = migrate_source(text, to_2x=to_2x, folder=path.parent)
    return FileOutcome(path, path, text, migrated.text, encoding, migrated.findings)


def _module(path: Path) -> FileOutcome:
    """The module for a YAML file; one that is there already is never written over."""
    path.open("rb").close()  # says what is wrong with a file that cannot be read
    text, findings = migrate_yaml(path)
    target = module_path(path)
    before = _read(target)[0] if target.exists() else None
    if before not in (None, text):
        message = f"{target} is there already and says something else. Move it away, or compare the two by hand."
        raise ConfigError(message)
    return FileOutcome(path, target, before, text, "utf-8", findings)


def _read(path: Path) -> tuple[str, str]:
    """The text with its own newlines, and its encoding, by the rules of Python's source files."""
    content = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return content.decode(encoding), encoding


def _notebook(path: Path) -> FileOutcome:
    if b"neural_compressor" not in path.read_bytes():
        return FileOutcome(path, path)
    todo = f"Write it as a script: jupyter nbconvert --to script {path.name}, and migrate that."
    return FileOutcome(path, path, findings=(Finding(0, path.name, "notebooks are not read", todo),))


def _written(file: FileOutcome) -> FileOutcome:
    try:
        _write(file.target.resolve(), (file.after or "").encode(file.encoding))
    except (OSError, UnicodeError) as error:
        return replace(file, after=None, error=_reason(error, file.path))
    return file


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, with the mode that it has."""
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        if path.exists():
            shutil.copymode(path, aside)
        else:
            mask = os.umask(0)
            os.umask(mask)
            Path(aside).chmod(0o666 & ~mask)
        Path(aside).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(aside).unlink()
        raise


def _reason(error: Exception, path: Path) -> str:
    """What went wrong, without the path, which is shown before it."""
    if isinstance(error, OSError) and not isinstance(error, IncTorchError):
        return error.strerror or type(error).__name__
    return str(error).removeprefix(str(path)).lstrip(",: ")


def _lines(text: str) -> list[str]:
    """Lines as git counts them, each with its newline."""
    return io.StringIO(text, newline="\n").readlines()
