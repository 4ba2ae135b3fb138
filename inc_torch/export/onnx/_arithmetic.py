"""What int8 modules compute, in the operators of ONNX for codes."""

from __future__ import annotations

from typing import Final, final

import torch

from inc_torch.quantizers import InputGrid, QuantScheme

__all__ = ["OnnxArithmetic"]

_TOP: Final = 255
_MATRIX: Final = 2
_VERSION: Final = 13
"""The set of operators in which QuantizeLinear and DequantizeLinear have got an axis."""


@final
class OnnxArithmetic:
    """QuantizeLinear and DequantizeLinear around every tensor of codes, which runtimes fuse into int8 kernels."""

    def rounded(self, values: torch.Tensor, grid: InputGrid) -> torch.Tensor:
        """Make uint8 codes and read them again."""
        scale = torch.tensor(grid.scale, device=values.device)
        zero_point = torch.tensor(grid.zero_point, dtype=torch.uint8, device=values.device)
        codes = torch.onnx.ops.symbolic(
            "QuantizeLinear",
            (values.to(torch.float32), scale, zero_point),
            dtype=torch.uint8,
            shape=values.shape,
            version=_VERSION,
        )
        floats = self._read(codes, scale, zero_point)
        return floats if grid.top == _TOP else floats.clamp(max=(grid.top - grid.zero_point) * grid.scale)

    def rounded_by_itself(self, values: torch.Tensor, scheme: QuantScheme) -> torch.Tensor:
        """Find the range, make codes and read them again; with all eight bits by DynamicQuantizeLinear."""
        values = values.to(torch.float32)
        if scheme.top == _TOP and not scheme.symmetric_input:
            codes, scale, zero_point = torch.onnx.ops.symbolic_multi_out(
                "DynamicQuantizeLinear",
                (values,),
                dtypes=(torch.uint8, torch.float32, torch.uint8),
                shapes=(values.shape, (), ()),
                version=11,
            )
            return self._read(codes, scale, zero_point)
        low, high = values.amin().clamp(max=0.0), values.amax().clamp(min=0.0)
        if scheme.symmetric_input:
            high = torch.maximum(-low, high)
            low = -high
        scale = ((high - low) / scheme.top).clamp(min=torch.finfo(torch.float32).tiny)
        zero_point = torch.round(-low / scale)
        codes = (torch.round(values / scale) + zero_point).clamp(0, scheme.top)
        return (codes - zero_point) * scale

    def weight(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Read int8 codes; those of a linear layer lie as its product wants them, or no runtime would fuse the two."""
        if codes.dim() == _MATRIX:
            return self._read_along(codes.t().contiguous(), scale, axis=1).t()
        return self._read_along(codes, scale, axis=0)

    def grouped_weight(self, codes: torch.Tensor, scales: torch.Tensor, group_of: torch.Tensor) -> torch.Tensor:
        """Read narrow codes by plain products: operators for codes in groups came late, and runtimes lack them."""
        return codes.to(torch.float32) * scales[:, group_of]

    @staticmethod
    def _read_along(codes: torch.Tensor, scale: torch.Tensor, axis: int) -> torch.Tensor:
        zero_points = torch.zeros(len(scale), dtype=torch.int8, device=codes.device)
        return torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (codes, scale, zero_points),
            {"axis": axis},
            dtype=torch.float32,
            shape=codes.shape,
            version=_VERSION,
        )

    @staticmethod
    def _read(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (codes, scale, zero_point), dtype=torch.float32, shape=codes.shape, version=_VERSION
        )
