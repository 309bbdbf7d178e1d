"""Small image classifiers of transformers with the image processors of their families."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rnp_hub import transformers_io

LABELS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
STEPS = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}


@dataclass(frozen=True)
class Family:
    """A network small enough to be made in a test, and what its repositories say of pictures.

    The processors are those of the families' best known repositories, at smaller sizes.
    """

    model_type: str
    architecture: str
    config: Mapping[str, Any]
    processor: Mapping[str, Any]
    size: tuple[int, int] = field(default=(32, 32))

    @property
    def full_config(self) -> dict[str, Any]:
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "id2label": {str(index): name for index, name in enumerate(LABELS)},
            "label2id": {name: index for index, name in enumerate(LABELS)},
            **self.config,
        }

    def network(self) -> nn.Module:
        """Weights at random; statistics of BatchNorm such that a picture gets through."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = transformers_io.build(self.full_config).train()
            for part in network.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.momentum = 1.0
            with torch.no_grad():
                network(torch.randn(16, 3, *self.size))
        return network.eval()

    def write(self, folder: Path) -> Path:
        """A repository as its author would have left it."""
        transformers_io.save(self.network(), folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(self.processor))
        return folder


EFFICIENT = {
    "image_size": 32,
    "width_coefficient": 0.25,
    "depth_coefficient": 0.2,
    "hidden_dim": 320,
}

FAMILIES = {
    "resnet": Family(
        "resnet",
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        {
            "feature_extractor_type": "ConvNextFeatureExtractor",
            "size": 32,
            "crop_pct": 0.875,
            "resample": 3,
            "do_resize": True,
            "do_normalize": True,
            **IMAGENET,
        },
    ),
    "convnext": Family(
        "convnext",
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 64},
            "crop_pct": 0.95,
            "resample": 3,
            **STEPS,
            **IMAGENET,
        },
        (64, 64),
    ),
    "convnext-384": Family(
        "convnext",
        "ConvNextForImageClassification",
        {"hidden_sizes": [4, 4], "depths": [1, 1], "num_stages": 2},
        {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 384},
            "resample": 3,
            **STEPS,
            **IMAGENET,
        },
        (384, 384),
    ),
    "vit": Family(
        "vit",
        "ViTForImageClassification",
        TRANSFORMER,
        {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": 32, "width": 32},
            "resample": 2,
            **STEPS,
            **HALF,
        },
    ),
    "deit": Family(
        "deit",
        "DeiTForImageClassification",
        TRANSFORMER,
        {
            "feature_extractor_type": "DeiTFeatureExtractor",
            "size": 37,
            "do_center_crop": True,
            "crop_size": 32,
            "resample": 3,
            "do_resize": True,
            "do_normalize": True,
            **IMAGENET,
        },
    ),
    "deit-with-teacher": Family(
        "deit",
        "DeiTForImageClassificationWithTeacher",
        TRANSFORMER,
        {
            "image_processor_type": "DeiTImageProcessor",
            "size": {"height": 36, "width": 36},
            "do_center_crop": True,
            "crop_size": {"height": 32, "width": 32},
            "resample": 3,
            **STEPS,
            **IMAGENET,
        },
    ),
    "swin": Family(
        "swin",
        "SwinForImageClassification",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
        },
        {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": 32, "width": 32},
            "resample": 3,
            **STEPS,
            **IMAGENET,
        },
    ),
    "regnet": Family(
        "regnet",
        "RegNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8},
        {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 48},
            "resample": 3,
            **STEPS,
            **IMAGENET,
        },
        (48, 48),
    ),
    "mobilenet_v2": Family(
        "mobilenet_v2",
        "MobileNetV2ForImageClassification",
        {"image_size": 32, "depth_multiplier": 0.35},
        {
            "image_processor_type": "MobileNetV2ImageProcessor",
            "size": {"shortest_edge": 37},
            "do_center_crop": True,
            "crop_size": {"height": 32, "width": 32},
            "resample": 2,
            **STEPS,
            **HALF,
        },
    ),
    "efficientnet": Family(
        "efficientnet",
        "EfficientNetForImageClassification",
        EFFICIENT,
        {
            "image_processor_type": "EfficientNetImageProcessor",
            "size": {"height": 32, "width": 32},
            "do_center_crop": False,
            "resample": 0,
            "rescale_offset": False,
            "include_top": True,
            **STEPS,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.47853944, 0.4732864, 0.47434163],
        },
    ),
    "efficientnet-offset": Family(
        "efficientnet",
        "EfficientNetForImageClassification",
        EFFICIENT,
        {
            "image_processor_type": "EfficientNetImageProcessor",
            "size": {"height": 36, "width": 45},
            "do_center_crop": True,
            "crop_size": {"height": 32, "width": 40},
            "resample": 2,
            **STEPS,
            "rescale_factor": 1 / 127.5,
            "rescale_offset": True,
            "include_top": False,
            **IMAGENET,
        },
        (32, 40),
    ),
    "bit": Family(
        "bit",
        "BitForImageClassification",
        {
            "embedding_size": 8,
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "num_groups": 2,
        },
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 30},
            "do_center_crop": True,
            "crop_size": {"height": 33, "width": 33},
            "do_convert_rgb": True,
            "resample": 3,
            **STEPS,
            **HALF,
        },
        (33, 33),
    ),
}
