from __future__ import annotations

import inspect

import pytest

from inc_torch.config import AccuracyCriterion, QuantizationAwareTrainingConfig, TuningCriterion
from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.quantizers import FloatType, QuantRule, QuantScheme, QuantSpec

INC_ORDER = [
    "device",
    "backend",
    "inputs",
    "outputs",
    "op_type_dict",
    "op_name_dict",
    "reduce_range",
    "model_name",
    "quant_format",
    "excluded_precisions",
    "quant_level",
    "accuracy_criterion",
    "tuning_criterion",
]
FP32 = {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}
PER_TENSOR = {"weight": {"granularity": "per_tensor"}}
SYMMETRIC = {"activation": {"scheme": "sym"}}
FLOAT = FloatType.FLOAT32


class TestSurface:
    def test_order_is_that_of_inc(self):
        parameters = inspect.signature(QuantizationAwareTrainingConfig).parameters.values()
        assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == INC_ORDER

    def test_defaults_are_those_of_inc(self):
        config = QuantizationAwareTrainingConfig()
        assert (config.device, config.backend, config.quant_format, config.quant_level) == (
            "cpu",
            "default",
            "default",
            "auto",
        )
        assert (config.inputs, config.outputs, config.excluded_precisions) == ((), (), ())
        assert (config.reduce_range, config.model_name) == (None, "")
        assert config.accuracy_criterion == AccuracyCriterion()
        assert config.tuning_criterion == TuningCriterion()
        assert config.to_spec() == QuantSpec(options={"symmetric_input": (False, True)})

    def test_none_stands_for_the_default(self):
        assert QuantizationAwareTrainingConfig(**dict.fromkeys(INC_ORDER)) == QuantizationAwareTrainingConfig()

    def test_approach_is_read_only(self):
        config = QuantizationAwareTrainingConfig()
        assert config.approach == "quant_aware_training"
        with pytest.raises(AttributeError, match="read-only"):
            config.approach = "static"

    def test_s5_all_documented_keys(self):
        config = QuantizationAwareTrainingConfig(
            backend="default",
            inputs="image_tensor",
            outputs="num_detections,detection_boxes",
            device="cpu",
            op_name_dict={},
            strategy="random",
            relative=0.05,
            timeout=3,
            max_trials=7,
            objective="performance",
            performance_only=True,
        )
        assert config.inputs == ("image_tensor",)
        assert config.accuracy_criterion == AccuracyCriterion(tolerable_loss=0.05)
        assert config.tuning_criterion == TuningCriterion("random", None, 3, 7, "performance", performance_only=True)

    def test_old_spellings_go_into_copies(self):
        accuracy, tuning = AccuracyCriterion(higher_is_better=False), TuningCriterion(max_trials=5)
        config = QuantizationAwareTrainingConfig(
            accuracy_criterion=accuracy, tuning_criterion=tuning, absolute=2, timeout=9
        )
        assert config.accuracy_criterion == AccuracyCriterion(False, "absolute", 2)
        assert config.tuning_criterion == TuningCriterion(max_trials=5, timeout=9)
        assert (accuracy.criterion, tuning.timeout) == ("relative", 0)
        assert QuantizationAwareTrainingConfig().tuning_criterion.timeout == 0

    def test_old_spellings_are_not_kept_under_their_own_name(self):
        assert not hasattr(QuantizationAwareTrainingConfig(timeout=3), "timeout")

    def test_old_spellings_work_in_replace(self):
        config = QuantizationAwareTrainingConfig(timeout=3).replace(max_trials=2)
        assert config.tuning_criterion == TuningCriterion(timeout=3, max_trials=2)

    @pytest.mark.parametrize("level", ["auto", 0, 1])
    def test_levels(self, level):
        assert QuantizationAwareTrainingConfig(quant_level=level).quant_level == level

    @pytest.mark.parametrize("device", ["cpu", "gpu", "npu", "xpu"])
    def test_devices(self, device):
        assert QuantizationAwareTrainingConfig(device=device).to_spec() == QuantizationAwareTrainingConfig().to_spec()


