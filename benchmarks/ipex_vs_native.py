"""How fast ``backend="ipex"`` is beside the default backend: ``make bench-ipex``.

The extension runs with torch 2.8 only, so each backend has a process of its own, in its own environment, and the two
take turns: in each round both measure, and what is reported is the median of the rounds. All times are divided into
one float32: PyTorch's eager mode in the newer environment. Weights are random and the same for both, calibration sees
the same eight batches. Time is by the clock, on one thread, so the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
TITLES = {"bert": "BERT-base shape, 128 tokens", "resnet50": "ResNet-50"}
COLUMNS = {
    ("default", "float32"): "float32, eager",
    ("ipex", "float32"): "float32, eager, torch 2.8",
    ("ipex", "int8"): 'int8, backend="ipex"',
    ("default", "int8"): "int8, default backend as converted",
    ("default", "optimized"): "int8, default backend, optimize_for_inference",
}
SECONDS = 2.0


# ------------------------------------------------------------------------------------------------- in one environment


def built(name: str, batch: int) -> tuple[Any, list[tuple[Any, ...]]]:
    """The float model, and batches of its inputs."""
    import torch

    sys.path += [str(ROOT), str(Path(sys.prefix) / "vision")]  # where `make vision` puts torchvision
    from benchmarks.int8_peers.models import MODELS

    torch.manual_seed(0)
    model = MODELS[name].served(MODELS[name].build()).eval()
    torch.manual_seed(1)
    if name == "bert":
        mask = torch.ones(batch, 128, dtype=torch.long)
        return model, [(torch.randint(1000, 30000, (batch, 128)), mask) for _ in range(8)]
    return model, [(torch.randn(batch, 3, 224, 224),) for _ in range(8)]


def ways(backend: str, name: str, batch: int) -> dict[str, Callable[[], object]]:
    """What can be timed in this environment."""
    import torch

    from inc_torch import PostTrainingQuantConfig, optimize_for_inference, quantization

    torch.set_num_threads(1)
    model, batches = built(name, batch)
    config = PostTrainingQuantConfig(backend=backend, calibration_sampling_size=8 * batch)
    int8 = quantization.fit(model, config, calib_dataloader=batches)
    expected = model(*batches[0])
    found = {"float32": model, "int8": int8}
    if backend == "default":
        found["optimized"] = optimize_for_inference(copy.deepcopy(int8), batches[0])
    for way, made in found.items():
        error = (made(*batches[0]) - expected).norm() / expected.norm()
        print(f"{way}: relative error {error:.4f}", file=sys.stderr)
    return {way: (lambda made=made: made(*batches[0])) for way, made in found.items()}


def serve(backend: str, name: str, batch: int) -> None:
    """Answer each line of the input with the median times of all ways, in seconds."""
    import torch

    with torch.inference_mode(mode=False), torch.no_grad():
        found = ways(backend, name, batch)
        print(json.dumps(list(found)), flush=True)
        for _ in sys.stdin:
            print(json.dumps({way: measured(call) for way, call in found.items()}), flush=True)


def measured(call: Callable[[], object]) -> float:
    """Median time of a call."""
    for _ in range(3):
        call()
    times, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 5:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


# ------------------------------------------------------------------------------------------------- both by turns


def compared(pythons: dict[str, str], name: str, batch: int, rounds: int) -> dict[tuple[str, str], float]:
    """Median of the rounds, by backend and way."""
    workers = {}
    for backend, python in pythons.items():
        command = [python, __file__, "--serve", backend, "--model", name, "--batch", str(batch)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        workers[backend] = subprocess.Popen(  # both stay, to take turns
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        answer(workers[backend])  # prepared; one after the other, for memory
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for backend in sorted(workers, reverse=bool(number % 2)):
            worker = workers[backend]
            print("go", file=worker.stdin, flush=True)
            for way, seconds in answer(worker).items():
                times.setdefault((backend, way), []).append(seconds)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return {place: statistics.median(values) for place, values in times.items()}


def answer(worker: subprocess.Popen[str]) -> Any:
    line = worker.stdout.readline() if worker.stdout else ""
    if not line:
        sys.exit("A worker ended; its error stands above.")
    return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ipex", metavar="PYTHON", help="the interpreter that has the extension")
    parser.add_argument("--model", choices=TITLES, action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", choices=("default", "ipex"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.model[0], arguments.batch[0])
        return
    if arguments.ipex is None:
        print("Left out, as no interpreter with the extension was named: make bench-ipex")
        return
    pythons = {"default": sys.executable, "ipex": arguments.ipex}
    cases = [(name, batch) for name in arguments.model or TITLES for batch in arguments.batch or (1,)]
    found = {case: compared(pythons, *case, arguments.rounds) for case in cases}
    print(f"| | {' | '.join(f'{TITLES[name]}, batch {batch}' for name, batch in cases)} |")
    print(f"|---|{'---|' * len(cases)}")
    for place, title in COLUMNS.items():
        cells = [
            f"{1e3 * times[place]:.1f} ms, {times['default', 'float32'] / times[place]:.2f}" for times in found.values()
        ]
        print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
