"""Where studies are kept: in memory, in an SQLite file, a journal, or a database server."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from inc_torch.core.errors import ArtifactError, ConfigError, IncTorchError, StateError
from inc_torch.core.optional import require

if TYPE_CHECKING:
    import optuna

__all__ = ["DATABASE", "explained", "opened", "shown"]

DATABASE: Final = "tuning.db"
"""The file of a workspace that is a folder."""

_JOURNALS = (".journal", ".log", ".jsonl")
_FILES = (*_JOURNALS, ".db", ".sqlite", ".sqlite3")
_JOURNAL_LINE = b'{"op_code":'
"""What each line of a journal begins with."""
_TABLES = {"studies", "version_info"}
"""Two of the tables that Optuna makes."""
_BUSY_SECONDS = 60.0
"""How long one process waits for another that writes to the same SQLite file."""
_OPENINGS = 10

T = TypeVar("T")


def opened(where: str | None, *, must_exist: bool) -> optuna.storages.BaseStorage | None:
    """The storage at a path or URL; None is memory, which nobody shares.

    Raises:
        ConfigError: The URL is none.
        ArtifactError: The file is damaged or another program's.
        StateError: There is no file although it ``must_exist``, or it cannot be opened.
    """
    if where is None:
        return None
    with explained(where):
        path = _path_of(where, must_exist=must_exist)
        if path is None:
            return None
        if not isinstance(path, Path):
            return _server(path)
        if must_exist and not path.is_file():
            message = f"There is no tuning search to resume: {str(path)!r} does not exist. Check options.resume_from."
            raise StateError(message)
        path.parent.mkdir(parents=True, exist_ok=True)
        return _journal(path) if path.suffix in _JOURNALS else _sqlite(path)


def shown(where: str) -> str:
    """A path or URL for messages: without its password."""
    import sqlalchemy

    if "://" not in where:
        return where
    try:
        return sqlalchemy.make_url(where).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # a port that is no number
        return f"{where.partition('://')[0]}://..."


@contextlib.contextmanager
def explained(where: str | None) -> Iterator[None]:
    """Turn what databases and files raise into words on the search that they keep."""
    import optuna
    import sqlalchemy

    try:
        yield
    except IncTorchError:
        raise
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, sqlite3.Error, OSError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        reason = " ".join(str(getattr(cause, "orig", cause)).split())
        message = (
            f"The tuning searches in {shown(str(where))!r} cannot be opened: {reason}. Expected a folder or file that "
            "can be written, or the URL of a database that can be reached."
        )
        raise StateError(message) from error


def _path_of(where: str, *, must_exist: bool) -> Path | str | None:
    """The file of a path or of an SQLite URL, another URL as it is, or None for memory."""
    import sqlalchemy

    if "://" not in where:
        path = Path(where).expanduser()
        is_file = path.is_file() or (path.suffix in _FILES and not path.is_dir())
        return path if is_file else path / DATABASE
    try:
        url = sqlalchemy.make_url(where)
        url.get_dialect()
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        option = "resume_from" if must_exist else "workspace"
        message = (
            f"options.{option}={shown(where)!r}: expected a path, or a URL such as postgresql://user@host/database."
        )
        raise ConfigError(message) from error
    if url.get_backend_name() != "sqlite":
        return where
    return None if url.database in (None, "", ":memory:") else Path(url.database).expanduser()


# ------------------------------------------------------------------------------------------- journals


def _journal(path: Path) -> optuna.storages.BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    lock = JournalFileOpenLock(str(path))
    lock.acquire()
    try:
        _mend_journal(path)
    finally:
        lock.release()
    try:
        return JournalStorage(JournalFileBackend(str(path), lock))
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise _not_ours(path, f"a journal of Optuna: {error!r}") from error


def _mend_journal(path: Path) -> None:
    """Cut off the end of a line that a process was killed in, after which nothing could be read any more.

    Raises:
        ArtifactError: Lines are no lines of a journal.
    """
    import json

    data = path.read_bytes() if path.exists() else b""
    *lines, rest = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            is_ours = line.startswith(_JOURNAL_LINE) and isinstance(json.loads(line), dict)
        except ValueError:
            is_ours = False
        if not is_ours:
            raise _not_ours(path, f"a journal of Optuna, which line {number} is none of")
    if rest[: len(_JOURNAL_LINE)] != _JOURNAL_LINE[: len(rest)]:
        raise _not_ours(path, "a journal of Optuna, which its last line is none of")
    if rest:
        os.truncate(path, len(data) - len(rest))


# ------------------------------------------------------------------------------------------- databases


def _sqlite(path: Path) -> optuna.storages.BaseStorage:
    """A file that survives a killed process, and that several processes may use.

    Every transaction has the file for itself from its beginning, also when it begins by reading: what Optuna reads
    and then writes, such as that a trial is waiting, must not change in between.
    """
    import sqlalchemy
    from optuna.storages import RDBStorage

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    _retried(lambda: _check_sqlite(path, connect))
    options = {"creator": connect, "poolclass": sqlalchemy.pool.QueuePool}  # an URL would have to quote the path
    storage = _retried(lambda: RDBStorage("sqlite://", engine_kwargs=dict(options)))
    sqlalchemy.event.listen(storage.engine, "begin", lambda begun: begun.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage


def _check_sqlite(path: Path, connect: Callable[[], sqlite3.Connection]) -> None:
    """Make sure that a file is sound and ours, and have it written ahead, as a trial has a row for each operation.

    Raises:
        ArtifactError: It is damaged, or another program's.
    """
    try:
        with contextlib.closing(connect()) as connection:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if verdict != "ok" or (tables and not tables & _TABLES):
                found = f"tables {', '.join(sorted(tables))}" if verdict == "ok" else " ".join(verdict.split())
                raise _not_ours(path, f"an SQLite file of Optuna, found {found}")
            connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError:  # busy, or cannot be written
        raise
    except sqlite3.DatabaseError as error:
        raise _not_ours(path, f"an SQLite file: {error}") from error


def _server(url: str) -> optuna.storages.BaseStorage:
    """A database server, through psycopg 3 where it is PostgreSQL."""
    from optuna.storages import RDBStorage

    if url.startswith("postgresql:"):
        require("psycopg", "db", "A tuning search in PostgreSQL")
        url = url.replace("postgresql:", "postgresql+psycopg:", 1)
    return _retried(lambda: RDBStorage(url, engine_kwargs={"pool_pre_ping": True}))


def _retried(opening: Callable[[], T]) -> T:
    """Open once more what failed because another process made the same tables at the same time."""
    import optuna
    import sqlalchemy

    for left in reversed(range(_OPENINGS)):
        try:
            return opening()
        except (sqlalchemy.exc.DBAPIError, optuna.exceptions.StorageInternalError, sqlite3.OperationalError) as error:
            if not left or not any(word in f"{error} {error.__cause__}" for word in ("exist", "UNIQUE", "locked")):
                raise
        except RuntimeError as error:  # tables of another release of Optuna
            raise StateError(str(error)) from error
        time.sleep(0.1)
    raise AssertionError


def _not_ours(path: Path, expected: str) -> ArtifactError:
    return ArtifactError(
        f"{str(path)!r} is damaged, or another program's: expected {expected}. Move it away to begin a new search, or "
        "put a copy of it back."
    )