class TestFreezing:
    def test_never_by_default_and_only_by_keyword(self):
        config = QuantizationAwareTrainingConfig()
        assert (config.freeze_observers_step, config.freeze_batch_norm_step) == (None, None)
        parameters = inspect.signature(QuantizationAwareTrainingConfig).parameters
        assert parameters["freeze_observers_step"].kind is parameters["freeze_batch_norm_step"].kind
        assert parameters["freeze_observers_step"].kind is inspect.Parameter.KEYWORD_ONLY

    def test_survives_the_way_through_plain_values(self):
        config = QuantizationAwareTrainingConfig(freeze_observers_step=100, freeze_batch_norm_step=0)
        assert QuantizationAwareTrainingConfig.from_dict(config.to_dict()) == config
        assert config.replace(freeze_observers_step=None).freeze_observers_step is None

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"freeze_observers_step": 0}, "freeze_observers_step=0: expected an integer, 1 or more, or None."),
            ({"freeze_batch_norm_step": -1}, "freeze_batch_norm_step=-1: expected an integer, 0 or more, or None."),
            ({"freeze_observers_step": 1.5}, "freeze_observers_step=1.5: expected an integer, 1 or more, or None, not"),
            ({"freeze_batch_norm": 3}, "has no option 'freeze_batch_norm'. Did you mean 'freeze_batch_norm_step'?"),
        ],
        ids=str,
    )
    def test_messages(self, options, text):
        with pytest.raises(ConfigError) as caught:
            QuantizationAwareTrainingConfig(**options)
        assert text in str(caught.value)


class TestSpec:
    def scheme(self, name="fc", type_name="Linear", **options):
        return QuantizationAwareTrainingConfig(**options).to_spec().treatment_of(name, type_name)

    def test_a_type_in_float(self):
        assert self.scheme(op_type_dict={"Linear": FP32}) is FLOAT
        assert self.scheme(op_type_dict={"Linear": FP32}, type_name="Conv2d") == QuantScheme()

    @pytest.mark.parametrize("side", ["weight", "activation"])
    def test_one_side_in_float_is_enough(self, side):
        assert self.scheme(op_type_dict={"Linear": {side: {"dtype": "fp32"}}}) is FLOAT
        assert self.scheme(op_type_dict={"Linear": {side: {"dtype": ["int8", "fp32"]}}}) is FLOAT

    def test_the_whole_name_must_match(self):
        assert self.scheme(type_name="Conv2d", op_type_dict={"Conv": FP32}) == QuantScheme()
        assert self.scheme(name="fc1", op_name_dict={"fc.*": FP32}) is FLOAT
        assert self.scheme(name="a.fc1", op_name_dict={"fc.*": FP32}) == QuantScheme()

    def test_names_come_after_types(self):
        options = {"op_name_dict": {"fc1": PER_TENSOR}, "op_type_dict": {"Linear": FP32}}
        assert self.scheme(name="fc1", **options) == QuantScheme(per_channel=False)
        assert self.scheme(name="fc2", **options) is FLOAT

    def test_the_later_rule_of_a_kind_wins(self):
        assert self.scheme(op_type_dict={".*": PER_TENSOR, "Linear": FP32}) is FLOAT
        assert self.scheme(op_type_dict={"Linear": FP32, ".*": PER_TENSOR}) == QuantScheme(per_channel=False)

    def test_rules_lie_on_top_of_each_other(self):
        both = QuantScheme(per_channel=False, symmetric_input=True)
        assert self.scheme(op_type_dict={".*": PER_TENSOR}, op_name_dict={"fc": SYMMETRIC}) == both
        assert self.scheme(op_type_dict={".*": PER_TENSOR, "Lin.*": FP32}, op_name_dict={"fc": SYMMETRIC}) == (
            QuantScheme(symmetric_input=True)  # after float a rule begins with the default again
        )

    def test_fewer_bits(self):
        assert self.scheme(op_name_dict={"fc": {"weight": {"dtype": "int4"}}}) == QuantScheme(weight_bits=4)
        assert self.scheme(op_name_dict={"fc": {"weight": {"bits": [3, 8]}}}) == QuantScheme(weight_bits=3)

    @pytest.mark.parametrize("side", ["weight", "activation"])
    def test_bfloat16_is_float_and_float32_where_it_is_excluded(self, side):
        options = {"op_type_dict": {"Linear": {side: {"dtype": "bf16"}}}}
        assert self.scheme(**options) is FloatType.BFLOAT16
        assert self.scheme(**options, excluded_precisions=["fp16"]) is FloatType.BFLOAT16
        assert self.scheme(**options, excluded_precisions=["bf16"]) is FLOAT

    def test_scheme_and_granularity(self):
        rule = {"weight": {"granularity": "per_tensor", "bits": 8, "group_size": [-1]}, "activation": {"scheme": "sym"}}
        assert self.scheme(op_name_dict={"fc": rule}) == QuantScheme(per_channel=False, symmetric_input=True)

    def test_of_several_words_the_first_counts(self):
        rule = {
            "weight": {"scheme": ["asym", "sym"], "granularity": ["per_tensor", "per_channel"]},
            "activation": {"scheme": ["sym", "asym"], "algorithm": ["kl", "minmax"]},
        }
        assert self.scheme(op_name_dict={"fc": rule}) == QuantScheme(per_channel=False, symmetric_input=True)

    def test_incs_ready_made_words(self):
        weight = {"dtype": ["int8"], "scheme": ["sym"], "algorithm": ["minmax"], "granularity": ["per_channel"]}
        activation = {"dtype": ["uint8"], "scheme": ["asym"], "algorithm": ["minmax"], "granularity": ["per_tensor"]}
        rule = {"weight": weight, "activation": activation}
        assert self.scheme(op_type_dict={"Linear": rule}) == QuantScheme()

    def test_reduced_range_is_that_of_asymmetric_inputs(self):
        asymmetric = {"activation": {"scheme": "asym"}}
        rules = {"op_type_dict": {"Linear": SYMMETRIC}, "op_name_dict": {"fc": asymmetric, "out": PER_TENSOR}}
        reduced = {"reduce_range": True, **rules}
        assert self.scheme(name="a", type_name="Conv2d", **reduced) == QuantScheme(input_bits=7)
        assert self.scheme(name="a", **reduced) == QuantScheme(symmetric_input=True)
        assert self.scheme(name="fc", **reduced) == QuantScheme(input_bits=7)
        assert self.scheme(name="out", **reduced) == QuantScheme(per_channel=False, symmetric_input=True)
        assert self.scheme(name="fc", **rules) == QuantScheme()
        assert self.scheme(name="fc", reduce_range=False, **rules) == QuantScheme()

    @pytest.mark.parametrize("rule", [FP32, PER_TENSOR])
    def test_the_rule_for_operations_that_are_no_modules_changes_no_module(self, rule):
        spec = QuantizationAwareTrainingConfig(op_name_dict={"default_qconfig": rule, "fc": PER_TENSOR}).to_spec()
        assert spec.rules == (QuantRule("name", "fc", {"per_channel": False}),)
        assert spec.treatment_of("other", "Linear") == QuantScheme()

    def test_the_callers_dicts_are_neither_changed_nor_kept(self):
        rules = {"fc": {"weight": {"dtype": ["fp32"]}}}
        config = QuantizationAwareTrainingConfig(op_name_dict=rules)
        assert rules == {"fc": {"weight": {"dtype": ["fp32"]}}}
        rules["fc"]["weight"]["dtype"][0] = "int8"
        assert config.to_spec().treatment_of("fc", "Linear") is FLOAT


