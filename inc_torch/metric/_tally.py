"""What was counted, and what the rest of a data set can still add."""

from __future__ import annotations

from typing import final

__all__ = ["Tally"]


@final
class Tally:
    """How many elements were counted, and in how many samples.

    Attributes:
        elements: How many elements were counted.
        samples: In how many samples, entries of the first axis of the labels.

    Example:
        >>> tally = Tally()
        >>> tally.add(elements=6, samples=2)
        >>> tally.elements_in(samples=5)
        15
    """

    def __init__(self) -> None:
        self.elements = 0
        self.samples = 0
        self._is_even = True

    def add(self, elements: int, samples: int) -> None:
        """Count a batch."""
        self._is_even = self._is_even and elements * self.samples == self.elements * samples
        self.elements += elements
        self.samples += samples

    def elements_in(self, samples: int) -> int | None:
        """How many elements as many further samples have, if they are like those so far.

        None is no answer: nothing was counted yet, or not every sample had as many elements.
        """
        if not samples:
            return 0
        return samples * self.elements // self.samples if self.samples and self._is_even else None
