"""Quantization-aware training in a training loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, final

from torch import nn

from inc_torch.callbacks._bfloat16 import left_to_bfloat16
from inc_torch.core.callback import Callback
from inc_torch.core.errors import CalibrationError, HookOrderError, InexactWarning, LoopWarning, StateError
from inc_torch.core.hooks import Phase, Progress, Stage
from inc_torch.core.report import Finding
from inc_torch.core.sharding import plain_class, require_unshardable
from inc_torch.core.state import check_keys
from inc_torch.core.user_warning import warn_user
from inc_torch.inference import run_graph_fused
from inc_torch.quantizers import (
    GraphStage,
    Prepared,
    QuantSpec,
    batch_norms,
    convert,
    disable_fake_quant,
    enable_fake_quant,
    fake_quant_modules,
    fold_ranges,
    freeze_batch_norm,
    is_graph,
    load_observer_state,
    observer_state,
    prepare_fake_quant,
    rounding_share,
    stop_observing,
    thaw_batch_norm,
)

if TYPE_CHECKING:
    from inc_torch.callbacks._on_extension import SeenCalls

__all__ = ["QuantizationAwareTrainingCallbacks"]


@final
class QuantizationAwareTrainingCallbacks(Callback):
    """Trains a model under int8 rounding, and converts it at the end.

    Modules are exchanged when the callback is bound, before the optimizer exists; they compute as in float until step
    ``start_step`` of the training begins. From then on inputs and weights are rounded and the extremes of inputs noted.
    Before each optimizer step these enter the ranges, for all modules, micro-batches and ranks at once; inputs are
    rounded by the ranges of the steps before, so those of the first rounded step are not. ``on_train_end`` makes int8
    modules of what was learnt.

    What rounds and what is frozen follows from the number of optimizer steps alone, so a resumed run, accumulation of
    gradients and many processes need nothing more to agree.

    Args:
        spec: What to quantize how.
        start_step: Optimizer steps that compute in float, before the first that rounds.
        freeze_observers_step: After so many optimizer steps ranges of inputs stay as they are; None is never.
        freeze_batch_norm_step: After so many optimizer steps batch normalization uses and keeps its running statistics
            until the end of training; None is never.
        as_graph: A model that is one graph is trained as such, see `GraphStage`.
        on_extension: The int8 model runs on the extension of Intel, see `inc_torch.ipex`.
    """

    stage = Stage.REWRITE
    state_version = 3
    # Ranges are folded, and the next step prepared, before the optimizer steps: no forward comes between.
    exact_when_late = frozenset({"on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step"})

    def __init__(
        self,
        spec: QuantSpec,
        *,
        start_step: int = 0,
        freeze_observers_step: int | None = None,
        freeze_batch_norm_step: int | None = None,
        as_graph: bool = False,
        on_extension: bool = False,
    ) -> None:
        self.spec = spec
        self.start_step = start_step
        self.freeze_observers_step = freeze_observers_step
        self.freeze_batch_norm_step = freeze_batch_norm_step
        self._decisions: dict[str, Prepared] = {}
        self._as_graph = as_graph
        self._stage: GraphStage | None = None
        self._calls = _calls_for_extension() if on_extension else None
        self._is_converted = False
        self._is_rounding: bool | None = None
        self._has_fixed_ranges: bool | None = None
        self._has_frozen_statistics = False

    def __repr__(self) -> str:
        return "Quantization Aware Training Callbacks"

    @property
    def decisions(self) -> Mapping[str, Prepared]:
        """What becomes of each module; after `prepare`."""
        return self._decisions

    def prepare(self, model: nn.Module, progress: Progress) -> None:
        super().prepare(model, progress)
        if self._calls is not None:
            self._calls.require_extension()
        if self._as_graph:
            self._stage = GraphStage(progress.ranks)
            self._decisions = self._stage.prepare(model, self.spec)
        else:
            self._decisions = prepare_fake_quant(model, self.spec)
        if self.freeze_batch_norm_step is not None:
            _warn_of_what_cannot_freeze(model)

    def findings(self) -> Iterable[Finding]:
        stage = self._stage
        decisions = self._decisions if stage is None else stage.noted(self.model, self._decisions)
        for name, decision in decisions.items():
            yield Finding(name, scheme=decision.scheme, note=decision.reason)

    def metrics(self) -> dict[str, float]:
        """``fake_quant``: the share of prepared modules whose weights and inputs are rounded in a forward.

        0 before ``start_step``, and for all modules with inputs until the first step has given them ranges; 1 from then
        on, unless a module is never run. Nothing after conversion, when all of them compute in int8.
        """
        return {} if self._is_converted else {"fake_quant": rounding_share(self.model)}

    def phases(self) -> Iterable[Phase]:
        yield Phase("quantization", "int8 rounding", self.start_step)
        if self.freeze_observers_step is not None:
            yield Phase("quantization", "ranges of inputs frozen", self.freeze_observers_step)
        if self.freeze_batch_norm_step is not None:
            yield Phase("quantization", "batch norm frozen", self.freeze_batch_norm_step)

    def has_reached_goal(self) -> bool:
        """Whether a step was rounded; only a start later than the first step takes its time."""
        return not self.start_step or self.progress.step > self.start_step

    def on_train_begin(self, dataloader: object = None) -> None:
        if self._is_converted:
            message = "on_train_begin was called after on_train_end: the model is int8 and can no longer be trained."
            raise HookOrderError(message)
        require_unshardable(self.model)  # now, not at the end of the training
        if self._stage is not None:
            self._stage.begin(self.model)
        if self._calls is not None:
            self._calls.watch(self.model)
        self._is_rounding = None
        self._enter(self.progress.step)

    def on_step_begin(self, batch_id: int) -> None:
        self._enter(self.progress.step)

    def on_before_optimizer_step(self) -> None:
        if not self.model.training:
            self._leave_evaluation()
        self._enter(self.progress.step)
        if self._is_rounding and not self._has_fixed_ranges:
            fold_ranges(self.model, self.progress.ranks)
        self._prepare_forwards(self.progress.step + 1)

    def on_after_optimizer_step(self) -> None:
        # Done before the step already, unless a state was loaded between the two.
        self._prepare_forwards(self.progress.step + 1)

    def on_train_end(self) -> None:
        if not self._is_converted:
            self._require_rounded_steps()
            self._enter(self.progress.step)
            convert(self.model, self.progress.ranks)
            thaw_batch_norm(self.model)
            self._decisions = left_to_bfloat16(self.model, self._decisions, unasked=False)
            if self._calls is None:
                run_graph_fused(self.model)
            else:
                self._calls.deploy(self.model)
            self._is_converted = True

    def let_go(self) -> None:
        if self._calls is not None:
            self._calls.let_go()

    def _leave_evaluation(self) -> None:
        """Do what INC does as training begins; here the loop has had its chance to do it."""
        self.model.train()
        message = (
            f"{plain_class(type(self.model)).__name__} was in evaluation mode while it was trained, where no range of "
            "an input is observed; it is in training mode now. Call model.train() before the loop."
        )
        warn_user(message, LoopWarning)

    def _enter(self, step: int) -> None:
        """Be in optimizer step number ``step``, from 0."""
        self._prepare_forwards(step)
        self._fix_ranges()

    def _prepare_forwards(self, step: int) -> None:
        """Make the forwards of optimizer step number ``step``, from 0, compute as they have to."""
        self._round(step)
        self._freeze_statistics(step)

    def _round(self, step: int) -> None:
        is_due = step >= self.start_step
        if is_due == self._is_rounding:
            return
        if is_due:
            enable_fake_quant(self.model, observe=True)
        else:
            stop_observing(self.model)
            disable_fake_quant(self.model)
        self._is_rounding, self._has_fixed_ranges = is_due, False

    def _fix_ranges(self) -> None:
        """Stop observing once the last step that counts is done, or observe again after an older state was loaded."""
        if not self._is_rounding:
            return
        is_due = self.freeze_observers_step is not None and self.progress.step >= self.freeze_observers_step
        if is_due == self._has_fixed_ranges:
            return
        if is_due:
            stop_observing(self.model)
        else:
            enable_fake_quant(self.model, observe=True)
        self._has_fixed_ranges = is_due

    def _freeze_statistics(self, step: int) -> None:
        is_due = self.freeze_batch_norm_step is not None and step >= self.freeze_batch_norm_step
        if is_due != self._has_frozen_statistics:
            (freeze_batch_norm if is_due else thaw_batch_norm)(self.model)
        self._has_frozen_statistics = is_due

    def _require_rounded_steps(self) -> None:
        """Refuse to make int8 what was never trained as such, or say so where the conversion needs nothing learnt."""
        if self.has_reached_goal():
            return
        fold_ranges(self.model, self.progress.ranks)  # of a step that was begun
        message = (
            f"QuantizationAwareTrainingConfig.start_step={self.start_step}: the training ended after "
            f"{self.progress.step} optimizer steps, before one of them was rounded"
        )
        way_out = "Train on for more steps than that before on_train_end, or give a smaller start_step."
        if any(module.needs_range for _, module in fake_quant_modules(self.model)):
            message = f"{message}, so no range of inputs is known and the model cannot become int8. {way_out}"
            raise CalibrationError(message)
        warn_user(f"{message}: the model becomes int8 without having learnt to be. {way_out}", InexactWarning)

    def state_dict(self) -> dict[str, Any]:
        """Ranges and what is to enter them; under distribution every rank has to call this and gets the same."""
        return {
            "observers": observer_state(self.model, self.progress.ranks),
            "is_converted": self._is_converted,
            "is_graph": is_graph(self.model),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_keys(repr(self), state, {"observers", "is_converted", "is_graph"})
        if state["is_converted"] != self._is_converted:
            saved, present = ("int8", "float") if state["is_converted"] else ("float", "int8")
            message = (
                f"The state of {self!r} was saved with a model in {saved}, but the model is in {present} now. "
                "Load it into a run that is as far: before on_train_end, or after."
            )
            raise StateError(message)
        self._follow_graph(bool(state["is_graph"]))
        load_observer_state(self.model, state["observers"])

    def _follow_graph(self, was_graph: bool) -> None:
        """Train as the run did that is resumed: its graph may have been given up at its first batch."""
        if was_graph == is_graph(self.model) or self._is_converted:
            return
        if was_graph or self._stage is None:
            message = (
                f"The state of {self!r} is of a model that was {'' if was_graph else 'not '}trained as a graph, and "
                f"{type(self.model).__name__} is {'not' if was_graph else ''} now. Prepare the model in the same way, "
                "before it is wrapped or hooks are added."
            )
            raise StateError(message)
        self._stage.give_up(self.model, "the run that is resumed was not")


def _calls_for_extension() -> SeenCalls:
    from inc_torch.callbacks._on_extension import SeenCalls  # which other trainings do not need

    return SeenCalls()


def _warn_of_what_cannot_freeze(model: nn.Module) -> None:
    found = batch_norms(model)
    others = [name for name, can_freeze in found.items() if not can_freeze]
    if not found:
        message = "freeze_batch_norm_step has no effect: the model has no batch normalization."
    elif others:
        message = (
            f"freeze_batch_norm_step leaves {', '.join(map(repr, others[:5]))} as it is: only modules of exactly a "
            "class of torch.nn are frozen, a subclass may do more. Put it into eval mode yourself."
        )
    else:
        return
    warn_user(message, InexactWarning)
