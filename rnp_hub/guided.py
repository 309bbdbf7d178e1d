"""Pruning guided by surrogates: the filters that a trigger needs and the clean task does not.

One filter at a time. The gradient of the surrogates' margin by a gate on every filter says which
few to try; each of them is silenced for real, and the one goes that takes most from the surrogates
for what it costs the clean task. Where the surrogates have died, new ones are reconstructed on the
pruned network, and it goes on with all of them: what the first did not show, the next may.

Nothing here sees a trigger. The masks of RNP take part as candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rnp_hub.compute import seeded
from rnp_hub.evaluate import accuracy
from rnp_hub.hooks import gates, silence_on_trial
from rnp_hub.network import Classifier, ImageSet, augment
from rnp_hub.progress import Progress, quiet
from rnp_hub.sites import Site
from rnp_hub.surrogate import (
    Halves,
    Surrogate,
    again,
    frozen,
    logits_of_all,
    margins,
    without,
)


@dataclass(frozen=True)
class GuidedConfig:
    """When to silence and when to stop.

    Attributes:
        max_ca_drop: clean accuracy on the slice that may be lost, in [0, 1].
        guard: most that one filter may cost of it.
        goal: surrogate ASR at which they count as dead, in [0, 1].
        price: nats of divergence from the original's clean answers that any filter is charged
            besides its own: a filter is worth the margin it takes per nat.
        filters: most that are silenced.
        tried, masked: filters silenced on trial before one is chosen: the most promising by the
            gradient, and by their mask.
        pictures, clean_pictures: with surrogates, shared among them, and without, that a choice
            looks at.
        flip: mirrored pictures keep their label.
        seed: of the pictures.
    """

    max_ca_drop: float = 0.01
    guard: float = 0.004
    goal: float = 0.04
    price: float = 0.005
    filters: int = 64
    tried: int = 8
    masked: int = 2
    pictures: int = 128
    clean_pictures: int = 192
    flip: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """One silenced filter, and where that left the network.

    Attributes:
        site, index: the filter.
        accuracy: on the slice, in [0, 1].
        asr: largest surrogate ASR on the held-out half, in [0, 1].
    """

    site: str
    index: int
    accuracy: float
    asr: float

    @property
    def filter(self) -> tuple[str, int]:
        """Its site and index."""
        return self.site, self.index


@dataclass(frozen=True)
class Trail:
    """What was silenced, in order.

    Attributes:
        start: accuracy on the slice, and largest surrogate ASR, before the first filter.
        steps: one a filter.
    """

    start: tuple[float, float]
    steps: tuple[Step, ...]

    @property
    def best(self) -> tuple[Step, ...]:
        """The steps to take: up to the least surrogate ASR, ties to the fewest."""
        rates = [self.start[1], *(step.asr for step in self.steps)]
        return self.steps[: rates.index(min(rates))]


def follow(
    original: Classifier,
    sites: Sequence[Site],
    surrogates: Sequence[Surrogate],
    clean: ImageSet,
    halves: Halves,
    unit: float,
    config: GuidedConfig | None = None,
    progress: Progress = quiet,
    after: Sequence[tuple[str, int]] = (),
    masked: Sequence[tuple[str, int]] = (),
) -> Trail:
    """Silence filters of a copy until the surrogates are dead or the clean task would suffer.

    Args:
        original: the network; left as it was.
        sites: where filters can be masked.
        surrogates: all for one label.
        clean: the slice, on which accuracy is watched.
        halves: the same slice, divided.
        unit: the network's margin on clean pictures, in logits.
        config: see `GuidedConfig`.
        progress: told the accuracy and the number of filters.
        after: filters that are silenced before the first step; what they cost counts too.
        masked: filters with a low mask, the lowest first, to be tried besides.
    """
    config = config or GuidedConfig()
    search = _Search(frozen(original), sites, surrogates, clean, halves, unit, config, masked)
    for name, index in after:
        search.take(name, index)
    start = standing = (accuracy(search.work, clean), search.asr())
    steps: list[Step] = []
    while len(steps) < config.filters and standing[1] > config.goal:
        chosen = search.next(standing[0])
        if chosen is None:
            break
        name, index, found = chosen
        standing = (found, search.asr())
        steps.append(Step(name, index, *standing))
        progress("prune", 1 - standing[1] / max(start[1], 1e-9), {"accuracy": standing[0]})
    return Trail(start, tuple(steps))


class _Search:
    """The network on its way, and what has been ruled out."""

    def __init__(
        self,
        work: Classifier,
        sites: Sequence[Site],
        surrogates: Sequence[Surrogate],
        clean: ImageSet,
        halves: Halves,
        unit: float,
        config: GuidedConfig,
        masked: Sequence[tuple[str, int]],
    ) -> None:
        self.work, self.sites, self.surrogates = work, sites, surrogates
        self.clean, self.halves, self.config = clean, halves, config
        self.unit = max(unit, 1e-6)
        self.label = surrogates[0].label
        self.by_name = {site.name: site for site in sites}
        self.out: set[tuple[str, int]] = set()
        self.masked = masked
        # Half a picture of slack, so that 5 of 500 is a drop of 0.01 in floating point too.
        self.slack = 0.5 / len(clean)
        self.lowest = accuracy(work, clean) - config.max_ca_drop - self.slack
        self.generator = seeded(config.seed)
        self.around = around(clean.images, self.generator, flip=config.flip)
        self.answers = logits_of_all(work, self.around).log_softmax(1)

    def asr(self) -> float:
        """The largest surrogate ASR on the held-out half."""
        return max(again(self.work, each, self.halves.score).asr.value for each in self.surrogates)

    def take(self, name: str, index: int) -> Callable[[], None]:
        """Silence a filter; what is returned puts it back."""
        put_back = silence_on_trial(self.work.module, self.by_name[name], index)
        self.out.add((name, index))

        def give_back() -> None:
            put_back()
            self.out.discard((name, index))

        return give_back

    def next(self, standing: float) -> tuple[str, int, float] | None:
        """Silence one more filter, which leaves that accuracy; `None` where none is worth it."""
        look = _Look.at(self)
        for _ in range(self.config.tried):
            best = self._best(look)
            if best is None:
                return None
            give_back = self.take(*best)
            found = accuracy(self.work, self.clean)
            if found >= max(self.lowest, standing - self.config.guard - self.slack):
                return *best, found
            give_back()
            look.worth.pop(best)
        return None

    def _best(self, look: _Look) -> tuple[str, int] | None:
        """Of the most promising filters the one that is worth most when it is silenced."""
        some = [key for key in self.masked if key in look.worth][: self.config.masked]
        for key in (*look.promising(self.config.tried), *some):
            if key not in look.tried:
                give_back = self.take(*key)
                look.tried[key] = look.worth_of(self)
                give_back()
        able = {key: worth for key, worth in look.tried.items() if key in look.worth and worth > 0}
        return max(able, key=able.__getitem__) if able else None


@dataclass
class _Look:
    """Some pictures, clean and with each surrogate, and what each filter does to them.

    Attributes:
        images: clean ones first, then those with surrogates.
        answers: log-probabilities that the original gives for the clean ones.
        margin, loss: of the network as it is.
        worth: by filter, what silencing it promises by the gradient.
        tried: by filter, what it is worth in fact.
    """

    images: Tensor
    answers: Tensor
    margin: float
    loss: float
    worth: dict[tuple[str, int], float]
    tried: dict[tuple[str, int], float]

    @staticmethod
    def at(search: _Search) -> _Look:
        images, answers = _pictures(search)
        masks = {
            site: torch.ones(site.filters, device=search.work.compute.device, requires_grad=True)
            for site in search.sites
        }
        with gates(search.work.module, masks):
            margin, loss = _measure(search, images, answers)
            gains = _gradients(margin, masks)
        worth = {
            (site.name, index): gain
            for site in search.sites
            for index, gain in enumerate(gains[site.name])
            if (site.name, index) not in search.out
        }
        return _Look(images, answers, float(margin.detach()), float(loss.detach()), worth, {})

    def promising(self, count: int) -> list[tuple[str, int]]:
        return sorted(self.worth, key=self.worth.__getitem__, reverse=True)[:count]

    @torch.no_grad()
    def worth_of(self, search: _Search) -> float:
        """Margin taken from the surrogates for each nat that clean answers lose."""
        margin, loss = _measure(search, self.images, self.answers)
        gain, cost = self.margin - float(margin), max(0.0, float(loss) - self.loss)
        return gain / (cost + search.config.price) if gain > 0.01 * self.margin else 0.0


def around(images: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """The slice, as it is, cropped and flipped, and mixed in pairs: where the task is at home.

    Networks are sure of pictures they were trained on, and show there little of what they lost.
    """
    order = torch.randperm(len(images), generator=generator)
    mixed = (images.float() + images[order].float()) / 2
    augmented = augment(images, generator, flip=flip)
    return torch.cat((images, augmented, mixed.round().to(images.dtype)))


def _pictures(search: _Search) -> tuple[Tensor, Tensor]:
    generator = search.generator
    count = max(1, search.config.pictures // len(search.surrogates))
    index = torch.randperm(len(search.around), generator=generator)[: search.config.clean_pictures]
    others = without(search.halves.fit, search.label)
    laid = [
        each.trigger.stamp(others.images[torch.randperm(len(others), generator=generator)[:count]])
        for each in search.surrogates
    ]
    return torch.cat((search.around[index], *laid)), search.answers[index]


def _measure(search: _Search, images: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Softened margin of the surrogates in units of the clean margin, and what clean answers lost.

    The loss is the divergence of the answers from those of the original network.
    """
    logits = search.work.logits(images)
    margin = F.softplus(margins(logits[len(answers) :], search.label)).mean() / search.unit
    return margin, divergence(logits[: len(answers)].log_softmax(1), answers)


def divergence(found: Tensor, wanted: Tensor) -> Tensor:
    """Of log-probabilities (n, classes) from those that are wanted, in nats a picture."""
    return F.kl_div(found, wanted.to(found.device), reduction="batchmean", log_target=True)


def _gradients(value: Tensor, masks: Mapping[Site, Tensor]) -> dict[str, list[float]]:
    """By site, how fast a value grows with each filter's mask."""
    found = torch.autograd.grad(value, list(masks.values()), allow_unused=True)
    return {
        site.name: [0.0] * site.filters if each is None else each.tolist()
        for site, each in zip(masks, found, strict=True)
    }
