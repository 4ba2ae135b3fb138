"""Hooks that a training loop lacks: put in where one place is right, told where it is not known.

With a manager of 2.X a loop calls all hooks. A component of 1.X begins and ends the training itself, so that only the
two hooks around the optimizer step are the loop's.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Final, final

import libcst as cst

from inc_torch.migrate._handles import Handle, Handles, HookCall
from inc_torch.migrate._insertion import insert_after, insert_at_the_top, insert_before, is_alone
from inc_torch.migrate._loops import Step, Training, trainings
from inc_torch.migrate._source import Source, walk

__all__ = ["add_hooks"]

BEFORE, AFTER = "on_before_optimizer_step", "on_after_optimizer_step"
_OF_A_STEP: Final = {BEFORE, AFTER, "on_step_begin", "on_step_end", "on_after_compute_loss"}
_PAGE: Final = "See docs/training_loops.md."


def add_hooks(source: Source, handles: Handles, become_managers: Set[str]) -> None:
    """Put the hooks that are missing into the loops of a script that train with a manager or a component.

    Args:
        source: The script.
        handles: Its objects with hooks.
        become_managers: Components that are rewritten as managers, so that their loops need what those of managers do.
    """
    places = trainings(source)
    called_for = _driven_by_fit(source, handles)
    served: set[str] = set()
    for place in places:
        handle = _handle_of(source, handles, place)
        if handle is not None and handle.name not in called_for:
            served.add(handle.name)
            _Loop(source, handles, place, handle, handle.name in become_managers).complete()
    waiting = [handle for handle in handles.all if handle.name not in called_for | served]
    for place in places:
        if _handle_of(source, handles, place) is None:
            _tell_of_loop(source, place, [handle for handle in waiting if handle.is_manager])
    for handle in waiting:
        _tell_of_lone_hooks(source, handles, handle)


def _driven_by_fit(source: Source, handles: Handles) -> set[str]:
    """Managers that `training.fit` gets, which needs no hooks in the loop."""
    names = set()
    for call in source.all(cst.Call):
        if source.inc_path(call.func) == "training.fit" and call.args:
            handle = handles.of(call.args[0].value)
            names |= {handle.name} if handle is not None else set()
    return names


def _handle_of(source: Source, handles: Handles, place: Training) -> Handle | None:
    """Whose hooks belong into a loop: those that it calls already, or the one made before it in the same function."""
    near = {call.handle for call in handles.calls_in(place.place) if call.hook in _OF_A_STEP} or {
        call.handle for call in handles.calls_in(place.function) if source.function(call.node) is place.function
    }
    if len(near) == 1:
        return near.pop()
    made_before = [
        handle
        for handle in handles.all
        if handle.is_manager
        and source.function(handle.made) is place.function
        and place.whole is not None
        and source.line(handle.made) < source.line(place.whole)
    ]
    return made_before[0] if not near and len(made_before) == 1 else None


def _tell_of_loop(source: Source, place: Training, waiting: list[Handle]) -> None:
    """Tell of a loop of which it is not known whose hooks belong into it."""
    step = place.steps[0].call
    called = {
        call.func.attr.value: call.func
        for call in source.all(cst.Call)
        if isinstance(call.func, cst.Attribute)
        and call.func.attr.value in _OF_A_STEP
        and source.inside(call, place.function)
    }
    if called:
        if BEFORE in called and AFTER not in called:
            receiver = source.shown(called[BEFORE].value)
            why = f"it is not known what {receiver!r} is"
            source.tell(step, why, f"If it is INC's object, call {receiver}.{AFTER}() right after the step.")
        return
    names = [
        repr(handle.name)
        for handle in waiting
        if source.function(handle.made) is not place.function or source.line(handle.made) < source.line(step)
    ]
    if names:
        why = f"this loop calls no hook, and it is not known whether it trains the model of {' or '.join(names)}"
        source.tell(step, why, f"If it does, call the hooks in it. {_PAGE}")


def _tell_of_lone_hooks(source: Source, handles: Handles, handle: Handle) -> None:
    hooks = {call.hook: call for call in handles.calls_in(source.module, handle)}
    if BEFORE in hooks and AFTER not in hooks:
        why = "no optimizer step was found beside it"
        source.tell(hooks[BEFORE].node, why, f"Call {AFTER} right after the step.")


@final
@dataclass(frozen=True, slots=True)
class _Loop:
    """One training loop and the object whose hooks it calls."""

    source: Source
    handles: Handles
    place: Training
    handle: Handle
    becomes_manager: bool

    def complete(self) -> None:
        """Put in what is missing, or tell of it."""
        present = {call.hook for call in self._calls()}
        if self.place.batches is None and not present & {BEFORE, AFTER}:
            why = "no loop was found around this step"
            self.source.tell(self.place.steps[0].call, why, f"Call the hooks around it. {_PAGE}")
            return
        self._add_around_steps({BEFORE, AFTER} - present)
        in_file = {call.hook for call in self.handles.calls_in(self.source.module, self.handle)}
        needs_begin = self.handle.is_manager or self.becomes_manager
        if needs_begin and "on_step_begin" not in (in_file if self.place.batches is None else present):
            self._add_step_begin()
        if not self.handle.is_manager:
            return
        missing = [hook for hook in ("on_train_begin", "on_train_end") if hook not in in_file]
        if missing:
            self._add_around_training(missing, in_file)
        if "on_after_compute_loss" not in present and self._distils():
            why = f"{self.handle.name!r} distils, and the loop does not give it the loss"
            todo = f"Call loss = {self.receiver}.on_after_compute_loss(inputs, outputs, loss) before backward."
            self.source.tell(self.place.steps[0].call, why, todo)

    def _calls(self) -> list[HookCall]:
        """Calls of hooks in the loop's function, which may also lie in functions inside of it.

        Beside a step that is in no loop, those in the loops of the function do not count.
        """
        calls = self.handles.calls_in(self.place.function, self.handle)
        if self.place.batches is not None:
            return calls
        return [call for call in calls if not self.source.is_in_loop(call.node)]

    @property
    def receiver(self) -> str:
        """What hooks are called on in this function."""
        return next((call.receiver for call in self._calls()), self.handle.name)

    @property
    def _condition(self) -> str:
        """What a hook is called under, where the object may be None and the script asks for that."""
        calls = [call for call in self._calls() if self.source.function(call.node) is self.place.function]
        is_asked = all(any(isinstance(above, cst.If) for above in self.source.around(call.node)) for call in calls)
        return f"{self.receiver.removesuffix('.callbacks')} is not None" if self.handle.may_be_none and is_asked else ""

    def _distils(self) -> bool:
        """Whether a config of the manager is one of distillation, which may have been given a name before."""
        seen: set[str] = set()
        queue: list[cst.CSTNode] = [argument.value for argument in self.handle.made.args]
        while queue:
            for node in walk(queue.pop()):
                if isinstance(node, cst.Call) and self.source.inc_name(node.func) == "DistillationConfig":
                    return True
                if isinstance(node, cst.Name) and node.value not in seen:
                    seen.add(node.value)
                    queue += self._values_of(node.value)
        return False

    def _values_of(self, name: str) -> list[cst.BaseExpression]:
        """What is assigned to a name where the manager is made, or in the module."""
        functions = (self.source.function(self.handle.made), self.source.module)
        return [
            assigned.value
            for assigned in self.source.all(cst.Assign)
            for target in assigned.targets
            if isinstance(target.target, cst.Name)
            and target.target.value == name
            and self.source.function(assigned) in functions
        ]

    # ---------------------------------------------------------------- around the optimizer step

    def _add_around_steps(self, missing: set[str]) -> None:
        if not missing:
            return
        steps = self.place.steps
        if not _are_alternatives(self.source, steps):
            why = "several optimizers step in this loop, and it is not known which has the compressed weights"
            for hook in sorted(missing):
                self.source.tell(steps[0].call, why, f"Call {self.receiver}.{hook}() beside that one.")
            return
        for step in steps:
            self._add_around(step, missing)

    def _add_around(self, step: Step, missing: set[str]) -> None:
        statement = self.source.statement(step.call)
        accumulated = f"{step.accumulator}.sync_gradients" if step.accumulator else ""
        condition = " and ".join(part for part in (self._condition, accumulated) if part)
        is_plain = isinstance(statement, cst.Expr | cst.Assign | cst.AnnAssign)
        if not is_plain or (condition and not is_alone(self.source, statement)):
            for hook in sorted(missing, reverse=True):
                why = "the step shares its line with something else"
                self.source.tell(step.call, why, f"Give it a line of its own, and {self._place(hook)}.")
            return
        if BEFORE in missing and step.has_closure:
            why = "the closure computes the gradients inside of the step"
            self.source.tell(step.call, why, f"Call {self.receiver}.{BEFORE}() at the end of the closure.")
        elif BEFORE in missing:
            insert_before(self.source, statement, f"{self.receiver}.{BEFORE}()", condition)
        if AFTER in missing:
            insert_after(self.source, statement, f"{self.receiver}.{AFTER}()", condition)

    def _place(self, hook: str) -> str:
        return f"call {self.receiver}.{hook}() right {'before' if hook == BEFORE else 'after'} it"

    # ---------------------------------------------------------------- at the top of a batch

    def _add_step_begin(self) -> None:
        loop = self.place.batches
        index = None if loop is None else self._index(loop)
        code = f"{self.receiver}.on_step_begin({index})"
        if loop is None or index is None or not insert_at_the_top(self.source, loop.body, code, self._condition):
            why = "no loop was found whose batches are counted"
            todo = f"Call {self.receiver}.on_step_begin(number of the batch) before the forward of each batch."
            self.source.tell(self.place.steps[0].call, why, todo)

    def _index(self, loop: cst.For | cst.While) -> str | None:
        """The name that counts batches, for which ``enumerate`` is put around the loader if need be."""
        if not isinstance(loop, cst.For) or loop.asynchronous is not None:
            return None
        target, function = loop.target, loop.iter.func if isinstance(loop.iter, cst.Call) else None
        counter = function.value if isinstance(function, cst.Name) else ""
        if counter == "enumerate" and isinstance(target, cst.Tuple):
            first = target.elements[0].value
            return first.value if isinstance(first, cst.Name) else None
        if counter == "range" and isinstance(target, cst.Name):
            return target.value
        return self._count(loop, target)

    def _count(self, loop: cst.For, target: cst.BaseExpression) -> str | None:
        names = {name.value for name in self.source.all(cst.Name)}
        index = next((name for name in ("batch_id", "batch_index", "step_index") if name not in names), None)
        has_parentheses = any(getattr(node, "lpar", ()) for node in (target, loop.iter))
        if index is None or has_parentheses or isinstance(loop.body, cst.SimpleStatementSuite):
            return None
        source, is_several = self.source, isinstance(target, cst.Tuple)
        begin, end = source.begin(target), source.end(target)
        source.edits.replace(begin, begin, f"{index}, {'(' if is_several else ''}")
        if is_several:
            source.edits.replace(end, end, ")")
        source.edits.replace(source.begin(loop.iter), source.begin(loop.iter), "enumerate(")
        source.edits.replace(source.end(loop.iter), source.end(loop.iter), ")")
        return index

    # ---------------------------------------------------------------- around the whole training

    def _add_around_training(self, missing: list[str], in_file: set[str]) -> None:
        loop = self.place.whole
        is_whole = loop is not None and (self._is_made_here() or self._begins_here(in_file) or self._runs_once())
        for hook in missing:
            leaves = loop is not None and _leaves(self.source, loop)
            if loop is None or not is_whole or (hook == "on_train_end" and leaves):
                why = (
                    "the loop may be left by a return"
                    if leaves and is_whole
                    else "it is not known where the whole training begins and ends"
                )
                place = "before the first epoch" if hook == "on_train_begin" else "after the last epoch"
                self.source.tell(self.place.steps[0].call, why, f"Call {self.receiver}.{hook}() once, {place}.")
            else:
                insert = insert_before if hook == "on_train_begin" else insert_after
                insert(self.source, self._edge(loop, hook), f"{self.receiver}.{hook}()", self._condition)

    def _edge(self, loop: cst.For | cst.While, hook: str) -> cst.CSTNode:
        """The statement that the hook goes beside: the loop, or one beside the loop that calls hooks too."""
        block = self.source.parent(loop)
        calls = [call.node for call in self._calls() if self.source.function(call.node) is self.place.function]
        calling = [
            statement
            for statement in getattr(block, "body", ())
            if statement is loop or any(self.source.inside(call, statement) for call in calls)
        ]
        edge = calling[0] if hook == "on_train_begin" else calling[-1]
        return edge.body[0] if isinstance(edge, cst.SimpleStatementLine) and len(edge.body) == 1 else edge

    def _is_made_here(self) -> bool:
        return self.source.function(self.handle.made) is self.place.function

    def _begins_here(self, in_file: set[str]) -> bool:
        """Whether one of the two hooks is called in the loop's function, outside of the loop."""
        return bool(in_file & {"on_train_begin", "on_train_end"}) and any(
            call.hook in {"on_train_begin", "on_train_end"}
            and self.source.function(call.node) is self.place.function
            and (self.place.whole is None or not self.source.inside(call.node, self.place.whole))
            for call in self._calls()
        )

    def _runs_once(self) -> bool:
        """Whether the loop's function is called at one place of the script, and that place is in no loop."""
        function = self.place.function
        if not isinstance(function, cst.FunctionDef):
            return False
        uses = [name for name in self.source.all(cst.Name) if name.value == function.name.value]
        calls = [name for name in uses if isinstance(call := self.source.parent(name), cst.Call) and call.func is name]
        return (
            len(uses) == 2  # noqa: PLR2004  its definition and its call
            and len(calls) == 1
            and not any(isinstance(above, cst.For | cst.While) for above in self.source.around(calls[0]))
            and isinstance(self.source.parent(self.source.statement(function)), cst.Module)
        )


def _are_alternatives(source: Source, steps: tuple[Step, ...]) -> bool:
    """Whether only one of the steps is taken: each pair of them stands in two branches of one ``if``."""
    return all(
        _in_two_branches(source, one.call, other.call)
        for number, one in enumerate(steps)
        for other in steps[number + 1 :]
    )


def _in_two_branches(source: Source, one: cst.CSTNode, other: cst.CSTNode) -> bool:
    return any(
        source.inside(one, branch.body) and branch.orelse is not None and source.inside(other, branch.orelse)
        for branch in source.around(one)
        if isinstance(branch, cst.If)
    )


def _leaves(source: Source, loop: cst.For | cst.While) -> bool:
    return any(source.inside(node, loop) and _is_of(source, node, loop) for node in source.all(cst.Return))


def _is_of(source: Source, node: cst.CSTNode, loop: cst.CSTNode) -> bool:
    return source.function(node) is source.function(loop)
