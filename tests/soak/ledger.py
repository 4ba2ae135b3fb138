"""What a process holds that could grow with use: taken down before and after many cycles, and compared."""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import linecache
import logging
import os
import random
import sys
import tempfile
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import graph_module
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

from inc_torch.core.observed import remove_leftovers

WARM_UP = 3
"""Cycles before the first look: imports, caches, classes that are made once."""
EVERY = 4
"""Of objects and blocks of memory, less than one in so many cycles may be new: one that stays in each is found."""
OBJECTS, BLOCKS = 4, 700
"""How many Python's free lists and the like may hold besides, however many cycles there are."""
CAPTURED = 2**19
"""Bytes that torch may keep of each model that torch.compile has captured; a third of a MiB was seen."""
ROOM = 12 * 2**20
"""Bytes of resident memory that allocators may take in reserve."""
OF_TORCH = ("torch._", "torch.fx.", "torch.utils.", "builtins.")
"""Where the classes lie of which torch keeps objects when it captures; tensors and modules of users are elsewhere."""

_HOOKS = [name for name in vars(torch_module) if name.startswith("_global_") and name.endswith("_hooks")]
_CONTAINERS = (dict, list, set, weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)
_KINDS = (torch.Tensor, nn.Module, torch.optim.Optimizer, type)


@dataclass(frozen=True)
class Ledger:
    """What must be equal, by what it is; and what may vary a little."""

    equal: dict[str, object]
    objects: int
    blocks: int
    resident: int
    cached: int

    @classmethod
    def now(cls) -> Ledger:
        """After everything that is not used any more has been freed."""
        gc.collect()
        remove_leftovers()  # as the next training would
        cached = _empty_caches_of_torch()
        return cls(
            equal={**_process(), **_torch(), **_living()},
            objects=len(gc.get_objects()),
            blocks=sys.getallocatedblocks(),
            resident=_resident(),
            cached=cached,
        )


@dataclass(frozen=True)
class Growth:
    """What many cycles left behind."""

    cycles: int
    changed: dict[str, tuple[object, object]]
    objects: int
    blocks: int
    resident: int
    cached: int
    warned: tuple[list[str], list[str]]

    def __str__(self) -> str:
        return (
            f"{self.cycles} cycles: objects {self.objects:+}, blocks {self.blocks:+}, "
            f"{self.resident / 2**10:+.0f} KiB, objects in caches of torch: {self.cached}"
        )

    def require_none(self, *, is_captured: bool = False, foreign: int = 0) -> None:
        """Nothing stays, and the last cycle warned as the first did.

        Where torch captures graphs it keeps objects for the life of the process: what is of others is compared then.
        ``foreign`` blocks a cycle are known to be kept by another package.
        """
        changed = dict(self.changed)
        if is_captured:
            living = [{name for name in part if not name.startswith(OF_TORCH)} for part in changed.pop("living", ())]
            assert not any(living), living
        assert not changed, changed
        assert self.warned[0] == self.warned[1]
        if is_captured:
            assert self.resident < ROOM + self.cycles * CAPTURED, self
            return
        assert self.resident < ROOM, self
        assert self.objects < OBJECTS + self.cycles / EVERY, self
        assert self.blocks < BLOCKS + self.cycles * (1 / EVERY + foreign), self


def grown(cycle: Callable[[], object], cycles: int) -> Growth:
    """Run ``cycle`` a few times, more before many, and then ``cycles`` times between two looks."""
    settings = _settings()
    first = _warnings_of(cycle)
    for _ in range(WARM_UP - 1 + cycles // 10):
        _warnings_of(cycle)
    before = Ledger.now()
    before = Ledger.now()  # while one is held, as there will be
    for _ in range(cycles - 1):
        _warnings_of(cycle)
    last = _warnings_of(cycle)
    after = Ledger.now()
    names = before.equal.keys() | after.equal.keys()
    pairs = {name: (before.equal.get(name), after.equal.get(name)) for name in sorted(names)}
    pairs["settings"] = settings, _settings()  # which the first cycle may have changed
    return Growth(
        cycles=cycles,
        changed={name: _difference(*pair) for name, pair in pairs.items() if pair[0] != pair[1]},
        objects=after.objects - before.objects,
        blocks=after.blocks - before.blocks,
        resident=after.resident - before.resident,
        cached=after.cached,
        warned=(first, last),
    )


def random_states() -> tuple[bytes, object, object]:
    """Of torch, Python and numpy, to compare."""
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), (kind, keys.tobytes(), *rest)


