"""Open a model directory or Hub model without naming its class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NoReturn, final

from torch import nn

from inc_torch.core.optional import require
from inc_torch.export._files import read_json
from inc_torch.export._proof import attach_report, attached_report, prove_report, read_report
from inc_torch.huggingface._class import class_of
from inc_torch.huggingface._layout import REPORT, SAVE_AGAIN, check_directory
from inc_torch.huggingface.registration import install

__all__ = ["HUB_OPTIONS", "OptimizedModel", "is_path", "modern"]

HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)
REPORT_OPTIONS = tuple(option for option in HUB_OPTIONS if option != "trust_remote_code")


@final
class OptimizedModel:
    """Opens any model that `save_for_huggingface_upstream` wrote, and any plain Hugging Face one.

    Use `from_pretrained`; there are no instances.
    """

    def __init__(self, *args: object, **kwargs: object) -> NoReturn:
        message = (
            "OptimizedModel has no instances: it was called, expected OptimizedModel.from_pretrained(name_or_path), "
            "which returns the model itself."
        )
        raise OSError(message)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **kwargs: object) -> Any:  # noqa: ANN401
        """Load a model, int8 or float, as the class that its ``config.json`` names.

        Unlike ``AutoModelFor….from_pretrained`` it needs no task, opens safetensors only, and measures the report of
        float models again too. It also opens the directories of int8 models that INC's `save_for_huggingface_upstream`
        wrote, from ``pytorch_model.bin``, of which nothing but tensors and plain values is read, and directories of
        GPTQ (``"quant_method": "gptq"``), whose layers become weight-only ones with the same values.

        Args:
            name_or_path: A directory, or the name of a model on the Hub.
            **kwargs: For the class's ``from_pretrained`` (``dtype``, ``device_map``, ``revision``, ``token`` …).
                INC's ``use_auth_token`` is taken as ``token``; ``resume_download`` is what the Hub does anyway.

        Returns:
            The model, a ``PreTrainedModel`` in eval mode, with its report in ``model.__dict__["_inc_torch_report"]``.
            With ``output_loading_info=True`` the pair that transformers gives.

        Raises:
            ArtifactError: The directory is damaged, pickled, foreign, or its weights are not those of its report.
                Of GPTQ: it has codes of 3 bits, or in another form than ``"gptq"`` and ``"gptq_v2"``.
        """
        require("transformers", "hf", "OptimizedModel")
        # Imported here, as `import inc_torch` must not import transformers.
        from transformers import AutoConfig

        from inc_torch.huggingface._inc import holds_inc_model, open_inc_model

        install()
        options = modern(kwargs)
        hub = {key: options[key] for key in HUB_OPTIONS if key in options}
        directory = Path(name_or_path)
        if holds_inc_model(directory):
            return open_inc_model(directory)
        if directory.exists() or is_path(name_or_path):
            check_directory(directory / str(options.get("subfolder", "")))
        config = options.get("config")
        if config is None:
            config = AutoConfig.from_pretrained(name_or_path, **hub)
        report_path = _report_file(name_or_path, {key: hub[key] for key in REPORT_OPTIONS if key in hub})
        gptq = _for_reading_gptq(config)
        if gptq is not None:
            options["config"] = gptq
        options = {"use_safetensors": True, **options}
        model = class_of(config, name_or_path).from_pretrained(name_or_path, **options)
        loaded = model[0] if isinstance(model, tuple) else model
        if gptq is not None:
            _adopt(loaded)
        if report_path is not None and attached_report(loaded) is None:
            _prove(loaded, report_path)
        return model


def _for_reading_gptq(config: object) -> object | None:
    """The configuration with which ours opens a directory of GPTQ; None if this is of something else."""
    if getattr(config, "quantization_config", None) is None:
        return None
    from inc_torch.huggingface._gptq_quantizer import for_reading_gptq

    return for_reading_gptq(config)


def _adopt(model: nn.Module) -> None:
    from inc_torch.huggingface._quantizer import adopt

    adopt(model)


def modern(kwargs: dict[str, object]) -> dict[str, Any]:
    options = {key: value for key, value in kwargs.items() if key not in {"use_auth_token", "resume_download"}}
    if kwargs.get("use_auth_token") is not None:
        options.setdefault("token", kwargs["use_auth_token"])
    return options


def is_path(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether the user means a directory, not a name on the Hub (``model`` or ``owner/model``)."""
    text = os.fspath(name_or_path)
    return not isinstance(name_or_path, str) or text.startswith((".", "~", os.sep)) or text.count("/") > 1


def _report_file(name_or_path: str | os.PathLike[str], hub: dict[str, Any]) -> Path | None:
    """The report in the directory, or beside the weights in the cache of the Hub, where loading finds it."""
    from transformers.utils.hub import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(name_or_path, REPORT, **quiet, **hub)
    return None if found is None else Path(found)


def _prove(model: nn.Module, path: Path) -> None:
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        return  # parts were offloaded to disk
    stored = read_report(read_json(path, SAVE_AGAIN), os.fspath(path))
    attach_report(model, prove_report(model, stored, os.fspath(path)))
