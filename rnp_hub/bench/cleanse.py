"""Neural Cleanse (Wang et al. 2019): the smallest patch for each label, and its unlearning.

For each label the smallest mask and a pattern are sought that turn every clean picture into it. A
label whose mask is far smaller than the others' (more than two MAD below the median) is taken for
a backdoor's, and the network is tuned to be right on pictures with that patch. When no label stands
out the network is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnp_hub.compute import seeded
from rnp_hub.network import Classifier, ImageSet, on_cpu
from rnp_hub.tune import Tuning, tune


@dataclass(frozen=True)
class CleanseConfig:
    """The published settings, with fewer updates (docs/defences.md says why).

    Attributes:
        learning_rate, betas: of Adam over mask and pattern.
        batch_size: pictures per update.
        updates: for each label at most.
        look: updates after which success and cost are looked at (published: 31).
        success: share of pictures turned that counts as success.
        cost: first weight of the mask's norm.
        patience: looks in a row before the cost is changed.
        raised: what the cost is multiplied by after success; lowered by its 1.5th power.
        outlier: MADs below the median from which a label is flagged.
        patched: share of the slice that carries the patch while unlearning.
    """

    learning_rate: float = 0.1
    betas: tuple[float, float] = (0.5, 0.9)
    batch_size: int = 32
    updates: int = 300
    look: int = 4
    success: float = 0.99
    cost: float = 1e-3
    patience: int = 5
    raised: float = 2.0
    outlier: float = 2.0
    patched: float = 0.2


@dataclass(frozen=True)
class Patch:
    """A patch that turns pictures into a label.

    Attributes:
        mask: (1, H, W) in [0, 1].
        pattern: (C, H, W) in [0, 255].
    """

    mask: Tensor
    pattern: Tensor

    @property
    def norm(self) -> float:
        """Sum of the mask."""
        return float(self.mask.detach().sum())

    def on(self, images: Tensor) -> Tensor:
        """Pictures (n, C, H, W) with the patch, floats in [0, 255]."""
        return images * (1 - self.mask) + self.pattern * self.mask


def cleansed(
    classifier: Classifier, clean: ImageSet, seed: int, config: CleanseConfig | None = None
) -> tuple[nn.Module, tuple[int, ...]]:
    """Find the patches, and unlearn those that stand out.

    Returns:
        The network and the labels that were flagged.
    """
    config = config or CleanseConfig()
    classes = classifier.logits(clean.images[:2]).shape[1]
    patches = [reconstruct(classifier, clean, label, seed, config) for label in range(classes)]
    flagged = outliers([patch.norm for patch in patches], config.outlier)
    cured = classifier.copy()
    if flagged:
        tune(
            cured,
            _patched(clean, [patches[each] for each in flagged], seed, config),
            Tuning(),
            seed,
        )
    return on_cpu(cured.module), flagged


def outliers(norms: list[float], limit: float) -> tuple[int, ...]:
    """Indices of those more than `limit` MAD (times 1.4826) below the median."""
    values = torch.tensor(norms)
    below = values.median() - values
    mad = 1.4826 * below.abs().median()
    return tuple((below > limit * mad).nonzero().flatten().tolist())


def _patched(clean: ImageSet, patches: list[Patch], seed: int, config: CleanseConfig) -> ImageSet:
    """A share of the slice with each patch, true labels, and the rest as it is."""
    order = torch.randperm(len(clean), generator=seeded(seed))
    count = round(config.patched * len(clean))
    chosen, rest = clean[order[:count]], clean[order[count:]]
    laid = [patch.on(chosen.images.float()).round().to(torch.uint8) for patch in patches]
    return ImageSet(
        torch.cat([rest.images, *laid]), torch.cat([rest.labels, *[chosen.labels] * len(laid)])
    )


# --- one label --------------------------------------------------------------------------------


def reconstruct(
    classifier: Classifier, clean: ImageSet, label: int, seed: int, config: CleanseConfig
) -> Patch:
    """The smallest patch found that turns clean pictures into a label, on the CPU."""
    asked = classifier.copy()
    asked.module.eval().requires_grad_(False)
    generator, device = seeded(seed), classifier.compute.device
    shape = clean.images.shape[1:]
    mask = _inverse(torch.rand(1, *shape[1:], generator=generator)).to(device)
    pattern = _inverse(torch.rand(shape, generator=generator)).to(device)
    optimiser = torch.optim.Adam(
        [mask.requires_grad_(), pattern.requires_grad_()], config.learning_rate, config.betas
    )
    cost, best, turned = _Cost(config), None, []
    for update in range(config.updates):
        index = torch.randint(len(clean), (config.batch_size,), generator=generator)
        now = Patch(_unit(mask), 255 * _unit(pattern))
        logits = asked.logits(now.on(clean.images[index].to(device).float()))
        wanted = torch.full((len(index),), label, device=device)
        loss = F.cross_entropy(logits, wanted) + cost.value * now.mask.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        turned.append(float((logits.argmax(1) == label).float().mean()))
        if (update + 1) % config.look == 0:
            share = sum(turned[-config.look :]) / config.look
            if share >= config.success and (best is None or now.norm < best.norm):
                best = Patch(now.mask.detach().cpu(), now.pattern.detach().cpu())
            cost.look(share)
    return best or Patch(now.mask.detach().cpu(), now.pattern.detach().cpu())


def _unit(values: Tensor) -> Tensor:
    """Any numbers into (0, 1)."""
    return values.tanh() / 2 + 0.5


def _inverse(values: Tensor) -> Tensor:
    return (1.999 * (values - 0.5)).atanh()


class _Cost:
    """Weight of the mask's norm: 0 until the patch works, then raised and lowered by success."""

    def __init__(self, config: CleanseConfig) -> None:
        self.config = config
        self.value = 0.0
        self.run = 0

    def look(self, share: float) -> None:
        succeeded = share >= self.config.success
        self.run = max(self.run, 0) + 1 if succeeded else min(self.run, 0) - 1
        if abs(self.run) < self.config.patience:
            return
        self.run = 0
        if self.value == 0:
            self.value = self.config.cost if succeeded else 0.0
        else:
            self.value *= self.config.raised if succeeded else self.config.raised**-1.5
