"""The units that lie on several processes, because a shard of a weight ends inside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from inc_torch.pruners._exchange import Exchange
from inc_torch.pruners._parts import Part

__all__ = ["Seam"]


@final
class Seam:
    """Reads and writes the entries of shared units, of all layers, in one small buffer with one collective.

    Args:
        parts: What this process holds of each layer.
        entries: How many entries each whole layer has in the flat tensors that are to be joined: units or scores.
        exchange: The processes.
        device: Where the flat tensors lie.
    """

    def __init__(self, parts: Sequence[Part], entries: Sequence[int], exchange: Exchange, device: torch.device) -> None:
        here, there, counted = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)], [False]
        begin = size = 0
        for part, whole in zip(parts, entries, strict=True):
            inner = whole // (part.outer * part.along)
            count = part.outer * part.places * inner
            slots = torch.arange(size, size + part.outer * len(part.shared) * inner)
            if part.shared:
                local = part.placed(torch.arange(begin, begin + count), whole)
            for slot, place in enumerate(part.shared):
                if part.first <= place < part.first + part.places:
                    here.append(local[:, place - part.first].flatten())
                    there.append(slots.view(part.outer, -1, inner)[:, slot].flatten())
                    counted += [place - part.first >= part.begun_before] * len(here[-1])
            begin, size = begin + count, size + len(slots)
        self._exchange = exchange
        self._here, self._there = torch.cat(here).to(device), torch.cat(there).to(device)
        self._is_counted = torch.tensor(counted[1:], dtype=torch.bool, device=device)
        self._size = size

    def add_(self, values: torch.Tensor, flags: Sequence[bool], *, greatest: bool) -> list[bool]:
        """Complete shared entries of ``values`` from the parts that all ranks have of them.

        Args:
            values: Flat, at least 0; changed in place.
            flags: Anything to be known of all ranks.
            greatest: Take the greatest of the parts instead of their sum.

        Returns:
            Each flag, True if it is on any rank.
        """
        buffer = values.new_zeros(self._size + len(flags))
        buffer[self._there] = values[self._here]
        buffer[self._size :] = torch.tensor(flags, dtype=values.dtype)
        buffer = self._exchange.maximum(buffer) if greatest else self._exchange.sum(buffer)
        values[self._here] = buffer[self._there]
        return [flag > 0 for flag in buffer[self._size :].tolist()]

    def spread_(self, values: torch.Tensor) -> None:
        """Give the shared entries of bool ``values`` the value of the process that counts them, in place."""
        if self._size:
            own = self._is_counted
            buffer = torch.zeros(self._size, dtype=torch.uint8, device=values.device)
            buffer[self._there[own]] = values[self._here[own]].to(torch.uint8)
            values[self._here] = self._exchange.maximum(buffer)[self._there].bool()
