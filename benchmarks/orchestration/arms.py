"""What is compared: techniques together in one training (one shot), and trainings one after the other (several).

An arm is written as its shots, in order, each by the techniques in it: ``kd+prune > kd+lock+qat``. ``x2`` behind a shot
says that it is twice as long. In which order the techniques of one shot stand makes no difference: callbacks run in an
order of their own, and every order gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from inc_torch import (
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
)
from inc_torch.callbacks import TrainingConfig

PTQ = "ptq"
TECHNIQUES = frozenset({"dense", "kd", "prune", "lock", "qat", PTQ})
TEACHER = "dense"
PATTERN = "4x1"
UPDATES = 24  # new masks come once in this part of a shot, from its second to the twelfth

UNPRUNED = ("dense", "dense > dense", "kd", "qat", "kd+qat", "dense > ptq", "kd > ptq")
AT_BOTH = (
    "prune",
    "kd+prune",
    "kd+prune+qat",
    "kd+prune+qat x2",
    "prune > ptq",
    "kd+prune > ptq",
    "prune > kd+lock+qat",
    "kd+prune > kd+lock+qat",
)
AT_THE_LESSER = (
    "prune+qat",
    "prune > lock",
    "prune > kd+lock",
    "prune > kd+lock > ptq",
    "kd > prune",
    "kd > prune > ptq",
)
FIRST_HALF = "kd+prune x2"
LONG = f"{FIRST_HALF} > kd+lock+qat x2"
LESSER, GREATER = 0.8, 0.9
DENSE = {1: "dense", 2: "dense > dense", 4: "dense x4"}
"""What an arm is compared with, by the number of its phases."""


@dataclass(frozen=True)
class Shot:
    """One training, or the quantization after one.

    Attributes:
        techniques: What takes part.
        phases: How many times as long as one phase it is.
    """

    techniques: frozenset[str]
    phases: int = 1

    @classmethod
    def of(cls, text: str) -> Shot:
        """Read one.

        Example:
            >>> shot = Shot.of("kd+prune x2")
            >>> sorted(shot.techniques), shot.phases
            (['kd', 'prune'], 2)

        Raises:
            ValueError: A technique is unknown.
        """
        words, _, phases = text.partition(" x")
        techniques = frozenset(words.split("+"))
        if unknown := techniques - TECHNIQUES:
            raise ValueError(f"{text!r} has {sorted(unknown)}: expected some of {sorted(TECHNIQUES)}.")
        return cls(techniques, 0 if PTQ in techniques else int(phases or 1))

    def __contains__(self, technique: str) -> bool:
        return technique in self.techniques

    def configs(self, steps: int, sparsity: float) -> list[TrainingConfig]:
        """What `prepare_compression` gets for a training of so many steps."""
        makers = {
            "kd": distillation,
            "prune": lambda: pruning(steps, sparsity),
            "lock": lambda: WeightPruningConfig(pruning_type="pattern_lock", pattern=PATTERN),
            "qat": QuantizationAwareTrainingConfig,
        }
        return [make() for name, make in makers.items() if name in self]


@dataclass(frozen=True)
class Arm:
    """A way to compress a model.

    Attributes:
        text: Its shots, in order.
        sparsity: The share of blocks that goes where it prunes.
    """

    text: str
    sparsity: float = 0.0

    @property
    def shots(self) -> list[Shot]:
        """One after the other."""
        return [Shot.of(part) for part in self.text.split(" > ")]

    @property
    def before(self) -> Arm | None:
        """The arm without its last shot; its sparsity is 0 if nothing is left that prunes.

        Example:
            >>> Arm("kd > prune > ptq", 0.8).before
            Arm(text='kd > prune', sparsity=0.8)
            >>> Arm("kd > prune", 0.8).before
            Arm(text='kd', sparsity=0.0)
        """
        head, arrow, _ = self.text.rpartition(" > ")
        return Arm(head, self.sparsity if "prune" in head else 0.0) if arrow else None

    @property
    def phases(self) -> int:
        """How much training it takes after the baseline."""
        return sum(shot.phases for shot in self.shots)

    @property
    def is_int8(self) -> bool:
        """Whether int8 comes out."""
        return bool(self.shots[-1].techniques & {"qat", PTQ})

    @property
    def slug(self) -> str:
        """For names of files."""
        return f"{self.text.replace(' > ', '-').replace(' ', '')}-{self.sparsity:g}"


def distillation() -> DistillationConfig:
    """Nine tenths of the loss are the distance to the teacher."""
    return DistillationConfig(
        criterion=KnowledgeDistillationLossConfig(temperature=2.0, loss_types=["CE", "KL"], loss_weights=[0.1, 0.9])
    )


def pruning(steps: int, sparsity: float) -> WeightPruningConfig:
    """Prune in eleven updates up to the middle of the training; the rest of it is for recovery."""
    frequency = steps // UPDATES
    return WeightPruningConfig(
        pruning_type="snip_momentum",
        pattern=PATTERN,
        target_sparsity=sparsity,
        start_step=2 * frequency,
        end_step=steps // 2,
        pruning_frequency=frequency,
    )


def short_arms() -> list[Arm]:
    """Those of one phase and of two; what another one goes on from comes before it."""
    return [
        *(Arm(text) for text in UNPRUNED),
        *(Arm(text, LESSER) for text in AT_BOTH + AT_THE_LESSER),
        *(Arm(text, GREATER) for text in AT_BOTH),
    ]


def long_arms() -> list[Arm]:
    """Pruning once for all, and a dense model beside it, with twice as much training."""
    pruned = [Arm(text, sparsity) for sparsity in (LESSER, GREATER) for text in (FIRST_HALF, LONG)]
    return [Arm(DENSE[4]), *pruned]


def arms() -> list[Arm]:
    """All of them."""
    return short_arms() + long_arms()
