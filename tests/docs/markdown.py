"""Read the fenced code blocks and links of the project's Markdown pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})\s*([^`]*)$")
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: the words after the fence, the text, and the number of its first line."""

    language: str
    flags: frozenset[str]
    text: str
    line: int

    @property
    def is_run(self) -> bool:
        """Whether the block is executed: Python, and not marked as ``python no-run``."""
        return self.language == "python" and "no-run" not in self.flags


def pages() -> list[Path]:
    """List the project's pages: those at the root, those under docs, and one for each example."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")])


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page, in order."""
    fence, words, lines, start = "", [""], [], 0
    for number, line in enumerate(text.splitlines(), start=1):
        match = _FENCE.match(line)
        if not fence and match:
            fence, words, lines, start = match[1], match[2].split() or [""], [], number + 1
        elif fence and match and match[1].startswith(fence) and not match[2].strip():
            yield Block(words[0], frozenset(words[1:]), "\n".join(lines) + "\n", start)
            fence = ""
        elif fence:
            lines.append(line)


def padded(block: Block) -> str:
    """Return the block's text moved down to its own lines, so that errors name the line of the page."""
    return "\n" * (block.line - 1) + block.text


def shell_commands(text: str) -> list[str]:
    """Return the commands of a page's shell blocks, without prompts and comments."""
    lines = [
        line.strip().removeprefix("$ ").partition(" #")[0].strip()
        for block in blocks(text)
        if block.language in {"sh", "bash", "shell", "console"}
        for line in block.text.splitlines()
    ]
    return [line for line in lines if line and not line.startswith("#")]


def local_links(text: str) -> list[str]:
    """Return the links that point to files, without anchors; code blocks are skipped."""
    prose, inside = [], False
    for line in text.splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            prose.append(re.sub(r"`[^`]*`", "", line))
    targets = [match[1].partition("#")[0] for match in _LINK.finditer("\n".join(prose))]
    return [target for target in targets if target and "://" not in target and not target.startswith("mailto:")]
