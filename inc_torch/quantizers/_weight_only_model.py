"""From a trained model to one whose linear layers hold weights of a few bits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from inc_torch.core.sharding import plain_class
from inc_torch.quantizers._eligibility import close_fast_paths, matrix_modules
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule, fake_quant_class
from inc_torch.quantizers._prepare import Prepared, decide
from inc_torch.quantizers._scheme_names import weight_only_name
from inc_torch.quantizers._spec import QuantSpec, WeightOnlyScheme
from inc_torch.quantizers._weight_only import RoundedWeight, round_to_nearest, search_clip
from inc_torch.quantizers._weight_only_linear import WeightOnlyLinear, packed_buffers

__all__ = ["adopt_rounded", "quantize_weights", "round_weights"]


def quantize_weights(model: nn.Module, spec: QuantSpec) -> dict[str, Prepared]:
    """Round the weights of linear layers to a few bits, in place, and turn the model to eval mode.

    Inputs, and all other modules, stay in float. An output layer that shares its weight with an embedding takes
    codes of its own, and the embedding keeps the float weight.

    Args:
        model: Any module, also a single layer.
        spec: What to quantize how; its default is a `WeightOnlyScheme`.

    Returns:
        The decision for every module that owns a weight of rank 2 or more, as `prepare_fake_quant` returns it.

    Raises:
        ModelError: The model was prepared or converted before.
        ConfigError: Nothing is left to quantize, or a rule speaks of no module that can be.

    Source: INC 2.6.1, ``weight_only`` with the algorithm RTN, which leaves rounded weights in float; here they are
    codes at once, and transformers' ``Conv1D`` is quantized too.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 8), nn.Embedding(4, 2))
        >>> quantize_weights(model, QuantSpec(WeightOnlyScheme(bits=8, group_size=-1)))["0"].scheme
        'w8-per-row-sym'
        >>> type(model[0]).__name__, type(model[1]).__name__
        ('WeightOnlyLinear', 'Embedding')
    """
    decisions = decide(model, spec)
    round_weights(model, spec, decisions)
    return decisions


def round_weights(model: nn.Module, spec: QuantSpec, decisions: Mapping[str, Prepared]) -> None:
    """Round what is decided on to the nearest and has not been rounded yet; see `quantize_weights`."""
    with torch.no_grad():
        for name, module in list(matrix_modules(model)):
            own = plain_class(type(module))
            kind, treatment = fake_quant_class(own), spec.treatment_of(name, own.__name__)
            decision = decisions.get(name)
            is_wanted = decision is not None and decision.scheme is not None
            if is_wanted and isinstance(treatment, WeightOnlyScheme) and kind is not None:
                _quantize_module(module, kind, treatment)
    close_fast_paths(model)
    model.eval()


def adopt_rounded(
    module: nn.Module,
    rounded: RoundedWeight,
    scheme: WeightOnlyScheme,
    *,
    group_of: torch.Tensor | None = None,
    factor: torch.Tensor | None = None,
) -> None:
    """Turn a linear layer into a `WeightOnlyLinear` with these codes, in place.

    Args:
        module: The layer.
        rounded: Codes, scales and zero points.
        scheme: What they are of.
        group_of: The group of each input; None where neighbours share one.
        factor: What inputs are multiplied with first, [in]; None leaves them as they are.
    """
    bias = module._parameters.get("bias")
    kept = None if bias is None else bias.detach().to(torch.float32, copy=True)
    WeightOnlyLinear.adopt(module, weight_only_name(scheme), packed_buffers(rounded, scheme, kept, group_of, factor))


def _quantize_module(module: nn.Module, kind: type[FakeQuantModule], scheme: WeightOnlyScheme) -> None:
    weight = kind.arranged(module, module.get_parameter("weight").detach()).to(torch.float32)
    adopt_rounded(
        module,
        round_to_nearest(weight, scheme, search_clip(weight, scheme) if scheme.clip_search else 1.0),
        scheme,
    )
