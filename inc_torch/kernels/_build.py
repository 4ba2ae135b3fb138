"""Compiling the kernels: once for each machine, compiler and version of the sources.

Nothing is locked: who builds writes to a file of its own and moves it to its place at the end, which is atomic. Two
processes that build at once do the work twice, and a build that is killed leaves nothing that could be taken for one.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from inc_torch.core.errors import IncTorchError

__all__ = ["KernelsUnavailableError", "build", "cache_directory", "missing_features"]

SOURCES = Path(__file__).parent / "source"
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-std=c++17", "-fno-math-errno")
NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni")
COMPILERS = ("c++", "g++", "clang++")
SWITCH = "INC_TORCH_KERNELS"
LAST_LINES = 8
PATIENCE = 600.0
"""Seconds that a compiler may take."""


class KernelsUnavailableError(IncTorchError, RuntimeError):
    """The compiled kernels cannot be used on this machine."""


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def missing_features() -> str | None:
    """Say what this machine lacks to run the kernels, None if nothing.

    Example:
        >>> lacks = missing_features()
        >>> lacks is None or "processor" in lacks or "Linux" in lacks
        True
    """
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "AMD64"):
        return f"the kernels are for Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    missing = sorted(set(NEEDED) - _cpu_flags())
    return f"the processor has no {', '.join(missing)}" if missing else None


def _compiler() -> str:
    """The first compiler that is there: ``$CXX``, then the usual names."""
    chosen = os.environ.get("CXX", "").strip()
    names = (chosen,) if chosen else COMPILERS
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return found
    message = f"no C++ compiler was found, looked for {', '.join(names)}; install g++ or name one in CXX"
    raise KernelsUnavailableError(message)


def _run(command: Sequence[str]) -> str:
    """Run a compiler and return what it printed; its last lines are in the error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"the compiler {command[0]} could not be run: {error}"
        raise KernelsUnavailableError(message) from error
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[-LAST_LINES:]
        message = f"the compiler {command[0]} failed with status {done.returncode}:\n" + "\n".join(lines)
        raise KernelsUnavailableError(message)
    return done.stdout


def cache_directory() -> Path:
    """Where compiled kernels are kept.

    ``$INC_TORCH_CACHE``, else ``$XDG_CACHE_HOME/inc_torch``, else ``~/.cache/inc_torch``.
    """
    if chosen := os.environ.get("INC_TORCH_CACHE"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "inc_torch"
    return Path("~/.cache/inc_torch").expanduser()


def _fingerprint(compiler: str) -> str:
    """Of everything that the compiled code follows from."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    for part in (compiler, _run([compiler, "--version"]), *sorted(_cpu_flags()), *FLAGS):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:24]


def _compile(compiler: str, folder: Path) -> Path:
    """Compile every source to an object, some at once, and link them."""
    sources = sorted(SOURCES.glob("*.cpp"))
    objects = [folder / f"{source.stem}.o" for source in sources]

    def one(pair: tuple[Path, Path]) -> str:
        return _run([compiler, *FLAGS, "-c", str(pair[0]), "-o", str(pair[1])])

    with ThreadPoolExecutor(max_workers=min(len(sources), len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(one, zip(sources, objects, strict=True)))
    library = folder / "kernels.so"
    _run([compiler, *FLAGS, "-shared", *map(str, objects), "-o", str(library)])
    return library


def _writable(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def build() -> Path:
    """Return the compiled library, compiling it if the cache has none; a temporary one if the cache is read-only.

    Raises:
        KernelsUnavailableError: There is no compiler, or it fails.
    """
    compiler = _compiler()
    name = f"kernels-{_fingerprint(compiler)}.so"
    directory = cache_directory()
    if (directory / name).is_file():
        return directory / name
    if not _writable(directory):
        directory = Path(tempfile.mkdtemp(prefix="inc_torch-"))
    with tempfile.TemporaryDirectory(dir=directory, prefix="build-") as folder:
        os.replace(_compile(compiler, Path(folder)), directory / name)  # noqa: PTH105  the name of what is atomic
    return directory / name
