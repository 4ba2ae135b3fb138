"""Seventeen Hugging Face architectures with tiny random weights, and batches of any shape for each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import transformers
from transformers import PreTrainedModel

__all__ = ["ZOO", "Architecture", "Batch"]

Batch = dict[str, object]
"""Keyword arguments of a forward, with labels, so that it computes a loss."""

WIDTH, HEADS, INNER, LAYERS = 32, 2, 48, 2
VOCABULARY, LABELS, POSITIONS = 64, 3, 32
IMAGE_SIDE, PATCH = 16, 4
MEL_BINS, SOURCE_POSITIONS = 8, 16
PAD, FIRST, LAST, FIRST_WORD = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture, and what quantization is expected to make of it.

    Attributes:
        name: As transformers names the family.
        model_class: The class with its head.
        config: Of a tiny model.
        batch: Makes a seeded batch of ``(samples, length)``, where the length is that of a text, of a sound, or the
            side of an image.
        shapes: Three of them: two to calibrate or train with, and one that is only run afterwards.
        int8_modules: How many modules of each kind become int8, with static ranges.
        in_float: Why the other modules with matrices stay in float, by name with numbers as ``*``.
    """

    name: str
    model_class: type[PreTrainedModel]
    config: transformers.PretrainedConfig
    batch: Callable[[int, int], Batch]
    shapes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    int8_modules: Mapping[str, int]
    in_float: Mapping[str, str] = field(default_factory=dict)

    def build(self) -> PreTrainedModel:
        """Make the float model in eval mode, with the same weights every time.

        Matrices keep the size of what they multiply, so that each of them matters for the logits; what transformers
        begins with is so small that most layers add next to nothing to what goes past them.
        """
        with torch.random.fork_rng():
            torch.manual_seed(0)  # for what is no matrix
            model = self.model_class(self.config).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, (len(parameter) / parameter.numel()) ** 0.5, generator=generator)
                elif name.endswith("layer_scale_parameter"):
                    parameter.fill_(1)
        return model

    def training_batches(self) -> list[Batch]:
        """The batches of the first two shapes."""
        return [self.batch(*shape) for shape in self.shapes[:2]]

    def other_batch(self) -> Batch:
        """A batch of a shape that neither calibration nor training saw."""
        return self.batch(*self.shapes[2])


def _generator(samples: int, length: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * samples + length)


def _words(samples: int, length: int) -> torch.Tensor:
    return torch.randint(FIRST_WORD, VOCABULARY, (samples, length), generator=_generator(samples, length))


def _classes(samples: int) -> torch.Tensor:
    return torch.arange(samples) % LABELS


def _texts(samples: int, length: int) -> Batch:
    return {"input_ids": _words(samples, length), "attention_mask": torch.ones(samples, length, dtype=torch.long)}


def _labelled_texts(samples: int, length: int) -> Batch:
    return {**_texts(samples, length), "labels": _classes(samples)}


def _continued_texts(samples: int, length: int) -> Batch:
    return {**_texts(samples, length), "labels": _words(samples, length)}


def _translated_texts(samples: int, length: int) -> Batch:
    return {**_texts(samples, length), "labels": _words(samples, length // 2)}


def _images(samples: int, side: int) -> torch.Tensor:
    return torch.randn(samples, 3, side, side, generator=_generator(samples, side))


def _labelled_images(samples: int, side: int) -> Batch:
    return {"pixel_values": _images(samples, side), "labels": _classes(samples)}


def _labelled_images_of_any_size(samples: int, side: int) -> Batch:
    return {**_labelled_images(samples, side), "interpolate_pos_encoding": True}


def _captioned_images(samples: int, length: int) -> Batch:
    return {**_texts(samples, length), "pixel_values": _images(samples, IMAGE_SIDE), "return_loss": True}


def _transcribed_sounds(samples: int, length: int) -> Batch:
    sounds = torch.randn(samples, length, generator=_generator(samples, length))
    return {"input_values": sounds, "labels": _words(samples, 4)}


def _transcribed_spectra(samples: int, length: int) -> Batch:
    """Spectra are always padded to the same length; what varies is that of the text."""
    spectra = torch.randn(samples, MEL_BINS, 2 * SOURCE_POSITIONS, generator=_generator(samples, length))
    return {"input_features": spectra, "labels": _words(samples, length)}


_TEXT_SHAPES = ((16, 8), (12, 12), (2, 7))
_IMAGE_SHAPES = ((8, 16), (6, 24), (2, 32))

_SPECIAL = {"pad_token_id": PAD, "bos_token_id": FIRST, "eos_token_id": LAST}
_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
}
_TEXT_ENCODER = {**_ENCODER, "max_position_embeddings": POSITIONS, "pad_token_id": PAD}
_IMAGE_ENCODER = {
    **{name: value for name, value in _ENCODER.items() if name != "vocab_size"},
    "image_size": IMAGE_SIDE,
    "patch_size": PATCH,
}
_SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "decoder_start_token_id": FIRST,
    **_SPECIAL,
}


