"""What the tool tells: places in a script that a person has to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["Finding"]


@final
@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A line that could not be decided.

    Attributes:
        line: Number of the line in the file as it was, from 1; 0 is the file as a whole.
        what: The code, or the file, that it is about.
        why: Why it is not rewritten.
        todo: What to do about it.

    Example:
        >>> print(Finding(3, "neural_compressor.ux", "inc_torch has no 'ux'", "Leave it out.").at("train.py"))
        train.py:3  neural_compressor.ux
            why    inc_torch has no 'ux'
            to do  Leave it out.
    """

    line: int
    what: str
    why: str
    todo: str

    def at(self, path: str) -> str:
        """Return the finding as a few lines of a report on the file ``path``."""
        place = f"{path}:{self.line}" if self.line else path
        return f"{place}  {self.what}\n    why    {self.why}\n    to do  {self.todo}"
