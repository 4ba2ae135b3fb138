"""Configs, which are read-only here and know their options; INC's could be assigned to and swallowed any keyword."""

from __future__ import annotations

import inspect

import libcst as cst

from inc_torch.config import Config
from inc_torch.config._base import option_names
from inc_torch.core.errors import did_you_mean
from inc_torch.migrate._names import found
from inc_torch.migrate._source import Source

__all__ = ["adapt_configs"]


def adapt_configs(source: Source) -> None:
    """Rewrite assignments to options as ``replace``, and tell of options that there are not."""
    for call in source.all(cst.Call):
        kind = _kind(source, call)
        if kind is not None:
            _tell_of_unknown_options(source, call, kind)
    for assigned in source.all(cst.Assign, cst.AugAssign):
        target = assigned.target if isinstance(assigned, cst.AugAssign) else assigned.targets[0].target
        if isinstance(target, cst.Attribute):
            _adapt_assignment(source, assigned, target)


def _kind(source: Source, node: cst.BaseExpression) -> type[Config] | None:
    """The class of the config that a call makes."""
    path = source.inc_path(node.func) if isinstance(node, cst.Call) else None
    named = None if path is None else found(path)
    return named if inspect.isclass(named) and issubclass(named, Config) and named is not Config else None


def _tell_of_unknown_options(source: Source, call: cst.Call, kind: type[Config]) -> None:
    known = [*option_names(kind), *kind.keyword_only_inputs]
    for argument in call.args:
        if argument.keyword is not None and argument.keyword.value not in known:
            name = argument.keyword.value
            hint = did_you_mean(name, known).strip() or f"Options: {', '.join(known)}."
            source.tell(argument, f"{kind.__name__} has no option {name!r}, and INC ignored it", hint)


def _adapt_assignment(source: Source, assigned: cst.Assign | cst.AugAssign, target: cst.Attribute) -> None:
    """``config.option = value`` becomes ``config = config.replace(option=value)``, one level deeper too."""
    names = _chain(target)
    made = _made_in(source, names[0]) if names else []
    kinds = {kind for call in made if (kind := _kind(source, call)) is not None}
    if len(kinds) != 1 or len(kinds) != len({_kind(source, call) for call in made}):
        return
    kind, todo = kinds.pop(), f"Make a changed copy: {names[0]} = {names[0]}.replace(...)."
    if isinstance(assigned, cst.AugAssign) or len(assigned.targets) > 1:
        source.tell(assigned, f"a {kind.__name__} is read-only", todo)
        return
    value = source.text[source.end(target) : source.end(assigned)].partition("=")[2].strip()
    if isinstance(assigned.value, cst.Tuple) and not assigned.value.lpar:
        value = f"({value})"
    changed = _replaced(kind, names, value)
    in_one_function = all(source.function(call) is source.function(assigned) for call in made)
    if changed is None or not in_one_function or _is_taken_between(source, names[0], made[0], assigned):
        source.tell(assigned, f"a {kind.__name__} is read-only, and others may hold this one", todo)
        return
    source.rewrite(assigned, f"{names[0]} = {changed}")


def _replaced(kind: type[Config], names: list[str], value: str) -> str | None:
    """The expression for a changed copy; None if the options are not those of the class."""
    owner, options = names[0], names[1:]
    if options[0] not in option_names(kind):
        return None
    if len(options) == 1:
        return f"{owner}.replace({options[0]}={value})"
    inner = getattr(kind(), options[0], None)
    if len(options) > 2 or not isinstance(inner, Config) or options[1] not in option_names(type(inner)):  # noqa: PLR2004
        return None
    return f"{owner}.replace({options[0]}={owner}.{options[0]}.replace({options[1]}={value}))"


def _made_in(source: Source, name: str) -> list[cst.BaseExpression]:
    """All that the script assigns to a name."""
    return [
        assigned.value
        for assigned in source.all(cst.Assign)
        for target in assigned.targets
        if isinstance(target.target, cst.Name)
        and target.target.value == name
        and not _is_replacement(assigned.value, name)
    ]


def _is_replacement(value: cst.BaseExpression, name: str) -> bool:
    """Whether a value is ``name.replace(...)``, which makes one of the same class."""
    function = value.func if isinstance(value, cst.Call) else None
    return isinstance(function, cst.Attribute) and _chain(function) == [name, "replace"]


def _is_taken_between(source: Source, name: str, made: cst.CSTNode, assigned: cst.CSTNode) -> bool:
    """Whether the object itself is given to something between its making and the assignment."""
    return any(
        node.value == name
        and source.end(made) < source.begin(node) < source.begin(assigned)
        and not isinstance(source.parent(node), cst.Attribute | cst.AssignTarget)
        for node in source.all(cst.Name)
    )


def _chain(node: cst.BaseExpression) -> list[str]:
    if isinstance(node, cst.Attribute):
        names = _chain(node.value)
        return [*names, node.attr.value] if names else []
    return [node.value] if isinstance(node, cst.Name) else []
