"""I-BAU (Zeng et al. 2022): unlearn the universal perturbation that the network itself yields.

A minimax game. Inside, one perturbation is grown that turns as many clean pictures as it can;
outside, the weights learn to be right on pictures that carry it, by the gradient of the whole
game: how the perturbation would answer to a move of the weights is part of it (the implicit
hypergradient, by fixed-point iterations).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from rnp_hub.compute import seeded
from rnp_hub.network import Classifier, ImageSet, on_cpu


@dataclass(frozen=True)
class IbauConfig:
    """BackdoorBench's settings, the batch about a fifth of its 256.

    Attributes:
        rounds: of the game.
        iterations: of the fixed point (K).
        batch_size: pictures per update.
        learning_rate: of Adam over the weights.
        growth: learning rate of SGD over the perturbation.
        damping: weight of the perturbation's squared norm.
        inner_step: step size of the map whose fixed point is the perturbation.
        share: of a batch's pictures that carry it, one at least.
    """

    rounds: int = 5
    iterations: int = 5
    batch_size: int = 50
    learning_rate: float = 1e-4
    growth: float = 10.0
    damping: float = 1e-3
    inner_step: float = 0.1
    share: float = 0.01


def adversarially_unlearned(
    classifier: Classifier, clean: ImageSet, seed: int, config: IbauConfig | None = None
) -> nn.Module:
    """Play the game on a copy of the network, in evaluation mode throughout."""
    game = Game(classifier, clean, seed, config or IbauConfig())
    # Fused attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        for _ in range(game.config.rounds):
            perturbation = game.perturbation()
            for place in range(len(game.batches)):
                game.unlearn(perturbation, place)
    return on_cpu(game.classifier.module)


def _as_it_is(inputs: Tensor) -> Tensor:
    return inputs


class Game:
    """The network, the clean pictures in fixed batches, and the moves of both sides."""

    def __init__(
        self, classifier: Classifier, clean: ImageSet, seed: int, config: IbauConfig
    ) -> None:
        self.config = config
        self.generator = seeded(seed)
        # bfloat16 is no faster where second derivatives are taken, and coarser.
        exact = replace(classifier.compute, bfloat16=False)
        inputs = classifier.transform(clean.images.to(exact.device))
        # The perturbation is added to what the network takes.
        self.classifier = replace(classifier, compute=exact, transform=_as_it_is).copy()
        self.classifier.module.eval().requires_grad_(True)
        self.weights = list(self.classifier.module.parameters())
        self.optimiser = torch.optim.Adam(self.weights, config.learning_rate)
        taken = ImageSet(inputs, clean.labels.to(inputs.device))
        order = torch.randperm(len(clean), generator=self.generator)
        self.batches = [taken[part] for part in order.split(config.batch_size)]

    def loss(self, part: ImageSet, added: Tensor, labels: Tensor | None = None) -> Tensor:
        """Cross-entropy of pictures to which something was added."""
        logits = self.classifier.logits(part.images + added)
        return F.cross_entropy(logits, part.labels if labels is None else labels.to(logits.device))

    def perturbation(self) -> Tensor:
        """(1, C, H, W): grown over one pass, away from what the network says."""
        added = torch.zeros_like(self.batches[0].images[:1], requires_grad=True)
        grower = torch.optim.SGD([added], self.config.growth)
        for part in self.batches:
            said = self.classifier.predict(part.images)
            loss = self._regular(-self.loss(part, added, said), added)
            (added.grad,) = torch.autograd.grad(loss, [added])
            grower.step()
        return added.detach()

    def _regular(self, loss: Tensor, added: Tensor) -> Tensor:
        return loss + self.config.damping * added.square().sum()

    def unlearn(self, perturbation: Tensor, place: int) -> None:
        """One update of the weights by the hypergradient."""
        part = self.batches[place]
        gradient = self.hypergradient(perturbation, part, self.carriers(len(part)))
        for weight, slope in zip(self.weights, gradient, strict=True):
            weight.grad = slope
        self.optimiser.step()

    def carriers(self, count: int) -> Tensor:
        """(count, 1, 1, 1): 1 for the pictures that carry the perturbation, at random."""
        share = max(1, int(self.config.share * count))
        chosen = torch.randperm(count, generator=self.generator)[:share]
        carriers = torch.zeros(count, 1, 1, 1)
        carriers[chosen] = 1
        return carriers.to(self.classifier.compute.device)

    def hypergradient(
        self, perturbation: Tensor, part: ImageSet, carriers: Tensor
    ) -> tuple[Tensor, ...]:
        """Slope of the outer loss for each weight, the perturbation's answer included."""
        added = perturbation.clone().requires_grad_()
        outer = self.loss(part, carriers * added)
        wanted, *direct = torch.autograd.grad(outer, [added, *self.weights], materialize_grads=True)
        inner = self._regular(-self.loss(self.batches[0], added), added)
        (slope,) = torch.autograd.grad(inner, [added], create_graph=True)
        mapped = added - self.config.inner_step * slope
        answer = torch.zeros_like(added)
        for _ in range(self.config.iterations):
            (pulled,) = torch.autograd.grad(mapped, [added], answer, retain_graph=True)
            answer = pulled + wanted
        implicit = torch.autograd.grad(mapped, self.weights, answer, materialize_grads=True)
        return tuple(one + other for one, other in zip(direct, implicit, strict=True))
