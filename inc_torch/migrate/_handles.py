"""Which names in a script stand for an object that has hooks: a manager of 2.X, or a component of 1.X."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

import libcst as cst

from inc_torch.core.hooks import HOOKS
from inc_torch.migrate._source import Source

__all__ = ["OLD_HOOKS", "Handle", "Handles", "HookCall"]

OLD_HOOKS: Final = {
    "on_batch_begin": "on_step_begin",
    "on_batch_end": "on_step_end",
    "on_post_grad": "on_before_optimizer_step",
    "pre_epoch_begin": "on_train_begin",
    "post_epoch_end": "on_train_end",
}
"""Names that hooks had before, and those that they have now."""

_COMPONENTS: Final = ("Quantization", "Pruning", "Distillation", "Component")


@final
@dataclass(frozen=True, slots=True)
class Handle:
    """An object that has hooks, under the names that it goes by.

    Attributes:
        name: The name that it is made under, such as ``"manager"`` or ``"self.manager"``.
        is_manager: Whether it is a `CompressionManager`; else a component of 1.X, which calls some hooks itself.
        made: The call that makes it.
        may_be_none: Whether the script also sets it to None, so that every use is guarded.
    """

    name: str
    is_manager: bool
    made: cst.Call
    may_be_none: bool


@final
@dataclass(frozen=True, slots=True)
class HookCall:
    """A hook that the script calls, or gives to something that does.

    Attributes:
        node: The call, or the hook itself where it is given on.
        receiver: What it is called on, such as ``"manager.callbacks"``.
        hook: Its name, as it is now.
        handle: The object.
    """

    node: cst.Call | cst.Attribute
    receiver: str
    hook: str
    handle: Handle


@final
class Handles:
    """All objects with hooks in a script, and all calls of their hooks.

    Attributes:
        all: The objects, in the order in which they are made.
        calls: The calls.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.all = list(self._made())
        self._named = {handle.name: handle for handle in self.all}
        self._follow_assignments()
        self._follow_arguments()
        self.calls = [call for node in source.all(cst.Attribute) if (call := self._hook_call(node)) is not None]

    def of(self, node: cst.BaseExpression) -> Handle | None:
        """The object that an expression names, with or without its ``callbacks``."""
        return self._named.get(_plain_name(node).removesuffix(".callbacks"))

    def calls_in(self, block: cst.CSTNode, handle: Handle | None = None) -> list[HookCall]:
        """The calls of hooks inside a node, in functions inside of it too."""
        return [
            call
            for call in self.calls
            if handle in (None, call.handle) and (block is self._source.module or self._source.inside(call.node, block))
        ]

    def _made(self) -> Iterator[Handle]:
        """Names that are assigned what makes such an object, and nothing else but None."""
        values: dict[str, list[cst.BaseExpression]] = defaultdict(list)
        for name, value in _assignments(self._source):
            values[name].append(value)
        for name, given in values.items():
            calls = [self._making(value) for value in given]
            made = [call for call in calls if call is not None]
            others = [
                value
                for value, call in zip(given, calls, strict=True)
                if call is None and not self._is_none(value) and not self._is_itself(name, value)
            ]
            if made and not others:
                may_be_none = any(self._is_none(value) or isinstance(value, cst.IfExp) for value in given)
                is_manager = self._source.inc_name(made[0].func) == "prepare_compression"
                yield Handle(name, is_manager, made[0], may_be_none)

    def _making(self, value: cst.BaseExpression) -> cst.Call | None:
        """The call in a value that makes an object with hooks."""
        if isinstance(value, cst.IfExp):
            return self._making(value.body) or self._making(value.orelse)
        if not isinstance(value, cst.Call):
            return None
        name = self._source.inc_name(value.func)
        is_combined = isinstance(value.func, cst.Attribute) and value.func.attr.value == "combine"
        is_component = name in _COMPONENTS and "experimental" in str(self._source.inc_path(value.func))
        return value if name == "prepare_compression" or is_component or (is_combined and self._schedules()) else None

    def _schedules(self) -> bool:
        """Whether the script has a Scheduler of 1.X, so that a ``combine`` is that of a Scheduler."""
        return any(self._source.inc_name(call.func) == "Scheduler" for call in self._source.all(cst.Call))

    def _is_none(self, value: cst.BaseExpression) -> bool:
        if isinstance(value, cst.IfExp):
            return self._making(value) is None and self._is_none(value.body) and self._is_none(value.orelse)
        return isinstance(value, cst.Name) and value.value == "None"

    def _is_itself(self, name: str, value: cst.BaseExpression) -> bool:
        return _plain_name(value) == name

    def _follow_assignments(self) -> None:
        """Names that are assigned the object, or its ``callbacks``: ``self.manager = manager``."""
        for name, value in _assignments(self._source):
            handle = self.of(value)
            if handle is not None and name not in self._named:
                self._named[name] = handle

    def _follow_arguments(self) -> None:
        """Parameters of the script's own functions to which the object is given."""
        functions = {node.name.value: node for node in self._source.all(cst.FunctionDef)}
        for call in self._source.all(cst.Call):
            function = functions.get(call.func.value) if isinstance(call.func, cst.Name) else None
            if function is None:
                continue
            names = [parameter.name.value for parameter in function.params.params]
            for index, argument in enumerate(call.args):
                handle = self.of(argument.value)
                if handle is None or argument.star:
                    continue
                name = argument.keyword.value if argument.keyword is not None else names[index : index + 1]
                for taken in [name] if isinstance(name, str) else name:
                    self._named.setdefault(taken, handle)

    def _hook_call(self, hook: cst.Attribute) -> HookCall | None:
        name = OLD_HOOKS.get(hook.attr.value, hook.attr.value)
        handle = self.of(hook.value) if name in HOOKS else None
        if handle is None:
            return None
        above = self._source.parent(hook)
        node = above if isinstance(above, cst.Call) and above.func is hook else hook
        return HookCall(node, _plain_name(hook.value), name, handle)


def _assignments(source: Source) -> Iterator[tuple[str, cst.BaseExpression]]:
    for node in source.all(cst.Assign, cst.AnnAssign):
        targets = [target.target for target in node.targets] if isinstance(node, cst.Assign) else [node.target]
        for target in targets:
            name = _plain_name(target)
            if name and node.value is not None:
                yield name, node.value


def _plain_name(node: cst.BaseExpression) -> str:
    """The text of a chain of names; empty for anything else."""
    if isinstance(node, cst.Attribute):
        owner = _plain_name(node.value)
        return owner and f"{owner}.{node.attr.value}"
    return node.value if isinstance(node, cst.Name) else ""
