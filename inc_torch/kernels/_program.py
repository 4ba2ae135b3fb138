"""Steps, and running many of them by one call."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from inc_torch.core.errors import did_you_mean
from inc_torch.kernels._checks import OperandError
from inc_torch.kernels._library import library

__all__ = ["JoinedStep", "Program", "Step", "counting_steps"]

MANTISSA = 2.0**23
"""What the kernels add to a number to round it: `inc_torch.quantizers._codes`."""


class Step:
    """One kernel with its operands, ready to run.

    A step keeps its operands alive. It reads and writes their memory as it is when it runs, so values may change
    between runs; shapes and strides are those at the time when it was built.

    Attributes:
        arguments: What the compiled code reads.
    """

    __slots__ = ("_places", "_tensors", "arguments", "kind")

    def __init__(
        self,
        kind: str,
        arguments: ctypes.Structure,
        roles: Mapping[str, torch.Tensor | None],
        constants: Sequence[torch.Tensor | None] = (),
        places: Mapping[str, tuple[ctypes.Structure, str]] | None = None,
    ) -> None:
        """Bind operands.

        Args:
            kind: Name of the function that builds such steps.
            arguments: Everything but the addresses of operands.
            roles: Operands by role; None for those that are not there.
            constants: Other tensors to keep alive.
            places: The structure and field of a role, if it is not the field of ``arguments`` with its name.
        """
        self.kind = kind
        self.arguments = arguments
        named = {name: (arguments, name) for name in roles} | dict(places or {})
        self._places = {name: named[name] for name, tensor in roles.items() if tensor is not None}
        self._tensors = (tuple(roles.values()), tuple(constants))
        for name, tensor in roles.items():
            if tensor is not None:
                self.rebind(name, tensor.data_ptr())

    @property
    def singles(self) -> tuple[Step, ...]:
        """The steps that this one consists of."""
        return (self,)

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of the operands that can be bound to other memory."""
        return tuple(self._places)

    def rebind(self, role: str, address: int) -> None:
        """Let an operand be other memory of the same dtype, shape and strides, which the caller keeps alive.

        Args:
            role: One of `roles`.
            address: ``tensor.data_ptr()``.

        Raises:
            OperandError: The step has no such operand.
        """
        try:
            structure, field = self._places[role]
        except KeyError:
            raise self._unknown(role) from None
        setattr(structure, field, address)

    def _unknown(self, role: str) -> OperandError:
        known = ", ".join(self.roles)
        message = (
            f"inc_torch.kernels.{self.kind}: this step has no operand {role!r}, expected one of {known}."
            f"{did_you_mean(role, self.roles)}"
        )
        return OperandError(message)

    def __repr__(self) -> str:
        return f"Step({self.kind}: {', '.join(self.roles)})"


class JoinedStep(Step):
    """Steps that run one after the other and are bound as one, such as those that write one output together."""

    __slots__ = ("_shares", "_steps")

    def __init__(self, kind: str, steps: Sequence[Step], shares: Mapping[str, Sequence[tuple[Step, str, int]]]) -> None:
        """Join steps.

        Args:
            kind: Name of what they compute together.
            steps: In the order in which they run.
            shares: By role, who has a share in this operand: a step, its role, and the distance of its share from the
                first byte of the operand.
        """
        self.kind = kind
        self._steps = tuple(single for step in steps for single in step.singles)
        self._shares = dict(shares)

    @property
    def singles(self) -> tuple[Step, ...]:
        return self._steps

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(self._shares)

    def rebind(self, role: str, address: int) -> None:
        if role not in self._shares:
            raise self._unknown(role)
        for step, its_role, distance in self._shares[role]:
            step.rebind(its_role, address + distance)


class Program:
    """Steps that run in order by one call into compiled code, which releases Python's global lock.

    Args:
        steps: In the order in which they run.

    Example:
        >>> import torch
        >>> from inc_torch import kernels
        >>> values, codes = torch.tensor([[0.0, 1.0]]), torch.tensor([[10, 12]], dtype=torch.uint8)
        >>> step = kernels.quantize(values, codes, kernels.Grid(0.5, 10))
        >>> if kernels.available():
        ...     kernels.Program([step]).run()
        >>> codes
        tensor([[10, 12]], dtype=torch.uint8)
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(single for step in steps for single in step.singles)
        self._addresses = (ctypes.c_void_p * len(self.steps))(
            *(ctypes.addressof(step.arguments) for step in self.steps)
        )
        self._arguments = (ctypes.addressof(self._addresses), len(self.steps))
        self._kinds = tuple(step.kind for step in self.steps)
        self._call = library().inc_run

    def run(self) -> None:
        """Run all steps."""
        count_steps(self._kinds)
        self._call(*self._arguments)


_COUNTERS: list[Counter[str]] = []
"""Who counts steps at present."""


def count_steps(kinds: Sequence[str]) -> None:
    """Tell who counts that steps of these kinds run."""
    for counter in _COUNTERS:
        counter.update(kinds)


@contextmanager
def counting_steps() -> Iterator[Counter[str]]:
    """Count, by kind, the steps that run in the block, in any thread.

    Example:
        >>> with counting_steps() as steps:
        ...     pass
        >>> steps
        Counter()
    """
    counter: Counter[str] = Counter()
    _COUNTERS.append(counter)
    try:
        yield counter
    finally:
        _COUNTERS[:] = [other for other in _COUNTERS if other is not counter]
