"""Tokens in the columns that scripts for BERT kept them in."""

from __future__ import annotations

from typing import Any, Final, final

from inc_torch.core.errors import ConfigError
from inc_torch.data._dataset import REGISTRY, Keeps, Samples, Transform

__all__ = ["Bert"]

TASKS: Final = ("classifier", "squad")
WITH_SEGMENTS: Final = ("bert", "xlnet")
COLUMNS: Final = ("input_ids", "attention_mask", "token_type_ids")


@final
@REGISTRY.register("bert", summary="tokens in columns, as inputs by name")
class Bert(Samples):
    """Rows of a `torch.utils.data.TensorDataset` as ``({"input_ids", "attention_mask", "token_type_ids"}, label)``.

    Args:
        dataset: Rows of (input_ids, attention_mask, token_type_ids, label).
        task: ``"classifier"``, or ``"squad"``, where the fourth column is the number of the example.
        model_type: Models other than ``"bert"`` and ``"xlnet"`` are given no ``token_type_ids``.
        transform: Maps each sample.
        filter: Says what is kept.

    Raises:
        ConfigError: Another task, or a row has fewer columns.

    Example:
        >>> import torch
        >>> rows = [(torch.tensor([5, 6]), torch.tensor([1, 1]), torch.tensor([0, 0]), torch.tensor(1))]
        >>> inputs, label = Bert(rows, "classifier", model_type="distilbert")[0]
        >>> list(inputs), label.item()
        (['input_ids', 'attention_mask'], 1)

    Source: INC 2.6.1 ``bert``; differs in that labels are not among the inputs, so the model computes no loss.
    """

    def __init__(
        self,
        dataset: Any,  # noqa: ANN401  anything with rows
        task: str = "classifier",
        model_type: str = "bert",
        transform: Transform | None = None,
        filter: Keeps | None = None,  # noqa: A002  INC's name
    ) -> None:
        super().__init__(transform, filter)
        if task not in TASKS:
            raise ConfigError.field(type(self).__name__, "task", task, f"one of {', '.join(map(repr, TASKS))}")
        self._rows = dataset
        self._names = COLUMNS if model_type in WITH_SEGMENTS else COLUMNS[:-1]

    def count(self) -> int:  # noqa: D102
        return len(self._rows)

    def sample(self, index: int) -> Any:  # noqa: ANN401, D102
        row = tuple(self._rows[index])
        if len(row) <= len(COLUMNS):
            message = (
                f"The data set 'bert' got a row of {len(row)} columns: expected {', '.join(COLUMNS)} and the label."
            )
            raise ConfigError(message)
        return {name: row[COLUMNS.index(name)] for name in self._names}, row[len(COLUMNS)]
