"""Pruning during training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, final

from torch import nn

from inc_torch.core.callback import Callback
from inc_torch.core.errors import StateError
from inc_torch.core.hooks import Phase, Stage
from inc_torch.core.report import Finding
from inc_torch.core.state import check_keys
from inc_torch.pruners import Pruner, PrunerSpec

__all__ = ["PruningCallbacks"]


@final
class PruningCallbacks(Callback):
    """Scores before the optimizer step, masks after it, new masks at the start of a step.

    A pruned weight that comes back starts without momentum. What its momentum becomes while the weight is pruned has
    no effect, so it is cleared where it can have one: after the last optimizer step before masks may change, after
    each while an update waits for gradients, where a state is saved, and at the end. Optimizers of which it is not
    known that they move each value alone get clean momentum after each step.

    Args:
        specs: One pruner each.
        model: The model as it is before anything rewrites it; layers are chosen here.
    """

    stage: ClassVar[Stage] = Stage.MASK

    def __init__(self, specs: Sequence[PrunerSpec], model: nn.Module) -> None:
        self.pruners = [Pruner(spec, model, group) for group, spec in enumerate(specs)]
        self._history: list[tuple[int, float]] = []

    def __repr__(self) -> str:
        return "Pruning Callbacks"

    def tracked_parameters(self) -> Iterable[nn.Parameter]:
        for pruner in self.pruners:
            for layer in pruner.layers:
                yield pruner.weight(layer)  # type: ignore[misc]  # a Parameter unless a wrapper put its own tensor

    def findings(self) -> Iterable[Finding]:
        for pruner in self.pruners:
            yield from pruner.findings()

    def metrics(self) -> Mapping[str, float]:
        """``sparsity``, and with several pruners that of each as ``sparsity/<number>``.

        That of a pruner is its share of pruned units (of elements for N:M); over all, pruners count by their weights.
        """
        if len(self.pruners) == 1:
            return {"sparsity": self.pruners[0].sparsity}
        pruned = sum(pruner.sparsity * pruner.size for pruner in self.pruners)
        overall = pruned / sum(pruner.size for pruner in self.pruners)
        return {"sparsity": overall} | {f"sparsity/{pruner.group}": pruner.sparsity for pruner in self.pruners}

    def sparsity_over_steps(self) -> Sequence[tuple[int, float]]:
        return tuple(self._history)

    def phases(self) -> Iterable[Phase]:
        for pruner in self.pruners:
            yield from pruner.phases()

    def has_reached_goal(self) -> bool:
        """Whether the masks of all pruners have changed for the last time."""
        return all(pruner.is_finished for pruner in self.pruners)

    def state_dict(self) -> dict[str, Any]:
        if self.progress.has_unfinished_update:
            self.on_after_optimizer_step()
        # The run that goes on from here does not know its optimizers before they have stepped.
        self._clear_momentum()
        history = [list(point) for point in self._history]
        return {"pruners": [pruner.state_dict() for pruner in self.pruners], "history": history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_keys(repr(self), state, {"pruners", "history"})
        if len(state["pruners"]) != len(self.pruners):
            message = f"The saved state has {len(state['pruners'])} pruners; this run has {len(self.pruners)}."
            raise StateError(message)
        for pruner, saved in zip(self.pruners, state["pruners"], strict=True):
            pruner.load_state_dict(saved)
        self._history = [(int(step), float(share)) for step, share in state["history"]]

    def on_train_begin(self, dataloader: object = None) -> None:
        for pruner in self.pruners:
            pruner.bind(self.model, self.progress.ranks)
            pruner.mask_weights()

    def on_epoch_begin(self, epoch: int) -> None:
        for pruner in self.pruners:
            if pruner.spec.counts_epochs:
                self._clear_momentum_of(pruner)  # before weights may come back
                pruner.begin_step(epoch)

    def on_step_begin(self, batch_id: int) -> None:
        for pruner in self.pruners:
            pruner.begin_step(pruner.now(self.progress))

    def on_before_optimizer_step(self) -> None:
        for pruner in self.pruners:
            pruner.collect_scores()

    def on_after_optimizer_step(self) -> None:
        for pruner in self.pruners:
            pruner.regularize_weights()
            pruner.mask_weights()
            for optimizer in self.progress.optimizers:
                if pruner.needs_clean_momentum(optimizer, self.progress.step + 1):
                    pruner.mask_momentum(optimizer)
        self._note_sparsity()

    def _note_sparsity(self) -> None:
        sparsity = self.metrics()["sparsity"]
        if sparsity != (self._history[-1][1] if self._history else 0.0):
            self._history.append((self.progress.step, sparsity))

    def _clear_momentum(self) -> None:
        for pruner in self.pruners:
            self._clear_momentum_of(pruner)

    def _clear_momentum_of(self, pruner: Pruner) -> None:
        for optimizer in self.progress.optimizers:
            pruner.mask_momentum(optimizer)

    def on_train_end(self) -> None:
        for pruner in self.pruners:
            pruner.finish()
            pruner.mask_weights()
            pruner.warn_if_missed(self.progress)
        self._clear_momentum()
        self._note_sparsity()
