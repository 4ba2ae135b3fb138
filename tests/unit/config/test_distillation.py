from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from inc_torch.config import (
    DistillationConfig,
    FrozenConfigError,
    KnowledgeDistillationLoss,
    KnowledgeDistillationLossConfig,
)
from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.distillers import KnowledgeDistillation


def names_of(kind):
    return [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]


class TestLoss:
    def test_order_and_defaults_are_those_of_inc(self):
        assert names_of(KnowledgeDistillationLossConfig) == ["temperature", "loss_types", "loss_weights"]
        assert KnowledgeDistillationLossConfig().to_spec() == KnowledgeDistillation(1.0, ("CE", "CE"), (0.5, 0.5))

    def test_the_documented_alias_is_the_same_class(self):
        assert KnowledgeDistillationLoss is KnowledgeDistillationLossConfig

    @pytest.mark.parametrize("soft", ["CE", "KL", "MSE"])
    @pytest.mark.parametrize("hard", ["CE", "MSE"])
    def test_all_loss_types(self, hard, soft):
        spec = KnowledgeDistillationLossConfig(2, [hard, soft], (1, 0)).to_spec()
        assert spec == KnowledgeDistillation(2.0, (hard, soft), (1.0, 0.0))

    def test_what_is_not_in_inc_reaches_the_spec(self):
        spec = KnowledgeDistillationLossConfig(kl_reduction="batchmean", ignore_padding=True).to_spec()
        assert (spec.kl_reduction, spec.ignore_padding) == ("batchmean", True)

    def test_weights_may_miss_one_by_rounding(self):
        weights = [0.9, 0.1000005]
        assert KnowledgeDistillationLossConfig(loss_weights=weights).loss_weights == tuple(weights)

    def test_the_path_that_inc_keeps_values_under(self):
        config = KnowledgeDistillationLossConfig(2).config
        assert config.KnowledgeDistillationLoss.temperature == 2.0
        assert config["KnowledgeDistillationLoss"]["loss_types"] == ("CE", "CE")
        with pytest.raises(FrozenConfigError, match=r"config\.replace\(temperature=3\)"):
            config.KnowledgeDistillationLoss.temperature = 3
        with pytest.raises(AttributeError, match=r"no value 'tempereture' here\. Did you mean 'temperature'\?"):
            _ = config.KnowledgeDistillationLoss.tempereture

    def test_lists_are_copied(self):
        types, weights = ["CE", "KL"], [0.25, 0.75]
        config = KnowledgeDistillationLossConfig(1, types, weights)
        types[1], weights[0] = "MSE", 0.75
        assert (config.loss_types, config.loss_weights) == (("CE", "KL"), (0.25, 0.75))
        assert KnowledgeDistillationLossConfig() == KnowledgeDistillationLossConfig(1.0, ["CE", "CE"], [0.5, 0.5])

    @pytest.mark.parametrize(
        ("options", "kind", "text"),
        [
            ({"temperature": 0}, ConfigError, "temperature=0: expected a number above 0."),
            ({"temperature": "hot"}, ConfigTypeError, "temperature='hot': expected a number above 0, not a str."),
            ({"loss_types": ["KL", "CE"]}, ConfigError, "loss_types[0]='KL': expected one of 'CE', 'MSE'."),
            (
                {"loss_types": ["CE", "kl"]},
                ConfigError,
                "loss_types[1]='kl': expected one of 'CE', 'KL', 'MSE', 'L1', 'cosine'. Did you",
            ),
            (
                {"loss_types": ["CE", nn.MSELoss()]},
                ConfigTypeError,
                "'CE', 'KL', 'MSE', 'L1', 'cosine', not a MSELoss.",
            ),
            ({"loss_types": "CE"}, ConfigTypeError, "loss_types='CE': expected a list of two loss names, not a str."),
            ({"loss_types": ["CE"]}, ConfigError, "loss_types=['CE']: expected a list of two loss names. The first is"),
            ({"loss_weights": [0.5]}, ConfigError, "loss_weights=[0.5]: expected a list of two numbers. The first is"),
            ({"loss_weights": 1}, ConfigTypeError, "loss_weights=1: expected a list of two numbers, not an int."),
            ({"loss_weights": [2, -1]}, ConfigError, "loss_weights[0]=2: expected a number in [0, 1]."),
            ({"loss_weights": [0.5, 0.6]}, ConfigError, "expected two weights that sum to 1. They sum to 1.1."),
            ({"kl_reduction": "sum"}, ConfigError, "kl_reduction='sum': expected one of 'mean', 'batchmean'."),
            ({"ignore_padding": 1}, ConfigTypeError, "ignore_padding=1: expected True or False, not an int."),
        ],
        ids=str,
    )
    def test_messages(self, options, kind, text):
        with pytest.raises(kind) as caught:
            KnowledgeDistillationLossConfig(**options)
        assert str(caught.value).startswith("KnowledgeDistillationLossConfig.")
        assert text in str(caught.value)


class Wrapper:
    """A model in a box, as INC's wrapper is."""

    def __init__(self, model):
        self.model = model


