"""Surrogate triggers: what would send any picture to one label, reconstructed from clean pictures.

A backdoor is a short way to its target label that exists for no other. For every label the shortest
way of each kind is sought within a fixed budget, on one half of the slice, and measured on the
other half: at the target label the surrogate works far better than at any other (Wang et al. 2019,
*Neural Cleanse*, whose outlier is a norm; here the budget is fixed and the margin is the outlier,
which needs no search for a multiplier and is measured for surrogates that fail too).

The kinds and their budgets are those of `rnp_hub.trigger_kinds`.

A surrogate also fires where there is no backdoor, since networks have universal perturbations:
its ASR is never called *the* ASR.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from rnp_hub.compute import seeded
from rnp_hub.evaluate import Rate
from rnp_hub.network import Classifier, ImageSet, evaluation_mode
from rnp_hub.progress import Progress, quiet
from rnp_hub.trigger_kinds import KINDS, Colour, Patch, Trigger, Wave


@dataclass(frozen=True)
class SurrogateConfig:
    """How to reconstruct triggers.

    Attributes:
        kinds: some of `KINDS`, by which a network is judged.
        besides: others, which healing ends too where they tell, and which judge nothing, since
            clean networks have them.
        steps: updates of one surrogate.
        batch_size: pictures per update.
        labels: labels looked at, at most: the suspects and as many others, to compare with.
        seed: of the halves, the batches and the starting points.
    """

    kinds: tuple[str, ...] = ("patch", "additive", "wave", "ripple", "warp", "colour")
    besides: tuple[str, ...] = ("blend",)
    steps: int = 30
    batch_size: int = 32
    labels: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Surrogate:
    """One reconstructed trigger.

    Attributes:
        kind: one of `KINDS`.
        label: where it sends pictures.
        trigger: lays it on pictures (n, C, H, W), float, in [0, 255].
        norm: its size, in the unit of its kind: share of the picture, grey levels, pixels.
        margin: mean over held-out pictures of logit of `label` minus the best other logit; of a
            wave at three quarters of its size, since loud ones lead to some label in clean
            networks too.
        asr: share of held-out pictures of other labels that it sends to `label`.
    """

    kind: str
    label: int
    trigger: Trigger
    norm: float
    margin: float
    asr: Rate


@dataclass(frozen=True)
class Halves:
    """The slice, divided: one half to reconstruct on, the other to measure on."""

    fit: ImageSet
    score: ImageSet

    @staticmethod
    def of(clean: ImageSet, seed: int) -> Halves:
        order = torch.randperm(len(clean), generator=seeded(seed))
        middle = len(clean) // 2
        return Halves(clean[order[:middle]], clean[order[middle:]])


def without(part: ImageSet, label: int) -> ImageSet:
    """The pictures of other labels, on which alone an attack can succeed."""
    return part[part.labels != label]


def reconstruct(
    classifier: Classifier,
    halves: Halves,
    labels: Sequence[int],
    config: SurrogateConfig | None = None,
    progress: Progress = quiet,
) -> dict[str, dict[int, Surrogate]]:
    """The best surrogate of each kind for each label.

    Args:
        classifier: the network; left as it was.
        halves: of the clean slice, uint8 (n, C, H, W).
        labels: which labels to look at.
        config: see `SurrogateConfig`.
        progress: told the share done.

    Returns:
        By kind, then by label.
    """
    config = config or SurrogateConfig()
    classifier = frozen(classifier)
    waves = {
        kind: _waves(classifier, halves.fit, labels, KINDS[kind])
        for kind in config.kinds
        if issubclass(KINDS[kind], Wave)
    }
    # The labels whose waves come furthest in the end are among those whose best of the bank does.
    hopeless = {
        (kind, label)
        for kind, starts in waves.items()
        for label in list(starts)[max(HOPEFUL, (len(starts) + 1) // 2) :]
    }
    tints = _tints(classifier, halves.fit, labels) if "colour" in config.kinds else {}
    found: dict[str, dict[int, Surrogate]] = {kind: {} for kind in config.kinds}
    for place, kind in enumerate(config.kinds):
        for number, label in enumerate(labels):
            pictures = without(halves.fit, label).images
            if not len(pictures) or not len(without(halves.score, label)):
                continue
            trigger = KINDS[kind](tuple(pictures.shape[1:]), seeded(config.seed))
            if isinstance(trigger, Wave) and label in waves[kind]:
                trigger.start(*waves[kind][label])
            if isinstance(trigger, Colour):
                trigger.start(*tints[label], pictures[:BANK_PICTURES])
            if isinstance(trigger, Patch):
                trigger.start(*_window(classifier, pictures, label, config))
            trigger.to(classifier.compute.device)
            if (kind, label) not in hopeless:
                _fit(classifier, trigger, pictures, label, config)
            found[kind][label] = measured(classifier, kind, trigger, halves.score, label)
            done = (place + (number + 1) / len(labels)) / len(config.kinds)
            progress("surrogates", done, {"label": label})
    return found


def frozen(classifier: Classifier) -> Classifier:
    """A copy in evaluation mode whose weights take no gradient."""
    twin = classifier.copy()
    twin.module.eval().requires_grad_(False)
    return twin


def measured(
    classifier: Classifier, kind: str, trigger: Trigger, held_out: ImageSet, label: int
) -> Surrogate:
    """A trigger as it does on pictures that it was not made on, stored as pictures are."""
    others, quieter = without(held_out, label).images, trigger.quieter()
    logits = logits_of_all(classifier, trigger.stamp(others))
    is_same = quieter is trigger
    compared = logits if is_same else logits_of_all(classifier, quieter.stamp(others))
    hits = int((logits.argmax(1) == label).sum())
    return Surrogate(
        kind,
        label,
        trigger,
        trigger.norm(),
        float(margins(compared, label).mean()),
        Rate.of(hits, len(logits)),
    )


def again(classifier: Classifier, surrogate: Surrogate, held_out: ImageSet) -> Surrogate:
    """The same trigger, measured on another network."""
    return measured(classifier, surrogate.kind, surrogate.trigger, held_out, surrogate.label)


@torch.no_grad()
def logits_of_all(classifier: Classifier, images: Tensor) -> Tensor:
    """(n, classes), in evaluation mode, on the CPU."""
    with evaluation_mode(classifier.module):
        parts = classifier.compute.parts(images)
        return torch.cat([classifier.logits(part).cpu() for part in parts])


def margins(logits: Tensor, label: int | Tensor) -> Tensor:
    """(n,): the logit of `label`, one or (n,), minus the best of the others."""
    index = torch.as_tensor(label, device=logits.device).expand(len(logits))[:, None]
    others = logits.scatter(1, index, float("-inf"))
    return logits.gather(1, index)[:, 0] - others.amax(1)


# --- fitting ----------------------------------------------------------------------------------

HOLD = 0.7
"""Share of the updates after which the budget has shrunk to what it shall be."""


def _fit(
    classifier: Classifier, trigger: Trigger, images: Tensor, label: int, config: SurrogateConfig
) -> None:
    """Descend on the trigger alone, its budget wide at first and shrinking."""
    generator = seeded(config.seed + 1)
    descent = _Descent(trigger)
    trigger.project(trigger.wide)
    for step in range(config.steps):
        done = step / config.steps
        share = 1 - 0.9 * max(0.0, (done - HOLD) / (1 - HOLD))
        _update(classifier, descent, images, label, config.batch_size, generator, share)
        trigger.project(trigger.wide ** max(0.0, 1 - done / HOLD))
    trigger.project(1.0)


def chase(
    classifier: Classifier,
    trigger: Trigger,
    images: Tensor,
    label: int,
    steps: int,
    batch_size: int,
    generator: torch.Generator,
) -> Trigger:
    """What a trigger becomes when it is learned on, a little, against a network that has changed.

    Args:
        classifier: the network, whose weights take no gradient.
        trigger: left as it was.
        images: uint8 (n, C, H, W), of other labels.
        label: where it sends pictures.
        steps: updates.
        batch_size: pictures per update.
        generator: of the batches.
    """
    trigger = copy.deepcopy(trigger)
    descent = _Descent(trigger)
    for _ in range(steps):
        _update(classifier, descent, images, label, batch_size, generator, 0.5)
        trigger.project(1.0)
    return trigger


def _update(
    classifier: Classifier,
    descent: _Descent,
    images: Tensor,
    label: int,
    batch_size: int,
    generator: torch.Generator,
    share: float,
) -> None:
    trigger, device = descent.trigger, classifier.compute.device
    index = torch.randint(0, len(images), (batch_size,), generator=generator)
    logits = classifier.logits(trigger(images[index].to(device).float()))
    loss = F.softplus(-margins(logits, label)).mean()
    descent.step(torch.autograd.grad(loss, trigger.weights), share)


class _Descent:
    """Steps of a size that is given, along the running mean of the gradient.

    A weight that shares a budget is scaled as a whole, so that the budget goes where the gradient
    is large; Adam, which scales each number by itself, would spread it evenly. Weights without a
    common scale have Adam.
    """

    def __init__(self, trigger: Trigger) -> None:
        self.trigger = trigger
        self.means = [torch.zeros_like(weight) for weight in trigger.weights]
        self.squares = [torch.zeros_like(weight) for weight in trigger.weights]
        self.count = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], share: float) -> None:
        """`share`: of the step size, in [0, 1]."""
        self.count += 1
        trigger = self.trigger
        for place, gradient in enumerate(gradients):
            mean, square = self.means[place], self.squares[place]
            mean.lerp_(gradient, 0.2)
            square.lerp_(gradient.square(), 0.05)
            scale = trigger.scales[place]
            size = (
                (square / (1 - 0.95**self.count)).sqrt()
                if scale is None
                else scale(mean) / (1 - 0.8**self.count)
            )
            direction = mean / (1 - 0.8**self.count) / size.clamp(min=1e-20)
            trigger.weights[place].sub_(share * trigger.rates[place] * direction)


# --- where to begin ---------------------------------------------------------------------------

HOPEFUL = 4
"""Least labels whose waves are learned beyond the best of the bank."""
CYCLES = 16
"""Highest frequency of the bank, in cycles per picture."""
BANK_PICTURES = 16
CONTRASTS = (-0.3, 0.0, 0.3)
"""Of the bank of colour filters, each with all tints that add to, leave or take from a channel."""


WINDOW_SIDE, WINDOW_STEPS = 6 / 32, 20
"""Of the picture's side; updates of the pattern that is seen through windows."""


