"""Distillation from a teacher, and from a model into itself with hooks on the manager."""

from __future__ import annotations

import torch
from neural_compressor.config import (
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    SelfKnowledgeDistillationLossConfig,
)
from neural_compressor.training import prepare_compression

torch.manual_seed(0)
x, y = torch.randn(4, 8), torch.randint(0, 3, (4,))
student, teacher = torch.nn.Linear(8, 3), torch.nn.Linear(8, 3)
criterion = KnowledgeDistillationLossConfig(temperature=2.0, loss_types=["CE", "KL"], loss_weights=[0.0, 1.0])
manager = prepare_compression(student, DistillationConfig(teacher, criterion))
manager.callbacks.on_train_begin()
optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
losses = []
for step in range(30):
    manager.callbacks.on_step_begin(step)
    output = student(x)
    loss = manager.callbacks.on_after_compute_loss(x, output, torch.nn.functional.cross_entropy(output, y))
    losses.append(float(loss))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    manager.callbacks.on_step_end()
manager.callbacks.on_train_end()
print("nearer to the teacher:", losses[-1] < losses[0])

model = torch.nn.Linear(8, 3)
conf = DistillationConfig(teacher_model=model, criterion=SelfKnowledgeDistillationLossConfig())
manager = prepare_compression(model, conf)
manager.on_train_begin()
output = model(x)
given = torch.nn.functional.cross_entropy(output, y)
loss = manager.on_after_compute_loss(x, output, given)
manager.on_train_end()
print("unchanged:", bool(loss == given) and loss.requires_grad)
