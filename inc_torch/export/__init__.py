"""Plain artefacts: one directory of safetensors and JSON that any ``nn.Module`` can be saved to and loaded from."""

from __future__ import annotations

from inc_torch.export._artifact import load, save
from inc_torch.export._packed import export_compressed_model
from inc_torch.export._proof import attach_report, attached_report
from inc_torch.export._surface import adorn, attach_tuning

__all__ = ["adorn", "attach_report", "attach_tuning", "attached_report", "export_compressed_model", "load", "save"]
