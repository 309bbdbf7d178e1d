"""Gates: the reference's arithmetic, and nothing left behind."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnp_hub.errors import ModelError, NoGateSitesError
from rnp_hub.hooks import gate_sites, gates, silence
from tests.networks import SmallResNet, randomised


def hooks_of(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def random_masks(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        site.name: torch.rand(site.filters, generator=generator, dtype=torch.float64)
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

    def norm(name: str, x: Tensor) -> Tensor:
        return reference_norm(module.get_submodule(name), x, masks[name])

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
    assert fired == dict.fromkeys(masks, 1)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenetv2_100", "densenet121", "seresnet50", "test_byobnet", "test_vit3"],
)
def test_gate_at_zero_equals_silenced_weights_in_timm(name: str) -> None:
    """Also where BatchNormAct2d applies its activation inside `forward`."""
    module = timm.create_model(name, num_classes=5)
    if not any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
        with pytest.raises(NoGateSitesError, match="no filter to mask"):
            gate_sites(module)
        return
    module = randomised(module).double()
    sites = gate_sites(module)
    silenced = {site.name: tuple(range(0, site.filters, 3)) for site in sites}
    masks = {site.name: torch.ones(site.filters, dtype=torch.float64) for site in sites}
    for site, indices in silenced.items():
        masks[site][list(indices)] = 0
    x = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        with gates(module, masks) as fired:
            gated = module(x)
        untouched = module(x)
        silence(module, silenced)
        dense = module(x)
    assert min(fired.values()) >= 1
    assert torch.allclose(gated, dense, rtol=0, atol=1e-9 * float(dense.abs().max()))
    assert not torch.allclose(gated, untouched)


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
    ("masks", "sentence"),
    [
        ({"first.bn9": torch.ones(8)}, "no module `first.bn9`"),
        ({"stem": torch.ones(8)}, "`stem` is a Conv2d and cannot be gated"),
        ({"norm": torch.ones(8), "first.bn1": torch.ones(5)}, "`first.bn1` has 8 channels"),
    ],
)
def test_wrong_masks_are_refused_and_leave_no_hook(masks: dict[str, Tensor], sentence: str) -> None:
    module = SmallResNet()
    with pytest.raises(ModelError, match=sentence), gates(module, masks):
        pass
    wrong = next(iter(masks))
    if wrong != "norm":  # a wrong name is refused where it is silenced too
        with pytest.raises(ModelError, match=sentence):
            silence(module, {wrong: (0,)})
    assert hooks_of(module) == 0


def test_a_gradient_reaches_the_mask() -> None:
    module = randomised(SmallResNet()).requires_grad_(False)
    mask = torch.ones(8, requires_grad=True)
    with gates(module, {"norm": mask}):
        module(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert mask.grad is not None
    assert int((mask.grad != 0).sum()) >= 6  # a channel may be cut off by its ReLU
