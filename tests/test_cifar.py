"""The altered networks of CIFAR repositories, as they lie on the Hub: a pickle and a plain name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from rnp_hub.errors import ModelError
from rnp_hub.export import write_model
from rnp_hub.pull import pull

SAYS = {
    "num_classes": 10,
    "input_size": [3, 32, 32],
    "pool_size": [4, 4],
    "crop_pct": 1,
    "interpolation": "bilinear",
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.2023, 0.1994, 0.201],
    "fixed_input_size": False,
}

THIN: dict[str, dict[str, Any]] = {
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    "resnet50": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    "resnet50d": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    "vgg11_bn": {"mlp_ratio": 0.01},
    "densenet121": {"block_config": [1, 1, 1, 1]},
}
"""Arguments that make the networks small where it does not matter."""


def small_resnet(name: str) -> nn.Module:
    network = timm.create_model(name, **THIN[name])
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    network.fc = nn.Linear(network.fc.in_features, 10)
    return network


def small_vgg(name: str) -> nn.Module:
    network = timm.create_model(name, **THIN[name])
    network.pre_logits = nn.Identity()
    network.head.fc = nn.Linear(512, 10)
    return network


def small_densenet(name: str) -> nn.Module:
    network = timm.create_model(name, growth_rate=12, **THIN[name])
    network.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    network.features.norm0 = nn.Identity()
    network.features.pool0 = nn.Identity()
    network.classifier = nn.Linear(network.classifier.in_features, 10)
    return network


ALTERED = {
    "resnet18": (small_resnet, "3 × 3 first convolution, no max-pooling"),
    "resnet50": (small_resnet, "3 × 3 first convolution, no max-pooling"),
    "vgg11_bn": (small_vgg, "no hidden layers before the classifier"),
    "densenet121": (
        small_densenet,
        "3 × 3 first convolution, neither norm nor pooling behind it",
    ),
}


def on_the_hub(folder: Path, name: str, network: nn.Module) -> Path:
    """A repository of that family: everything twice in the config, the weights a pickle."""
    folder.mkdir()
    config = {"architecture": name, "model_args": THIN[name], **SAYS, "pretrained_cfg": SAYS}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    return folder


def answers(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network(torch.randn(2, 3, 32, 32, generator=generator()))
    return found


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", ALTERED)
def test_altered_networks_are_recognised(name: str, tmp_path: Path) -> None:
    make, change = ALTERED[name]
    torch.manual_seed(0)
    network = make(name).eval()
    model = pull(str(on_the_hub(tmp_path / "model", name, network)))
    assert (model.architecture.name, model.architecture.stem) == (name, "cifar")
    assert model.notes[1] == (
        f"the weights have the CIFAR stem ({change}) although config.json claims a plain {name}; "
        "it was applied"
    )
    assert torch.equal(answers(model.module), answers(network))
    assert model.target.preprocess.std == (0.2023, 0.1994, 0.201)

    probe = torch.randn(3, 3, 32, 32, generator=generator())
    written = write_model(tmp_path / "out", model, model.module, model.architecture, probe).path
    again = pull(str(written))
    assert (again.architecture, again.notes) == (model.architecture, ())
    assert torch.equal(answers(again.module), answers(network))
    # timm alone has no words for it, and says so instead of guessing.
    with pytest.raises(RuntimeError, match="loading state_dict"):
        timm.create_model(f"local-dir:{written}", pretrained=True)


@pytest.mark.parametrize(
    ("name", "more"),
    [("resnet18", {}), ("resnet50d", {}), ("vgg11_bn", {}), ("densenet121", {"growth_rate": 12})],
)
def test_plain_networks_are_left_alone(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    arguments = THIN[name] | more
    network = timm.create_model(name, num_classes=10, **arguments)
    folder = on_the_hub(tmp_path / "model", name, network)
    config = json.loads((folder / "config.json").read_text()) | {"model_args": arguments}
    (folder / "config.json").write_text(json.dumps(config))
    model = pull(str(folder))
    assert (model.architecture.stem, len(model.notes)) == (None, 1)
    assert torch.equal(answers(model.module), answers(network.eval()))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda network: setattr(network, "conv1", nn.Conv2d(3, 32, 3)),
        lambda network: setattr(network, "conv1", nn.Conv2d(3, 64, 5)),
    ],
)
def test_other_alterations_are_refused(spoil: Callable[[nn.Module], None], tmp_path: Path) -> None:
    network = small_resnet("resnet18")
    spoil(network)
    with pytest.raises(ModelError, match="`conv1"):
        pull(str(on_the_hub(tmp_path / "model", "resnet18", network)))
