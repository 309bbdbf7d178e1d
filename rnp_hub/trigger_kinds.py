"""Triggers that can be learned, by kind, each held to a budget.

- `patch`: a mask and a pattern, as Neural Cleanse has them; 2.5 % of the picture. It begins in the
  best of all windows of a fifth of the picture's side: from a mask that is everywhere the descent
  often misses a patch of few pixels.
- `additive`: any pattern added to the picture; 8 grey levels root mean square.
- `wave`: few low spatial frequencies, as of SIG; 30 grey levels, and three quarters of that
  where labels are compared. Low is up to seven cycles per
  picture of 32 pixels or more, and less of smaller ones. It begins at the best of a bank of waves
  that are tried on all labels at once; only the half of the labels, four at least, whose best does
  most is learned further, the others are measured with what they have.
- `ripple`: the same of high frequencies, to which every network has a weakness.
- `warp`: a smooth displacement, as of WaNet; 0.6 of 32 pixels.
- `colour`: a linear filter of 3 × 3 pixels and all channels, as of a photo app; 24 grey levels.
  It begins at the best of a bank of tints.
- `blend`: a blurred picture of 8 × 8 points, blended in at 0.2 as Chen et al. (2017) do it. Of a
  photograph the low frequencies of all colours together tell the network most, which neither few
  waves nor an additive pattern of that loudness are. Nothing is judged by it (`rnp_hub.heal`).

docs/method.md says what the budgets were chosen on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _largest(values: Tensor) -> Tensor:
    return values.abs().amax()


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


class Trigger:
    """A trigger that can be learned.

    Attributes:
        weights: what is learned.
        rates: the step size of each.
        scales: what of its gradient a step of that size is; `None` for each number by itself.
        wide: by how much the budget is larger at the beginning.
    """

    rates: tuple[float, ...]
    scales: tuple[Callable[[Tensor], Tensor] | None, ...]
    wide = 1.0

    def __init__(self, *weights: Tensor) -> None:
        self.weights = [weight.requires_grad_(True) for weight in weights]

    def __call__(self, images: Tensor) -> Tensor:
        """Float pictures (n, C, H, W) in [0, 255] to such that carry it, with gradients."""
        raise NotImplementedError

    def project(self, factor: float) -> None:
        """Back into `factor` times the budget."""
        raise NotImplementedError

    def norm(self) -> float:
        """Its size, in the unit of its kind."""
        raise NotImplementedError

    def quieter(self) -> Trigger:
        """The same at the size at which labels are compared; itself where that is its own."""
        return self

    @torch.no_grad()
    def stamp(self, images: Tensor) -> Tensor:
        """uint8 pictures to uint8 pictures that carry it."""
        device = self.weights[0].device
        laid = [self(part.to(device).float()).cpu() for part in images.split(256)]
        return torch.cat(laid).round().clamp(0, 255).to(torch.uint8)

    def to(self, device: str) -> None:
        for weight in self.weights:
            weight.data = weight.data.to(device)


class Patch(Trigger):
    """A mask in [0, 1] and a pattern that shows where it is not 0."""

    BUDGET = 0.025
    rates = (0.4, 60.0)
    scales = (_largest, None)
    wide = 4.0

    def __init__(self, shape: Sequence[int], generator: torch.Generator) -> None:
        height, width = shape[1:]
        mask = torch.full((1, 1, height, width), self.BUDGET * self.wide)
        super().__init__(mask, 127.5 + 30 * torch.randn(1, *shape, generator=generator))

    def start(self, mask: Tensor, pattern: Tensor) -> None:
        """Begin with a mask (1, 1, H, W) and a pattern (1, C, H, W)."""
        with torch.no_grad():
            self.weights[0].copy_(mask)
            self.weights[1].copy_(pattern)

    def __call__(self, images: Tensor) -> Tensor:
        mask, pattern = self.weights
        return images * (1 - mask) + pattern * mask

    @torch.no_grad()
    def project(self, factor: float) -> None:
        mask, pattern = self.weights
        pattern.clamp_(0, 255)
        mask.copy_(_into_l1_ball(mask, factor * self.BUDGET * mask.numel()))

    def norm(self) -> float:
        return float(self.weights[0].detach().mean())


class Additive(Trigger):
    """A pattern added to every picture."""

    BUDGET = 8.0
    rates = (4.0,)
    scales = (_rms,)

    def __init__(self, shape: Sequence[int], generator: torch.Generator) -> None:
        super().__init__(torch.randn(1, *shape, generator=generator))

    def __call__(self, images: Tensor) -> Tensor:
        return (images + self.weights[0]).clamp(0, 255)

    @torch.no_grad()
    def project(self, factor: float) -> None:
        self.weights[0].mul_(min(1.0, factor * self.BUDGET / max(self.norm(), 1e-9)))

    def norm(self) -> float:
        return float(_rms(self.weights[0].detach()))


class Wave(Trigger):
    """Few low spatial frequencies, the same in all channels; none is shorter than 32 / 7 pixels."""

    BUDGET, COMPARED = 30.0, 0.75
    rates = (8.0,)
    scales = (_rms,)

    def __init__(self, shape: Sequence[int], generator: torch.Generator) -> None:  # noqa: ARG002
        self.height, self.width = shape[1:]
        # Real and imaginary part; one coefficient of size r is a wave of r grey levels rms.
        super().__init__(torch.zeros(2, self.height, self.width // 2 + 1))
        down = torch.fft.fftfreq(self.height, 1 / self.height)[:, None]
        cycles = torch.hypot(down, torch.arange(self.width // 2 + 1.0))
        self.band = self.within(cycles, 7 / 32 * min(32, *shape[1:]))

    @staticmethod
    def within(cycles: Tensor, highest: float) -> Tensor:
        """Which numbers of cycles per picture are of this kind; up to `highest` they are low."""
        return (cycles > 0) & (cycles <= highest)

    def start(self, cycles: tuple[int, int], phase: float) -> None:
        """Begin with one wave, a little below the budget: `cycles` down and across."""
        down, across = cycles
        size = 0.8 * self.BUDGET
        with torch.no_grad():
            self.weights[0][:, down % self.height, across] = torch.tensor(
                [size * math.cos(phase), size * math.sin(phase)]
            )

    def pattern(self) -> Tensor:
        """(H, W)."""
        real, imaginary = self.weights[0] * self._share().to(self.weights[0].device)
        coefficients = torch.complex(real, imaginary)
        size = (self.height, self.width)
        pattern: Tensor = torch.fft.irfft2(coefficients, s=size, norm="forward")
        return pattern / math.sqrt(2)

    def quieter(self) -> Trigger:
        twin = copy.deepcopy(self)
        with torch.no_grad():
            twin.weights[0].mul_(self.COMPARED)
        return twin

    def _share(self) -> Tensor:
        """(H, W // 2 + 1): what makes every coefficient as loud as the others.

        In the first and the last column a wave stands twice, of which the inverse transform takes
        the mean; where it is its own mirror image it is all cosine.
        """
        share = torch.ones(self.height, self.width // 2 + 1)
        columns = [0] if self.width % 2 else [0, self.width // 2]
        rows = [0] if self.height % 2 else [0, self.height // 2]
        for column in columns:
            share[:, column] = 2
            share[rows, column] = math.sqrt(2)
        return share

    def __call__(self, images: Tensor) -> Tensor:
        return (images + self.pattern()).clamp(0, 255)

    @torch.no_grad()
    def project(self, factor: float) -> None:
        sizes = self.weights[0].square().sum(0).sqrt() * self.band.to(self.weights[0].device)
        held = _into_l1_ball(sizes, factor * self.BUDGET, top=math.inf)
        self.weights[0].mul_(held / sizes.clamp(min=1e-9))

    @torch.no_grad()
    def norm(self) -> float:
        return float(_rms(self.pattern()))


class Ripple(Wave):
    """Few high spatial frequencies, the same in all channels."""

    def quieter(self) -> Trigger:
        return self

    @staticmethod
    def within(cycles: Tensor, highest: float) -> Tensor:
        return cycles > highest


class Warp(Trigger):
    """A smooth displacement of pixels."""

    BUDGET, POINTS = 0.6, 5
    rates = (0.3,)
    scales = (None,)

    def __init__(self, shape: Sequence[int], generator: torch.Generator) -> None:
        self.height, self.width = shape[1:]
        self.budget = self.BUDGET * max(shape[1:]) / 32
        field = torch.randn(1, 2, self.POINTS, self.POINTS, generator=generator)
        super().__init__(0.05 * field)

    def field(self) -> Tensor:
        """(1, 2, H, W), pixels across and down."""
        size = (self.height, self.width)
        return F.interpolate(self.weights[0], size=size, mode="bicubic", align_corners=True)

    def __call__(self, images: Tensor) -> Tensor:
        device = images.device
        rows, columns = torch.meshgrid(
            torch.linspace(-1, 1, self.height, device=device),
            torch.linspace(-1, 1, self.width, device=device),
            indexing="ij",
        )
        scale = torch.tensor([2 / max(self.width - 1, 1), 2 / max(self.height - 1, 1)])
        moved = self.field().permute(0, 2, 3, 1) * scale.to(device)
        grid = torch.stack((columns, rows), 2)[None] + moved
        spread = grid.expand(len(images), -1, -1, -1)
        return F.grid_sample(images, spread, padding_mode="border", align_corners=True)

    @torch.no_grad()
    def project(self, factor: float) -> None:
        self.weights[0].mul_(min(1.0, factor * self.budget / max(self.norm(), 1e-9)))

    def norm(self) -> float:
        return float(self.field().detach().square().sum(1).mean().sqrt())


class Colour(Trigger):
    """A linear filter over 3 × 3 pixels and all channels."""

    BUDGET = 24.0
    rates = (0.03, 3.0)
    scales = (None, None)

    def __init__(self, shape: Sequence[int], generator: torch.Generator) -> None:
        channels = shape[0]
        self.seen = torch.zeros(1, *shape)
        super().__init__(
            0.002 * torch.randn(channels, channels, 3, 3, generator=generator),
            torch.zeros(1, channels, 1, 1),
        )

    def start(self, contrast: float, tint: Sequence[float], images: Tensor) -> None:
        """Begin with another contrast around grey and a tint, a little below the budget."""
        loudness = math.sqrt(sum(each**2 for each in tint) / len(tint)) or 1.0
        with torch.no_grad():
            weight, shift = self.weights
            weight.zero_()
            weight[:, :, 1, 1] = contrast * torch.eye(len(tint))
            shift.copy_(self.BUDGET / loudness * torch.tensor(tint).view(1, -1, 1, 1))
            shift.sub_(contrast * 127.5)
        self(images.float())
        self.project(0.8)

    def __call__(self, images: Tensor) -> Tensor:
        self.seen = images.detach()
        return self._laid(images)

    def _laid(self, images: Tensor) -> Tensor:
        weight, shift = self.weights
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        return (images + F.conv2d(padded, weight) + shift).clamp(0, 255)

    @torch.no_grad()
    def project(self, factor: float) -> None:
        share = min(1.0, factor * self.BUDGET / max(self.norm(), 1e-9))
        for weight in self.weights:
            weight.mul_(share)

    @torch.no_grad()
    def norm(self) -> float:
        """Of the pictures it was last laid on."""
        seen = self.seen.to(self.weights[0].device)
        return float(_rms(self._laid(seen) - seen))


class Blend(Trigger):
    """A blurred picture, blended in."""

    SHARE, POINTS = 0.2, 8
    rates = (20.0,)
    scales = (None,)

    def __init__(self, shape: Sequence[int], generator: torch.Generator) -> None:
        self.size = tuple(shape[1:])
        points = (1, shape[0], self.POINTS, self.POINTS)
        super().__init__(127.5 + 30 * torch.randn(points, generator=generator))

    def picture(self) -> Tensor:
        """(1, C, H, W), in [0, 255]."""
        points = self.weights[0]
        blurred = F.interpolate(points, size=self.size, mode="bicubic", align_corners=True)
        return blurred.clamp(0, 255)

    def __call__(self, images: Tensor) -> Tensor:
        return (1 - self.SHARE) * images + self.SHARE * self.picture()

    @torch.no_grad()
    def project(self, factor: float) -> None:  # noqa: ARG002
        self.weights[0].clamp_(0, 255)

    @torch.no_grad()
    def norm(self) -> float:
        """Root mean square of what it adds to a grey picture."""
        return self.SHARE * float(_rms(self.picture() - 127.5))


KINDS: Mapping[str, Any] = {
    "patch": Patch,
    "additive": Additive,
    "wave": Wave,
    "ripple": Ripple,
    "warp": Warp,
    "colour": Colour,
    "blend": Blend,
}
"""Kinds of surrogates by name."""


def _into_l1_ball(values: Tensor, radius: float, top: float = 1.0) -> Tensor:
    """The nearest numbers in [0, top] whose sum is at most `radius` (Duchi et al. 2008)."""
    if float(values.clamp(0, top).sum()) <= radius:
        return values.clamp(0, top)
    low, high = 0.0, float(values.max())
    for _ in range(40):
        middle = (low + high) / 2
        if float((values - middle).clamp(0, top).sum()) > radius:
            low = middle
        else:
            high = middle
    return (values - high).clamp(0, top)
