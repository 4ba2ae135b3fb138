"""A float model, and the way to converted ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, final

import torch
from torch import nn

from inc_torch.config import MixedPrecisionConfig
from inc_torch.core.batches import Inputs, one_call
from inc_torch.core.borrowing import borrowing_copy, own_parameters_
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.core.sharding import plain_class, require_unshardable
from inc_torch.export import adorn, attach_report, attached_report
from inc_torch.export._proof import precision_findings
from inc_torch.inference import fuse_half_precision
from inc_torch.ipex import deploy_bfloat16
from inc_torch.mix_precision._rules import check_rules
from inc_torch.precision import PrecisionSpec, compute_regions, operations_of, regions_of, ties_of
from inc_torch.quantizers import LEFT_BY_SEARCH, describe_int8, fake_quant_modules
from inc_torch.tuning import Choice, Mode, Operation, Recipe, Space

__all__ = ["Job"]

_MODES: Final = {"bf16": Mode.BFLOAT16, "fp16": Mode.FLOAT16, "fp32": Mode.FLOAT32}
_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}
_ASKED, _TIED = "as the configuration asks", "it shares its weight with what stays in float"


@final
class Job:
    """What may be chosen for a model, and models made of such choices.

    ::

        candidate(recipe)*   copies, to be measured by a search
        finished(recipe)     the copy, or the model itself, that is returned; the job is over

    Args:
        source: The float model.
        config: What to do.
        word: ``"bf16"`` or ``"fp16"``: the one half precision that is used; None if nothing is converted.
        inplace: Change the model itself instead of a copy.

    Attributes:
        reference: The float model.
        kind: A word for the models that are made.
        remedy: What may make them better, as a part of a sentence.
        space: What a search may choose.
        watched: None: no strategy of mixed precision looks at modules.
    """

    def __init__(self, source: nn.Module, config: MixedPrecisionConfig, word: str | None, *, inplace: bool) -> None:
        require_unshardable(source)
        spec = config.to_spec()
        self._on_extension = config.backend == "ipex"
        self._example = one_call(config.example_inputs, source) if self._on_extension else None
        self.reference, self._inplace = source, inplace
        self.kind, self.remedy = f"a {word}", "allow more max_trials"
        self.watched = None
        self._dtype = _DTYPES[word or "bf16"]
        self._stay = self._asked_to_stay(spec)
        self._notes: dict[str, str] = dict.fromkeys(self._stay, _ASKED)
        self._partners: dict[str, list[str]] = {}
        self.space = Space(tuple(self._operations(spec, word)))

    def _asked_to_stay(self, spec: PrecisionSpec) -> list[str]:
        """Modules that a rule keeps in float, of whatever class."""
        kinds = {name: plain_class(type(module)).__name__ for name, module in self.reference.named_modules()}
        check_rules(spec.rules, kinds)
        return [name for name, kind in kinds.items() if spec.words_of(name, kind) == ("fp32",) and spec.precisions]

    def _operations(self, spec: PrecisionSpec, word: str | None) -> Iterator[Operation]:
        quantized = {id(self.reference.get_submodule(name)) for name in describe_int8(self.reference)}
        quantized.update(id(module) for _, module in fake_quant_modules(self.reference))
        found = operations_of(self.reference, lambda module: "it is quantized" if id(module) in quantized else None)
        for name, reason in found.items():
            if reason is not None:
                self._stay.append(name)
                self._notes.setdefault(name, reason)
        able = [name for name, reason in found.items() if reason is None]
        for group in ties_of(self.reference, able):
            name = group[0]
            kind = plain_class(type(self.reference.get_submodule(name))).__name__
            words = spec.words_of(name, kind)
            asked = [other for other in group if other in self._notes]
            for other in group if asked else []:
                self._stay.append(other)
                self._notes.setdefault(other, _TIED)
            choices = tuple(Choice(each, _MODES[each]) for each in words if each in (word, "fp32"))
            if not asked and word in words:
                self._partners[name] = group
                yield Operation(name, kind, choices)

    def labelled_batches(self, most: int) -> list[tuple[Inputs, object]]:  # noqa: ARG002  a protocol's
        """None: nothing is calibrated."""
        return []

    def candidate(self, recipe: Recipe) -> nn.Module:
        """A copy of the model as `finished` would return it, without a report; the job goes on."""
        model = self._copy()
        self._convert(model, recipe)
        return model

    def keep(self, recipe: Recipe) -> None:
        """Nothing: the best model is made again."""

    def finished(self, recipe: Recipe | None = None) -> nn.Module:
        """The converted model, with its report; the job is over.

        Args:
            recipe: What a search decided; None is everything in half precision that may be.
        """
        if self._inplace and self._on_extension:
            self._convert(self._copy(), recipe)  # what cannot be traced fails before the model itself is changed
        model = self.reference if self._inplace else self._copy()
        earlier = attached_report(self.reference)
        notes = self._convert(model, recipe)
        adorn(model)
        findings = [Finding(name, note=reason) for name, reason in notes.items() if _has_matrix(model, name)]
        before, curve = ((), ()) if earlier is None else (earlier.findings(), earlier.sparsity_over_steps)
        attach_report(model, CompressionReport.measure(model, [*before, *findings, *precision_findings(model)], curve))
        return model

    def _copy(self) -> nn.Module:
        model = borrowing_copy(self.reference)
        own_parameters_(model, self.reference)
        return model

    def _convert(self, model: nn.Module, recipe: Recipe | None) -> Mapping[str, str]:
        """Convert a model in place; returns what stays in float, with the reason."""
        model.eval()
        chosen = self.space.chosen(self.space.default if recipe is None else recipe)
        low, notes = [], dict(self._notes)
        for operation, choice in chosen:
            for name in self._partners[operation.name]:
                if choice.mode is Mode.FLOAT32:
                    notes[name] = LEFT_BY_SEARCH
                else:
                    low.append(name)
        stay = [*self._stay, *(name for name in notes if name not in self._stay)]
        regions = regions_of(model, low, stay)
        compute_regions(model, regions, self._dtype)
        if not self._on_extension:
            fuse_half_precision(model)
        elif regions:
            deploy_bfloat16(model, self._example)
        inside = {id(inner) for name in regions for inner in model.get_submodule(name).modules()}
        return notes | {name: _TIED for name in low if id(model.get_submodule(name)) not in inside}


def _has_matrix(model: nn.Module, name: str) -> bool:
    own = model.get_submodule(name)._parameters.values()
    return any(parameter is not None and parameter.dim() > 1 for parameter in own)
