"""The report: what is counted, under which names, and how it is written down."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from torch import nn

from inc_torch import CompressionReport, WeightPruningConfig, prepare_compression
from inc_torch.core import report_view
from inc_torch.core.errors import ArtifactError
from inc_torch.core.report import Finding, ModuleReport, stored_weight


def two_layers() -> nn.Module:
    """8 x 8 twice and a head of 2 x 8, with biases; no zeros."""
    model = nn.Sequential()
    model.add_module("a", nn.Linear(8, 8))
    model.add_module("b", nn.Linear(8, 8))
    model.add_module("head", nn.Linear(8, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    return model


def zero(layer: nn.Linear, count: int) -> None:
    with torch.no_grad():
        layer.weight.view(-1)[:count] = 0


def asked(module: str, sparsity: float = 0.5, group: int = 0, **more) -> Finding:
    return Finding(module, pattern="1x1", sparsity=sparsity, group=group, **more)


class TestMeasure:
    def test_counts_what_is_in_the_weights(self):
        model = two_layers()
        zero(model.a, 48)
        zero(model.head, 3)
        findings = [asked("a", units=64, pruned_units=60), asked("b", units=64, pruned_units=60)]
        report = CompressionReport.measure(model, findings)
        assert [(row.name, row.kind, row.shape, row.bits, row.zeros) for row in report.modules] == [
            ("a", "Linear", (8, 8), 32, 48),
            ("b", "Linear", (8, 8), 32, 0),
            ("head", "Linear", (2, 8), 32, 3),
        ]
        assert [row.sparsity for row in report.modules] == [0.75, 0.0, 3 / 16]
        assert report.sparsity == 48 / 128  # the head was not asked, whatever the findings claim of units
        assert report.other_parameters == 8 + 8 + 2
        assert report.size_bytes == 4 * (64 + 64 + 16 + 18)

    def test_minus_zero_is_zero_and_tiny_is_not(self):
        model = two_layers()
        with torch.no_grad():
            model.a.weight[0, 0], model.a.weight[0, 1] = -0.0, 1e-38
        assert CompressionReport.measure(model).modules[0].zeros == 1

    def test_of_nothing(self):
        report = CompressionReport.measure(nn.Sequential(nn.ReLU()))
        assert report == CompressionReport((), 0, 0)
        assert report.sparsity == 0.0
        assert set(report.ratios.values()) == {0.0}
        assert "size of all tensors: 0.00 MB" in str(report)

    def test_leaves_out_weights_without_a_matrix(self):
        report = CompressionReport.measure(nn.Sequential(nn.LayerNorm(4), nn.BatchNorm2d(3), nn.Conv1d(2, 2, 1)))
        assert [row.name for row in report.modules] == ["2"]
        # norms, running mean and variance, bias
        assert report.other_parameters == 8 + 12 + 2
        assert report.size_bytes == 4 * (8 + 12 + 2 + 4) + 8

    def test_lists_matrices_under_other_names_if_somebody_speaks_of_them(self):
        class Positions(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.Parameter(torch.ones(1, 1, 4))
                self.table = nn.Parameter(torch.zeros(1, 5, 4))
                self.gain = nn.Parameter(torch.ones(99))

        model = nn.Sequential(Positions(), nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 4)), nn.LayerNorm(4))
        assert CompressionReport.measure(model).modules == ()
        findings = [Finding(str(index), note="left alone") for index in range(3)]
        report = CompressionReport.measure(model, findings)
        assert [(row.name, row.shape, row.zeros, row.notes) for row in report.modules] == [
            ("0", (24,), 20, ("left alone",)),
            ("1", (27,), 0, ("left alone",)),
        ]
        assert report.other_parameters == 99 + 3 + 8
        assert CompressionReport.measure(model, report.findings()) == report

    def test_of_a_single_layer_has_an_empty_name(self):
        (row,) = CompressionReport.measure(nn.Linear(2, 2)).modules
        assert row.name == ""
        assert "(root)" in str(CompressionReport.measure(nn.Linear(2, 2)))

    def test_bits_are_those_of_the_stored_values(self):
        model = nn.Sequential(nn.Linear(2, 2).half(), nn.Linear(2, 2).double())
        assert [row.bits for row in CompressionReport.measure(model).modules] == [16, 64]

    def test_int8_codes_stand_for_the_weight(self):
        module = nn.Module()
        module.register_buffer("qweight", torch.tensor([[0, 5], [0, 0]], dtype=torch.int8))
        module.register_buffer("weight_scale", torch.ones(2))
        assert stored_weight(module) is module.qweight
        report = CompressionReport.measure(nn.Sequential(module), [Finding("0", scheme="w8a8-static")])
        (row,) = report.modules
        assert (row.bits, row.zeros, row.numel, row.scheme) == (8, 3, 4, "w8a8-static")
        assert report.other_parameters == 2
        assert report.size_bytes == 4 + 8

    def test_tied_weights_count_once(self):
        model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
        model[1].weight = model[0].weight
        report = CompressionReport.measure(model)
        (row,) = report.modules
        assert (row.name, row.notes) == ("0", ("shares its weight with 1",))
        assert (report.size_bytes, report.other_parameters) == (4 * 24, 0)

    def test_the_same_module_twice_counts_once(self):
        layer = nn.Linear(2, 2)
        assert len(CompressionReport.measure(nn.Sequential(layer, nn.ReLU(), layer)).modules) == 1

    def test_parameters_of_no_weighted_module_are_other(self):
        model = nn.Module()
        model.table = nn.Parameter(torch.ones(3, 3))
        model.layer = nn.Linear(2, 2)
        report = CompressionReport.measure(model)
        assert report.other_parameters == 9 + 2

    def test_several_findings_of_one_module_are_merged(self):
        model = two_layers()
        findings = [
            Finding("a", note="first"),
            Finding("a", scheme="w8a8-static"),
            asked("a", 0.8, 2, units=4, pruned_units=3),
            asked("a", 0.1, 7, note="first"),
            Finding("a", note="second"),
            Finding("nowhere", note="is not shown"),
        ]
        row = CompressionReport.measure(model, findings).modules[0]
        assert (row.asked_sparsity, row.group, row.units, row.pruned_units) == (0.8, 2, 4, 3)
        assert (row.scheme, row.notes) == ("w8a8-static", ("first", "second"))

    def test_measuring_again_gives_the_same(self):
        model = two_layers()
        findings = [asked("a", note="one"), Finding("a", note="two"), Finding("b", scheme="w8a8-static")]
        report = CompressionReport.measure(model, findings)
        assert CompressionReport.measure(model, report.findings()) == report
        zero(model.b, 5)
        assert CompressionReport.measure(model, report.findings()).modules[1].zeros == 5


class TestRatios:
    def test_of_incs_first_vector(self):
        """Two 8 x 8 layers at a half, beside a dense head and biases: 64 of 144, and of 162 values."""
        model = two_layers()
        zero(model.a, 32)
        zero(model.b, 32)
        findings = [asked(name, units=16, pruned_units=8) for name in "ab"]
        ratios = CompressionReport.measure(model, findings).ratios
        assert ratios == {
            "elementwise_over_matmul_gemm_conv": 64 / 144,
            "elementwise_over_all": 64 / 162,
            "blockwise_over_matmul_gemm_conv": 64 / 144,
        }

    def test_count_zeros_and_not_masks(self):
        model = two_layers()
        zero(model.a, 10)
        ratios = CompressionReport.measure(model, [asked("a", units=16, pruned_units=8)]).ratios
        assert ratios["elementwise_over_matmul_gemm_conv"] == 10 / 144
        assert ratios["blockwise_over_matmul_gemm_conv"] == 32 / 144

    def test_leave_embeddings_out_of_the_matrices(self):
        model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4, bias=False), nn.ReLU())
        with torch.no_grad():
            model[1].weight.fill_(1.0)[:2] = 0
        ratios = CompressionReport.measure(model, [asked("1", units=16, pruned_units=8)]).ratios
        assert ratios == {
            "elementwise_over_matmul_gemm_conv": 0.5,
            "elementwise_over_all": 8 / 56,
            "blockwise_over_matmul_gemm_conv": 0.5,
        }

    def test_rank_the_blocks_of_each_pruner_apart(self):
        """Shares of units weighted by values: int(64 * 1/2) and int(16 * 3/4)."""
        model = two_layers()
        findings = [asked("a", units=2, pruned_units=1), asked("head", group=1, units=4, pruned_units=3)]
        ratios = CompressionReport.measure(model, findings).ratios
        assert ratios["blockwise_over_matmul_gemm_conv"] == (32 + 12) / 144
        findings[1] = asked("head", group=0, units=4, pruned_units=3)
        ratios = CompressionReport.measure(model, findings).ratios
        assert ratios["blockwise_over_matmul_gemm_conv"] == int(80 * 4 / 6) / 144

    def test_of_two_pruning_configs_keep_their_groups_apart(self):
        model = two_layers()
        configs = [
            WeightPruningConfig(op_names=["^a$"], target_sparsity=0.5, pruning_type="magnitude", pattern="1x1"),
            WeightPruningConfig(op_names=["^b$"], target_sparsity=0.25, pruning_type="magnitude", pattern="8x1"),
        ]
        manager = prepare_compression(model, configs)
        manager.on_train_begin()
        manager.on_step_begin(0)
        manager.on_train_end()
        report = manager.report()
        assert [row.group for row in report.modules] == [0, 1, None]
        assert report.ratios["blockwise_over_matmul_gemm_conv"] == (32 + 16) / 144


class TestWritten:
    def report(self) -> CompressionReport:
        model = two_layers()
        zero(model.a, 32)
        findings = [asked("a", units=64, pruned_units=32), Finding("b", scheme="w8a8-static"), Finding("b", note="why")]
        return CompressionReport.measure(model, findings)

    def test_and_read_is_the_same(self):
        report = self.report()
        text = json.dumps(report.to_dict(), allow_nan=False)
        assert CompressionReport.from_dict(json.loads(text)) == report
        assert CompressionReport.from_dict(json.loads(text)).to_dict() == report.to_dict()

    def test_missing_optional_values_are_none(self):
        data = {"name": "a", "kind": "Linear", "shape": [2, 2], "bits": 8, "zeros": 1}
        report = CompressionReport.from_dict({"modules": [data], "other_parameters": 0, "size_bytes": 4})
        assert report.modules == (ModuleReport("a", "Linear", (2, 2), 8, 1),)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda data: data.pop("modules"), "KeyError('modules')"),
            (lambda data: data.pop("size_bytes"), "KeyError('size_bytes')"),
            (lambda data: data.update(modules=None), "NoneType"),
            (lambda data: data.update(modules={"a": 1}), "a module is 'a', expected a dict"),
            (lambda data: data.update(modules=[3]), "a module is 3, expected a dict"),
            (lambda data: data.update(size_bytes="12"), "'str' object cannot be interpreted as an integer"),
            (lambda data: data.update(other_parameters=1.5), "'float' object cannot be interpreted as an integer"),
            (lambda data: data["modules"][0].pop("name"), "KeyError('name')"),
            (lambda data: data["modules"][0].pop("shape"), "KeyError('shape')"),
            (lambda data: data["modules"][0].update(shape="8x8"), "cannot be interpreted as an integer"),
            (lambda data: data["modules"][0].update(zeros="many"), "zeros of module 'a' is 'many'"),
            (lambda data: data["modules"][0].update(bits=None), "bits of module 'a' is None"),
            (lambda data: data["modules"][0].update(asked_sparsity="0.5"), "asked_sparsity of module 'a' is '0.5'"),
            (lambda data: data["modules"][0].update(group=[0]), "group of module 'a' is [0]"),
            (lambda data: data["modules"][0].update(notes=4), "'int' object is not iterable"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_damaged_is_refused(self, change, words):
        data = self.report().to_dict()
        change(data)
        with pytest.raises(ArtifactError) as caught:
            CompressionReport.from_dict(data)
        assert str(caught.value).startswith("The compression report is damaged: ")
        assert str(caught.value).endswith("Save the model again to have it written anew.")
        assert words in str(caught.value)

    def test_with_unknown_keys_is_refused(self):
        data = self.report().to_dict()
        data["modules"][1].update(colour="red", smell=None)
        with pytest.raises(
            ArtifactError, match=r"unknown keys \['colour', 'smell'\]; it may come from a newer version"
        ):
            CompressionReport.from_dict(data)

    def test_as_text(self):
        assert str(self.report()).splitlines() == [
            "module  shape  asked    zeros  bits  scheme",
            "------  -----  -------  -----  ----  ---------------------",
            "a       8x8    50% 1x1  50.0%  32",
            "b       8x8             0.0%   32    w8a8-static (not yet)",
            "head    2x8             0.0%   32",
            "b: why",
            "zeros in the pruned modules: 50.0% of 64 weights",
            "elementwise_over_matmul_gemm_conv: 0.2222",
            "elementwise_over_all: 0.1975",
            "blockwise_over_matmul_gemm_conv: 0.2222",
            "size of all tensors: 0.00 MB",
        ]

    def test_what_is_still_to_convert_is_not_counted_as_quantized(self):
        row = ModuleReport("0", "Linear", (2, 2), 32, 0, scheme="w8a8-static")
        int8 = ModuleReport("1", "Linear", (2, 2), 8, 0, scheme="w8a8-static")
        assert [row.awaits_conversion, int8.awaits_conversion] == [True, False]
        assert "<b>1</b> quantized modules" in CompressionReport((row, int8), 0, 20).html()
        assert "quantized modules" not in CompressionReport((row,), 0, 16).html()

    def test_what_modules_were_asked_together_is_told(self):
        model = two_layers()
        zero(model.a, 60)
        zero(model.b, 4)
        zero(model.head, 8)
        together = [Finding(name, "1x1", 0.5, group=0, units=64, pruned_units=32) for name in ("a", "b")]
        report = CompressionReport.measure(model, [*together, Finding("head", "1x1", 0.5, group=1)])
        first, second, *_ = report_view.remarks(report)
        assert first == "zeros in the pruned modules: 50.0% of 144 weights"
        assert second == "asked of 2 modules together: 50% 1x1"
        assert sum("together" in line for line in report_view.remarks(report)) == 1

    def test_columns_and_ratios_that_nobody_asked_about_are_left_out(self):
        model = nn.Sequential(nn.Linear(2, 2))
        nn.init.ones_(model[0].weight)
        lines = str(CompressionReport.measure(model)).splitlines()
        assert lines == [
            "module  shape  zeros  bits",
            "------  -----  -----  ----",
            "0       2x2    0.0%   32",
            lines[3],
        ]
        assert lines[3].startswith("size of all tensors")

    def test_zeros_of_rounding_are_not_told_as_ratios_of_pruning(self):
        model = nn.Sequential(nn.Linear(2, 2))
        nn.init.zeros_(model[0].weight)
        shown = str(CompressionReport.measure(model))
        assert "100.0%" in shown
        assert "elementwise" not in shown

    def test_as_markdown(self):
        lines = self.report().markdown().splitlines()
        assert lines[:3] == [
            "| module | shape | asked | zeros | bits | scheme |",
            "| --- | --- | --- | --- | --- | --- |",
            "| a | 8x8 | 50% 1x1 | 50.0% | 32 |  |",
        ]
        assert lines[6] == "- b: why"

    def test_as_a_table_of_rich_holds_the_same_words(self):
        from rich.console import Console

        console = Console(width=80, record=True, file=io.StringIO())
        console.print(self.report())
        shown = console.export_text()
        for word in ("Compression report", "head", "50% 1x1", "b: why", "elementwise_over_all: 0.1975"):
            assert word in shown
        assert max(map(len, shown.splitlines())) <= 80

    def test_is_frozen_and_copied_whole(self):
        report = self.report()
        assert copy.deepcopy(report) == report
        with pytest.raises(AttributeError):
            report.size_bytes = 3
