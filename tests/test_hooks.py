"""Gates: the reference's arithmetic, and nothing left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnp_hub.errors import ModelError
from rnp_hub.hooks import gates, silence
from rnp_hub.sites import Site, gate_sites
from tests.networks import SmallResNet, randomised


def hooks_of(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def random_masks(module: nn.Module, seed: int = 0) -> dict[Site, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        site: torch.rand(site.filters, generator=generator, dtype=torch.float64)
        for site in gate_sites(module)
    }


def reference_norm(norm: nn.BatchNorm2d, x: Tensor, mask: Tensor) -> Tensor:
    """Written out from the paper: the mask multiplies the weight, the bias stays."""
    shape = (1, -1, 1, 1)
    scale = (norm.running_var + norm.eps).sqrt().view(shape)
    normalised = (x - norm.running_mean.view(shape)) / scale
    return (mask * norm.weight).view(shape) * normalised + norm.bias.view(shape)


def test_gate_equals_the_reference_formula() -> None:
    module = randomised(SmallResNet()).double()
    masks, x = random_masks(module), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    by_name = {site.name: mask for site, mask in masks.items()}

    def norm(name: str, x: Tensor) -> Tensor:
        return reference_norm(module.get_submodule(name), x, by_name[name])

    def block(name: str, x: Tensor) -> Tensor:
        part = module.get_submodule(name)
        out = norm(f"{name}.bn2", part.conv2(F.relu(norm(f"{name}.bn1", part.conv1(x)))))
        skip = x
        if isinstance(part.project, nn.Sequential):
            skip = norm(f"{name}.project.1", part.project[0](x))
        return F.relu(out + skip)

    expected = module.head(
        block("second", block("first", F.relu(norm("norm", module.stem(x))))).mean((2, 3))
    )
    with gates(module, masks) as fired:
        found = module(x)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert fired == dict.fromkeys(by_name, 1)


def test_gates_leave_nothing_behind_after_an_exception() -> None:
    module = randomised(SmallResNet())
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="mat1 and mat2"), gates(module, random_masks(module)):
        module.head(torch.zeros(2, 3))
    with gates(module, random_masks(module)):
        assert hooks_of(module) == 6
    assert hooks_of(module) == 0
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("site", "length", "sentence"),
    [
        (Site("first.bn9", 8), 8, "no module `first.bn9`"),
        (Site("stem", 8), 8, "`stem` is a Conv2d and cannot be gated"),
        (Site("norm", 8, "output"), 8, "`norm` is a BatchNorm2d and cannot be gated"),
        (Site("first.bn1", 5), 5, "`first.bn1` has 8 channels where 5 filters"),
        (Site("head", 3, "input"), 3, "`head` has 16 channels where 3 filters"),
        (Site("first.bn1", 8), 5, "`first.bn1` has 8 filters but the mask has shape"),
    ],
)
def test_wrong_masks_are_refused_and_leave_no_hook(site: Site, length: int, sentence: str) -> None:
    module = SmallResNet()
    masks = {Site("norm", 8): torch.ones(8), site: torch.ones(length)}
    with pytest.raises(ModelError, match=sentence), gates(module, masks):
        pass
    if length == site.filters:  # a wrong site is refused where it is silenced too
        with pytest.raises(ModelError, match=sentence):
            silence(module, {site: (0,)})
    assert hooks_of(module) == 0


def test_a_gradient_reaches_the_mask() -> None:
    module = randomised(SmallResNet()).requires_grad_(False)
    mask = torch.ones(8, requires_grad=True)
    with gates(module, {Site("norm", 8): mask}):
        module(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert mask.grad is not None
    assert int((mask.grad != 0).sum()) >= 6  # a channel may be cut off by its ReLU
