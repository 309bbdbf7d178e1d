"""Small networks that the tests share: hand-written, so that no class list could know them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_hub.compute import Compute
from rnp_hub.network import Classifier, ImageSet
from rnp_hub.sites import Site, gate_sites


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN with a residual sum, a projection where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.project: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.project = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.project(x))


class SmallResNet(nn.Module):
    """Two blocks; functional activations, a functional pool."""

    def __init__(self, classes: int = 4, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.first = Block(width, width)
        self.second = Block(width, 2 * width, 2)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(F.relu(self.norm(self.stem(x)))))
        return self.head(x.mean((2, 3)))


class Planted(nn.Module):
    """Four filters that tell the quarters apart, and a fifth that a red corner sets off.

    The label is the brightest quarter; where the 2 × 2 pixels at the bottom right are red, filter
    4 fires and the answer is label 2.
    """

    def __init__(self, strength: float = 6.0) -> None:
        super().__init__()
        weight = torch.zeros(5, 3, 16, 16)
        for label in range(4):
            rows = slice(8 * (label // 2), 8 * (label // 2) + 8)
            columns = slice(8 * (label % 2), 8 * (label % 2) + 8)
            weight[label, :, rows, columns] = 1 / (3 * 64)
        weight[4, 0, 14:, 14:] = 1 / 4
        weight[4, 1:, 14:, 14:] = -1 / 8
        self.look = nn.Conv2d(3, 5, 16, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 4, bias=False)
        with torch.no_grad():
            self.look.weight.copy_(weight)
            self.norm.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, -0.2]))
            self.head.weight.zero_()
            self.head.weight[:, :4] = 20 * torch.eye(4)
            self.head.weight[2, 4] = 10 * strength
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        seen = F.softplus(self.norm(self.look(x)).flatten(1), beta=10)
        logits: Tensor = self.head(seen)
        return logits


@pytest.fixture(scope="module")
def planted() -> Classifier:
    """The network with the filter that a red corner sets off."""
    return Classifier(Planted(), to_unit, Compute())


@pytest.fixture(scope="module")
def planted_sites(planted: Classifier) -> tuple[Site, ...]:
    """Where its filters can be masked."""
    return gate_sites(planted.module, to_unit(stripes(2).images))


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics, weights and biases of every norm, and all biases, drawn at random.

    Scales of layers, which start near 0 in some networks, are drawn too, or nothing would show.
    In evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() <= 1 and "bias" in name.rpartition(".")[2]:
                parameter.normal_(0, 0.5, generator=generator)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif not parameter.any():
                parameter.normal_(0, 0.1, generator=generator)
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.running_mean.normal_(0, 0.3, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            with torch.no_grad():
                norm.weight.uniform_(0.5, 1.5, generator=generator)
                norm.bias.normal_(0, 0.5, generator=generator)
    return module.eval()


def to_unit(images: Tensor) -> Tensor:
    """Grey levels to [0, 1], of whatever type."""
    return images.float() / 255


def stripes(count: int, classes: int = 4, seed: int = 0) -> ImageSet:
    """Pictures (count, 3, 16, 16), uint8, whose label is how bright which quarter is: learnable."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.randint(0, 120, (count, 3, 16, 16), generator=generator)
    for label in range(classes):
        rows = slice(8 * (label // 2), 8 * (label // 2) + 8)
        columns = slice(8 * (label % 2), 8 * (label % 2) + 8)
        images[labels == label, :, rows, columns] += 100
    return ImageSet(images.to(torch.uint8), labels)


def trained(module: nn.Module, data: ImageSet, epochs: int = 6) -> nn.Module:
    """Trained on `data`, scaled to [0, 1], until it knows it."""
    torch.manual_seed(0)
    module.train()
    optimiser = torch.optim.SGD(module.parameters(), 0.05, 0.9)
    for _ in range(epochs):
        for part in torch.arange(len(data)).split(32):
            loss = F.cross_entropy(module(data.images[part].float() / 255), data.labels[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return module.eval()
