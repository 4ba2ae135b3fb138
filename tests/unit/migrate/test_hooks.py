"""Hooks that are put in stand where a person would put them, and the run is the same to the last bit.

Each loop below is written with all its hooks. The lines marked ``# hook`` are taken out, and the tool has to bring the
very same text back.
"""

from __future__ import annotations

import re

import pytest
import torch

from inc_torch.migrate import Migrated, migrate_source

HEAD = """
import torch
from torch import nn
from inc_torch import WeightPruningConfig, prepare_compression

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
loader = [(torch.randn(4, 8), torch.randint(2, (4,))) for _ in range(6)]
criterion = nn.CrossEntropyLoss()
conf = WeightPruningConfig(target_sparsity=0.5, pattern="4x1", start_step=0, end_step=2)
"""

LOOPS = {
    "everything": """
compression_manager = prepare_compression(model, conf)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
compression_manager.on_train_begin()  # hook
for epoch in range(2):
    for step, (inputs, labels) in enumerate(loader):
        compression_manager.on_step_begin(step)  # hook
        loss = criterion(model(inputs), labels)
        loss.backward()
        compression_manager.on_before_optimizer_step()  # hook
        optimizer.step()
        compression_manager.on_after_optimizer_step()  # hook
        optimizer.zero_grad()
compression_manager.on_train_end()  # hook
""",
    "after the step, by the spelling of the others": """
def train(model, manager):
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    manager.callbacks.on_train_begin()
    for step, (inputs, labels) in enumerate(loader):
        manager.callbacks.on_step_begin(step)
        loss = criterion(model(inputs), labels)
        loss.backward()
        manager.callbacks.on_before_optimizer_step()
        sgd.step()  # the update
        manager.callbacks.on_after_optimizer_step()  # hook
        sgd.zero_grad()
        # the end of a batch

    manager.callbacks.on_train_end()

compression_manager = prepare_compression(model, conf)
train(model, compression_manager)
""",
    "the end, after the last comment of the loop": """
compression_manager = prepare_compression(model, conf)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
compression_manager.on_train_begin()
for epoch in range(2):
    for step in range(len(loader)):
        compression_manager.on_step_begin(step)  # hook
        criterion(model(loader[step][0]), loader[step][1]).backward()
        compression_manager.on_before_optimizer_step()
        optimizer.step()
        compression_manager.on_after_optimizer_step()
        optimizer.zero_grad()

    # the end of an epoch
compression_manager.on_train_end()  # hook
# and of the script
""",
    "gradient accumulation": """
manager = prepare_compression(model, conf)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
manager.on_train_begin()  # hook
for index, (inputs, labels) in enumerate(loader):
    manager.on_step_begin(index)  # hook
    loss = criterion(model(inputs), labels) / 2
    loss.backward()
    if (index + 1) % 2 == 0:
        manager.on_before_optimizer_step()  # hook
        optimizer.step()
        manager.on_after_optimizer_step()  # hook
        optimizer.zero_grad()
manager.on_train_end()  # hook
""",
    "gradient scaler, or not": """
manager = prepare_compression(model, conf)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cpu", enabled=True)
use_amp = True
manager.on_train_begin()  # hook
for index, (inputs, labels) in enumerate(loader):
    manager.on_step_begin(index)  # hook
    loss = criterion(model(inputs), labels)
    if use_amp:
        scaler.scale(loss).backward()
        manager.on_before_optimizer_step()  # hook
        scaler.step(opt)
        manager.on_after_optimizer_step()  # hook
        scaler.update()
    else:
        loss.backward()
        manager.on_before_optimizer_step()  # hook
        opt.step()
        manager.on_after_optimizer_step()  # hook
    opt.zero_grad()
manager.on_train_end()  # hook
""",
    "accelerate": """
from accelerate import Accelerator
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
manager = prepare_compression(model, conf)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = accelerator.prepare(model, optimizer)
manager.on_train_begin()  # hook
for index, (inputs, labels) in enumerate(loader):
    manager.on_step_begin(index)  # hook
    with accelerator.accumulate(model):
        accelerator.backward(criterion(model(inputs), labels))
        if accelerator.sync_gradients:  # hook
            manager.on_before_optimizer_step()  # hook
        optimizer.step()
        if accelerator.sync_gradients:  # hook
            manager.on_after_optimizer_step()  # hook
        optimizer.zero_grad()
manager.on_train_end()  # hook
""",
    "hooks beside the loop": """
manager = prepare_compression(model, conf)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
manager.on_train_begin()  # hook
manager.on_epoch_begin(0)
for index, (inputs, labels) in enumerate(loader):
    manager.on_step_begin(index)
    criterion(model(inputs), labels).backward()
    manager.on_before_optimizer_step()
    optimizer.step()
    manager.on_after_optimizer_step()
    optimizer.zero_grad()
print("an epoch")
manager.on_epoch_end()
manager.on_train_end()  # hook
print(manager.report().sparsity)
""",
    "a class": """
class Training:
    def __init__(self, model):
        self.model = model
        self.manager = prepare_compression(model, conf)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def run(self):
        self.manager.on_train_begin()
        for index, (inputs, labels) in enumerate(loader):
            self.manager.on_step_begin(index)  # hook
            loss = criterion(self.model(inputs), labels)
            loss.backward()
            self.manager.on_before_optimizer_step()  # hook
            self.optimizer.step()
            self.manager.on_after_optimizer_step()  # hook
            self.optimizer.zero_grad()
        self.manager.on_train_end()  # hook

Training(model).run()
""",
    "a manager that may be None": """
manager = prepare_compression(model, conf) if len(loader) > 1 else None
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
if manager is not None:
    manager.on_train_begin()
for index, (inputs, labels) in enumerate(loader):
    if manager is not None:  # hook
        manager.on_step_begin(index)  # hook
    loss = criterion(model(inputs), labels)
    loss.backward()
    if manager is not None:
        manager.on_before_optimizer_step()
    optimizer.step()
    if manager is not None:  # hook
        manager.on_after_optimizer_step()  # hook
    optimizer.zero_grad()
if manager is not None:
    manager.on_train_end()
""",
    "a loop of an epoch, which another one calls": """
def train_epoch(manager, optimizer):
    for index, (inputs, labels) in enumerate(loader):
        manager.on_step_begin(index)
        loss = criterion(model(inputs), labels)
        loss.backward()
        manager.on_before_optimizer_step()  # hook
        optimizer.step()
        manager.on_after_optimizer_step()  # hook
        optimizer.zero_grad()

manager = prepare_compression(model, conf)
manager.on_train_begin()
for epoch in range(2):
    train_epoch(manager, torch.optim.SGD(model.parameters(), lr=0.1))
manager.on_train_end()
""",
    "a step in a function without a loop": """
def train_step(manager, optimizer, inputs, labels):
    loss = criterion(model(inputs), labels)
    loss.backward()
    manager.on_before_optimizer_step()
    optimizer.step()
    manager.on_after_optimizer_step()  # hook
    optimizer.zero_grad()

manager = prepare_compression(model, conf)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
manager.on_train_begin()
for index, (inputs, labels) in enumerate(loader):
    manager.on_step_begin(index)
    train_step(manager, optimizer, inputs, labels)
manager.on_train_end()
""",
}


