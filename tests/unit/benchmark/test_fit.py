"""What `benchmark.fit` measures, returns and prints, and what it leaves alone."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
import warnings
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from inc_torch import BenchmarkConfig, PostTrainingQuantConfig, benchmark, kernels, optimize_for_inference, quantization
from inc_torch.benchmark import BenchmarkResult, InstanceResult, ModelResult
from inc_torch.core.errors import ConfigError, ConfigTypeError, InexactWarning, ModelError

ROOT = Path(__file__).resolve().parents[3]


class Sleeper(nn.Module):
    """Takes as many milliseconds as its input says."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        time.sleep(float(x[0, 0]) / 1000)
        return x * self.scale


def milliseconds(*values, batch=1):
    return [torch.full((batch, 1), float(value)) for value in values]


def mlp():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def fit(model, config=None, *args, **kwargs):
    return benchmark.fit(model, config, *args, **{"quiet": True, **kwargs})


class TestNumbers:
    def test_the_warm_up_is_left_out_and_the_rest_is_in_order(self):
        result = fit(Sleeper(), BenchmarkConfig(warmup=2), milliseconds(60, 60, 1, 20, 10, batch=3))
        accuracy, batch_size, seconds = result["performance"]
        assert (accuracy, batch_size, len(seconds)) == (None, 3, 3)
        assert [value // 0.001 > least for value, least in zip(seconds, (0, 18, 8), strict=True)] == [True] * 3
        assert max(seconds) < 0.06

    def test_percentiles_are_those_of_numpy(self):
        seconds = tuple(np.random.default_rng(0).exponential(0.01, 57))
        instance = InstanceResult(0, (0,), 1, 4, seconds, 228)
        both = ModelResult("m", (instance, InstanceResult(1, (1,), 1, 4, (0.5,) * 9, 36)), 8)
        for share in (50, 90, 99):
            assert instance.percentile(share) == pytest.approx(1000 * np.percentile(seconds, share))
            assert both.percentile(share) == pytest.approx(1000 * np.percentile([*seconds, *[0.5] * 9], share))

    def test_totals_are_sums_and_means_over_instances_that_finished(self):
        first = InstanceResult(0, (0,), 1, 2, (0.5, 0.5), 4, memory=10)
        second = InstanceResult(1, (1,), 1, 2, (0.25, 0.25), 4, memory=30)
        model = ModelResult("m", (first, InstanceResult(2, failure="ValueError: no"), second), 8)
        assert (first.throughput, second.throughput, model.throughput) == (4.0, 8.0, 12.0)
        assert (first.latency, second.latency, model.latency) == (250.0, 125.0, 187.5)
        assert model.memory == 30
        assert model.seconds == [0.5, 0.5, 0.25, 0.25]

    def test_a_smaller_last_batch_counts_as_what_it_is(self):
        result = fit(mlp(), BenchmarkConfig(warmup=0), DataLoader([torch.ones(16)] * 10, batch_size=4))
        (instance,) = result.model.instances
        assert (instance.batch_size, instance.samples, len(instance.seconds)) == (4, 10, 3)

    @pytest.mark.parametrize(("iteration", "ran"), [(-1, 3), (2, 1), (3, 2), (9, 8)])
    def test_iteration_counts_batches_and_reads_the_loader_again(self, iteration, ran):
        result = fit(mlp(), BenchmarkConfig(warmup=1, iteration=iteration), [torch.ones(2, 16)] * 4)
        assert len(result["performance"][2]) == ran

    @pytest.mark.parametrize(("batches", "left", "said"), [(4, 3, "1 is left out"), (1, 1, "0 is left out")])
    def test_a_warm_up_longer_than_the_data_shrinks_and_says_so(self, batches, left, said):
        result = fit(mlp(), BenchmarkConfig(warmup=5), [torch.ones(2, 16)] * batches)
        assert len(result["performance"][2]) == left
        assert said in result.model.notes[0]

    def test_a_generator_is_read_by_each_instance_and_each_model(self):
        batches = (torch.ones(2, 16) for _ in range(6))
        result = fit(mlp(), BenchmarkConfig(warmup=1, num_of_instance=2), batches, compare=mlp())
        assert [len(one.seconds) for model in result.models for one in model.instances] == [5] * 4
        assert [model.name for model in result.models] == ["Sequential", "Sequential (compared)"]

    def test_labels_are_left_out_and_dicts_go_by_name(self):
        assert fit(mlp(), None, [(torch.ones(2, 16), torch.tensor([0, 1]))] * 7).model.inputs == "float32 [2, 16]"
        named = [{"input": torch.ones(2, 16), "label": torch.zeros(2)}] * 7
        assert fit(mlp(), None, named).model.inputs == "input=float32 [2, 16]"

    def test_memory_is_tensors_and_what_running_adds(self):
        class Wide(nn.Module):
            def __init__(self, numbers):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(numbers))
                self.numbers = numbers

            def forward(self, x):
                return torch.ones(8 * self.numbers).sum() + x.sum()

        small, large = (fit(Wide(n), None, [torch.ones(1)] * 8).model for n in (1_000, 1_000_000))
        assert (small.size, large.size) == (4_000, 4_000_000)
        assert large.memory == pytest.approx(36e6, rel=0.1)
        assert small.memory < 5e6

    def test_accuracy_comes_from_the_metric(self):
        class Fixed(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.eye(2))

            def forward(self, x):
                return x @ self.weight

        data = [(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1, 0, 1]))] * 6
        result = fit(Fixed(), None, data, metric="topk", compare=Fixed())
        assert result["performance"][0] == 0.75
        assert [model.accuracy for model in result.models] == [0.75, 0.75]
        assert result["accuracy"] == 0.75


