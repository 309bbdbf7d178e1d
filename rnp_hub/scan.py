"""Scan a network: unlearn, reconstruct triggers, follow the most suspicious, judge.

Everything is decided on the clean slice. Pictures of other kinds than uint8 are brought to uint8
first, since triggers are laid on pictures as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from rnp_hub.compute import seeded
from rnp_hub.errors import DataError
from rnp_hub.guided import GuidedConfig, Trail, follow
from rnp_hub.network import Classifier, ImageSet
from rnp_hub.progress import Progress, quiet
from rnp_hub.sites import Site
from rnp_hub.soften import SoftenConfig
from rnp_hub.surrogate import (
    Halves,
    Surrogate,
    SurrogateConfig,
    logits_of_all,
    margins,
    reconstruct,
)
from rnp_hub.unlearn import UnlearnConfig, Unlearned, unlearn
from rnp_hub.verdict import CLEAN, TANGIBLE, Suspicion, Verdict, judge, suspicion

T = TypeVar("T")


class Timed(Protocol):
    """Runs a stage and notes its seconds."""

    def __call__(self, stage: str, work: Callable[[], T], /) -> T: ...


LARGE = 96 * 96
"""Pixels from which on less of everything is looked at."""


def untimed(_stage: str, work: Callable[[], T]) -> T:
    return work()


@dataclass(frozen=True)
class ScanConfig:
    """Settings of the stages of a scan."""

    unlearn: UnlearnConfig
    surrogate: SurrogateConfig
    guided: GuidedConfig
    soften: SoftenConfig | None = None
    """`None` where filters may only be silenced."""

    def affordable(self, height: int, width: int) -> ScanConfig:
        """The same for small pictures; fewer labels, pictures and trials for large ones.

        A picture of 224 × 224 takes some fifty times as long as one of 32 × 32. This goes by pixels
        and not by multiply-accumulates, of which a ResNet-50 does several times as many in a second
        as a MobileNet.
        """
        if height * width <= LARGE:
            return self
        surrogate = replace(self.surrogate, labels=min(self.surrogate.labels, 6), batch_size=8)
        guided = replace(self.guided, tried=4, masked=1, pictures=48, clean_pictures=64, filters=24)
        softening = self.soften and replace(
            self.soften, steps=30, pictures=12, clean_pictures=20, copies=1
        )
        return replace(self, surrogate=surrogate, guided=guided, soften=softening)


@dataclass(frozen=True)
class Scanned:
    """What a scan found.

    Attributes:
        unlearned: the network that unlearned.
        surrogates: by kind, then by label.
        unit: the network's margin on clean pictures, in logits.
        suspected: the label that stands out.
        trail: what became of its surrogates when filters were silenced.
        verdict: what that comes to.
        halves: of the slice.
    """

    unlearned: Unlearned
    surrogates: Mapping[str, Mapping[int, Surrogate]]
    unit: float
    suspected: Suspicion | None
    trail: Trail | None
    verdict: Verdict
    halves: Halves

    @property
    def is_tangible(self) -> bool:
        """Whether there are surrogates to be guided by.

        They stand out far enough for a conviction, or nearly; or less, and the lean names the same
        label.
        """
        verdict = self.verdict
        if self.suspected is None or verdict.score < CLEAN:
            return False
        agreed = self._is_leaning and verdict.leaning == self.suspected.label
        return verdict.score >= TANGIBLE or agreed

    @property
    def is_grave(self) -> bool:
        """Whether weights may be touched: tangible, or the lean is suspicious by itself."""
        return self.is_tangible or self._is_leaning

    @property
    def _is_leaning(self) -> bool:
        """Whether the lean speaks for a backdoor; one that is often wrong leans without, too."""
        return self.verdict.leans and self.verdict.competent


def scan(
    original: Classifier,
    clean: ImageSet,
    sites: Sequence[Site],
    config: ScanConfig,
    progress: Progress = quiet,
    timed: Timed = untimed,
) -> Scanned:
    """Say whether a network carries a backdoor, and for which label.

    Args:
        original: the network; left as it was.
        clean: the clean slice, (n, C, H, W) with labels.
        sites: where filters can be masked.
        config: of the stages.
        progress: told what is going on.
        timed: see `Timed`.
    """
    original, clean = as_pixels(original, clean)
    config = config.affordable(*clean.images.shape[2:])
    halves = Halves.of(clean, config.surrogate.seed)
    unlearned = timed("unlearn", lambda: unlearn(original, clean, config.unlearn, progress))
    logits = logits_of_all(original, halves.score.images)
    unit = clean_margin(logits, halves.score.labels)
    labels = _labels(unlearned, logits, config.surrogate)
    found = timed(
        "surrogates", lambda: reconstruct(original, halves, labels, config.surrogate, progress)
    )
    suspected = suspicion(found, unit)
    trail = timed(
        "follow",
        lambda: _trail(original, clean, halves, sites, suspected, unit, config.guided, progress),
    )
    verdict = judge(suspected, trail, unlearned)
    return Scanned(unlearned, found, unit, suspected, trail, verdict, halves)


def clean_margin(logits: Tensor, labels: Tensor) -> float:
    """Mean over pictures of the true label's logit minus the best other; at least a tenth."""
    return max(float(margins(logits, labels).double().sum()) / max(len(labels), 1), 0.1)


