"""One pass over calibration data, from which any recipe can be realised without the data."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
import torch.nn.functional as F
from torch import nn

from inc_torch.core.errors import CalibrationError
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule
from inc_torch.quantizers._flow import Flow
from inc_torch.quantizers._observers import Levels
from inc_torch.quantizers._prepare import fake_quant_modules
from inc_torch.quantizers._spec import QuantScheme
from inc_torch.quantizers._statistics import TensorStatistics

__all__ = ["Calibration", "InputRecord", "calibrate"]

_SAMPLE_VALUES = 2**22
"""Values that are kept of the inputs of one module, 16 MiB of float32."""
_REMEMBERED = 4
"""Tensors whose summary is kept, for several modules that read the same one."""


@final
@dataclass(slots=True)
class InputRecord:
    """What was seen of the inputs of one module.

    Attributes:
        tensor: Extremes and histogram of all values together.
        channel_low: Least value of each input channel, float64 [in].
        channel_high: Greatest value of each input channel, float64 [in].
        window_sum: For each weight of one output, the sum of the values that it was multiplied with, float64
            [in, *kernel]; padding is counted. None where it is not known: for transposed convolutions.
        windows: How many outputs of one channel ``window_sum`` went into.
        sources: Serial numbers of the tensors that were fed, in order. Modules with the same ones read the same
            tensors, as the three projections of an attention do.
        sample: The first inputs, each with a dimension of samples, if they were to be kept.
    """

    tensor: TensorStatistics
    channel_low: torch.Tensor
    channel_high: torch.Tensor
    window_sum: torch.Tensor | None
    windows: int
    sources: tuple[int, ...]
    sample: list[torch.Tensor] = field(default_factory=list)

    @property
    def window_mean(self) -> torch.Tensor | None:
        """The mean of the values that each weight of one output was multiplied with, float64 [in, *kernel]."""
        return None if self.window_sum is None else self.window_sum / self.windows

    def add(self, later: InputRecord) -> None:
        """Take in what was seen of a later input."""
        self.tensor.add(later.tensor)
        self.channel_low = torch.minimum(self.channel_low, later.channel_low)
        self.channel_high = torch.maximum(self.channel_high, later.channel_high)
        if self.window_sum is not None and later.window_sum is not None:
            self.window_sum = self.window_sum + later.window_sum
        self.windows += later.windows
        self.sources += later.sources

    def copy(self) -> InputRecord:
        """A copy that `add` can change."""
        return InputRecord(
            self.tensor.copy(),
            self.channel_low,
            self.channel_high,
            self.window_sum,
            self.windows,
            self.sources,
        )


@final
@dataclass(slots=True)
class Calibration:
    """What calibration saw.

    Attributes:
        inputs: By module name, in the order in which modules first ran; modules that read the same tensors in the
            same way share one record. Modules that never ran are missing.
        flow: Where scales can be folded, if that was asked for.
    """

    inputs: dict[str, InputRecord] = field(default_factory=dict)
    flow: Flow | None = None
    _ranges: dict[tuple[int, QuantScheme], tuple[float, float]] = field(default_factory=dict, repr=False)

    def range_of(self, name: str, scheme: QuantScheme) -> tuple[float, float]:
        """The range that the observer of ``scheme`` finds for the input of a module; found once, as that takes time."""
        record = self.inputs[name]
        key = id(record), scheme
        if key not in self._ranges:
            levels = Levels(0, scheme.top, scheme.symmetric_input)
            low, high = scheme.input_observer.range(record.tensor, levels)
            self._ranges[key] = low.item(), high.item()
        return self._ranges[key]

    def continued(self, later: Calibration) -> Calibration:
        """What both saw, one after the other; neither is changed.

        Example:
            >>> from inc_torch.quantizers import QuantSpec, prepare_fake_quant
            >>> model = nn.Sequential(nn.Linear(1, 1))
            >>> _ = prepare_fake_quant(model, QuantSpec())
            >>> first, second = (calibrate(model, lambda x=x: model(torch.tensor([[x]]))) for x in (1.0, 5.0))
            >>> both = first.continued(second)
            >>> [seen.inputs["0"].tensor.high.item() for seen in (first, both)]
            [1.0, 5.0]
        """
        joined: dict[tuple[int, int], InputRecord] = {}
        inputs: dict[str, InputRecord] = {}
        for name in {**self.inputs, **later.inputs}:
            before, after = self.inputs.get(name), later.inputs.get(name)
            if before is None or after is None:
                inputs[name] = before or later.inputs[name]
                continue
            key = id(before), id(after)
            if key not in joined:
                joined[key] = before.copy()
                joined[key].sample = [*before.sample, *after.sample]
                joined[key].add(after)
            inputs[name] = joined[key]
        return Calibration(inputs, later.flow or self.flow)


def calibrate(model: nn.Module, run: Callable[[], object], *, keep: int = 0) -> Calibration:
    """Watch the inputs of all prepared modules that need a range, while ``run`` runs the model.

    Args:
        model: A prepared model.
        run: Feeds data to the model.
        keep: Samples (slices of the first dimension) of each input that are kept.

    Raises:
        CalibrationError: An input was not finite.

    Example:
        >>> from inc_torch.quantizers import QuantSpec, prepare_fake_quant
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> _ = prepare_fake_quant(model, QuantSpec())
        >>> seen = calibrate(model, lambda: model(torch.tensor([[1.0, -2.0], [3.0, 0.5]])))
        >>> seen.inputs["0"].channel_low.tolist(), seen.inputs["0"].tensor.high.item()
        ([1.0, -2.0], 3.0)
    """
    watch = _Watch(keep)
    with watch.on(model):
        run()
    shared: dict[tuple[Any, ...], InputRecord] = {}
    for name, (geometry, record) in watch.records.items():
        watch.calibration.inputs[name] = shared.setdefault((geometry, record.sources), record)
    return watch.calibration


_Geometry = tuple[Any, ...]


@final
class _Watch:
    """The hooks of one calibration, and what they noted."""

    def __init__(self, keep: int) -> None:
        self.calibration = Calibration()
        self.records: dict[str, tuple[_Geometry, InputRecord]] = {}
        self._keep = keep
        self._known: list[tuple[weakref.ref[torch.Tensor], int, _Geometry, InputRecord]] = []
        self._serial = 0

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        def watcher(name: str) -> Callable[..., None]:
            def note(module: FakeQuantModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
                if (values := next(tensors, None)) is not None:  # else the forward will say what is wrong
                    self._note(name, module, values)

            return note

        handles = [
            module.register_forward_pre_hook(watcher(name), with_kwargs=True)
            for name, module in fake_quant_modules(model)
            if module.is_static
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, name: str, module: FakeQuantModule, values: torch.Tensor) -> None:
        if values.numel() == 0:
            return
        geometry = _geometry(module)
        summary = self._summary(name, module, values, geometry)
        if name not in self.records:
            self.records[name] = geometry, summary.copy()
        else:
            self.records[name][1].add(summary)
        if module.has_input_grid:
            self._keep_sample(self.records[name][1], _batched(module, values.detach()))

    def _keep_sample(self, record: InputRecord, values: torch.Tensor) -> None:
        kept = sum(len(sample) for sample in record.sample)
        room = (_SAMPLE_VALUES - sum(sample.numel() for sample in record.sample)) // max(1, values[:1].numel())
        wanted = min(self._keep - kept, room)
        if wanted > 0:
            record.sample.append(values[:wanted].clone())

    def _summary(self, name: str, module: FakeQuantModule, values: torch.Tensor, geometry: _Geometry) -> InputRecord:
        version = -1 if values.is_inference() else values._version
        serial = statistics = None
        for reference, seen_version, seen_geometry, summary in self._known:
            if version >= 0 and _is_same(reference(), values) and seen_version == version:
                serial, statistics = summary.sources[0], summary.tensor
                if seen_geometry == geometry:
                    return summary
        if serial is None:
            serial = self._serial
            self._serial += 1
        summary = _summarised(name, module, values.detach(), serial, statistics)
        self._known = [(weakref.ref(values), version, geometry, summary), *self._known[: _REMEMBERED - 1]]
        return summary


def _is_same(first: torch.Tensor | None, second: torch.Tensor) -> bool:
    """Whether both are the same values in the same memory, though maybe seen through another Python object."""
    return first is not None and (
        first.data_ptr() == second.data_ptr()
        and first.shape == second.shape
        and first.stride() == second.stride()
        and first.dtype == second.dtype
    )


def _summarised(
    name: str, module: nn.Module, values: torch.Tensor, serial: int, statistics: TensorStatistics | None
) -> InputRecord:
    batch = _batched(module, values) if _has_channels(module) else values.unsqueeze(-1)
    others = [dimension for dimension in range(batch.dim()) if dimension != batch.dim() + _channel_axis(module)]
    low, high = (extreme.cpu().double() for extreme in (batch.amin(others), batch.amax(others)))
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        message = (
            f"The input of module {name!r} ({type(module).__name__.removeprefix('FakeQuant')}) held NaN or infinity in "
            "calibration: expected finite values. Look for the first batch whose float output is not finite, or leave "
            f"the module in float: op_name_dict={{{name!r}: {{'activation': {{'dtype': 'fp32'}}}}}}."
        )
        raise CalibrationError(message)
    window_sum, windows = _windows(module, values)
    return InputRecord(statistics or TensorStatistics.of(values), low, high, window_sum, windows, (serial,))


_PIECE: Final = 2**16
"""Values that are added up at a time: torch converts as it adds, which takes five times as long as before it adds."""


def _geometry(module: FakeQuantModule) -> _Geometry:
    """How a module reads its input: equal for modules that see the same channels and windows in one tensor."""
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode", "groups")
    around = tuple(getattr(module, "_reversed_padding_repeated_twice", ()))
    return (module.kind, _channel_axis(module), around, *(getattr(module, name, None) for name in names))


def _channel_axis(module: nn.Module) -> int:
    """The axis of input channels, counted from the end."""
    kernel: tuple[int, ...] = getattr(module, "kernel_size", ())
    return -1 - len(kernel)


def _batched(module: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """``values`` with a dimension of samples before that of channels."""
    return values if values.dim() > -_channel_axis(module) else values.unsqueeze(0)


def _has_channels(module: nn.Module) -> bool:
    """Whether the module has weights that meet channels of its input; else all of it counts as one."""
    return isinstance(module, FakeQuantModule) and module.has_weight


def _windows(module: nn.Module, values: torch.Tensor) -> tuple[torch.Tensor | None, int]:
    """The sum of what each weight of one output is multiplied with, and the number of outputs."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd) or not _has_channels(module):
        return None, 0
    if not isinstance(module, nn.modules.conv._ConvNd):
        rows = values.reshape(-1, values.shape[-1])
        pieces = torch.split(rows, max(1, _PIECE // max(1, rows.shape[1])))
        return torch.stack([piece.double().sum(0) for piece in pieces]).sum(0).cpu(), len(rows)
    rank = len(module.kernel_size)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(_batched(module, values), list(module._reversed_padding_repeated_twice), mode=mode)
    space = [
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, dilation in zip(
            padded.shape[2:], module.kernel_size, module.stride, module.dilation, strict=True
        )
    ]
    sums = torch.empty(padded.shape[1], *module.kernel_size, dtype=torch.float64)
    for offset in torch.cartesian_prod(*(torch.arange(size) for size in module.kernel_size)).view(-1, rank).tolist():
        window = padded
        for axis, position in enumerate(offset):
            begin, step = position * module.dilation[axis], module.stride[axis]
            window = window[(slice(None),) * (2 + axis) + (slice(begin, begin + (space[axis] - 1) * step + 1, step),)]
        sums[(slice(None), *offset)] = window.sum([0, *range(2, 2 + rank)], dtype=torch.float64).cpu()
    return sums, len(padded) * torch.Size(space).numel()
