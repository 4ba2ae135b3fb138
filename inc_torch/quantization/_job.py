"""One model on its way from float to int8: prepared once, calibrated once, made by any recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, final

import torch
from torch import nn

from inc_torch.callbacks import left_to_bfloat16
from inc_torch.config import PostTrainingQuantConfig
from inc_torch.core.batches import Inputs, count_samples, run, split
from inc_torch.core.borrowing import Snapshot, borrowing_copy, own_parameters_
from inc_torch.core.errors import CalibrationError, ModelError
from inc_torch.core.modes import without_compiling
from inc_torch.core.progress import with_progress
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.core.sharding import held
from inc_torch.core.streaming import attached_weights
from inc_torch.export import adorn, attach_report, attached_report
from inc_torch.inference import run_graph_fused
from inc_torch.quantization._by_data import quantize_weights_by_data, samples_wanted
from inc_torch.quantization._on_ipex import OnIpex
from inc_torch.quantizers import (
    LEFT_BY_SEARCH,
    Calibration,
    FloatType,
    GraphStage,
    Prepared,
    Treatment,
    calibrate,
    convert_calibrated,
    decide,
    fake_quant_modules,
    open_to_search,
    prepare_fake_quant,
    quantize_weights,
    realise,
    trace_flow,
    treat,
    ungraft,
)
from inc_torch.tuner import QuantizedOperations, spec_with
from inc_torch.tuning import Recipe, Space

__all__ = ["Job"]

_KEPT_SAMPLES = 32
"""Samples that are kept to run a model on again, where a recipe or a measurement has to."""

_WORDS = {
    False: ("an int8", "try the recipe smooth_quant or more calibration data"),
    True: ("a weight_only", "give weights more bits or smaller groups"),
}
"""By whether weights alone are quantized: a word for the model, and what may make it better."""


@final
class Job:
    """A prepared model, what calibration saw, and the way to finished ones.

    ::

        prepare ─► calibrate ─┬─► candidate(recipe)*  copies, to be measured by a search
                              └─► finished(recipe)    the model itself; the job is over

    Args:
        source: The float model.
        config: What to do.
        inplace: Change the model itself instead of a copy.
        for_search: Many candidates will be made, not one model.

    Attributes:
        model: Prepared: computes in float until it is finished.
        spec: What the configuration asks for.
        reference: The float model.
        kind: A word for the models that are made.
        remedy: What may make them better, as a part of a sentence.
    """

    def __init__(self, source: nn.Module, config: PostTrainingQuantConfig, *, inplace: bool, for_search: bool) -> None:
        self.spec = config.to_spec()
        self.reference = source
        self.kind, self.remedy = _WORDS[config.is_weight_only]
        self._kept: list[tuple[Inputs, object]] = []
        self._source, self._inplace, self._for_search = source, inplace, for_search
        self._original = borrowing_copy(source) if inplace and for_search else source
        self._weight_only = config.is_weight_only
        self._with_bfloat16 = "bf16" not in config.excluded_precisions
        self._before = Snapshot(source) if inplace and not self._weight_only else None
        self._sizes = tuple(dict.fromkeys(config.calibration_sampling_size))
        self._calibrations: dict[int | None, Calibration] = {None: Calibration()}
        self._rerun: Callable[[nn.Module], object] = self._run_kept
        self.model = source if inplace else borrowing_copy(source)
        self._ipex = OnIpex(source, config) if config.backend == "ipex" else None
        self._stage = GraphStage() if config.as_graph else None
        if self._ipex is not None:
            self.spec = replace(self.spec, quant=self._ipex.layers_spec)
        prepare = decide if self._weight_only else prepare_fake_quant
        prepare = prepare if self._stage is None else self._stage.prepare
        self._decisions = prepare(self.model, self.spec.quant)
        if self._ipex is not None:
            self._decisions = self._ipex.explained(self._decisions, source)
        if not self._weight_only:
            self.model.eval()
        self._observing = [name for name, module in fake_quant_modules(self.model) if module.is_static]
        self._samples = (
            samples_wanted(self.spec.quant, self.model, self._decisions, self._sizes[0]) if self._weight_only else 0
        )
        self._train: Callable[[nn.Module], object] | None = None
        self._batches: list[Any] = []

    def undo(self) -> None:
        """Make a model that was to change in place what it was, unless its weights are int8 already."""
        if self._before is not None:
            ungraft(self.model)
            self._before.restore_()

    @cached_property
    def _operations(self) -> QuantizedOperations:
        smoothing = self.spec.smoothing
        alphas = smoothing.alpha if smoothing is not None and isinstance(smoothing.alpha, tuple) else ()
        calibration = next(iter(self._calibrations.values()))
        decisions, dynamic = open_to_search(self.model, self.spec, calibration, self._decisions)
        operations = QuantizedOperations.of(
            self._original,
            decisions,
            spec_with(self.spec.quant, dynamic),
            with_dynamic=self.spec.dynamic_where_unseen,
            with_bfloat16=self._with_bfloat16,
            samples=[size for size in self._calibrations if size is not None],
            alphas=alphas,
        )
        return operations if self._ipex is None else self._ipex.opened(operations)

    @property
    def space(self) -> Space:
        """What a search may choose; after calibration."""
        return self._operations.space

    def labelled_batches(self, most: int) -> list[tuple[Inputs, object]]:
        """The first batches of calibration, with their labels; none if they were not seen."""
        return self._kept[:most]

    def require_data(self, dataloader: Iterable[Any] | None, function: Callable[[nn.Module], object] | None) -> None:
        """Refuse to begin where ranges have to be known and there is nothing to know them from."""
        if self._observing and dataloader is None and function is None and not self.spec.dynamic_where_unseen:
            message = (
                f"Static quantization of {len(self._observing)} modules, such as {self._observing[0]!r}, needs the "
                "ranges of their inputs: expected a calib_dataloader or a calib_func, got neither. Without data: "
                "approach='dynamic'."
            )
            raise CalibrationError(message)

        if self._samples and dataloader is None:
            message = (
                "The algorithms GPTQ, AWQ and TEQ round weights for the inputs that they see: expected a "
                "calib_dataloader, got none. Without data: 'algorithm': 'RTN'."
            )
            raise CalibrationError(message)

    def require_finite_weights(self) -> None:
        """Refuse to begin where a weight has no codes."""
        for name, module in fake_quant_modules(self.model):
            if not module.has_weight:
                continue
            weight = held(module.get_parameter("weight")).detach()
            if weight.numel() and not torch.stack(torch.aminmax(weight)).isfinite().all():
                rule = {name: {"weight": {"dtype": "fp32"}}}
                message = (
                    f"The weight of module {name!r} holds NaN or infinity: expected finite values. Load a model that "
                    f"is sound, or leave the module in float: op_name_dict={rule}."
                )
                raise ModelError(message)

    def calibrate(self, dataloader: Iterable[Any] | None, function: Callable[[nn.Module], object] | None) -> None:
        """Run the data through the prepared model, once; nothing is done where no range has to be known.

        Args:
            dataloader: Batches.
            function: Runs the model on data of its own; sizes mean nothing then. With TEQ it trains the model.
        """
        if function is not None:
            self._rerun = self._train = function
        if self._samples and dataloader is not None:
            self._batches = _first_samples(dataloader, self._samples, self.model)
            dataloader = self._batches
        if not self._observing or (dataloader is None and function is None):
            self._keep_first(dataloader or ())
            return
        with torch.no_grad(), without_compiling():
            if function is not None:
                self._calibrations = {None: self._calibrated(partial(function, self.model))}
                if self._ipex is not None:
                    self._ipex.run_function(self.model, function)
            elif dataloader is not None:
                self._calibrations = self._calibrated_by_size(dataloader)
            if self._ipex is not None:
                self._ipex.require_rules_match()
            first = next(iter(self._calibrations.values()))
            if self.spec.smoothing is not None and self.spec.smoothing.folding and first.inputs:
                flow = trace_flow(self.model, self._rerun)
                for calibration in self._calibrations.values():
                    calibration.flow = flow

    def _keep_first(self, dataloader: Iterable[Any]) -> None:
        """Keep what a search may measure on, where nothing has to be calibrated."""
        batches = iter(dataloader) if self._for_search else iter(())
        seen = 0
        while seen < _KEPT_SAMPLES and (batch := next(batches, None)) is not None:
            inputs, label = split(batch, self.model)
            self._kept.append((inputs, label))
            seen += count_samples(inputs)

    def _calibrated(self, feed: Callable[[], object]) -> Calibration:
        return calibrate(self.model, feed, keep=self.spec.kept_samples)

    def _calibrated_by_size(self, dataloader: Iterable[Any]) -> dict[int | None, Calibration]:
        """One pass over the data; what was seen up to each size, in the order of the configuration."""
        sizes = self._sizes if self._for_search else self._sizes[:1]
        batches, seen = _Counted(with_progress(dataloader, "Calibrating")), 0
        so_far, by_size = Calibration(), {}
        for size in sorted(sizes):
            before = seen

            def feed(size: int = size) -> None:
                nonlocal seen
                seen = self._feed(batches, seen, size)

            so_far = so_far.continued(self._calibrated(feed))
            if self._ipex is not None:
                self._ipex.mark(size)
            if seen > before:
                by_size[size] = so_far
        if not seen:
            given = f"{batches.count} batches without a sample" if batches.count else "no batch"
            message = (
                f"calib_dataloader yielded {given}: expected at least one sample. A generator can be used only once; "
                "give a list or a DataLoader."
            )
            raise CalibrationError(message)
        return {size: by_size[size] for size in sizes if size in by_size}

    def _feed(self, batches: Iterator[Any], seen: int, size: int) -> int:
        """Run batches until ``size`` samples went through in all; returns how many did."""
        keeps = self._for_search or self.spec.smoothing is not None
        while seen < size and (batch := next(batches, None)) is not None:
            inputs, label = split(batch, self.model)
            if keeps and seen < _KEPT_SAMPLES:
                self._kept.append((inputs, label))
            run(self.model, inputs)
            if self._ipex is not None:
                self._ipex.run(inputs)
            seen += count_samples(inputs)
        return seen

    def _run_kept(self, model: nn.Module) -> None:
        for inputs, _ in self._kept:
            run(model, inputs)

    def candidate(self, recipe: Recipe) -> nn.Module:
        """A copy of the model as `finished` would return it, without a report; the job goes on."""
        model = self.watched(recipe)
        self._run_fast(model, recipe)
        return model

    def _run_fast(self, model: nn.Module, recipe: Recipe | None) -> None:
        """Let a converted model run on the kernels of its backend."""
        if self._ipex is None:
            run_graph_fused(model)
            return
        samples = next(iter(self._calibrations)) if recipe is None else recipe.samples
        treatments = {} if recipe is None else self._operations.treatments_of(recipe)
        self._ipex.deploy(model, samples, treatments)

    def watched(self, recipe: Recipe) -> nn.Module:
        """The same, but its modules are called one by one, so that hooks see them all."""
        model = borrowing_copy(self.model)
        self._made(model, recipe)
        return model

    def keep(self, recipe: Recipe) -> None:
        """Nothing: the best model is made again."""

    def finished(self, recipe: Recipe | None = None) -> nn.Module:
        """The int8 model, with its report; the job is over.

        Args:
            recipe: What a search decided; None is what the configuration says.
        """
        earlier = attached_report(self.model)
        decisions = self._made(self.model, recipe)
        adorn(self.model)
        self._run_fast(self.model, recipe)
        findings = [Finding(name, scheme=made.scheme, note=made.reason) for name, made in decisions.items()]
        before, curve = ((), ()) if earlier is None else (earlier.findings(), earlier.sparsity_over_steps)
        attach_report(self.model, CompressionReport.measure(self.model, [*before, *findings], curve))
        return self.model

    def _made(self, model: nn.Module, recipe: Recipe | None) -> dict[str, Prepared]:
        """Make int8 of a prepared model, in place."""
        treatments = {} if recipe is None else self._operations.treatments_of(recipe)
        if self._weight_only:
            decisions = self._rounded(model, treatments)
        else:
            decisions = self._converted(model, recipe, treatments)
        if self._stage is not None:
            decisions = self._stage.noted(model, decisions)
        stored = attached_weights(model)
        if stored is not None:
            stored.materialise_(model)
        if not (model is self.model and self._inplace):
            own_parameters_(model, self._source)
        decided = left_to_bfloat16(model, decisions, unasked=self.spec.bfloat16 and self._ipex is None)
        in_float = {name for name, treatment in treatments.items() if isinstance(treatment, FloatType)}
        return {
            name: made._replace(reason=LEFT_BY_SEARCH) if name in in_float else made for name, made in decided.items()
        }

    def _converted(
        self, model: nn.Module, recipe: Recipe | None, treatments: Mapping[str, Treatment]
    ) -> dict[str, Prepared]:
        samples = next(iter(self._calibrations)) if recipe is None else recipe.samples
        alpha = None if recipe is None else recipe.alpha
        decided = treat(model, self._decisions, treatments)
        with torch.no_grad(), without_compiling():
            decided = realise(model, self.spec, self._calibrations[samples], decided, self._rerun, alpha)
        if model is self.model:
            self._before = None  # it holds every float weight
        if any(fake_quant_modules(model)):
            convert_calibrated(model)
        else:
            ungraft(model)
        return decided

    def _rounded(self, model: nn.Module, treatments: Mapping[str, Treatment]) -> dict[str, Prepared]:
        in_float = {name: kind for name, kind in treatments.items() if isinstance(kind, FloatType)}
        if treatments and len(in_float) == len(treatments):
            return self._decisions | {name: Prepared(None, LEFT_BY_SEARCH, kind) for name, kind in in_float.items()}
        spec = spec_with(self.spec.quant, treatments)
        return (
            quantize_weights_by_data(model, spec, self._batches, self._train)
            if self._samples
            else quantize_weights(model, spec)
        )


def _first_samples(dataloader: Iterable[Any], most: int, model: nn.Module) -> list[Any]:
    """The first batches, until they hold so many samples.

    Raises:
        CalibrationError: There is none.
    """
    kept: list[Any] = []
    seen = 0
    for batch in dataloader:
        kept.append(batch)
        seen += count_samples(split(batch, model)[0])
        if seen >= most:
            break
    if not seen:
        message = "calib_dataloader yielded no sample: expected at least one, to see what weights are used for."
        raise CalibrationError(message)
    return kept


@final
class _Counted(Iterator[Any]):
    """Batches, and how many were taken."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.count = 0
        self._batches = iter(batches)

    def __next__(self) -> Any:  # noqa: ANN401  any batch
        batch = next(self._batches)
        self.count += 1
        return batch