class TestDistillation:
    def test_order_and_defaults_are_those_of_inc(self):
        assert names_of(DistillationConfig) == ["teacher_model", "criterion", "optimizer"]
        config = DistillationConfig()
        assert config.teacher_model is None
        assert config.criterion == KnowledgeDistillationLossConfig()
        assert config.optimizer == {"SGD": {"learning_rate": 0.0001}}

    def test_the_teacher_is_kept_as_it_is(self):
        teacher = nn.Linear(2, 2)
        assert DistillationConfig(teacher, KnowledgeDistillationLossConfig(2)).teacher_model is teacher

    def test_a_wrapped_teacher_is_unwrapped(self):
        teacher = nn.Linear(2, 2)
        assert DistillationConfig(Wrapper(teacher)).teacher_model is teacher

    @pytest.mark.parametrize(
        "criterion",
        [
            KnowledgeDistillationLossConfig(),
            KnowledgeDistillationLoss,
            "KnowledgeDistillationLoss",
            "KnowledgeDistillationLossConfig",
            {"KnowledgeDistillationLoss": {}},
            {"KnowledgeDistillationLoss": None},
            {"KnowledgeDistillationLoss": {"temperature": 1.0, "loss_types": ["CE", "CE"], "loss_weights": [0.5, 0.5]}},
            None,
        ],
        ids=str,
    )
    def test_all_spellings_of_a_criterion(self, criterion):
        assert DistillationConfig(criterion=criterion).criterion == KnowledgeDistillationLossConfig()

    def test_the_options_of_a_dict_count(self):
        config = DistillationConfig(criterion={"KnowledgeDistillationLoss": {"temperature": 3}})
        assert config.criterion.temperature == 3.0

    def test_s14_class_and_optimizer_class(self):
        config = DistillationConfig(criterion=KnowledgeDistillationLoss, optimizer=torch.optim.SGD)
        assert config.criterion == KnowledgeDistillationLossConfig()
        assert config.optimizer is torch.optim.SGD

    def test_an_optimizer_dict_and_object_are_stored(self):
        options = {"SGD": {"learning_rate": 0.1}}
        config = DistillationConfig(optimizer=options)
        options["SGD"]["learning_rate"] = 0.5
        assert config.optimizer == {"SGD": {"learning_rate": 0.1}}
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
        assert DistillationConfig(optimizer=optimizer).optimizer is optimizer

    def test_to_dict_names_what_it_cannot_hold(self):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
        data = DistillationConfig(nn.Linear(2, 2), "KnowledgeDistillationLoss", optimizer).to_dict()["data"]
        assert (data["teacher_model"], data["optimizer"]) == ("Linear", "SGD")
        assert DistillationConfig(optimizer=torch.optim.Adam).to_dict()["data"]["optimizer"] == "Adam"

    def test_from_dict_leaves_the_teacher_to_be_handed_in(self):
        teacher = nn.Linear(2, 2)
        config = DistillationConfig(teacher, KnowledgeDistillationLossConfig(2))
        again = DistillationConfig.from_dict(config.to_dict())
        assert again.teacher_model is None
        assert again.replace(teacher_model=teacher) == config

    def test_repr_names_the_teacher_by_its_class(self):
        assert repr(DistillationConfig(nn.Linear(2, 2))) == "DistillationConfig(teacher_model=<Linear>)"

    @pytest.mark.parametrize(
        ("options", "kind", "text"),
        [
            ({"teacher_model": nn.Linear}, ConfigTypeError, "not a type. Give an object, not its class."),
            ({"teacher_model": "bert"}, ConfigTypeError, "teacher_model='bert': expected a torch.nn.Module, an object"),
            ({"criterion": "KnowledgeDistilationLoss"}, ConfigError, "Did you mean 'KnowledgeDistillationLoss'?"),
            ({"criterion": 3}, ConfigTypeError, "criterion=3: expected a KnowledgeDistillationLossConfig, its class"),
            ({"criterion": {}}, ConfigError, "criterion={}: expected one entry, {'KnowledgeDistillationLoss': {...}}."),
            (
                {"criterion": {"IntermediateLayersKnowledgeDistillationLoss": {}}},
                ConfigError,
                "layer_mappings=(): expected at least one entry. For example",
            ),
            (
                {"criterion": "IntermediateLayersKnowledgeDistillationLossConfig"},
                ConfigError,
                "layer_mappings=(): expected at least one entry",
            ),
            (
                {"criterion": {"KnowledgeDistillationLoss": {"tempereture": 1}}},
                ConfigTypeError,
                "has no option 'tempereture'. Did you mean 'temperature'?",
            ),
            (
                {"criterion": {"KnowledgeDistillationLoss": 3}},
                ConfigTypeError,
                "criterion['KnowledgeDistillationLoss']=3: expected a dict of its options, not an int.",
            ),
            ({"optimizer": 3}, ConfigTypeError, "optimizer=3: expected a name, {name: options}, a torch.optim class"),
            ({"optimizer": nn.Linear}, ConfigTypeError, "a torch.optim class or an optimizer, not a type."),
        ],
        ids=str,
    )
    def test_messages(self, options, kind, text):
        with pytest.raises(kind) as caught:
            DistillationConfig(**options)
        assert text in str(caught.value)
