"""Build a Hugging Face model without its weights, which are read one by one when they are needed."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inc_torch.core.errors import ArtifactError, ConfigError, InexactWarning, ModelError, did_you_mean, listed
from inc_torch.core.optional import require
from inc_torch.core.streaming import StreamedWeights, attach_weights
from inc_torch.core.user_warning import warn_user
from inc_torch.export._files import WEIGHTS, pickled_files, weight_files
from inc_torch.huggingface._checkpoint_names import names_in_model
from inc_torch.huggingface._class import class_of
from inc_torch.huggingface._layout import check_directory
from inc_torch.huggingface._load import HUB_OPTIONS, is_path, modern
from inc_torch.huggingface._stored import StoredTensor, are_equal, stored_tensors

__all__ = ["load_empty_model"]

logger = logging.getLogger("inc_torch.huggingface")

_WAY_OUT = (
    "Write safetensors once, where the model fits into memory: "
    "AutoModelForCausalLM.from_pretrained(name).save_pretrained(directory)."
)


def load_empty_model(
    name_or_path: str | os.PathLike[str],
    cls: Any = None,  # noqa: ANN401  a class of transformers
    **options: object,
) -> Any:  # noqa: ANN401  a PreTrainedModel
    """Build a model with all Parameters on the ``meta`` device; its weights stay in their files.

    The model takes almost no memory, whatever its size. `quantization.fit` with the recipe ``layer_wise_quant`` reads
    one layer at a time. Buffers hold their values, tied Parameters are tied, and the dtype is that of the
    configuration, as ``from_pretrained(dtype="auto")`` has it.

    INC 2.6.1: the same call, for causal language models, which reads ``pytorch_model.bin``. Differs in ``cls``, which
    is found from the configuration, and in the files: safetensors, also in several files. Pickled ones are refused.

    Args:
        name_or_path: A directory, or the name of a model on the Hub.
        cls: An ``AutoModelFor…`` or a model class; None is the one that ``config.json`` names.
        **options: Fields of the configuration to change (``dtype``, ``attn_implementation`` …), and of the Hub
            (``revision``, ``token``, ``trust_remote_code`` …). INC's ``torchscript`` has no effect.

    Returns:
        The model in eval mode. ``model.path`` is ``name_or_path``.

    Raises:
        ArtifactError: The files are missing, pickled or damaged, lack a tensor, or have one of another shape.
        ModelError: The model is quantized already, or its stored weights cannot be read one by one.
        ConfigError: The configuration has no such field.

    Example:
        >>> import tempfile
        >>> from inc_torch.huggingface import load_empty_model
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=8)
        >>> directory = tempfile.TemporaryDirectory()
        >>> BertModel(config).save_pretrained(directory.name)
        >>> model = load_empty_model(directory.name)
        >>> type(model).__name__, {parameter.device.type for parameter in model.parameters()}
        ('BertModel', {'meta'})
        >>> directory.cleanup()
    """
    require("accelerate", "hf", "load_empty_model")
    given = _without_torchscript(modern(options))
    hub = {key: given.pop(key) for key in HUB_OPTIONS if key in given}
    config = _config_of(name_or_path, given, hub)
    # transformers does not know remote code when it looks for files.
    places = {key: value for key, value in hub.items() if key != "trust_remote_code"}
    stored = stored_tensors(_files_of(name_or_path, places), _WAY_OUT)
    if config.dtype is None:
        config.dtype = next((tensor.float_type for tensor in stored.values() if tensor.float_type), torch.float32)
    model = _empty(config, cls or class_of(config, name_or_path), hub)
    tensors = {name: stored[old] for name, old in names_in_model(model, stored).items()}
    _check_stored(model, tensors)
    _load_buffers(model, tensors)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    attach_weights(model, StreamedWeights(model, {name: tensors[name].read for name in tensors.keys() & parameters}))
    _log_unused(model, stored, tensors)
    _add_generation_config(model, name_or_path, places)
    model.path = os.fspath(name_or_path)
    return model.eval()


def _without_torchscript(options: dict[str, Any]) -> dict[str, Any]:
    if options.get("torchscript"):
        message = "torchscript has no effect in load_empty_model: nothing is traced. Leave it out."
        warn_user(message, InexactWarning)
    return {key: value for key, value in options.items() if key != "torchscript"}


def _config_of(name_or_path: str | os.PathLike[str], fields: dict[str, Any], hub: dict[str, Any]) -> Any:  # noqa: ANN401
    from transformers import AutoConfig

    directory = Path(name_or_path)
    if directory.exists() or is_path(name_or_path):
        _check_directory(directory / str(hub.get("subfolder", "")))
    config, unused = AutoConfig.from_pretrained(name_or_path, return_unused_kwargs=True, **hub, **fields)
    if unknown := sorted(unused.keys() & fields.keys()):
        message = (
            f"load_empty_model got {unknown[0]}={fields[unknown[0]]!r}: expected a field of {type(config).__name__} or "
            f"an option of the Hub.{did_you_mean(unknown[0], [*config.to_dict(), *HUB_OPTIONS])}"
        )
        raise ConfigError(message)
    if getattr(config, "quantization_config", None) is not None:
        message = (
            f"{os.fspath(name_or_path)!r} is quantized already: its config.json has a quantization_config. Give the "
            "float model, or open this one with from_pretrained."
        )
        raise ModelError(message)
    return config


def _check_directory(directory: Path) -> None:
    if directory.is_dir() and not weight_files(directory):
        pickled = pickled_files(directory)
        found = f"pickled weights ({', '.join(map(repr, pickled))})" if pickled else "no weights"
        message = (
            f"{os.fspath(directory)!r} holds {found}, expected *.safetensors, of which single tensors can be read. "
            f"{_WAY_OUT}"
        )
        raise ArtifactError(message)
    check_directory(directory)


def _files_of(name_or_path: str | os.PathLike[str], places: dict[str, Any]) -> list[Path]:
    """The safetensors files that ``from_pretrained`` would read."""
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    single = cached_file(name_or_path, WEIGHTS, _raise_exceptions_for_missing_entries=False, **places)
    if single is not None:
        return [Path(single)]
    index = cached_file(name_or_path, f"{WEIGHTS}.index.json", _raise_exceptions_for_missing_entries=False, **places)
    if index is None:
        message = f"{os.fspath(name_or_path)!r} has no {WEIGHTS} and no index of several such files. {_WAY_OUT}"
        raise ArtifactError(message)
    files, _ = get_checkpoint_shard_files(name_or_path, index, **places)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    return [Path(file) for file in files]


def _empty(config: Any, kind: Any, hub: Mapping[str, Any]) -> Any:  # noqa: ANN401  of transformers
    from accelerate import init_empty_weights

    build = kind.from_config if hasattr(kind, "from_config") else kind._from_config
    remote = {"trust_remote_code": hub["trust_remote_code"]} if "trust_remote_code" in hub else {}
    # Buffers are computed for real; what a constructor draws for Parameters is thrown away.
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        model = build(config, **remote)
    model.tie_weights()
    _keep_in_float32(model)
    return model


def _keep_in_float32(model: Any) -> None:  # noqa: ANN401  of transformers
    """Give Parameters float32 that lose too much in 16 bits, as transformers says model by model."""
    fragile = list(model._keep_in_fp32_modules_strict or ()) if model.dtype in {torch.float16, torch.bfloat16} else []
    if model.dtype == torch.float16:
        fragile += model._keep_in_fp32_modules or ()
    pattern = re.compile("|".join(rf"(?:^|\.){re.escape(part)}(?:\.|$)" for part in fragile))
    for name, parameter in model.named_parameters() if fragile else ():
        if pattern.search(name):
            parameter.data = parameter.data.float()


def _check_stored(model: nn.Module, tensors: Mapping[str, StoredTensor]) -> None:
    """Make sure that every tensor of the model is stored, in its shape, and only one for those that are tied."""
    known = model.state_dict(keep_vars=True)  # Parameters themselves, by which tied ones are found
    tied: defaultdict[int, list[str]] = defaultdict(list)
    for name, tensor in known.items():
        tied[id(tensor)].append(name)
    if missing := [names[0] for names in tied.values() if not any(name in tensors for name in names)]:
        raise ArtifactError(_missing_message(model, missing, tensors.values()))
    for name, stored in tensors.items():
        if stored.shape != tuple(known[name].shape):
            message = (
                f"{stored} has shape {stored.shape}, but {type(model).__name__} has {name!r} of shape "
                f"{tuple(known[name].shape)}. The file and the configuration are not of the same model: give the "
                "fields that it was saved with."
            )
            raise ArtifactError(message)
    for names in tied.values():
        _check_tied(model, [name for name in names if name in tensors], tensors)


def _missing_message(model: nn.Module, missing: list[str], stored: Iterable[StoredTensor]) -> str:
    files = sorted({os.fspath(tensor.path) for tensor in stored})
    return (
        f"No tensor for {listed(missing)} of {type(model).__name__} in {', '.join(map(repr, files)) or 'the files'}: "
        "expected a trained weight for each. Give the class that was saved as cls, or complete the model with "
        "from_pretrained, train it and save it."
    )


def _check_tied(model: nn.Module, names: list[str], tensors: Mapping[str, StoredTensor]) -> None:
    for name in names[1:]:
        if not are_equal(tensors[names[0]], tensors[name]):
            message = (
                f"{type(model).__name__} ties {name!r} to {names[0]!r}, but two tensors that differ are stored for "
                f"them: {tensors[name]} and {tensors[names[0]]}. If they were trained apart, say so: "
                "load_empty_model(..., tie_word_embeddings=False)."
            )
            raise ArtifactError(message)


def _load_buffers(model: nn.Module, tensors: Mapping[str, StoredTensor]) -> None:
    for name, buffer in model.named_buffers():
        if name in tensors:
            buffer.copy_(tensors[name].read())


def _log_unused(model: nn.Module, stored: Mapping[str, StoredTensor], used: Mapping[str, StoredTensor]) -> None:
    if unused := sorted(stored.keys() - {tensor.name for tensor in used.values()}):
        logger.info("%s has no use for %d stored tensors: %s", type(model).__name__, len(unused), ", ".join(unused))


def _add_generation_config(model: Any, name_or_path: str | os.PathLike[str], places: dict[str, Any]) -> None:  # noqa: ANN401
    from transformers import GenerationConfig

    if model.can_generate():
        try:
            model.generation_config = GenerationConfig.from_pretrained(name_or_path, **places)
        except OSError:  # none was saved: what the configuration says stays
            logger.info("%s has no generation configuration of its own.", os.fspath(name_or_path))
