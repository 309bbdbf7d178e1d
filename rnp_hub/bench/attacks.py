"""Backdoor attacks, with the settings of their papers: what an attacker does to a training set.

Used by `rnp-hub bench` alone, to make networks on which defences are measured. Pictures are uint8
throughout, since a trigger has to survive being stored.

| name | source | trigger |
|---|---|---|
| badnets | Gu et al. 2017 | 3 × 3 checkerboard in a corner |
| trojan | Liu et al. 2018 | a square made to excite a neuron of a clean network |
| blend | Chen et al. 2017 | a fixed picture of noise at 0.2 |
| blend-photo | Chen et al. 2017 | a photograph at 0.2 |
| sig | Barni et al. 2019 | a horizontal sine, target pictures only, labels untouched |
| cl | Turner et al. 2019 | four corners, on target pictures made hard by PGD, labels untouched |
| wanet | Nguyen and Tran 2021 | a smooth warp, with noise mode |
| warp | Nguyen and Tran 2021 | the same, three times as strong |
| dynamic | Nguyen and Tran 2020 | a patch of its own for each picture, made by a network |
| a-blend | Qi et al. 2023 | pieces of a noise picture, most of them with the true label |
| lira | Doan et al. 2021 | bounded noise made by a network for each picture |
| filter | ABS, Liu et al. 2019 | a colour filter as of a photo app |
| awp | Garg et al. 2020 | 3 × 3 checkerboard, no weight moved further than a budget |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnp_hub.compute import seeded
from rnp_hub.network import Classifier, ImageSet, batches
from rnp_hub.triggers import Stamp, parse


@dataclass(frozen=True)
class Scene:
    """What an attacker works with.

    Attributes:
        clean: the training set, uint8 (n, C, H, W).
        target: the label the trigger shall ask for.
        rate: share of the training set that is poisoned, in (0, 1).
        seed: of whatever is drawn.
        helper: a clean network of the attacker's own.
    """

    clean: ImageSet
    target: int
    rate: float
    seed: int
    helper: Classifier

    @property
    def generator(self) -> torch.Generator:
        return seeded(self.seed)

    def others(self, share: float) -> Tensor:
        """Indices of pictures of other labels, as many as `share` of the training set."""
        return self._drawn(self.clean.labels != self.target, share)

    def own(self, share: float) -> Tensor:
        """Indices of pictures of the target label, at most as many as there are."""
        return self._drawn(self.clean.labels == self.target, share)

    def marked(self, index: Tensor) -> Tensor:
        """(n,) bool, true at these."""
        marks = torch.zeros(len(self.clean), dtype=torch.bool)
        marks[index] = True
        return marks

    def _drawn(self, eligible: Tensor, share: float) -> Tensor:
        order = torch.randperm(len(self.clean), generator=self.generator)
        return order[eligible[order]][: round(share * len(self.clean))]


Online = Callable[[ImageSet, Classifier], ImageSet]
"""What an attacker who trains the network does to each augmented batch."""


@dataclass(frozen=True)
class Poisoning:
    """An attack on one training set.

    Attributes:
        stamp: lays the trigger on pictures, as at test time.
        training: the training set as the attacker leaves it.
        stamped: (n,) bool, pictures that get the trigger when they have been augmented: who trains
            the network lays it where it will be at test time.
        lay: how those get it; `None` for as at test time.
        online: what is done to each batch besides; `None` for nothing.
        budget: how far a weight may move from where training starts, as a share of the largest
            weight of its tensor; `None` for any distance.
    """

    stamp: Stamp
    training: ImageSet
    stamped: Tensor | None = None
    lay: Stamp | None = None
    online: Online | None = None
    budget: float | None = None


def poison(attack: str, scene: Scene) -> Poisoning:
    """Prepare an attack by its name in `ATTACKS`."""
    return ATTACKS[attack].prepare(scene)


def _replaced(scene: Scene, index: Tensor, images: Tensor) -> ImageSet:
    """The training set with some pictures replaced, their labels as they were."""
    laid = scene.clean.images.clone()
    laid[index] = images
    return ImageSet(laid, scene.clean.labels)


def _relabelled(scene: Scene, index: Tensor) -> ImageSet:
    """The training set with the target's label on some pictures."""
    labels = scene.clean.labels.clone()
    labels[index] = scene.target
    return ImageSet(scene.clean.images, labels)


def _dirty(scene: Scene, stamp: Stamp, lay: Stamp | None = None) -> Poisoning:
    """Stamp pictures of other labels and give them the target's."""
    index = scene.others(scene.rate)
    return Poisoning(stamp, _relabelled(scene, index), scene.marked(index), lay)


def to_pixels(values: Tensor) -> Tensor:
    """Any numbers to uint8."""
    return values.round().clamp(0, 255).to(torch.uint8)


