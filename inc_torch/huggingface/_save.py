"""Write a hub directory: safetensors, configuration, tokenizer, report and model card."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from inc_torch import precision
from inc_torch.callbacks._lora import holds_adapters
from inc_torch.core.errors import ArtifactError, ConfigError, InexactWarning, ModelError, did_you_mean
from inc_torch.core.names import unwrapped
from inc_torch.core.optional import require
from inc_torch.core.report import CompressionReport
from inc_torch.core.user_warning import warn_user
from inc_torch.export._files import ARTIFACT, HUB_CONFIG, WEIGHTS, write_json
from inc_torch.export._proof import attach_report, attached_report, bits_asked, measured_report
from inc_torch.export._ranks import assembled, write_once
from inc_torch.huggingface._card import write_card
from inc_torch.huggingface._layout import REPORT
from inc_torch.huggingface.registration import QUANT_METHOD, install

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["save_for_huggingface_upstream"]

_GPTQ = "gptq"
_METHODS = (QUANT_METHOD, _GPTQ)


def save_for_huggingface_upstream(
    model: object,
    tokenizer: object,
    output_dir: str | os.PathLike[str],
    *,
    max_shard_size: int | str | None = None,
    quant_method: str = QUANT_METHOD,
) -> None:
    """Write a directory that ``AutoModelFor….from_pretrained`` opens after ``import inc_torch``, ready for the Hub.

    It holds safetensors, ``config.json`` (with a ``quantization_config`` if the model has int8 modules, or some that
    compute in bfloat16), the tokenizer, ``compression_report.json``, measured again from the weights, and a model card.
    A model card that was written by hand is kept.

    transformers records no attention implementation in a directory. A model that was run with another one than
    ``from_pretrained`` picks (``"sdpa"``) differs from the loaded one in the last bits of floats, which int8 rounding
    may turn into a step: call ``model.set_attn_implementation("sdpa")`` before comparing, or load with the same one.

    In a distributed run rank 0 writes, and the ranks that call this too return when it has. Of a sharded model (FSDP2)
    the whole tensors are written, for which every rank has to call it.

    Args:
        model: A Hugging Face model, also inside DDP, `torch.compile` or PEFT, or the manager that compressed it.
        tokenizer: Tokenizer, image processor or processor to save too; None to save none.
        output_dir: Made if it does not exist.
        max_shard_size: Split the weights into files of at most this size (``"2GB"``); None leaves it to transformers.
        quant_method: ``"gptq"`` writes a language model of ``approach="weight_only"`` as AutoGPTQ and GPTQModel do,
            which transformers opens with optimum and gptqmodel, without inc_torch; `OptimizedModel` opens it too. All
            layers in the blocks have one number of bits, 2, 4 or 8, and one group size; scales and biases become
            float16; layers outside of the blocks, such as the head, are written in float.

    Raises:
        ModelError: ``model`` is no Hugging Face model, or still has adapters of PEFT; GPTQ has no place for a layer.
        ConfigError: There is no such ``quant_method``.
        ArtifactError: ``output_dir`` is a file, or a plain inc_torch directory; or it cannot be written, and is as it
            was.

    Warns:
        InexactWarning: Modules that were to be int8 are still float, as the training has not ended; or are written in
            float, as GPTQ has no codes for them.

    Reference:
        INC 2.6.1 ``save_for_huggingface_upstream`` wrote a pickled ``pytorch_model.bin`` and ``torch_dtype: int8``.
    """
    pretrained = _pretrained(model)
    save_tokenizer = getattr(tokenizer, "save_pretrained", None)
    if tokenizer is not None and not callable(save_tokenizer):
        message = (
            f"The tokenizer is {type(tokenizer).__name__!r}: expected an object with save_pretrained, as transformers' "
            "tokenizers and processors have, or None. The arguments are (model, tokenizer, output_dir)."
        )
        raise ModelError(message)
    _refuse_adapters(pretrained)
    if quant_method not in _METHODS:
        want = " or ".join(map(repr, _METHODS))
        message = f"save_for_huggingface_upstream(quant_method={quant_method!r}): expected {want}."
        raise ConfigError(message + did_you_mean(str(quant_method), _METHODS))
    install()
    complete = assembled(pretrained, without_wrappers=True)

    def write() -> None:
        report = _write(complete, save_tokenizer, Path(output_dir), max_shard_size, quant_method)
        if quant_method == QUANT_METHOD:
            attach_report(pretrained, report)

    write_once(output_dir, write)


def _write(
    model: PreTrainedModel,
    save_tokenizer: Callable[[Path], object] | None,
    directory: Path,
    max_shard_size: int | str | None,
    quant_method: str,
) -> CompressionReport:
    from inc_torch.huggingface._together import written_together

    target = _target(directory)
    # After transformers itself, whose import registers what these modules hold; not before it.
    if quant_method == _GPTQ:
        from inc_torch.huggingface._gptq_writer import gptq_copy

        model = gptq_copy(model)
    else:
        from inc_torch.huggingface._quantizer import adopt

        adopt(model)
    report = attached_report(model) if quant_method == _GPTQ else None  # of the codes, not of zero points less one
    report = report or measured_report(model, attached_report(model))
    _warn_of_float(report)
    with written_together(target, last=HUB_CONFIG, stale=_stale) as aside:
        if save_tokenizer is not None:
            save_tokenizer(aside)
        with _alone(model):
            if max_shard_size is None:
                model.save_pretrained(aside)
            else:
                model.save_pretrained(aside, max_shard_size=max_shard_size)
        _correct_dtype(model, aside)
        write_json(aside / REPORT, report.to_dict())
    write_card(target, model, report, needs_import=quant_method == QUANT_METHOD)
    return report


def _correct_dtype(model: PreTrainedModel, directory: Path) -> None:
    """Write the dtype of the model, which transformers takes from the first Parameter, into its configuration.

    Where that belongs to a module that computes in bfloat16, ``from_pretrained`` would cast all others to it.
    """
    half = next((module for module in model.modules() if isinstance(module, precision.Bfloat16Module)), None)
    if half is not None and half.float_dtype != model.dtype:
        model.config.dtype = str(half.float_dtype).removeprefix("torch.")
        model.config.save_pretrained(directory)


@contextmanager
def _alone(model: PreTrainedModel) -> Iterator[None]:
    """Keep ``save_pretrained`` from meeting other ranks, as it does for a model that transformers itself sharded."""
    setting = vars(model.config).pop("distributed_config", None)
    try:
        yield
    finally:
        if setting is not None:
            model.config.distributed_config = setting


def _pretrained(model: object) -> PreTrainedModel:
    """The Hugging Face model in ``model``: itself, or what a manager or a wrapper holds."""
    require("transformers", "hf", "save_for_huggingface_upstream")
    from transformers import PreTrainedModel

    inner = model if isinstance(model, nn.Module) else getattr(model, "model", model)
    if isinstance(inner, nn.Module):
        inner = unwrapped(inner)
    if not isinstance(inner, PreTrainedModel):
        message = (
            f"save_for_huggingface_upstream was given {type(inner).__name__!r}: expected a transformers "
            "PreTrainedModel or the manager that compressed one. Save other models with manager.save(directory), and "
            "load them with inc_torch.load(directory, model=...)."
        )
        raise ModelError(message)
    return inner


def _refuse_adapters(model: PreTrainedModel) -> None:
    if holds_adapters(model):
        message = (
            f"{type(model).__name__} still has adapters of PEFT, which from_pretrained would not find: expected them "
            "merged. manager.on_train_end() does it, and merge_and_unload() where nothing was compressed. To write the "
            "adapters alone, call save_pretrained of the PeftModel."
        )
        raise ModelError(message)


def _warn_of_float(report: CompressionReport) -> None:
    unfinished = [row for row in report.modules if row.bits > (bits_asked(row) or row.bits)]
    if unfinished:
        row = unfinished[0]
        message = (
            f"{len(unfinished)} modules that were to be quantized are saved in float: {row.name!r} was to be "
            f"{row.scheme!r} and has {row.bits} bits. Call manager.on_train_end() before saving."
        )
        warn_user(message, InexactWarning)


def _target(directory: Path) -> Path:
    if directory.exists() and not directory.is_dir():
        message = f"{os.fspath(directory)!r} is a file: expected a directory to save into. Give another path."
        raise ArtifactError(message)
    if (directory / ARTIFACT).exists():
        message = (
            f"{os.fspath(directory)!r} is a plain inc_torch directory ({ARTIFACT}), whose weights would be "
            "overwritten. Save into another directory."
        )
        raise ArtifactError(message)
    return directory


def _stale(directory: Path) -> list[Path]:
    """What an earlier save left here, which would be taken for a part of the new one."""
    named = [directory / name for name in (REPORT, WEIGHTS, f"{WEIGHTS}.index.json")]
    return [*named, *directory.glob("model-?????-of-?????.safetensors")]
