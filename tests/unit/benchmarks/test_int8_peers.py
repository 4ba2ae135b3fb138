"""The comparison with other ways to run int8: which results are kept, and what the page says of them."""

from __future__ import annotations

from benchmarks.int8_peers.machine import Machine
from benchmarks.int8_peers.publish import by_machine, merged
from benchmarks.int8_peers.tables import section

EPYC = Machine("AMD EPYC", "26", None, 2, ("avx512_vnni",))
XEON = Machine("Intel(R) Xeon(R) Processor", "6", "207", 2, ("avx512_vnni", "amx_tile", "amx_int8", "amx_bf16"))


def row(candidate, speedup=1.0, machine=XEON, day="2026-11-30", **workload):
    times = [{"base": {"cpu": speedup, "wall": 1.0}, "own": {"cpu": 1.0, "wall": 1.0}}]
    return {
        **{"model": "bert", "batch": 1, "threads": 1, "candidate": candidate, **workload},
        **{"cosine": 1.0, "error": 0.0, "build": 2.0, "memory": 1, "versions": {"torch": "2.13.0"}},
        **{"seconds": 0.01, "speedup": [speedup] * 3, "rounds": times},
        **{"finished": f"{day}T00:00:00+00:00", "load": [0.5, 1.5], "machine": machine.facts()},
    }


def failed(candidate, **facts):
    kept = ("model", "batch", "threads", "candidate", "finished", "load", "machine")
    return {**{name: value for name, value in row(candidate).items() if name in kept}, **facts}


def lines(text, start):
    return [line for line in text.splitlines() if line.startswith(f"| {start}")]


def test_a_row_replaces_that_of_the_same_machine_workload_and_candidate_only():
    kept = [row("openvino", 1), row("ipex", 2), row("openvino", 3, EPYC), row("openvino", 4, threads=2)]
    rows = merged(kept, [row("openvino", 5)])
    found = [(Machine.of(each), each["threads"], each["candidate"], each["speedup"][1]) for each in rows]
    assert found == [(EPYC, 1, "openvino", 3), (XEON, 1, "openvino", 5), (XEON, 1, "ipex", 2), (XEON, 2, "openvino", 4)]


def test_machines_come_newest_first_and_workloads_in_the_order_of_models():
    rows = [row("bf16", model="resnet50"), row("bf16", batch=8), row("bf16", machine=EPYC, day="2026-11-22")]
    groups = by_machine([*rows, row("bf16")])
    assert list(groups) == [XEON, EPYC]
    assert [(each["model"], each["batch"]) for each in groups[XEON]] == [("bert", 1), ("bert", 8), ("resnet50", 1)]


def test_a_generic_name_is_told_apart_by_numbers():
    assert XEON.title == "Intel Xeon (family 6, model 207)"
    assert XEON.slug == "intel-xeon-family-6-model-207-2-cores"
    assert EPYC.title == "AMD EPYC (family 26)"


def test_the_section_compares_this_package_with_its_peers():
    rows = [row("openvino", 4), row("ipex", 5), row("inc_torch-optimized", 6), row("bf16", 8)]
    rows += [
        row("inc_torch-optimized", 3, batch=8),
        failed("pt2e", fails="RuntimeError: no"),
        row("openvino", 2, batch=8),
    ]
    text = section(XEON, merged([], rows), "picture.svg")
    assert text.startswith(
        "#### Intel Xeon (family 6, model 207), 2 cores\n\nMeasured on 2026-11-30; avx512_vnni, amx_"
    )
    assert "![Speed-up over float32](picture.svg)" in text
    assert lines(text, "speed-up") == ["| speed-up over float32 eager, 1 thread | bert b1 | bert b8 |"]
    assert lines(text, "int8, IPEX")[0] == "| int8, IPEX | 5.00 | not measured |"
    assert lines(text, "int8, torchao")[0] == "| int8, torchao PT2E + Inductor | fails | not measured |"
    assert lines(text, "int8, torchao")[1].startswith("| int8, torchao PT2E + Inductor | fails: RuntimeError: no |")
    own = "inc_torch optimize_for_inference to"
    assert lines(text, own) == [
        f"| {own} OpenVINO + NNCF | 1.50 | 1.50 |",
        f"| {own} IPEX | 1.20 | not measured |",
        f"| {own} the fastest peer | 0.75 (bfloat16, eager) | 1.50 (OpenVINO + NNCF) |",
    ]
    assert lines(text, "inc_torch as converted to IPEX") == [
        "| inc_torch as converted to IPEX | not measured | not measured |"
    ]
