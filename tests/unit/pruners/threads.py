"""Ranks as threads of one process, to try what ranks exchange on many small cases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch


class ThreadExchange:
    """What `Exchange` does, for one of several threads that call it in the same order."""

    def __init__(self, rank: int, barrier: threading.Barrier, values: list[torch.Tensor]) -> None:
        self._rank, self._barrier, self._values = rank, barrier, values

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        self._values[self._rank] = values.clone()
        self._barrier.wait()
        gathered = torch.stack(self._values)
        self._barrier.wait()
        return gathered

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return self.gather(values).sum(0).to(values.dtype)

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        return self.gather(values).amax(0)


def run_threads(function: Callable[[int, ThreadExchange], Any], count: int) -> list[Any]:
    """Call ``function(rank, exchange)`` in ``count`` threads; what they return, in the order of ranks."""
    barrier = threading.Barrier(count, timeout=20)
    values: list[torch.Tensor] = [torch.empty(0)] * count
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def live(rank: int) -> None:
        try:
            results[rank] = function(rank, ThreadExchange(rank, barrier, values))
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:  # noqa: BLE001  raised again in the main thread
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert not barrier.broken, "the ranks did not call the same collectives"
    return results
