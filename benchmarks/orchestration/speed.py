"""How long inference takes, in float and in int8, with zeros and without.

All models of one kind compute alike, whatever they were trained by: zeros make nothing faster on a CPU, and what
training and calibration convert to are the same modules. So one model stands for each kind.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.int8_peers.machine import Machine
from benchmarks.orchestration.arms import GREATER, Arm
from benchmarks.orchestration.study import Study
from common.latency import in_turns
from inc_torch import optimize_for_inference

FLOAT = "float32"
FUSED = "int8, fused"
KINDS = {
    FLOAT: Arm("dense"),
    "float32, 90 % zeros": Arm("kd+prune", GREATER),
    "int8": Arm("dense > ptq"),
    "int8, 90 % zeros": Arm("kd+prune > ptq", GREATER),
    FUSED: Arm("dense > ptq"),
    "int8, fused, 90 % zeros": Arm("kd+prune > ptq", GREATER),
}
ROWS = (1, 8)

Times = dict[str, dict[str, float]]  # by rows, by kind


@torch.no_grad()
def measure(models: Mapping[str, nn.Module], study: Study, rounds: int) -> Times:
    """Median milliseconds of processor time of each model, which take turns, for one row and for eight."""
    return {
        str(rows): in_turns(
            {name: partial(call, model, study.task.sample(rows)) for name, model in models.items()},
            rounds=rounds,
            clock=time.process_time,
        )
        for rows in ROWS
    }


def call(model: nn.Module, inputs: Any) -> object:
    """What the model answers."""
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def models_of(study: Study) -> dict[str, nn.Module]:
    """One of each kind, ready for inference."""
    made = {name: study.model(arm).eval() for name, arm in KINDS.items() if not name.startswith(FUSED)}
    for name in KINDS.keys() - made.keys():
        model = copy.deepcopy(made[name.replace(FUSED, "int8")])
        made[name] = optimize_for_inference(model, example_inputs=study.task.sample(ROWS[-1]))
    return {name: made[name] for name in KINDS}


def remeasured(study: Study, file: Path, rounds: int) -> None:
    """Measure one task and keep the times in the file, beside those of the others and the name of the machine."""
    known = json.loads(file.read_text()) if file.exists() else {"tasks": {}}
    known["machine"] = Machine.of_this().title
    known["tasks"][study.task.name] = measure(models_of(study), study, rounds)
    file.write_text(json.dumps(known, indent=2))
