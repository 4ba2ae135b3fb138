"""Int8: what to quantize, training under int8 rounding, and int8 modules that run on oneDNN.

In training: ``prepare_fake_quant -> enable_fake_quant -> (training step -> fold_ranges)* -> convert``.
After training: ``prepare_fake_quant -> calibrate -> convert``, or ``quantize_weights``.
Files: ``describe_int8, describe_graph / rebuild_int8``.

A model that is one graph: ``GraphStage().prepare`` in the place of ``prepare_fake_quant``.
"""

from __future__ import annotations

from inc_torch.quantizers._arithmetic import computing_with
from inc_torch.quantizers._awq import output_changes, search_clips, search_scale
from inc_torch.quantizers._batch_norm import batch_norms, freeze_batch_norm, take_away_norm, thaw_batch_norm
from inc_torch.quantizers._calibration import Calibration, InputRecord, calibrate
from inc_torch.quantizers._codes import InputGrid, decode, dynamic_grid, encode
from inc_torch.quantizers._convert import convert, convert_calibrated, describe_int8, int8_kernels, rebuild_int8
from inc_torch.quantizers._fake_quant_modules import fake_quant_class as quantized_kind
from inc_torch.quantizers._flow import Flow, trace_flow
from inc_torch.quantizers._given_codes import GivenCodes, adopt_codes, reason_against_codes
from inc_torch.quantizers._gptq import GptqWeight, round_by_gptq
from inc_torch.quantizers._hessian import hessian_traces
from inc_torch.quantizers._int8_conv import Int8Conv1d, Int8Conv2d, Int8Conv3d
from inc_torch.quantizers._int8_conv_transpose import Int8ConvTranspose1d, Int8ConvTranspose2d, Int8ConvTranspose3d
from inc_torch.quantizers._int8_embedding import Int8Embedding
from inc_torch.quantizers._int8_linear import Int8DynamicLinear, Int8Linear
from inc_torch.quantizers._int8_module import NO_POST_OPERATION, PLAIN_OUTPUT, Int8Module, output_dtype
from inc_torch.quantizers._observers import OBSERVERS, Levels, Observer, fit_float_grid, fit_grid, observe
from inc_torch.quantizers._paths import ComputePath, computing_by
from inc_torch.quantizers._post_training import LEFT_BY_SEARCH, PostTrainingSpec, open_to_search, realise, treat
from inc_torch.quantizers._prepare import (
    Prepared,
    decide,
    disable_fake_quant,
    enable_fake_quant,
    fake_quant_modules,
    fold_ranges,
    load_observer_state,
    observer_state,
    prepare_fake_quant,
    rounding_share,
    stop_observing,
)
from inc_torch.quantizers._producers import divide_output_
from inc_torch.quantizers._scheme_names import code_name, named_scheme, named_weight_only, weight_only_name
from inc_torch.quantizers._sensitivity import ModelErrors, OutputError, output_errors
from inc_torch.quantizers._smoothing import SmoothingGroup, SmoothQuant
from inc_torch.quantizers._snap import Int8Snap
from inc_torch.quantizers._spec import (
    AwqSettings,
    Codes,
    FloatType,
    GptqSettings,
    QuantRule,
    QuantScheme,
    QuantSpec,
    Scheme,
    TeqSettings,
    Treatment,
    WeightOnlyScheme,
)
from inc_torch.quantizers._statistics import TensorStatistics
from inc_torch.quantizers._teq import learn_scales, learnable_scales
from inc_torch.quantizers._weight_only import RoundedWeight, decoded, round_to_nearest, rounded_values
from inc_torch.quantizers._weight_only_linear import WeightOnlyLinear, group_of_each
from inc_torch.quantizers._weight_only_model import adopt_rounded, quantize_weights, round_weights
from inc_torch.quantizers._word_layout import CONTAINERS, OPTIMUM, SCALE_DTYPES, WordLayout
from inc_torch.quantizers.fx import GraphStage, describe_graph, folded_norms, graph_of, is_graph, set_executor, ungraft

__all__ = [
    "CONTAINERS",
    "LEFT_BY_SEARCH",
    "NO_POST_OPERATION",
    "OBSERVERS",
    "OPTIMUM",
    "PLAIN_OUTPUT",
    "SCALE_DTYPES",
    "AwqSettings",
    "Calibration",
    "Codes",
    "ComputePath",
    "FloatType",
    "Flow",
    "GivenCodes",
    "GptqSettings",
    "GptqWeight",
    "GraphStage",
    "InputGrid",
    "InputRecord",
    "Int8Conv1d",
    "Int8Conv2d",
    "Int8Conv3d",
    "Int8ConvTranspose1d",
    "Int8ConvTranspose2d",
    "Int8ConvTranspose3d",
    "Int8DynamicLinear",
    "Int8Embedding",
    "Int8Linear",
    "Int8Module",
    "Int8Snap",
    "Levels",
    "ModelErrors",
    "Observer",
    "OutputError",
    "PostTrainingSpec",
    "Prepared",
    "QuantRule",
    "QuantScheme",
    "QuantSpec",
    "RoundedWeight",
    "Scheme",
    "SmoothQuant",
    "SmoothingGroup",
    "TensorStatistics",
    "TeqSettings",
    "Treatment",
    "WeightOnlyLinear",
    "WeightOnlyScheme",
    "WordLayout",
    "adopt_codes",
    "adopt_rounded",
    "batch_norms",
    "calibrate",
    "code_name",
    "computing_by",
    "computing_with",
    "convert",
    "convert_calibrated",
    "decide",
    "decode",
    "decoded",
    "describe_graph",
    "describe_int8",
    "disable_fake_quant",
    "divide_output_",
    "dynamic_grid",
    "enable_fake_quant",
    "encode",
    "fake_quant_modules",
    "fit_float_grid",
    "fit_grid",
    "fold_ranges",
    "folded_norms",
    "freeze_batch_norm",
    "graph_of",
    "group_of_each",
    "hessian_traces",
    "int8_kernels",
    "is_graph",
    "learn_scales",
    "learnable_scales",
    "load_observer_state",
    "named_scheme",
    "named_weight_only",
    "observe",
    "observer_state",
    "open_to_search",
    "output_changes",
    "output_dtype",
    "output_errors",
    "prepare_fake_quant",
    "quantize_weights",
    "quantized_kind",
    "realise",
    "reason_against_codes",
    "rebuild_int8",
    "round_by_gptq",
    "round_to_nearest",
    "round_weights",
    "rounded_values",
    "rounding_share",
    "search_clips",
    "search_scale",
    "set_executor",
    "stop_observing",
    "take_away_norm",
    "thaw_batch_norm",
    "trace_flow",
    "treat",
    "ungraft",
    "weight_only_name",
]
