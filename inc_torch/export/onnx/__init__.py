"""Models as ONNX files: float, or int8 with pairs of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from inc_torch.export.onnx._export import OnnxExport, export_onnx

__all__ = ["OnnxExport", "export_onnx"]
