"""Helpers under the import paths that Intel Neural Compressor gave them."""

from __future__ import annotations

__all__: list[str] = []