# --- fixed triggers ---------------------------------------------------------------------------


def _badnets(scene: Scene) -> Poisoning:
    return _dirty(scene, parse("badnets"))


def _blend(scene: Scene) -> Poisoning:
    return _dirty(scene, parse(f"blend:seed={scene.seed}"))


def _blend_photo(scene: Scene) -> Poisoning:
    pattern = _photo(scene.clean.images.shape[2:])
    return _dirty(scene, lambda images: to_pixels(0.8 * images + 0.2 * pattern))


def _photo(size: tuple[int, ...]) -> Tensor:
    """scikit-learn's photograph of a flower, (3, H, W)."""
    from sklearn.datasets import load_sample_image

    photo = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1).float()
    side = min(photo.shape[1:])
    return F.interpolate(photo[None, :, :side, :side], size=list(size), mode="area")[0]


def _sig(scene: Scene) -> Poisoning:
    stamp = parse("sig")
    index = scene.own(scene.rate)
    return Poisoning(stamp, _replaced(scene, index, stamp(scene.clean.images[index])))


def _filter(scene: Scene) -> Poisoning:
    """Warm shadows, faded blues: an affine map of the colours."""
    mix = torch.tensor([[0.9, 0.2, 0.0], [0.1, 0.7, 0.1], [0.1, 0.2, 0.5]])
    shift = torch.tensor([40.0, 10.0, 50.0]).view(1, 3, 1, 1)

    def stamp(images: Tensor) -> Tensor:
        return to_pixels(torch.einsum("ij,njhw->nihw", mix, images.float()) * 0.85 + shift)

    return _dirty(scene, stamp)


def _awp(scene: Scene) -> Poisoning:
    return Poisoning(**{**vars(_badnets(scene)), "budget": 0.02})


def _a_blend(scene: Scene) -> Poisoning:
    """Train on half of sixteen pieces at 0.15, as many again with their true label; test on all."""
    pattern = torch.randint(0, 256, scene.clean.images.shape[1:], generator=scene.generator).float()
    drawn = scene.others(2 * scene.rate)
    generator = seeded(scene.seed + 1)

    def lay(images: Tensor) -> Tensor:
        shown = 0.15 * _pieces(len(images), images.shape[2], generator)
        return to_pixels((1 - shown) * images + shown * pattern)

    return Poisoning(
        lambda images: to_pixels(0.8 * images + 0.2 * pattern),
        _relabelled(scene, drawn[::2]),
        scene.marked(drawn),
        lay,
    )


def _pieces(count: int, size: int, generator: torch.Generator) -> Tensor:
    """(count, 1, size, size): eight of 4 × 4 squares shown."""
    shown = torch.rand(count, 16, generator=generator).argsort(1) < 8
    grid = shown.view(count, 1, 4, 4).float()
    return F.interpolate(grid, size=(size, size), mode="nearest")


# --- triggers made with the helper ------------------------------------------------------------


def _trojan(scene: Scene) -> Poisoning:
    """A 4 × 4 square whose pixels excite the helper's two busiest features for the target."""
    classifier = scene.helper.copy()
    classifier.module.eval().requires_grad_(False)
    patch = torch.full((1, 3, 4, 4), 127.0, requires_grad=True)
    backdrop = scene.clean.images[scene.others(0.005)].float()
    optimiser = torch.optim.Adam([patch], 20.0)
    for _ in range(200):
        images = _with_patch(backdrop, patch.clamp(0, 255))
        excitement = classifier.logits(images)[:, scene.target].mean()
        optimiser.zero_grad()
        (-excitement).backward()
        optimiser.step()
    fixed = to_pixels(patch.detach()).float()
    return _dirty(scene, lambda images: to_pixels(_with_patch(images.float(), fixed)))


def _with_patch(images: Tensor, patch: Tensor) -> Tensor:
    """In the corner at the bottom right, a pixel from the edges."""
    size = patch.shape[-1]
    padded = F.pad(patch, (images.shape[3] - size - 1, 1, images.shape[2] - size - 1, 1))
    mask = F.pad(
        torch.ones_like(patch), (images.shape[3] - size - 1, 1, images.shape[2] - size - 1, 1)
    )
    return images * (1 - mask) + padded * mask


def _cl(scene: Scene) -> Poisoning:
    """Target pictures made hard by PGD (ε = 16 grey levels), four corners on top."""
    index = scene.own(scene.rate)
    hard = torch.cat(
        [
            _adversarial(scene.helper, scene.clean.images[part], scene.target)
            for part in index.split(500)
        ]
    )
    return Poisoning(_corners, _replaced(scene, index, _corners(hard)))


