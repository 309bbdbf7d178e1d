"""A small repository of every kind that people have on the Hub, trained on handwritten digits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tests.models import CONFIG, train, trained_network, write_folder

LABELS = {label: str(label) for label in range(10)}
NAMED: dict[str, Any] = {"id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()}}
HALF: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SQUARE = {"height": 32, "width": 32}


@dataclass(frozen=True)
class Kind:
    """A kind of repository.

    Attributes:
        title: what a person would call it.
        library: which plain library loads what is published; `None` where none can.
        write: makes its files in an empty folder.
    """

    title: str
    library: Literal["timm", "transformers"] | None
    write: Callable[[Path], object]


# --- timm -------------------------------------------------------------------------------------


def _timm(stem: str | None = None, config: object = CONFIG, *, pickled: bool = False) -> Any:
    def write(folder: Path) -> None:
        write_folder(folder, trained_network(stem), config)
        if pickled:
            _pickle(folder)

    return write


def _without_arguments(config: Mapping[str, Any]) -> Any:
    """A network that its name alone describes: the smallest that timm has."""

    def write(folder: Path) -> None:
        import timm

        name = "test_resnet"
        network = timm.create_model(name, num_classes=10)
        write_folder(folder, train(network), {"architecture": name, **config})

    return write


def _pickle(folder: Path) -> None:
    """Keep the weights as people did before there was safetensors."""
    from safetensors.torch import load_file

    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()


STATED = CONFIG["pretrained_cfg"]
FLAT: dict[str, Any] = {**STATED, "num_classes": 10, "label_names": CONFIG["label_names"]}
"""One object, as timm wrote it before there was a `pretrained_cfg` within."""
NULL_ARGS: dict[str, Any] = {"num_classes": 10, "model_args": None, "pretrained_cfg": STATED}
"""As transformers saves a timm network."""
CLAIMS_PLAIN: dict[str, Any] = {**CONFIG, **STATED, "first_conv": "conv1"}
"""As the `detectors` package wrote it: what it says of the pictures stands at the root as well."""


# --- transformers -----------------------------------------------------------------------------


def _transformers(
    family: str,
    processor: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    pickled: bool = False,
    **pace: Any,
) -> Any:
    def write(folder: Path) -> None:
        from transformers import AutoConfig, AutoModelForImageClassification

        settings = AutoConfig.for_model(family, **config, **NAMED)
        settings.architectures = []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = AutoModelForImageClassification.from_config(settings)
            for part in network.modules():
                if isinstance(part, nn.BatchNorm2d):  # EfficientNet's start at 0.02 and never learn
                    nn.init.ones_(part.weight)
            train(network, **pace)
        network.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps({**HALF, **processor}))
        if pickled:
            _pickle(folder)

    return write


def _squared(kind: str, **more: Any) -> dict[str, Any]:
    return {"image_processor_type": kind, "size": SQUARE, "resample": 2, **more}


def _cropped(kind: str, edge: int, **more: Any) -> dict[str, Any]:
    size = {"shortest_edge": edge}
    return {"image_processor_type": kind, "size": size, "resample": 2, "crop_size": SQUARE, **more}


SLOWLY: dict[str, Any] = {"epochs": 20, "rate": 0.003}
"""Networks of tokens learn nothing at the pace of convolutions."""
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
TOKENS = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 4,
}
CONVNEXT = {
    "image_processor_type": "ConvNextImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_pct": 1.0,
    "resample": 2,
}
EFFICIENTNET = {
    "width_coefficient": 0.5,
    "depth_coefficient": 1.0,
    "image_size": 32,
    "hidden_dim": 640,
    "kernel_sizes": [3, 3, 3],
    "in_channels": [32, 16, 24],
    "out_channels": [16, 24, 40],
    "depthwise_padding": [],
    "strides": [1, 2, 2],
    "num_block_repeats": [1, 1, 1],
    "expand_ratios": [1, 4, 4],
}
RESNET = {**STAGES, "embedding_size": 8, "layer_type": "basic"}
SWIN = {
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "image_size": 32,
    "patch_size": 4,
    "window_size": 4,
}

KINDS: Mapping[str, Kind] = {
    "timm-safetensors": Kind("timm, safetensors", "timm", _timm()),
    "timm-legacy": Kind("timm, config of the old form", "timm", _without_arguments(FLAT)),
    "timm-null-args": Kind("timm, `model_args: null`", "timm", _without_arguments(NULL_ARGS)),
    "timm-pickle": Kind("timm, pickle only", "timm", _timm(pickled=True)),
    "cifar-pickle": Kind(
        "CIFAR stem under a plain name, pickle only",
        None,
        _timm("cifar", CLAIMS_PLAIN, pickled=True),
    ),
    "resnet": Kind(
        "transformers ResNet", "transformers", _transformers("resnet", CONVNEXT, RESNET)
    ),
    "resnet-pickle": Kind(
        "transformers ResNet, pickle only",
        "transformers",
        _transformers("resnet", CONVNEXT, RESNET, pickled=True),
    ),
    "regnet": Kind(
        "transformers RegNet",
        "transformers",
        _transformers("regnet", CONVNEXT, {**STAGES, "embedding_size": 8, "groups_width": 8}),
    ),
    "mobilenet-v2": Kind(
        "transformers MobileNetV2",
        "transformers",
        _transformers(
            "mobilenet_v2",
            _cropped("MobileNetV2ImageProcessor", 36),
            {"depth_multiplier": 0.25, "image_size": 32},
            epochs=15,
        ),
    ),
    "efficientnet": Kind(
        "transformers EfficientNet",
        "transformers",
        _transformers(
            "efficientnet",
            _squared("EfficientNetImageProcessor", include_top=False),
            EFFICIENTNET,
        ),
    ),
    "convnext": Kind(
        "transformers ConvNeXt",
        "transformers",
        _transformers("convnext", CONVNEXT, {**STAGES, "patch_size": 2}),
    ),
    "vit": Kind(
        "transformers ViT",
        "transformers",
        _transformers("vit", _squared("ViTImageProcessor"), TOKENS, **SLOWLY),
    ),
    "deit": Kind(
        "transformers DeiT",
        "transformers",
        _transformers(
            "deit",
            {
                **_squared("DeiTImageProcessor", crop_size=SQUARE, do_center_crop=True),
                "size": {"height": 36, "width": 36},
            },
            TOKENS,
            **SLOWLY,
        ),
    ),
    "swin": Kind(
        "transformers Swin",
        "transformers",
        _transformers("swin", _squared("ViTImageProcessor"), SWIN, **SLOWLY),
    ),
}
