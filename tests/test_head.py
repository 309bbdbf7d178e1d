"""The head of a network and the features that it reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rnp_hub.head import features, last_linear
from tests.networks import SmallResNet


def test_the_head_is_the_last_linear_layer() -> None:
    network = SmallResNet()
    assert last_linear(network) is network.head
    assert last_linear(nn.Conv2d(3, 4, 1)) is None


def test_features_are_what_it_reads() -> None:
    network, pictures = SmallResNet().eval(), torch.rand(2, 3, 16, 16)
    with features(network.head) as read:
        first = network(pictures)
        network(pictures[:1])
    assert [tuple(each.shape) for each in read] == [(2, 16), (1, 16)]
    assert torch.equal(network.head(read[0]), first)
    network(pictures)
    assert len(read) == 2, "nothing is read after the block"


@pytest.mark.parametrize("network", [nn.Conv2d(3, 4, 1)])
def test_where_there_is_no_head_there_are_none(network: nn.Module) -> None:
    with features(last_linear(network)) as read:
        network(torch.rand(1, 3, 8, 8))
    assert read == []
