"""Where the logits are in a model's output."""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput
from transformers.models.clip.modeling_clip import CLIPOutput

from inc_torch.core.errors import ModelError
from inc_torch.distillers import extract_logits

LOSS = torch.tensor(0.7)
LOGITS = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
OTHER = torch.tensor([[5.0, 6.0], [7.0, 8.0]])


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "hidden": OTHER, "loss": LOSS},
        {"scores": LOGITS, "meta": "text", "hidden_states": (OTHER, OTHER)},
        MappingProxyType({"logits": LOGITS}),
        SequenceClassifierOutput(loss=LOSS, logits=LOGITS, hidden_states=(OTHER,)),
        SequenceClassifierOutput(logits=LOGITS),
        (LOGITS,),
        (LOGITS, OTHER),
        (LOSS, LOGITS),
        (LOSS, LOGITS, (OTHER,)),
        [LOGITS, OTHER],
        [LOSS, LOGITS],
    ],
)
def test_logits_are_found(output):
    assert extract_logits(output) is LOGITS


def test_a_scalar_alone_in_a_tuple_is_taken():
    assert extract_logits((LOSS,)) is LOSS


@pytest.mark.parametrize("loss", [None, LOSS])
def test_start_and_end_logits_follow_each_other(loss):
    output = QuestionAnsweringModelOutput(loss=loss, start_logits=LOGITS, end_logits=OTHER)
    torch.testing.assert_close(extract_logits(output), torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]]))


def test_logits_of_images_and_of_their_texts_follow_each_other():
    output = CLIPOutput(loss=LOSS, logits_per_image=LOGITS, logits_per_text=LOGITS.T, text_embeds=OTHER)
    torch.testing.assert_close(extract_logits(output), torch.tensor([[1.0, 2], [3, 4], [1, 3], [2, 4]]))


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ({}, "type dict with no items"),
        ({"a": LOGITS, "b": LOSS, "c": 3}, "'a': tensor of shape (2, 2), 'b': tensor of shape (), 'c': int"),
        ({"start_logits": LOGITS, "x": OTHER}, "'start_logits': tensor of shape (2, 2), 'x': tensor of shape (2, 2)"),
        ({"logits": [LOGITS]}, "type dict with 'logits': list"),
        ((), "type tuple with no items"),
        ((LOSS, "text"), "type tuple with tensor of shape (), str"),
        (["text", LOGITS], "type list with str, tensor of shape (2, 2)"),
        (None, "type NoneType with no items"),
        (SimpleNamespace(logits=LOGITS), "type SimpleNamespace with no items"),
    ],
)
def test_what_was_found_instead_is_listed(output, found):
    with pytest.raises(ModelError) as caught:
        extract_logits(output)
    assert found in str(caught.value)
    assert "expected a tensor, a mapping with 'logits'" in str(caught.value)
    assert "Pass the logits themselves." in str(caught.value)


def test_pairs_of_different_shapes_are_refused():
    with pytest.raises(ModelError, match=r"logits_per_image of shape \(2, 1\) and logits_per_text of shape \(1, 2\)"):
        extract_logits({"logits_per_image": LOGITS[:, :1], "logits_per_text": LOGITS[:, :1].T})
    with pytest.raises(ModelError, match=r"start_logits of shape \(2, 2\) and end_logits of shape \(2, 1\) differ"):
        extract_logits({"start_logits": LOGITS, "end_logits": OTHER[:, :1]})
