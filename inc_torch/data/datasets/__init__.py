"""Data sets, one file for each kind; every file of this folder is found by itself."""

from __future__ import annotations

__all__: list[str] = []
