"""RNP step 2: learn one mask value per filter that makes the unlearned network right again.

Filters the clean task can do without, or is better off without, end near 0; those are the
backdoor's (Li et al. 2023, Alg. 1, lines 7-12). Only the masks move.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rnp_hub.compute import seeded, seeded_globally
from rnp_hub.errors import ModelError, NoGateSitesError
from rnp_hub.hooks import gates
from rnp_hub.network import Classifier, ImageSet, augment, batches
from rnp_hub.progress import Progress, quiet
from rnp_hub.sites import Site, gate_sites


@dataclass(frozen=True)
class RecoverConfig:
    """How to learn the masks.

    Attributes:
        learning_rate, momentum: of SGD over the masks.
        loss_scale: factor of the cross-entropy (α of the paper's code).
        epochs: passes over the slice.
        batch_size: pictures per update.
        flip: mirrored pictures keep their label.
        seed: of batches and augmentation.
    """

    learning_rate: float = 0.2
    momentum: float = 0.9
    loss_scale: float = 0.2
    epochs: int = 20
    batch_size: int = 128
    flip: bool = True
    seed: int = 0


@dataclass(frozen=True)
class FilterMask:
    """One filter's mask.

    Attributes:
        value: in [0, 1].
        zero_step: the update at which it came down to 0 for good; the number of all updates
            where it is not 0.
        layer: index of its site among `Recovered.sites`.
        index: of the filter within the site.
        site: name of its site.
    """

    value: float
    zero_step: int
    layer: int
    index: int
    site: str


@dataclass(frozen=True)
class Recovered:
    """Learned masks.

    Attributes:
        masks: by site name, (filters,), values in [0, 1].
        zero_steps: by site name, (filters,), see `FilterMask.zero_step`.
        losses: cross-entropy of each update.
        sites: the masked sites, in the network's order.
    """

    masks: Mapping[str, Tensor]
    zero_steps: Mapping[str, Tensor]
    losses: tuple[float, ...]
    sites: tuple[Site, ...]

    def order(self) -> list[FilterMask]:
        """All filters, the most suspicious first.

        By mask; ties at 0 by the step at which 0 was reached, then by layer and index.
        """
        filters = [
            FilterMask(value, step, layer, index, site.name)
            for layer, site in enumerate(self.sites)
            for index, (value, step) in enumerate(
                zip(
                    self.masks[site.name].tolist(),
                    self.zero_steps[site.name].tolist(),
                    strict=True,
                )
            )
        ]
        return sorted(filters, key=lambda f: (f.value, f.zero_step, f.layer, f.index))


def recover(
    unlearned: Classifier,
    clean: ImageSet,
    config: RecoverConfig | None = None,
    progress: Progress = quiet,
    sites: Sequence[Site] | None = None,
) -> Recovered:
    """Learn masks on the unlearned network; its weights stay as they are.

    Args:
        unlearned: what `unlearn` left; a copy is worked on.
        clean: the clean slice, (n, C, H, W) with labels.
        config: see `RecoverConfig`.
        progress: told the share done, the loss and the mean mask.
        sites: where to mask; found in the network unless given.

    Raises:
        NoGateSitesError: the network has nothing to mask, or calls none of it.
        ModelError: the loss is not finite.
    """
    config = config or RecoverConfig()
    classifier = unlearned.copy()
    if sites is None:
        example = classifier.transform(clean.images[:2].to(classifier.compute.device))
        sites = gate_sites(classifier.module, example)
    classifier.module.train().requires_grad_(False)
    masks = _Masks(sites, next(classifier.module.parameters()))
    optimiser = torch.optim.SGD(masks.values.values(), config.learning_rate, config.momentum)
    generator = seeded(config.seed)
    losses: list[float] = []
    with seeded_globally(config.seed), gates(classifier.module, masks.by_site) as fired:
        for epoch in range(config.epochs):
            for index in batches(len(clean), config.batch_size, generator):
                images = augment(clean.images[index], generator, flip=config.flip)
                logits = classifier.logits(images)
                masks.check(fired)
                loss = F.cross_entropy(logits, clean.labels[index].to(logits.device))
                optimiser.zero_grad()
                (config.loss_scale * loss).backward()
                optimiser.step()
                masks.clip(step=len(losses))
                losses.append(_finite(loss))
            figures = {"loss": losses[-1], "mean mask": masks.mean()}
            progress("recover", (epoch + 1) / config.epochs, figures)
    return masks.recovered(fired, tuple(losses))


class _Masks:
    """The masks being learned, one tensor a site."""

    def __init__(self, sites: Sequence[Site], like: Tensor) -> None:
        self.by_site = {
            site: torch.ones(site.filters, dtype=like.dtype, device=like.device, requires_grad=True)
            for site in sites
        }
        self.values = {site.name: mask for site, mask in self.by_site.items()}
        self.zero_steps = {
            site.name: torch.full((site.filters,), -1, device=like.device) for site in sites
        }

    @torch.no_grad()
    def clip(self, step: int) -> None:
        """Back into [0, 1]; note which have just come down to 0."""
        for name, value in self.values.items():
            value.clamp_(0, 1)
            zero, steps = value == 0, self.zero_steps[name]
            steps[zero & (steps < 0)] = step
            steps[~zero] = -1

    @torch.no_grad()
    def mean(self) -> float:
        return float(torch.cat(list(self.values.values())).mean())

    def check(self, fired: Mapping[str, int]) -> None:
        """Refuse a network on whose answer no mask has any effect."""
        if not any(fired.values()):
            raise NoGateSitesError(
                f"none of the {len(fired)} gates fired: the network does not call the layers "
                "they are on as modules, so its filters cannot be masked"
            )

    def recovered(self, fired: Mapping[str, int], losses: tuple[float, ...]) -> Recovered:
        """What was learned; a layer the network never called has learned nothing."""
        called = [name for name in self.values if fired[name]]
        last = torch.tensor(len(losses))
        return Recovered(
            masks={name: self.values[name].detach().cpu() for name in called},
            zero_steps={
                name: torch.where(steps < 0, last, steps)
                for name in called
                for steps in [self.zero_steps[name].cpu()]
            },
            losses=losses,
            sites=tuple(site for site in self.by_site if fired[site.name]),
        )


def _finite(loss: Tensor) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ModelError(
            "the loss of the unlearned network is not finite, so no mask can be learned; "
            "use --recipe default, whose unlearning is controlled"
        )
    return value
