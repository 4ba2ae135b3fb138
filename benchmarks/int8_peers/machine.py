"""The machine that a result belongs to."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Instruction sets that matter for int8 and bfloat16.
WANTED = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")


@dataclass(frozen=True, slots=True)
class Machine:
    """A processor, as Linux describes it.

    Attributes:
        processor: Its name, which for virtual machines often says no more than the brand.
        family: The number of its family.
        model: The number of its model, where it is known.
        cores: How many there are.
        instructions: The instruction sets of ``WANTED``; they do not tell machines apart.
    """

    processor: str
    family: str | None
    model: str | None
    cores: int
    instructions: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of_this(cls) -> Machine:
        """Describe this machine."""
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        flags = known.get("flags", "").split()
        return cls(
            known.get("model name", platform.processor()),
            known.get("cpu family"),
            known.get("model"),
            os.cpu_count() or 1,
            tuple(name for name in WANTED if name in flags),
        )

    @classmethod
    def of(cls, row: dict[str, Any]) -> Machine:
        """Read the machine of a result."""
        facts = row["machine"]
        return cls(
            facts["processor"], facts.get("family"), facts.get("model"), facts["cores"], tuple(facts["instructions"])
        )

    def facts(self) -> dict[str, Any]:
        """Describe it for JSON."""
        return {
            "processor": self.processor,
            "family": self.family,
            "model": self.model,
            "instructions": list(self.instructions),
            "cores": self.cores,
        }

    @property
    def title(self) -> str:
        """Its name for readers, with numbers that tell generic names apart."""
        name = re.sub(r"\s+", " ", re.sub(r"\((R|TM)\)| Processor$", "", self.processor)).strip()
        numbers = [f"{word} {value}" for word, value in (("family", self.family), ("model", self.model)) if value]
        return f"{name} ({', '.join(numbers)})" if numbers else name

    @property
    def slug(self) -> str:
        """Its name for files."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.title.lower()} {self.cores} cores").strip("-")
