"""The configuration of weight pruning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

from inc_torch.config._base import Config, check_option, config, option, option_names
from inc_torch.config._checks import (
    Place,
    choice,
    flag,
    integer,
    items_of,
    names,
    number,
    optional,
    regular_expressions,
)
from inc_torch.config._pruner_options import PrunerOptions, check_pattern, default_pattern
from inc_torch.config._pruning_types import check_pruning_type
from inc_torch.config._readonly import FrozenDict
from inc_torch.pruners import ALLOCATIONS, CRITERIA, REGULARIZERS, SCHEDULES, PrunerSpec

__all__ = ["WeightPruningConfig"]

_NOT_LOCAL = ("pruning_configs", "backend")
_step = integer("a step of 0 or more", lambda x: x >= 0)
_open_ratio = number("a number in [0, 1)", lambda x: 0 <= x < 1)


def _coefficient(value: object, place: Place) -> float:
    """A number, also as a string, as INC reads it from YAML."""
    want = "a number of 0 or more"
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError as error:
            raise place.type_error(value, want) from error
    return number(want, lambda x: x >= 0)(value, place)


def _local_configs(value: object, place: Place) -> tuple[FrozenDict, ...]:
    """Dicts of local options, each checked by the same rules as the global ones; one dict is a list of one."""
    entries = [value] if isinstance(value, Mapping) else value
    if not isinstance(entries, (list, tuple)):
        raise place.type_error(value, "a list of dicts")
    return tuple(_local_config(entry, place.item(index)) for index, entry in enumerate(entries))


def _local_config(entry: object, place: Place, but: tuple[str, ...] = _NOT_LOCAL) -> FrozenDict:
    """Check a dict of options; None stands for an option that is not there."""
    known = [name for name in option_names(WeightPruningConfig) if name not in but]
    options = items_of(entry, place, "a dict of options", known)
    return FrozenDict(
        {
            name: check_option(WeightPruningConfig, name, option, Place(str(place), name))
            for name, option in options.items()
            if option is not None
        }
    )


def _parameters(value: object, place: Place) -> FrozenDict:
    """INC's second way to give options: they count as given beside it."""
    return _local_config(value, place, (*_NOT_LOCAL, "parameters"))


