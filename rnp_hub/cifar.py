"""Networks for 32 × 32 pictures as they lie on the Hub: altered, under the name of the plain one.

Their `config.json` claims an architecture of timm, while the code that trained them replaced the
parts that shrink a picture. Such parts have no weights, so what was replaced is told by the shapes
of those that were replaced along with them, and proved by the accuracy on clean pictures.

| architecture | how it is told | what goes with it |
|---|---|---|
| ResNets and others | first convolution 3 × 3 | stride 1, no max-pooling |
| DenseNets | that, and no `norm0` | growth half its channels, neither norm nor pooling |
| VGGs | no hidden layers before the classifier | it reads the last convolution |

Source: the `detectors` package (github.com/edadaltocg/detectors), whose networks these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rnp_hub.errors import ModelError
from rnp_hub.network import put

NAME = "cifar"
"""Of the recipe, where a `config.json` says `stem`."""

VGG_HIDDEN = 7 * 7 * 512 * 4096 + 4096 * 4096 + 2 * 4096
"""Values in the hidden layers of a VGG."""

_DENSE_STEM, _DENSE_NORM, _DENSE_POOL = "features.conv0", "features.norm0", "features.pool0"


def arguments(name: str, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What must be said to timm besides the architecture's name."""
    stored = weights.get(f"{_DENSE_STEM}.weight")
    if not name.startswith("densenet") or stored is None or not _without_norm(weights):
        return {}
    return {"growth_rate": stored.shape[0] // 2}  # a DenseNet begins with twice its growth


def possible(name: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether weights of this architecture may be altered; cheap, and never wrongly `False`."""
    import timm

    first = getattr(timm.get_pretrained_cfg(name), "first_conv", None)
    stored = weights.get(f"{first}.weight")
    if name.startswith("vgg") or not isinstance(first, str) or stored is None:
        return True
    return stored.shape[2:] == (3, 3)


def lacking(name: str) -> int:
    """How many values an altered network lacks that the plain one is built with."""
    return VGG_HIDDEN if name.startswith("vgg") else 0


def recognised(module: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether the weights are those of the altered network where `module` is the plain one."""
    if _hidden_layers(module) is not None:
        return not any(name.startswith("pre_logits.") for name in weights)
    found = _first_convolution(module)
    if found is None:
        return False
    name, convolution = found
    stored = weights.get(f"{name}.weight")
    if name == _DENSE_STEM and not _without_norm(weights):
        return False
    if stored is None or stored.dim() != 4 or max(convolution.kernel_size) <= 3:
        return False
    return stored.shape[:2] == convolution.weight.shape[:2] and stored.shape[2:] == (3, 3)


def describe(module: nn.Module) -> str:
    """What the recipe changes in a plain network, for a person."""
    if _hidden_layers(module) is not None:
        return "no hidden layers before the classifier"
    if _has(module, _DENSE_NORM):
        return "3 × 3 first convolution, neither norm nor pooling behind it"
    return "3 × 3 first convolution, no max-pooling"


def apply(module: nn.Module, classes: int) -> None:
    """Alter a plain network, in place, weights at random where a layer is another.

    Raises:
        ModelError: the network has no convolution.
    """
    if (inputs := _hidden_layers(module)) is not None:
        put(module, "pre_logits", nn.Identity())
        put(module, "head.fc", nn.Linear(inputs, classes))
        return
    found = _first_convolution(module)
    if found is None:
        raise ModelError("the network has no convolution to give a CIFAR stem")
    name, old = found
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, 1, 1, bias=old.bias is not None)
    put(module, name, new)
    named = module.named_modules()
    pool = next((n for n, part in named if isinstance(part, nn.MaxPool2d)), None)
    for gone in (pool, *((_DENSE_NORM, _DENSE_POOL) if name == _DENSE_STEM else ())):
        if gone is not None:
            put(module, gone, nn.Identity())


def _first_convolution(module: nn.Module) -> tuple[str, nn.Conv2d] | None:
    named = module.named_modules()
    return next(((name, part) for name, part in named if isinstance(part, nn.Conv2d)), None)


def _hidden_layers(module: nn.Module) -> int | None:
    """Channels that enter a VGG's hidden layers; `None` where there are none."""
    first = getattr(getattr(module, "pre_logits", None), "fc1", None)
    return first.in_channels if isinstance(first, nn.Conv2d) else None


def _without_norm(weights: Mapping[str, Tensor]) -> bool:
    return not any(name.startswith(f"{_DENSE_NORM}.") for name in weights)


def _has(module: nn.Module, name: str) -> bool:
    return any(each == name for each, _ in module.named_modules())
