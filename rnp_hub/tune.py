"""Tuning on the clean slice: SGD along a schedule, pictures cropped and flipped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, optim
from torch.nn import functional as F

from rnp_hub.compute import seeded, seeded_globally
from rnp_hub.network import Classifier, ImageSet, augment, batches

Penalty = Callable[[Tensor], Tensor]
"""What a batch (n, C, H, W) adds to the loss, after the network has seen it."""


@dataclass(frozen=True)
class Tuning:
    """How to tune. The numbers are BackdoorBench's for fine-tuning, the batch a fifth of its 256.

    Attributes:
        epochs: passes over the slice.
        learning_rate: of SGD with momentum 0.9, by epoch.
        batch_size: pictures per update.
        weight_decay: of SGD.
        flip: mirrored pictures keep their label.
    """

    epochs: int = 100
    learning_rate: Callable[[int], float] = lambda epoch: cosine(0.01, epoch, 100)
    batch_size: int = 50
    weight_decay: float = 5e-4
    flip: bool = True


def cosine(peak: float, epoch: int, epochs: int) -> float:
    """From `peak` down to 0 along half a cosine."""
    return peak * (1 + math.cos(math.pi * epoch / epochs)) / 2


def tune(
    classifier: Classifier,
    clean: ImageSet,
    tuning: Tuning,
    seed: int,
    penalty: Penalty | None = None,
    updated: Callable[[], None] = lambda: None,
) -> None:
    """Tune a network in place on augmented clean pictures; it ends in evaluation mode.

    Args:
        classifier: the network.
        clean: the clean slice.
        tuning: see `Tuning`.
        seed: of batches, crops, flips and dropout.
        penalty: adds to the loss.
        updated: called after every update.
    """
    module, generator = classifier.module.train(), seeded(seed)
    optimiser = optim.SGD(module.parameters(), 0.0, 0.9, weight_decay=tuning.weight_decay)
    with seeded_globally(seed):
        for epoch in range(tuning.epochs):
            for group in optimiser.param_groups:
                group["lr"] = tuning.learning_rate(epoch)
            for index in batches(len(clean), tuning.batch_size, generator):
                images = augment(clean.images[index], generator, flip=tuning.flip)
                logits = classifier.logits(images)
                loss = F.cross_entropy(logits, clean.labels[index].to(logits.device))
                if penalty is not None:
                    loss = loss + penalty(images)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                updated()
    module.eval()
