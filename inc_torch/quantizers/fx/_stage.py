"""The stage of whole graphs: from a float model to one that trains, or is calibrated, as a graph."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import nn

from inc_torch.core.errors import InexactWarning
from inc_torch.core.ranks import Ranks
from inc_torch.core.sharding import plain_class
from inc_torch.core.user_warning import warn_user
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule
from inc_torch.quantizers._prepare import Prepared, fake_quant_modules, prepare_fake_quant
from inc_torch.quantizers._snap import FakeQuantSnap
from inc_torch.quantizers._spec import FloatType, QuantSpec
from inc_torch.quantizers.fx._capture import Captured, Refused, capture
from inc_torch.quantizers.fx._graft import SNAPS, Graft, graft_of, original_forward
from inc_torch.quantizers.fx._patterns import GraphPlan, plan_graph
from inc_torch.quantizers.fx._subclasses import adopt_paddings, padding_convolutions
from inc_torch.quantizers.fx._verify import reason_against

__all__ = ["GraphStage", "is_of_hugging_face", "settle_snaps", "ungraft"]

logger = logging.getLogger("inc_torch.quantization")


@final
class GraphStage:
    """Quantizes one model as a whole graph where that is possible.

    Args:
        ranks: Who trains the model together: the graph is verified in the first forward in training mode, and used by
            all of them or by none. None if it is not trained: the graph is verified in the first forward at all.

    Attributes:
        reason: Why the model is quantized class by class instead, as a part of a sentence; None if it is not.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.reason: str | None = None
        self._ranks = ranks

    def prepare(self, model: nn.Module, spec: QuantSpec) -> dict[str, Prepared]:
        """Do what `prepare_fake_quant` does, and if ``model`` is one graph, let it compute by it.

        Raises:
            ModelError: See `prepare_fake_quant`.
            ConfigError: See `prepare_fake_quant`.
        """
        captured = self._captured(model, spec)
        decisions = prepare_fake_quant(model, spec)
        if captured is not None:
            _leave_lent_weights(model, captured, decisions)
            self._graft(model, captured)
        return decisions

    def _captured(self, model: nn.Module, spec: QuantSpec) -> Captured | None:
        reasons = {
            "it is a single layer": not model._modules,
            "its forward was replaced on the instance": "forward" in model.__dict__,
            "its weights are on the meta device": any(parameter.is_meta for parameter in model.parameters()),
            "from_pretrained of transformers could not rebuild its graph": is_of_hugging_face(model),
        }
        if reason := next((reason for reason, holds in reasons.items() if holds), None):
            self._give_up(model, reason)
            return None
        try:
            paddings = padding_convolutions(model, spec)
            captured = capture(model, paddings)
        except Refused as refusal:
            self._give_up(model, str(refusal))
            return None
        adopt_paddings(model, paddings)
        return captured

    def noted(self, model: nn.Module, decisions: Mapping[str, Prepared]) -> dict[str, Prepared]:
        """The decisions, with what the graph did to each module, or once why there is none."""
        noted = dict(decisions)
        quantized = [name for name, made in noted.items() if made.scheme is not None]
        if self.reason is not None:
            for name in quantized[:1]:
                noted[name] = _with_note(noted[name], f"quantized layer by layer, not as a graph: {self.reason}")
            return noted
        graft = graft_of(model)
        if graft is None:
            return noted
        for norm, layer in graft.plan.folds.items():
            if layer in noted and noted[layer].scheme is not None:
                noted[layer] = _with_note(noted[layer], f"{norm!r} is folded into it")
        for node, snapped in graft.plan.snaps.items():
            for name in (snapped.layer,) if snapped.layer is not None else snapped.readers[:1]:
                if name in noted:
                    noted[name] = _with_note(noted[name], f"{node!r} stays in int8")
        return noted

    def _give_up(self, model: nn.Module, reason: str) -> None:
        self.reason = reason
        name = plain_class(type(model)).__name__
        logger.info("%s is quantized layer by layer, not as a graph: %s.", name, reason)

    def _graft(self, model: nn.Module, captured: Captured) -> None:
        plan = plan_graph(captured.graph_of(model), model)
        called = {name for name, module in fake_quant_modules(model) if module.has_input_grid} & captured.leaves
        if not called:
            self._give_up(model, "none of the modules to quantize is called in its graph")
            return
        graft = Graft(captured, plan)
        graft.attach(model)
        _fold(model, plan)
        _place_snaps(model, plan)
        graft.check, graft.is_pending = self._check, True

    def begin(self, model: nn.Module) -> None:
        """Let the graph be verified outside of what `torch.compile` compiles; called when the training begins."""
        graft = graft_of(model)
        if graft is not None and graft.is_pending and "torch._dynamo" in sys.modules:
            graft.check = torch.compiler.disable(self._check)  # type: ignore[no-untyped-call]  # torch leaves it so

    def _check(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Verify the graph in the first forward; whether it is to be used in this one."""
        graft = graft_of(model)
        if graft is None or (self._ranks is not None and not model.training):
            return False
        reason = self._agreed(self._reason_in(model, graft, args, kwargs), model)
        graft.is_pending = False
        if reason is not None:
            self.give_up(model, reason)
        return reason is None

    def _agreed(self, reason: str | None, model: nn.Module) -> str | None:
        if self._ranks is None or self._ranks.count == 1:
            return reason
        device = next((parameter.device for parameter in model.parameters()), None)
        is_refused = self._ranks.maximum_(torch.tensor(float(reason is not None), device=device))
        return "it was refused in another process" if reason is None and is_refused else reason

    def _reason_in(self, model: nn.Module, graft: Graft, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        inputs = graft._inputs(args, kwargs)
        if inputs is None:
            return f"it is called with other arguments than {', '.join(graft.captured.inputs)}"
        try:
            again = capture(model, graft.captured.leaves)
        except Refused as refusal:  # such as hooks that came later
            return str(refusal)
        if again.digest != graft.captured.digest:
            return "its code or its modules changed after it was prepared"
        return reason_against(model, original_forward(model), graft.function(model), inputs)

    def give_up(self, model: nn.Module, reason: str) -> None:
        """Let ``model`` compute by its own forward from now on."""
        graft = graft_of(model)
        has_lost = graft is not None and bool(graft.plan.folds or graft.plan.snaps)
        ungraft(model)
        self._give_up(model, reason)
        if self._ranks is not None and has_lost:
            message = (
                f"{plain_class(type(model)).__name__} is trained layer by layer, not as a graph: {reason}. Batch "
                "normalization is not folded, and nothing stays in int8 between layers; "
                "QuantizationAwareTrainingConfig(graph='off') asks for that without this warning."
            )
            warn_user(message, InexactWarning)


def ungraft(model: nn.Module) -> None:
    """Let a model that is not int8 yet compute by its own forward again, without snaps and folded normalizations."""
    graft = graft_of(model)
    if graft is not None:
        graft.detach(model)


def settle_snaps(model: nn.Module) -> None:
    """Drop folds and snaps that have lost their neighbours, once it is clear which modules will be int8."""
    graft = graft_of(model)
    if graft is None:
        return
    plan = plan_graph(graft.captured.graph_of(model), model)
    holder = model.get_submodule(SNAPS) if SNAPS in model._modules else nn.Module()
    kept = {name: snapped for name, snapped in plan.snaps.items() if name in holder._modules}
    for name in [name for name in holder._modules if name not in kept]:
        del holder._modules[name]
    settled = GraphPlan(plan.folds, kept)
    for _, module in fake_quant_modules(model):
        module.share_range(None)
    for name, snapped in kept.items():
        snap = holder._modules[name]
        if isinstance(snap, FakeQuantSnap) and snap.scheme != snapped.scheme:
            snap.set_scheme(snapped.scheme)
        _share(model, snap, snapped.readers)
    graft.use(settled)


def is_of_hugging_face(model: nn.Module) -> bool:
    """Whether ``from_pretrained`` of transformers rebuilds it, which knows nothing of graphs."""
    return any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__)


def _leave_lent_weights(model: nn.Module, captured: Captured, decisions: dict[str, Prepared]) -> None:
    """Leave in float whose weight a function reads, as that of attention may, while the module itself is not called."""
    read = {str(node.target).rpartition(".")[0] for node in captured.graph_of(model).nodes if node.op == "get_attr"}
    for name, module in list(fake_quant_modules(model)):
        if name in read - captured.leaves:
            module.restore()
            decisions[name] = Prepared(None, "a function reads its weight, the layer is not called", FloatType.FLOAT32)


def _fold(model: nn.Module, plan: GraphPlan) -> None:
    for norm, layer in plan.folds.items():
        module = model.get_submodule(layer)
        if isinstance(module, FakeQuantModule):
            module.fold_norm(model.get_submodule(norm))


def _place_snaps(model: nn.Module, plan: GraphPlan) -> None:
    if not plan.snaps:
        return
    holder = nn.Module()
    holder.training = model.training
    model._modules[SNAPS] = holder
    for name, snapped in plan.snaps.items():
        snap = FakeQuantSnap.made(snapped.scheme)
        snap.training = model.training
        holder._modules[name] = snap
        _share(model, snap, snapped.readers)


def _share(model: nn.Module, snap: nn.Module | None, readers: tuple[str, ...]) -> None:
    for reader in readers:
        module = model.get_submodule(reader)
        if isinstance(module, FakeQuantModule) and isinstance(snap, FakeQuantSnap):
            module.share_range(snap)


def _with_note(made: Prepared, note: str) -> Prepared:
    return made._replace(reason=note if made.reason is None else f"{made.reason}; {note}")
