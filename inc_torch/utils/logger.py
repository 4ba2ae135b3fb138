"""INC's import path for its log: functions that write to the logger ``inc_torch``.

Example:
    >>> info("Accuracy is %.2f", 0.91)  # shown if the script sets logging up
"""

from __future__ import annotations

import logging
from typing import Final

__all__ = ["critical", "debug", "error", "fatal", "info", "log", "warning"]

_LOGGER: Final = logging.getLogger("inc_torch")

critical: Final = _LOGGER.critical
debug: Final = _LOGGER.debug
error: Final = _LOGGER.error
fatal: Final = _LOGGER.critical
info: Final = _LOGGER.info
log: Final = _LOGGER.log
warning: Final = _LOGGER.warning
