"""Write several files that only mean something together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from inc_torch.core.errors import UnwritableError
from inc_torch.core.files import made_directory, second_name
from inc_torch.huggingface._layout import PREVIOUS

__all__ = ["written_together"]


@contextmanager
def written_together(directory: Path, last: str, stale: Callable[[Path], list[Path]]) -> Iterator[Path]:
    """Give a folder to write into; when it is written, its files replace those in ``directory``.

    An error in between changes nothing. While files are moved, ``last`` is not there, so that nobody takes what a
    killed process leaves for a whole directory; those that were there before are in `PREVIOUS` until all is done.

    Args:
        directory: Made if it does not exist. Other files in it stay.
        last: Name of the file without which the directory is none; one is written in any case.
        stale: Which files in the directory belong to what is replaced, whether or not there are new ones.

    Raises:
        UnwritableError: The disk is full, the directory is read-only, or whatever else the system says of it.
    """
    made_directory(directory)
    aside = directory / f".{os.getpid()}.unfinished"
    try:
        aside.mkdir()
        yield aside
        _exchange(aside, directory, last, stale(directory))
    except (OSError, SafetensorError) as error:
        state = "is as it was before" if (directory / last).is_file() else f"has no {last}"
        message = (
            f"{os.fspath(directory)!r} could not be written: {error}. It {state}. Make room or ask for the right to "
            "write there, or give another directory."
        )
        raise UnwritableError(message) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # empty after its files were moved


def _exchange(aside: Path, directory: Path, last: str, stale: list[Path]) -> None:
    new = sorted(path.relative_to(aside) for path in aside.rglob("*") if path.is_file())
    previous = directory / PREVIOUS
    if (directory / last).is_file():
        replaced = [*(directory / name for name in new), *stale, directory / last]
        _keep([path for path in dict.fromkeys(replaced) if path.is_file()], directory, previous)
    (directory / last).unlink(missing_ok=True)
    for path in stale:
        path.unlink(missing_ok=True)
    for name in sorted(new, key=lambda name: name == Path(last)):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).replace(directory / name)
    shutil.rmtree(previous, ignore_errors=True)


def _keep(paths: list[Path], directory: Path, previous: Path) -> None:
    """Give files a second name in ``previous``, of which what is there from an earlier time is not needed any more."""
    if previous.exists():
        shutil.rmtree(previous)
    for path in paths:
        kept = previous / path.relative_to(directory)
        kept.parent.mkdir(parents=True, exist_ok=True)
        second_name(path, kept)