def _labels(unlearned: Unlearned, logits: Tensor, config: SurrogateConfig) -> list[int]:
    """All labels where they are few; else those the unlearned network leans to, and others."""
    classes = logits.shape[1]
    if classes <= config.labels:
        return list(range(classes))
    order = sorted(range(classes), key=unlearned.histogram.__getitem__, reverse=True)
    suspects = order[: config.labels // 2]
    drawn = torch.randperm(classes, generator=seeded(config.seed)).tolist()
    others = [label for label in drawn if label not in suspects]
    return sorted([*suspects, *others[: config.labels - len(suspects)]])


def _trail(
    original: Classifier,
    clean: ImageSet,
    halves: Halves,
    sites: Sequence[Site],
    suspected: Suspicion | None,
    unit: float,
    config: GuidedConfig,
    progress: Progress,
) -> Trail | None:
    if suspected is None or not suspected.surrogates:
        return None
    return follow(original, sites, suspected.surrogates, clean, halves, unit, config, progress)


# --- pictures of other kinds than uint8 -------------------------------------------------------


def as_pixels(classifier: Classifier, clean: ImageSet) -> tuple[Classifier, ImageSet]:
    """The same network and pictures, stored as uint8 and taken as floats in [0, 255] too.

    Triggers are laid on pictures as they are stored, and learned through floats.

    Raises:
        DataError: the transform makes something else of floats than of uint8.
    """
    transform = classifier.transform
    if clean.images.dtype == torch.uint8:
        return _taking_floats(classifier, clean.images[:2]), clean
    low, high = float(clean.images.min()), float(clean.images.max())
    scale = max(high - low, 1e-12) / 255
    stored = ((clean.images - low) / scale).round().to(torch.uint8)
    asked = replace(classifier, transform=lambda images: transform(images.float() * scale + low))
    return asked, ImageSet(stored, clean.labels)


def _taking_floats(classifier: Classifier, some: Tensor) -> Classifier:
    """Some transforms scale uint8, and take floats for pictures that are scaled already."""
    transform, some = classifier.transform, some.to(classifier.compute.device)
    expected = transform(some)
    if torch.allclose(transform(some.float()), expected, rtol=1e-3, atol=1e-4):
        return classifier
    if torch.allclose(transform(some.float() / 255), expected, rtol=1e-3, atol=1e-4):
        return replace(classifier, transform=lambda images: transform(images.float() / 255))
    raise DataError(
        "the transform makes something else of uint8 pictures than of the same as floats in "
        "[0, 255] or [0, 1]; surrogate triggers are learned through floats: let it take both"
    )
