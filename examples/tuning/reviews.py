"""MiniLM-L6, fine-tuned on Rotten Tomatoes reviews."""

from __future__ import annotations

from pathlib import Path

from case import Case, answered
from rich.progress import track
from transformers import AutoModelForSequenceClassification

from common.data import encode, load_reviews
from common.fine_tuning import fine_tune
from common.model import load_pretrained
from common.synthetic import load_tiny, make_reviews

MAX_LENGTH = 48
BATCH_SIZE = 32
STEPS = 250
CALIBRATED = 96


def load_case(folder: Path, *, evaluated: int = 1000, quick: bool = False) -> Case:
    """The case; ``evaluated`` reviews for the search, 2,000 of yet other movies for the test.

    Args:
        folder: Where the fine-tuned model is kept; it is made if it is not there.
        evaluated: How many reviews the search evaluates on.
        quick: Made-up reviews and a tiny model.
    """
    reviews = make_reviews() if quick else load_reviews(validation_size=evaluated)
    pretrained, tokenizer = (load_tiny if quick else load_pretrained)(0)
    training, validation, test = (
        encode(part, tokenizer, MAX_LENGTH) for part in (reviews.train, reviews.validation, reviews.test)
    )
    if not (folder / "config.json").is_file():
        fine_tune(pretrained, track(training.stream(BATCH_SIZE, STEPS, seed=0), "Fine-tuning", STEPS), STEPS)
        pretrained.save_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    calibration = [training.batch(range(start, start + BATCH_SIZE)) for start in range(0, CALIBRATED, BATCH_SIZE)]
    labelled = [(batch.inputs, batch.labels) for batch in test.batches(64)]
    return Case(
        model,
        lambda: AutoModelForSequenceClassification.from_config(model.config),
        [(batch.inputs, batch.labels) for batch in calibration],
        answered(model, (batch.inputs for batch in validation.batches(64))),
        answered(model, (inputs for inputs, _ in labelled)),
        labelled,
        tolerable_loss=0.003,
    )
