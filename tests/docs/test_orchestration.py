"""The table of what goes together is the one that the code has, and the pictures of the page are what is printed."""

from __future__ import annotations

from inc_torch import QuantizationAwareTrainingConfig, WeightPruningConfig, prepare_compression
from inc_torch.callbacks._compatibility import COMBINATIONS
from tests.docs.markdown import ROOT, blocks
from tests.loops.driver import ConvNet

PAGE = (ROOT / "docs" / "orchestration.md").read_text(encoding="utf-8")


def test_the_table_is_that_of_the_code():
    rows = [f"| {row.what} | {row.outcome} | {row.meaning} |" for row in COMBINATIONS]
    table = "\n".join(["| what | outcome | meaning |", "|---|---|---|", *rows])
    assert f"\n{table}\n\n" in PAGE


def test_the_plan_is_what_is_printed():
    hasty = [
        WeightPruningConfig(target_sparsity=0.75, start_step=100, end_step=600),
        QuantizationAwareTrainingConfig(start_step=400, freeze_observers_step=900),
    ]
    shown = next(block.text for block in blocks(PAGE) if block.language == "text")
    assert str(prepare_compression(ConvNet(), hasty).plan(steps=1000)) == shown.rstrip("\n")
