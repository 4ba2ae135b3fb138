"""Which of the ways to compute on codes is taken: the fastest that a device has, or one that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Literal, get_args

from inc_torch.core.errors import ConfigError, did_you_mean

__all__ = ["ComputePath", "allows", "computing_by", "is_chosen"]

ComputePath = Literal["onednn", "int_mm", "inc_torch", "torch", "reference"]

_chosen: Final[ContextVar[str | None]] = ContextVar("inc_torch_path", default=None)


@contextmanager
def computing_by(path: ComputePath) -> Iterator[None]:
    """Let int8 modules, and those of few bits, compute in one way alone, in this thread.

    What has no such way computes as the reference; graphs that were fused compute as ever.

    Args:
        path: ``"onednn"``, products and convolutions of int8 codes on x86 and Arm; ``"int_mm"``, `torch._int_mm`,
            products of int8 codes on GPUs and elsewhere; ``"inc_torch"``, compiled products with weights of few bits;
            ``"torch"``, torch's own; or ``"reference"``, codes as floats, which runs anywhere.

    Raises:
        ConfigError: There is no such way.

    Example:
        >>> import torch
        >>> from inc_torch.quantizers import QuantSpec, WeightOnlyScheme, quantize_weights
        >>> layer, inputs = torch.nn.Linear(64, 8), torch.randn(2, 64)
        >>> _ = quantize_weights(layer, QuantSpec(WeightOnlyScheme()))
        >>> with computing_by("reference"):
        ...     expected = layer(inputs)
        >>> torch.allclose(layer(inputs), expected, atol=1e-5)
        True
    """
    known = get_args(ComputePath)
    if path not in known:
        message = f"computing_by got {path!r}: expected one of {', '.join(known)}.{did_you_mean(str(path), known)}"
        raise ConfigError(message)
    token = _chosen.set(path)
    try:
        yield
    finally:
        _chosen.reset(token)


def allows(path: ComputePath) -> bool:
    """Whether this way may be taken."""
    chosen = _chosen.get()
    return chosen is None or chosen == path


def is_chosen(path: ComputePath) -> bool:
    """Whether this way was asked for."""
    return _chosen.get() == path
