"""Clean accuracy (CA) and attack success rate (ASR), with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnp_hub.network import Classifier, ImageSet
from rnp_hub.progress import Progress, quiet
from rnp_hub.triggers import Poisoned

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Rate:
    """A share of n pictures.

    Attributes:
        value: in [0, 1].
        n: pictures it was counted on.
        low, high: 95 % Wilson interval.
    """

    value: float
    n: int
    low: float
    high: float

    @staticmethod
    def of(hits: int, n: int) -> Rate:
        """`hits` of `n`, n ≥ 1, with the Wilson score interval (Wilson 1927)."""
        share, z2 = hits / n, Z_95**2
        centre = (share + z2 / (2 * n)) / (1 + z2 / n)
        spread = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        low, high = max(0.0, centre - spread), min(1.0, centre + spread)
        # At the ends the formula is exact and floating point is not.
        return Rate(share, n, 0.0 if hits == 0 else low, 1.0 if hits == n else high)


@dataclass(frozen=True)
class Scores:
    """What a network was measured to do.

    Attributes:
        clean_accuracy: over all classes, the target label's included.
        per_class_accuracy: by label; `None` where the evaluation set has no such picture.
        attack_success_rate: by trigger, over pictures whose true label is not the target.
    """

    clean_accuracy: Rate
    per_class_accuracy: tuple[float | None, ...]
    attack_success_rate: dict[str, Rate]


def evaluate(
    classifier: Classifier,
    clean: ImageSet,
    poisoned: Sequence[Poisoned] = (),
    *,
    classes: int,
    stage: str = "evaluate",
    progress: Progress = quiet,
) -> Scores:
    """Measure CA, per-class CA and the ASR of every known trigger.

    Args:
        classifier: the network.
        clean: the evaluation set, n ≥ 1.
        poisoned: pictures that carry a trigger, with true labels.
        classes: number of labels.
        stage: what to call this in the progress.
        progress: told the share done.
    """
    everything = len(clean) + sum(len(each.pictures) for each in poisoned)
    counter = _Counter(classifier, everything, stage, progress)
    predicted = counter.predict(clean.images)
    rates = {
        each.name: Rate.of(
            int((counter.predict(each.pictures.images) == each.target).sum()), len(each.pictures)
        )
        for each in poisoned
    }
    right = predicted == clean.labels
    return Scores(
        Rate.of(int(right.sum()), len(clean)),
        tuple(_share(right[clean.labels == label]) for label in range(classes)),
        rates,
    )


def accuracy(classifier: Classifier, clean: ImageSet) -> float:
    """Share of pictures that are classified rightly, in [0, 1]."""
    return float(classified_rightly(classifier, clean).float().mean())


def classified_rightly(classifier: Classifier, pictures: ImageSet) -> Tensor:
    """(n,), bool, on the CPU: which pictures are classified rightly."""
    return classifier.predict(pictures.images) == pictures.labels


def _share(right: Tensor) -> float | None:
    return float(right.float().mean()) if len(right) else None


class _Counter:
    """Predicts in parts and tells how far it has come."""

    PART = 1024

    def __init__(
        self, classifier: Classifier, everything: int, stage: str, progress: Progress
    ) -> None:
        self.classifier, self.everything = classifier, everything
        self.stage, self.progress = stage, progress
        self.done = 0

    def predict(self, images: Tensor) -> Tensor:
        parts = []
        for part in images.split(self.PART):
            parts.append(self.classifier.predict(part))
            self.done += len(part)
            self.progress(self.stage, self.done / self.everything, {})
        return torch.cat(parts)
