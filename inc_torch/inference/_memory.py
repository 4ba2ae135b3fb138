"""Where the values of a run lie in one block of memory that every run uses again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["Lifetime", "assign_offsets"]

_LINE: Final = 64
"""Bytes of a cache line, at whose multiples every value begins."""


class Lifetime(NamedTuple):
    """A value of ``size`` bytes, written at position ``begin`` of a run and read the last time at ``end``."""

    size: int
    begin: int
    end: int


def assign_offsets(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Place values so that those that live at the same time do not overlap; the biggest are placed first.

    Returns:
        The offset of each value, and the bytes that all of them need.

    Example:
        >>> assign_offsets([Lifetime(100, 0, 1), Lifetime(64, 1, 2), Lifetime(128, 2, 3)])
        ([0, 128, 0], 192)
    """
    offsets = [0] * len(lifetimes)
    placed: list[tuple[int, int, Lifetime]] = []
    for index in sorted(range(len(lifetimes)), key=lambda index: (-lifetimes[index].size, index)):
        lifetime = lifetimes[index]
        size = -(-lifetime.size // _LINE) * _LINE
        offset = 0
        for begin, end, other in sorted(placed):
            if other.end < lifetime.begin or lifetime.end < other.begin:
                continue
            if offset + size <= begin:
                break
            offset = max(offset, end)
        offsets[index] = offset
        placed.append((offset, offset + size, lifetime))
    return offsets, max((end for _, end, _ in placed), default=0)
