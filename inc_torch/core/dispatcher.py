"""Runs the hooks of all callbacks in the right order, and puts right what a loop forgets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NoReturn, TypeVar, final

import torch
from torch import nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from inc_torch.core.callback import Callback
from inc_torch.core.clock import UpdateClock
from inc_torch.core.errors import (
    ConfigError,
    ConfigTypeError,
    HookOrderError,
    LoopWarning,
    StateError,
    did_you_mean,
)
from inc_torch.core.hooks import HOOKS, UNDO_HOOKS, Progress
from inc_torch.core.ranks import Ranks
from inc_torch.core.state import check_keys
from inc_torch.core.user_warning import warn_user

__all__ = ["Dispatcher"]

Hook = Callable[..., Any]
Result = TypeVar("Result")

_PLACES = {
    "on_train_begin": "once before the loop",
    "on_step_begin": "before the forward of each batch",
    "on_before_optimizer_step": "between backward and optimizer.step()",
    "on_after_optimizer_step": "right after optimizer.step()",
}


@final
@dataclass(frozen=True, slots=True)
class _Registered:
    """A hook of the user; arguments are None where it gets those of the hook that calls it."""

    hook: Hook
    args: Sequence[Any] | None
    kwargs: Mapping[str, Any] | None

    def __call__(self, *arguments: object) -> object:
        if self.args is None and self.kwargs is None:
            return self.hook(*arguments)
        return self.hook(*(self.args or ()), **(self.kwargs or {}))

    def __repr__(self) -> str:
        return f"the hook {getattr(self.hook, '__qualname__', repr(self.hook))}"


_UNFINISHED = {
    "batch",
    "has_begun_step",
    "has_scored",
    "has_folded_loss",
    "has_seen_optimizer",
    "has_update",
    "stepped",
}


@final
class Dispatcher:
    """The eleven hooks as methods, over a list of callbacks.

    Order follows `Stage`, not the list; hooks in `UNDO_HOOKS` run in the opposite order. A hook that raises
    stops the training with a note that says which callback and which step.

    The loop may be incomplete. What is missing is done at the next chance and said once: work after the
    optimizer step when ``on_after_optimizer_step`` never comes, work before it when
    ``on_before_optimizer_step`` never comes, mask changes when ``on_step_begin`` never comes, and the start of
    training when ``on_train_begin`` never comes.

    Args:
        callbacks: In the user's order.
        model: The model under training.
        ranks: The processes that train it; all of them by default.
    """

    def __init__(self, callbacks: Iterable[Callback], model: nn.Module, ranks: Ranks | None = None) -> None:
        self.callbacks_list: list[Callback] = list(callbacks)
        self.progress = Progress(ranks=ranks or Ranks())
        self._model = model
        self._extra: dict[str, list[_Registered]] = {name: [] for name in HOOKS}
        self._clock = UpdateClock(self._tracked, model.parameters, self._on_optimizer, self._on_stepped)
        self._followed: Optimizer | None = None
        self._follows_by: RemovableHandle | None = None
        self._phase = "new"
        self._batch = 0
        self._has_begun_step = False
        self._has_scored = False
        self._has_folded_loss = False
        self._told: set[str] = set()
        self._staged = sorted(self.callbacks_list, key=lambda callback: callback.stage)
        self._table = {name: self._overriding(name) for name in HOOKS}

    def __repr__(self) -> str:
        return f"Dispatcher({self.callbacks_list!r})"

    @property
    def has_ended(self) -> bool:
        """Whether ``on_train_end`` has run."""
        return self._phase == "ended"

    @property
    def is_training(self) -> bool:
        """Whether training has begun and not ended."""
        return self._phase == "training"

    def follow(self, optimizer: Optimizer, forwards: RemovableHandle) -> None:
        """Call the hooks before and after its steps from ``optimizer``; the loop is not expected to.

        Args:
            optimizer: The one.
            forwards: Of what calls the hook before them from forwards; removed when the run is over.
        """
        self._followed = optimizer
        self._follows_by = forwards
        self._told.add("on_before_optimizer_step")

    def listens_to(self, hook: str) -> bool:
        """Whether anything happens at ``hook``."""
        return bool(self._table[hook] or self._registered(hook))

    def give_up(self) -> None:
        """End without finishing: watch optimizers and model no longer, change nothing."""
        for callback in self._staged:
            callback.let_go()
        self._stop()

    def _stop(self) -> None:
        self._clock.stop()
        if self._follows_by is not None:
            self._follows_by.remove()
        self._phase = "ended"

    def prepare(self) -> None:
        """Bind the callbacks to the model, in stage order; called once by ``prepare_compression``."""
        for callback in self._staged:
            callback.prepare(self._model, self.progress)
        self._clock.start()

    def register_hook(
        self,
        scope: str,
        hook: Hook,
        input_args: Sequence[Any] | None = None,
        input_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Call ``hook`` at ``scope`` after the callbacks' own work.

        It is called with ``input_args`` and ``input_kwargs`` where given, else with the arguments of the hook.
        What it returns is ignored, except that a tensor returned at ``on_after_compute_loss`` is the new loss.
        Registering the same hook twice at one scope changes nothing.
        """
        if all(entry.hook != hook for entry in self._registered(scope)):
            self._extra[scope].append(_Registered(hook, input_args, input_kwargs))

    def remove_hook(self, scope: str, hook: Hook) -> None:
        """Take exactly ``hook`` out again; one that is not there is no error."""
        self._registered(scope)
        self._extra[scope] = [entry for entry in self._extra[scope] if entry.hook != hook]

    def on_train_begin(self, dataloader: object = None) -> None:
        """Start training; calling it again during training does nothing."""
        if self._phase == "ended":
            self._refuse("on_train_begin")
        if self._phase == "new":
            self._phase = "training"
            self._run("on_train_begin", dataloader)
            self._clock.mark()

    def on_epoch_begin(self, epoch: int) -> None:
        """Start epoch number ``epoch``."""
        self._require_training("on_epoch_begin")
        self._settle()
        self.progress.epoch = epoch
        self._run("on_epoch_begin", epoch)

    def on_step_begin(self, batch_id: int) -> None:
        """Start a batch, before its forward."""
        self._require_training("on_step_begin")
        self._settle()
        self._batch = batch_id
        self._begin_step()

    def on_after_compute_loss(
        self,
        input: object,  # noqa: A002  INC's argument name, used as a keyword in scripts
        student_output: object,
        student_loss: torch.Tensor | float,
        teacher_output: object = None,
    ) -> torch.Tensor:
        """Return the loss to call ``backward`` on; always one tensor.

        Raises:
            ConfigTypeError: The loss is neither a tensor nor a number, or a callback returned something else.
        """
        self._require_training("on_after_compute_loss")
        self._has_folded_loss = True
        loss: Any = student_loss
        if isinstance(loss, Real):
            loss = torch.tensor(float(loss))
        for callback, call in self._table["on_after_compute_loss"]:
            arguments = (input, student_output, loss, teacher_output)
            loss = self._guarded(type(callback).__name__, "on_after_compute_loss", call, *arguments)
            if not isinstance(loss, torch.Tensor):
                message = (
                    f"{type(callback).__name__}.on_after_compute_loss returned {loss!r}: expected the loss to go on "
                    "with, a tensor. Return student_loss to leave it as it is."
                )
                raise ConfigTypeError(message)
        for entry in tuple(self._extra["on_after_compute_loss"]):
            arguments = (input, student_output, loss, teacher_output)
            changed = self._guarded(repr(entry), "on_after_compute_loss", entry, *arguments)
            loss = changed if isinstance(changed, torch.Tensor) else loss
        if not isinstance(loss, torch.Tensor):
            message = (
                f"on_after_compute_loss got student_loss={loss!r} of type {type(loss).__name__}: expected a tensor or "
                "a number. Compute the loss first (a Hugging Face model does if the batch has labels)."
            )
            raise ConfigTypeError(message)
        return loss

    def on_before_optimizer_step(self) -> None:
        """Gradients are complete; the optimizer steps next."""
        self._require_training("on_before_optimizer_step")
        if self._has_scored:
            self._settle()
        self._score()

    def on_after_optimizer_step(self) -> None:
        """The optimizer has stepped. A step skipped by a gradient scaler is noticed and does not count."""
        self._require_training("on_after_optimizer_step")
        if self._clock.claim():
            self._finish_step()
        self._has_scored = False

    def on_step_end(self) -> None:
        """End a batch."""
        self._require_training("on_step_end")
        self._settle()
        self._run("on_step_end")

    def on_epoch_end(self) -> None:
        """End an epoch."""
        self._require_training("on_epoch_end")
        self._settle()
        self._run("on_epoch_end")

    def on_before_eval(self) -> None:
        """An evaluation starts."""
        self._settle()
        self._run("on_before_eval")

    def on_after_eval(self) -> None:
        """An evaluation ended."""
        self._run("on_after_eval")

    def on_train_end(self) -> None:
        """Finish: masks final, taps off, conversion. Later calls do nothing."""
        if self._phase == "ended":
            return
        self._require_training("on_train_end")
        self._settle()
        self._run_callbacks("on_train_end")
        self._stop()
        self._run_registered("on_train_end")

    def state_dict(self) -> dict[str, Any]:
        """Progress and the state of every callback, keyed by position and class."""
        clock = self._clock.state_dict()
        clock["has_update"] &= self._has_begun_step or self._has_scored  # or weights were only loaded
        self.progress.has_unfinished_update = clock["has_update"]
        return {
            "progress": {"step": self.progress.step, "epoch": self.progress.epoch},
            "unfinished": {
                "batch": self._batch,
                "has_begun_step": self._has_begun_step,
                "has_scored": self._has_scored,
                "has_folded_loss": self._has_folded_loss,
                **clock,
            },
            "callbacks": {
                key: {"version": callback.state_version, "state": callback.state_dict()}
                for key, callback in self._keyed().items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            StateError: The callbacks or their versions differ, or something is missing.
        """
        progress, unfinished, saved = state["progress"], state["unfinished"], state["callbacks"]
        check_keys("the progress", progress, {"step", "epoch"})
        check_keys("the unfinished step", unfinished, _UNFINISHED)
        keyed = self._keyed()
        if set(keyed) != set(saved):
            message = f"The saved state is of the callbacks {sorted(saved)}; this run has {sorted(keyed)}."
            raise StateError(message)
        for key, callback in keyed.items():
            check_keys(key, saved[key], {"version", "state"})
            version = saved[key]["version"]
            if version != callback.state_version:
                message = (
                    f"The saved state of {key} has version {version}; this package reads {callback.state_version}."
                )
                raise StateError(message)
        for key, callback in keyed.items():
            callback.load_state_dict(saved[key]["state"])
        self.progress.step = int(progress["step"])
        self.progress.epoch = int(progress["epoch"])
        self._batch = int(unfinished["batch"])
        self._has_begun_step = bool(unfinished["has_begun_step"])
        self._has_scored = bool(unfinished["has_scored"])
        self._has_folded_loss = bool(unfinished["has_folded_loss"])
        self._clock.load_state_dict(unfinished)

    def _keyed(self) -> dict[str, Callback]:
        return {f"{index}:{type(callback).__name__}": callback for index, callback in enumerate(self.callbacks_list)}

    def _overriding(self, name: str) -> list[tuple[Callback, Hook]]:
        order = reversed(self._staged) if name in UNDO_HOOKS else self._staged
        base = getattr(Callback, name)
        listening = [callback for callback in order if getattr(type(callback), name) is not base]
        for callback in listening:
            _check_signature(callback, name)
        return [(callback, getattr(callback, name)) for callback in listening]

    def _registered(self, scope: str) -> list[_Registered]:
        if scope not in self._extra:
            message = f"There is no hook {scope!r}.{did_you_mean(scope, HOOKS)} Hooks: {', '.join(HOOKS)}."
            raise ConfigError(message)
        return self._extra[scope]

    def _run(self, name: str, *arguments: object) -> None:
        self._run_callbacks(name, *arguments)
        self._run_registered(name, *arguments)

    def _run_callbacks(self, name: str, *arguments: object) -> None:
        for callback, call in self._table[name]:
            self._guarded(type(callback).__name__, name, call, *arguments)

    def _run_registered(self, name: str, *arguments: object) -> None:
        for entry in tuple(self._extra[name]):
            self._guarded(repr(entry), name, entry, *arguments)

    def _guarded(self, owner: str, name: str, call: Callable[..., Result], *arguments: object) -> Result:
        try:
            return call(*arguments)
        except Exception as error:
            epoch = "" if self.progress.epoch < 0 else f"epoch {self.progress.epoch}, "
            where = f"{epoch}optimizer step {self.progress.step}"
            error.add_note(f"In {name} of {owner}, called by inc_torch at {where}.")
            raise

    def _require_training(self, name: str) -> None:
        if self._phase == "new":
            self._warn_once("on_train_begin")
            self.on_train_begin()
        if self._phase == "ended":
            self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        message = (
            f"{name} was called after on_train_end: the model is finished (int8 modules cannot be trained). "
            "Make a new manager with prepare_compression to train on."
        )
        raise HookOrderError(message)

    def _tracked(self) -> list[nn.Parameter]:
        tracked = [parameter for callback in self.callbacks_list for parameter in callback.tracked_parameters()]
        return tracked or list(self._model.parameters())

    def _on_optimizer(self, optimizer: Optimizer, a_step_went_by: bool) -> None:
        """An optimizer of ours is about to step: the last moment for work that the loop forgot."""
        if self._phase == "new":
            return
        self.progress.optimizers.add(optimizer)
        if a_step_went_by:
            self._settle()
            self._has_scored = False
        if not self._has_scored:
            self._warn_once("on_before_optimizer_step")
            self._score()

    def _on_stepped(self, optimizer: Optimizer) -> None:
        """An optimizer of ours has stepped."""
        if self._phase == "new":
            self._clock.claim()
            self._warn_of_step_outside()
        if optimizer is self._followed:
            self.on_after_optimizer_step()
            self.on_step_end()

    def _begin_step(self) -> None:
        self._has_begun_step = True
        self._run("on_step_begin", self._batch)
        self._clock.mark()

    def _score(self) -> None:
        if not self._has_begun_step:
            self._warn_once("on_step_begin")
            self._begin_step()
        self._has_scored = True
        self._run("on_before_optimizer_step")

    def _settle(self) -> None:
        """Do the work after an optimizer step whose ``on_after_optimizer_step`` did not come."""
        if (self._has_begun_step or self._has_scored) and self._clock.claim():
            self._warn_once("on_after_optimizer_step")
            self._finish_step()

    def _finish_step(self) -> None:
        if not self._has_scored:  # without a torch optimizer nothing told that a step was near
            self._warn_once("on_before_optimizer_step")
            self._score()
        self._warn_of_unused_loss()
        self._run("on_after_optimizer_step")
        self.progress.step += 1
        self._has_scored = False
        self._has_begun_step = False
        self._clock.mark()

    def _warn_of_step_outside(self) -> None:
        misses_something = any(self._table[hook] for hook in HOOKS if hook != "on_train_end")
        if not misses_something or "on_train_begin" in self._told:
            return
        self._told.add("on_train_begin")
        message = (
            "The optimizer made a step before on_train_begin. Such steps are no part of the compression: nothing is "
            "pruned, quantized or distilled until the loop calls the manager's hooks. Call on_train_begin before the "
            "first batch, and the other hooks at their places."
        )
        warn_user(message, LoopWarning)

    def _warn_of_unused_loss(self) -> None:
        listening = [type(callback).__name__ for callback, _ in self._table["on_after_compute_loss"]]
        if self._has_folded_loss or not listening or "on_after_compute_loss" in self._told:
            return
        self._told.add("on_after_compute_loss")
        message = (
            f"The training loop does not call on_after_compute_loss, so {', '.join(listening)} had no part in this "
            "step. Call it between the loss and backward, and go on with the loss that it returns."
        )
        warn_user(message, LoopWarning)

    def _warn_once(self, hook: str) -> None:
        losing = [callback for callback, _ in self._table[hook] if hook not in callback.exact_when_late]
        if hook not in self._told and (losing or self._extra[hook]):
            self._told.add(hook)
            message = f"The training loop does not call {hook}; its work is done all the same. Call it {_PLACES[hook]}."
            warn_user(message, LoopWarning)


def _check_signature(callback: Callback, name: str) -> None:
    expected = list(inspect.signature(getattr(Callback, name)).parameters.values())[1:]
    try:
        inspect.signature(getattr(callback, name)).bind(*(None for _ in expected))
    except TypeError as error:
        names = ", ".join(parameter.name for parameter in expected)
        message = f"{type(callback).__name__}.{name} must accept ({names}): {error}."
        raise ConfigError(message) from error
