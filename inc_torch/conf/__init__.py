"""What Neural Compressor 1.X was told by YAML, read with line numbers, and said in the configurations of today.

::

    file, dict ──► plain values, lines ──► tree by the schema ──► Conf.usr_cfg      what 1.X classes ask
   core.plain_yaml  _schema.py, one module for each section  └──► Conf.translate()  configurations, notes
"""

from __future__ import annotations

from inc_torch.conf._conf import Conf, Config2X, ConfigFileError, Translation, read_conf
from inc_torch.conf._schema import Note

__all__ = ["Conf", "Config2X", "ConfigFileError", "Note", "Translation", "read_conf"]
