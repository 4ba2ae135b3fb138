"""Batches that are made up, and what is said of models that cannot be fast."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inc_torch import (
    BenchmarkConfig,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    benchmark,
    kernels,
    prepare_compression,
    quantization,
)
from inc_torch.benchmark._advice import advice_on
from inc_torch.benchmark._inputs import made_up_inputs
from inc_torch.core.errors import ModelError


def shapes(model, batch_size=2):
    inputs = made_up_inputs(model, batch_size)
    return [tuple(value.shape) for value in [*inputs.args, *inputs.kwargs.values()]]


class Inverted(nn.Module):
    """Its first layer is not the first one that runs."""

    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(3, 2), nn.Linear(7, 3)

    def forward(self, x):
        return self.last(self.first(x))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, left, right):
        return self.layer(left) + right


class TestInputs:
    @pytest.mark.parametrize(
        ("model", "shape"),
        [
            (nn.Sequential(nn.ReLU(), nn.Linear(5, 2)), (2, 5)),
            (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)), (2, 3, 224, 224)),
            (nn.Sequential(nn.Conv2d(1, 4, 5), nn.Flatten(), nn.Linear(4 * 24 * 24, 2)), (2, 1, 28, 28)),
            (nn.Sequential(nn.Conv1d(6, 4, 3), nn.ReLU()), (2, 6, 16)),
            (nn.Sequential(nn.Embedding(11, 4), nn.Flatten()), (2, 16)),
            (nn.LSTM(5, 4, batch_first=True), (2, 16, 5)),
            (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 16, 8)),
        ],
    )
    def test_follow_from_the_first_layer(self, model, shape):
        assert shapes(model.eval()) == [shape]

    def test_are_the_same_in_every_call(self):
        one, other = (made_up_inputs(nn.Linear(4, 2), 3).args[0] for _ in range(2))
        assert torch.equal(one, other)

    def test_have_the_dtype_of_the_model(self):
        assert made_up_inputs(nn.Linear(4, 2).bfloat16(), 1).args[0].dtype is torch.bfloat16

    def test_follow_from_the_configuration_of_transformers(self):
        from transformers import T5Config, T5ForConditionalGeneration, ViTConfig, ViTForImageClassification

        small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        vision = ViTForImageClassification(ViTConfig(**small, image_size=16, patch_size=8, num_channels=1))
        assert shapes(vision.eval()) == [(2, 1, 16, 16)]
        text = T5ForConditionalGeneration(T5Config(vocab_size=7, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
        assert shapes(text.eval()) == [(2, 128), (2, 128), (2, 1)]

    @pytest.mark.parametrize(
        ("model", "reason"),
        [
            (Two(), "its forward requires left, right, and only models with one input are guessed."),
            (nn.ReLU(), "no layer says what it takes."),
            (Inverted(), "it fails on float32 [2, 16, 3]: RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ],
    )
    def test_that_cannot_be_made_up_are_an_error_with_the_way_out(self, model, reason):
        with pytest.raises(ModelError) as caught:
            made_up_inputs(model, 2)
        assert str(caught.value).startswith(f"No input could be made up for {type(model).__name__}: {reason}")
        assert str(caught.value).endswith("Give data: b_dataloader=[a batch], or a b_func that runs the model.")

    def test_without_a_number_at_most_a_hundred_iterations_count(self):
        result = benchmark.fit(nn.Linear(2, 2), BenchmarkConfig(warmup=3), batch_size=4, quiet=True)
        _, batch_size, seconds = result["performance"]
        assert (batch_size, len(seconds)) == (4, 100)


def linear(zeros=0.0, width=64):
    layer = nn.Linear(width, width)
    layer.weight.data.view(-1)[: int(zeros * width * width)] = 0
    return layer


def int8(width, **options):
    batches = [torch.randn(4, width)]
    return quantization.fit(linear(width=width), PostTrainingQuantConfig(**options), calib_dataloader=batches)


class TestAdvice:
    def test_a_float_model_gets_none(self):
        assert advice_on(linear(), {"aten::addmm": 1}) == []

    def test_fake_quant_that_was_left_in(self):
        model = nn.Sequential(linear(), nn.ReLU(), linear())
        prepare_compression(model, QuantizationAwareTrainingConfig()).on_train_begin()
        (note,) = advice_on(model, {})
        assert note.startswith(
            "Fake-quant is left in 2 layers ('0', '2'): rounding is computed beside float, which is slower"
        )

    def test_fake_quant_of_torch_is_seen_too(self):
        class FakeQuantize(nn.Module):
            pass

        assert advice_on(nn.Sequential(FakeQuantize()), {})[0].startswith("Fake-quant is left in 1 layer ('0')")

    @pytest.mark.parametrize(("zeros", "is_told"), [(0.9, True), (0.31, True), (0.2, False)])
    def test_zeros_in_float_weights(self, zeros, is_told):
        notes = advice_on(nn.Sequential(linear(zeros)), {})
        assert bool(notes) is is_told
        if is_told:
            assert notes[0].startswith(
                f"{int(zeros * 4096) / 4096:.1%} of the weights of 1 float layer ('0') are zeros"
            )
            assert "masks alone make nothing faster" in notes[0]

    def test_weights_that_are_unpacked_in_each_forward(self):
        model = quantization.fit(nn.Sequential(linear()), PostTrainingQuantConfig(approach="weight_only"))
        (note,) = advice_on(model, {"aten::addmm": 1})
        assert note.startswith("Weights of 1 layer ('0') are codes of a few bits that are unpacked in each forward")
        assert advice_on(model, {"inc_torch.few_bits_product": 1}) == []

    def test_small_int8_layers(self):
        notes = advice_on(int8(32), {"inc_torch.linear": 1})
        assert notes[0].startswith("1 of 1 int8 layers have less than 16384 weights")
        assert advice_on(int8(256), {"inc_torch.linear": 1}) == []

    def test_int8_that_computes_in_float(self):
        notes = advice_on(int8(256), {"aten::addmm": 1})
        assert notes[0] == "No int8 kernel was seen, though 1 layer ('') hold int8 codes: they compute in float."

    def test_int8_layer_by_layer(self):
        (note,) = advice_on(int8(256, graph="off"), {"onednn::qlinear_pointwise": 1})
        assert ("optimize_for_inference" if kernels.available() else "are not used") in note

    def test_it_is_part_of_the_result(self):
        result = benchmark.fit(linear(0.5), BenchmarkConfig(iteration=6), quiet=True)
        assert "50.0% of the weights" in result.model.notes[0]
        assert "50.0% of the weights" in str(result)
