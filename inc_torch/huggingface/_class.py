"""Which class of transformers a configuration is of."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from inc_torch.core.errors import ArtifactError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["class_of"]


def class_of(config: PretrainedConfig, name_or_path: str | os.PathLike[str]) -> Any:  # noqa: ANN401  # any Auto class
    """The class that ``config.architectures`` names, or the Auto class that ``auto_map`` gives for remote code."""
    import transformers

    architecture = next(iter(config.architectures or ()), None)
    known = getattr(transformers, architecture, None) if architecture else None
    if known is not None:
        return known
    for auto, target in (getattr(config, "auto_map", None) or {}).items():
        if str(target).rpartition(".")[2] == architecture and hasattr(transformers, auto):
            return getattr(transformers, auto)
    message = (
        f"config.json of {os.fspath(name_or_path)!r} has architectures={config.architectures!r}: expected the name of "
        "a class in transformers. Load it with the model's own class: YourModel.from_pretrained(directory)."
    )
    raise ArtifactError(message)
