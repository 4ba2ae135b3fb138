"""Forward time of models side by side: one process, one thread, alternating, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from transformers import PreTrainedModel

LENGTH = 128
ROUNDS = 40
WARM_UP = 5


@torch.inference_mode()
def medians(models: Mapping[str, PreTrainedModel], batch_size: int, *, rounds: int = ROUNDS) -> dict[str, float]:
    """Median milliseconds of one forward on ``batch_size`` rows of 128 tokens, for each model.

    The models take turns and the order changes every round, so that a machine that slows down slows all of them.
    """
    inputs = {
        "input_ids": torch.randint(min(model.config.vocab_size for model in models.values()), (batch_size, LENGTH)),
        "attention_mask": torch.ones(batch_size, LENGTH, dtype=torch.int64),
    }
    return in_turns({name: partial(model, **inputs) for name, model in models.items()}, rounds=rounds)


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = ROUNDS,
    warm_up: int = WARM_UP,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds of each call, on one thread."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(warm_up + rounds):
            for name in sorted(calls, reverse=turn % 2 == 1):
                start = clock()
                calls[name]()
                if turn >= warm_up:
                    times[name].append(clock() - start)
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(values) * 1e3 for name, values in times.items()}