class TestKernels:
    @pytest.mark.skipif(not kernels.available(), reason="needs the compiled kernels")
    def test_a_graph_in_int8_shows_our_kernels_and_the_float_one_those_of_torch(self):
        batches = [torch.randn(4, 16)] * 8
        int8 = quantization.fit(mlp(), PostTrainingQuantConfig(), calib_dataloader=batches)
        result = fit(int8, None, batches, compare=mlp())
        assert result.model.kernels["inc_torch.linear"] == 2
        assert dict(result.compared.kernels) == {"aten::addmm": 2}
        assert dict(result.model.modules) == {"Int8Linear": 2}
        assert [model.name for model in result.models] == ["Sequential (int8)", "Sequential (float32)"]
        assert result.speedup == result.model.throughput / result.compared.throughput

    def test_layer_by_layer_it_is_onednn(self):
        batches = [torch.randn(4, 16)] * 8
        int8 = quantization.fit(mlp(), PostTrainingQuantConfig(graph="off"), calib_dataloader=batches)
        model = fit(int8, None, batches).model
        assert model.kernels["onednn::qlinear_pointwise"] == 2
        if kernels.available():
            assert any("optimize_for_inference" in note for note in model.notes)

    @pytest.mark.skipif(not kernels.available(), reason="needs the compiled kernels")
    def test_a_model_that_the_parent_optimized_runs_fused_in_the_process(self):
        batches = [torch.randn(4, 16)] * 8
        int8 = quantization.fit(mlp(), PostTrainingQuantConfig(graph="off"), calib_dataloader=batches)
        optimize_for_inference(int8, example_inputs=batches[0])
        assert fit(int8, None, batches).model.kernels["inc_torch.linear"] == 2


class TestOtherModules:
    def test_compiled_ones_are_measured_as_what_they_compile(self):
        compiled = torch.compile(mlp(), backend="eager")
        model = fit(compiled, None, [torch.ones(2, 16)] * 7).model
        assert (dict(model.modules), dict(model.kernels)) == ({"Linear": 2}, {"aten::addmm": 2})

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of TorchScript
    def test_traced_ones_too(self):
        traced = torch.jit.trace(mlp(), torch.ones(2, 16))
        model = fit(traced, None, [torch.ones(2, 16)] * 7).model
        assert len(model.seconds) == 2
        assert sum(model.modules.values()) == 2


class TestUsersFunction:
    def test_each_call_of_the_model_is_an_iteration(self):
        def own(model):
            for batch in milliseconds(30, 1, 12, batch=2):
                model(batch)

        result = fit(Sleeper(), BenchmarkConfig(warmup=1), b_func=own)
        _, batch_size, seconds = result["performance"]
        assert (batch_size, len(seconds)) == (2, 2)
        assert 0.012 < seconds[1] < 0.03

    def test_one_that_calls_nothing_is_one_iteration(self):
        result = fit(mlp(), None, b_func=lambda model: time.sleep(0.02))
        assert len(result["performance"][2]) == 1
        assert result["performance"][2][0] > 0.019

    def test_the_model_is_still_of_its_class(self):
        seen = []

        def own(model):
            assert isinstance(model, Sleeper)
            seen.append(type(model).__name__)
            model(torch.zeros(1, 1))

        model = Sleeper()
        fit(model, None, b_func=own)
        assert type(model) is Sleeper
        assert seen == []  # it ran in a process of its own


