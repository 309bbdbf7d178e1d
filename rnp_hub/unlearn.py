"""RNP step 1: unlearn the clean task, by gradient ascent on clean pictures, until it is half gone.

What is left of the network then answers for the backdoor: its predictions lean towards the target
label (Li et al. 2023, Sec. 3.2), and the next step sees which filters the clean task misses.

Two schedules. *Published* is the reference's: a fixed step size, looked at once an epoch; it can
fall from 60 % to 8 % accuracy within one epoch and then takes hundreds of good filters with it.
*Controlled* looks after every update, on the whole slice: a step that falls too far is taken back
and halved, one that does too little grows, so that the descent takes about as many updates on any
network and ends just below the accuracy asked for.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from rnp_hub.compute import seeded, seeded_globally
from rnp_hub.errors import ModelError
from rnp_hub.network import Classifier, ImageSet, augment, batch_statistics, batches
from rnp_hub.progress import Progress, quiet


@dataclass(frozen=True)
class UnlearnConfig:
    """How to unlearn.

    Attributes:
        stop_accuracy: accuracy on the slice at which to stop (CA_min of the paper), in [0, 1].
        controlled: the schedule, see above.
        learning_rate: of SGD; under control only the first guess.
        momentum, weight_decay: of SGD.
        batch_size: pictures per update.
        max_epochs: passes over the slice at most.
        clip_norm: largest gradient norm, clipped after `backward()`; `None` for none (the
            reference clips before it, which clips nothing).
        updates: how many updates the controlled descent aims for.
        flip: mirrored pictures keep their label.
        seed: of batches and augmentation.
    """

    stop_accuracy: float = 0.5
    controlled: bool = True
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    max_epochs: int = 40
    clip_norm: float | None = 20.0
    updates: int = 20
    flip: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Unlearned:
    """A network that has unlearned.

    Attributes:
        classifier: the unlearned network, a copy.
        accuracies: accuracy on the slice (published: on the augmented batches of an epoch) at the
            start and after each look, in [0, 1].
        updates: updates that were kept.
        taken_back: updates that fell too far and were undone.
        histogram: predictions on the slice by label, at the end.
    """

    classifier: Classifier
    accuracies: tuple[float, ...]
    updates: int
    taken_back: int
    histogram: tuple[int, ...]

    @property
    def suspect(self) -> int:
        """The label most predictions lean to. A clean network leans too: this is no verdict."""
        return max(range(len(self.histogram)), key=self.histogram.__getitem__)


def unlearn(
    classifier: Classifier,
    clean: ImageSet,
    config: UnlearnConfig | None = None,
    progress: Progress = quiet,
) -> Unlearned:
    """Maximise the cross-entropy of clean pictures over all parameters, on a copy.

    Args:
        classifier: the network; left as it was.
        clean: the clean slice, (n, C, H, W) with labels.
        config: see `UnlearnConfig`.
        progress: told the share done and the accuracy.

    Raises:
        ModelError: the loss stops being finite although no step is large.
    """
    config = config or UnlearnConfig()
    descent = _Descent(classifier.copy(), clean, config)
    run = _controlled if config.controlled else _published
    with seeded_globally(config.seed):
        accuracies = run(descent, progress)
    return Unlearned(
        classifier=descent.classifier,
        accuracies=tuple(accuracies),
        updates=descent.kept,
        taken_back=descent.taken_back,
        histogram=descent.accuracy_and_histogram()[1],
    )


class _Descent:
    """The network on its way down, and the steps it takes."""

    def __init__(self, classifier: Classifier, clean: ImageSet, config: UnlearnConfig) -> None:
        # Frozen parameters unlearn too: the copy is ours.
        classifier.module.requires_grad_(True)
        self.classifier = classifier
        self.clean = clean
        self.config = config
        self.generator = seeded(config.seed)
        # Batch statistics are those of a mixture; the slice may come sorted by label.
        self.shuffled = list(batches(len(clean), config.batch_size, seeded(config.seed)))
        self.kept = self.taken_back = 0
        self.optimiser = torch.optim.SGD(
            classifier.module.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )

    def epoch(self) -> Iterator[ImageSet]:
        """Augmented batches of one pass over the slice."""
        for index in batches(len(self.clean), self.config.batch_size, self.generator):
            part = self.clean[index]
            images = augment(part.images, self.generator, flip=self.config.flip)
            yield ImageSet(images, part.labels)

    def step(self, part: ImageSet) -> int:
        """One update; how many of its pictures were still right before it."""
        self.classifier.module.train()
        self.optimiser.zero_grad()
        logits = self.classifier.logits(part.images)
        labels = part.labels.to(logits.device)
        loss = F.cross_entropy(logits, labels)
        (-loss).backward()
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(
                self.classifier.module.parameters(), self.config.clip_norm
            )
        self.optimiser.step()
        self.kept += 1
        return int((logits.argmax(1) == labels).sum())

    def state(self) -> tuple[Any, Any]:
        return copy.deepcopy((self.classifier.module.state_dict(), self.optimiser.state_dict()))

    def take_back(self, state: tuple[Any, Any]) -> None:
        self.classifier.module.load_state_dict(state[0])
        self.optimiser.load_state_dict(state[1])
        self.kept -= 1
        self.taken_back += 1

    def set_learning_rate(self, value: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = value

    @torch.no_grad()
    def accuracy_and_histogram(self) -> tuple[float, tuple[int, ...]]:
        """On the whole slice under batch statistics; logits that are not finite count as wrong."""
        with batch_statistics(self.classifier.module):
            logits = torch.cat(
                [self.classifier.logits(self.clean.images[part]) for part in self.shuffled]
            ).cpu()
        finite = logits.isfinite().all(1)
        found = logits.argmax(1)
        right = (found == self.clean.labels[torch.cat(self.shuffled)]) & finite
        histogram = torch.bincount(found[finite], minlength=logits.shape[1])
        return float(right.float().mean()), tuple(histogram.tolist())

    def accuracy(self) -> float:
        return self.accuracy_and_histogram()[0]


LARGEST_STOP = 0.6
"""The controlled stop is at most this share of the accuracy at its start: a network that knows its
slice only by half has to unlearn too."""

OVERSHOOT = 0.05
"""How far below the stop a controlled descent may end, as a share of the accuracy at its start."""


def _controlled(descent: _Descent, progress: Progress) -> list[float]:
    """Descend in steps of about (start - stop) / updates, none of them more than three of those."""
    config = descent.config
    rate = config.learning_rate
    accuracies = [descent.accuracy()]
    start = accuracies[0]
    stop = min(config.stop_accuracy, LARGEST_STOP * start)
    floor, stride = stop - OVERSHOOT * start, (start - stop) / config.updates
    for _ in range(config.max_epochs):
        for part in descent.epoch():
            if accuracies[-1] <= stop:
                return accuracies
            before = descent.state()
            descent.set_learning_rate(rate)
            descent.step(part)
            accuracy = descent.accuracy()
            fall = accuracies[-1] - accuracy
            if accuracy < floor or fall > 3 * stride + OVERSHOOT:
                descent.take_back(before)
                rate = _smaller(rate)
                continue
            rate *= 1.5 if fall < stride / 2 else 0.75 if fall > 2 * stride else 1.0
            accuracies.append(accuracy)
            done = (start - accuracy) / max(start - stop, 1e-9)
            progress("unlearn", done, {"accuracy": accuracy})
    return accuracies


def _smaller(rate: float) -> float:
    if rate < 1e-12:
        raise ModelError(
            "unlearning overshoots with any step size: the network's accuracy jumps whenever its "
            "weights move; check that it is trained and its precision sufficient"
        )
    return rate / 2


def _published(descent: _Descent, progress: Progress) -> list[float]:
    """The reference's loop: a step size that falls tenfold at epochs 10 and 20, a look an epoch."""
    config = descent.config
    accuracies = [descent.accuracy()]
    for epoch in range(config.max_epochs):
        descent.set_learning_rate(config.learning_rate * 0.1 ** ((epoch >= 10) + (epoch >= 20)))
        right = sum(descent.step(part) for part in descent.epoch())
        accuracies.append(right / len(descent.clean))
        progress("unlearn", (epoch + 1) / config.max_epochs, {"accuracy": accuracies[-1]})
        if accuracies[-1] <= config.stop_accuracy:
            break
    total = sum(float(p.detach().sum()) for p in descent.classifier.module.parameters())
    if not math.isfinite(total):
        raise ModelError(
            "unlearning diverged to weights that are not finite; use --recipe default, whose step "
            "size is controlled"
        )
    return accuracies
