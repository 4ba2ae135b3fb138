"""Fine-tuning of a classifier, before anything compresses it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim import AdamW
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from common.data import Batch


def fine_tune(model: PreTrainedModel, batches: Iterable[Batch], steps: int) -> None:
    """Train all weights on ``steps`` batches."""
    optimizer = AdamW(model.parameters(), lr=1.5e-4, weight_decay=0.01, fused=True)
    scheduler = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch.inputs, labels=batch.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