def _subclass(name: str, base: str = "Embedding") -> str:
    return f"{name} is a subclass of {base}; what it or its owner does with the weight is not known"


def _no_version(name: str) -> str:
    return f"there is no int8 version of {name}"


_ARCHITECTURES = (
    Architecture(
        "bert",
        transformers.BertForSequenceClassification,
        transformers.BertConfig(**_TEXT_ENCODER, num_labels=LABELS),
        _labelled_texts,
        _TEXT_SHAPES,
        {"linear": 14, "embedding": 3},
    ),
    Architecture(
        "distilbert",
        transformers.DistilBertForSequenceClassification,
        transformers.DistilBertConfig(
            vocab_size=VOCABULARY,
            dim=WIDTH,
            n_layers=LAYERS,
            n_heads=HEADS,
            hidden_dim=INNER,
            max_position_embeddings=POSITIONS,
            num_labels=LABELS,
        ),
        _labelled_texts,
        _TEXT_SHAPES,
        {"linear": 14, "embedding": 2},
    ),
    Architecture(
        "roberta",
        transformers.RobertaForSequenceClassification,
        transformers.RobertaConfig(**{**_TEXT_ENCODER, **_SPECIAL}, num_labels=LABELS),
        _labelled_texts,
        _TEXT_SHAPES,
        {"linear": 14, "embedding": 3},
    ),
    Architecture(
        "albert",
        transformers.AlbertForSequenceClassification,
        transformers.AlbertConfig(**_TEXT_ENCODER, embedding_size=16, num_labels=LABELS),
        _labelled_texts,
        _TEXT_SHAPES,
        {"linear": 9, "embedding": 3},
    ),
    Architecture(
        "gpt2",
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, **_SPECIAL
        ),
        _continued_texts,
        _TEXT_SHAPES,
        {"linear": 9, "embedding": 2},
    ),
    Architecture(
        "llama",
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**{**_TEXT_ENCODER, **_SPECIAL}, num_key_value_heads=1, tie_word_embeddings=False),
        _continued_texts,
        _TEXT_SHAPES,
        {"linear": 15, "embedding": 1},
    ),
    Architecture(
        "opt",
        transformers.OPTForCausalLM,
        transformers.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            word_embed_proj_dim=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            ffn_dim=INNER,
            max_position_embeddings=POSITIONS,
            **_SPECIAL,
        ),
        _continued_texts,
        _TEXT_SHAPES,
        {"linear": 13, "embedding": 1},
        {"model.decoder.embed_positions": _subclass("OPTLearnedPositionalEmbedding")},
    ),
    Architecture(
        "bart",
        transformers.BartForConditionalGeneration,
        transformers.BartConfig(**_SEQ2SEQ, max_position_embeddings=POSITIONS, forced_eos_token_id=None),
        _translated_texts,
        _TEXT_SHAPES,
        {"linear": 33},
        {
            "model.shared": _subclass("BartScaledWordEmbedding"),
            "model.encoder.embed_positions": _subclass("BartLearnedPositionalEmbedding"),
            "model.decoder.embed_positions": _subclass("BartLearnedPositionalEmbedding"),
        },
    ),
    Architecture(
        "whisper",
        transformers.WhisperForConditionalGeneration,
        transformers.WhisperConfig(
            **_SEQ2SEQ,
            num_mel_bins=MEL_BINS,
            max_source_positions=SOURCE_POSITIONS,
            max_target_positions=POSITIONS,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        ),
        _transcribed_spectra,
        _TEXT_SHAPES,
        {"linear": 33, "conv1d": 2, "embedding": 2},
        {"model.decoder.embed_positions": _subclass("WhisperPositionalEmbedding")},
    ),
    Architecture(
        "t5",
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            d_kv=WIDTH // HEADS,
            d_ff=INNER,
            num_layers=LAYERS,
            num_heads=HEADS,
            relative_attention_num_buckets=8,
            decoder_start_token_id=PAD,
            pad_token_id=PAD,
            eos_token_id=LAST,
        ),
        _translated_texts,
        _TEXT_SHAPES,
        {"linear": 33, "embedding": 5},
    ),
    Architecture(
        "vit",
        transformers.ViTForImageClassification,
        transformers.ViTConfig(**_IMAGE_ENCODER, num_labels=LABELS),
        _labelled_images_of_any_size,
        _IMAGE_SHAPES,
        {"linear": 13, "conv2d": 1},
        {"vit.embeddings": _no_version("ViTEmbeddings")},
    ),
    Architecture(
        "swin",
        transformers.SwinForImageClassification,
        transformers.SwinConfig(
            image_size=IMAGE_SIDE,
            patch_size=2,
            embed_dim=16,
            depths=[2, 2],
            num_heads=[2, 2],
            window_size=2,  # an image of one window only would switch the shift of windows off for all that follow
            num_labels=LABELS,
        ),
        _labelled_images,
        _IMAGE_SHAPES,
        {"linear": 26, "conv2d": 1},
        {
            "swin.encoder.layers.*.blocks.*.attention.relative_position_bias": _no_version("SwinRelativePositionBias"),
        },
    ),
    Architecture(
        "resnet",
        transformers.ResNetForImageClassification,
        transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=LABELS
        ),
        _labelled_images,
        _IMAGE_SHAPES,
        {"linear": 1, "conv2d": 6},
    ),
    Architecture(
        "convnext",
        transformers.ConvNextForImageClassification,
        transformers.ConvNextConfig(patch_size=2, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_labels=LABELS),
        _labelled_images,
        _IMAGE_SHAPES,
        {"linear": 9, "conv2d": 8},
    ),
    Architecture(
        "debertav2",
        transformers.DebertaV2ForSequenceClassification,
        transformers.DebertaV2Config(
            **_TEXT_ENCODER,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
            num_labels=LABELS,
        ),
        _labelled_texts,
        _TEXT_SHAPES,
        {"linear": 18, "embedding": 3},
    ),
    Architecture(
        "wav2vec2",
        transformers.Wav2Vec2ForCTC,
        transformers.Wav2Vec2Config(
            **_ENCODER,
            conv_dim=[16, 16, 16],
            conv_kernel=[8, 3, 3],
            conv_stride=[4, 2, 2],
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            apply_spec_augment=False,
            layerdrop=0.0,
            pad_token_id=PAD,
        ),
        _transcribed_sounds,
        ((8, 400), (6, 560), (2, 320)),
        {"linear": 14, "conv1d": 3},
        {"wav2vec2.encoder.pos_conv_embed.conv": _subclass("ParametrizedConv1d", "Conv1d")},
    ),
    Architecture(
        "clip",
        transformers.CLIPModel,
        transformers.CLIPConfig(
            text_config={**_TEXT_ENCODER, **_SPECIAL},
            vision_config=_IMAGE_ENCODER,
            projection_dim=16,
        ),
        _captioned_images,
        _TEXT_SHAPES,
        {"linear": 26, "conv2d": 1, "embedding": 3},
    ),
)

ZOO = {architecture.name: architecture for architecture in _ARCHITECTURES}
