"""The plan of a run: the phases of all callbacks, and where they hinder each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from inc_torch.callbacks.pruning import PruningCallbacks
from inc_torch.callbacks.quantization import QuantizationAwareTrainingCallbacks
from inc_torch.core.callback import Callback
from inc_torch.core.plan import Plan

__all__ = ["plan_of"]


def plan_of(callbacks: Sequence[Callback], steps: int | None = None) -> Plan:
    """Put the phases of ``callbacks`` in order.

    Args:
        callbacks: Of one run.
        steps: Optimizer steps of the whole training, where known.
    """
    phases = [phase for callback in callbacks for phase in callback.phases()]
    return Plan.of(phases, steps, _hindrances(callbacks))


def _hindrances(callbacks: Sequence[Callback]) -> Iterator[str]:
    """What quantization learns of weights that are still being pruned."""
    pruners = [pruner for each in callbacks if isinstance(each, PruningCallbacks) for pruner in each.pruners]
    by_step = [pruner.spec for pruner in pruners if not (pruner.spec.locks_zeros or pruner.spec.counts_epochs)]
    last = max((spec.end for spec in by_step), default=0)
    for quantizer in callbacks:
        if not isinstance(quantizer, QuantizationAwareTrainingCallbacks) or not last:
            continue
        if quantizer.start_step < last:
            yield (
                f"Rounding begins at step {quantizer.start_step}, and masks change until step {last}: ranges are "
                "learnt of weights that are still being pruned. "
                f"QuantizationAwareTrainingConfig(start_step={last}) waits for the last masks."
            )
        frozen = {
            "freeze_observers_step": ("Ranges of inputs", quantizer.freeze_observers_step),
            "freeze_batch_norm_step": ("Statistics of batch normalization", quantizer.freeze_batch_norm_step),
        }
        for option, (what, step) in frozen.items():
            if step is not None and step <= last:
                yield (
                    f"{what} are frozen at step {step}, and masks change until step {last}: they are those of a model "
                    f"that is not pruned yet. Freeze them later: {option}={last + 1} or more."
                )
