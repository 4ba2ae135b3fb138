"""Logits of a teacher on disk, so that it runs once over the data and not in every epoch.

A folder holds ``index.json`` and shards ``logits-00000.safetensors``. In a shard, of the positions of its samples one
after another:

    values     [positions, k]   the logits that were kept, the largest first
    classes    [positions, k]   int32, which classes they are of; not there where all were kept
    rest       [positions]      what each other class gets; not there where all were kept
    positions  [samples]        int64, how many positions each sample has
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from inc_torch.core.errors import ArtifactError, ConfigError, ModelError
from inc_torch.core.files import made_directory, parse_json, write_text, written_aside
from inc_torch.core.progress import with_progress
from inc_torch.distillers._outputs import TEACHER_LOGITS, extract_logits
from inc_torch.distillers._teacher import Teacher

__all__ = ["CachedLogits", "WithTeacherLogits", "cache_teacher_logits"]

_INDEX: Final = "index.json"
_FORMAT: Final = "inc_torch/teacher_logits/1"
_KEYS: Final = {"format", "count", "classes", "top_k", "is_sequence", "shards"}
_SHARD_VALUES: Final = 1 << 24
_SEQUENCE: Final = 3
_PAIR: Final = 2


@torch.no_grad()
def cache_teacher_logits(
    teacher: nn.Module,
    dataloader: Iterable[Any],
    folder: str | PathLike[str],
    *,
    top_k: int | None = None,
    dtype: torch.dtype = torch.float16,
) -> CachedLogits:
    """Run ``teacher`` once over all batches and keep its logits in ``folder``.

    Args:
        teacher: As in `DistillationConfig`.
        dataloader: Batches in the order of the data set, as the teacher is to see them: not shuffled, no augmentation.
            Of sequences with an ``attention_mask`` the real positions are kept.
        folder: Made by this call; it must not be there yet.
        top_k: How many logits of each position are kept, the largest; the others share what is left of the
            probability evenly. None keeps all.
        dtype: Of the logits that are kept.

    Raises:
        ConfigError: The loader shuffles, ``top_k`` is no number of classes, or the folder is there.
        ModelError: There are no logits in the teacher's output, or no batch.
        ArtifactError: The disk is full, or may not be written to.

    Example:
        >>> import tempfile
        >>> teacher, inputs = nn.Linear(4, 3), torch.randn(10, 4)
        >>> with tempfile.TemporaryDirectory() as place:
        ...     cache = cache_teacher_logits(teacher, DataLoader(inputs, batch_size=4), f"{place}/logits", top_k=2)
        ...     len(cache), cache[0].shape, bool(cache[0].argmax() == teacher(inputs[0]).argmax())
        (10, torch.Size([3]), True)
    """
    if isinstance(dataloader, DataLoader) and not isinstance(dataloader.sampler, SequentialSampler):
        message = (
            f"cache_teacher_logits got a DataLoader with {type(dataloader.sampler).__name__}: expected one that keeps "
            "the order of the data set, as logits are found by the index of their sample. Use shuffle=False."
        )
        raise ConfigError(message)
    target = Path(folder)
    if target.exists():
        message = (
            f"cache_teacher_logits is to write {str(target)!r}, which is there: give another folder, or delete it."
        )
        raise ConfigError(message)
    partial = target.with_name(f"{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    made_directory(partial)
    try:
        writer = _Writer(partial, top_k, dtype)
        asked = Teacher(teacher)
        for batch in with_progress(dataloader, "Asking the teacher"):
            writer.add(extract_logits(asked(batch)).float().cpu(), _real_positions_of(batch))
        writer.finish()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone after the rename
    return CachedLogits(target)


@final
class CachedLogits(Sequence[torch.Tensor]):
    """Logits that `cache_teacher_logits` wrote, by the index of the sample; read from disk when they are asked for.

    Args:
        folder: Where they are.

    Raises:
        ArtifactError: The folder holds no such logits, or not whole ones.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        index = _read_index(self.folder)
        self.classes, self.top_k = int(index["classes"]), index["top_k"]
        self._count, self._is_sequence = int(index["count"]), bool(index["is_sequence"])
        self._shards: list[tuple[str, int]] = [(str(name), int(count)) for name, count in index["shards"]]
        self._places: dict[str, torch.Tensor] = {}

    def __repr__(self) -> str:
        kept = "all" if self.top_k is None else f"the largest {self.top_k}"
        return f"CachedLogits({str(self.folder)!r}: {self._count} samples, {kept} of {self.classes} classes)"

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401  as Sequence declares it
        """Return the logits of a sample, ``[classes]`` or ``[positions, classes]``, float32.

        With ``top_k`` the others have one value, so that `softmax` gives the kept ones the teacher's probabilities.
        """
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(self._count))]
        number = int(index)
        if not -self._count <= number < self._count:
            message = f"There is no sample {number} among the {self._count} whose teacher logits are in {self.folder}."
            raise IndexError(message)
        logits = self._read(number % self._count)
        return logits if self._is_sequence else logits[0]

    def batch(self, indices: Iterable[int] | torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits of several samples, to be given as ``teacher_output``.

        Args:
            indices: Of the samples.
            attention_mask: ``[batch, positions]``, nonzero where the real positions of sequences go in this batch,
                however it is padded; without it they begin at the left.

        Returns:
            ``[batch, classes]``, or ``[batch, positions, classes]`` with zeros at padded positions.

        Raises:
            ModelError: A sequence has another number of real positions than when the teacher saw it.
        """
        wanted = indices.tolist() if isinstance(indices, torch.Tensor) else list(indices)
        found = [self[index] for index in wanted]
        if not self._is_sequence:
            return torch.stack(found)
        if attention_mask is None:
            return nn.utils.rnn.pad_sequence(found, batch_first=True)
        real = attention_mask.cpu() != 0
        padded = torch.zeros(*real.shape, self.classes)
        for row, (index, logits) in enumerate(zip(wanted, found, strict=True)):
            if int(real[row].sum()) != len(logits):
                message = (
                    f"Sample {index} has {int(real[row].sum())} real positions in this batch, and had {len(logits)} "
                    "when the teacher saw it: expected the same tokens. Tokenize and cut both in the same way."
                )
                raise ModelError(message)
            padded[row, real[row]] = logits
        return padded

    def _read(self, index: int) -> torch.Tensor:
        for name, count in self._shards:
            if index < count:
                return self._dense(name, index)
            index -= count
        raise IndexError(index)

    def _dense(self, name: str, index: int) -> torch.Tensor:
        try:
            with safe_open(str(self.folder / name), framework="pt") as shard:
                if name not in self._places:
                    self._places[name] = shard.get_tensor("positions").cumsum(0)
                ends = self._places[name]
                rows = slice(int(ends[index - 1]) if index else 0, int(ends[index]))
                values: torch.Tensor = shard.get_slice("values")[rows].float()
                if self.top_k is None:
                    return values
                classes: torch.Tensor = shard.get_slice("classes")[rows].long()
                rest: torch.Tensor = shard.get_slice("rest")[rows].float()
        except (OSError, SafetensorError) as error:
            message = f"The teacher logits in {str(self.folder / name)!r} cannot be read: {error}. Write them again."
            raise ArtifactError(message) from error
        return rest.unsqueeze(1).repeat(1, self.classes).scatter_(1, classes, values)


@final
class WithTeacherLogits(Dataset[Any]):
    """A data set whose samples bring the logits of the teacher, ``[classes]`` each.

    A dict gets the key ``"teacher_logits"``, a tuple one more item at its end. A batch that is a dict can go to
    ``on_after_compute_loss`` as it is; of a tuple hand the last item over as ``teacher_output``. For sequences of
    different lengths use `CachedLogits.batch` in the loop.

    Args:
        dataset: With a length and an index, in the order in which the teacher saw it.
        logits: Of its samples.

    Raises:
        ConfigError: There are more or fewer of them than samples.
    """

    def __init__(self, dataset: Any, logits: CachedLogits) -> None:  # noqa: ANN401  whatever has a length and an index
        if len(dataset) != len(logits):
            message = f"There are {len(logits)} teacher logits for {len(dataset)} samples: expected one for each."
            raise ConfigError(message)
        self._dataset, self._logits = dataset, logits

    def __len__(self) -> int:
        return len(self._logits)

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401  the sample and more
        sample, logits = self._dataset[index], self._logits[index]
        if isinstance(sample, Mapping):
            return {**sample, TEACHER_LOGITS: logits}
        return (*sample, logits) if isinstance(sample, tuple | list) else (sample, logits)


class _Writer:
    def __init__(self, folder: Path, top_k: int | None, dtype: torch.dtype) -> None:
        self._folder, self._top_k, self._dtype = folder, top_k, dtype
        self._classes: int | None = None
        self._is_sequence = False
        self._samples: list[torch.Tensor] = []
        self._shards: list[tuple[str, int]] = []

    def add(self, logits: torch.Tensor, real: torch.Tensor | None) -> None:
        """Take the logits of a batch."""
        self._is_sequence = logits.dim() == _SEQUENCE
        if self._classes is None:
            self._classes = self._checked_classes(logits)
        for row, sample in enumerate(logits):
            is_padded = self._is_sequence and real is not None and real.shape == logits.shape[:2]
            kept = sample[real[row]] if is_padded and real is not None else sample
            self._samples.append(kept.reshape(-1, logits.shape[-1]))
        if sum(sample.numel() for sample in self._samples) >= _SHARD_VALUES:
            self._write_shard()

    def finish(self) -> None:
        """Write what is left, and the index."""
        if self._classes is None:
            message = "cache_teacher_logits got no batch: expected at least one. A used-up generator gives none."
            raise ModelError(message)
        self._write_shard()
        index = {
            "format": _FORMAT,
            "count": sum(count for _, count in self._shards),
            "classes": self._classes,
            "top_k": self._top_k,
            "is_sequence": self._is_sequence,
            "shards": self._shards,
        }
        write_text(self._folder / _INDEX, json.dumps(index, indent=1))

    def _checked_classes(self, logits: torch.Tensor) -> int:
        classes = logits.shape[-1]
        if self._top_k is not None and not 0 < self._top_k < classes:
            message = (
                f"cache_teacher_logits got top_k={self._top_k!r} for a teacher with {classes} classes: expected a "
                "number from 1 to one less, or None to keep all."
            )
            raise ConfigError(message)
        return classes

    def _write_shard(self) -> None:
        if not self._samples:
            return
        logits = torch.cat(self._samples)
        tensors = {"positions": torch.tensor([len(sample) for sample in self._samples])}
        if self._top_k is None:
            tensors["values"] = logits.to(self._dtype)
        else:
            top = logits.topk(self._top_k, dim=-1)
            others = logits.scatter(1, top.indices, -math.inf).logsumexp(-1) - math.log(logits.shape[-1] - self._top_k)
            tensors["values"], tensors["classes"] = top.values.to(self._dtype), top.indices.to(torch.int32)
            tensors["rest"] = others
        name = f"logits-{len(self._shards):05d}.safetensors"
        with written_aside(self._folder / name) as aside:
            save_file(tensors, aside)
        self._shards.append((name, len(self._samples)))
        self._samples.clear()


def _real_positions_of(batch: object) -> torch.Tensor | None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.cpu() != 0 if isinstance(mask, torch.Tensor) else None


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        content: object = parse_json((folder / _INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{str(folder)!r} holds no teacher logits ({error}): expected a folder by cache_teacher_logits."
        raise ArtifactError(message) from error
    index = content if isinstance(content, dict) else {}
    if set(index) != _KEYS or index["format"] != _FORMAT:
        message = f"{str(folder / _INDEX)!r} is no index of teacher logits of this version: expected {_FORMAT!r}."
        raise ArtifactError(message)
    if not _is_consistent(index):
        message = (
            f"{str(folder / _INDEX)!r} is damaged: expected the names of the shards and how many samples each has, "
            f"{index['count']!r} together, of {index['classes']!r} classes. Copy the whole folder, or write it again."
        )
        raise ArtifactError(message)
    missing = [name for name, _ in index["shards"] if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        message = (
            f"{str(folder)!r} lacks {missing[0]!r}, which its index names: copy the whole folder, or write it again."
        )
        raise ArtifactError(message)
    return index


def _is_consistent(index: Mapping[str, Any]) -> bool:
    shards, top_k = index["shards"], index["top_k"]
    is_list = isinstance(shards, list) and all(isinstance(shard, list) and len(shard) == _PAIR for shard in shards)
    if not is_list or not all(isinstance(name, str) and _is_count(count) for name, count in shards):
        return False
    numbers = (index["count"], index["classes"], *(() if top_k is None else (top_k,)))
    is_sum = index["count"] == sum(count for _, count in shards)
    return all(map(_is_count, numbers)) and is_sum and isinstance(index["is_sequence"], bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
