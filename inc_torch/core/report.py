"""The compression report: what was asked of each module, and what the weights say was reached."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, final, runtime_checkable

import torch
from torch import nn
from torch.nn.utils import parametrize

from inc_torch.core import report_view
from inc_torch.core.errors import ArtifactError
from inc_torch.core.files import write_text
from inc_torch.core.names import named_layers
from inc_torch.core.sharding import plain_class, whole

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["CompressionReport", "Finding", "ModuleReport", "stored_weight"]

Value = TypeVar("Value")

_ROW_TYPES = {
    **dict.fromkeys(("name", "kind"), str),
    **dict.fromkeys(("bits", "zeros"), int),
    **dict.fromkeys(("group", "units", "pruned_units"), int | None),
    **dict.fromkeys(("pattern", "scheme"), str | None),
    "asked_sparsity": float | int | None,
}

FLOAT_BITS = 32

MATRIX_RANK = 2
"""Weights of at least this rank are listed; biases and norms are not worth a line."""


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """What one technique has to say of one module.

    Attributes:
        module: Fully qualified name.
        pattern: Pruning pattern asked for (``"4x1"``), if the module is pruned.
        sparsity: Share of zeros asked for, in [0, 1).
        group: Number of the pruner that ranked the module together with others.
        units: Pattern units (blocks, columns, elements) of the module.
        pruned_units: How many of them are pruned.
        scheme: Quantization scheme asked for (``"w8a8-static"``), if the module is quantized.
        note: Why the module was left alone, or anything else worth a line.
    """

    module: str
    pattern: str | None = None
    sparsity: float | None = None
    group: int | None = None
    units: int | None = None
    pruned_units: int | None = None
    scheme: str | None = None
    note: str | None = None


@final
@dataclass(frozen=True, slots=True)
class ModuleReport:
    """One module: asked and measured.

    Attributes:
        name: Fully qualified name.
        kind: Class name.
        shape: Shape of the stored weight, before codes are packed; of a recurrent layer, which has several, the number
            of values in all of them.
        bits: Bits per stored weight value, measured from the dtype; of packed codes those of a code.
        zeros: Zeros in the stored weight, counted.
        pattern: Pruning pattern asked for.
        asked_sparsity: Share of zeros asked for (of the whole group with global scope).
        group: Number of the pruner that ranked the module together with others.
        units: Pattern units of the module.
        pruned_units: How many of them were pruned.
        scheme: Quantization scheme asked for.
        notes: Why something was left alone.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    bits: int
    zeros: int
    pattern: str | None = None
    asked_sparsity: float | None = None
    group: int | None = None
    units: int | None = None
    pruned_units: int | None = None
    scheme: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def numel(self) -> int:
        """Number of weight values."""
        return int(torch.Size(self.shape).numel())

    @property
    def sparsity(self) -> float:
        """Measured share of zeros, in [0, 1]."""
        return self.zeros / self.numel if self.numel else 0.0

    @property
    def awaits_conversion(self) -> bool:
        """Whether a scheme was asked for and the weight is in float32 still, as in training before ``on_train_end``."""
        return self.scheme is not None and self.bits == FLOAT_BITS


@runtime_checkable
class _PackedWeight(Protocol):
    """A module that holds several codes in each word of its weight."""

    @property
    def code_bits(self) -> int:
        """Bits of a code."""

    def signed_codes(self) -> torch.Tensor:
        """The codes one by one, shaped like the weight; 0 where the weight is 0."""


def stored_weight(module: nn.Module) -> torch.Tensor | None:
    """Return the tensor in which ``module`` really keeps its weight: int8 codes, or the float Parameter.

    None if the module has no weight of its own.
    """
    codes = module._buffers.get("qweight")
    return codes if codes is not None else module._parameters.get("weight")


def _stored_weights(module: nn.Module, is_asked_about: bool) -> list[torch.Tensor]:
    """What a module has a line for: its weight if it is a matrix or more, or matrices under other names.

    Of the latter those of recurrent layers, and of whatever somebody speaks of, are listed.
    """
    weight = stored_weight(module)
    if weight is not None and weight.dim() >= MATRIX_RANK:
        return [weight]
    if not (is_asked_about or isinstance(module, (nn.RNNBase, nn.RNNCellBase))):
        return []
    own = [*module._parameters.values()]
    if parametrize.is_parametrized(module):  # its weight is computed from these
        own += module.get_submodule("parametrizations").parameters()
    return [parameter for parameter in own if parameter is not None and parameter.dim() >= MATRIX_RANK]