class TestFailures:
    def test_some_are_warned_of_and_the_rest_count(self):
        main = os.getpid()

        class Breaks(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(1))

            def forward(self, x):
                if min(os.sched_getaffinity(0)) == min(os.sched_getaffinity(main)):
                    raise ArithmeticError("core 0 is broken")
                return x

        with pytest.warns(
            InexactWarning,
            match=r"1 of 2 instances of Breaks failed; .*says: ArithmeticError: core 0 is broken. All of it is",
        ):
            result = fit(Breaks(), BenchmarkConfig(num_of_instance=2), [torch.ones(1)] * 7)
        broken, whole = result.model.instances
        assert broken.failure.strip().endswith("While running Breaks with (float32 [1]).")
        assert "ArithmeticError: core 0 is broken" in broken.failure
        assert len(whole.seconds) == 2
        assert "instance 0: ArithmeticError: core 0 is broken" in str(result)
        assert json.loads(result.to_json())["model"]["instances"][0]["failure"] == broken.failure

    def test_all_are_an_error_with_the_trace(self):
        with pytest.raises(ModelError, match=r"2 of 2 instances of Sequential failed(.|\n)*mat1 and mat2 shapes"):
            fit(mlp(), BenchmarkConfig(num_of_instance=2), [torch.ones(2, 3)] * 7)

    def test_a_loader_without_batches_is_one(self):
        with pytest.raises(ModelError, match="b_dataloader of type list gave no batch: expected at least one"):
            fit(mlp(), None, [])

    def test_a_metric_that_fails_is_one(self):
        with pytest.raises(ModelError, match=r"accuracy of Sequential could not be measured:(.|\n)*has no label"):
            fit(mlp(), None, [torch.ones(2, 16)] * 7, metric="topk")


class TestArguments:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: fit(mlp(), metrik="topk"), "benchmark.fit has no argument 'metrik'. Did you mean 'metric'?"),
            (
                lambda: fit(mlp(), {"warmup": 3}),
                "benchmark.fit got conf of type dict: expected a BenchmarkConfig or None.",
            ),
            (
                lambda: benchmark.fit(mlp(), BenchmarkConfig(), config=BenchmarkConfig()),
                "benchmark.fit got both conf and config: they are the same argument, give one.",
            ),
            (
                lambda: fit(mlp(), None, 5),
                "benchmark.fit got b_dataloader of type int: expected batches, as in a list.",
            ),
            (
                lambda: fit(mlp(), None, None, "run"),
                "benchmark.fit got b_func of type str: expected a function of a model.",
            ),
            (
                lambda: fit(mlp(), metric="topk"),
                "benchmark.fit got metric without b_dataloader: accuracy needs labelled batches.",
            ),
            (
                lambda: fit(mlp(), batch_size=0),
                "benchmark.fit got batch_size=0: expected a number of 1 or more.",
            ),
            (
                lambda: fit(mlp(), None, iter([torch.ones(2, 16)]), metric="topk"),
                "benchmark.fit got b_dataloader of type list_iterator, which can be read only once, and a metric: it "
                "is read for the accuracy and again for the time. Pass a list or a DataLoader.",
            ),
            (
                lambda: fit(mlp(), BenchmarkConfig(device="gpu")),
                "BenchmarkConfig.device='gpu', but Sequential lies on cpu: expected it on 'cuda'. Move it there first: "
                "model.to('cuda').",
            ),
        ],
    )
    def test_wrong_ones_are_refused(self, call, message):
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value) == message

    def test_more_cores_than_there_are(self):
        with pytest.raises(
            AssertionError, match=r"need 800 physical cores, and this process may use \d+\. Ask for less"
        ):
            fit(mlp(), BenchmarkConfig(cores_per_instance=400, num_of_instance=2))
        with pytest.warns(InexactWarning, match="are used, as clip=True says"):
            result = fit(mlp(), BenchmarkConfig(cores_per_instance=400), [torch.ones(1, 16)] * 7, clip=True)
        assert set(result.model.instances[0].cpus) <= os.sched_getaffinity(0)

    def test_config_is_an_alias_of_conf(self):
        result = benchmark.fit(mlp(), config=BenchmarkConfig(warmup=0, iteration=3), quiet=True)
        assert len(result["performance"][2]) == 3

    def test_threads_are_those_of_the_config(self):
        config = BenchmarkConfig(intra_num_of_threads=3, inter_num_of_threads=2, cores_per_instance=1)
        seen = fit(mlp(), config, b_func=lambda model: model(torch.ones(1, 16))).model
        assert seen.instances[0].threads == 3

    def test_keys_without_effect_are_accepted_and_named(self):
        everything = BenchmarkConfig(
            inputs=["x"],
            outputs=["y"],
            backend="ipex",
            device="cpu",
            warmup=1,
            iteration=3,
            model_name="m",
            cores_per_instance=1,
            num_of_instance=1,
            inter_num_of_threads=1,
            intra_num_of_threads=1,
            diagnosis=False,
            ni_workload_name="n",
        )
        with pytest.warns(InexactWarning, match=r"\.inputs, outputs, backend, model_name, ni_workload_name: accepted"):
            assert len(fit(mlp(), everything)["performance"][2]) == 2


