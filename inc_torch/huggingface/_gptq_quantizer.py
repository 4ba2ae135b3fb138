"""Directories that GPTQ was written to, opened by transformers into `WeightOnlyLinear` layers.

transformers has a reader of its own, which needs optimum and gptqmodel. `for_reading_gptq` puts this one in its place,
for one call of ``from_pretrained``. Only imported once transformers is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final, final

from torch import nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from inc_torch.core.errors import ArtifactError, did_you_mean
from inc_torch.huggingface._gptq_tensors import BITS, FORMATS, GptqNumbers, problem_of_shapes, read_layer
from inc_torch.huggingface._layout import untie
from inc_torch.huggingface._source import Source, files_of
from inc_torch.quantizers import (
    OPTIMUM,
    WeightOnlyLinear,
    WeightOnlyScheme,
    quantized_kind,
    rebuild_int8,
    weight_only_name,
)

__all__ = ["GPTQ", "GptqQuantizer", "GptqReading", "for_reading_gptq"]

GPTQ: Final = "gptq"
_METHOD: Final = "inc_torch_gptq"
_CODES: Final = ".qweight"
_LEAVES: Final = ("qweight", "qzeros", "scales", "g_idx", "bias")
_MADE_ANEW: Final = "Make the directory again with the program that made it."


def for_reading_gptq(config: Any) -> Any | None:  # noqa: ANN401  of transformers
    """A configuration with which ``from_pretrained`` opens a directory of GPTQ by ours; None if it is none.

    Args:
        config: As it was read from the directory; it stays as it is.

    Raises:
        ArtifactError: Its ``quantization_config`` asks for what cannot be read.
    """
    found = getattr(config, "quantization_config", None)
    given = found.to_dict() if isinstance(found, QuantizationConfigMixin) else found
    if not isinstance(given, Mapping):
        return None
    method = given.get("quant_method", "")
    if getattr(method, "value", method) != GPTQ:
        return None
    _numbers(given)
    changed = copy.deepcopy(config)
    changed.quantization_config = {**given, "quant_method": _METHOD}
    return changed


def _numbers(given: Mapping[str, Any]) -> GptqNumbers:
    bits, group_size = given.get("bits"), given.get("group_size", 128)
    form = given.get("checkpoint_format") or given.get("format") or FORMATS[0]
    checks = {
        "bits": (bits, bits in BITS and not isinstance(bits, bool), "2, 4 or 8"),
        "group_size": (
            group_size,
            isinstance(group_size, int) and (group_size == -1 or group_size >= 1),
            "-1 or an integer above 0",
        ),
        "checkpoint_format": (form, form in FORMATS, " or ".join(map(repr, FORMATS))),
    }
    for name, (value, is_right, want) in checks.items():
        if not is_right:
            message = f"quantization_config.{name}={value!r} of a GPTQ directory: expected {want}. {_MADE_ANEW}"
            raise ArtifactError(message)
    return GptqNumbers(int(str(bits)), int(group_size), str(form), "gptqmodel" in str(given.get("meta")).lower())


@final
class GptqReading(QuantizationConfigMixin):
    """The ``quantization_config`` of such a directory, while it is opened.

    Attributes:
        given: What the directory says.
    """

    def __init__(self, **given: Any) -> None:  # noqa: ANN401  any JSON
        self.quant_method = _METHOD  # type: ignore[assignment]  # an enum that cannot be extended
        self.given = given


@final
class GptqQuantizer(HfQuantizer):
    """Makes room for the layers that the files have codes of, and reads these once the rest is loaded."""

    requires_calibration = True

    def __init__(self, quantization_config: GptqReading, **kwargs: object) -> None:
        super().__init__(quantization_config, **kwargs)
        self._numbers = _numbers(quantization_config.given)
        self._names: dict[str, str] = {}
        self._source: Source | None = None

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: object
    ) -> nn.Module:
        source = self._source = Source(checkpoint_files or files_of(model))
        self._names = {stored: _name_in(model, stored, source) for stored in _stored_layers(source)}
        if not self._names:
            message = f"{source.where} has the quantization method 'gptq', but no tensor '….qweight'. {_MADE_ANEW}"
            raise ArtifactError(message)
        described = {}
        for stored, name in self._names.items():
            described[name] = self._described(model, stored, name)
        rebuild_int8(model, described)
        untie(model, {name: model.get_submodule(name) for name in described})
        return model

    def _described(self, model: nn.Module, stored: str, name: str) -> dict[str, object]:
        """Describe the layer as it lies in the files, once its shapes are known to be right."""
        source, module = self._source or Source(()), model.get_submodule(name)
        kind = quantized_kind(type(module))
        if kind is None or kind.kind != WeightOnlyLinear.replaces:
            raise _damaged(source, stored, f"{type(model).__name__} has a {type(module).__name__} there")
        outputs, inputs = kind.arranged(module, module.get_parameter("weight")).shape
        shapes = {leaf: shape for leaf in _LEAVES if (shape := source.shape(stored, leaf)) is not None}
        if (problem := problem_of_shapes(shapes, outputs, inputs, self._numbers)) is not None:
            raise _damaged(source, stored, problem)
        scheme = WeightOnlyScheme(self._numbers.bits, self._numbers.group_size, symmetric=False)
        return {
            "kind": WeightOnlyLinear.kind,
            "scheme": weight_only_name(scheme),
            "shape": [outputs, inputs],
            "bias": "bias" in shapes,
            "reordered": "g_idx" in shapes,
            "layout": OPTIMUM.name,
        }

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: object) -> nn.Module:
        """Read codes and scales exactly as they are in the files, whatever the dtype of the model."""
        source = self._source or Source(())
        for stored, name in self._names.items():
            module = model.get_submodule(name)
            if isinstance(module, WeightOnlyLinear):
                self._fill(module, stored, source)
        self._names, self._source = {}, None
        return model

    def _fill(self, module: WeightOnlyLinear, stored: str, source: Source) -> None:
        device = module.qweight.device
        found = {leaf: source.tensor(stored, leaf) for leaf in _LEAVES}
        tensors = {leaf: tensor.to(device) for leaf, tensor in found.items() if tensor is not None}
        try:
            layer = read_layer(tensors, module.weight_shape[1], self._numbers)
        except ValueError as error:
            raise _damaged(source, stored, str(error)) from error
        module.hold(*layer)

    def is_serializable(self, *args: object, **kwargs: object) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def _stored_layers(source: Source) -> list[str]:
    return sorted(name.removesuffix(_CODES) for name in source.names() if name.endswith(_CODES))


def _name_in(model: nn.Module, stored: str, source: Source) -> str:
    """The name that a stored layer has in ``model``, which may be the body of the stored model, or have a head."""
    modules = dict(model.named_modules())
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    for name in (stored, prefix + stored, stored.removeprefix(prefix)):
        if name in modules:
            return name
    raise _damaged(source, stored, f"{type(model).__name__} has no such module.{did_you_mean(stored, modules)}")


def _damaged(source: Source, stored: str, problem: str) -> ArtifactError:
    return ArtifactError(f"Layer {stored!r} of {source.where} cannot be read as codes of GPTQ: {problem}. {_MADE_ANEW}")


def _register() -> None:
    """Let transformers know of both classes; doing it twice changes nothing."""
    if _METHOD not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        auto.register_quantization_config(_METHOD)(GptqReading)
    if _METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantizer(_METHOD)(GptqQuantizer)


_register()
