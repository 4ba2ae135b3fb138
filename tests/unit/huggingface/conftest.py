"""Tiny random Hugging Face models, compressed for real, and the directories they are saved to."""

from __future__ import annotations

import pytest
import torch
import transformers

from inc_torch.huggingface.registration import install
from inc_torch.quantizers import QuantSpec, convert, enable_fake_quant, prepare_fake_quant

install()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def bert():
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=16,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config)


def gpt2():
    """Has transformers' Conv1D, and an output layer tied to the embeddings."""
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=24, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def vit():
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        num_labels=3,
    )
    return transformers.ViTForImageClassification(config)


BUILDERS = {"bert": bert, "gpt2": gpt2, "vit": vit}


def inputs_of(model):
    generator = torch.Generator().manual_seed(3)
    if hasattr(model.config, "image_size"):
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    return {"input_ids": torch.randint(3, 60, (2, 12), generator=generator)}


def compress(model):
    """Prune by hand, observe one batch, convert."""
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.dim() == 2 and "embed" not in name and "wte" not in name:
            parameter.data[: parameter.shape[0] // 2] = 0
    prepare_fake_quant(model, QuantSpec())
    enable_fake_quant(model, observe=True)
    model.train()
    with torch.no_grad():
        model(**inputs_of(model))
    convert(model)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(**inputs_of(model)).logits


@pytest.fixture(scope="session")
def int8_models():
    """Compressed models by name; tests must not change them."""
    torch.manual_seed(0)
    return {name: compress(build()) for name, build in BUILDERS.items()}


@pytest.fixture(scope="session")
def int8_directories(int8_models, tmp_path_factory):
    """The same models saved; tests must not change them."""
    from inc_torch.huggingface import save_for_huggingface_upstream

    directories = {}
    for name, model in int8_models.items():
        directories[name] = tmp_path_factory.mktemp(name) / "model"
        save_for_huggingface_upstream(model, None, directories[name])
    return directories


@pytest.fixture(params=sorted(BUILDERS))
def architecture(request):
    return request.param
