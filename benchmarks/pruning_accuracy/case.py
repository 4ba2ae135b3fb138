"""What is pruned in a training, and by which config."""

from __future__ import annotations

from dataclasses import dataclass

from inc_torch import CompressionReport, WeightPruningConfig

UPDATES = 24  # new masks come once in this part of the training, from its second to its twelfth


@dataclass(frozen=True)
class Case:
    """What is pruned, how much of it, and whether the layers are ranked together (global) or each alone (local)."""

    pattern: str
    sparsity: float
    scope: str = "global"

    def config(self, criterion: str, steps: int) -> WeightPruningConfig:
        """Prune in eleven updates up to the middle of the training; the rest of it is for recovery."""
        frequency = steps // UPDATES
        return WeightPruningConfig(
            pruning_type=criterion,
            pattern=self.pattern,
            target_sparsity=self.sparsity,
            pruning_scope=self.scope,
            sparsity_decay_type="exp",
            start_step=2 * frequency,
            end_step=steps // 2,
            pruning_frequency=frequency,
        )

    def check(self, report: CompressionReport) -> None:
        """Compare what was reached with what was asked for.

        Units are counted by the pruner, zeros in the weights. There may be more zeros: a weight that comes back, as
        with the criterion ``gradient``, starts at zero and stays there if its gradient is zero ever after. And the
        inputs of layers are units of many sizes, so that of ``channelx1`` only their number is what was asked for.

        Raises:
            RuntimeError: It is something else.
        """
        rows = [row for row in report.modules if row.units]
        units, pruned = sum(row.units or 0 for row in rows), sum(row.pruned_units or 0 for row in rows)
        least = 0.0 if "channel" in self.pattern else pruned / units
        rounded = 1 if self.scope == "global" else len(rows)  # each budget is a whole number of units
        if abs(pruned - self.sparsity * units) > rounded or report.sparsity < least - 1e-6:
            message = f"{self.pattern}: {pruned} of {units} units and {report.sparsity:.4f} of the weights are pruned; "
            raise RuntimeError(message + f"expected {self.sparsity}.")