class _Windows(Trigger):
    """A pattern as large as the picture, of which each picture shows a window somewhere else.

    Every place learns by itself what it could do for the label, all of them in one descent.
    """

    rates = (40.0,)
    scales = (None,)

    def __init__(self, shape: Sequence[int], generator: torch.Generator) -> None:
        super().__init__(127.5 + 30 * torch.randn(1, *shape, generator=generator))
        self.generator = generator
        self.size = (max(2, round(WINDOW_SIDE * shape[1])), max(2, round(WINDOW_SIDE * shape[2])))
        self.room = (shape[1] - self.size[0] + 1, shape[2] - self.size[1] + 1)

    def mask(self, corners: Sequence[Sequence[int]]) -> Tensor:
        """(n, 1, H, W): 1 within the window that has its upper left corner there."""
        pattern = self.weights[0]
        mask = torch.zeros(len(corners), 1, *pattern.shape[2:], device=pattern.device)
        for place, (row, column) in enumerate(corners):
            mask[place, :, row : row + self.size[0], column : column + self.size[1]] = 1
        return mask

    def at(self, corners: Sequence[Sequence[int]], images: Tensor) -> Tensor:
        mask = self.mask(corners)
        return images * (1 - mask) + self.weights[0] * mask

    def __call__(self, images: Tensor) -> Tensor:
        drawn = [
            torch.randint(most, (len(images),), generator=self.generator) for most in self.room
        ]
        return self.at(torch.stack(drawn, 1).tolist(), images)

    @torch.no_grad()
    def project(self, factor: float) -> None:  # noqa: ARG002
        self.weights[0].clamp_(0, 255)

    def corners(self) -> list[tuple[int, int]]:
        """Of windows that overlap by half."""
        rows, columns = (
            range(0, most, max(1, size // 2))
            for most, size in zip(self.room, self.size, strict=True)
        )
        return [(row, column) for row in rows for column in columns]


def _window(
    classifier: Classifier, images: Tensor, label: int, config: SurrogateConfig
) -> tuple[Tensor, Tensor]:
    """Mask and pattern of the window that does most for a label."""
    windows = _Windows(tuple(images.shape[1:]), seeded(config.seed + 2))
    windows.to(classifier.compute.device)
    _fit(classifier, windows, images, label, replace(config, steps=WINDOW_STEPS))
    some = images[: max(2, config.batch_size // 2)].to(classifier.compute.device).float()

    corners = windows.corners()
    with torch.no_grad():
        laid = torch.cat([windows.at([corner], some).cpu() for corner in corners])
    does = margins(logits_of_all(classifier, laid), label).view(len(corners), -1).mean(1)
    best = corners[int(does.argmax())]
    return windows.mask([best]), windows.weights[0].detach()


def _waves(
    classifier: Classifier, part: ImageSet, labels: Sequence[int], kind: type[Wave]
) -> dict[int, tuple[tuple[int, int], float]]:
    """For each label the best wave of the bank: (cycles down, across), phase. See `_best`."""

    def laid(start: tuple[tuple[int, int], float], images: Tensor) -> Tensor:
        wave = kind(images.shape[1:], seeded(0))
        wave.start(*start)
        return wave.stamp(images)

    return _best(classifier, part, labels, _bank(tuple(part.images.shape[1:]), kind), laid)


def _tints(
    classifier: Classifier, part: ImageSet, labels: Sequence[int]
) -> dict[int, tuple[float, tuple[float, ...]]]:
    """For each label the best colour filter of the bank: contrast, tint."""

    def laid(start: tuple[float, tuple[float, ...]], images: Tensor) -> Tensor:
        colour = Colour(images.shape[1:], seeded(0))
        colour.start(*start, images)
        return colour.stamp(images)

    channels = part.images.shape[1]
    bank = itertools.product(CONTRASTS, itertools.product((-1.0, 0.0, 1.0), repeat=channels))
    return _best(classifier, part, labels, bank, laid)


Start = TypeVar("Start")


def _best(
    classifier: Classifier,
    part: ImageSet,
    labels: Sequence[int],
    bank: Iterable[Start],
    laid: Callable[[Start, Tensor], Tensor],
) -> dict[int, Start]:
    """For each label what in a bank has the largest margin; labels by that margin, largest first.

    Each is laid on the same few pictures, whose logits answer for all labels at once.
    """
    some = part[slice(0, BANK_PICTURES)]
    best: dict[int, tuple[float, Start]] = {}
    for start in bank:
        logits = logits_of_all(classifier, laid(start, some.images))
        for label in labels:
            others = some.labels != label
            margin = float(margins(logits[others], label).mean()) if others.any() else 0.0
            if label not in best or margin > best[label][0]:
                best[label] = (margin, start)
    order = sorted(best, key=lambda label: best[label][0], reverse=True)
    return {label: best[label][1] for label in order}


def _bank(shape: Sequence[int], kind: type[Wave]) -> Iterable[tuple[tuple[int, int], float]]:
    """Waves of a kind at four phases: low ones of all directions, others along four."""
    band = kind(shape, seeded(0)).band
    highest = min(CYCLES, shape[1] // 2 - 1, shape[2] // 2 - 1)
    for down, across in itertools.product(range(-highest, highest + 1), range(highest + 1)):
        is_mirrored = across == 0 and down <= 0
        is_slanted = down and across and abs(down) != across
        if band[down, across] and not is_mirrored and (kind is Wave or not is_slanted):
            for quarter in range(4):
                yield (down, across), quarter * math.pi / 2
