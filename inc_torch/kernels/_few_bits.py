"""Weights of few bits, packed into words: products with them, and the weights as floats."""

from __future__ import annotations

import ctypes
from typing import Final, final

import torch

from inc_torch.kernels._arguments import FewBitsArguments, Operation
from inc_torch.kernels._checks import TYPES, check, dense
from inc_torch.kernels._library import library
from inc_torch.kernels._program import count_steps

__all__ = ["FewBitsWeight"]

_WORD_BITS: Final = 32
_FEWEST, _MOST = 2, 8
_TABLE_BITS: Final = 4
_STEP = "FewBitsWeight"


@final
class FewBitsWeight:
    """A weight [out, in] of 2 to 8 bits, in words of int32 that hold ``32 // bits`` whole codes each, low bits first.

    Unlike a step it is bound to no input: it may be used by several threads at once. The tensors are not copied.

    Args:
        words: int32 [out, words].
        scales: float32 [out, groups].
        zeros: int32 [out, words of zero points], packed as the weight; None: codes are two's complement, and 0 is 0.
        inputs: How many there are.
        bits: Of a code.
        group: How many neighbouring inputs share a scale.
        group_of: int32 [in], the group of each input where neighbours share none.
        bias: float32 [out].
        table: float32 [16], what codes of up to 4 bits stand for; None: integers.

    Attributes:
        shape: Outputs and inputs.
        words: As given.

    Raises:
        OperandError: An operand has the wrong dtype, size, device or layout.

    Example:
        >>> import torch
        >>> from inc_torch import kernels
        >>> words = torch.tensor([[0x1 | 0xF << 4]], dtype=torch.int32)  # the codes 1 and -1
        >>> if kernels.available():
        ...     weight = kernels.FewBitsWeight(words, torch.tensor([[0.5]]), None, inputs=2, bits=4, group=2)
        ...     assert weight.times(torch.tensor([[6.0, 4.0]])).item() == 1.0
    """

    def __init__(
        self,
        words: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        *,
        inputs: int,
        bits: int,
        group: int,
        group_of: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        table: torch.Tensor | None = None,
    ) -> None:
        check(_FEWEST <= bits <= _MOST, _STEP, "bits", bits, f"{_FEWEST} to {_MOST}")
        check(inputs > 0 and group > 0, _STEP, "inputs and group", (inputs, group), "numbers above 0")
        check(scales.dim() == 2, _STEP, "scales", f"of shape {tuple(scales.shape)}", "[out, groups]")  # noqa: PLR2004
        outputs, groups = scales.shape
        in_word = _WORD_BITS // bits
        needed = -(-inputs // group) if group_of is None else groups
        check(groups == needed, _STEP, "scales", f"of {groups} groups", str(needed))
        dense(words, _STEP, "words", (torch.int32,), outputs * -(-inputs // in_word))
        dense(scales, _STEP, "scales", (torch.float32,))
        if zeros is not None:
            dense(zeros, _STEP, "zeros", (torch.int32,), outputs * -(-groups // in_word))
        if group_of is not None:
            dense(group_of, _STEP, "group_of", (torch.int32,), inputs)
            inside = bool((group_of >= 0).all() and (group_of < groups).all())
            check(inside, _STEP, "group_of", "of numbers outside of the groups", f"numbers in [0, {groups})")
        if bias is not None:
            dense(bias, _STEP, "bias", (torch.float32,), outputs)
        if table is not None:
            dense(table, _STEP, "table", (torch.float32,), 2**_TABLE_BITS)
            check(bits <= _TABLE_BITS, _STEP, "bits", bits, f"at most {_TABLE_BITS} with a table")
        self.shape = torch.Size((outputs, inputs))
        self.words = words
        self._kept = (words, scales, zeros, group_of, bias, table)
        given = dict(zip(("words", "scales", "zeros", "group_of", "bias", "table"), self._kept, strict=True))
        self._arguments = FewBitsArguments(inputs=inputs, outputs=outputs, groups=groups, group=group, bits=bits)
        for name, tensor in given.items():
            setattr(self._arguments, name, None if tensor is None else tensor.data_ptr())
        self._run = library().inc_run

    def times(self, input: torch.Tensor) -> torch.Tensor:
        """``input @ weight.T + bias``, float32 [rows, out]; sums are taken in float32.

        Args:
            input: float32 [rows, in].
        """
        outputs, inputs = self.shape
        dense(input, _STEP, "input", (torch.float32,), len(input) * inputs)
        output = torch.empty(len(input), outputs)
        arguments = self._copy(Operation.FEW_BITS_PRODUCT, output)
        arguments.input, arguments.rows, arguments.input_stride = input.data_ptr(), len(input), inputs
        self._call(arguments)
        return output

    def expanded(self, dtype: torch.dtype = torch.float32, first: int = 0, last: int | None = None) -> torch.Tensor:
        """The weight as floats, [last - first, in].

        Args:
            dtype: float32 or bfloat16.
            first: First output.
            last: The one behind the last; None is all.
        """
        outputs, inputs = self.shape
        last = outputs if last is None else last
        check(dtype in (torch.float32, torch.bfloat16), _STEP, "dtype", dtype, "float32 or bfloat16")
        check(0 <= first < last <= outputs, _STEP, "outputs", (first, last), f"a part of the {outputs}")
        output = torch.empty(last - first, inputs, dtype=dtype)
        arguments = self._copy(Operation.EXPAND_FEW_BITS, output)
        arguments.outputs = last - first
        for name, tensor in zip(("words", "scales", "zeros"), self._kept, strict=False):
            if tensor is not None:
                setattr(arguments, name, tensor[first:].data_ptr())
        self._call(arguments)
        return output

    def _copy(self, operation: Operation, output: torch.Tensor) -> FewBitsArguments:
        arguments = FewBitsArguments.from_buffer_copy(self._arguments)
        arguments.operation, arguments.output = operation, output.data_ptr()
        arguments.output_stride, arguments.output_type = output.shape[1], TYPES[output.dtype]
        return arguments

    def _call(self, arguments: FewBitsArguments) -> None:
        steps = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        self._run(ctypes.addressof(steps), 1)
        count_steps([Operation(arguments.operation).name.lower()])
