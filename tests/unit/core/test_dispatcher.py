"""The dispatcher: order, folding of the loss, what may be forgotten, and what is an error."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import optimizer as torch_optimizer

from inc_torch import Callback
from inc_torch.callbacks import Stage
from inc_torch.core.dispatcher import Dispatcher
from inc_torch.core.errors import ConfigError, ConfigTypeError, HookOrderError, LoopWarning, StateError
from inc_torch.core.hooks import HOOKS, UNDO_HOOKS

LOSS_ARGUMENTS = ("batch", "output", torch.tensor(1.0))


class Everything(Callback):
    """Writes down every call, with its own name."""

    def __init__(self, name, log, stage=Stage.OBSERVE):
        self.name, self.log = name, log
        self.stage = stage

    def __repr__(self):
        return f"<{self.name}>"

    def on_train_begin(self, dataloader=None):
        self.log.append((self.name, "on_train_begin", dataloader))

    def on_epoch_begin(self, epoch):
        self.log.append((self.name, "on_epoch_begin", epoch))

    def on_step_begin(self, batch_id):
        self.log.append((self.name, "on_step_begin", batch_id))

    def on_after_compute_loss(self, input, student_output, student_loss, teacher_output=None):
        self.log.append((self.name, "on_after_compute_loss", float(student_loss)))
        return student_loss * 2 + len(self.name)

    def on_before_optimizer_step(self):
        self.log.append((self.name, "on_before_optimizer_step"))

    def on_after_optimizer_step(self):
        self.log.append((self.name, "on_after_optimizer_step"))

    def on_step_end(self):
        self.log.append((self.name, "on_step_end"))

    def on_epoch_end(self):
        self.log.append((self.name, "on_epoch_end"))

    def on_before_eval(self):
        self.log.append((self.name, "on_before_eval"))

    def on_after_eval(self):
        self.log.append((self.name, "on_after_eval"))

    def on_train_end(self):
        self.log.append((self.name, "on_train_end"))


class Steps(Callback):
    """Counts the work of the two optimizer hooks, and of the start of a step."""

    def __init__(self):
        self.begun = self.scored = self.updated = 0
        self.order = []

    def on_step_begin(self, batch_id):
        self.begun += 1
        self.order.append(f"begin {self.progress.step}")

    def on_before_optimizer_step(self):
        self.scored += 1
        self.order.append(f"score {self.progress.step}")

    def on_after_optimizer_step(self):
        self.updated += 1
        self.order.append(f"after {self.progress.step}")


def dispatcher_of(*callbacks, model=None):
    dispatcher = Dispatcher(callbacks, model or nn.Linear(3, 2))
    dispatcher.prepare()
    return dispatcher


def update(dispatcher, optimizer=None, model=None):
    """Forward, backward and a step of the optimizer, or by hand."""
    model = model or dispatcher._model
    model(torch.ones(1, 3)).sum().backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
        return
    for parameter in model.parameters():
        parameter.data -= 0.1 * parameter.grad
        parameter.grad = None


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def messages(caught):
    return [str(warning.message) for warning in caught]


FORGOTTEN = {
    hook: f"The training loop does not call {hook}; its work is done all the same."
    for hook in ("on_train_begin", "on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step")
}


def expecting(*hooks):
    """Exactly one warning for each of ``hooks``, and no other."""
    return _Expecting(hooks)


class _Expecting:
    def __init__(self, hooks):
        self._hooks, self._catch = hooks, warnings.catch_warnings(record=True)

    def __enter__(self):
        self._caught = self._catch.__enter__()
        warnings.simplefilter("always")

    def __exit__(self, *error):
        self._catch.__exit__(*error)
        if error[0] is None:
            said = messages(self._caught)
            assert len(said) == len(self._hooks), said
            for hook in self._hooks:
                assert sum(message.startswith(FORGOTTEN[hook]) for message in said) == 1, (hook, said)
            assert all(warning.category is LoopWarning for warning in self._caught)


class TestOrder:
    def test_of_stages_on_the_way_in_and_back(self):
        log = []
        stages = [Stage.MASK, Stage.REWRITE, Stage.OBSERVE]
        dispatcher = dispatcher_of(*(Everything(stage.name, log, stage) for stage in stages))
        calls = {
            "on_train_begin": (None,),
            "on_epoch_begin": (0,),
            "on_step_begin": (0,),
            "on_after_compute_loss": LOSS_ARGUMENTS,
            "on_before_optimizer_step": (),
            "on_after_optimizer_step": (),
            "on_step_end": (),
            "on_epoch_end": (),
            "on_before_eval": (),
            "on_after_eval": (),
            "on_train_end": (),
        }
        assert tuple(calls) == HOOKS
        optimizer = sgd(dispatcher._model)
        for hook, arguments in calls.items():
            if hook == "on_after_optimizer_step":
                update(dispatcher, optimizer)
            log.clear()
            getattr(dispatcher, hook)(*arguments)
            expected = ["REWRITE", "OBSERVE", "MASK"]
            if hook in UNDO_HOOKS:
                expected.reverse()
            assert [entry[:2] for entry in log] == [(name, hook) for name in expected]

    def test_within_a_stage_is_the_users(self):
        log = []
        dispatcher = dispatcher_of(*(Everything(name, log) for name in "abc"))
        dispatcher.on_train_begin("loader")
        assert log == [(name, "on_train_begin", "loader") for name in "abc"]
        dispatcher.on_train_end()
        assert log[3:] == [(name, "on_train_end") for name in "cba"]

    def test_of_preparation_follows_stages(self):
        log = []

        class Prepared(Callback):
            def __init__(self, stage):
                self.stage = stage

            def prepare(self, model, progress):
                super().prepare(model, progress)
                log.append(self.stage)

        dispatcher_of(Prepared(Stage.MASK), Prepared(Stage.REWRITE), Prepared(Stage.OBSERVE))
        assert log == [Stage.REWRITE, Stage.OBSERVE, Stage.MASK]

    def test_of_the_list_and_of_repr_is_the_users(self):
        first, second = Everything("b", [], Stage.MASK), Everything("a", [], Stage.REWRITE)
        dispatcher = dispatcher_of(first, second)
        assert dispatcher.callbacks_list == [first, second]
        assert str(dispatcher.callbacks_list) == "[<b>, <a>]"
        assert repr(dispatcher) == "Dispatcher([<b>, <a>])"


class TestLoss:
    @pytest.mark.parametrize("value", [3.5, 3, np.float32(3.5), np.float64(3.5), True])
    def test_numbers_become_one_tensor(self, value):
        loss = dispatcher_of(Steps()).on_after_compute_loss
        folded = loss("batch", "output", value)
        assert isinstance(folded, torch.Tensor)
        assert folded.dim() == 0
        assert folded.dtype == torch.float32
        assert folded.item() == float(value)

    def test_is_the_users_own_tensor_where_nobody_listens(self):
        dispatcher = dispatcher_of(Steps())
        dispatcher.on_train_begin()
        loss = torch.tensor(2.0, requires_grad=True)
        assert dispatcher.on_after_compute_loss("batch", "output", loss) is loss

    def test_is_folded_over_all_callbacks(self):
        log = []
        dispatcher = dispatcher_of(Everything("a", log), Everything("bbb", log))
        dispatcher.on_train_begin()
        loss = dispatcher.on_after_compute_loss("batch", "output", torch.tensor(5.0))
        assert loss.item() == (5 * 2 + 1) * 2 + 3
        assert [entry[2] for entry in log if entry[1] == "on_after_compute_loss"] == [5.0, 11.0]

    def test_of_the_user_is_not_changed_in_place(self):
        dispatcher = dispatcher_of(Everything("a", []))
        dispatcher.on_train_begin()
        loss = torch.tensor(5.0)
        dispatcher.on_after_compute_loss("batch", "output", loss)
        assert loss.item() == 5.0

    def test_takes_keywords_by_the_names_of_inc(self):
        seen = {}

        class Look(Callback):
            def on_after_compute_loss(self, input, student_output, student_loss, teacher_output=None):
                seen.update(input=input, student_output=student_output, teacher_output=teacher_output)
                return student_loss

        dispatcher = dispatcher_of(Look())
        dispatcher.on_train_begin()
        dispatcher.on_after_compute_loss(input=1, student_output=2, student_loss=3.0, teacher_output=4)
        assert seen == {"input": 1, "student_output": 2, "teacher_output": 4}

    @pytest.mark.parametrize("bad", [None, "0.3", [torch.tensor(1.0)]])
    def test_that_is_neither_number_nor_tensor_is_refused(self, bad):
        dispatcher = dispatcher_of(Steps())
        dispatcher.on_train_begin()
        with pytest.raises(ConfigTypeError, match=r"student_loss=.* of type \w+: expected a tensor or") as caught:
            dispatcher.on_after_compute_loss("batch", "output", bad)
        assert repr(bad) in str(caught.value)
        assert "if the batch has labels" in str(caught.value)

    def test_may_be_missing_where_a_callback_makes_one(self):
        class Make(Callback):
            def on_after_compute_loss(self, input, student_output, student_loss, teacher_output=None):
                return torch.tensor(7.0)

        dispatcher = dispatcher_of(Make())
        dispatcher.on_train_begin()
        assert dispatcher.on_after_compute_loss("batch", "output", None).item() == 7.0

    def test_that_a_callback_forgets_to_return_is_an_error(self):
        class Forgets(Callback):
            def on_after_compute_loss(self, input, student_output, student_loss, teacher_output=None):
                student_loss.sum()

        dispatcher = dispatcher_of(Forgets())
        dispatcher.on_train_begin()
        with pytest.raises(ConfigTypeError, match=r"Forgets\.on_after_compute_loss returned None: expected the loss"):
            dispatcher.on_after_compute_loss(*LOSS_ARGUMENTS)

    def test_is_replaced_by_a_tensor_that_a_hook_returns(self):
        dispatcher = dispatcher_of(Everything("a", []))
        dispatcher.on_train_begin()
        dispatcher.register_hook("on_after_compute_loss", lambda batch, output, loss, teacher: loss * 10)
        dispatcher.register_hook("on_after_compute_loss", lambda batch, output, loss, teacher: "no loss")
        assert dispatcher.on_after_compute_loss("batch", "output", 1.0).item() == 30.0

    def test_never_asked_for_is_said_once(self):
        class Listens(Steps):
            def on_after_compute_loss(self, input, student_output, student_loss, teacher_output=None):
                return student_loss

        dispatcher = dispatcher_of(Listens())
        optimizer = sgd(dispatcher._model)
        dispatcher.on_train_begin()
        with pytest.warns(LoopWarning) as caught:
            for index in range(3):
                dispatcher.on_step_begin(index)
                dispatcher.on_before_optimizer_step()
                update(dispatcher, optimizer)
                dispatcher.on_after_optimizer_step()
        assert messages(caught) == [
            "The training loop does not call on_after_compute_loss, so Listens had no part in this step. "
            "Call it between the loss and backward, and go on with the loss that it returns."
        ]


class TestPhases:
    def test_begin_and_end_happen_once(self):
        log = []
        dispatcher = dispatcher_of(Everything("a", log))
        dispatcher.on_train_begin("first")
        dispatcher.on_train_begin("second")
        assert log == [("a", "on_train_begin", "first")]
        assert not dispatcher.has_ended
        dispatcher.on_train_end()
        dispatcher.on_train_end()
        assert log[1:] == [("a", "on_train_end")]
        assert dispatcher.has_ended

    @pytest.mark.parametrize(
        ("hook", "arguments"),
        [
            ("on_train_begin", ()),
            ("on_epoch_begin", (1,)),
            ("on_step_begin", (1,)),
            ("on_after_compute_loss", LOSS_ARGUMENTS),
            ("on_before_optimizer_step", ()),
            ("on_after_optimizer_step", ()),
            ("on_step_end", ()),
            ("on_epoch_end", ()),
        ],
    )
    def test_training_hooks_after_the_end_are_errors(self, hook, arguments):
        log = []
        dispatcher = dispatcher_of(Everything("a", log))
        dispatcher.on_train_begin()
        dispatcher.on_train_end()
        log.clear()
        with pytest.raises(HookOrderError, match=f"{hook} was called after on_train_end: the model is") as caught:
            getattr(dispatcher, hook)(*arguments)
        assert "Make a new manager with prepare_compression" in str(caught.value)
        assert log == []

    def test_evaluation_is_free_before_and_after_training(self):
        log = []
        dispatcher = dispatcher_of(Everything("a", log))
        dispatcher.on_before_eval()
        dispatcher.on_after_eval()
        dispatcher.on_train_begin()
        dispatcher.on_train_end()
        dispatcher.on_before_eval()
        dispatcher.on_after_eval()
        assert [entry[1] for entry in log if "eval" in entry[1]] == ["on_before_eval", "on_after_eval"] * 2

    def test_an_end_that_fails_can_be_repeated(self):
        class Fails(Callback):
            times = 0

            def on_train_end(self):
                self.times += 1
                if self.times == 1:
                    raise ValueError("not yet")

        steps = Steps()
        dispatcher = dispatcher_of(Fails(), steps)
        optimizer = sgd(dispatcher._model)
        dispatcher.on_train_begin()
        with pytest.raises(ValueError, match="not yet"):
            dispatcher.on_train_end()
        assert not dispatcher.has_ended
        dispatcher.on_step_begin(0)
        dispatcher.on_before_optimizer_step()
        update(dispatcher, optimizer)
        dispatcher.on_after_optimizer_step()
        dispatcher.on_train_end()
        assert steps.progress.step == 1
        assert dispatcher.has_ended

    def test_epochs_are_progress(self):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        dispatcher.on_train_begin()
        dispatcher.on_epoch_begin(4)
        assert steps.progress.epoch == 4


def complete(dispatcher, optimizer, count=3, leave_out=()):
    """A loop of ``count`` batches that calls every hook but some."""
    call = {hook: getattr(dispatcher, hook) for hook in HOOKS}
    call |= {hook: lambda *_: None for hook in leave_out}
    call["on_train_begin"]()
    for index in range(count):
        call["on_step_begin"](index)
        dispatcher._model(torch.ones(1, 3)).sum().backward()
        call["on_before_optimizer_step"]()
        optimizer.step()
        call["on_after_optimizer_step"]()
        optimizer.zero_grad()
        call["on_step_end"]()
    call["on_train_end"]()


COMPLETE = ["begin 0", "score 0", "after 0", "begin 1", "score 1", "after 1", "begin 2", "score 2", "after 2"]


class TestForgottenHooks:
    def test_none(self):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        complete(dispatcher, sgd(dispatcher._model))
        assert steps.order == COMPLETE
        assert steps.progress.step == 3

    @pytest.mark.parametrize(
        "left_out",
        [
            ("on_train_begin",),
            ("on_step_begin",),
            ("on_before_optimizer_step",),
            ("on_after_optimizer_step",),
            ("on_before_optimizer_step", "on_after_optimizer_step"),
            ("on_step_begin", "on_before_optimizer_step"),
            ("on_train_begin", "on_after_optimizer_step"),
            ("on_train_begin", "on_before_optimizer_step", "on_after_optimizer_step"),
            ("on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step"),
            ("on_train_begin", "on_step_begin"),
        ],
        ids="+".join,
    )
    def test_are_made_up_for_with_one_warning_each(self, left_out):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        listened = [hook for hook in left_out if hook != "on_train_begin"]
        with expecting(*listened):
            complete(dispatcher, sgd(dispatcher._model), leave_out=left_out)
        assert steps.order == COMPLETE
        assert steps.progress.step == 3

    @pytest.mark.parametrize("also", [(), ("on_after_optimizer_step",), ("on_before_optimizer_step",)], ids="+".join)
    def test_on_step_end(self, also):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        with expecting(*also):
            complete(dispatcher, sgd(dispatcher._model), leave_out=("on_step_end", *also))
        assert steps.order == COMPLETE

    def test_all_between_begin_and_end(self):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        left_out = ("on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step")
        with expecting(*left_out):
            complete(dispatcher, sgd(dispatcher._model), leave_out=(*left_out, "on_step_end"))
        assert steps.order == COMPLETE
        assert steps.progress.step == 3

    def test_on_train_begin_is_said_where_somebody_listens(self):
        log = []
        dispatcher = dispatcher_of(Everything("a", log))
        with expecting("on_train_begin"):
            dispatcher.on_step_begin(0)
            dispatcher.on_step_begin(1)
        assert [entry[1] for entry in log] == ["on_train_begin", "on_step_begin", "on_step_begin"]

    @pytest.mark.parametrize(
        ("hook", "place"),
        [
            ("on_train_begin", "once before the loop"),
            ("on_step_begin", "before the forward of each batch"),
            ("on_before_optimizer_step", "between backward and optimizer.step()"),
            ("on_after_optimizer_step", "right after optimizer.step()"),
        ],
    )
    def test_the_warning_says_where_to_call(self, hook, place):
        dispatcher = dispatcher_of(Everything("a", []))
        with pytest.warns(LoopWarning) as caught:
            complete(dispatcher, sgd(dispatcher._model), leave_out=(hook, "on_after_compute_loss"))
        said = [message for message in messages(caught) if hook in message]
        assert said == [FORGOTTEN[hook] + f" Call it {place}."]

    def test_the_warning_points_at_the_loop(self):
        dispatcher = dispatcher_of(Steps())
        with pytest.warns(LoopWarning) as caught:
            complete(dispatcher, sgd(dispatcher._model), leave_out=("on_after_optimizer_step",))
        assert [warning.filename for warning in caught] == [__file__]

    def test_are_not_mentioned_where_nobody_listens(self):
        class OnlyEnd(Callback):
            ended = 0

            def on_train_end(self):
                self.ended += 1

        callback = OnlyEnd()
        dispatcher = dispatcher_of(callback)
        optimizer = sgd(dispatcher._model)
        for _ in range(3):
            update(dispatcher, optimizer)
        dispatcher.on_train_end()
        assert callback.ended == 1

    def test_are_not_mentioned_where_lateness_costs_nothing(self):
        class Exact(Steps):
            exact_when_late = frozenset({"on_before_optimizer_step", "on_after_optimizer_step"})

        left_out = ("on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step")
        exact = Exact()
        dispatcher = dispatcher_of(exact)
        with expecting("on_step_begin"):
            complete(dispatcher, sgd(dispatcher._model), leave_out=left_out)
        assert (exact.begun, exact.scored, exact.updated) == (3, 3, 3)
        beside_another = dispatcher_of(Exact(), Steps())
        with expecting(*left_out):
            complete(beside_another, sgd(beside_another._model), leave_out=left_out)
        with_a_hook = dispatcher_of(Exact())
        with_a_hook.register_hook("on_before_optimizer_step", lambda: None)
        with expecting("on_step_begin", "on_before_optimizer_step"):
            complete(with_a_hook, sgd(with_a_hook._model), leave_out=left_out)

    def test_steps_are_counted_though_nobody_listens(self):
        class OnlyEnd(Callback):
            def on_train_end(self):
                self.steps = self.progress.step

        callback = OnlyEnd()
        dispatcher = dispatcher_of(callback)
        optimizer = sgd(dispatcher._model)
        dispatcher.on_train_begin()
        for _ in range(3):
            update(dispatcher, optimizer)
        dispatcher.on_train_end()
        assert callback.steps == 3

    def test_are_said_for_registered_hooks_too(self):
        calls = []
        dispatcher = dispatcher_of(Callback())
        dispatcher.register_hook("on_after_optimizer_step", lambda: calls.append("after"))
        with expecting("on_after_optimizer_step"):
            complete(dispatcher, sgd(dispatcher._model), leave_out=("on_after_optimizer_step",))
        assert calls == ["after"] * 3

    @pytest.mark.parametrize(
        "hook", ["on_step_end", "on_epoch_begin", "on_epoch_end", "on_before_eval", "on_train_end"]
    )
    def test_work_after_a_step_is_done_at_the_next_hook(self, hook):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        optimizer = sgd(dispatcher._model)
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(0)
        dispatcher.on_before_optimizer_step()
        update(dispatcher, optimizer)
        assert steps.updated == 0
        with expecting("on_after_optimizer_step"):
            getattr(dispatcher, hook)(*([1] if hook == "on_epoch_begin" else []))
        assert steps.updated == 1


class TestGradientAccumulation:
    @pytest.mark.parametrize(
        "left_out",
        [
            (),
            ("on_after_optimizer_step",),
            ("on_before_optimizer_step",),
            ("on_before_optimizer_step", "on_after_optimizer_step"),
        ],
        ids="+".join,
    )
    def test_counts_optimizer_steps(self, left_out):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        optimizer = sgd(dispatcher._model)
        with expecting(*left_out):
            dispatcher.on_train_begin()
            for index in range(9):
                dispatcher.on_step_begin(index)
                dispatcher._model(torch.ones(1, 3)).sum().backward()
                if index % 3 == 2:
                    if "on_before_optimizer_step" not in left_out:
                        dispatcher.on_before_optimizer_step()
                    optimizer.step()
                    if "on_after_optimizer_step" not in left_out:
                        dispatcher.on_after_optimizer_step()
                    optimizer.zero_grad()
                dispatcher.on_step_end()
            dispatcher.on_train_end()
        assert (steps.begun, steps.scored, steps.updated) == (9, 3, 3)
        assert steps.progress.step == 3

    def test_without_an_optimizer_counts_real_updates(self):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        with expecting("on_before_optimizer_step", "on_after_optimizer_step"):
            dispatcher.on_train_begin()
            for index in range(9):
                dispatcher.on_step_begin(index)
                if index % 3 == 2:
                    update(dispatcher)
                dispatcher.on_step_end()
            dispatcher.on_train_end()
        assert (steps.begun, steps.scored, steps.updated) == (9, 3, 3)


class TestWithoutAnOptimizer:
    def loop(self, dispatcher, leave_out=(), count=3):
        call = {hook: getattr(dispatcher, hook) for hook in HOOKS}
        call |= {hook: lambda *_: None for hook in leave_out}
        call["on_train_begin"]()
        for index in range(count):
            call["on_step_begin"](index)
            model = dispatcher._model
            model(torch.ones(1, 3)).sum().backward()
            call["on_before_optimizer_step"]()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
            call["on_after_optimizer_step"]()
            call["on_step_end"]()
        call["on_train_end"]()

    @pytest.mark.parametrize(
        "left_out",
        [
            (),
            ("on_after_optimizer_step",),
            ("on_step_begin",),
            ("on_before_optimizer_step", "on_after_optimizer_step"),
            ("on_before_optimizer_step",),
            ("on_after_optimizer_step", "on_step_end"),
            ("on_before_optimizer_step", "on_after_optimizer_step", "on_step_end"),
            ("on_step_begin", "on_after_optimizer_step"),
            ("on_step_begin", "on_step_end"),
        ],
        ids="+".join,
    )
    def test_updates_are_seen_in_the_weights(self, left_out):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        with expecting(*(hook for hook in left_out if hook != "on_step_end")):
            self.loop(dispatcher, left_out)
        assert (steps.begun, steps.scored, steps.updated) == (3, 3, 3)
        assert steps.progress.step == 3

    def test_an_update_that_was_skipped_does_not_count(self):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(0)
        dispatcher.on_before_optimizer_step()
        dispatcher.on_after_optimizer_step()
        dispatcher.on_step_end()
        assert (steps.scored, steps.updated, steps.progress.step) == (1, 0, 0)

    def test_weights_loaded_before_the_first_batch_are_no_update(self):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        dispatcher.on_train_begin()
        dispatcher._model.load_state_dict(nn.Linear(3, 2).state_dict())
        dispatcher.on_epoch_begin(0)
        dispatcher.on_step_begin(0)
        dispatcher.on_step_end()
        assert (steps.updated, steps.progress.step) == (0, 0)

    def test_one_changed_value_in_a_small_parameter_is_an_update(self):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(0)
        dispatcher.on_before_optimizer_step()
        with torch.no_grad():
            dispatcher._model.bias[1] += 1e-6
        dispatcher.on_after_optimizer_step()
        assert steps.progress.step == 1

    def test_only_after_the_step(self):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        dispatcher.on_train_begin()
        with expecting("on_step_begin", "on_before_optimizer_step"):
            for _ in range(3):
                update(dispatcher)
                dispatcher.on_after_optimizer_step()
        assert (steps.begun, steps.scored, steps.updated, steps.progress.step) == (3, 3, 3, 3)

    def test_what_callbacks_write_after_the_step_is_no_update(self):
        class Masks(Steps):
            def on_after_optimizer_step(self):
                super().on_after_optimizer_step()
                with torch.no_grad():
                    self.model.weight[0] = 0

        steps = Masks()
        dispatcher = dispatcher_of(steps)
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(0)
        dispatcher.on_before_optimizer_step()
        update(dispatcher)
        dispatcher.on_after_optimizer_step()
        dispatcher.on_after_optimizer_step()
        assert steps.progress.step == 1

    def test_a_forward_that_changes_weights_is_no_update(self):
        """An embedding with max_norm shortens its rows when they are looked up."""
        model = nn.Sequential(nn.Embedding(4, 3, max_norm=0.1), nn.Linear(3, 2))
        steps = Steps()
        dispatcher, optimizer = dispatcher_of(steps, model=model), sgd(model)
        dispatcher.on_train_begin()
        for index in range(2):
            dispatcher.on_step_begin(index)
            model(torch.arange(4)).sum().backward()
            dispatcher.on_before_optimizer_step()
            optimizer.step()
            dispatcher.on_after_optimizer_step()
            dispatcher.on_step_end()
        assert (steps.scored, steps.updated, steps.progress.step) == (2, 2, 2)


class TestScaler:
    """A gradient scaler leaves out steps whose gradients are not finite."""

    def loop(self, dispatcher, optimizer, bad, hooks=HOOKS):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        skipped = []
        if "on_train_begin" in hooks:
            dispatcher.on_train_begin()
        for index in range(5):
            if "on_step_begin" in hooks:
                dispatcher.on_step_begin(index)
            output = dispatcher._model(torch.ones(1, 3)).sum()
            scaler.scale(output * (float("inf") if index in bad else 1.0)).backward()
            before = dispatcher._model.weight.detach().clone()
            if "on_before_optimizer_step" in hooks:
                dispatcher.on_before_optimizer_step()
            scaler.step(optimizer)
            skipped += [index] if torch.equal(before, dispatcher._model.weight) else []
            scaler.update()
            if "on_after_optimizer_step" in hooks:
                dispatcher.on_after_optimizer_step()
            optimizer.zero_grad()
            if "on_step_end" in hooks:
                dispatcher.on_step_end()
        dispatcher.on_train_end()
        assert skipped == sorted(bad)

    @pytest.mark.parametrize("bad", [{0}, {0, 1}, {2}, {4}, {0, 2, 4}, set(range(5))], ids=str)
    @pytest.mark.parametrize(
        "left_out",
        [
            (),
            ("on_after_optimizer_step",),
            ("on_before_optimizer_step",),
            ("on_before_optimizer_step", "on_after_optimizer_step"),
            ("on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step", "on_step_end"),
        ],
        ids="+".join,
    )
    def test_skipped_steps_do_not_count(self, bad, left_out):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        expected = 5 - len(bad)
        listened = [hook for hook in left_out if hook != "on_step_end"] if expected else []
        with expecting(*listened):
            hooks = [hook for hook in HOOKS if hook not in left_out]
            self.loop(dispatcher, sgd(dispatcher._model), bad, hooks)
        assert (steps.updated, steps.progress.step) == (expected, expected)

    @pytest.mark.parametrize("bad", [{0}, {0, 1}, {2}, {4}, {0, 2, 4}, set(range(5))], ids=str)
    @pytest.mark.parametrize("with_hooks", [True, False])
    def test_fused_optimizers_are_asked_for_found_inf(self, bad, with_hooks):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        optimizer = torch.optim.AdamW(dispatcher._model.parameters(), fused=True)
        expected = 5 - len(bad)
        hooks = HOOKS if with_hooks else ("on_train_begin",)
        unheard = ["on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step"]
        with expecting(*([] if with_hooks else unheard if expected else unheard[:2])):
            self.loop(dispatcher, optimizer, bad, hooks)
        assert (steps.updated, steps.progress.step) == (expected, expected)
        assert steps.scored == 5  # also the step after a skipped one

    def test_infinity_outside_the_watched_layers_skips_all_the_same(self):
        """The scaler looks at all gradients, a pruner only at its layers."""

        class First(Steps):
            def tracked_parameters(self):
                yield self.model[0].weight

        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
        steps = First()
        dispatcher = dispatcher_of(steps, model=model)
        optimizer = sgd(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(0)
        scaler.scale(model(torch.ones(1, 3)).sum()).backward()
        model[1].bias.grad.fill_(float("inf"))
        dispatcher.on_before_optimizer_step()
        scaler.step(optimizer)
        dispatcher.on_after_optimizer_step()
        assert (steps.updated, steps.progress.step) == (0, 0)


class TestOptimizers:
    def two(self, dispatcher):
        model = dispatcher._model
        return torch.optim.SGD([model.weight], lr=0.1), torch.optim.Adam([model.bias], lr=0.1)

    @pytest.mark.parametrize(
        "left_out",
        [(), ("on_after_optimizer_step",), ("on_before_optimizer_step", "on_after_optimizer_step")],
        ids="+".join,
    )
    def test_two_of_one_model_make_one_step(self, left_out):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        first, second = self.two(dispatcher)
        with expecting(*left_out):
            dispatcher.on_train_begin()
            for index in range(3):
                dispatcher.on_step_begin(index)
                dispatcher._model(torch.ones(1, 3)).sum().backward()
                if not left_out or "on_before_optimizer_step" not in left_out:
                    dispatcher.on_before_optimizer_step()
                first.step()
                second.step()
                if not left_out:
                    dispatcher.on_after_optimizer_step()
                dispatcher.on_step_end()
            dispatcher.on_train_end()
        assert (steps.begun, steps.scored, steps.updated, steps.progress.step) == (3, 3, 3, 3)
        assert set(steps.progress.optimizers) == {first, second}

    def test_two_of_one_model_without_any_hook(self):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        first, second = self.two(dispatcher)
        with expecting("on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step"):
            dispatcher.on_train_begin()
            for _ in range(3):
                dispatcher._model(torch.ones(1, 3)).sum().backward()
                first.step()
                second.step()
            dispatcher.on_train_end()
        assert (steps.begun, steps.scored, steps.updated, steps.progress.step) == (3, 3, 3, 3)

    def test_two_with_the_same_parameters_make_one_step(self):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        first, second = sgd(dispatcher._model), sgd(dispatcher._model, lr=0.01)
        dispatcher.on_train_begin()
        for index in range(3):
            dispatcher.on_step_begin(index)
            dispatcher._model(torch.ones(1, 3)).sum().backward()
            dispatcher.on_before_optimizer_step()
            first.step()
            second.step()
            dispatcher.on_after_optimizer_step()
            dispatcher.on_step_end()
        assert (steps.begun, steps.scored, steps.updated, steps.progress.step) == (3, 3, 3, 3)

    def test_one_that_steps_another_inside_makes_one_step(self):
        class Wrapper(torch.optim.Optimizer):
            def __init__(self, inner):
                self.inner = inner
                super().__init__(inner.param_groups, {})

            def step(self, closure=None):
                self.inner.step()

        steps = Steps()
        dispatcher = dispatcher_of(steps)
        optimizer = Wrapper(sgd(dispatcher._model))
        with expecting("on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step"):
            dispatcher.on_train_begin()
            for _ in range(3):
                update(dispatcher, optimizer)
            dispatcher.on_train_end()
        assert (steps.begun, steps.scored, steps.updated) == (3, 3, 3)

    def test_of_other_models_do_not_count(self):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        other = nn.Linear(3, 2)
        optimizer, theirs = sgd(dispatcher._model), sgd(other)
        dispatcher.on_train_begin()
        for index in range(2):
            dispatcher.on_step_begin(index)
            dispatcher._model(torch.ones(1, 3)).sum().backward()
            for _ in range(3):
                update(dispatcher, theirs, other)
            dispatcher.on_before_optimizer_step()
            update(dispatcher, theirs, other)
            optimizer.step()
            update(dispatcher, theirs, other)
            dispatcher.on_after_optimizer_step()
            update(dispatcher, theirs, other)
            dispatcher.on_step_end()
        assert (steps.scored, steps.updated, steps.progress.step) == (2, 2, 2)
        assert set(steps.progress.optimizers) == {optimizer}

    def test_that_hold_no_tracked_parameter_do_not_count(self):
        class Weight(Steps):
            def tracked_parameters(self):
                yield self.model.weight

        steps = Weight()
        dispatcher = dispatcher_of(steps)
        first, second = self.two(dispatcher)
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(0)
        dispatcher._model(torch.ones(1, 3)).sum().backward()
        dispatcher.on_before_optimizer_step()
        first.step()
        dispatcher.on_after_optimizer_step()
        second.step()
        dispatcher.on_step_end()
        assert steps.progress.step == 1
        assert set(steps.progress.optimizers) == {first}

    def test_one_that_is_dropped_is_forgotten(self):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        optimizer = sgd(dispatcher._model)
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(0)
        dispatcher.on_before_optimizer_step()
        update(dispatcher, optimizer)
        dispatcher.on_after_optimizer_step()
        assert len(steps.progress.optimizers) == 1
        del optimizer
        gc.collect()
        assert len(steps.progress.optimizers) == 0

    def test_two_runs_side_by_side(self):
        runs = [Steps(), Steps()]
        dispatchers = [dispatcher_of(steps) for steps in runs]
        optimizers = [sgd(dispatcher._model) for dispatcher in dispatchers]
        for dispatcher in dispatchers:
            dispatcher.on_train_begin()
        for index in range(4):
            for dispatcher in dispatchers[: 1 + index % 2]:
                dispatcher.on_step_begin(index)
            for dispatcher, optimizer in zip(dispatchers[: 1 + index % 2], optimizers, strict=False):
                dispatcher._model(torch.ones(1, 3)).sum().backward()
                dispatcher.on_before_optimizer_step()
                optimizer.step()
            for dispatcher in dispatchers[: 1 + index % 2]:
                dispatcher.on_after_optimizer_step()
                dispatcher.on_step_end()
        dispatchers[0].on_train_end()
        assert [steps.progress.step for steps in runs] == [4, 2]
        assert [(steps.begun, steps.scored, steps.updated) for steps in runs] == [(4, 4, 4), (2, 2, 2)]
        dispatchers[1].on_step_begin(9)
        dispatchers[1].on_before_optimizer_step()
        update(dispatchers[1], optimizers[1])
        dispatchers[1].on_after_optimizer_step()
        assert [steps.progress.step for steps in runs] == [4, 3]


class TestGlobalHooks:
    """Torch keeps the hooks of all optimizers in two dicts."""

    @pytest.fixture(autouse=True)
    def _clean(self):
        self.sweep()
        assert self.registered() == 0
        yield
        self.sweep()
        assert self.registered() == 0

    def sweep(self):
        """Hooks of runs that are gone are removed when another run starts or ends."""
        gc.collect()
        dispatcher = dispatcher_of(Steps())
        dispatcher.on_train_begin()
        dispatcher.on_train_end()

    def registered(self):
        before, after = torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks
        return len(before) + len(after)

    def test_are_there_until_training_ends(self):
        dispatcher = dispatcher_of(Steps())
        assert self.registered() == 2
        dispatcher.on_train_begin()
        dispatcher.on_train_begin()
        assert self.registered() == 2
        dispatcher.on_train_end()
        assert self.registered() == 0

    def test_of_one_run_stay_when_another_ends(self):
        first, second = dispatcher_of(Steps()), dispatcher_of(Steps())
        first.on_train_begin()
        second.on_train_begin()
        first.on_train_end()
        assert self.registered() == 2
        second.on_train_end()

    def test_go_with_a_run_that_was_given_up(self):
        dispatcher = dispatcher_of(Steps())
        model = weakref.ref(dispatcher._model)
        dispatcher.on_train_begin()
        del dispatcher
        gc.collect()
        assert model() is None
        self.sweep()
        assert self.registered() == 0

    def test_of_a_run_that_was_given_up_are_removed_at_a_safe_moment(self):
        """The collector may run while torch goes through its hooks, which forbids changing them."""

        class Collects(Callback):
            def on_before_optimizer_step(self):
                gc.collect()

        dispatcher_of(Steps()).on_train_begin()
        dispatcher = dispatcher_of(Collects())
        optimizer = sgd(dispatcher._model)
        dispatcher.on_train_begin()
        dispatcher_of(Steps()).on_train_begin()
        with expecting("on_before_optimizer_step"):
            update(dispatcher, optimizer)
        dispatcher.on_train_end()

    def test_outlive_an_error_in_the_loop_that_is_caught(self):
        steps = Steps()
        dispatcher = dispatcher_of(steps)
        optimizer = sgd(dispatcher._model)
        dispatcher.on_train_begin()
        for index in range(2):
            dispatcher.on_step_begin(index)
            dispatcher.on_before_optimizer_step()
            try:
                update(dispatcher, optimizer)
                raise ValueError("out of memory")
            except ValueError:
                pass
            dispatcher.on_after_optimizer_step()
        dispatcher.on_train_end()
        assert steps.progress.step == 2


class TestUserCallbacks:
    @pytest.mark.parametrize(
        ("hook", "wrong", "names"),
        [
            ("on_step_begin", lambda self: None, "batch_id"),
            ("on_epoch_begin", lambda self, epoch, extra: None, "epoch"),
            ("on_train_begin", lambda self: None, "dataloader"),
            ("on_before_optimizer_step", lambda self, optimizer: None, ""),
            (
                "on_after_compute_loss",
                lambda self, loss: loss,
                "input, student_output, student_loss, teacher_output",
            ),
        ],
    )
    def test_with_a_wrong_signature_are_refused_at_construction(self, hook, wrong, names):
        wrong_kind = type("Wrong", (Callback,), {hook: wrong})
        with pytest.raises(ConfigError, match=rf"Wrong\.{hook} must accept \({names}\): ") as caught:
            Dispatcher([wrong_kind()], nn.Linear(1, 1))
        assert isinstance(caught.value.__cause__, TypeError)

    def test_may_take_any_arguments(self):
        class Loose(Callback):
            def on_step_begin(self, *args, **kwargs):
                self.got = args

        callback = Loose()
        dispatcher = dispatcher_of(callback)
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(3)
        assert callback.got == (3,)

    @pytest.mark.parametrize("hook", HOOKS)
    def test_that_raise_carry_a_note(self, hook):
        def fail(self, *_):
            raise KeyError("mine")

        kind = type("Fails", (Callback,), {hook: fail})
        dispatcher = dispatcher_of(kind())
        if hook != "on_train_begin":
            dispatcher.on_train_begin()
        if hook == "on_after_optimizer_step":
            update(dispatcher, sgd(dispatcher._model))
        dispatcher.progress.step, dispatcher.progress.epoch = 7, 2
        arguments = {
            "on_epoch_begin": (2,),
            "on_step_begin": (0,),
            "on_after_compute_loss": LOSS_ARGUMENTS,
        }.get(hook, ())
        with pytest.raises(KeyError, match="mine") as caught:
            getattr(dispatcher, hook)(*arguments)
        assert caught.value.__notes__ == [f"In {hook} of Fails, called by inc_torch at epoch 2, optimizer step 7."]

    def test_that_raise_inside_an_optimizer_step_carry_a_note(self):
        class Fails(Callback):
            def on_before_optimizer_step(self):
                raise KeyError("mine")

        dispatcher = dispatcher_of(Fails())
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(0)
        with pytest.raises(KeyError, match="mine") as caught, pytest.warns(LoopWarning, match="on_before_optimizer"):
            update(dispatcher, sgd(dispatcher._model))
        assert caught.value.__notes__ == [
            "In on_before_optimizer_step of Fails, called by inc_torch at optimizer step 0."
        ]


class TestRegisteredHooks:
    def test_run_after_the_callbacks_with_the_arguments_of_the_hook(self):
        log = []
        dispatcher = dispatcher_of(Everything("a", log))
        dispatcher.register_hook("on_step_begin", lambda batch: log.append(("mine", batch)))
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(5)
        assert log[1:] == [("a", "on_step_begin", 5), ("mine", 5)]

    def test_take_their_own_arguments(self):
        calls = []

        def hook(*args, **kwargs):
            calls.append((args, kwargs))

        def other(*args, **kwargs):
            calls.append((args, kwargs))

        def third(*args, **kwargs):
            calls.append((args, kwargs))

        dispatcher = dispatcher_of(Callback())
        dispatcher.register_hook("on_step_begin", hook, input_args=[1, 2], input_kwargs={"key": 3})
        dispatcher.register_hook("on_step_begin", other, input_kwargs={"key": 4})
        dispatcher.register_hook("on_step_begin", third, [])
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(9)
        assert calls == [((1, 2), {"key": 3}), ((), {"key": 4}), ((), {})]

    def test_twice_at_one_scope_are_called_once(self):
        calls = []
        dispatcher = dispatcher_of(Callback())
        hook = calls.append
        for scope in ("on_step_begin", "on_step_begin", "on_epoch_begin"):
            dispatcher.register_hook(scope, hook)
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(1)
        dispatcher.on_epoch_begin(2)
        assert calls == [1, 2]

    def test_are_removed_exactly(self):
        calls = []
        first, second = lambda batch: calls.append("first"), lambda batch: calls.append("second")
        dispatcher = dispatcher_of(Callback())
        dispatcher.register_hook("on_step_begin", first)
        dispatcher.register_hook("on_step_begin", second)
        dispatcher.remove_hook("on_step_begin", second)
        dispatcher.remove_hook("on_step_begin", print)
        dispatcher.remove_hook("on_epoch_begin", first)
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(0)
        assert calls == ["first"]

    def test_that_are_bound_methods_are_told_apart_by_their_object(self):
        class Mine:
            def __init__(self):
                self.calls = 0

            def hook(self, batch):
                self.calls += 1

        one, two = Mine(), Mine()
        dispatcher = dispatcher_of(Callback())
        for mine in (one, one, two):
            dispatcher.register_hook("on_step_begin", mine.hook)
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(0)
        dispatcher.remove_hook("on_step_begin", one.hook)
        dispatcher.on_step_begin(1)
        assert (one.calls, two.calls) == (1, 2)

    def test_may_remove_themselves_or_add_others_while_they_run(self):
        calls = []
        dispatcher = dispatcher_of(Callback())

        def once(batch):
            calls.append(("once", batch))
            dispatcher.remove_hook("on_step_begin", once)
            dispatcher.register_hook("on_step_begin", lambda batch: calls.append(("added", batch)))

        dispatcher.register_hook("on_step_begin", once)
        dispatcher.register_hook("on_step_begin", lambda batch: calls.append(("other", batch)))
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(0)
        assert calls == [("once", 0), ("other", 0)]
        dispatcher.on_step_begin(1)
        assert calls[2:] == [("other", 1), ("added", 1)]

    def test_that_add_hooks_do_not_run_them_at_once(self):
        calls = []
        dispatcher = dispatcher_of(Callback())

        def adds(batch):
            dispatcher.register_hook("on_step_begin", calls.append)

        dispatcher.register_hook("on_step_begin", adds)
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(0)
        assert calls == []
        dispatcher.on_step_begin(1)
        assert calls == [1]

    @pytest.mark.parametrize("method", ["register_hook", "remove_hook"])
    def test_at_an_unknown_scope_are_refused_with_the_nearest(self, method):
        dispatcher = dispatcher_of(Callback())
        with pytest.raises(ConfigError, match="There is no hook 'on_step_start'") as caught:
            getattr(dispatcher, method)("on_step_start", print)
        assert "Did you mean 'on_step_" in str(caught.value)
        assert f"Hooks: {', '.join(HOOKS)}." in str(caught.value)

    def test_that_raise_carry_a_note(self):
        def my_hook(batch):
            raise ValueError("mine")

        dispatcher = dispatcher_of(Callback())
        dispatcher.register_hook("on_step_begin", my_hook)
        dispatcher.on_train_begin()
        with pytest.raises(ValueError, match="mine") as caught:
            dispatcher.on_step_begin(0)
        (note,) = caught.value.__notes__
        assert note.startswith("In on_step_begin of the hook ")
        assert "my_hook" in note
        assert note.endswith("called by inc_torch at optimizer step 0.")

    def test_at_the_end_see_a_run_that_has_ended(self):
        seen = []
        dispatcher = dispatcher_of(Callback())
        dispatcher.register_hook("on_train_end", lambda: seen.append(dispatcher.has_ended))
        dispatcher.on_train_begin()
        dispatcher.on_train_end()
        assert seen == [True]


class TestState:
    def test_of_another_list_of_callbacks_is_refused(self):
        state = dispatcher_of(Steps()).state_dict()
        with pytest.raises(StateError, match=r"callbacks \['0:Steps'\]; this run has \['0:Steps', '1:Callback'\]"):
            dispatcher_of(Steps(), Callback()).load_state_dict(state)

    def test_of_another_version_is_refused(self):
        class Newer(Steps):
            state_version = 3

        state = dispatcher_of(Newer()).state_dict()
        Newer.state_version = 2
        with pytest.raises(StateError, match="0:Newer has version 3; this package reads 2"):
            dispatcher_of(Newer()).load_state_dict(state)

    def test_of_a_callback_comes_back_whole_whatever_its_keys(self):
        class Mine(Callback):
            value = 0

            def state_dict(self):
                return {"version": self.value, "state": "x"}

            def load_state_dict(self, state):
                assert state.keys() == {"version", "state"}
                self.value = state["version"]

        first, second = Mine(), Mine()
        first.value = 41
        state = dispatcher_of(first).state_dict()
        dispatcher_of(second).load_state_dict(state)
        assert second.value == 41

    def test_is_checked_before_any_callback_is_touched(self):
        class Mine(Callback):
            loaded = 0

            def load_state_dict(self, state):
                self.loaded += 1

        callback = Mine()
        dispatcher = dispatcher_of(callback, Steps())
        state = dispatcher.state_dict()
        del state["callbacks"]["1:Steps"]["version"]
        with pytest.raises(StateError, match=r"1:Steps does not fit: missing \['version'\], unexpected \[\]"):
            dispatcher.load_state_dict(state)
        assert callback.loaded == 0

    @pytest.mark.parametrize(
        ("part", "key", "words"),
        [
            ("progress", "step", r"the progress does not fit: missing \['step'\]"),
            ("unfinished", "has_scored", r"the unfinished step does not fit: missing \['has_scored'\]"),
        ],
    )
    def test_with_something_missing_names_it(self, part, key, words):
        dispatcher = dispatcher_of(Steps())
        state = dispatcher.state_dict()
        del state[part][key]
        with pytest.raises(StateError, match=words):
            dispatcher.load_state_dict(state)

    @pytest.mark.parametrize("cut", [1, 2, 3])
    def test_of_a_loop_without_hooks_loses_no_step(self, cut):
        """Cut after an optimizer step whose work nobody has done yet."""
        model = nn.Linear(3, 2)
        steps = Steps()
        dispatcher, optimizer = dispatcher_of(steps, model=model), sgd(model)
        left_out = ("on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step")
        with expecting(*left_out[: 2 if cut == 1 else 3]):
            dispatcher.on_train_begin()
            for _ in range(cut):
                update(dispatcher, optimizer)
        assert steps.progress.step == cut - 1
        state = dispatcher.state_dict()

        again, model = Steps(), copy.deepcopy(model)
        dispatcher, optimizer = dispatcher_of(again, model=model), sgd(model)
        dispatcher.load_state_dict(state)
        with expecting(*left_out):
            dispatcher.on_train_begin()
            for _ in range(cut, 4):
                update(dispatcher, optimizer)
            dispatcher.on_train_end()
        assert again.progress.step == 4
        assert again.scored + cut == 4

    def test_between_two_optimizers_of_one_step_counts_one(self):
        model = nn.Linear(3, 2)
        dispatcher = dispatcher_of(Steps(), model=model)
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(0)
        F.mse_loss(model(torch.ones(1, 3)), torch.zeros(1, 2)).backward()
        dispatcher.on_before_optimizer_step()
        torch.optim.SGD([model.weight], lr=0.1).step()
        state = dispatcher.state_dict()

        again, model = Steps(), copy.deepcopy(model)
        dispatcher = dispatcher_of(again, model=model)
        dispatcher.load_state_dict(state)
        dispatcher.on_train_begin()
        model.bias.grad = torch.ones(2)
        torch.optim.SGD([model.bias], lr=0.1).step()
        dispatcher.on_after_optimizer_step()
        dispatcher.on_step_end()
        assert (again.scored, again.updated, again.progress.step) == (0, 1, 1)

    def test_of_weights_that_were_only_loaded_holds_no_update(self):
        dispatcher = dispatcher_of(Steps())
        dispatcher.on_train_begin()
        dispatcher._model.load_state_dict(nn.Linear(3, 2).state_dict())
        state = dispatcher.state_dict()

        again = Steps()
        dispatcher = dispatcher_of(again)
        dispatcher.load_state_dict(state)
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(0)
        dispatcher.on_step_end()
        assert again.progress.step == 0

    def test_of_an_update_by_hand_is_remembered(self):
        model = nn.Linear(3, 2)
        dispatcher = dispatcher_of(Steps(), model=model)
        dispatcher.on_train_begin()
        dispatcher.on_step_begin(0)
        dispatcher.on_before_optimizer_step()
        update(dispatcher)
        state = dispatcher.state_dict()

        again, model = Steps(), copy.deepcopy(model)
        dispatcher = dispatcher_of(again, model=model)
        dispatcher.load_state_dict(state)
        dispatcher.on_train_begin()
        dispatcher.on_after_optimizer_step()
        assert again.progress.step == 1
