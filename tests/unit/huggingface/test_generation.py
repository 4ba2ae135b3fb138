"""Generation and pipelines say the same before saving and after loading, in another process too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from inc_torch.huggingface import save_for_huggingface_upstream
from tests.unit.huggingface.conftest import bert, compress, gpt2, vit

ROOT = Path(__file__).parents[3]
WORDS = ["[PAD]", "<s>", "</s>", "[UNK]", "good", "bad", "weather", "one", "long", "day", "in", "the", "old", "town"]
TEXTS = ["good weather", "one long day in the old town"]
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def llama():
    """As SmolLM2: grouped attention, and an output layer tied to the embeddings."""
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=48,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "[UNK]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


@pytest.fixture(scope="module")
def all_saved(tokenizer, tmp_path_factory):
    """By name: a model that generates, and the directory that it was saved to."""
    saved = {}
    for build in (gpt2, llama):
        torch.manual_seed(0)
        model = compress(build())
        model.generation_config.update(repetition_penalty=1.3, max_length=20)
        directory = tmp_path_factory.mktemp(build.__name__)
        save_for_huggingface_upstream(model, tokenizer, directory)
        saved[build.__name__] = (model, directory)
    return saved


@pytest.fixture(params=["gpt2", "llama"])
def saved(request, all_saved):
    return all_saved[request.param]


def tokens(model, tokenizer, **options):
    """Of a batch whose first text is padded on the left."""
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert batch["attention_mask"][0].tolist() == [0, 0, 0, 0, 0, 1, 1]
    return model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **GREEDY, **options)


def test_generation_in_another_process(all_saved, tokenizer):
    program = "\n".join(
        [
            "import json, sys, inc_torch, transformers",
            "directories, texts, options = json.loads(sys.argv[1])",
            "for directory in directories:",
            "    model = transformers.AutoModelForCausalLM.from_pretrained(directory)",
            "    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)",
            "    batch = tokenizer(texts, padding=True, return_tensors='pt')",
            "    mask = batch['attention_mask']",
            "    print(json.dumps(model.generate(batch['input_ids'], attention_mask=mask, **options).tolist()))",
        ]
    )
    arguments = json.dumps([[os.fspath(directory) for _, directory in all_saved.values()], TEXTS, GREEDY])
    command = [sys.executable, "-c", program, arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    want = [tokens(model, tokenizer) for model, _ in all_saved.values()]
    assert [tuple(answer.shape) for answer in want] == [(2, 15), (2, 15)]
    assert [json.loads(line) for line in result.stdout.splitlines()] == [answer.tolist() for answer in want]


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 2}])
def test_ways_to_generate(saved, tokenizer, options):
    model, directory = saved
    got = transformers.AutoModelForCausalLM.from_pretrained(directory)
    assert torch.equal(tokens(got, tokenizer, **options), tokens(model, tokenizer, **options))


def test_the_generation_config_is_kept(saved):
    _, directory = saved
    got = transformers.AutoModelForCausalLM.from_pretrained(directory).generation_config
    assert (got.repetition_penalty, got.max_length, got.eos_token_id) == (1.3, 20, 2)


def test_text_generation_pipeline(saved, tokenizer):
    model, directory = saved
    generate = transformers.pipeline("text-generation", model=os.fspath(directory))
    assert type(generate.model) is type(model)
    got = [generate(text, return_full_text=False, **GREEDY)[0]["generated_text"] for text in TEXTS]
    for text, answer in zip(TEXTS, got, strict=True):
        batch = tokenizer(text, return_tensors="pt")
        new = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **GREEDY)[0, -8:]
        assert answer.strip() == tokenizer.decode(new, skip_special_tokens=True).strip()


def test_text_classification_pipeline(tokenizer, tmp_path):
    model = compress(bert())
    save_for_huggingface_upstream(model, tokenizer, tmp_path)
    classify = transformers.pipeline("text-classification", model=os.fspath(tmp_path))
    got = classify("good film", top_k=None)
    with torch.no_grad():
        scores = model(input_ids=tokenizer("good film", return_tensors="pt")["input_ids"]).logits.softmax(-1)[0]
    assert {entry["label"]: entry["score"] for entry in got} == {
        f"LABEL_{index}": pytest.approx(score, abs=1e-6) for index, score in enumerate(scores.tolist())
    }


def test_an_image_processor_is_saved_like_a_tokenizer(tmp_path):
    pytest.importorskip("PIL")
    from PIL import Image

    model = compress(vit())
    processor_class = getattr(transformers, "ViTImageProcessorPil", transformers.ViTImageProcessor)  # transformers 5
    processor = processor_class(size={"height": 16, "width": 16})
    save_for_huggingface_upstream(model, processor, tmp_path)
    image = Image.new("RGB", (20, 30), (200, 30, 60))
    classify = transformers.pipeline("image-classification", model=os.fspath(tmp_path), image_processor=processor)
    got = classify(image, top_k=3)
    again = processor_class.from_pretrained(tmp_path)
    with torch.no_grad():
        scores = model(**again(image, return_tensors="pt")).logits.softmax(-1)[0]
    assert {entry["label"]: entry["score"] for entry in got} == {
        f"LABEL_{index}": pytest.approx(score, abs=1e-6) for index, score in enumerate(scores.tolist())
    }


def test_a_processor_of_several_parts_is_saved_like_a_tokenizer(tokenizer, tmp_path):
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=8_000)
    processor = transformers.Wav2Vec2Processor(extractor, tokenizer)
    save_for_huggingface_upstream(bert(), processor, tmp_path)
    again = transformers.Wav2Vec2Processor.from_pretrained(tmp_path)
    assert again.feature_extractor.sampling_rate == 8_000
    assert again.tokenizer("good film")["input_ids"] == tokenizer("good film")["input_ids"]