class TestMessages:
    @pytest.mark.parametrize(
        ("options", "kind", "text"),
        [
            ({"device": "cuda"}, ConfigError, "device='cuda': expected one of 'cpu', 'gpu', 'npu', 'xpu'."),
            ({"backend": "itex"}, ConfigError, "backend='itex': expected 'default' or 'ipex'. Did you mean 'ipex'?"),
            (
                {"backend": "onnxrt_trt_ep"},
                ConfigError,
                "expected 'default' or 'ipex'. The backends of other frameworks",
            ),
            ({"inputs": 3}, ConfigTypeError, "inputs=3: expected a list of strings, not an int."),
            ({"reduce_range": "no"}, ConfigTypeError, "reduce_range='no': expected True or False, not a str."),
            ({"model_name": 3}, ConfigTypeError, "model_name=3: expected a string, not an int."),
            (
                {"quant_format": "qdq"},
                ConfigError,
                "quant_format='qdq': expected one of 'default', 'QDQ', 'QOperator'. D",
            ),
            (
                {"excluded_precisions": ["bf32"]},
                ConfigError,
                "excluded_precisions[0]='bf32': expected one of 'bf16', 'fp",
            ),
            ({"quant_level": 2}, ConfigError, "quant_level=2: expected 'auto', 0 or 1."),
            ({"quant_level": 1.0}, ConfigTypeError, "quant_level=1.0: expected 'auto', 0 or 1, not a float."),
            ({"quant_level": True}, ConfigTypeError, "quant_level=True: expected 'auto', 0 or 1, not a bool."),
            (
                {"accuracy_criterion": 0.01},
                ConfigTypeError,
                "accuracy_criterion=0.01: expected an AccuracyCriterion obj",
            ),
            (
                {"tuning_criterion": {}},
                ConfigTypeError,
                "tuning_criterion={}: expected a TuningCriterion object, not a d",
            ),
            (
                {"relative": 0.1, "absolute": 1},
                ConfigError,
                "got relative=0.1 and absolute=1: a tolerable loss is one or",
            ),
            ({"tymeout": 1}, ConfigTypeError, "has no option 'tymeout'. Did you mean 'timeout'?"),
            ({"timeout": -1}, ConfigError, "TuningCriterion.timeout=-1: expected a number of seconds, 0 or more."),
            ({"op_type_dict": 3}, ConfigTypeError, "op_type_dict=3: expected a dict of rules or None, not an int."),
            (
                {"op_type_dict": {"(": FP32}},
                ConfigError,
                "op_type_dict='(': expected keys that are regular expressions.",
            ),
            (
                {"op_name_dict": {"fc": 3}},
                ConfigTypeError,
                "op_name_dict['fc']=3: expected a dict with 'weight' and 'act",
            ),
            (
                {"op_name_dict": {"fc": {"weights": {}}}},
                ConfigTypeError,
                "has no option 'weights'. Did you mean 'weight'?",
            ),
        ],
        ids=str,
    )
    def test_messages(self, options, kind, text):
        with pytest.raises(kind) as caught:
            QuantizationAwareTrainingConfig(**options)
        assert text in str(caught.value)

    @pytest.mark.parametrize(
        ("side", "key", "value", "kind", "text"),
        [
            (
                "weight",
                "dtype",
                "int9",
                ConfigError,
                "='int9': expected one of 'int8', 'int4', 'fp32', 'bf16'. Did",
            ),
            ("weight", "dtype", "nf4", ConfigError, "'fp32', 'bf16'. Quantization-aware training makes int8 weights"),
            ("weight", "dtype", ["int8", "x"], ConfigError, "=['int8', 'x']: expected one of 'int8', 'int4', 'fp32'"),
            ("weight", "dtype", 8, ConfigTypeError, "=8: expected a word or a list of words, not an int."),
            (
                "weight",
                "scheme",
                "asym",
                ConfigError,
                "='asym': expected one of 'sym'. Weights are symmetric, so that a",
            ),
            (
                "weight",
                "granularity",
                "per_row",
                ConfigError,
                "='per_row': expected one of 'per_channel', 'per_tensor'.",
            ),
            ("weight", "algorithm", "GPTQ", ConfigError, "='GPTQ': expected one of 'minmax'. The others need no train"),
            ("weight", "bits", 9, ConfigError, "=9: expected an integer from 2 to 8."),
            ("weight", "bits", [1], ConfigError, "=1: expected an integer from 2 to 8."),
            ("weight", "bits", "8", ConfigTypeError, "='8': expected an integer from 2 to 8, not a str."),
            ("weight", "group_size", [32], ConfigError, "=32: expected -1: only approach='weight_only' makes groups."),
            (
                "activation",
                "dtype",
                "fp16",
                ConfigError,
                "='fp16': expected one of 'uint8', 'int8', 'fp32', 'bf16'. Quantization-",
            ),
            (
                "activation",
                "scheme",
                "symm",
                ConfigError,
                "='symm': expected one of 'asym', 'sym'. Did you mean 'sym'?",
            ),
            (
                "activation",
                "granularity",
                "per_channel",
                ConfigError,
                "The int8 kernels take one input scale a tensor.",
            ),
            (
                "activation",
                "algorithm",
                "kl",
                ConfigError,
                "='kl': expected one of 'minmax'. The others calibrate models",
            ),
        ],
    )
    def test_words_of_a_rule(self, side, key, value, kind, text):
        with pytest.raises(kind) as caught:
            QuantizationAwareTrainingConfig(op_type_dict={"Linear": {side: {key: value}}})
        path = f"QuantizationAwareTrainingConfig.op_type_dict['Linear']['{side}']['{key}']"
        assert str(caught.value).startswith(path)
        assert text in str(caught.value)

    @pytest.mark.parametrize(("side", "key"), [("activation", "bits"), ("weight", "dtypes")])
    def test_unknown_keys_of_a_rule(self, side, key):
        with pytest.raises(ConfigTypeError, match=rf"op_name_dict\['a'\]\['{side}'\] has no option '{key}'\."):
            QuantizationAwareTrainingConfig(op_name_dict={"a": {side: {key: 8}}})
