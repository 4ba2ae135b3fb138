"""What the extension sees of a float model and its data: the operations, and statistics of what they read."""

from __future__ import annotations

import inspect
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import nn

from inc_torch.core.batches import Inputs, copied, run
from inc_torch.core.errors import ModelError
from inc_torch.ipex._extension import extension
from inc_torch.ipex._floating import with_plain_layers
from inc_torch.ipex._summary import LAYERS, Grid, IpexOperation, Summary, int8_operations
from inc_torch.quantizers import Levels, QuantScheme, TensorStatistics, fit_grid

__all__ = ["Observation", "prepared_by_extension", "quiet", "written_summary"]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what the extension and torch's tracer say of their own insides from the user."""
    logger = logging.getLogger("IPEX")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def prepared_by_extension(model: nn.Module, example: Inputs) -> Any:  # noqa: ANN401  a class that the extension makes
    """Let the extension find the operations of a float model, in place; batch normalization is folded.

    Args:
        model: With Parameters of its own.
        example: What it is run on.

    Raises:
        ModelError: The extension cannot follow the model.
    """
    package = extension()
    has_norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    named = _named(model, example)
    given = {"example_inputs": example.args} if not named else {"example_kwarg_inputs": named}
    with quiet(), torch.no_grad():
        try:
            return package.quantization.prepare(model, _observers(), inplace=True, bn_folding=has_norms, **given)
        except (RuntimeError, TypeError, AttributeError, AssertionError, KeyError) as error:
            message = (
                f"The extension cannot follow {type(model).__name__}: {type(error).__name__}: {error}. It takes models "
                "whose operations run in one order whatever the data. Leave backend='ipex' out: the default backend "
                "needs no trace."
            )
            raise ModelError(message) from error


def _named(model: nn.Module, example: Inputs) -> dict[str, object]:
    """All arguments by name, where some are: the extension takes either places or names. Else nothing."""
    if not example.kwargs:
        return {}
    parameters = inspect.signature(model.forward).parameters.values()
    names = [entry.name for entry in parameters if entry.kind is entry.POSITIONAL_OR_KEYWORD]
    return {**dict(zip(names, example.args, strict=False)), **example.kwargs}


def _observers() -> Any:  # noqa: ANN401  a class of torch.ao
    """Extremes for a tensor, and for each output channel of a weight; what is better follows from statistics."""
    from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver, QConfig, QConfigMapping

    activation = MinMaxObserver.with_args(qscheme=torch.per_tensor_affine, dtype=torch.quint8)
    weight = PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
    return QConfigMapping().set_global(
        QConfig(activation=activation, weight=weight)  # type: ignore[no-untyped-call]
    )


def written_summary(prepared: Any) -> Summary:  # noqa: ANN401  a class that the extension makes
    """The summary of a prepared model that has seen data."""
    with tempfile.TemporaryDirectory() as directory, quiet():
        path = Path(directory) / "summary.json"
        prepared.save_qconf_summary(str(path))
        summary: Summary = json.loads(path.read_text(encoding="utf-8"))
    return summary


_Tensors = dict[tuple[str, int], TensorStatistics]
"""By key of the summary and number of the tensor."""


@final
class Observation:
    """A float model under the eyes of the extension, while data runs through it.

    Args:
        model: In float; it stays as it is, and a copy is watched.
        example: One call of it.

    Attributes:
        example: The call.
    """

    def __init__(self, model: nn.Module, example: Inputs) -> None:
        self.example = example
        self._model = prepared_by_extension(with_plain_layers(model), copied(example))
        self._seen: _Tensors = {}
        self._by_size: dict[int | None, _Tensors] = {}
        self._summary: Summary | None = None
        for key, state in self._model._fqn_to_auto_quant_state_map.items():
            for number, observer in state.tensor_id_to_observer.items():
                observer.register_forward_pre_hook(partial(self._note, key, int(number)))

    def _note(self, key: str, number: int, _: nn.Module, args: tuple[Any, ...]) -> None:
        with torch._C.DisableTorchFunction():
            values = args[0].detach().as_subclass(torch.Tensor).float()
            if not values.numel():
                return
            seen = TensorStatistics.of(values)
            if (key, number) in self._seen:
                self._seen[key, number].add(seen)
            else:
                self._seen[key, number] = seen

    @property
    def model(self) -> nn.Module:
        """To be run on data."""
        model: nn.Module = self._model
        return model

    def run(self, inputs: Inputs) -> None:
        """Look at one more batch."""
        with torch.no_grad():
            run(self._model, copied(inputs))

    def mark(self, samples: int | None = None) -> None:
        """Remember what was seen up to here, under a number of samples."""
        self._by_size[samples] = {place: seen.copy() for place, seen in self._seen.items()}

    @property
    def summary(self) -> Summary:
        """The default of the extension: all that it can compute in int8 is. The watching ends."""
        if self._summary is None:
            self._summary = written_summary(self._model)
            self._model = None
        return self._summary

    def others(self) -> list[IpexOperation]:
        """What the extension computes in int8 besides layers with a weight."""
        return [operation for operation in int8_operations(self.summary) if operation.kind not in LAYERS]

    def grids(
        self, schemes: Mapping[str, QuantScheme], samples: int | None = None
    ) -> dict[tuple[str, str], dict[int, Grid]]:
        """How the operations round what they read, from the data.

        Args:
            schemes: By name, of those that compute in int8.
            samples: Which mark counts.
        """
        seen = self._by_size.get(samples, self._seen)
        return {
            (operation.key, operation.number): {
                number: _grid_of(statistics, schemes[operation.name])
                for (key, number), statistics in seen.items()
                if key == operation.key
            }
            for operation in self.others()
            if operation.name in schemes
        }


_TOP: Final = 255


def _grid_of(seen: TensorStatistics, scheme: QuantScheme) -> Grid:
    levels = Levels(0, min(scheme.top, _TOP), scheme.symmetric_input)
    low, high = scheme.input_observer.range(seen, levels)
    scale, zero_point = fit_grid(low, high, levels)
    return Grid(scale.item(), int(zero_point.item()))