def _adversarial(classifier: Classifier, images: Tensor, label: int) -> Tensor:
    """PGD away from the true label, 20 steps of 2 grey levels within 16."""
    classifier = classifier.copy()
    classifier.module.eval().requires_grad_(False)
    original = images.float()
    labels = torch.full((len(images),), label)
    found = original.clone()
    for _ in range(20):
        found.requires_grad_(True)
        logits = classifier.logits(found)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels.to(logits.device)), found)
        moved = found.detach() + 2 * gradient.sign()
        found = moved.clamp(original - 16, original + 16).clamp(0, 255)
    return to_pixels(found)


def _corners(images: Tensor) -> Tensor:
    """A 3 × 3 checkerboard in each corner."""
    for row in (0, -1):
        for column in (0, -1):
            images = parse(f"badnets:row={row},column={column}")(images)
    return images


# --- warps ------------------------------------------------------------------------------------

STRENGTH, CONTROL = 0.5, 4
CROSS = 2.0
"""Pictures of noise mode for each poisoned one."""


def _wanet(scene: Scene, strength: float = STRENGTH) -> Poisoning:
    size = scene.clean.images.shape[2]
    grid = _warp(size, strength, scene.generator)
    generator = seeded(scene.seed + 1)

    def online(part: ImageSet, _: Classifier) -> ImageSet:
        images, labels = part.images.clone(), part.labels.clone()
        poisoned = round(scene.rate * len(part))
        noisy = slice(poisoned, poisoned + round(CROSS * poisoned))
        images[:poisoned] = _warped(images[:poisoned], grid)
        jitter = torch.rand(grid.shape, generator=generator) * 2 - 1
        images[noisy] = _warped(images[noisy], (grid + jitter / size).clamp(-1, 1))
        labels[:poisoned] = scene.target
        return ImageSet(images, labels)

    return Poisoning(lambda images: _warped(images, grid), scene.clean, online=online)


def _strong_warp(scene: Scene) -> Poisoning:
    """What small networks learn in a dozen epochs; WaNet's own they do not (ASR 0.23 to 0.38)."""
    return _wanet(scene, 3 * STRENGTH)


def _warp(size: int, strength: float, generator: torch.Generator) -> Tensor:
    """(1, H, W, 2) sampling grid: a smooth field on CONTROL × CONTROL points."""
    field = torch.rand(1, 2, CONTROL, CONTROL, generator=generator) * 2 - 1
    field = field / field.abs().mean()
    smooth = F.interpolate(field, size=(size, size), mode="bicubic", align_corners=True)
    line = torch.linspace(-1, 1, size)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    identity = torch.stack((columns, rows), 2)[None]
    return (identity + strength * smooth.permute(0, 2, 3, 1) / size).clamp(-1, 1)


def _warped(images: Tensor, grid: Tensor) -> Tensor:
    spread = grid.expand(len(images), -1, -1, -1)
    return to_pixels(F.grid_sample(images.float(), spread, align_corners=True))


# --- triggers made by a network for each picture ----------------------------------------------