def _warnings_of(cycle: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        cycle()
    return [f"{warning.category.__name__}: {warning.message}" for warning in said]


def _difference(before: object, after: object) -> tuple[object, object]:
    """Of two collections the entries that only one has."""
    if isinstance(before, Counter) and isinstance(after, Counter):
        return before - after, after - before
    if isinstance(before, frozenset) and isinstance(after, frozenset):
        return before - after, after - before
    return before, after


def _process() -> dict[str, object]:
    return {
        "threads": Counter(thread.name for thread in threading.enumerate()),
        "tasks": len(list(Path("/proc/self/task").iterdir())),
        "open files": _open_files(),
        "modules": frozenset(sys.modules),
        "exit handlers": atexit._ncallbacks(),
        "temporary files": frozenset(path.name for path in Path(tempfile.gettempdir()).iterdir()),
        "files here": frozenset(str(path) for path in Path().rglob("*")),
        "log handlers": sum(
            len(getattr(logger, "handlers", ())) for logger in logging.root.manager.loggerDict.values()
        ),
        "filters of warnings": len(warnings.filters),
        "environment": frozenset(os.environ.items()),
        "kept by modules": Counter(_kept()),
    }


def _open_files() -> Counter[str]:
    targets: Counter[str] = Counter()
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208  a Path opens it once more
        with suppress(FileNotFoundError):  # the listing itself
            targets[str(Path("/proc/self/fd", entry).readlink())] += 1
    return targets


def _kept() -> dict[str, int]:
    """The sizes of all containers and caches that modules of the package hold, and those of warnings told."""
    sizes: dict[str, int] = {}
    for name, module in list(sys.modules.items()):
        told = getattr(module, "__dict__", {}).get("__warningregistry__", {})
        sizes[f"{name}: warnings told"] = sum(isinstance(key, tuple) for key in told)
        if name.partition(".")[0] == "inc_torch":
            for key, value in list(vars(module).items()):
                if isinstance(value, _CONTAINERS):
                    sizes[f"{name}.{key}"] = len(value)
                elif isinstance(value, functools._lru_cache_wrapper):
                    sizes[f"{name}.{key}"] = value.cache_info().currsize
    return sizes


def _torch() -> dict[str, object]:
    return {
        "hooks of all modules": {name: len(getattr(torch_module, name)) for name in _HOOKS},
        "hooks of all optimizers": (
            len(torch_optimizer._global_optimizer_pre_hooks),
            len(torch_optimizer._global_optimizer_post_hooks),
        ),
        "operators": len(torch._C._dispatch_get_all_op_names()),
        "libraries": (len(torch.library._defs), len(torch.library._impls)),
    }


def _settings() -> dict[str, object]:
    """Of torch, for the whole process or this thread."""
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "types": (torch.get_default_dtype(), torch.get_default_device()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "cache of autocast": torch.is_autocast_cache_enabled(),
        "determinism": (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
        "kernels": torch.backends.mkldnn.enabled,
        "modes": (len(torch.overrides._get_current_function_mode_stack()), torch._C._len_torch_dispatch_stack()),
        "calls of modules": torch_module.Module.__call__.__qualname__,
    }


def _living() -> dict[str, object]:
    """How many tensors, modules, optimizers, classes and objects of the package there are, by class."""
    counts: Counter[str] = Counter()
    counted: dict[type[Any], bool] = {}
    for entry in gc.get_objects():
        kind = type(entry)
        if kind not in counted:
            counted[kind] = issubclass(kind, _KINDS) or str(kind.__module__).partition(".")[0] == "inc_torch"
        if counted[kind]:
            counts[f"{kind.__module__}.{kind.__qualname__}"] += 1
    return {"living": counts}


def _empty_caches_of_torch() -> int:
    """Forget source text of graphs and what operators return; gives the number of objects that went."""
    before = len(gc.get_objects())
    FakeTensorMode.cache_clear()
    graph_module._loader.eval_cache.clear()
    linecache.clearcache()
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    return before - len(gc.get_objects())


def _resident() -> int:
    """Bytes, after the C library has given back what it can."""
    with suppress(AttributeError):  # of another C library
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
