"""Models that the tests of the extension quantize."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from inc_torch.ipex import IpexProgram, deployed, int8_operations, withdraw


class Residual(nn.Module):
    """Linear layers, a normalization and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.act = nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU()
        self.fc2, self.head = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.fc1(x))
        return self.head(y + self.act(self.fc2(self.norm(y))))


class Images(nn.Module):
    """Convolutions, a normalization that is folded, an addition, and pools that hand their codes on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.shrink = nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2)
        self.mean, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv1(x)))
        return self.head(self.mean(self.shrink(self.conv2(y) + y)).flatten(1))


class Blocks(nn.Module):
    """An addition of what was made two layers before, as in a residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(size, 8, 3, padding=1) for size in (3, 8, 8))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.stem(x))
        return self.head(torch.relu(self.second(torch.relu(self.first(y))) + y))


class Attention(nn.Module):
    """Takes a dict or names, returns a dict, and multiplies matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 16)
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.out = nn.Linear(16, 16)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None, *, scale: float = 0.25) -> dict[str, object]:
        x = self.tokens(ids)
        scores = torch.matmul(self.query(x), self.key(x).transpose(1, 2)) * scale
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, -1e4)
        mixed = torch.matmul(F.softmax(scores, -1), self.value(x))
        return {"out": self.out(mixed), "scores": (scores, None)}


def residual() -> Residual:
    torch.manual_seed(0)
    return Residual().eval()


def images() -> Images:
    torch.manual_seed(0)
    model = Images().eval()
    model.norm.running_var.uniform_(0.5, 2)
    model.norm.running_mean.uniform_(-0.5, 0.5)
    nn.init.uniform_(model.norm.weight, -1, 1)  # negative ones turn codes around
    return model


def blocks() -> Blocks:
    torch.manual_seed(0)
    return Blocks().eval()


def attention() -> Attention:
    torch.manual_seed(0)
    return Attention().eval()


def rows(count: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 16, generator=generator) for _ in range(count)]


def pictures(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 16, 16, generator=generator) for _ in range(count)]


def sentences(count: int = 4) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, 20, (2, 6), generator=generator) for _ in range(count)]
    return [{"ids": one, "mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])} for one in ids]


def program_of(model: nn.Module) -> IpexProgram:
    program = deployed(model)
    assert program is not None
    return program


def int8_names(model: nn.Module) -> list[str]:
    """What computes in int8, by the summary that the program was made by."""
    return [operation.name for operation in int8_operations(program_of(model).summary)]


def int8_kernels(model: nn.Module, *args: object, **kwargs: object) -> int:
    """How many fused kernels of the last run read int8 weights, in the graph that was really executed."""
    for _ in range(3):
        model(*args, **kwargs)
    groups = str(torch.jit.last_executed_optimized_graph()).split("with ipex::LlgaFusionGroup")[1:]
    return sum('dequantize[qtype="per_channel"' in group for group in groups)


def natively(model: nn.Module, *args: object, **kwargs: object) -> object:
    """What the same int8 modules compute on the default backend."""
    program = program_of(model)
    withdraw(model)
    try:
        return model(*args, **kwargs)
    finally:
        model.__dict__["forward"] = program