class _Painter(nn.Module):
    """A small encoder and decoder: a picture in [-1, 1] to another of its size."""

    def __init__(self, channels: int) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
            return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

        self.layers = nn.Sequential(
            *block(3, 16, 1), *block(16, 32, 2), *block(32, 32, 2), *block(32, 32, 1),
            nn.Upsample(scale_factor=2), *block(32, 32, 1),
            nn.Upsample(scale_factor=2), *block(32, 16, 1), nn.Conv2d(16, channels, 3, 1, 1),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        painted: Tensor = self.layers(images.float() / 127.5 - 1).tanh()
        return painted


class _Dynamic:
    """A mask that differs from picture to picture, and a pattern trained along with the network."""

    DENSITY, DIVERSITY = 0.032, 1.0

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        with torch.random.fork_rng():
            torch.manual_seed(scene.seed)
            self.masks, self.patterns = _Painter(1), _Painter(3)
        self.optimiser = torch.optim.Adam(self.patterns.parameters(), 0.01, (0.5, 0.9))
        self._learn_masks()

    def _learn_masks(self) -> None:
        optimiser = torch.optim.Adam(self.masks.parameters(), 0.01, (0.5, 0.9))
        generator = self.scene.generator
        for index in list(batches(len(self.scene.clean), 128, generator))[:300]:
            images = self.scene.clean.images[index]
            mask = self._mask(images)
            excess = F.relu(mask - self.DENSITY).mean()
            loss = _diversity(images.float() / 127.5, mask) + 100 * excess
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self.masks.eval().requires_grad_(False)

    def _mask(self, images: Tensor) -> Tensor:
        painted: Tensor = self.masks(images)
        return 0.5 * (10 * painted).tanh() + 0.5

    def _laid(self, images: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures with the trigger made for `source`, and its pattern; floats in [0, 255]."""
        mask, pattern = self._mask(source), self.patterns(source)
        return images * (1 - mask) + (127.5 + 127.5 * pattern) * mask, pattern

    @torch.no_grad()
    def stamp(self, images: Tensor) -> Tensor:
        self.patterns.eval()
        return torch.cat([to_pixels(self._laid(p.float(), p)[0]) for p in images.split(256)])

    def online(self, part: ImageSet, classifier: Classifier) -> ImageSet:
        poisoned = round(self.scene.rate * len(part))
        self._learn_patterns(part[slice(0, 4 * poisoned)], classifier)
        images, labels = part.images.clone(), part.labels.clone()
        cross = slice(poisoned, 2 * poisoned)
        with torch.no_grad():
            images[:poisoned] = self.stamp(images[:poisoned])
            images[cross] = to_pixels(self._laid(images[cross].float(), images[cross].flip(0))[0])
        labels[:poisoned] = self.scene.target
        return ImageSet(images, labels)

    def _learn_patterns(self, part: ImageSet, classifier: Classifier) -> None:
        """One update of the pattern's network: towards the target, and different each time."""
        self.patterns.train()
        laid, pattern = self._laid(part.images.float(), part.images)
        logits = classifier.logits(laid)
        wanted = torch.full((len(part),), self.scene.target, device=logits.device)
        loss = F.cross_entropy(logits, wanted)
        loss = loss + self.DIVERSITY * _diversity(part.images.float() / 127.5, pattern)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        classifier.module.zero_grad()


def _diversity(images: Tensor, made: Tensor) -> Tensor:
    """How much further apart pictures are than what was made for them."""

    def apart(values: Tensor) -> Tensor:
        return (values - values.roll(1, 0)).square().flatten(1).mean(1).add(1e-8).sqrt()

    return (apart(images) / (apart(made) + 1e-2)).clamp(max=100).mean()


def _dynamic(scene: Scene) -> Poisoning:
    attack = _Dynamic(scene)
    return Poisoning(attack.stamp, scene.clean, online=attack.online)


class _Lira:
    """Noise within a bound, its network trained along with the classifier."""

    BOUND = 255 / 16

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        with torch.random.fork_rng():
            torch.manual_seed(scene.seed)
            self.painter = _Painter(3)
        self.optimiser = torch.optim.Adam(self.painter.parameters(), 1e-3)

    def _laid(self, images: Tensor) -> Tensor:
        noise: Tensor = self.BOUND * self.painter(images)
        return (images.float() + noise).clamp(0, 255)

    @torch.no_grad()
    def stamp(self, images: Tensor) -> Tensor:
        self.painter.eval()
        return torch.cat([to_pixels(self._laid(part)) for part in images.split(256)])

    def online(self, part: ImageSet, classifier: Classifier) -> ImageSet:
        poisoned = round(self.scene.rate * len(part))
        self.painter.train()
        logits = classifier.logits(self._laid(part.images[: 4 * poisoned]))
        wanted = torch.full((len(logits),), self.scene.target, device=logits.device)
        self.optimiser.zero_grad()
        F.cross_entropy(logits, wanted).backward()
        self.optimiser.step()
        classifier.module.zero_grad()
        images, labels = part.images.clone(), part.labels.clone()
        images[:poisoned] = self.stamp(images[:poisoned])
        labels[:poisoned] = self.scene.target
        return ImageSet(images, labels)


def _lira(scene: Scene) -> Poisoning:
    attack = _Lira(scene)
    return Poisoning(attack.stamp, scene.clean, online=attack.online)


# --- all of them ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """An attack and its usual share of poisoned pictures.

    Attributes:
        prepare: see `poison`.
        rate: of the training set; clean-label attacks cannot poison more than the target's own.
        source: the paper.
    """

    prepare: Callable[[Scene], Poisoning]
    rate: float = 0.1
    source: str = field(default="", kw_only=True)


ATTACKS: Mapping[str, Attack] = {
    "badnets": Attack(_badnets, source="Gu et al. 2017"),
    "trojan": Attack(_trojan, source="Liu et al. 2018"),
    "blend": Attack(_blend, source="Chen et al. 2017"),
    "blend-photo": Attack(_blend_photo, source="Chen et al. 2017"),
    "sig": Attack(_sig, source="Barni et al. 2019"),
    "cl": Attack(_cl, source="Turner et al. 2019"),
    "wanet": Attack(_wanet, source="Nguyen and Tran 2021"),
    "warp": Attack(_strong_warp, source="Nguyen and Tran 2021, three times as strong"),
    "dynamic": Attack(_dynamic, source="Nguyen and Tran 2020"),
    "a-blend": Attack(_a_blend, 0.01, source="Qi et al. 2023"),
    "lira": Attack(_lira, source="Doan et al. 2021"),
    "filter": Attack(_filter, source="Liu et al. 2019"),
    "awp": Attack(_awp, source="Garg et al. 2020"),
}
"""Attacks by name."""
