"""Every benchmark is run by something, and its figures come into their place on the page."""

from __future__ import annotations

from benchmarks.run_all import BENCHMARKS, ROOT, Benchmark, figures, markers, with_figures

ELSEWHERE = {
    "int8_peers/run.py": "make bench-int8",
    "ipex_vs_native.py": "make bench-ipex",
    "pruning_accuracy/run.py": "make bench-accuracy",
    "orchestration/run.py": "make bench-orchestration",
    "tuning/inc_run.py": "needs INC and the torch of its time",
    "tuning/strategies.py": "hours",
    "run_all.py": "this program",
}
"""The other programs, and what runs them."""


def test_no_program_is_left_out():
    folder = ROOT / "benchmarks"
    programs = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8") and "candidates" not in path.parts
    }
    parts = {f"int8_peers/{name}.py" for name in ("material", "publish", "worker")}  # started by run.py, or as modules
    assert programs - parts == {benchmark.script for benchmark in BENCHMARKS.values()} | ELSEWHERE.keys()


def test_only_the_figures_of_one_benchmark_are_exchanged():
    begin, end = markers("a")
    page = f"# Title\n\n{begin}\n\nold\n\n{end}\n\nmore\n"
    assert with_figures(page, {"a": r"new \1"}) == f"# Title\n\n{begin}\n\nnew \\1\n\n{end}\n\nmore\n"
    begin, end = markers("two_words")
    added = with_figures(page, {"two_words": "new"})
    assert added == f"{page}\n## Two words\n\n{begin}\n\nnew\n\n{end}\n"


def test_figures_name_the_command_and_the_machine():
    text = figures(Benchmark("a.py", ("--quick",)), "| 1 |", 150)
    assert text.startswith("`python benchmarks/a.py --quick` (")
    assert "cores, torch " in text
    assert text.endswith("; 2 min)\n\n```text\n| 1 |\n```")
