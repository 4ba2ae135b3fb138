"""Which layers a pruner takes, and what it says of the others."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from inc_torch.core.errors import ConfigError, InexactWarning, ModelError
from inc_torch.pruners import Pruner, select_layers
from tests.unit.pruners.make import mlp, spec_of, stack
from tests.unit.pruners.vectors import Conv1D


def names(model: nn.Module, pattern: str = "1x1", **options: object) -> list[str]:
    return [layer.name for layer in select_layers(model, spec_of(pattern, **options)).layers]


def notes(model: nn.Module, pattern: str = "1x1", **options: object) -> dict[str, str]:
    return {finding.module: finding.note for finding in select_layers(model, spec_of(pattern, **options)).left_dense}


def named(**children: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, child in children.items():
        model.add_module(name, child)
    return model


# ------------------------------------------------------------------------------------- selection


def test_takes_every_linear_and_convolution_but_the_head():
    model = named(
        a=nn.Linear(4, 4),
        b=nn.Conv1d(4, 4, 1),
        c=nn.Conv3d(4, 4, 1),
        d=nn.ConvTranspose2d(4, 4, 1),
        e=Conv1D(4, 4),
        f=nn.LayerNorm(4),
        g=nn.Embedding(4, 4),
        h=nn.Bilinear(4, 4, 4),
        i=nn.MultiheadAttention(4, 2),
        j=nn.Linear(4, 2),
    )
    assert names(model) == ["a", "b", "c", "d", "e", "i.out_proj"]
    assert notes(model) == {"j": "classifier head, not pruned"}


def test_expressions_are_searched_in_their_order():
    model = stack(*(nn.Linear(4, 4) for _ in range(12)))
    assert names(model, op_names=("^1$", "1")) == ["1", "10", "11"]
    assert names(model, op_names=("5", "3")) == ["5", "3"]


def test_excluded_expressions_take_out_again():
    model = stack(*(nn.Linear(4, 4) for _ in range(4)))
    assert names(model, excluded_op_names=("0", "^2$")) == ["1", "3"]
    assert names(model, op_names=("[01]",), excluded_op_names=("0",)) == ["1"]


def test_types_are_words_in_class_names():
    model = named(c=nn.Conv2d(4, 4, 1), t=nn.ConvTranspose2d(4, 4, 1), l=nn.Linear(4, 4), act=nn.ReLU())
    assert names(model, op_types=("Linear",)) == ["l"]
    assert names(model, op_types=("ConvTranspose",)) == ["t"]
    assert names(model, op_types=("Conv",)) == ["c", "t"]


@pytest.mark.parametrize("head", [nn.Linear(4, 2), nn.Conv2d(4, 2, 1)])
@pytest.mark.parametrize("after", [[], [nn.Dropout()], [nn.Dropout(), nn.Dropout(0.2)]])
def test_head_is_the_last_module_dropouts_apart(head, after):
    model = nn.Sequential(nn.Linear(4, 4), head, *after)
    assert names(model) == ["0"]
    assert notes(model) == {"1": "classifier head, not pruned"}


@pytest.mark.parametrize("last", [nn.Conv1d(4, 4, 1), nn.ConvTranspose2d(4, 4, 1), Conv1D(4, 4)])
def test_only_linear_and_conv2d_are_heads(last):
    assert names(nn.Sequential(nn.Linear(4, 4), last)) == ["0", "1"]


def test_no_head_behind_another_module():
    assert names(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.Softmax(-1))) == ["0", "1"]


def test_head_by_identity_not_by_name():
    """A head called ``1`` leaves ``0.1`` and ``10`` alone (vectors E04, E05)."""
    inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert names(nn.Sequential(inner, nn.Linear(4, 2))) == ["0.0", "0.1"]
    model = named(fc1=nn.Linear(4, 4), fc=nn.Linear(4, 2))
    assert names(model) == ["fc1"]


def test_head_stays_dense_even_if_named():
    with pytest.raises(ConfigError, match="2: classifier head, not pruned"):
        names(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), op_names=("^2$",))


def test_root_may_be_pruned():
    (layer,) = select_layers(nn.Conv1d(4, 4, 1), spec_of()).layers
    assert (layer.name, layer.parameter_name) == ("", "weight")


def test_a_module_under_two_names_is_one_layer():
    shared = nn.Linear(4, 4)
    assert names(stack(shared, nn.Linear(4, 4), shared)) == ["0", "1"]


def test_tied_weights_are_pruned_once():
    model = stack(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert names(model) == ["0"]
    assert notes(model) == {"1": "shares its weight with 0"}


def test_a_norm_has_no_matrix():
    model = stack(nn.LayerNorm(4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 4))
    with pytest.warns(InexactWarning, match="'0': a weight of rank 1 is no matrix"):
        selection = select_layers(model, spec_of(op_types=("Linear", "LayerNorm")))
    assert [layer.name for layer in selection.layers] == ["2"]
    assert [(finding.module, finding.note) for finding in selection.left_dense] == [
        ("0", "left dense: a weight of rank 1 is no matrix")
    ]


# ------------------------------------------------------------------------------ layers left dense


def test_indivisible_layers_stay_dense_with_one_warning():
    model = stack(nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 7))
    with pytest.warns(InexactWarning) as caught:
        selection = select_layers(model, spec_of("4x1"))
    assert [layer.name for layer in selection.layers] == ["0"]
    assert [(finding.module, finding.note) for finding in selection.left_dense] == [
        ("1", "left dense: a 6x8 weight does not divide into 4x1 blocks"),
        ("2", "left dense: a 7x6 weight does not divide into 4x1 blocks"),
    ]
    (warning,) = caught
    assert str(warning.message) == (
        "Pruning '4x1' leaves 2 of the selected layers dense: "
        "'1': a 6x8 weight does not divide into 4x1 blocks; '2': a 7x6 weight does not divide into 4x1 blocks. "
        "Take them out with excluded_op_names, or mend what the reason says: a pattern that divides, a weight that "
        "learns (or pruning_type='magnitude', which needs no gradients)."
    )


def test_a_long_list_of_indivisible_layers_is_cut():
    model = stack(nn.Linear(8, 8), *(nn.Linear(8, 6) for _ in range(20)))
    with pytest.warns(InexactWarning, match=r"leaves 20 of the selected layers dense.*'3': a 6x8 .*; \.\.\.\. Take"):
        assert names(model, "4x1") == ["0"]


def test_indivisible_layer_named_outright_is_an_error():
    model = stack(nn.Linear(8, 8), nn.Linear(8, 6))
    with pytest.raises(ConfigError) as caught:
        names(model, "4x1", op_names=("0", "1"))
    assert str(caught.value) == (
        "Layer '1' cannot carry the pruning pattern '4x1': a 6x8 weight does not divide into 4x1 blocks. "
        "Take it out of op_names, or use a pattern whose sides divide."
    )


def test_indivisible_layer_found_by_an_expression_is_not():
    model = stack(nn.Linear(8, 8), nn.Linear(8, 6))
    with pytest.warns(InexactWarning, match="'1': the 6 columns|a 6x8 weight"):
        assert names(model, "4x1", op_names=("0|1",)) == ["0"]


def test_only_indivisible_layers_are_an_error_with_the_reasons():
    with pytest.raises(ConfigError) as caught:
        names(stack(nn.Linear(6, 8), nn.Linear(8, 6)), "2:4", op_names=("^0",))
    assert str(caught.value) == (
        "WeightPruningConfig with op_names=['^0'], pruning_op_types=['Conv', 'Linear'] leaves no layer to prune: "
        "0: left dense: the 6 columns of a weight do not divide into groups of 4."
    )


def test_lazy_layers_are_an_error_that_says_what_to_do():
    with pytest.raises(ModelError) as caught:
        names(stack(nn.LazyLinear(4)))
    assert str(caught.value) == (
        "Layer '0' (LazyLinear) has no weight yet; run one batch through the model before it is prepared for pruning."
    )


def test_a_computed_weight_is_not_passed_over_in_silence():
    model = stack(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.warns(InexactWarning, match="'0': its weight is computed from other tensors"):
        assert names(model) == ["1"]
    with pytest.raises(ConfigError, match="Layer '0' cannot carry"):
        names(model, op_names=("0",))


def test_an_empty_weight_is_left_dense():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: initializing zero-element tensors is a no-op
        empty = nn.Linear(0, 4)
    with pytest.warns(InexactWarning, match="'0': its weight is empty"):
        assert names(stack(empty, nn.Linear(4, 4))) == ["1"]


# ----------------------------------------------------------------------------- nothing is selected


def test_no_match_names_the_nearest_layer():
    model = named(encoder=stack(nn.Linear(4, 4)), act=nn.ReLU())
    with pytest.raises(ConfigError) as caught:
        names(model, op_names=("encodr.0",))
    assert str(caught.value) == (
        "WeightPruningConfig with op_names=['encodr.0'], pruning_op_types=['Conv', 'Linear'] matches no layer. "
        "Did you mean 'encoder.0'? Layers with weights: encoder.0."
    )


def test_no_match_shows_exclusions():
    with pytest.raises(ConfigError, match=r"excluded_op_names=\['0'\] matches no layer"):
        names(stack(nn.Linear(4, 4)), excluded_op_names=("0",))


def test_no_match_lists_at_most_a_dozen_layers():
    model = stack(*(nn.Linear(4, 4) for _ in range(40)))
    with pytest.raises(ConfigError, match=r"Layers with weights: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\.$"):
        names(model, op_names=("nothing",))


def test_a_model_without_layers_is_an_error():
    with pytest.raises(ConfigError, match="matches no layer"):
        names(nn.Sequential(nn.ReLU()))


def test_the_caller_s_model_is_untouched():
    model = mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    select_layers(model, spec_of("4x1"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# -------------------------------------------------------------------------- frozen and tied weights


def test_a_frozen_layer_is_left_dense_where_scores_need_gradients():
    model = stack(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight.requires_grad_(False)
    with pytest.warns(InexactWarning, match=r"leaves 1 of the selected layers dense: '0': its weight is frozen"):
        selection = select_layers(model, spec_of("1x1", "snip"))
    assert [layer.name for layer in selection.layers] == ["1"]
    assert selection.left_dense[0].note == "left dense: its weight is frozen, and Snip needs gradients"


@pytest.mark.parametrize("options", [{"criterion": "magnitude"}, {"criterion": "snip", "locks_zeros": True}])
def test_a_frozen_layer_is_pruned_where_no_gradients_are_needed(options):
    model = stack(nn.Linear(4, 4))
    model[0].weight.requires_grad_(False)
    assert names(model, **options) == ["0"]


def test_a_layer_that_shares_the_heads_weight_is_left_out_with_it():
    model = named(a=nn.Linear(4, 4), b=nn.Linear(4, 4), head=nn.Linear(4, 4))
    model.a.weight = model.head.weight
    assert names(model) == ["b"]
    assert notes(model)["a"] == "classifier head, not pruned"


# ----------------------------------------------------------------------------------------- wrappers


def test_wrapped_layers_have_their_own_names():
    """As without activation checkpointing, and so does the head."""
    model = nn.Sequential(
        nn.Linear(4, 4), checkpoint_wrapper(nn.Linear(4, 4)), nn.ReLU(), checkpoint_wrapper(nn.Linear(4, 2))
    )
    assert names(model) == ["0", "1"]
    assert notes(model)["3"] == "classifier head, not pruned"


def test_layers_wrapped_after_they_were_chosen_are_found_again():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU())
    pruner = Pruner(spec_of(), model)
    weight = model[1].weight
    model[1] = checkpoint_wrapper(model[1])
    pruner.bind(model)
    assert pruner.weight(pruner.layers[1]) is weight
    pruner.begin_step(0)
    assert int((weight == 0).sum() + (model[0].weight == 0).sum()) == 16


def test_a_layer_that_is_gone_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU())
    pruner = Pruner(spec_of(), model)
    with pytest.raises(
        ModelError, match=r"Sequential has no layer '1' any more, which is to be pruned\. Call prepare_"
    ):
        pruner.bind(model[:1])
