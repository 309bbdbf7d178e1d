"""Softening: masks on the filters and kernels that stay, since the clean task needs them.

A backdoor that was tuned into a finished network is spread over filters which that network needs.
Cutting them costs what it gains; giving every filter a mask between 0 and 2, and every kernel of a
convolution one between 0 and 1, and learning all masks together, does not. As in RNP's second step
only the masks move; but what they are learned on is the original network, and the task is to give
pictures with a surrogate trigger any label but the suspected one, and clean ones that of before.
The surrogates are learned on meanwhile, against the masks: else the next best trigger would stay
(the game of Wu and Wang 2021, *ANP*, and of Zeng et al. 2022, *I-BAU*, over masks alone).

Kernels are many for a few hundred clean pictures. So the features that the head reads are to stay
what they were too, which says far more of a picture than its label does (as in the distillation of
Li et al. 2021, *NAD*; here from the network as it was, on clean pictures alone). Where no layer is
known to give the logits, kernels have no masks; nor where they only make it dearer, as in networks
of many layers whose kernels are single weights.

A mask is multiplied into the weights, so that the network keeps its architecture and its size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnp_hub.compute import seeded
from rnp_hub.evaluate import accuracy
from rnp_hub.guided import around, divergence
from rnp_hub.head import features, heads
from rnp_hub.hooks import gates, scale
from rnp_hub.kernels import kernel_masks, masked_kernels, scale_kernels
from rnp_hub.network import Classifier, ImageSet, augment
from rnp_hub.progress import Progress, quiet
from rnp_hub.prune import silenced_copy
from rnp_hub.sites import Site
from rnp_hub.surrogate import Halves, Surrogate, again, chase, frozen, logits_of_all, without
from rnp_hub.trigger_kinds import Trigger

QUIET = 0.01
"""Surrogate ASR, in [0, 1], up to which one counts as dead: no heavier weight is tried for it, nor
are masks given up for it."""


@dataclass(frozen=True)
class SoftenConfig:
    """How masks are learned, and what they may cost.

    Attributes:
        weights: of the surrogates against clean answers; the first that clean accuracy bears is
            taken.
        kernels: whether they have masks; where that is `None`, unless the first weight is too dear
            with them and costs less without.
        doublings: how often the first of them is doubled at most, while that costs no accuracy and
            a surrogate still works.
        feature_weight: of how far features of clean pictures move, against clean answers.
        learning_rate, kernel_rate: of Adam over the masks of filters and of kernels, falling to 0
            in the second half.
        steps: updates.
        every, chased: between how many of them each surrogate is learned on, and by how many
            updates of its own, on half of `pictures` each.
        largest: the largest mask of a filter.
        pictures, clean_pictures: with surrogates, shared among them, and without, per update.
        max_ca_drop: accuracy that may be lost on the slice and its augmented copies, besides what
            silencing took, in [0, 1]; none where `rnp_hub.heal` found pruning to be enough.
        utmost: what silencing and masks may cost together where a surrogate still works on half of
            the pictures; `rnp_hub.heal` goes by it.
        copies: how many of these.
        flip: mirrored pictures keep their label.
        seed: of the pictures.
    """

    weights: tuple[float, ...] = (1.5, 0.7, 0.35, 0.15, 0.07)
    kernels: bool | None = None
    doublings: int = 3
    feature_weight: float = 10.0
    learning_rate: float = 0.05
    kernel_rate: float = 0.03
    steps: int = 100
    every: int = 10
    chased: int = 5
    largest: float = 2.0
    pictures: int = 64
    clean_pictures: int = 96
    max_ca_drop: float = 0.01
    utmost: float = 0.02
    copies: int = 3
    flip: bool = True
    seed: int = 0

    def watched(self, clean: ImageSet) -> ImageSet:
        """The slice and its copies, which a network does not know by heart as it may the slice."""
        generator = seeded(self.seed)
        copies = [augment(clean.images, generator, flip=self.flip) for _ in range(self.copies)]
        return ImageSet(torch.cat((clean.images, *copies)), clean.labels.repeat(1 + self.copies))


@dataclass(frozen=True, eq=False)
class Masks:
    """What weights are multiplied by.

    Attributes:
        filters: by site, (filters,) each; 0 where one is silenced.
        kernels: by name of the convolution, (filters, channels read) each, or none.
    """

    filters: Mapping[Site, Tensor]
    kernels: Mapping[str, Tensor]

    @property
    def moved_filters(self) -> int:
        """How many filters have a mask that is not 1, to a hundredth; the silenced ones too."""
        return sum(int(_is_moved(mask).sum()) for mask in self.filters.values())

    @property
    def moved_kernels(self) -> int:
        """How many kernels have a mask that is not 1, to a hundredth."""
        return sum(int(_is_moved(mask).sum()) for mask in self.kernels.values())

    @contextlib.contextmanager
    def laid(self, module: nn.Module) -> Iterator[None]:
        """Lie on a network while the block runs; gradients flow into them."""
        with masked_kernels(module, self.kernels), gates(module, self.filters):
            yield

    def multiply(self, module: nn.Module) -> None:
        """Into the weights of a network, in place and for good."""
        scale(module, self.filters)
        scale_kernels(module, self.kernels)


def _is_moved(mask: Tensor) -> Tensor:
    return (mask - 1).abs() > 0.01


@dataclass(frozen=True)
class Softened:
    """What was learned.

    Attributes:
        masks: of filters and kernels.
        weight: of the surrogates, at which they were learned.
    """

    masks: Masks
    weight: float


def soften(
    original: Classifier,
    sites: Sequence[Site],
    silenced: Sequence[tuple[str, int]],
    surrogates: Sequence[Surrogate],
    clean: ImageSet,
    halves: Halves,
    config: SoftenConfig | None = None,
    progress: Progress = quiet,
) -> Softened | None:
    """Learn masks under which surrogates lead nowhere and clean pictures are answered as before.

    Args:
        original: the network; left as it was.
        sites: where filters can be masked.
        silenced: filters whose mask stays 0, by site and index.
        surrogates: all for one label.
        clean: the slice; its answers are to be kept.
        halves: the same, divided; surrogates are laid on the first half alone.
        config: see `SoftenConfig`.
        progress: told in each lesson how far it is.

    Returns:
        Masks of filters in [0, `largest`] and of kernels in [0, 1], learned with the first weight
        that is affordable, or heavier ones that cost nothing; `None` where all would cost the clean
        task more than they may.
    """
    config = config or SoftenConfig()
    stays = _stays(sites, silenced)
    others = without(halves.fit, surrogates[0].label).images
    lesson = _Lesson(frozen(original), stays, surrogates, clean.images, others, config, progress)
    watched = config.watched(clean)
    start = accuracy(silenced_copy(original, sites, silenced), watched) - 0.5 / len(watched)

    def learned(weight: float, *, kernels: bool) -> _Attempt:
        masks = lesson.learn(weight, kernels=kernels)
        network = masked_copy(original, masks)
        return _Attempt(weight, masks, network, start - accuracy(network, watched))

    def is_quiet(attempt: _Attempt) -> bool:
        found = (again(attempt.network, each, halves.score) for each in surrogates)
        return all(each.asr.value <= QUIET for each in found)

    first, *lighter = config.weights
    attempt = learned(first, kernels=config.kernels is not False)
    decide = config.kernels is None and bool(attempt.masks.kernels)
    if attempt.lost > config.max_ca_drop and decide:
        attempt = min(attempt, learned(first, kernels=False), key=lambda each: each.lost)
    kernels = bool(attempt.masks.kernels)
    if attempt.lost > config.max_ca_drop:
        for weight in lighter:
            attempt = learned(weight, kernels=kernels)
            if attempt.lost <= config.max_ca_drop:
                return attempt.softened
        return None
    for _ in range(config.doublings):
        if attempt.lost > 0 or is_quiet(attempt):
            break
        heavier = learned(2 * attempt.weight, kernels=kernels)
        if heavier.lost > 0:
            break
        attempt = heavier
    return attempt.softened


@dataclass(frozen=True)
class _Attempt:
    """Masks, the network under them, and the accuracy that they cost."""

    weight: float
    masks: Masks
    network: Classifier
    lost: float

    @property
    def softened(self) -> Softened:
        return Softened(self.masks, self.weight)


def masked_copy(original: Classifier, masks: Masks) -> Classifier:
    """A copy of a network whose weights are multiplied by masks."""
    result = original.copy()
    masks.multiply(result.module)
    return result


def led_to(logits: Tensor, label: int) -> Tensor:
    """How surely pictures (n, classes) are led to a label: the mean of -log(1 - p), in nats.

    Where it is not the label, any answer will do: what a trigger hides, masks cannot bring back.
    """
    others = logits.index_fill(1, torch.tensor(label, device=logits.device), float("-inf"))
    return F.softplus(logits[:, label] - others.logsumexp(1)).mean()


def strayed(found: Tensor, wanted: Tensor) -> Tensor:
    """How far features (n, …) are from what they were, as a share of their variance over pictures.

    0 where they are the same, 1 where all are their mean. Features that hardly differ between
    pictures count as if they did by a thousandth of their size.
    """
    spread = (wanted - wanted.mean(0)).square().sum()
    least = 1e-6 * wanted.square().sum() + torch.finfo(wanted.dtype).tiny
    return (found - wanted).square().sum() / spread.maximum(least)


def _stays(sites: Sequence[Site], silenced: Sequence[tuple[str, int]]) -> dict[Site, Tensor]:
    """0 for each silenced filter, 1 for the others."""
    stays = {site: torch.ones(site.filters) for site in sites}
    by_name = {site.name: site for site in sites}
    for name, index in silenced:
        stays[by_name[name]][index] = 0
    return stays


class _Lesson:
    """The pictures and what is to be answered; the same for every weight."""

    def __init__(
        self,
        work: Classifier,
        stays: Mapping[Site, Tensor],
        surrogates: Sequence[Surrogate],
        clean: Tensor,
        others: Tensor,
        config: SoftenConfig,
        progress: Progress,
    ) -> None:
        self.work, self.stays, self.config, self.progress = work, stays, config, progress
        self.label = surrogates[0].label
        self.triggers = [each.trigger for each in surrogates]
        self.generator = seeded(config.seed)
        self.clean, self.others = around(clean, self.generator, flip=config.flip), others
        self.drawn = self.generator.get_state()
        self.heads = heads(work, self.clean[:2])
        with features(self.heads) as read:
            self.answers = logits_of_all(work, self.clean).log_softmax(1)
        parts = [read[place :: len(self.heads)] for place in range(len(self.heads))]
        self.features = [torch.cat(part) for part in parts]

    def learn(self, weight: float, *, kernels: bool) -> Masks:
        """Masks of filters, and of kernels too where the features are known that they shall keep.

        Without these kernels are too many.
        """
        self.generator.set_state(self.drawn)
        device = self.work.compute.device
        stays = {site: mask.to(device) for site, mask in self.stays.items()}
        ones = kernel_masks(self.work.module) if kernels and self.heads else {}
        masks = Masks(
            {site: mask.clone().requires_grad_(True) for site, mask in stays.items()},
            {name: mask.requires_grad_(True) for name, mask in ones.items()},
        )
        groups = [
            {"params": list(masks.filters.values()), "lr": self.config.learning_rate},
            {"params": list(masks.kernels.values()), "lr": self.config.kernel_rate},
        ]
        optimiser = torch.optim.Adam([group for group in groups if group["params"]])
        steps = self.config.steps
        falling = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda done: min(1.0, 2 * (1 - done / steps))
        )
        chased: list[Trigger] = []
        for step in range(steps):
            if step and step % self.config.every == 0:
                chased = self._chased(chased or self.triggers, masks)
            optimiser.zero_grad()
            self._loss(weight, [*self.triggers, *chased], masks).backward()
            optimiser.step()
            falling.step()
            with torch.no_grad():
                for site, mask in masks.filters.items():
                    mask.clamp_(0, self.config.largest).mul_(stays[site])
                for mask in masks.kernels.values():
                    mask.clamp_(0, 1)
            self.progress("soften", (step + 1) / steps, {"weight": weight})
        return _held(masks, "cpu")

    def _chased(self, triggers: Sequence[Trigger], masks: Masks) -> list[Trigger]:
        """The triggers, learned on against the masks as they are now."""
        with _held(masks, self.work.compute.device).laid(self.work.module):
            return [
                chase(
                    self.work, each, self.others, self.label, self.config.chased,
                    max(1, self.config.pictures // 2), self.generator,
                )
                for each in triggers
            ]  # fmt: skip

    def _loss(self, weight: float, triggers: Sequence[Trigger], masks: Masks) -> Tensor:
        index = self._some(len(self.clean), self.config.clean_pictures)
        other = self._some(len(self.others), self.config.pictures)
        # In another order each time: where pictures are few, not each trigger gets one.
        order = self._some(len(triggers), len(triggers)).tolist()
        laid = [
            triggers[place].stamp(self.others[part])
            for place, part in zip(order, other.tensor_split(len(triggers)), strict=True)
            if len(part)
        ]
        with masks.laid(self.work.module), features(self.heads) as read:
            logits = self.work.logits(torch.cat((self.clean[index], *laid))).log_softmax(1)
        kept = divergence(logits[: len(index)], self.answers[index])
        for found, wanted in zip(read, self.features, strict=True):
            kept = kept + self.config.feature_weight * strayed(found[: len(index)], wanted[index])
        return kept + weight * led_to(logits[len(index) :], self.label)

    def _some(self, among: int, count: int) -> Tensor:
        return torch.randperm(among, generator=self.generator)[:count]


def _held(masks: Masks, device: str | torch.device) -> Masks:
    """The same without gradients."""
    return Masks(
        {site: mask.detach().to(device) for site, mask in masks.filters.items()},
        {name: mask.detach().to(device) for name, mask in masks.kernels.items()},
    )
