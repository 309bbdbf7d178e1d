"""The heads of a network and the features that they read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rnp_hub.head import features, heads
from rnp_hub.network import Classifier
from tests.networks import SmallResNet

PICTURES = torch.randint(
    0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


class Body(nn.Module):
    """Four classes; what comes after the first convolution is up to a test."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.last: nn.Module = nn.Linear(4, 4)
        self.beside = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.body(x).mean((2, 3)))

    def answer(self, pooled: Tensor) -> Tensor:
        raise NotImplementedError


class Convolutional(Body):
    """The head is a convolution of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, 4, 1)

    def answer(self, pooled: Tensor) -> Tensor:
        return self.last(pooled[:, :, None, None]).flatten(1)


class TwoHeaded(Body):
    """As of networks that were distilled."""

    def answer(self, pooled: Tensor) -> Tensor:
        return (self.last(pooled) + self.beside(pooled)) / 2


class TokensFirst(Body):
    """Its linear layer reads tokens before pictures, and logits are no layer's output."""

    def answer(self, pooled: Tensor) -> Tensor:
        return self.last(pooled.expand(7, *pooled.shape)).mean(0)


def found(network: nn.Module) -> list[str]:
    names = {part: name for name, part in network.named_modules()}
    return [names[part] for part in heads(Classifier(network.eval()), PICTURES)]


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (SmallResNet, ["head"]),
        (Convolutional, ["last"]),
        (TwoHeaded, ["last", "beside"]),
        (TokensFirst, []),
    ],
)
def test_heads_give_one_number_a_class(network: type[nn.Module], expected: list[str]) -> None:
    assert found(network()) == expected


def test_features_are_what_heads_read() -> None:
    classifier = Classifier(SmallResNet().eval())
    (head,) = heads(classifier, PICTURES)
    with features([head]) as read:
        first = classifier.logits(PICTURES)
        classifier.logits(PICTURES[:1])
    assert [tuple(each.shape) for each in read] == [(3, 16), (1, 16)]
    assert torch.equal(head(read[0]), first)
    classifier.logits(PICTURES)
    assert len(read) == 2, "nothing is read after the block"


def test_without_heads_there_are_no_features() -> None:
    with features([]) as read:
        SmallResNet()(torch.rand(1, 3, 16, 16))
    assert read == []
