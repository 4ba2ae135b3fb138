"""What the documentation site needs beside mkdocs.yml: links and docstrings as its tools expect them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import griffe

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+)[^)]*\)")
_FENCE = re.compile(r"^(```+)(\w+) (.+)$", re.MULTILINE)
_FILE = re.compile(r"\S+\.(?:ya?ml|py)")
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_DRAWING = re.compile(r"^::\n\n", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Return the page without links to files beside ``docs``, which the site does not have, and words of our own."""
    depth = page.file.src_uri.count("/")
    return _LINK.sub(lambda match: match[1] if match[2].count("/") > depth else match[0], _FENCE.sub(_fence, markdown))


def _fence(match: re.Match[str]) -> str:
    """The first line of a block, of whose flags only the name of a file is left, as its title."""
    name = _FILE.search(match[3])
    return match[1] + match[2] + (f' title="{name[0]}"' if name else "")


class Docstrings(griffe.Extension):
    """Lets ``Example:`` be read as a section of code, and takes away the colons before a drawing."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Change the docstring of everything that is documented."""
        if obj.docstring is not None:
            obj.docstring.value = _DRAWING.sub("", _EXAMPLE.sub("Examples:", obj.docstring.value))