def _without_hooks(text):
    return re.sub(r"^.*  # hook\n", "", text, flags=re.MULTILINE)


def _without_marks(text):
    return text.replace("  # hook\n", "\n")


def _weights(text):
    names = {"__name__": "__main__"}
    exec(compile(text, "script", "exec"), names)
    return [parameter.detach().clone() for parameter in names["model"].parameters()]


@pytest.mark.parametrize("name", LOOPS)
def test_hooks_come_back_where_they_were(name):
    by_hand = _without_marks(HEAD + LOOPS[name])
    before = _without_hooks(HEAD + LOOPS[name])
    assert before != by_hand
    migrated = migrate_source(before)
    assert migrated.text == by_hand
    assert migrated.findings == ()
    assert migrate_source(by_hand) == Migrated(by_hand, ())


@pytest.mark.parametrize("name", LOOPS)
def test_the_run_is_that_of_the_loop_written_by_hand(name):
    by_hand = _weights(_without_marks(HEAD + LOOPS[name]))
    migrated = _weights(migrate_source(_without_hooks(HEAD + LOOPS[name])).text)
    assert len(by_hand) == len(migrated) == 6
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(migrated, by_hand, strict=True))
    assert (by_hand[0] == 0).float().mean() >= 0.25  # something was pruned
