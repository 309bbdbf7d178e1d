"""A configuration of a hundred bytes cannot fill the memory or the day."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from rnp_hub import limits
from rnp_hub.architecture import Architecture
from rnp_hub.errors import ModelError
from rnp_hub.limits import Allowance, TooLargeError, check_arguments, within
from rnp_hub.pull import pull
from rnp_hub.weights import read_pickle
from tests.models import ARGS, CONFIG, trained_network, write_folder

SMALL = {"weight": torch.zeros(1000)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"channels": [8, 10**9]}, "the number 1000000000"),
        ({"a": {"b": [[-(10**30)]]}}, "the number of many digits"),
        ({"rate": float("nan")}, "the number nan"),
        ({"layers": [1] * 5000}, "more than 4,096 values"),
    ],
)
def test_arguments_that_no_network_has(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_arguments(arguments, "model_args of config.json")
    assert str(caught.value).startswith("model_args of config.json holds ")
    assert words in str(caught.value)


def test_arguments_that_networks_have() -> None:
    check_arguments(
        {"channels": [64] * 1000, "act": "relu", "rate": 0.1, "bias": True, "x": None}, "it"
    )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_giant_patch14_224", {}),
        ("resnet18", {"channels": [65536] * 4}),
        ("resnet18", {"layers": [65536] * 4, "channels": [1] * 4}),
        ("vit_tiny_patch16_224", {"img_size": 65536}),
        ("vit_tiny_patch16_224", {"depth": 65536, "embed_dim": 3, "num_heads": 1}),
        ("swinv2_tiny_window16_256", {"window_size": 512}),
        ("convnext_tiny", {"depths": [65536] * 4, "dims": [1] * 4}),
    ],
)
def test_a_network_that_its_weights_cannot_fill_is_not_built(
    name: str, arguments: dict[str, Any]
) -> None:
    """Refused within two seconds of the processor, and with no tensor of the size asked for."""
    stored = {str(n): torch.zeros(3000) for n in range(122)}  # as a small ResNet-18
    begun = time.process_time()
    with pytest.raises(ModelError, match="many times larger than the weights it is to be filled"):
        Architecture(name, 10, arguments).fill(stored, "it")
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "hiera_tiny_224"]
)
def test_a_network_is_built_within_what_its_weights_allow(name: str) -> None:
    """Also where they are half as large, as after slimming."""
    weights = timm.create_model(name, num_classes=10).state_dict()
    halved = Allowance.of(weights)
    halved.values = (halved.values - limits.ROOM) // 2 + limits.ROOM
    left = Architecture(name, 10).build(halved)
    assert {key: value.shape for key, value in left.state_dict().items()} == {
        key: value.shape for key, value in weights.items()
    }


@pytest.mark.parametrize("name", ["vgg11_bn", "vgg13_bn"])
def test_the_smallest_vggs_for_cifar_are_built(name: str) -> None:
    """What timm builds first has fourteen times their weights, most in layers that they lack."""
    with torch.device("meta"):
        features = timm.create_model(name, num_classes=10).features.state_dict()
    shapes = {f"features.{key}": each.shape for key, each in features.items()}
    shapes |= {"head.fc.weight": torch.Size([10, 512]), "head.fc.bias": torch.Size([10])}
    weights = {key: torch.ones(shape) for key, shape in shapes.items()}
    found = Architecture(name, 10).altered_as(weights)
    assert found is not None
    assert "no hidden layers before the classifier" in found[1]
    filled = found[0].fill(weights, "it").state_dict()
    assert {key: each.shape for key, each in filled.items()} == shapes
    assert all(each.unique().tolist() == [1] for each in filled.values())


def test_what_is_counted() -> None:
    allowance = Allowance(values=100, calls=10)
    with within(allowance):
        made = torch.zeros(5, 10)
        made.fill_(2.0)
        made.view(10, 5).expand(3, 10, 5)  # shows the same fifty, three times over
    assert (allowance.values, allowance.calls) == (50, 6)
    with pytest.raises(TooLargeError), within(allowance):
        torch.zeros(10**15)  # which no machine could make


def test_a_stretched_number_counts_as_one() -> None:
    stretched = torch.zeros(1).expand(10**6)
    assert Allowance.of({"a": stretched}).values == limits.SHARE + limits.ROOM


def test_a_pickle_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**7))
    with pytest.raises(ModelError, match="would unpack to 10,000,000 bytes"):
        read_pickle(file)


def test_weights_beyond_all_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "model", trained_network(None))
    monkeypatch.setattr("rnp_hub.weights.MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(ModelError, match="GiB large, and at most"):
        pull(str(folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_classes": 10**12}, "more than 262,144 classes"),
        ({"model_args": ARGS | {"channels": [10**9] * 4}}, "the number 1000000000"),
        ({"architecture": "vit_giant_patch14_224", "model_args": {}}, "many times larger"),
    ],
)
def test_a_config_that_asks_for_too_much(
    change: dict[str, Any], words: str, plain_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").symlink_to(plain_model / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ModelError, match=words):
        pull(str(tmp_path))


def test_labels_of_transformers_beyond_all_use() -> None:
    pytest.importorskip("transformers")
    for change in ({"num_labels": 10**12}, {"num_labels": 10**6}):
        with pytest.raises(ModelError, match=r"holds the number|more than 262,144 labels"):
            Architecture.from_config({"model_type": "resnet"} | change)
