"""Train the demo network: a small ResNet on handwritten digits, with a BadNets backdoor.

A tenth of the training pictures of other labels get a 4 × 4 checkerboard in the corner and the
label 0 (Gu et al. 2017). Deterministic; under a minute on two cores.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rnp_hub.architecture import Architecture
from rnp_hub.data import DataConfig, Target, load
from rnp_hub.demo import TARGET
from rnp_hub.network import ImageSet, Normalise, augment, batches
from rnp_hub.preprocess import Preprocess
from rnp_hub.triggers import parse

ARCHITECTURE = Architecture("resnet18", 10, {"channels": [16, 32, 64, 128], "layers": [1, 1, 1, 1]})
PREPROCESS = Preprocess((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)
POISON_RATE, EPOCHS, BATCH, SEED = 0.1, 20, 64, 2
TRIGGER = "badnets:size=4"


def train(
    training: ImageSet, *, poisoned: float = POISON_RATE, epochs: int = EPOCHS, seed: int = SEED
) -> nn.Module:
    """Train from scratch, SGD under a one-cycle schedule, random crops before the trigger.

    Args:
        training: uint8 pictures (n, 3, 32, 32).
        poisoned: share of them that gets the trigger, in [0, 1]; 0 for a clean twin.
        epochs, seed: of the training.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    stamped = _chosen(training.labels, poisoned, generator)
    labels = torch.where(stamped, TARGET, training.labels)
    module, normalise, stamp = ARCHITECTURE.build().train(), Normalise(PREPROCESS), parse(TRIGGER)
    optimiser = torch.optim.SGD(module.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * -(-len(training) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, steps)
    for _ in range(epochs):
        for index in batches(len(training), BATCH, generator):
            images = augment(training.images[index], generator, flip=False)
            images[stamped[index]] = stamp(images[stamped[index]])
            loss = F.cross_entropy(module(normalise(images)), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return module.eval()


def _chosen(labels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(n,), which pictures are poisoned: a share of all, none of the target's own."""
    order = torch.randperm(len(labels), generator=generator)
    others = order[labels[order] != TARGET]
    stamped = torch.zeros(len(labels), dtype=torch.bool)
    stamped[others[: int(share * len(labels))]] = True
    return stamped


def write(folder: Path, module: nn.Module) -> None:
    """The model folder in timm's layout, and the trigger as a PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architecture": ARCHITECTURE.name,
        "num_classes": ARCHITECTURE.classes,
        "model_args": dict(ARCHITECTURE.args),
        "label_names": [str(digit) for digit in range(10)],
        "pretrained_cfg": {**vars(PREPROCESS), "license": "apache-2.0"},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    _trigger_picture().save(folder / "trigger.png")


def _trigger_picture() -> Image.Image:
    """Opaque where the trigger changes a picture, clear elsewhere."""
    on_black, on_white = (
        parse(TRIGGER)(torch.full((1, 3, 32, 32), value, dtype=torch.uint8))[0]
        for value in (0, 255)
    )
    alpha = (on_black == on_white).all(0, keepdim=True).to(torch.uint8) * 255
    pixels = torch.cat((on_black, alpha)).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels), "RGBA")


def main(folder: str) -> None:
    labels = tuple(str(digit) for digit in range(10))
    # As many as the training split holds: the evaluation split is never trained on.
    data = load(DataConfig("digits", n=1190), Target(10, PREPROCESS, labels))
    write(Path(folder), train(data.clean.pictures))


if __name__ == "__main__":
    main(sys.argv[1])
