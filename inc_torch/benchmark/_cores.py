"""Which cores there are, and which of them each instance gets."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final, final

from inc_torch.config import BenchmarkConfig
from inc_torch.core.errors import ConfigError, InexactWarning
from inc_torch.core.user_warning import warn_user

__all__ = ["Core", "Placement", "allowed_cpus", "cpu_quota", "parse_cpus", "physical_cores", "place"]

_SYSTEM: Final = Path("/sys/devices/system")
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


@final
@dataclass(frozen=True, slots=True, order=True)
class Core:
    """A physical core that this process may use.

    Attributes:
        node: NUMA node whose memory is next to it.
        package: Socket.
        number: Of the core, in its socket.
        cpu: The first of its hardware threads that is allowed.
    """

    node: int
    package: int
    number: int
    cpu: int


@final
@dataclass(frozen=True, slots=True)
class Placement:
    """Where one instance runs.

    Attributes:
        index: Of the instance, from 0.
        cpus: Hardware threads that it is bound to, one of each core; empty where nothing is bound.
        threads: Of an operator; None leaves what is set.
        spans_nodes: Whether the machine has several NUMA nodes.
    """

    index: int
    cpus: tuple[int, ...]
    threads: int | None
    spans_nodes: bool = False


def allowed_cpus() -> frozenset[int]:
    """The hardware threads that this process may use: what taskset or a container left of all."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores(allowed: Collection[int], system: Path = _SYSTEM) -> tuple[Core, ...]:
    """The cores behind hardware threads, neighbours beside each other.

    Args:
        allowed: Hardware threads.
        system: Where the kernel describes the machine. Where it does not, each thread counts as a core.

    Example:
        >>> [core.cpu for core in physical_cores({0, 1}, Path("nowhere"))]
        [0, 1]
    """
    nodes = _nodes(system)
    found: dict[tuple[int, int, int], Core] = {}
    for cpu in sorted(allowed):
        topology = system / f"cpu/cpu{cpu}/topology"
        node = nodes.get(cpu, 0)
        package = _number(topology / "physical_package_id", 0)
        number = _number(topology / "core_id", cpu)
        found.setdefault((node, package, number), Core(node, package, number, cpu))
    return tuple(sorted(found.values()))


def cpu_quota(file: Path = _QUOTA) -> float | None:
    """How many cores' worth of time a container may use, whatever it is allowed to run on; None without a limit.

    Example:
        >>> cpu_quota(Path("nowhere")) is None
        True
    """
    quota, _, period = _text(file).strip().partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def place(config: BenchmarkConfig, cores: Sequence[Core], *, clip: bool) -> tuple[Placement, ...]:
    """Give each instance its own cores, next to each other.

    Args:
        config: How many instances with how many cores.
        cores: Those that may be used.
        clip: Take what there is where more was asked for, with a warning, instead of an error.

    Raises:
        ConfigError: There are not so many cores.

    Example:
        >>> cores = [Core(0, 0, number, number) for number in range(5)]
        >>> [placement.cpus for placement in place(BenchmarkConfig(num_of_instance=2), cores, clip=False)]
        [(0, 1), (2, 3)]
    """
    instances, each = _numbers(config, len(cores), clip=clip)
    spans_nodes = len({core.node for core in cores}) > 1
    order = _by_node(cores, each)
    return tuple(
        Placement(
            index,
            tuple(core.cpu for core in order[index * each : (index + 1) * each]),
            config.intra_num_of_threads or each,
            spans_nodes,
        )
        for index in range(instances)
    )


def _numbers(config: BenchmarkConfig, present: int, *, clip: bool) -> tuple[int, int]:
    """How many instances, and how many cores for each."""
    instances = config.num_of_instance
    each = config.cores_per_instance or max(1, present // instances)
    if instances * each <= present:
        return instances, each
    asked = (
        f"num_of_instance={instances} with cores_per_instance={each} need {instances * each} physical cores"
        if config.cores_per_instance
        else f"num_of_instance={instances} needs {instances} physical cores"
    )
    found = f"{asked}, and this process may use {present}"
    fitting = min(instances, present), max(1, present // instances)
    if not clip:
        message = (
            f"BenchmarkConfig.{found}. Ask for less, such as num_of_instance={fitting[0]} and "
            f"cores_per_instance={fitting[1]}, or pass clip=True (--clip) to take what there is."
        )
        raise ConfigError(message)
    warn_user(f"{found}: {fitting[0]} x {fitting[1]} are used, as clip=True says.", InexactWarning)
    return fitting


def _by_node(cores: Sequence[Core], each: int) -> list[Core]:
    """The cores in an order in which groups of ``each`` lie in one NUMA node as far as possible."""
    whole: list[Core] = []
    rest: list[Core] = []
    for _, members in groupby(sorted(cores), key=lambda core: core.node):
        own = list(members)
        fitting = len(own) - len(own) % each
        whole += own[:fitting]
        rest += own[fitting:]
    return whole + rest


def _nodes(system: Path) -> dict[int, int]:
    """The NUMA node of each hardware thread."""
    folders: Iterable[Path] = sorted((system / "node").glob("node[0-9]*"))
    return {
        cpu: int(folder.name.removeprefix("node"))
        for folder in folders
        for cpu in parse_cpus(_text(folder / "cpulist"))
    }


def parse_cpus(text: str) -> tuple[int, ...]:
    """Read a list of hardware threads as the kernel writes it.

    Example:
        >>> parse_cpus("0-2,5")
        (0, 1, 2, 5)
    """
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return tuple(cpu for low, _, high in ranges for cpu in range(int(low), int(high or low) + 1))


def _number(path: Path, default: int) -> int:
    text = _text(path).strip()
    return int(text) if text.removeprefix("-").isdecimal() else default


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="ascii")
    return ""
