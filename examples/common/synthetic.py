"""Made-up reviews, a tokenizer for them and a tiny untrained BERT: the whole example in seconds, with no download.

``--smoke`` uses them to show that a loop works; its accuracies say nothing about compression.
"""

from __future__ import annotations

import random

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from common.data import LABELS, Reviews, Splits

_OPINIONS = (
    ("dull", "clumsy", "tired", "hollow", "shapeless", "grating", "lifeless", "stale"),
    ("tender", "witty", "radiant", "gripping", "inventive", "graceful", "charming", "vivid"),
)
_NEUTRAL = ("the", "a", "film", "plot", "cast", "story", "scene", "camera", "is", "and", "but", "with", "in", "of")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def make_reviews(*, train_size: int = 512, held_out_size: int = 128, seed: int = 0) -> Splits:
    """Sentences of common words in which most opinions are the label's own."""
    generator = random.Random(seed)

    def draw(size: int) -> Reviews:
        labels = tuple(generator.randrange(len(LABELS)) for _ in range(size))
        return Reviews(tuple(_sentence(label, generator) for label in labels), labels)

    return Splits(train=draw(train_size), validation=draw(held_out_size), test=draw(held_out_size))


def load_tiny(seed: int) -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    """A BERT of two layers, 64 wide, with random weights drawn from ``seed``, and its tokenizer."""
    tokenizer = _tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(LABELS)),
        label2id={name: place for place, name in enumerate(LABELS)},
    )
    torch.manual_seed(seed)
    return BertForSequenceClassification(config), tokenizer


def _sentence(label: int, generator: random.Random) -> str:
    words = generator.choices(_NEUTRAL, k=generator.randint(4, 12))
    for opinion in (label, label, generator.randrange(len(LABELS))):
        words.insert(generator.randrange(len(words) + 1), generator.choice(_OPINIONS[opinion]))
    return " ".join(words)


def _tokenizer() -> PreTrainedTokenizerFast:
    words = (*_SPECIAL, *_NEUTRAL, *_OPINIONS[0], *_OPINIONS[1])
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