@final
@config
class WeightPruningConfig(Config):
    """Make weights zero while a model trains.

    Every option but ``backend`` can also stand in a dict of ``pruning_configs``, for the layers of that dict;
    what is missing there, or None, is taken from here. Each dict makes a pruner of its own, with its own
    budget, and an empty list makes one pruner of the options here. Steps count optimizer steps.

    Args:
        pruning_configs: Dicts of local options; one dict is a list of one.
        target_sparsity: Share of pattern units to prune at the end, in [0, 1); of elements for ``N:M``.
        pruning_type: What makes a weight worth keeping: ``magnitude``, ``gradient``, ``snip``, ``snip_momentum``,
            ``block_mask`` or a plug-in; the first four also with ``_progressive`` behind, which takes units away in
            four parts from one update to the next; ``pattern_lock``, which only keeps the zeros that are there at
            ``start_step``; or ``sparse_gpt`` and ``retrain_free``, which prune a trained model, see
            `inc_torch.prepare_pruning`.
        pattern: What is pruned together: ``"4x1"`` (blocks of outputs x inputs), ``"1x1"`` (single weights),
            ``"channelx1"``, ``"1xchannel"``, ``"2:4"`` (2 of every 4 inputs), ``"mha"`` (attention heads). None is
            ``"4x1"``, or ``"1x1"`` for ``pattern_lock``.
        op_names: Regular expressions of layers to prune, found by ``re.search``; none means all.
        excluded_op_names: Regular expressions of layers to leave out.
        backend: Accepted for old scripts, without effect.
        start_step: First step at which masks may change.
        end_step: Last step at which masks may change; equal to ``start_step``, all is pruned at once.
        pruning_scope: ``"global"`` ranks the layers of a pruner together, ``"local"`` each alone.
        pruning_frequency: Steps between mask updates.
        min_sparsity_ratio_per_op: Least sparsity of each layer, at most the greatest.
        max_sparsity_ratio_per_op: Greatest sparsity of each layer, in [0, 1); at most N/M for ``N:M``.
        sparsity_decay_type: How sparsity grows between the two steps: ``exp``, ``cos``, ``linear``, ``cube``.
        pruning_op_types: Words of which one must occur in a layer's class name.
        low_memory_usage: Keep scores in bfloat16, half their memory: scores that differ by less than 0.4 % may change
            places.
        criterion_reduce_type: How element scores become the score of a unit: ``mean``, ``sum`` or ``max``.
        criterion_type: INC's second name of the criterion; only ``pruning_type`` decides, and it must agree.
        reg_type: What draws blocks towards zero from ``start_step`` to ``end_step``: ``group_lasso``, which shortens
            the norm of each by ``reg_coeff`` at every step.
        reg_coeff: Strength of the regularizer, 0 or more.
        initial_sparsity: What the schedule begins with, in [0, target_sparsity]. Not in INC 2.X.
        clock: What ``start_step``, ``end_step`` and ``pruning_frequency`` count: ``"step"``, or ``"epoch"``. Then masks
            change as an epoch begins, so the loop has to call ``on_epoch_begin``, and from the first to the last of
            these epochs each brings the sparsity nearer to the target, as with INC 1.X. Not in INC 2.X.
        parameters: More options, which count as given beside it: INC's place for ``reg_coeff``.
        resume_from_pruned_checkpoint: The zeros of the first step stay, and sparsity grows from their share.
        lock_init_sparsity: The same, by its other name in INC.

    Raises:
        ConfigError: An option is unknown or wrong, or options do not go together.

    Example:
        >>> config = WeightPruningConfig(
        ...     [{"op_names": ["layer1.*"]}, {"op_names": "layer2.*", "pattern": "1x1", "target_sparsity": 0.5}],
        ...     target_sparsity=0.8,
        ...     pruning_type="magnitude",
        ... )
        >>> [(spec.pattern_text, spec.target) for spec in config.to_specs()]
        [('4x1', 0.8), ('1x1', 0.5)]
        >>> config.replace(pruning_configs=[])
        WeightPruningConfig(target_sparsity=0.8, pruning_type='magnitude')
        >>> WeightPruningConfig(target_sparsity=1.5)
        Traceback (most recent call last):
        inc_torch.core.errors.ConfigError: WeightPruningConfig.target_sparsity=1.5: expected a number in [0, 1).
    """

    pruning_configs: Sequence[Mapping[str, object]] = option(_local_configs, default=())
    target_sparsity: float = option(_open_ratio, default=0.9)
    pruning_type: str = option(check_pruning_type, default="snip_momentum")
    pattern: str | None = option(optional(check_pattern), default=None)
    op_names: Sequence[str] = option(regular_expressions, default=())
    excluded_op_names: Sequence[str] = option(regular_expressions, default=())
    backend: str | None = option(optional(choice(("default",))), default=None)
    start_step: int = option(_step, default=0)
    end_step: int = option(_step, default=0)
    pruning_scope: str = option(choice(ALLOCATIONS.names), default="global")
    pruning_frequency: int = option(integer("a number of steps, 1 or more", lambda x: x >= 1), default=1)
    min_sparsity_ratio_per_op: float = option(_open_ratio, default=0.0)
    max_sparsity_ratio_per_op: float = option(_open_ratio, default=0.98)
    sparsity_decay_type: str = option(choice(SCHEDULES.names), default="exp")
    pruning_op_types: Sequence[str] = option(names, default=("Conv", "Linear"))
    low_memory_usage: bool = option(flag, default=False)
    criterion_reduce_type: str = option(choice(("mean", "sum", "max")), default="mean", kw_only=True)
    criterion_type: str | None = option(optional(choice(CRITERIA.names)), default=None, kw_only=True)
    reg_type: str | None = option(optional(choice(REGULARIZERS.names)), default=None, kw_only=True)
    reg_coeff: float = option(_coefficient, default=0.0, kw_only=True)
    initial_sparsity: float = option(_open_ratio, default=0.0, kw_only=True)
    clock: str = option(choice(("step", "epoch")), default="step", kw_only=True)
    parameters: Mapping[str, object] = option(_parameters, default=FrozenDict(), kw_only=True)
    resume_from_pruned_checkpoint: bool = option(flag, default=False, kw_only=True)
    lock_init_sparsity: bool = option(flag, default=False, kw_only=True)

    def _check_relations(self) -> None:
        for owner, options in self._pruners():
            options.check(owner)

    def _pruners(self) -> Iterator[tuple[str, PrunerOptions]]:
        """The options of each pruner, and whose they are in messages."""
        shared = _merged({name: getattr(self, name) for name in _local_names()})
        if not self.pruning_configs:
            yield type(self).__name__, PrunerOptions(**shared)
        for index, local in enumerate(self.pruning_configs):
            yield f"{type(self).__name__}.pruning_configs[{index}]", PrunerOptions(**(shared | _merged(local)))

    @property
    def weight_compression(self) -> FrozenDict:
        """The options outside ``pruning_configs``, as INC keeps them; read-only."""
        options = {name: getattr(self, name) for name in _local_names()}
        return FrozenDict(options | {"pattern": self.pattern or default_pattern(self.pruning_type)})

    def to_specs(self) -> tuple[PrunerSpec, ...]:
        """Return one typed pruner for each dict of ``pruning_configs``, or one in all."""
        return tuple(options.to_spec() for _, options in self._pruners())


def _local_names() -> list[str]:
    return [name for name in option_names(WeightPruningConfig) if name not in _NOT_LOCAL]


def _merged(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one level with those in its ``parameters`` on top."""
    own = {name: value for name, value in options.items() if name != "parameters"}
    return own | dict(options.get("parameters") or {})
