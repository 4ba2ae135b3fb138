"""Where a script trains: its optimizer steps, and the loops around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

import libcst as cst

from inc_torch.migrate._source import Source, walk

__all__ = ["Step", "Training", "trainings"]

AnyLoop = cst.For | cst.While
_LOOPS: Final = (cst.For, cst.While)


@final
@dataclass(frozen=True, slots=True)
class Step:
    """An optimizer step.

    Attributes:
        call: ``optimizer.step()``, or ``scaler.step(optimizer)``.
        has_closure: Whether the gradients are computed inside of it.
        accumulator: The accelerator whose ``accumulate`` is around it, as it stands in the script; else None.
    """

    call: cst.Call
    has_closure: bool
    accumulator: str | None


@final
@dataclass(frozen=True, slots=True)
class Training:
    """A place that trains: one loop over batches, or the body of a function that another loop calls.

    Attributes:
        function: The function that it stands in, or the module.
        steps: Its optimizer steps.
        batches: The loop over batches; None if it is not in this function.
        whole: The outermost loop, over epochs if there is one; None like ``batches``.
    """

    function: cst.FunctionDef | cst.Lambda | cst.Module
    steps: tuple[Step, ...]
    batches: AnyLoop | None
    whole: AnyLoop | None

    @property
    def place(self) -> cst.CSTNode:
        """What the steps stand in."""
        return self.function if self.batches is None else self.batches


def trainings(source: Source) -> list[Training]:
    """The places of a script that go backward and step an optimizer, in the order of the text."""
    found: dict[int, list[Step]] = {}
    places: dict[int, tuple[cst.FunctionDef | cst.Lambda | cst.Module, list[AnyLoop]]] = {}
    for step in _steps(source):
        function = source.function(step.call)
        loops = [
            above
            for above in source.around(step.call)
            if isinstance(above, _LOOPS) and source.function(above) is function
        ]
        place: cst.CSTNode = loops[0] if loops else function
        if not isinstance(place, cst.Module) and _goes_backward(place):
            found.setdefault(id(place), []).append(step)
            places[id(place)] = (function, loops)
    return [
        Training(function, tuple(found[key]), loops[0] if loops else None, loops[-1] if loops else None)
        for key, (function, loops) in places.items()
    ]


def _steps(source: Source) -> Iterator[Step]:
    own = _optimizers(source)
    for call in source.all(cst.Call):
        if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "step":
            continue
        receiver = source.shown(call.func.value)
        if _is_optimizer(receiver, own):
            yield Step(call, bool(call.args), _accumulator(source, call))
        elif call.args and _is_optimizer(source.shown(call.args[0].value), own):
            yield Step(call, has_closure=len(call.args) > 1, accumulator=_accumulator(source, call))


def _optimizers(source: Source) -> set[str]:
    """Names that are assigned an optimizer of torch."""
    return {
        source.shown(target.target)
        for assigned in source.all(cst.Assign)
        for target in assigned.targets
        if isinstance(assigned.value, cst.Call) and _is_of_torch(source, assigned.value.func)
    }


def _is_of_torch(source: Source, function: cst.BaseExpression) -> bool:
    origins = source.origins(function)
    return any(origin.startswith("torch.optim.") and "lr_scheduler" not in origin for origin in origins)


def _is_optimizer(name: str, own: set[str]) -> bool:
    last = name.rpartition(".")[2].lower()
    return name in own or ("sched" not in last and ("optim" in last or last == "opt"))


def _goes_backward(place: cst.CSTNode) -> bool:
    return any(
        isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute) and node.func.attr.value == "backward"
        for node in walk(place)
    )


def _accumulator(source: Source, call: cst.Call) -> str | None:
    for above in source.around(call):
        if not isinstance(above, cst.With):
            continue
        for item in above.items:
            function = item.item.func if isinstance(item.item, cst.Call) else None
            if isinstance(function, cst.Attribute) and function.attr.value == "accumulate":
                return source.shown(function.value)
    return None