class TestConfig:
    @pytest.mark.parametrize("options", [{"warmup": 1.5}, {"warmup": -1}, {"iteration": 0}, {"num_of_instance": 0}])
    def test_wrong_values_are_what_incs_callers_catch(self, options):
        with pytest.raises(AssertionError, match="BenchmarkConfig"):
            BenchmarkConfig(**options)

    def test_a_typo_gets_a_suggestion(self):
        with pytest.raises(
            ConfigTypeError, match=r"no option 'core_per_instance'\. Did you mean 'cores_per_instance'\?"
        ):
            BenchmarkConfig(core_per_instance=4)

    def test_it_goes_through_json(self):
        config = BenchmarkConfig(warmup=3, cores_per_instance=2)
        assert BenchmarkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


class TestCallersThings:
    def test_nothing_of_the_caller_changes(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        model = mlp().train()
        config = BenchmarkConfig(num_of_instance=2)
        before = dict(os.environ), os.sched_getaffinity(0), torch.get_num_threads(), repr(config), Path.cwd()
        state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
        fit(model, config, [torch.ones(2, 16)] * 7)
        assert before == (dict(os.environ), os.sched_getaffinity(0), torch.get_num_threads(), repr(config), Path.cwd())
        assert model.training
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
        assert torch.equal(random, torch.get_rng_state())
        assert not list(tmp_path.iterdir())

    def test_a_script_without_a_guard_runs_once_and_may_measure_twice(self, tmp_path):
        script = tmp_path / "script.py"
        script.write_text(
            "import torch\n"
            "from torch import nn\n"
            "from inc_torch import BenchmarkConfig, PostTrainingQuantConfig, benchmark, quantization\n"
            "print('script')\n"
            "class Own(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.layer = nn.Linear(4, 4)\n"
            "    def forward(self, x):\n"
            "        return self.layer(x)\n"
            "for _ in range(2):\n"
            "    result = benchmark.fit(Own(), BenchmarkConfig(num_of_instance=2, iteration=9), quiet=True)\n"
            "    print(len(result['performance'][2]))\n"
            "model = quantization.fit(Own(), PostTrainingQuantConfig(), calib_dataloader=[torch.ones(1, 4)])\n"
            "data = [torch.ones(1, 4)] * 9\n"  # so that the graph is captured while memory is watched
            "print(benchmark.fit(model, BenchmarkConfig(), data, quiet=True).model.memory < 5e6)\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "error", str(script)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert (result.stdout, result.stderr) == ("script\n8\n8\nTrue\n", "")

    def test_a_loader_with_workers_of_the_parent_gets_its_own(self):
        loader = DataLoader([torch.ones(16)] * 12, batch_size=2, num_workers=1, persistent_workers=True)
        next(iter(loader))
        found = fit(mlp(), BenchmarkConfig(warmup=1, num_of_instance=2), loader)
        assert [len(instance.seconds) for instance in found.model.instances] == [5, 5]
        assert len(list(loader)) == 6

    def test_threads_of_the_caller_do_no_harm(self):
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = fit(mlp(), None, [torch.ones(2, 16)] * 7)
        assert thread.is_alive()
        assert len(found.model.instances[0].seconds) == 2
        stop.set()
        thread.join()

    def test_weights_are_copied_to_the_node_of_the_instance_and_stay_the_same(self):
        from inc_torch.benchmark._task import _move_to_own_node

        model = mlp()
        model[2].weight = nn.Parameter(model[2].weight.detach().clone())
        before, places = model(torch.ones(1, 16)), [tensor.data_ptr() for tensor in model.parameters()]
        _move_to_own_node(model)
        assert torch.equal(model(torch.ones(1, 16)), before)
        assert not set(places) & {tensor.data_ptr() for tensor in model.parameters()}


class TestHere:
    """Where processes cannot be forked the model is measured in this one."""

    @pytest.fixture(autouse=True)
    def _no_fork(self, monkeypatch):
        for module in (benchmark, benchmark._run):
            monkeypatch.setattr(module, "can_fork", lambda *_: False)

    def test_it_is_measured_and_left_as_it_was(self):
        model, threads, pids = mlp().train(), torch.get_num_threads(), []
        model.register_forward_hook(lambda *_: pids.append(os.getpid()))
        config = BenchmarkConfig(warmup=1, intra_num_of_threads=threads + 1, inter_num_of_threads=7)
        data = [(torch.ones(2, 16), torch.tensor([0, 1]))] * 6
        found = fit(model, config, data, metric="topk", compare=mlp()).model
        (instance,) = found.instances
        assert (len(instance.seconds), instance.cpus, instance.threads, found.memory) == (5, (), threads + 1, None)
        assert "inter_num_of_threads=7 has no effect" in found.notes[0]
        assert set(pids) == {os.getpid()}
        assert (torch.get_num_threads(), model.training) == (threads, True)

    def test_a_function_of_the_user_gets_the_model_itself(self):
        model, seen = Sleeper(), []
        fit(
            model,
            BenchmarkConfig(warmup=0),
            b_func=lambda given: seen.append(given is model) or given(torch.zeros(1, 1)),
        )
        assert seen == [True]
        assert type(model) is Sleeper

    def test_several_instances_are_refused(self):
        with pytest.raises(ConfigError, match=r"num_of_instance=2: expected 1, as .* measured in this process"):
            fit(mlp(), BenchmarkConfig(num_of_instance=2))
        with pytest.warns(InexactWarning, match="expected 1"):
            assert len(fit(mlp(), BenchmarkConfig(num_of_instance=2), clip=True).model.instances) == 1

    def test_a_failure_is_an_error(self):
        with pytest.raises(ModelError, match=r"1 of 1 instance of Sequential failed(.|\n)*mat1 and mat2"):
            fit(mlp(), None, [torch.ones(2, 3)])


def test_a_model_on_another_device_is_not_forked():
    assert benchmark._run.can_fork(mlp())
    assert not benchmark._run.can_fork(mlp(), mlp().to("meta"))


def result() -> BenchmarkResult:
    first = InstanceResult(0, (0, 1), 2, 4, (0.010, 0.020, 0.030), 12, 3_000_000)
    second = InstanceResult(1, (2, 3), 2, 4, (0.020, 0.020, 0.020), 12, 4_000_000)
    slow = InstanceResult(0, (0, 1), 2, 4, (0.040, 0.040, 0.040), 12, 8_000_000)
    model = ModelResult(
        "int8", (first, second), 1_000_000, {"onednn::qlinear_pointwise": 2}, {"Int8Linear": 2}, "x", 0.5, ("slow",)
    )
    return BenchmarkResult(
        model, ModelResult("float", (slow,), 4_000_000, {"aten::addmm": 2}, {"Linear": 2}, "x", 0.75)
    )


class TestViews:
    def test_models_stand_side_by_side(self):
        lines = [line.split() for line in str(result()).splitlines()]
        assert ["ms", "a", "batch,", "p50", "20.000", "40.000", "2.00x"] in lines
        assert ["samples", "a", "second", "400.0", "100.0", "4.00x"] in lines
        assert ["MB", "of", "memory,", "peak", "4.00", "8.00", "2.00x"] in lines
        assert ["MB", "of", "tensors", "1.00", "4.00", "4.00x"] in lines
        assert ["accuracy", "0.5000", "0.7500", "-0.2500"] in lines
        assert ["int8", "1", "2-3", "3", "20.000", "20.000", "200.0"] in lines
        assert ["onednn::qlinear_pointwise", "2", "-", "yes"] in lines
        assert ["aten::addmm", "-", "2"] in lines
        assert "int8: slow" in str(result())
        assert all(len(line) <= 80 for line in str(result()).splitlines())

    def test_a_single_model_has_no_gain(self):
        alone = BenchmarkResult(result().model)
        assert "gain" not in str(alone)
        assert alone.speedup is None

    def test_json_holds_everything(self, tmp_path):
        result().save_json(tmp_path / "made" / "r.json")
        data = json.loads((tmp_path / "made" / "r.json").read_text())
        assert data["format"] == "inc_torch benchmark result/1"
        assert data["speedup"] == 4.0
        assert data["model"]["instances"][0]["seconds"] == [0.010, 0.020, 0.030]
        assert data["model"]["p90_ms"] == pytest.approx(1000 * np.percentile([0.01, 0.02, 0.03, 0.02, 0.02, 0.02], 90))

    def test_csv_has_a_row_for_each_instance(self, tmp_path):
        result().save_csv(tmp_path / "r.csv")
        rows = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text())))
        assert [(row["model"], row["instance"], row["cpus"]) for row in rows] == [
            ("int8", "0", "0 1"),
            ("int8", "1", "2 3"),
            ("float", "0", "0 1"),
        ]
        assert float(rows[0]["throughput"]) == pytest.approx(200)

    def test_the_picture_is_svg_with_a_line_for_each_model(self, tmp_path):
        result().save_svg(tmp_path / "r.svg")
        root = xml.etree.ElementTree.parse(tmp_path / "r.svg").getroot()
        tags = [element.tag.rpartition("}")[2] for element in root.iter()]
        assert tags.count("polyline") == 2
        texts = [element.text for element in root.iter() if element.tag.endswith("text")]
        assert {"400.0", "100.0", "int8", "float", "p50", "p90"} <= set(texts)
        bars = [float(e.get("width")) for e in root.iter() if e.tag.endswith("rect") and e.get("height") == "16"]
        assert bars[1] == pytest.approx(bars[0] / 4)

    def test_names_are_escaped(self):
        strange = BenchmarkResult(ModelResult("<b>&", result().model.instances, 8))
        from inc_torch.benchmark._picture import as_svg

        assert "&lt;b&gt;&amp;" in as_svg(strange)
        xml.etree.ElementTree.fromstring(as_svg(strange))

    def test_it_is_a_mapping_with_incs_key(self):
        assert {"performance", "latency_ms", "throughput", "instances", "accuracy"} <= set(result())
        assert dict(result())["performance"] == (0.5, 4, [0.010, 0.020, 0.030, 0.020, 0.020, 0.020])
        assert len(result()) == len(dict(result()))

    def test_what_is_printed_are_incs_lines_and_the_tables(self, capsys):
        benchmark.fit(mlp(), BenchmarkConfig(num_of_instance=2, iteration=8), [torch.ones(4, 16)])
        printed = capsys.readouterr().out
        assert len(re.findall(r"^Latency: \d+\.\d{3} ms$", printed, re.MULTILINE)) == 2
        assert len(re.findall(r"^Throughput: \d+\.\d{3} images/sec$", printed, re.MULTILINE)) == 2
        assert printed.count("Batch size = 4") == 2
        assert "**Multiple Instance Benchmark Summary**" in printed
        assert re.search(r"\| Latency average \[second/sample\] +\| \d\.\d{6} +\|", printed)
        assert re.search(r"\| Throughput sum \[samples/second\] +\| \d+\.\d{3} +\|", printed)
        assert "Kernels of one forward" in printed

    def test_diagnosis_writes_incs_files_into_the_workspace(self, tmp_path, capsys):
        from inc_torch import options, set_workspace

        set_workspace(tmp_path)
        try:
            found = benchmark.fit(mlp(), BenchmarkConfig(diagnosis=True, iteration=8), compare=mlp())
        finally:
            options.workspace = None
        assert {"diagnosis.log", "profiling_table.csv", "profiling_data.json"} == {p.name for p in tmp_path.iterdir()}
        rows = json.loads((tmp_path / "profiling_data.json").read_text())
        assert {row["node_name"]: row["op_run"] for row in rows}["aten::addmm"] == 2
        assert rows == [dict(row) for row in found.profile]
        assert rows[0]["total_execution_time"] >= rows[-1]["total_execution_time"]
        header = (tmp_path / "profiling_table.csv").read_text().splitlines()[0]
        assert header.startswith("Node Name,Total Execution Time [us],Accelerator Execution Time [us],CPU Execution")
        assert "Profiling" in capsys.readouterr().out
