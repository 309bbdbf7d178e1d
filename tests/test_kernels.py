"""Masks of kernels: the same laid on as multiplied in, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from rnp_hub.errors import ModelError
from rnp_hub.kernels import kernel_masks, masked_kernels, scale_kernels
from tests.networks import SmallResNet, randomised


@pytest.fixture
def network() -> nn.Module:
    """Among its convolutions one that is depthwise."""
    body = SmallResNet(classes=4)
    body.stem = nn.Sequential(nn.Conv2d(3, 3, 3, 1, 1, groups=3), nn.Conv2d(3, 8, 1))
    return randomised(body).double()


@pytest.fixture
def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=generator)


def some_masks(module: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(ones.shape, generator=generator, dtype=torch.float64)
        for name, ones in kernel_masks(module).items()
    }


def test_each_convolution_has_a_mask_for_each_pair_of_channels(network: nn.Module) -> None:
    shapes = {name: tuple(mask.shape) for name, mask in kernel_masks(network).items()}
    assert shapes["stem.0"] == (3, 1)
    assert shapes["stem.1"] == (8, 3)
    assert len(shapes) == sum(isinstance(each, nn.Conv2d) for each in network.modules())
    assert all(bool((mask == 1).all()) for mask in kernel_masks(network).values())


def test_a_weight_that_is_computed_has_none() -> None:
    assert kernel_masks(parametrizations.weight_norm(nn.Conv2d(3, 4, 3))) == {}


def test_a_weight_of_two_layers_has_none() -> None:
    """It would be multiplied twice."""
    pair = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1))
    pair[1].weight = pair[0].weight
    assert list(kernel_masks(pair)) == ["2"]


def test_masks_of_another_architecture(network: nn.Module) -> None:
    masks = {"stem.1": torch.ones(8, 1)}
    sentence = r"`stem.1` has kernels of shape \(8, 3\) but their mask has shape \(8, 1\)"
    with pytest.raises(ModelError, match=sentence):
        scale_kernels(network, masks)
    with pytest.raises(ModelError, match=sentence), masked_kernels(network, masks):
        pass
    assert all(isinstance(each, nn.Parameter) for each in network.parameters())


def test_multiplied_in_is_what_was_laid_on(network: nn.Module, pictures: Tensor) -> None:
    masks, plain = some_masks(network), network(pictures)
    with masked_kernels(network, masks):
        laid = network(pictures)
    assert torch.equal(network(pictures), plain)
    scale_kernels(network, masks)
    assert torch.allclose(network(pictures), laid, rtol=0, atol=1e-12)
    assert not torch.allclose(plain, laid, atol=0.01)


def test_gradients_flow_into_masks_alone(network: nn.Module, pictures: Tensor) -> None:
    network.requires_grad_(False)
    masks = {name: mask.requires_grad_(True) for name, mask in some_masks(network).items()}
    with masked_kernels(network, masks):
        network(pictures).square().sum().backward()
    assert all(mask.grad is not None and bool(mask.grad.any()) for mask in masks.values())


def test_nothing_is_left_behind_whatever_happens(network: nn.Module) -> None:
    before = {name: each.clone() for name, each in network.state_dict().items()}
    with pytest.raises(RuntimeError), masked_kernels(network, some_masks(network)):
        raise RuntimeError
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], each) for name, each in before.items())
    assert all(isinstance(each, nn.Parameter) for each in network.parameters())
