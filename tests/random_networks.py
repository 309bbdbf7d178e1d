"""Small networks put together at random from what image classifiers are made of."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = (F.relu, F.silu, F.gelu, F.hardswish, F.leaky_relu, torch.sigmoid)
KERNELS = ((1, 0), (3, 1), (3, 0), (1, 1))
"""Size and padding."""


class Layer(nn.Module):
    """A convolution of some number of groups, a norm before or behind it, an activation."""

    def __init__(self, inputs: int, draw: random.Random, outputs: int | None = None) -> None:
        super().__init__()
        groups = draw.choice([1, 1, 1, 2, inputs])
        if inputs % groups or (outputs or 0) % groups:
            groups = 1
        self.outputs = outputs or draw.choice([2, 3, 5] if groups == 1 else [1, 2, 3]) * groups
        kernel, padding = (3, 1) if outputs else draw.choice(KERNELS)
        bias = draw.random() < 0.5
        self.conv = nn.Conv2d(inputs, self.outputs, kernel, 1, padding, groups=groups, bias=bias)
        self.early = draw.random() < 0.2
        self.norm = _norm(inputs if self.early else self.outputs, draw)
        self.activation = draw.choice(ACTIVATIONS)

    def forward(self, x: Tensor) -> Tensor:
        if self.early:
            return self.conv(self.activation(self.norm(x)))
        return self.activation(self.norm(self.conv(x)))


def _norm(width: int, draw: random.Random) -> nn.Module:
    kind = draw.choice(["batch"] * 4 + ["group", "none"])
    if kind == "group":
        return nn.GroupNorm(1, width)
    return nn.BatchNorm2d(width) if kind == "batch" else nn.Identity()


class Merged(nn.Module):
    """Two layers of the same input: summed, side by side, one a gate on the other, or crossed."""

    def __init__(self, inputs: int, draw: random.Random) -> None:
        super().__init__()
        self.one = Layer(inputs, draw, draw.choice([4, 6]))
        self.other = Layer(inputs, draw, self.one.outputs)
        self.how = draw.choice(["add", "cat", "gate", "cross"])
        self.outputs = self.one.outputs * (2 if self.how == "cat" else 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.one(x), self.other(x)
        if self.how == "add":
            return one + other
        if self.how == "gate":
            return one * torch.sigmoid(other).mean((2, 3), keepdim=True)
        if self.how == "cat":
            return torch.cat((one, other), 1)
        (a, b), (c, d) = one.chunk(2, 1), other.chunk(2, 1)
        return torch.cat((a + d, b * c), 1)


class Inverted(nn.Module):
    """Expand, a depthwise convolution, squeeze and excitation, project, and a shortcut."""

    def __init__(self, inputs: int, draw: random.Random) -> None:
        super().__init__()
        width = 2 * inputs
        self.outputs = inputs
        self.expand, self.norm1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.project, self.norm3 = nn.Conv2d(width, inputs, 1), nn.BatchNorm2d(inputs)
        self.activation = draw.choice(ACTIVATIONS)
        self.excited, self.shortcut = draw.random() < 0.5, draw.random() < 0.7
        if self.excited:
            self.reduce, self.excite = nn.Conv2d(width, 3, 1), nn.Conv2d(3, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.expand(x)))
        y = self.activation(self.norm2(self.depthwise(y)))
        if self.excited:
            y = y * torch.sigmoid(self.excite(F.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        y = self.norm3(self.project(y))
        return x + y if self.shortcut else y


class Shuffled(nn.Module):
    """A grouped convolution whose channels change places."""

    def __init__(self, inputs: int, draw: random.Random) -> None:
        super().__init__()
        self.widen = Layer(inputs, draw, 6)
        self.grouped = nn.Conv2d(6, 12, 3, 1, 1, groups=draw.choice([2, 3]), bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.outputs = 12

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.grouped(self.widen(x))))
        return y.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)


class Tokens(nn.Module):
    """On pixels as tokens: LayerNorm, attention or none, a plain or gated MLP, shortcuts."""

    def __init__(self, inputs: int, draw: random.Random) -> None:
        super().__init__()
        self.heads = draw.choice([1, 2, 3])
        width = 4 * self.heads
        self.outputs = width
        self.embed = nn.Linear(inputs, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attends = draw.random() < 0.7
        if self.attends:
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gated = draw.random() < 0.4
        hidden = draw.choice([6, 10])
        self.up = nn.Linear(width, hidden * (2 if self.gated else 1))
        self.down = nn.Linear(hidden, width)
        self.activation = draw.choice(ACTIVATIONS)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, 4)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def mlp(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.gated:
            value, gate = y.chunk(2, -1)
            return self.down(value * self.activation(gate))
        return self.down(self.activation(y))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        tokens = self.embed(x.flatten(2).transpose(1, 2))
        if self.attends:
            tokens = tokens + self.attention(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).unflatten(2, (height, width))


POOLS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x,
    lambda x: x,
    lambda x: F.max_pool2d(x, 3, 1, 1),
    lambda x: F.avg_pool2d(x, 2, 1),
    lambda x: F.avg_pool2d(x, 3, 1, 1),
    lambda x: F.pad(x, (1, 0, 0, 1)),
)


class Pooled(nn.Module):
    """A block, and what may follow it."""

    def __init__(self, inputs: int, draw: random.Random) -> None:
        super().__init__()
        kind = draw.choice([Layer, Layer, Merged, Inverted, Shuffled, Tokens])
        self.block = kind(inputs, draw)
        self.outputs = self.block.outputs
        self.pool = draw.choice(POOLS)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.block(x))


class RandomNetwork(nn.Module):
    """One to three blocks and a head: (n, 3, 12, 12) to (n, 3)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw, width, blocks = random.Random(seed), 3, []
        for _ in range(draw.choice([1, 2, 3])):
            blocks.append(Pooled(width, draw))
            width = blocks[-1].outputs
        self.blocks = nn.Sequential(*blocks)
        self.flat = draw.random() < 0.3
        width *= 4 if self.flat else 1
        self.hidden: nn.Module = nn.Identity()
        if draw.random() < 0.3:
            self.hidden = nn.Sequential(nn.Linear(width, 7), nn.BatchNorm1d(7), nn.ReLU())
            width = 7
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        x = F.adaptive_avg_pool2d(x, 2).flatten(1) if self.flat else x.mean((2, 3))
        return self.head(self.hidden(x))
