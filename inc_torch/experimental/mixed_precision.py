"""Half precision by a 1.X file."""

from __future__ import annotations

from typing import Any, ClassVar, final

from inc_torch.conf import Conf
from inc_torch.conf._words import split
from inc_torch.conf.config import MixedPrecisionConf
from inc_torch.config import MixedPrecisionConfig
from inc_torch.experimental._settings import Setting
from inc_torch.experimental.component import Component
from inc_torch.mix_precision import fit as convert

__all__ = ["MixedPrecision"]


def _precisions(value: object, owner: str, name: str) -> list[object]:  # noqa: ARG001  a check
    return split(value)


@final
class MixedPrecision(Component):
    """Let a trained model compute in bfloat16 or float16 what gains by it.

    Args:
        conf_fname_or_obj: A path to YAML, a dict, a `inc_torch.conf.config.MixedPrecisionConf`, or None: bfloat16.

    Attributes:
        precisions: ``"bf16"``, ``"bf16,fp16"``, a list, or ``"fp32"`` to leave the model alone; in place of the file's.

    Example:
        >>> import torch
        >>> converter = MixedPrecision()
        >>> converter.precisions = "bf16"
        >>> converter.model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> converter.fit()[0].weight.dtype
        torch.bfloat16

    Source: INC 2.6.1 ``experimental.MixedPrecision``; differs in that it never ends the process, and in what
    `inc_torch.mix_precision.fit` says.
    """

    conf_class: ClassVar[type[Conf]] = MixedPrecisionConf
    precisions = Setting("The precisions that are wanted, the preferred one first.", _precisions)
    input = Setting("Names of inputs, which modules of PyTorch do not have.")
    output = Setting("Names of outputs, which modules of PyTorch do not have.")

    def fit(self) -> Any:  # noqa: ANN401  a module, whose own attributes are used
        """Convert the model, searching if there is an evaluation.

        Returns:
            The converted model, a copy; the model itself if ``"fp32"`` is all that is wanted.

        Raises:
            ConfigError: There is no model, or a precision is unknown.
        """
        model = self._required_model()
        config = next((config for config in self._configs if isinstance(config, MixedPrecisionConfig)), None)
        if self.precisions is not None:
            wanted = [word for word in self.precisions if word != "fp32"]
            if not wanted:
                return model
            config = (config or MixedPrecisionConfig()).replace(precisions=wanted)
        return model if config is None else convert(model, config, **self._evaluation())
