"""Pruning block by block: each block is pruned for the inputs that the pruned blocks before it make."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from inc_torch.core.errors import CalibrationError, ConfigError, InexactWarning, listed
from inc_torch.core.modes import evaluating, without_cache, without_compiling
from inc_torch.core.names import unwrapped
from inc_torch.core.progress import with_progress
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.core.user_warning import warn_user
from inc_torch.pruners.calibrated._blocks import Block, BlockLayer, find_blocks
from inc_torch.pruners.calibrated._catch import Call, catch_calls, home_of
from inc_torch.pruners.calibrated._statistics import Statistics

__all__ = ["Technique", "prune_by_blocks"]

Seen = TypeVar("Seen", bound=Statistics)

_NEVER_RAN = "left dense: the calibration data never reached it"


class Technique(Protocol[Seen]):
    """How layers are pruned when their inputs are known.

    A technique that looks at one layer at a time has ``prune``; one that looks at all of a block, ``prune_block``.
    """

    def watch(self, width: int, device: torch.device) -> Seen:
        """Return what is to be remembered of the inputs of a layer, ``width`` of them."""
        ...

    def prune(self, layer: BlockLayer, seen: Seen) -> Finding:
        """Write zeros into the weight of ``layer``, in place, and say what was done."""
        ...

    def prune_block(self, block: Sequence[tuple[BlockLayer, Seen]]) -> list[Finding]:
        """Prune layers of one block, in the order in which the model names them."""
        return [self.prune(layer, seen) for layer, seen in block]


def prune_by_blocks(
    model: nn.Module,
    dataloader: Iterable[object],
    technique: Technique[Seen],
    *,
    layers: Collection[str] | None = None,
    nsamples: int | None = None,
    device: str | torch.device | None = None,
    low_mem_usage: bool | None = None,
    words: tuple[str, str] = ("Pruning", "dense"),
) -> CompressionReport:
    """Prune the blocks of a model one after the other, in place.

    Of each block all batches are run, and ``technique`` prunes its layers by what they were given; then they are run
    again, to make the inputs of the next block. Blocks without layers to prune run too. All tokens count, padding too:
    give batches without it.

    Memory: the inputs of one block for all batches, masks and positions with them, where the model is. On ``device``
    one block, one batch, and what is remembered of the layers of that block.

    Args:
        model: A model whose blocks are in an `nn.ModuleList`, see `find_blocks` and `catch_calls`.
        dataloader: Batches of inputs: a tensor, a tuple or a dict, see `inc_torch.core.batches`. Run through once.
        technique: `SparseGPT` or `Wanda`.
        layers: Names of the layers to prune; None is all nn.Linear and Conv1D layers in the blocks.
        nsamples: Batches are taken until they hold this many samples; None takes all.
        device: Where blocks run; None is where they are. The model is back where it was at the end.
        low_mem_usage: False moves the whole model to ``device`` at once; else each block goes there and comes back.
        words: What the technique does, and how layers are left to which it is not done, for people to read.

    Returns:
        The report; it is not attached to the model. Its modules say what was pruned, and what was left dense and why.

    Raises:
        CalibrationError: There is no batch, or a layer was given infinities or NaN; blocks before it are pruned.
        ConfigError: A layer or the device is unknown, or ``nsamples`` is below 1.
        ModelError: The model has no blocks that run one after the other, or no layer to prune.
    """
    if nsamples is not None and nsamples < 1:
        raise ConfigError.field(prune_by_blocks.__name__, "nsamples", nsamples, "an integer of 1 or more")
    place = _device(device)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(model))
        stack.enter_context(without_compiling())
        stack.enter_context(_one_by_one(model))
        stack.enter_context(without_cache(model))  # a block that runs twice would find its own keys in it
        if place is not None and low_mem_usage is False:
            stack.enter_context(moved(model, place))
            place = None
        found = find_blocks(unwrapped(model), layers)
        feeds = catch_calls(model, found.blocks, with_progress(dataloader, "Running up to the blocks"), nsamples, place)
        findings = [*found.left_dense]
        for index, block in enumerate(with_progress(found.blocks, f"{words[0]} blocks")):
            with moved(block.module, place):
                findings += _prune_block(block, (feed.call(index, place) for feed in feeds), technique)
                for feed in feeds if index + 1 < len(found.blocks) else ():
                    feed.advance(index, _run(block, feed.call(index, place)))
    _warn_of_unseen([finding.module for finding in findings if finding.note == _NEVER_RAN], *words)
    return CompressionReport.measure(model, findings)


def _device(device: str | torch.device | None) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError.field(prune_by_blocks.__name__, "device", device, "a device such as 'cuda:0'") from error


def _prune_block(block: Block, calls: Iterable[Call], technique: Technique[Seen]) -> list[Finding]:
    """Run a block on all batches, and prune its layers by what they were given."""
    if not block.layers:
        return []
    seen: dict[str, Seen] = {}
    with ExitStack() as hooks:
        for layer in block.layers:
            matrix = layer.matrix()
            seen[layer.name] = technique.watch(matrix.shape[1], matrix.device)
            hook = layer.module.register_forward_pre_hook(_watching(seen[layer.name]), with_kwargs=True)
            hooks.callback(hook.remove)
        for call in calls:
            _run(block, call)
    reached = [(layer, seen[layer.name]) for layer in block.layers if seen[layer.name].tokens]
    for layer, statistics in reached:
        if not statistics.is_finite():
            raise CalibrationError(_not_finite(layer.name))
    unreached = [Finding(layer.name, note=_NEVER_RAN) for layer in block.layers if not seen[layer.name].tokens]
    return technique.prune_block(reached) + unreached


def _watching(seen: Statistics) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def watch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.add(args[0] if args else next(iter(kwargs.values())))

    return watch


def _run(block: Block, call: Call) -> object:
    try:
        return block.module(*call.args, **call.kwargs)
    except Exception as error:
        error.add_note(f"While running block {block.name!r} on what the model called it with.")
        raise


@contextmanager
def moved(module: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Have ``module`` on ``device`` for a while; None leaves it where it is."""
    home = home_of(module)
    if device is None:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


@contextmanager
def _one_by_one(model: nn.Module) -> Iterator[None]:
    """Have the model call its modules one by one, for a while: torch's encoder may pass its layers by."""
    settings: list[tuple[object, str, object]] = []
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            settings.append((module, "activation_relu_or_gelu", 0))
        if isinstance(module, nn.TransformerEncoder):
            settings.append((module, "use_nested_tensor", False))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    try:
        for owner, name, value in settings:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _warn_of_unseen(names: Sequence[str], doing: str, otherwise: str) -> None:
    if names:
        message = (
            f"{doing} leaves {len(names)} layers {otherwise} that the calibration data never reached: {listed(names)}. "
            f"Give more or other data, or take them out of the layers that are asked for."
        )
        warn_user(message, InexactWarning)


def _not_finite(name: str) -> str:
    return (
        f"Layer {name!r} was given infinities or NaN by the calibration data: expected finite inputs. Look at the data "
        "and the weights, or load the model in bfloat16 or float32 instead of float16."
    )
