"""Errors, the registry, hooks and stages, random states."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch

from inc_torch.core import errors
from inc_torch.core.callback import Callback
from inc_torch.core.errors import ConfigError, ConfigTypeError, StateError, did_you_mean
from inc_torch.core.hooks import HOOKS, UNDO_HOOKS, Progress, Stage
from inc_torch.core.registry import Registry
from inc_torch.core.state import check_keys, random_state, set_random_state


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "bases"),
        [
            (errors.ConfigError, (ValueError, AssertionError)),
            (errors.ConfigTypeError, (TypeError, ValueError, AssertionError)),
            (errors.ModelError, (ValueError,)),
            (errors.HookOrderError, (RuntimeError,)),
            (errors.StateError, (RuntimeError,)),
            (errors.CalibrationError, (RuntimeError,)),
            (errors.ArtifactError, (ValueError,)),
        ],
    )
    def test_are_caught_by_what_callers_expect(self, error, bases):
        assert issubclass(error, errors.IncTorchError)
        for base in bases:
            with pytest.raises(base):
                raise error("message")

    def test_warnings_have_one_base(self):
        assert issubclass(errors.LoopWarning, errors.IncTorchWarning)
        assert issubclass(errors.InexactWarning, errors.IncTorchWarning)
        assert issubclass(errors.IncTorchWarning, UserWarning)

    def test_of_a_field_name_value_and_rule(self):
        error = ConfigTypeError.field("Config", "name", "x", "a number")
        assert str(error) == "Config.name='x': expected a number."

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("on_step_begn", " Did you mean 'on_step_begin'?"),
            ("ON_STEP_BEGIN", " Did you mean 'on_step_begin'?"),
            ("zzz", ""),
            ("", ""),
        ],
    )
    def test_suggest_the_nearest_name(self, name, expected):
        assert did_you_mean(name, HOOKS) == expected


class TestRegistry:
    def make(self):
        registry = Registry("shape")

        @registry.register("square", summary="four sides")
        class Square:
            pass

        @registry.register("circle", summary="no side")
        class Circle:
            pass

        return registry, Square, Circle

    def test_finds_lists_and_describes(self):
        registry, square, circle = self.make()
        assert registry.get("square") is square
        assert registry.names() == ["circle", "square"]
        assert [(entry.name, entry.value, entry.summary) for entry in registry] == [
            ("circle", circle, "no side"),
            ("square", square, "four sides"),
        ]

    def test_suggests_a_name_for_an_unknown_one(self):
        with pytest.raises(ConfigError) as caught:
            self.make()[0].get("circel")
        assert str(caught.value) == "Unknown shape 'circel'. Did you mean 'circle'? Registered: circle, square."

    def test_gives_a_name_only_once(self):
        registry, square, _ = self.make()
        with pytest.raises(ConfigError, match=r"The shape 'square' is already registered by <class '.*Square'>"):
            registry.register("square", summary="another")(int)
        assert registry.get("square") is square

    def test_takes_the_same_class_again_as_after_a_reload(self):
        registry, square, _ = self.make()
        again = type("Square", (), {"__qualname__": square.__qualname__})
        registry.register("square", summary="four sides")(again)
        assert registry.get("square") is again

    def test_loads_a_folder_at_the_first_look(self, tmp_path, monkeypatch):
        package = tmp_path / "shapes_of_a_test"
        package.mkdir()
        (package / "__init__.py").write_text(
            "from inc_torch.core.registry import Registry\nSHAPES = Registry('shape', __name__)\n"
        )
        (package / "star.py").write_text(
            "from shapes_of_a_test import SHAPES\n@SHAPES.register('star', summary='many sides')\nclass Star: ...\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        import shapes_of_a_test

        assert "shapes_of_a_test.star" not in sys.modules
        assert shapes_of_a_test.SHAPES.names() == ["star"]
        for name in ("shapes_of_a_test", "shapes_of_a_test.star"):
            monkeypatch.delitem(sys.modules, name)


class TestHooks:
    def test_are_the_eleven_in_the_order_of_a_loop(self):
        assert len(HOOKS) == 11
        assert HOOKS[0] == "on_train_begin"
        assert HOOKS[-1] == "on_train_end"
        assert set(HOOKS) > UNDO_HOOKS

    def test_of_the_base_do_nothing(self):
        callback, loss = Callback(), torch.tensor(1.0)
        callback.prepare(torch.nn.Linear(1, 1), Progress())
        arguments = {
            "on_epoch_begin": (0,),
            "on_step_begin": (0,),
            "on_after_compute_loss": ("in", "out", loss),
        }
        for hook in HOOKS:
            expected = loss if hook == "on_after_compute_loss" else None
            assert getattr(callback, hook)(*arguments.get(hook, ())) is expected
        assert callback.state_dict() == {}
        callback.load_state_dict({})
        assert (tuple(callback.findings()), tuple(callback.tracked_parameters())) == ((), ())

    def test_stages_act_on_the_model_then_look_then_mask(self):
        assert sorted(Stage) == [Stage.REWRITE, Stage.OBSERVE, Stage.MASK]
        assert Callback.stage is Stage.OBSERVE


class TestState:
    def test_wrong_keys_are_all_named(self):
        check_keys("Mine", {"a": 1}, {"a"})
        with pytest.raises(StateError) as caught:
            check_keys("Mine", {"a": 1, "d": 2, "c": 3}, {"a", "b"})
        assert str(caught.value) == "The saved state of Mine does not fit: missing ['b'], unexpected ['c', 'd']."

    def test_all_generators_go_on_where_they_were(self):
        random.gauss(0, 1)  # a half-used pair is part of the state
        np.random.normal()
        state = random_state()

        def draw():
            numbers = random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand()
            return *numbers, torch.rand(2).tolist()

        first = draw()
        assert draw() != first
        set_random_state(state)
        assert draw() == first
