"""What stands beside a model and prepares its inputs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from inc_torch.core.optional import require

__all__ = ["processor_of"]

_TOKENIZER, _IMAGES = "tokenizer_config.json", "preprocessor_config.json"


def processor_of(directory: str | os.PathLike[str]) -> Any:  # noqa: ANN401  a tokenizer or a processor of transformers
    """Open the tokenizer or the processor in a Hugging Face directory; None if there is none."""
    folder = Path(directory)
    has_tokenizer, has_images = (folder / _TOKENIZER).is_file(), (folder / _IMAGES).is_file()
    if not (has_tokenizer or has_images):
        return None
    require("transformers", "hf", "A tokenizer")
    # Imported here, as `import inc_torch` must not import transformers.
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    opener: Any = (
        AutoProcessor if has_tokenizer and has_images else AutoTokenizer if has_tokenizer else AutoImageProcessor
    )
    return opener.from_pretrained(folder)
