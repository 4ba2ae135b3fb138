"""Where the codes, scales and zero points of a linear layer lie in its buffers.

A word of the container holds ``bits of the container // bits of a code`` codes, the first one in the lowest bits. For
``out`` outputs, ``in`` inputs and ``groups`` scales a row:

                 own, dimension 1          own, dimension 0             optimum
    qweight      [out, words of in]        [words of out, in]           int32 [words of in, out]
    scales       [out, groups]             [out, groups]                float16 [groups, out]
    qzeros       [out, words of groups]    [words of out, groups]       int32 [groups, words of out]
    bias         [out]                     [out]                        float16 [out]

The own layouts keep symmetric codes as two's complement and have no zero points for them. That of optimum, which
AutoGPTQ made, counts codes from 0 and always has zero points: the middle code where they are symmetric, and each is
stored as one less than it is, so that 0 becomes the greatest code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

import torch

from inc_torch.quantizers._spec import WeightOnlyScheme
from inc_torch.quantizers._weight_only import RoundedWeight, codes_in_word, pack, unpack

__all__ = ["CONTAINERS", "OPTIMUM", "OWN", "SCALE_DTYPES", "WordLayout", "is_layout_name", "named_layout"]

CONTAINERS: Final = (torch.int8, torch.int16, torch.int32, torch.int64)
SCALE_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
_OPTIMUM: Final = "optimum"
_OPTIMUM_BITS: Final = (2, 4, 8)
_OWN_NAME: Final = re.compile(r"(int(?:8|16|32|64))-dim([01])-(float32|float16|bfloat16)")
_ALL: Final = slice(None)

Buffers = Mapping[str, torch.Tensor | None]


@final
@dataclass(frozen=True, slots=True)
class WordLayout:
    """A layout, see the head of this file.

    Attributes:
        container: Integers that codes are packed into.
        dimension: 1 has neighbouring inputs in a word, 0 neighbouring outputs.
        scale_dtype: Of scales and bias.
        optimum: Whether it is that of optimum; all others are our own.

    Example:
        >>> WordLayout(torch.int8, 0).name, OPTIMUM.name
        ('int8-dim0-float32', 'optimum')
    """

    container: torch.dtype = torch.int32
    dimension: int = 1
    scale_dtype: torch.dtype = torch.float32
    optimum: bool = False

    @property
    def name(self) -> str:
        """Under which it stands in saved descriptions."""
        if self.optimum:
            return _OPTIMUM
        container, scales = (str(dtype).removeprefix("torch.") for dtype in (self.container, self.scale_dtype))
        return f"{container}-dim{self.dimension}-{scales}"

    def reason_against(self, scheme: WeightOnlyScheme) -> str | None:
        """Why a layer with this scheme cannot be laid out so, as part of a sentence; None if it can.

        Example:
            >>> OPTIMUM.reason_against(WeightOnlyScheme(codes="nf4"))
            "optimum's layout has no codes of kind 'nf4'"
            >>> OPTIMUM.reason_against(WeightOnlyScheme(bits=3))
            "optimum's layout has codes of 2, 4 or 8 bits, not 3"
        """
        if not self.optimum:
            return None
        if scheme.codes != "int":
            return f"optimum's layout has no codes of kind {scheme.codes!r}"
        if scheme.bits not in _OPTIMUM_BITS:
            return f"optimum's layout has codes of 2, 4 or 8 bits, not {scheme.bits}"
        return None

    def packed(
        self,
        rounded: RoundedWeight,
        scheme: WeightOnlyScheme,
        bias: torch.Tensor | None,
        group_of: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor | None]:
        """Lay a weight out; no code is rounded, only scales and bias take their dtype."""
        codes, scales, zero_points = rounded
        if self.optimum and zero_points is None:
            middle = 2 ** (scheme.bits - 1)
            codes, zero_points = codes.to(torch.int32) + middle, torch.full_like(scales, middle, dtype=torch.int32)
        scales = scales.to(self.scale_dtype)
        if zero_points is not None and self.optimum:
            zero_points = zero_points.to(torch.int32) - 1
        return {
            "qweight": self._words(codes, scheme.bits, along_outputs=self._codes_along_outputs),
            "scales": (scales.t() if self.optimum else scales).contiguous(),
            "qzeros": None
            if zero_points is None
            else self._words(zero_points, scheme.bits, along_outputs=self._zeros_along_outputs),
            "bias": None if bias is None else bias.to(self.scale_dtype),
            "g_idx": None if group_of is None else group_of.to(torch.int32),
        }

    def unpacked(self, buffers: Buffers, scheme: WeightOnlyScheme, inputs: int, rows: slice = _ALL) -> RoundedWeight:
        """Take a weight, or some of its outputs, out of buffers.

        Args:
            buffers: What `packed` gave.
            scheme: Of the codes.
            inputs: How many there are.
            rows: Of the weight.

        Returns:
            Codes and zero points as int32, scales as float32; with optimum's layout codes are never below 0.
        """
        words, scales, zeros = (buffers[name] for name in ("qweight", "scales", "qzeros"))
        if words is None or scales is None:
            message = "A layer without qweight and scales holds no weight."
            raise ValueError(message)
        scales = (scales.t() if self.optimum else scales)[rows]
        outputs, groups = self.outputs(buffers), scales.shape[1]
        signed = scheme.symmetric and not self.optimum
        shape = (outputs, inputs)
        codes = self._codes(words, scheme.bits, shape, rows, along_outputs=self._codes_along_outputs, signed=signed)
        if zeros is not None:
            shape = (outputs, groups)
            zeros = self._codes(zeros, scheme.bits, shape, rows, along_outputs=self._zeros_along_outputs, signed=False)
            if self.optimum:
                zeros = zeros.add(1).bitwise_and_(2**scheme.bits - 1)
        return RoundedWeight(codes, scales.to(torch.float32), zeros)

    def empty(
        self, scheme: WeightOnlyScheme, shape: tuple[int, int], device: torch.device, *, bias: bool, reordered: bool
    ) -> dict[str, torch.Tensor | None]:
        """Buffers of the right shapes, ready for ``load_state_dict``.

        Args:
            scheme: Of the codes.
            shape: Outputs and inputs.
            device: Where they are made.
            bias: Whether there is one.
            reordered: Whether ``g_idx`` says which group an input belongs to.
        """
        (outputs, inputs), groups = shape, 1 if scheme.group_size == -1 else -(-shape[1] // scheme.group_size)

        def words(columns: int, *, along_outputs: bool) -> torch.Tensor:
            count = codes_in_word(scheme.bits, self.container)
            size = (-(-outputs // count), columns) if along_outputs else (outputs, -(-columns // count))
            return torch.zeros(size[::-1] if self.optimum else size, dtype=self.container, device=device)

        has_zeros = self.optimum or not scheme.symmetric
        return {
            "qweight": words(inputs, along_outputs=self._codes_along_outputs),
            "scales": torch.ones(
                (groups, outputs) if self.optimum else (outputs, groups), dtype=self.scale_dtype, device=device
            ),
            "qzeros": words(groups, along_outputs=self._zeros_along_outputs) if has_zeros else None,
            "bias": torch.zeros(outputs, dtype=self.scale_dtype, device=device) if bias else None,
            "g_idx": torch.zeros(inputs, dtype=torch.int32, device=device) if reordered else None,
        }

    def outputs(self, buffers: Buffers) -> int:
        """How many outputs the layer has."""
        scales = buffers["scales"]
        return 0 if scales is None else scales.shape[1 if self.optimum else 0]

    @property
    def in_pieces(self) -> bool:
        """Whether some outputs can be unpacked without all others."""
        return not self._codes_along_outputs

    @property
    def _codes_along_outputs(self) -> bool:
        return self.dimension == 0

    @property
    def _zeros_along_outputs(self) -> bool:
        return self.optimum or self.dimension == 0

    def _words(self, codes: torch.Tensor, bits: int, *, along_outputs: bool) -> torch.Tensor:
        words = pack(codes.t() if along_outputs else codes, bits, self.container)
        return words.t().contiguous() if along_outputs != self.optimum else words

    def _codes(
        self,
        words: torch.Tensor,
        bits: int,
        shape: tuple[int, int],
        rows: slice,
        *,
        along_outputs: bool,
        signed: bool,
    ) -> torch.Tensor:
        words = words.t() if along_outputs != self.optimum else words
        if along_outputs:
            return unpack(words, bits, shape[0], signed=signed).t()[rows]
        return unpack(words[rows], bits, shape[1], signed=signed)


OWN: Final = WordLayout()
"""What layers have that are quantized here."""

OPTIMUM: Final = WordLayout(torch.int32, 1, torch.float16, optimum=True)


def is_layout_name(name: object) -> bool:
    """Whether `named_layout` knows it."""
    return isinstance(name, str) and (name == _OPTIMUM or _OWN_NAME.fullmatch(name) is not None)


def named_layout(name: str) -> WordLayout:
    """The layout of this name.

    Args:
        name: One for which `is_layout_name` holds.

    Raises:
        ValueError: It does not.

    Example:
        >>> named_layout("int64-dim1-float16")
        WordLayout(container=torch.int64, dimension=1, scale_dtype=torch.float16, optimum=False)
    """
    if name == _OPTIMUM:
        return OPTIMUM
    found = _OWN_NAME.fullmatch(name)
    if found is None:
        message = f"{name!r} is no layout of packed weights: expected {_OPTIMUM!r} or a name such as {OWN.name!r}."
        raise ValueError(message)
    return WordLayout(getattr(torch, found[1]), int(found[2]), getattr(torch, found[3]))
