"""What the blocks of a model are called with: found by watching the model run, never from a signature.

    batch --model's own start--> call of block 0 --block 0--> output --> call of block 1 ...

The first batch runs through the whole model once. That shows which arguments of a block are outputs of the block before
it (its *fed* arguments), and whether the others are the same for all blocks, as masks and positions mostly are. If so,
other batches run only up to the first block; else they run through, and the arguments of each block are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from inc_torch.core.batches import Inputs, copied, count_samples, on_device, run, split
from inc_torch.core.errors import CalibrationError, ModelError
from inc_torch.pruners.calibrated._blocks import Block

__all__ = ["Call", "Feed", "Links", "catch_calls", "home_of"]

Slot = int | str
"""An argument of a call: its position, or its keyword."""

Links = Mapping[Slot, int]
"""Which leaf of the output of the block before goes into which argument."""


@final
@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call of a block."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def items(self) -> dict[Slot, Any]:
        """All arguments by slot."""
        values: dict[Slot, Any] = dict(enumerate(self.args))
        values.update(self.kwargs.items())
        return values

    def replaced(self, values: Mapping[Slot, Any]) -> Call:
        """The same call with other values in some of its slots; slots that it has not are left out.

        Example:
            >>> Call((1, 2), {"a": 3}).replaced({1: 5, "a": 6, "b": 7})
            Call(args=(1, 5), kwargs={'a': 6})
        """
        args = tuple(values.get(index, value) for index, value in enumerate(self.args))
        return Call(args, {name: values.get(name, value) for name, value in self.kwargs.items()})


@final
class Feed:
    """The calls of all blocks for one batch. Holds the arguments, and of the fed ones those of one block at a time.

    Args:
        calls: One for each block, or one for all, without the fed arguments.
        fed: The fed arguments of the first block.
        links: Of each block; of the first none.
    """

    def __init__(self, calls: Sequence[Call], fed: Mapping[Slot, Any], links: Sequence[Links]) -> None:
        self._calls = list(calls)
        self._fed = dict(fed)
        self._links = links
        self._home = next((value.device for value in fed.values() if isinstance(value, torch.Tensor)), None)

    def call(self, block: int, device: torch.device | None = None) -> Call:
        """What block number ``block`` is called with, the one behind that of the last `advance`.

        Fed arguments are copies, as a block may write into what it is given; on ``device`` if that is one.
        """
        call = self._calls[block if len(self._calls) > 1 else 0]
        call = call.replaced({slot: _copied(value) for slot, value in self._fed.items()})
        return Call(on_device(call.args, device), on_device(dict(call.kwargs), device))

    def advance(self, block: int, output: object) -> None:
        """Take over what block number ``block`` returned, and forget what it was called with."""
        leaves = tree_leaves(output)
        self._fed = {slot: on_device(leaves[leaf], self._home) for slot, leaf in self._links[block + 1].items()}
        if len(self._calls) > 1:
            self._calls[block] = Call((), {})


def home_of(block: nn.Module) -> torch.device:
    """Where the weights of a block are."""
    return next((parameter.device for parameter in block.parameters()), torch.device("cpu"))


def catch_calls(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Iterable[object],
    nsamples: int | None = None,
    device: torch.device | None = None,
) -> list[Feed]:
    """Run the model on batches and keep what its blocks are called with.

    Args:
        model: In evaluation mode, without a cache of keys and values.
        blocks: All of them, in order.
        batches: What `inc_torch.core.batches` takes: tensors, tuples, dicts.
        nsamples: Batches are taken until they hold this many samples; None takes all.
        device: Where blocks run; None is where they are. What is caught stays where the model is.

    Returns:
        One entry for each batch.

    Raises:
        CalibrationError: There is no batch.
        ModelError: The blocks do not run one after the other, each once, on what the one before returned.
    """
    feeds: list[Feed] = []
    plan: _Plan | None = None
    seen = 0
    iterator = iter(batches)
    while (nsamples is None or seen < nsamples) and (batch := next(iterator, _END)) is not _END:
        inputs, _ = split(batch, model)
        if plan is None:
            plan = _learn(model, blocks, copied(inputs), device)  # a model may write into them, and runs on them again
        feeds.append(_record(model, blocks, inputs, plan, device))
        seen += count_samples(inputs)
    if not feeds:
        message = (
            "The dataloader yielded no batch: expected one at least, whose inputs show which weights matter. A "
            "generator can be used only once; give a list or a DataLoader."
        )
        raise CalibrationError(message)
    return feeds


_END = object()


@final
@dataclass(frozen=True, slots=True)
class _Plan:
    """What the first batch showed."""

    links: tuple[Links, ...]
    is_shared: bool


class _CaughtError(Exception):
    """The first block was reached: nothing behind it has to run."""


def _run_watched(
    model: nn.Module,
    blocks: Sequence[Block],
    inputs: Inputs,
    device: torch.device | None,
    before: Callable[[int, Call], None],
    after: Callable[[int, object], None],
) -> None:
    """Run the model; each block is reported before and after, and is on ``device`` meanwhile."""

    def enter(index: int, module: nn.Module, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        before(index, call)
        if device is None:
            return None
        homes[index] = home_of(module)
        module.to(device)
        return on_device(call.args, device), on_device(dict(call.kwargs), device)

    def leave(index: int, module: nn.Module, output: object) -> object:
        if device is not None:
            home = homes.pop(index)
            module.to(home)
            output = on_device(output, home)
        after(index, output)
        return output

    homes: dict[int, torch.device] = {}
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            stack.callback(
                block.module.register_forward_pre_hook(
                    lambda module, args, kwargs, index=index: enter(index, module, Call(args, kwargs)), with_kwargs=True
                ).remove
            )
            stack.callback(
                block.module.register_forward_hook(
                    lambda module, _args, output, index=index: leave(index, module, output)
                ).remove
            )
        try:
            run(model, inputs)
        finally:
            for index, home in homes.items():
                blocks[index].module.to(home)


def _learn(model: nn.Module, blocks: Sequence[Block], inputs: Inputs, device: torch.device | None) -> _Plan:
    """Find how the blocks hang together."""
    owner = type(model).__name__
    links: list[Links] = []
    leaves: list[Any] = []
    first: dict[Slot, Any] = {}
    is_shared = True

    def before(index: int, call: Call) -> None:
        nonlocal is_shared
        if index != len(links):
            raise ModelError(_out_of_order(owner, blocks[index].name, len(links), len(blocks)))
        values = call.items()
        if index == 0:
            first.update(values)
            links.append({})
            return
        places = {id(leaf): place for place, leaf in reversed([*enumerate(leaves)]) if isinstance(leaf, torch.Tensor)}
        links.append({slot: places[id(value)] for slot, value in values.items() if id(value) in places})
        if not links[index]:
            raise ModelError(_not_fed(owner, blocks[index - 1].name, blocks[index].name))
        others = {slot: value for slot, value in values.items() if slot not in links[index]}
        is_shared &= values.keys() == first.keys() and links[index].keys() == links[1].keys()
        is_shared &= all(_is_same(value, first.get(slot)) for slot, value in others.items())

    def after(_index: int, output: object) -> None:
        leaves[:] = tree_leaves(output)

    _run_watched(model, blocks, inputs, device, before, after)
    if len(links) != len(blocks):
        raise ModelError(_out_of_order(owner, blocks[len(links)].name, len(links), len(blocks)))
    return _Plan(tuple(links), is_shared)


def _record(
    model: nn.Module, blocks: Sequence[Block], inputs: Inputs, plan: _Plan, device: torch.device | None
) -> Feed:
    """Keep what the blocks are called with for one batch."""
    calls: list[Call] = []
    fed: dict[Slot, Any] = {}

    def before(index: int, call: Call) -> None:
        slots = plan.links[min(max(index, 1), len(plan.links) - 1)]
        if index == 0:
            values = call.items()
            # Copies, as a block may write into what it is given.
            fed.update({slot: _copied(values[slot]) for slot in slots if slot in values})
        calls.append(call.replaced(dict.fromkeys(slots)))
        if plan.is_shared:
            raise _CaughtError

    with suppress(_CaughtError):
        _run_watched(model, blocks, inputs, device, before, lambda _index, _output: None)
    return Feed(calls, fed, plan.links)


def _copied(value: Any) -> Any:  # noqa: ANN401  an argument of any type
    return value.clone() if isinstance(value, torch.Tensor) else value


def _is_same(one: object, other: object) -> bool:
    return one is other or (isinstance(one, bool | int | float | str) and type(one) is type(other) and one == other)


def _out_of_order(owner: str, name: str, done: int, count: int) -> str:
    return (
        f"{owner} cannot be pruned block by block: after {done} of its {count} blocks, {name!r} is not the next one to "
        "run in one forward. Expected that the items of the list run one after the other, each once. Prune it with a "
        "type that needs no blocks, such as 'magnitude'."
    )


def _not_fed(owner: str, before: str, name: str) -> str:
    return (
        f"{owner} cannot be pruned block by block: no argument of {name!r} is a tensor that {before!r} returned, so "
        "something between the two changes it. Expected that blocks hand their output on unchanged. Move what lies "
        "between them into the blocks, or prune the model with a type that needs no blocks, such as 'magnitude'."
    )
