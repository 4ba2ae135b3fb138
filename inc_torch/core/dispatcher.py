"""Runs the hooks of all callbacks in the right order, and puts right what a loop forgets."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, final

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from inc_torch.core.callback import Callback
from inc_torch.core.clock import UpdateClock
from inc_torch.core.errors import ConfigError, HookOrderError, LoopWarning, StateError, did_you_mean
from inc_torch.core.hooks import HOOKS, UNDO_HOOKS, Progress

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
    """

    def __init__(self, callbacks: Iterable[Callback], model: nn.Module) -> None:
        self.callbacks_list: list[Callback] = list(callbacks)
        self.progress = Progress()
        self._model = model
        self._extra: dict[str, list[tuple[Hook, tuple[Any, ...], dict[str, Any]]]] = {name: [] for name in HOOKS}
        self._clock = UpdateClock(self._tracked, self._on_optimizer)
        self._phase = "new"
        self._batch = 0
        self._in_batch = False
        self._has_begun_step = False
        self._has_scored = False
        self._had_finite_gradients = True
        self._uses_step_hooks = False
        self._told: set[str] = set()
        self._staged = sorted(self.callbacks_list, key=lambda callback: callback.stage)
        self._table = {name: self._overriding(name) for name in HOOKS}

    def __repr__(self) -> str:
        return f"Dispatcher({self.callbacks_list!r})"

    @property
    def has_ended(self) -> bool:
        """Whether ``on_train_end`` has run."""
        return self._phase == "ended"

    def prepare(self) -> None:
        """Bind the callbacks to the model, in stage order; called once by ``prepare_compression``."""
        for callback in self._staged:
            callback.prepare(self._model, self.progress)

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
        if all(registered != hook for registered, _, _ in self._registered(scope)):
            self._extra[scope].append((hook, tuple(input_args or ()), dict(input_kwargs or {})))

    def remove_hook(self, scope: str, hook: Hook) -> None:
        """Take exactly ``hook`` out again; one that is not there is no error."""
        self._registered(scope)
        self._extra[scope] = [entry for entry in self._extra[scope] if entry[0] != hook]

    def on_train_begin(self, dataloader: object = None) -> None:
        """Start training; later calls do nothing."""
        if self._phase != "new":
            return
        self._phase = "training"
        self._clock.start()
        self._run("on_train_begin", dataloader)

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
        self._in_batch = True
        self._has_begun_step = True
        self._run("on_step_begin", batch_id)

    def on_after_compute_loss(
        self,
        input: object,  # noqa: A002  INC's argument name, used as a keyword in scripts
        student_output: object,
        student_loss: torch.Tensor | float,
        teacher_output: object = None,
    ) -> torch.Tensor:
        """Return the loss to call ``backward`` on; always one tensor."""
        self._require_training("on_after_compute_loss")
        loss = student_loss if isinstance(student_loss, torch.Tensor) else torch.as_tensor(student_loss)
        for callback, call in self._table["on_after_compute_loss"]:
            loss = self._guarded(callback, "on_after_compute_loss", call, input, student_output, loss, teacher_output)
        for hook, args, kwargs in self._extra["on_after_compute_loss"]:
            changed = hook(*args, **kwargs) if args or kwargs else hook(input, student_output, loss, teacher_output)
            loss = changed if isinstance(changed, torch.Tensor) else loss
        return loss

    def on_before_optimizer_step(self) -> None:
        """Gradients are complete; the optimizer steps next."""
        self._require_training("on_before_optimizer_step")
        self._settle()
        self._uses_step_hooks = True
        self._score()

    def on_after_optimizer_step(self) -> None:
        """The optimizer has stepped. A step skipped by a gradient scaler is noticed and does not count."""
        self._require_training("on_after_optimizer_step")
        self._uses_step_hooks = True
        if self._clock.claim() if self._clock.has_seen_optimizer else self._seems_updated():
            self._finish_step()
        self._has_scored = False

    def on_step_end(self) -> None:
        """End a batch."""
        self._require_training("on_step_end")
        self._settle(at_batch_end=True)
        self._in_batch = False
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
        self._clock.stop()
        self._run("on_train_end")
        self._phase = "ended"

    def state_dict(self) -> dict[str, Any]:
        """Progress and the state of every callback, keyed by position and class."""
        return {
            "progress": {"step": self.progress.step, "epoch": self.progress.epoch},
            "unfinished": {
                "batch": self._batch,
                "in_batch": self._in_batch,
                "has_begun_step": self._has_begun_step,
                "has_scored": self._has_scored,
                "had_finite_gradients": self._had_finite_gradients,
                "uses_step_hooks": self._uses_step_hooks,
                "has_seen_optimizer": self._clock.has_seen_optimizer,
                "has_unclaimed_update": self._clock.has_unclaimed_update,
            },
            "callbacks": {
                key: {"version": callback.state_version, **callback.state_dict()}
                for key, callback in self._keyed().items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            StateError: The callbacks or their versions differ.
        """
        keyed, saved = self._keyed(), state["callbacks"]
        if set(keyed) != set(saved):
            message = f"The saved state is of the callbacks {sorted(saved)}; this run has {sorted(keyed)}."
            raise StateError(message)
        for key, callback in keyed.items():
            version = saved[key]["version"]
            if version != callback.state_version:
                message = (
                    f"The saved state of {key} has version {version}; this package reads {callback.state_version}."
                )
                raise StateError(message)
            callback.load_state_dict({name: value for name, value in saved[key].items() if name != "version"})
        self.progress.step = int(state["progress"]["step"])
        self.progress.epoch = int(state["progress"]["epoch"])
        unfinished = state["unfinished"]
        self._batch = int(unfinished["batch"])
        self._in_batch = bool(unfinished["in_batch"])
        self._has_begun_step = bool(unfinished["has_begun_step"])
        self._has_scored = bool(unfinished["has_scored"])
        self._had_finite_gradients = bool(unfinished["had_finite_gradients"])
        self._uses_step_hooks = bool(unfinished["uses_step_hooks"])
        self._clock.has_seen_optimizer = bool(unfinished["has_seen_optimizer"])
        self._clock.has_unclaimed_update = bool(unfinished["has_unclaimed_update"])

    def _keyed(self) -> dict[str, Callback]:
        return {f"{index}:{type(callback).__name__}": callback for index, callback in enumerate(self.callbacks_list)}

    def _overriding(self, name: str) -> list[tuple[Callback, Hook]]:
        order = reversed(self._staged) if name in UNDO_HOOKS else self._staged
        base = getattr(Callback, name)
        listening = [callback for callback in order if getattr(type(callback), name) is not base]
        for callback in listening:
            _check_signature(callback, name)
        return [(callback, getattr(callback, name)) for callback in listening]

    def _registered(self, scope: str) -> list[tuple[Hook, tuple[Any, ...], dict[str, Any]]]:
        if scope not in self._extra:
            message = f"There is no hook {scope!r}.{did_you_mean(scope, HOOKS)} Hooks: {', '.join(HOOKS)}."
            raise ConfigError(message)
        return self._extra[scope]

    def _run(self, name: str, *arguments: object) -> None:
        for callback, call in self._table[name]:
            self._guarded(callback, name, call, *arguments)
        for hook, args, kwargs in self._extra[name]:
            if args or kwargs:
                hook(*args, **kwargs)
            else:
                hook(*arguments)

    def _guarded(self, callback: Callback, name: str, call: Callable[..., Result], *arguments: object) -> Result:
        try:
            return call(*arguments)
        except Exception as error:
            where = f"epoch {self.progress.epoch}, optimizer step {self.progress.step}"
            error.add_note(f"In {type(callback).__name__}.{name} of inc_torch, at {where}.")
            raise

    def _require_training(self, name: str) -> None:
        if self._phase == "new":
            self._warn_once("on_train_begin")
            self.on_train_begin()
        if self._phase == "ended":
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
        self.progress.optimizers.add(optimizer)
        if a_step_went_by:
            self._settle()
        if not self._has_scored:
            self._warn_once("on_before_optimizer_step")
            self._score()

    def _score(self) -> None:
        if not self._has_begun_step:
            self._warn_once("on_step_begin")
            self._has_begun_step = True
            self._run("on_step_begin", self._batch)
        self._has_scored = True
        self._had_finite_gradients = self._clock.has_seen_optimizer or self._clock.has_finite_gradients()
        self._run("on_before_optimizer_step")

    def _settle(self, *, at_batch_end: bool = False) -> None:
        """Do the work after an optimizer step whose ``on_after_optimizer_step`` did not come.

        Optimizers tell for certain. Where none was ever seen, a step that was scored is taken for done, and a
        loop that uses neither optimizer hook is taken to update the weights in every batch.
        """
        if self._clock.has_seen_optimizer:
            is_due = self._clock.claim()
        else:
            silent_batch = at_batch_end and self._in_batch and not self._uses_step_hooks
            is_due = (self._has_scored or silent_batch) and self._seems_updated()
        if is_due:
            self._warn_once("on_after_optimizer_step")
            self._finish_step()

    def _seems_updated(self) -> bool:
        """Whether a step without an optimizer's word is believed: gradients were finite when last looked at."""
        return self._had_finite_gradients if self._has_scored else self._clock.has_finite_gradients()

    def _finish_step(self) -> None:
        self._run("on_after_optimizer_step")
        self.progress.step += 1
        self._has_scored = False
        self._has_begun_step = False

    def _warn_once(self, hook: str) -> None:
        if hook not in self._told and (self._table[hook] or self._extra[hook]):
            self._told.add(hook)
            message = f"The training loop does not call {hook}; its work is done all the same. Call it {_PLACES[hook]}."
            warnings.warn(message, LoopWarning, stacklevel=4)


def _check_signature(callback: Callback, name: str) -> None:
    expected = list(inspect.signature(getattr(Callback, name)).parameters.values())[1:]
    try:
        inspect.signature(getattr(callback, name)).bind(*(None for _ in expected))
    except TypeError as error:
        names = ", ".join(parameter.name for parameter in expected)
        message = f"{type(callback).__name__}.{name} must accept ({names}): {error}."
        raise ConfigError(message) from error
