"""Post-training quantization for the extension of Intel: what it adds to the steps of a `Job`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, final

from torch import nn

from inc_torch.config import PostTrainingQuantConfig
from inc_torch.core.batches import Inputs, copied, one_call
from inc_torch.core.borrowing import borrowing_copy
from inc_torch.core.errors import CalibrationError, ConfigError, did_you_mean, listed
from inc_torch.ipex import (
    FUNCTIONS,
    LAYERS,
    WITHOUT_KERNEL,
    IpexOperation,
    Observation,
    deploy,
    require_extension,
)
from inc_torch.quantizers import (
    FloatType,
    Prepared,
    QuantRule,
    QuantScheme,
    QuantSpec,
    Treatment,
)
from inc_torch.tuner import QuantizedOperations
from inc_torch.tuning import Choice, Mode, Operation

__all__ = ["OnIpex"]

_IN_FLOAT: Final = "left in float by the configuration"
_ALONE: Final = "the extension has no int8 kernel for it"


def _speaks_of_functions(rule: QuantRule) -> bool:
    """Whether a rule is for what is no module: INC's names of functions and fused chains, or a name with a slash."""
    if rule.subject == "name":
        return "/" in rule.pattern
    return "&" in rule.pattern or any(rule.catches("", kind) for kind in FUNCTIONS)


@final
class OnIpex:
    """The part of a job that knows the extension.

    It watches the float model while the job calibrates, adds operations that are no layers to the space of a search,
    and lets finished models run on the extension.

    Args:
        source: The float model.
        config: Of the job.

    Raises:
        MissingPackageError: The extension is not there.
    """

    def __init__(self, source: nn.Module, config: PostTrainingQuantConfig) -> None:
        require_extension("PostTrainingQuantConfig(backend='ipex')")
        self._float = borrowing_copy(source)
        self._spec = config.to_spec().quant
        self._example = one_call(config.example_inputs, source)
        self._observation: Observation | None = None

    @property
    def layers_spec(self) -> QuantSpec:
        """The rules that speak of layers; of a fused chain the first operation counts."""
        rules = (rule for rule in self._spec.rules if not _speaks_of_functions(rule))
        chains = [
            replace(rule, pattern=head)
            for rule in self._spec.rules
            if rule.subject == "type" and (head := rule.pattern.partition("&")[0]) != rule.pattern and head in LAYERS
        ]
        return replace(self._spec, rules=(*rules, *chains))

    def explained(self, decisions: Mapping[str, Prepared], model: nn.Module) -> dict[str, Prepared]:
        """The decisions, with the reason of what the extension has no kernel for."""
        alone = {name for name, module in model.named_modules() if type(module).__name__ in WITHOUT_KERNEL}
        return {
            name: made._replace(reason=_ALONE) if name in alone and made.reason == _IN_FLOAT else made
            for name, made in decisions.items()
        }

    # ------------------------------------------------------------------------------------------- calibration

    def run(self, inputs: Inputs) -> None:
        """Look at one batch of calibration."""
        self._watching(inputs).run(inputs)

    def mark(self, samples: int) -> None:
        """What was seen up to here is what so many samples show."""
        if self._observation is not None:
            self._observation.mark(samples)

    def run_function(self, model: nn.Module, function: Callable[[nn.Module], object]) -> None:
        """Let the user's function run the watched model too, after it ran ``model``."""
        if self._example is None:
            self._example = _first_call(model, function)
        function(self._watching(self._example).model)

    def _watching(self, inputs: Inputs) -> Observation:
        if self._observation is None:
            self._observation = Observation(self._float, self._example or inputs)
        return self._observation

    @property
    def _seen(self) -> Observation:
        if self._observation is None:
            message = (
                "backend='ipex' traces the model: expected calibration data that reaches it, or example_inputs in the "
                "configuration; got neither."
            )
            raise CalibrationError(message)
        return self._observation

    # ------------------------------------------------------------------------------------------- choices

    def require_rules_match(self) -> None:
        """Refuse rules for functions that speak of none."""
        others = self._seen.others()
        for rule in self._spec.rules:
            if rule.subject == "name" and "/" in rule.pattern and not any(_catches(rule, entry) for entry in others):
                names = [entry.name for entry in others]
                message = (
                    f"The quantization rule {rule.pattern!r} of op_name_dict matches no operation of the extension."
                    f"{did_you_mean(rule.pattern, names) or f' There are {listed(names)}.'}"
                )
                raise ConfigError(message)

    def _treatment(self, operation: IpexOperation) -> Treatment:
        return self._spec.treatment_of(operation.name, operation.kind)

    def opened(self, operations: QuantizedOperations) -> QuantizedOperations:
        """What a search may choose for layers, and for what the extension computes in int8 besides."""
        space, treatments = operations.space, dict(operations.treatments)
        more = []
        for entry in self._seen.others():
            treatment = self._treatment(entry)
            if isinstance(treatment, QuantScheme) and entry.name not in treatments:
                treatments[entry.name] = {"int8": treatment, "fp32": FloatType.FLOAT32}
                choices = (Choice("int8", Mode.STATIC), Choice("fp32", Mode.FLOAT32))
                more.append(Operation(entry.name, entry.kind, choices))
        return replace(operations, space=replace(space, operations=(*space.operations, *more)), treatments=treatments)

    # ------------------------------------------------------------------------------------------- the end

    def deploy(self, model: nn.Module, samples: int | None, treatments: Mapping[str, Treatment]) -> None:
        """Let an int8 model run on the extension, with the other operations as rules and recipe say."""
        seen = self._seen
        wanted = {entry.name: treatments.get(entry.name, self._treatment(entry)) for entry in seen.others()}
        schemes = {name: scheme for name, scheme in wanted.items() if isinstance(scheme, QuantScheme)}
        deploy(model, seen.summary, seen.example, seen.grids(schemes, samples))


def _catches(rule: QuantRule, operation: IpexOperation) -> bool:
    return rule.catches(operation.name, operation.kind)


def _first_call(model: nn.Module, function: Callable[[nn.Module], object]) -> Inputs:
    """The arguments of the first call that a function makes of a model."""
    caught: list[Inputs] = []

    def note(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if not caught:
            caught.append(copied(Inputs(args, kwargs)))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        function(model)
    finally:
        handle.remove()
    if not caught:
        message = "calib_func did not call the model that it was given: expected at least one call."
        raise CalibrationError(message)
    return caught[0]
