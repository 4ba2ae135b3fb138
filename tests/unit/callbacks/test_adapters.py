"""LoRA layers over a compressed base: what they compute, how they are merged, and what is refused."""

from __future__ import annotations

import copy
import io
import re
import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from inc_torch import (
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
    prepare_compression,
)
from inc_torch.callbacks import PruningCallbacks, build_callbacks
from inc_torch.callbacks._lora import MergedLora, adapted_layers
from inc_torch.callbacks.adapters import AdapterCallbacks
from inc_torch.core.errors import ModelError, StateError
from inc_torch.core.hooks import Progress, Stage
from inc_torch.core.merged import merged_over

ROWS = torch.linspace(-1, 1, 24).view(6, 4)


class Net(nn.Module):
    """One layer of each kind that takes adapters."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 6)
        self.transposed = Conv1D(3, 6)
        self.head = nn.Linear(3, 2)

    def forward(self, rows):
        return self.head(self.transposed(self.linear(rows)))


def adapted(targets=("linear", "transposed"), model=None, **options):
    """A model with adapters that add something from the start."""
    torch.manual_seed(0)
    options = {"r": 2, "lora_alpha": 3, "init_lora_weights": False, **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT finds it out by itself
        return get_peft_model(model or Net(), LoraConfig(target_modules=list(targets), **options))


def pruning(**options):
    options = {
        "pruning_type": "magnitude",
        "pattern": "1x1",
        "target_sparsity": 0.5,
        "start_step": 0,
        "end_step": 0,
    } | options
    return WeightPruningConfig(pruning_op_types=["Linear", "Conv1D"], **options)


def exchanged(model, *, zeros=True, gradient=False):
    """The exchanged layers by name, some weights of their bases zero."""
    layers = {}
    for name, layer in adapted_layers(model):
        weight = layer.get_base_layer().weight
        weight.data *= torch.rand_like(weight) > 0.5 if zeros else 1
        layers[name] = MergedLora.adopt(layer, keeps_zeros=zeros, keeps_gradient=gradient)
    return layers


class TestForward:
    @pytest.mark.parametrize("use_rslora", [False, True])
    @pytest.mark.parametrize("zeros", [False, True])
    def test_the_base_computes_with_the_masked_sum(self, zeros, use_rslora):
        layers = exchanged(adapted(["linear", "transposed", "table"], use_rslora=use_rslora), zeros=zeros)
        scaling = 3 / (2**0.5 if use_rslora else 2)
        table, linear, transposed = layers["table"], layers["linear"], layers["transposed"]

        weight, bias = linear.base_layer.weight, linear.base_layer.bias
        delta = linear.lora_B["default"].weight @ linear.lora_A["default"].weight * scaling
        merged = weight + delta * (weight != 0 if zeros else 1)
        assert torch.equal(linear(ROWS), F.linear(ROWS, merged, bias))
        assert torch.equal(linear.merged_weight(), merged)
        assert ((merged == 0) == (weight == 0)).all()

        weight, bias = transposed.base_layer.weight, transposed.base_layer.bias
        delta = (transposed.lora_B["default"].weight @ transposed.lora_A["default"].weight).T * scaling
        merged = weight + delta * (weight != 0 if zeros else 1)
        hidden = torch.linspace(-1, 1, 12).view(2, 6)
        assert torch.equal(transposed(hidden), torch.addmm(bias, hidden, merged))

        weight = table.base_layer.weight
        delta = (table.lora_embedding_B["default"] @ table.lora_embedding_A["default"]).T * scaling
        merged = weight + delta * (weight != 0 if zeros else 1)
        assert torch.equal(table(torch.tensor([3, 1])), merged[[3, 1]])

    def test_without_zeros_it_is_what_peft_computes(self):
        model = adapted()
        before = model(ROWS)
        exchanged(model, zeros=False)
        torch.testing.assert_close(model(ROWS), before)

    def test_merging_by_peft_gives_the_same_bits_and_keeps_zeros(self):
        model = adapted()
        model.add_adapter("second", LoraConfig(r=1, target_modules=["linear"], init_lora_weights=False))
        model.base_model.set_adapter(["default", "second"])
        layers = exchanged(model)
        before = model(ROWS)
        model.merge_adapter()
        assert torch.equal(model(ROWS), before)
        assert [int((layer.base_layer.weight == 0).sum()) for layer in layers.values()] == [16, 8]
        model.unmerge_adapter()
        torch.testing.assert_close(model(ROWS), before)
        assert [int((layer.base_layer.weight == 0).sum()) for layer in layers.values()] == [16, 8]

    def test_half_precision_is_rounded_as_in_the_merged_model(self):
        model = adapted(model=Net().bfloat16())
        layers = exchanged(model)
        assert layers["linear"].lora_A["default"].weight.dtype == torch.float32
        before = model(ROWS.bfloat16())
        assert before.dtype == torch.bfloat16
        model.merge_adapter()
        assert torch.equal(model(ROWS.bfloat16()), before)

    def test_autocast_does_not_round_what_is_merged(self):
        layer = exchanged(adapted())["linear"]
        weight = layer.merged_weight()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = layer(ROWS)
            expected = F.linear(ROWS, weight, layer.base_layer.bias)
            assert torch.equal(layer.merged_weight(), weight)
        assert result.dtype == torch.bfloat16
        assert torch.equal(result, expected)

    def test_trained_bias(self):
        model = adapted(["linear"], lora_bias=True)
        layer = exchanged(model)["linear"]
        layer.lora_B["default"].bias.data = torch.arange(6.0)
        expected = F.linear(ROWS, layer.merged_weight(), layer.base_layer.bias + torch.arange(6.0) * 1.5)
        assert torch.equal(layer(ROWS), expected)
        model.merge_adapter()
        assert torch.equal(layer(ROWS), expected)

    def test_disabled_adapters_leave_the_base_alone(self):
        model = adapted()
        layer = exchanged(model)["linear"]
        with model.disable_adapter():
            assert torch.equal(layer(ROWS), layer.base_layer(ROWS))
        assert not torch.equal(layer(ROWS), layer.base_layer(ROWS))

    def test_an_adapter_for_each_sample_is_refused(self):
        model = adapted()
        exchanged(model)
        with pytest.raises(
            ModelError, match="A batch with adapter_names cannot run while the layers under the adapters"
        ):
            model.eval()(ROWS, adapter_names=["default"] * 6)

    def test_dropout_drops_the_same_inputs_for_all_samples(self):
        layers = exchanged(adapted(["linear", "transposed", "table"], lora_dropout=0.5), zeros=False)
        for name, inputs in (("linear", torch.eye(4)), ("transposed", torch.eye(6))):
            layer = layers[name]
            base = layer.base_layer(inputs)
            whole = (layer.eval()(inputs) - base).detach()  # a row for each input
            seen = set()
            for _ in range(30):
                dropped = (layer.train()(inputs) - base).detach()
                kept = dropped.abs().sum(1) > 1e-6
                torch.testing.assert_close(dropped, whole * 2 * kept.unsqueeze(1), atol=1e-6, rtol=1e-5)
                seen |= {tuple(kept.tolist())}
            assert len(seen) > 5
            assert torch.equal(layer.eval()(inputs), layer(inputs))
        table, words = layers["table"], torch.arange(5)
        assert torch.equal(table.train()(words), table.eval()(words))

    def test_deepcopy_and_pickle(self):
        model = adapted()
        exchanged(model)
        assert torch.equal(copy.deepcopy(model)(ROWS), model(ROWS))
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
        assert torch.equal(again(ROWS), model(ROWS))
        assert type(again.base_model.model.linear) is type(model.base_model.model.linear)


class TestGradient:
    def plain(self, layer):
        """The layer with the merged weight as a Parameter of its own."""
        plain = nn.Linear(4, 6)
        plain.weight.data, plain.bias.data = layer.merged_weight(), layer.base_layer.bias.detach().clone()
        return plain

    def test_adapters_get_the_gradient_of_the_sum(self):
        layer = exchanged(adapted(["linear"]))["linear"]
        plain = self.plain(layer)
        layer(ROWS).square().sum().backward()
        plain(ROWS).square().sum().backward()
        gradient = plain.weight.grad * (layer.base_layer.weight != 0) * 1.5
        lora_A, lora_B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.testing.assert_close(lora_A.grad, lora_B.T @ gradient)
        torch.testing.assert_close(lora_B.grad, gradient @ lora_A.T)
        assert layer.base_layer.weight.grad is None
        assert layer.merged_gradient is None

    def test_of_the_merged_weight_over_micro_batches(self):
        model = adapted(["linear"])
        layer = exchanged(model, gradient=True)["linear"]
        plain = self.plain(layer)
        for rows in ROWS.split(3):
            layer(rows).square().sum().backward()
            plain(rows).square().sum().backward()
        assert torch.equal(layer.merged_gradient, plain.weight.grad)
        layer.has_whole_gradient = True
        with torch.no_grad():
            layer(ROWS)
        layer(ROWS).sum().backward()
        assert torch.equal(layer.merged_gradient, ROWS.sum(0).expand(6, 4))
        assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_counts_once_under_gradient_checkpointing(self, use_reentrant):
        layer = exchanged(adapted(["linear"]), gradient=True)["linear"]
        rows = ROWS.clone().requires_grad_()
        torch.utils.checkpoint.checkpoint(layer, rows, use_reentrant=use_reentrant).square().sum().backward()
        first, layer.has_whole_gradient = layer.merged_gradient, True
        layer(rows).square().sum().backward()
        assert torch.equal(layer.merged_gradient, first)

    def test_is_averaged_over_ranks(self):
        @dataclass
        class TwoRanks:
            count: int = 2

            def sum_(self, values):
                return values + 1

        model, callback = self.scoring()
        callback.progress.ranks = TwoRanks()
        layer = dict(adapted_layers(model))["linear"]
        layer(ROWS).sum().backward()
        own = layer.merged_gradient.clone()
        callback.on_before_optimizer_step()
        assert torch.equal(layer.merged_gradient, (own + 1) / 2)
        # Which had no part in a forward here, but may have had one on the other rank.
        assert torch.equal(dict(adapted_layers(model))["transposed"].merged_gradient, torch.full((6, 3), 0.5))
        callback.on_after_optimizer_step()
        assert layer.merged_gradient is None
        assert callback.exact_when_late == {"on_before_optimizer_step", "on_after_optimizer_step"}

    def test_is_saved_while_it_is_not_whole(self):
        model, callback = self.scoring()
        layer = dict(adapted_layers(model))["linear"]
        assert callback.state_dict() == {"is_merged": False, "gradients": {}}
        layer(ROWS).sum().backward()
        state = callback.state_dict()
        assert list(state["gradients"]) == ["linear"]
        fresh_model, fresh = self.scoring()
        fresh.load_state_dict(state)
        for one in (layer, dict(adapted_layers(fresh_model))["linear"]):
            one(ROWS).square().sum().backward()
        assert torch.equal(dict(adapted_layers(fresh_model))["linear"].merged_gradient, layer.merged_gradient)
        callback.on_before_optimizer_step()
        assert callback.state_dict()["gradients"] == {}
        with pytest.raises(StateError, match=r"unexpected \['elsewhere'\]"):
            fresh.load_state_dict({"is_merged": False, "gradients": {"elsewhere": torch.zeros(1)}})

    def scoring(self):
        """A model under a criterion that needs gradients, and its callback."""
        model = adapted()
        callback = AdapterCallbacks(model)
        pruners = PruningCallbacks(pruning(pruning_type="snip").to_specs(), model.get_base_model())
        callback.serve([pruners])
        callback.prepare(model.get_base_model(), Progress())
        return model, callback


class TestCallback:
    def test_comes_last_and_only_where_it_is_needed(self):
        own, quantization = AdapterCallbacks(Net()), QuantizationAwareTrainingConfig()
        callbacks = build_callbacks([quantization, pruning(), own], adapted())
        assert [type(callback).__name__ for callback in callbacks] == [
            "QuantizationAwareTrainingCallbacks",
            "PruningCallbacks",
            "AdapterCallbacks",
            "AdapterCallbacks",
        ]
        assert repr(callbacks[-1]) == "Adapter Callbacks"
        assert callbacks[-1].stage is Stage.OBSERVE
        assert len(build_callbacks([quantization], Net())) == 1
        distillation = DistillationConfig(Net(), KnowledgeDistillationLossConfig())
        assert len(build_callbacks([distillation], adapted())) == 1

    def test_exchanges_what_is_compressed_and_nothing_else(self):
        model = adapted(["linear", "transposed", "table"])
        prepare_compression(model, [pruning(excluded_op_names=["linear"])])
        kinds = {name: type(layer).__name__ for name, layer in adapted_layers(model)}
        assert kinds == {"table": "Embedding", "linear": "Linear", "transposed": "MergedLinear"}
        model = adapted(["linear", "transposed", "table"])
        prepare_compression(
            model, QuantizationAwareTrainingConfig(op_name_dict={"linear": {"weight": {"dtype": ["fp32"]}}})
        )
        kinds = {name: type(layer).__name__ for name, layer in adapted_layers(model)}
        assert kinds == {"table": "MergedEmbedding", "linear": "Linear", "transposed": "MergedLinear"}

    def test_zeros_are_kept_where_the_layer_is_pruned_and_nowhere_else(self):
        model = adapted()
        for _, layer in adapted_layers(model):
            layer.get_base_layer().weight.data[0] = 0
        prepare_compression(model, [pruning(op_names=["linear"]), QuantizationAwareTrainingConfig()])
        layers = dict(adapted_layers(model))
        assert not layers["linear"].merged_weight()[0].any()
        assert layers["transposed"].merged_weight()[0].all()

    @pytest.mark.parametrize(
        ("kind", "is_kept"), [("snip_momentum", True), ("magnitude", False), ("pattern_lock", False)]
    )
    def test_gradients_are_kept_where_scores_need_them(self, kind, is_kept):
        model = adapted()
        callback = AdapterCallbacks(model)
        callback.serve([PruningCallbacks(pruning(pruning_type=kind).to_specs(), model.get_base_model())])
        callback.prepare(model.get_base_model(), Progress())
        model(ROWS).sum().backward()
        assert [layer.merged_gradient is not None for _, layer in adapted_layers(model)] == [is_kept] * 2

    def test_names_parameters_and_state_stay(self):
        model = adapted()
        parameters = dict(model.named_parameters())
        keys = list(model.state_dict())
        prepare_compression(model, [pruning(), QuantizationAwareTrainingConfig()])
        assert list(model.state_dict()) == keys
        assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
        assert isinstance(model, PeftModel)
        assert "lora.MergedLinear" in repr(model)

    def test_is_clocked_by_what_is_trained(self):
        model = adapted(["linear"], modules_to_save=["head"])
        callback = build_callbacks([pruning()], model)[-1]
        callback.prepare(model.get_base_model(), Progress())
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert len(trained) == 4
        assert [id(parameter) for parameter in callback.tracked_parameters()] == [
            id(parameter) for parameter in trained
        ]

    def test_a_second_run_after_one_that_was_given_up(self):
        model = adapted()
        first = prepare_compression(model, pruning())
        first.callbacks.give_up()
        prepare_compression(model, pruning(excluded_op_names=["linear"]))
        kinds = {name: type(layer).__name__ for name, layer in adapted_layers(model)}
        assert kinds == {"linear": "Linear", "transposed": "MergedLinear"}
        assert not hasattr(model.base_model.model.linear, "_keeps_zeros")

    def test_merging_leaves_a_plain_model(self):
        model = adapted(["linear", "transposed", "table"], modules_to_save=["head"])
        inner = model.get_base_model()
        head = inner.head.modules_to_save["default"]
        linear = inner.linear.base_layer
        manager = prepare_compression(model, pruning())
        manager.on_train_begin()
        manager.on_step_begin(0)
        before = model(ROWS)
        manager.on_train_end()
        assert torch.equal(model(ROWS), before)
        assert torch.equal(inner(ROWS), before)
        assert [name for name, _ in inner.named_parameters()] == [name for name, _ in Net().named_parameters()]
        assert inner.head is head
        assert inner.linear is linear
        assert merged_over(linear) is None
        assert manager.report().sparsity == 0.5
        manager.on_train_end()
        assert torch.equal(model(ROWS), before)
        assert model.merge_and_unload(safe_merge=True) is inner

    def test_adapters_that_are_merged_already_are_not_added_again(self):
        model = adapted()
        manager = prepare_compression(model, pruning())
        manager.on_train_begin()
        manager.on_step_begin(0)
        before = model(ROWS)
        model.merge_adapter()
        manager.on_train_end()
        assert torch.equal(model(ROWS), before)

    def test_a_layer_in_two_places_is_merged_once(self):
        model = adapted()
        inner = model.get_base_model()
        inner.again = inner.linear
        manager = prepare_compression(model, pruning())
        manager.on_train_begin()
        manager.on_step_begin(0)
        before = model(ROWS)
        manager.on_train_end()
        assert torch.equal(model(ROWS), before)
        assert inner.again is inner.linear

    def test_the_state_says_how_far_it_is(self):
        apart, model = prepare_compression(adapted(), pruning()), adapted()
        merged = prepare_compression(model, pruning())
        merged.on_train_begin()
        merged.on_step_begin(0)
        merged.on_train_end()
        assert list(apart.state_dict()["callbacks"]) == ["0:PruningCallbacks", "1:AdapterCallbacks"]
        with pytest.raises(StateError, match="saved with the adapters merged, but they are apart now"):
            apart.load_state_dict(merged.state_dict())
        with pytest.raises(StateError, match=r"Adapter Callbacks does not fit: missing \['gradients'\]"):
            apart.callbacks.callbacks_list[-1].load_state_dict({"is_merged": False})


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 1)
        self.linear = nn.Linear(4, 2)


WAY_OUT = (
    "; or leave the layer out of the compression (excluded_op_names, op_name_dict), or out of the adapters' "
    "target_modules."
)


class TestRefusals:
    def refuse(self, model, confs=None):
        with pytest.raises(ModelError) as caught:
            prepare_compression(model, confs or pruning())
        return str(caught.value)

    def test_kinds_without_a_merged_weight(self):
        message = self.refuse(adapted(["conv"], ConvNet()), QuantizationAwareTrainingConfig())
        assert message == (
            "Layer 'conv' cannot be compressed under its adapters: Conv1d of peft.tuners.lora.layer has no weight that "
            f"adapters could be merged into in every step, as LoRA's Linear and Embedding have{WAY_OUT}"
        )
        model = get_peft_model(Net(), IA3Config(target_modules=["linear"], feedforward_modules=[]))
        assert "Linear of peft.tuners.ia3.layer has no weight" in self.refuse(model)

    def test_a_compressed_layer_inside_what_has_adapters(self):
        model = adapted(
            ["attention"], nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 4)})
        )
        assert re.search(
            r"Layer 'attention.out_proj' .*: MultiheadAttention of peft.tuners.lora.layer has no weight",
            self.refuse(model),
        )

    def test_dora(self):
        assert self.refuse(adapted(use_dora=True)) == (
            "Layer 'linear' cannot be compressed under its adapters: its adapter 'default' is no plain LoRA but "
            f"DoraLinearVariant, whose weight is no sum. Use plain LoRA{WAY_OUT}"
        )

    def test_merged_adapters(self):
        model = adapted()
        model.merge_adapter()
        assert "the adapters ['default'] are merged already. Call unmerge_adapter(); or" in self.refuse(model)

    def test_a_packed_base(self):
        model = adapted()
        weight = model.base_model.model.linear.base_layer.weight
        packed = nn.Parameter(weight.detach().to(torch.uint8), requires_grad=False)
        model.base_model.model.linear.base_layer.weight = packed
        assert "its weight is packed as torch.uint8. Load the base model in float; or" in self.refuse(model)

    def test_adapters_on_adapters(self):
        model = adapted(["linear"])
        layer = model.base_model.model.linear
        outer = type(layer)(layer, "outer", LoraConfig(), r=1)
        model.base_model.model.linear = outer
        assert "there are adapters on its adapters. Keep one kind; or" in self.refuse(model)

    def test_a_bias_for_a_layer_without_one(self):
        model = Net()
        model.linear = nn.Linear(4, 6, bias=False)
        with pytest.warns(UserWarning, match="has no bias"):
            model = adapted(["linear"], model, lora_bias=True)
        assert self.refuse(model, pruning(excluded_op_names=["linear"])) == (
            "The adapters of layer 'linear' cannot be merged at the end of the compression: lora_bias=True adds a bias "
            "to a layer that has none. Use lora_bias=False; or leave the layer out of target_modules."
        )

    def test_adapters_that_are_never_merged(self):
        model = adapted(["linear"])
        layer = model.base_model.model.linear
        layer.lora_variant["default"] = type("ALoraLinearVariant", (), {})()
        assert "is a ALoraLinearVariant, which differs from input to input" in self.refuse(
            model, pruning(excluded_op_names=["linear"])
        )

    @pytest.mark.parametrize("shares_module", [False, True])
    def test_one_weight_of_two_layers(self, shares_module):
        class Tied(Net):
            def __init__(self):
                super().__init__()
                self.square = nn.Linear(4, 4, bias=False)
                self.other = self.square if shares_module else nn.Linear(4, 4)
                self.other.weight = self.square.weight

        message = self.refuse(adapted(["square"], Tied()))
        other = "" if shares_module else "other"
        assert message == (
            f"The adapters of layer 'square' are to be merged into its weight, which {other!r} uses too: that would "
            "change both. Leave the layer out of the adapters' target_modules, or untie the two "
            "(tie_word_embeddings=False)."
        )

    def test_sharded_weights(self):
        model = adapted()
        manager = prepare_compression(model, pruning())
        model.base_model.model.linear.base_layer.weight.placements = ()  # as those of a DTensor
        with pytest.raises(
            ModelError, match=r"Layer 'linear' is sharded \(fully_shard\), and adapters cannot be merged into a sharded"
        ):
            manager.on_train_begin()

    def test_nothing_is_exchanged_when_one_layer_is_refused(self):
        model = adapted(use_dora=True)
        self.refuse(model)
        assert not any(isinstance(module, MergedLora) for module in model.modules())