@final
@dataclass(frozen=True, slots=True)
class CompressionReport:
    """What was asked of each module and what its stored weights say was reached.

    Attributes:
        modules: One entry for each module with a weight of rank 2 or more, each recurrent layer, and each module
            that was asked about and keeps matrices under other names; tied weights count once.
        other_parameters: Values in biases, norms and everything else that is not listed.
        size_bytes: Bytes of all stored tensors of the model.
        sparsity_over_steps: Optimizer steps at which the share of pruned units changed, and what it was from then on.

    Example:
        >>> import torch
        >>> from inc_torch.core.report import CompressionReport, Finding
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
        >>> _ = torch.nn.init.constant_(model[0].weight, 1.0)
        >>> model[0].weight.data[0] = 0
        >>> report = CompressionReport.measure(model, [Finding("0", pattern="1x1", sparsity=0.5)])
        >>> report.sparsity, report.modules[0].zeros, report.size_bytes
        (0.5, 2, 16)
    """

    modules: tuple[ModuleReport, ...]
    other_parameters: int
    size_bytes: int
    sparsity_over_steps: tuple[tuple[int, float], ...] = ()

    @classmethod
    def measure(
        cls, model: nn.Module, findings: Iterable[Finding] = (), sparsity_over_steps: Sequence[tuple[int, float]] = ()
    ) -> CompressionReport:
        """Count zeros, bits and bytes in the weights of ``model`` as they are now.

        Weights that ``fully_shard`` spreads over ranks are gathered one by one to be counted: every rank has to call
        this then.

        Args:
            model: Any module, before or after conversion. Modules are listed under their names without wrappers.
            findings: What the callbacks asked for.
            sparsity_over_steps: What they noted while the model was trained.
        """
        asked: dict[str, list[Finding]] = defaultdict(list)
        for finding in findings:
            asked[finding.module].append(finding)
        tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        rows: list[ModuleReport] = []
        owner: dict[int, str] = {}
        packed: dict[str, set[int]] = {}
        for name, module in named_layers(model):
            weights = _stored_weights(module, name in asked)
            if not weights:
                continue
            if id(weights[0]) in owner:
                asked[owner[id(weights[0])]].append(Finding(name, note=f"shares its weight with {name}"))
                continue
            owner[id(weights[0])] = name
            rows.append(_measure_module(name, module, weights))
            if isinstance(module, _PackedWeight):
                packed[name] = {id(tensor) for tensor in module._buffers.values()}
        listed = sum(row.numel for row in rows)
        parameters = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
        words = set().union(*packed.values())
        codes = sum(x.numel() for key, x in tensors.items() if x.dtype == torch.int8 and key not in words)
        codes += sum(row.numel for row in rows if row.name in packed)
        return cls(
            modules=tuple(_merge(row, asked[row.name]) for row in rows),
            other_parameters=parameters + codes - listed,
            size_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
            sparsity_over_steps=tuple(sparsity_over_steps),
        )

    @property
    def sparsity(self) -> float:
        """Measured share of zeros over the modules that were asked to be pruned."""
        pruned = [row for row in self.modules if row.asked_sparsity is not None]
        values = sum(row.numel for row in pruned)
        return sum(row.zeros for row in pruned) / values if values else 0.0

    @property
    def ratios(self) -> dict[str, float]:
        """The three totals under INC's names, with zeros counted in the weights, tied weights once.

        ``elementwise_over_matmul_gemm_conv``: zeros of pruned modules over all matrix weights (embeddings and recurrent
        layers apart).
        ``elementwise_over_all``: the same zeros over all values of the model.
        ``blockwise_over_matmul_gemm_conv``: each pruner's share of pruned units, weighted by its values.
        """
        matrices = [row for row in self.modules if "Embedding" not in row.kind and len(row.shape) >= MATRIX_RANK]
        base = sum(row.numel for row in matrices) or 1
        total = sum(row.numel for row in self.modules) + self.other_parameters or 1
        pruned = [row for row in matrices if row.asked_sparsity is not None]
        zeros = sum(row.zeros for row in pruned)
        blockwise = 0.0
        for group in {row.group for row in pruned}:
            members = [row for row in pruned if row.group == group and row.units]
            units = sum(row.units or 0 for row in members) or 1
            share = sum(row.pruned_units or 0 for row in members) / units
            blockwise += int(sum(row.numel for row in members) * share)
        return {
            "elementwise_over_matmul_gemm_conv": zeros / base,
            "elementwise_over_all": zeros / total,
            "blockwise_over_matmul_gemm_conv": blockwise / base,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the way back."""
        return {
            "modules": [asdict(row) for row in self.modules],
            "other_parameters": self.other_parameters,
            "size_bytes": self.size_bytes,
            "sparsity_over_steps": [list(point) for point in self.sparsity_over_steps],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompressionReport:
        """Read what `to_dict` wrote.

        Raises:
            ArtifactError: A key is missing or unknown.
        """
        try:
            rows = tuple(_read_row(row) for row in data["modules"])
            points = tuple((operator.index(step), float(share)) for step, share in data.get("sparsity_over_steps", ()))
            return cls(rows, operator.index(data["other_parameters"]), operator.index(data["size_bytes"]), points)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            message = f"The compression report is damaged: {error!r}. Save the model again to have it written anew."
            raise ArtifactError(message) from error

    def findings(self) -> list[Finding]:
        """What was asked, to measure it again on another copy of the model."""
        return [
            Finding(row.name, row.pattern, row.asked_sparsity, row.group, row.units, row.pruned_units, row.scheme, note)
            for row in self.modules
            for note in (row.notes or (None,))
        ]

    def __str__(self) -> str:
        """An aligned table that a log file can hold, notes and totals below it."""
        return report_view.as_text(self)

    def __rich__(self) -> Group:
        """The same for ``rich``'s ``print``, folded to the width of the screen."""
        return report_view.as_rich(self)

    def html(self) -> str:
        """The same as a page for a browser, with a bar for each pruned module and sparsity over steps."""
        from inc_torch.core.report_page import as_page

        return as_page(self)

    def save_html(self, path: str | PathLike[str]) -> None:
        """Write `html` to a file."""
        write_text(Path(path), self.html())

    def markdown(self) -> str:
        """The same as a Markdown table, for model cards."""
        return report_view.as_markdown(self)


def _measure_module(name: str, module: nn.Module, weights: list[torch.Tensor]) -> ModuleReport:
    bits = weights[0].element_size() * 8
    if isinstance(module, _PackedWeight):
        weights, bits = [module.signed_codes()], module.code_bits
    numel = sum(weight.numel() for weight in weights)
    return ModuleReport(
        name=name,
        kind=plain_class(type(module)).__name__,
        shape=tuple(weights[0].shape) if stored_weight(module) is not None else (numel,),
        bits=bits,
        zeros=numel - sum(int(torch.count_nonzero(whole(weight.detach()))) for weight in weights),
    )


def _read_row(row: object) -> ModuleReport:
    """Make a row of plain values; a ``TypeError`` or ``KeyError`` tells what is wrong with it."""
    if not isinstance(row, Mapping):
        message = f"a module is {row!r}, expected a dict"
        raise TypeError(message)
    if unknown := set(row) - {entry.name for entry in fields(ModuleReport)}:
        message = f"The compression report has unknown keys {sorted(unknown)}; it may come from a newer version."
        raise ArtifactError(message)
    for name, kind in _ROW_TYPES.items():
        if not isinstance(row.get(name), kind):
            message = f"{name} of module {row['name']!r} is {row.get(name)!r}"
            raise TypeError(message)
    shape, notes = tuple(map(operator.index, row["shape"])), tuple(map(str, row.get("notes", ())))
    return ModuleReport(**{**row, "shape": shape, "notes": notes})


def _merge(row: ModuleReport, findings: list[Finding]) -> ModuleReport:
    """Add what was asked to what was measured; of several findings the first that says something counts."""
    return replace(
        row,
        pattern=_first(finding.pattern for finding in findings),
        asked_sparsity=_first(finding.sparsity for finding in findings),
        group=_first(finding.group for finding in findings),
        units=_first(finding.units for finding in findings),
        pruned_units=_first(finding.pruned_units for finding in findings),
        scheme=_first(finding.scheme for finding in findings),
        notes=tuple(dict.fromkeys(finding.note for finding in findings if finding.note)),
    )


def _first(values: Iterable[Value | None]) -> Value | None:
    return next((value for value in values if value is not None), None)
