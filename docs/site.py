"""What the documentation site needs beside mkdocs.yml: links and docstrings as its tools expect them."""

from __future__ import annotations

import re

import griffe

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")
_FENCE = re.compile(r"^(```+)(\w+) (?:no-run.*|(\S+\.ya?ml))$", re.MULTILINE)
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_DRAWING = re.compile(r"^::\n\n", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return the page without links to files beside ``docs``, which the site does not have, and words of our own."""
    fenced = _FENCE.sub(lambda match: match[1] + match[2] + (f' title="{match[3]}"' if match[3] else ""), markdown)
    return _OUTSIDE.sub(r"\1", fenced)


class Docstrings(griffe.Extension):
    """Lets ``Example:`` be read as a section of code, and takes away the colons before a drawing."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Change the docstring of everything that is documented."""
        if obj.docstring is not None:
            obj.docstring.value = _DRAWING.sub("", _EXAMPLE.sub("Examples:", obj.docstring.value))
