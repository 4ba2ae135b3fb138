"""Distillation of intermediate layers: INC's numbers, closed forms, projections, and what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inc_torch.core.errors import ConfigError, ModelError, StateError
from inc_torch.distillers import (
    LOSSES,
    FeatureDistillation,
    FeaturePair,
    Projection,
    Tap,
    attention_map,
    cosine_distance,
    selected,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "distillation.json").read_text(encoding="utf-8"))
NEAR = {"rtol": 1e-5, "atol": 1e-6}


def _tensor(value):
    return torch.tensor(value["data"]).reshape(value["shape"])


def _pair(kind="MSE", weight=1.0, student="s", teacher="t"):
    return FeaturePair(Tap(student), Tap(teacher), kind, weight)


def _distance(kind, student, teacher, mask=None, **options):
    return FeatureDistillation([_pair(kind)], **options).distance({"s": student}, {"t": teacher}, mask)


def test_it_is_registered_by_incs_name():
    assert LOSSES.get("IntermediateLayersKnowledgeDistillationLoss") is FeatureDistillation


# ---------------------------------------------------------------------------- what is computed


def test_squared_and_absolute_difference():
    student, teacher = torch.tensor([[1.0, 4.0]]), torch.tensor([[2.0, 2.0]])
    assert _distance("MSE", student, teacher).item() == 2.5
    assert _distance("L1", student, teacher).item() == 1.5


def test_cosine_is_blind_to_length():
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    teacher = torch.tensor([[5.0, 0.0], [3.0, 0.0], [-2.0, -2.0]])
    torch.testing.assert_close(_distance("cosine", student, teacher), torch.tensor((0 + 1 + 2) / 3))
    torch.testing.assert_close(cosine_distance(student, 7 * student), torch.tensor(0.0))


def test_attention_is_blind_to_channels_and_scale():
    student, teacher = torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 2, 2)
    student[0, 1, 0, 0], teacher[0, 2, 0, 0] = 3.0, 5.0
    assert _distance("attention", student, teacher).item() == 0
    teacher[0, 2, 0, 0], teacher[0, 0, 1, 1] = 0.0, 5.0  # elsewhere: both maps have one 1 out of four
    assert _distance("attention", student, teacher).item() == 0.5


def test_the_attention_map_of_sequences_has_sizes_last():
    features = torch.randn(2, 5, 7)
    expected = F.normalize(features.pow(2).sum(-1), dim=1)
    torch.testing.assert_close(attention_map(features), expected)
    torch.testing.assert_close(attention_map(features.transpose(1, 2).unsqueeze(-1)), expected)


def test_kl_takes_probabilities_as_they_are_and_softmax_of_the_rest():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    expected = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="sum") / 12
    torch.testing.assert_close(_distance("KL", student, teacher), expected)
    torch.testing.assert_close(_distance("KL", student.softmax(-1), teacher.softmax(-1)), expected)
    torch.testing.assert_close(_distance("KL", student, teacher, kl_reduction="batchmean"), expected * 4)


def test_values_below_zero_are_no_probabilities_though_they_sum_to_one():
    student = torch.tensor([[3.0, -2.0]], requires_grad=True)
    value = _distance("KL", student, torch.tensor([[0.5, 0.5]]))
    expected = F.kl_div(student.log_softmax(-1), torch.tensor([[0.5, 0.5]]), reduction="sum") / 2
    torch.testing.assert_close(value, expected)
    value.backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["MSE", "L1", "cosine", "KL", "attention"])
def test_padding_does_not_count_if_it_is_not_to(kind):
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    value = _distance(kind, student, teacher, mask, ignore_padding=True)
    student[mask == 0] = 1e4
    torch.testing.assert_close(_distance(kind, student, teacher, mask, ignore_padding=True), value)
    assert not torch.isclose(_distance(kind, student, teacher, mask), value)


def test_weights_and_the_loss_of_the_task():
    pairs = [_pair("MSE", 0.5, "a", "a"), _pair("L1", 0.25, "b", "b")]
    student, teacher = (
        {"a": torch.full((2,), 2.0), "b": torch.full((2,), 4.0)},
        {"a": torch.zeros(2), "b": torch.zeros(2)},
    )
    loss = FeatureDistillation(pairs)
    distance = loss.distance(student, teacher)
    assert distance.item() == 0.5 * 4 + 0.25 * 4
    assert loss.mix(torch.tensor(7.0), distance).item() == 3
    assert FeatureDistillation(pairs, add_origin_loss=True).mix(7.0, distance).item() == 10


def test_a_weight_of_zero_saves_the_recording():
    loss = FeatureDistillation([_pair("MSE", 0.0, "a", "a"), _pair("MSE", 1.0, "b", "c")])
    assert (loss.student_layers, loss.teacher_layers, loss.has_distance) == (("b",), ("c",), True)
    nothing = FeatureDistillation([_pair("MSE", 0.0)])
    assert (nothing.student_layers, nothing.has_distance, nothing.needs_teacher) == ((), False, False)
    assert nothing.mix(3.0, None).item() == 3


def test_no_gradient_reaches_the_teacher():
    student, teacher = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    _distance("MSE", student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_compared_in_float(dtype):
    student, teacher = torch.randn(4, 8).to(dtype), torch.randn(4, 8).to(dtype)
    value = _distance("MSE", student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, F.mse_loss(student.float(), teacher.float()), rtol=0, atol=0)


# ---------------------------------------------------------------------------- projections


def test_a_projection_is_made_once_and_learns_to_be_the_right_one():
    torch.manual_seed(0)
    truth = nn.Linear(4, 6).requires_grad_(False)
    loss = FeatureDistillation([_pair()])
    first = loss.distance({"s": torch.randn(8, 4)}, {"t": torch.zeros(8, 6)})
    weight, bias = loss.trained_parameters()
    assert (weight.shape, bias.shape) == ((6, 4), (6,))
    optimizer = torch.optim.Adam([weight, bias], lr=0.05)
    for _ in range(300):
        features = torch.randn(32, 4)
        optimizer.zero_grad()
        loss.distance({"s": features}, {"t": truth(features)}).backward()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), truth.weight, atol=1e-2, rtol=0)
    assert loss.trained_parameters() == (weight, bias)
    assert first.requires_grad


def test_projections_do_not_depend_on_the_random_state_nor_change_it():
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        made.append(Projection.between((2, 3), (2, 5), seed=7))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(made[0].weight, made[1].weight)
    assert not torch.equal(made[0].weight, Projection.between((2, 3), (2, 5), seed=8).weight)
    assert made[0].weight.abs().max() <= 3**-0.5


def test_along_channels_a_projection_is_a_convolution_of_one_pixel():
    projection = Projection.between((2, 3, 4, 4), (2, 5, 4, 4), seed=0)
    features = torch.randn(2, 3, 4, 4)
    expected = F.conv2d(features, projection.weight[:, :, None, None], projection.bias)
    torch.testing.assert_close(projection(features), expected)


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 3), (2, 3, 1)), ((2, 3, 4), (2, 5, 6)), ((2, 3), (4, 3)), ((2,), (3,))]
)
def test_what_differs_too_much_is_refused(student, teacher):
    with pytest.raises(ModelError, match=r"one that differs in a single axis, and not in that of the batch") as caught:
        _distance("MSE", torch.zeros(student), torch.zeros(teacher))
    assert caught.value.__notes__ == ["While comparing the student's 's' with the teacher's 't'."]


def test_a_size_that_changes_from_batch_to_batch_is_refused():
    loss = FeatureDistillation([_pair()])
    loss.distance({"s": torch.zeros(2, 5, 4)}, {"t": torch.zeros(2, 7, 4)})
    with pytest.raises(ModelError, match=r"have size 6 on axis 1, and the projection was made for 5"):
        loss.distance({"s": torch.zeros(2, 6, 4)}, {"t": torch.zeros(2, 7, 4)})


def test_attention_needs_the_same_positions():
    with pytest.raises(ModelError, match=r"have different positions.*Pool the larger one"):
        _distance("attention", torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 8, 8))
    with pytest.raises(ModelError, match=r"have no positions to attend to"):
        _distance("attention", torch.zeros(1, 2), torch.zeros(1, 2))


def test_state_goes_through_a_file(tmp_path):
    loss, features = FeatureDistillation([_pair()]), ({"s": torch.randn(2, 3)}, {"t": torch.randn(2, 5)})
    value = loss.distance(*features)
    with torch.no_grad():
        loss.projections[0].bias.add_(1)
    torch.save(loss.state_dict(), tmp_path / "state.pt")
    other = FeatureDistillation([_pair()])
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other.distance(*features), loss.distance(*features))
    assert not torch.equal(value, loss.distance(*features))
    with pytest.raises(StateError, match="FeatureDistillation does not fit"):
        other.load_state_dict({})


# ---------------------------------------------------------------------------- INC's numbers

CALLABLES = {"<callable x[:, :3]>": lambda output: output[:, :3]}


def _tap(side):
    layer, *selection = [side] if isinstance(side, str) else side
    part = selection[0] if selection else None
    return Tap(layer, CALLABLES.get(part, part or None))


def _case(case):
    config = case["config"]
    count = len(config["layer_mappings"])
    kinds = config["loss_types"] or ["MSE"] * count
    weights = config["loss_weights"] or [1 / count] * count
    pairs = [
        FeaturePair(_tap(sides[0]), _tap(sides[-1]), kind, weight)
        for sides, kind, weight in zip(config["layer_mappings"], kinds, weights, strict=True)
    ]
    return FeatureDistillation(pairs, add_origin_loss=config["add_origin_loss"])


def test_the_vectors_are_there():
    assert len(VECTORS["intermediate"]) == 10


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in VECTORS["intermediate"]])
def test_loss_and_gradients_are_those_of_inc(case):
    loss, inputs, expected = _case(case), case["inputs"], case["expected"]
    features = {name: _tensor(value).requires_grad_() for name, value in inputs["student_features"].items()}
    student, teacher = dict(features), {name: _tensor(value) for name, value in inputs["teacher_features"].items()}
    if case["id"] == "il13":  # the student returned a tuple and the teacher a dict
        student, teacher = {"blk.a": (None, student["blk.a"])}, {"blk.a": {"k": teacher["blk.a"]}}
    layers = [pair.student.layer for pair in loss.pairs]
    loss.load_state_dict(
        {
            "projections": {
                layers.index(name): {
                    "axis": matcher["feature_axis"],
                    "weight": _tensor(matcher["weight_out_in"]),
                    "bias": _tensor(matcher["bias"]),
                }
                for name, matcher in inputs["matchers"].items()
            }
        }
    )
    value = loss.mix(torch.tensor(inputs["student_loss"]), loss.distance(student, teacher))
    assert value.shape == ()
    torch.testing.assert_close(value.detach(), torch.tensor(expected["loss"]), **NEAR)
    value.backward()
    for name, gradient in expected["grad_student_features"].items():
        torch.testing.assert_close(features[name].grad, _tensor(gradient), **NEAR)


# ---------------------------------------------------------------------------- parts of outputs


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("logits", 0.0),
        ("hidden.1", 2.0),
        ("hidden.-1", 2.0),
        (0, 0.0),
        (-1, 3.0),
        ("a.b", 3.0),
        (lambda output: output["hidden"][0], 1.0),
    ],
)
def test_a_part_is_found(selection, expected):
    zero, one, two, three = (torch.tensor(float(number)) for number in range(4))
    output = {"logits": zero, "hidden": (one, two), "a.b": three}
    assert selected(output, selection, "layer") == expected


def test_the_only_tensor_is_meant_without_a_selection():
    assert selected((torch.ones(1), None), None, "layer") == 1


@pytest.mark.parametrize(
    ("output", "selection", "words"),
    [
        (
            (torch.ones(2), torch.ones(2)),
            None,
            r"type tuple with tensor of shape \(2,\), tensor .*expected a tensor in it",
        ),
        ({"a": torch.ones(2)}, "b", r"with 'a': tensor of shape \(2,\): expected a tensor at 'b' in it"),
        ((torch.ones(2),), 3, r"expected a tensor at 3 in it"),
        (torch.ones(2), "shape", r"expected a tensor at 'shape'"),
        (torch.ones(2), lambda output: None, r"expected a tensor at <lambda>"),
        ({"a": (torch.ones(1),)}, "a.1", r"expected a tensor at 'a.1'"),
    ],
)
def test_a_part_that_is_not_there_is_refused(output, selection, words):
    with pytest.raises(ModelError, match=rf"The layer 'encoder' returned an output of .*{words}"):
        selected(output, selection, "encoder")


def test_wrong_pairs_are_refused():
    with pytest.raises(ConfigError, match=r"FeatureDistillation\.pairs=\[\]: expected at least one pair"):
        FeatureDistillation([])
    with pytest.raises(ConfigError, match=r"FeaturePair\.kind='CE': expected one of"):
        _pair("CE")
    with pytest.raises(ConfigError, match=r"FeaturePair\.weight=1\.5: expected a number in \[0, 1\]"):
        _pair(weight=1.5)
