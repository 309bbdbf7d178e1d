"""Adversarial Neuron Pruning (Wu and Wang 2021): filters that a small shift turns against the task.

A mask per filter is learned on the original network so that clean pictures stay right although
every filter's weight and bias are shifted, each update anew, in the direction that hurts most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from rnp_hub.compute import seeded, seeded_globally
from rnp_hub.hooks import gated_layer
from rnp_hub.network import Classifier, ImageSet, augment
from rnp_hub.recover import Recovered
from rnp_hub.sites import Site, gate_sites


@dataclass(frozen=True)
class AnpConfig:
    """The published settings, with fewer and smaller updates (docs/defences.md says why).

    Attributes:
        shift: largest relative shift of a weight or bias (ε).
        trade_off: share of the loss without shifts (α).
        learning_rate, momentum: of SGD over the masks.
        updates, batch_size: published 2,000 and 128.
    """

    shift: float = 0.4
    trade_off: float = 0.2
    learning_rate: float = 0.2
    momentum: float = 0.9
    updates: int = 500
    batch_size: int = 32


def adversarial_masks(
    classifier: Classifier, clean: ImageSet, seed: int, config: AnpConfig | None = None
) -> Recovered:
    """Learn the masks; the network is left as it was.

    Pictures are drawn with replacement, cropped and flipped; normalisation is by the batch.

    Raises:
        NoGateSitesError: the network has nothing to mask.
    """
    config = config or AnpConfig()
    masked = classifier.copy()
    masked.module.train().requires_grad_(False)
    example = masked.transform(clean.images[:2].to(masked.compute.device))
    sites = gate_sites(masked.module, example)
    shifted = Shifted(masked.module, sites)
    learner = masked.with_module(shifted)
    optimiser = torch.optim.SGD(shifted.masks, config.learning_rate, config.momentum)
    generator, losses = seeded(seed), []
    with seeded_globally(seed):
        for _ in range(config.updates):
            index = torch.randint(len(clean), (config.batch_size,), generator=generator)
            images = augment(clean.images[index], generator)
            loss = _loss(learner, shifted, ImageSet(images, clean.labels[index]), config)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            shifted.clip()
            losses.append(float(loss.detach()))
    return _recovered(shifted, sites, losses)


def _loss(learner: Classifier, shifted: Shifted, part: ImageSet, config: AnpConfig) -> Tensor:
    """What the masks are to lower: the loss as it is, and under the worst shift."""

    def cross_entropy() -> Tensor:
        logits = learner.logits(part.images)
        return F.cross_entropy(logits, part.labels.to(logits.device))

    shifted.draw(config.shift)
    worst = torch.autograd.grad(cross_entropy(), shifted.shifts, materialize_grads=True)
    shifted.ascend(worst, config.shift)
    robust = cross_entropy()
    shifted.rest()
    return config.trade_off * cross_entropy() + (1 - config.trade_off) * robust


class Shifted(nn.Module):
    """A network whose filters are masked and shifted.

    A filter's weight is multiplied by its mask plus its shift, its bias by 1 plus another shift.
    """

    def __init__(self, module: nn.Module, sites: Sequence[Site]) -> None:
        super().__init__()
        self.module, self.sites = module, sites
        like = next(module.parameters())
        self.masks = nn.ParameterList(
            torch.ones(site.filters, device=like.device) for site in sites
        )
        self.shifts = [
            torch.zeros(site.filters, device=like.device, requires_grad=True)
            for site in (*sites, *sites)
        ]

    def forward(self, inputs: Tensor) -> object:
        return functional_call(self.module, self._parameters_now(), (inputs,))

    def _parameters_now(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        count = len(self.sites)
        for place, (site, mask) in enumerate(zip(self.sites, self.masks, strict=True)):
            layer = gated_layer(self.module, site)
            weight, bias = layer.weight, layer.bias
            assert isinstance(weight, Tensor)
            factor = mask + self.shifts[place]
            if site.kind == "input":
                columns = factor.repeat_interleave(weight.shape[1] // site.filters)
                found[f"{site.name}.weight"] = weight * columns.view(-1, *[1] * (weight.dim() - 2))
                continue
            found[f"{site.name}.weight"] = weight * factor.view(-1, *[1] * (weight.dim() - 1))
            if isinstance(bias, Tensor):
                found[f"{site.name}.bias"] = bias * (1 + self.shifts[count + place])
        return found

    @torch.no_grad()
    def draw(self, reach: float) -> None:
        """Shifts anywhere within reach."""
        for shift in self.shifts:
            shift.uniform_(-reach, reach)

    @torch.no_grad()
    def ascend(self, gradients: Sequence[Tensor], reach: float) -> None:
        """One step uphill, no further than the reach."""
        for shift, gradient in zip(self.shifts, gradients, strict=True):
            shift.add_(reach * gradient.sign()).clamp_(-reach, reach)

    @torch.no_grad()
    def rest(self) -> None:
        """No shifts."""
        self.shifts = [torch.zeros_like(shift, requires_grad=True) for shift in self.shifts]

    @torch.no_grad()
    def clip(self) -> None:
        """Masks back into [0, 1]."""
        for mask in self.masks:
            mask.clamp_(0, 1)


def _recovered(shifted: Shifted, sites: Sequence[Site], losses: Sequence[float]) -> Recovered:
    """In the form in which masks are pruned; ties go by layer and index."""
    masks: Mapping[str, Tensor] = {
        site.name: mask.detach().cpu() for site, mask in zip(sites, shifted.masks, strict=True)
    }
    steps = {name: torch.full(mask.shape, len(losses)) for name, mask in masks.items()}
    return Recovered(masks, steps, tuple(losses), tuple(sites))
