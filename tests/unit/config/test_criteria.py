from __future__ import annotations

import inspect

import pytest

from inc_torch.config import AccuracyCriterion, TuningCriterion
from inc_torch.core.errors import ConfigError, ConfigTypeError


def names_of(kind):
    return [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]


class TestAccuracyCriterion:
    def test_order_and_defaults_are_those_of_inc(self):
        assert names_of(AccuracyCriterion) == ["higher_is_better", "criterion", "tolerable_loss"]
        criterion = AccuracyCriterion()
        assert (criterion.higher_is_better, criterion.criterion, criterion.tolerable_loss) == (True, "relative", 0.01)

    @pytest.mark.parametrize(("name", "other"), [("relative", "absolute"), ("absolute", "relative")])
    def test_the_loss_is_readable_under_the_name_of_the_criterion(self, name, other):
        criterion = AccuracyCriterion(criterion=name, tolerable_loss=0.25)
        assert getattr(criterion, name) == 0.25
        assert getattr(criterion, other) is None

    @pytest.mark.parametrize("loss", [1, 0, -0.5, 0.01])
    def test_any_finite_loss(self, loss):
        assert AccuracyCriterion(tolerable_loss=loss).tolerable_loss == loss

    @pytest.mark.parametrize(
        ("options", "kind", "text"),
        [
            ({"tolerable_loss": "1%"}, ConfigTypeError, "tolerable_loss='1%': expected a finite number, not a str."),
            ({"tolerable_loss": float("inf")}, ConfigError, "tolerable_loss=inf: expected a finite number."),
            ({"criterion": "relatve"}, ConfigError, "criterion='relatve': expected one of 'relative', 'absolute'. Did"),
            ({"higher_is_better": 1}, ConfigTypeError, "higher_is_better=1: expected True or False, not an int."),
        ],
        ids=str,
    )
    def test_messages(self, options, kind, text):
        with pytest.raises(kind) as caught:
            AccuracyCriterion(**options)
        assert text in str(caught.value)


class TestTuningCriterion:
    def test_order_and_defaults_are_those_of_inc(self):
        assert names_of(TuningCriterion) == ["strategy", "strategy_kwargs", "timeout", "max_trials", "objective"]
        criterion = TuningCriterion()
        assert (criterion.strategy, criterion.strategy_kwargs, criterion.timeout) == ("basic", None, 0)
        assert (criterion.max_trials, criterion.objective) == (100, ("performance",))
        assert (criterion.on_miss, criterion.performance_only) == ("best", False)

    def test_one_objective_or_several(self):
        assert TuningCriterion(objective="modelsize").objective == ("modelsize",)
        assert TuningCriterion(objective=["modelsize", "footprint"]).objective == ("modelsize", "footprint")

    def test_the_dict_form_of_objectives(self):
        objective = {"objective": ["modelsize", "accuracy"], "weight": [1, 3], "higher_is_better": [False, True]}
        assert TuningCriterion(objective=objective).objective == {
            "objective": ("modelsize", "accuracy"),
            "weight": (1.0, 3.0),
            "higher_is_better": (False, True),
        }
        assert TuningCriterion(objective={"objective": "accuracy"}).objective == {"objective": ("accuracy",)}

    def test_options_of_the_strategy_are_copied(self):
        options = {"confidence_batches": 2}
        criterion = TuningCriterion("mse_v2", options)
        options["confidence_batches"] = 3
        assert criterion.strategy_kwargs == {"confidence_batches": 2}

    @pytest.mark.parametrize(
        ("options", "kind", "text"),
        [
            (
                {"strategy": "basics"},
                ConfigError,
                "strategy='basics': expected one of 'auto', 'auto_mixed_precision', '",
            ),
            ({"strategy": "basics"}, ConfigError, "Did you mean 'basic'?"),
            ({"strategy": "sigopt"}, ConfigError, "That is a paid service of others; 'bayesian' and 'tpe' search"),
            ({"strategy_kwargs": 3}, ConfigTypeError, "strategy_kwargs=3: expected a dict, not an int."),
            ({"timeout": -1}, ConfigError, "timeout=-1: expected a number of seconds, 0 or more."),
            ({"max_trials": 0}, ConfigError, "max_trials=0: expected an integer of 1 or more."),
            ({"max_trials": 2.5}, ConfigTypeError, "max_trials=2.5: expected an integer of 1 or more, not a float."),
            (
                {"objective": "speed"},
                ConfigError,
                "objective[0]='speed': expected one of 'accuracy', 'footprint', 'lat",
            ),
            ({"objective": []}, ConfigError, "objective=[]: expected at least one objective."),
            ({"objective": {}}, ConfigTypeError, "objective['objective']=None: expected a list of names, not a NoneT"),
            (
                {"objective": {"weights": []}},
                ConfigTypeError,
                "objective has no option 'weights'. Did you mean 'weight",
            ),
            (
                {"objective": {"objective": ["accuracy"], "weight": [1, 2]}},
                ConfigError,
                "objective['weight']=[1, 2]: expected as many entries as there are objectives, 1.",
            ),
            (
                {"on_miss": "bst"},
                ConfigError,
                "on_miss='bst': expected one of 'best', 'none', 'raise'. Did you mean 'b",
            ),
            ({"performance_only": "no"}, ConfigTypeError, "performance_only='no': expected True or False, not a str."),
        ],
        ids=str,
    )
    def test_messages(self, options, kind, text):
        with pytest.raises(kind) as caught:
            TuningCriterion(**options)
        assert str(caught.value).startswith("TuningCriterion.")
        assert text in str(caught.value)
