"""Surrogate triggers: their budgets in closed form, and a planted backdoor that they find."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rnp_hub import surrogate
from rnp_hub.compute import seeded
from rnp_hub.network import Classifier, ImageSet
from rnp_hub.surrogate import (
    Halves,
    SurrogateConfig,
    _bank,
    _window,
    _Windows,
    again,
    chase,
    frozen,
    margins,
    measured,
    reconstruct,
    without,
)
from rnp_hub.trigger_kinds import KINDS, Additive, Blend, Colour, Patch, Ripple, Trigger, Warp, Wave
from tests.networks import stripes, to_unit

SHAPE = (3, 16, 16)


@pytest.fixture(scope="module")
def halves() -> Halves:
    return Halves.of(stripes(160), seed=0)


def test_the_halves_share_no_picture() -> None:
    clean = ImageSet(torch.arange(7).view(7, 1, 1, 1), torch.arange(7))
    parts = Halves.of(clean, seed=3)
    assert sorted([*parts.fit.labels.tolist(), *parts.score.labels.tolist()]) == list(range(7))
    assert (len(parts.fit), len(parts.score)) == (3, 4)


def test_margins_are_logit_minus_the_best_other() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [5.0, 0.0, 7.0]])
    assert margins(logits, 2).tolist() == [-2.0, 2.0]
    assert margins(logits, 0).tolist() == [-3.0, -2.0]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_is_laid_on_pictures_as_they_are_stored(kind: str) -> None:
    trigger = KINDS[kind](SHAPE, seeded(0))
    if isinstance(trigger, Wave):
        trigger.start((0, 3), 0.0)
    images = stripes(6).images
    before = images.clone()
    laid = trigger.stamp(images)
    assert laid.shape == images.shape
    assert laid.dtype == torch.uint8
    assert torch.equal(images, before)
    assert torch.equal(trigger.stamp(images), laid)


def test_a_patch_is_held_to_its_share_of_the_picture() -> None:
    patch = Patch(SHAPE, seeded(0))
    mask, pattern = (each.detach() for each in patch.weights)
    with torch.no_grad():
        mask.copy_(torch.rand(mask.shape, generator=seeded(1)))
        pattern.fill_(400)
    patch.project(1.0)
    assert patch.norm() == pytest.approx(0.025, rel=1e-4)
    assert 0 <= float(mask.min()) <= float(mask.max()) <= 1
    assert float(pattern.max()) == 255


def test_a_patch_within_its_share_stays() -> None:
    patch = Patch(SHAPE, seeded(0))
    with torch.no_grad():
        patch.weights[0].zero_()
        patch.weights[0][..., 14:, 14:] = 1
    patch.project(1.0)
    assert float(patch.weights[0].detach().sum()) == 4
    white = torch.zeros(1, *SHAPE)
    with torch.no_grad():
        patch.weights[1].fill_(255)
    assert float(patch(white).detach().sum()) == 3 * 4 * 255


def test_an_additive_pattern_is_scaled_to_its_budget() -> None:
    pattern = Additive(SHAPE, seeded(0))
    with torch.no_grad():
        pattern.weights[0].fill_(20)
    pattern.project(1.0)
    assert pattern.norm() == pytest.approx(8)
    pattern.project(1.0)
    assert pattern.norm() == pytest.approx(8)


@pytest.mark.parametrize("cycles", [(0, 3), (4, 0), (2, 5), (-3, 2)])
def test_a_wave_of_one_frequency_is_as_large_as_its_coefficient(cycles: tuple[int, int]) -> None:
    wave = Wave(SHAPE, seeded(0))
    wave.start(cycles, phase=0.7)
    assert wave.norm() == pytest.approx(24, rel=1e-4)
    down, across = cycles
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    angle = 2 * math.pi * (down * rows + across * columns) / 16 + 0.7
    expected = 24 * math.sqrt(2) * torch.cos(angle)
    assert torch.allclose(wave.pattern().detach(), expected, atol=1e-3)


@pytest.mark.parametrize(("side", "low"), [(8, 1.75), (32, 7), (64, 7)])
def test_each_frequency_is_that_of_a_wave_or_a_ripple(side: int, low: float) -> None:
    down = torch.fft.fftfreq(side, 1 / side)[:, None]
    cycles = torch.hypot(down, torch.arange(side // 2 + 1.0))
    for kind, expected in ((Wave, (cycles > 0) & (cycles <= low)), (Ripple, cycles > low)):
        trigger = kind((3, side, side), seeded(0))
        with torch.no_grad():
            trigger.weights[0].fill_(1e-6)
        trigger.project(1.0)
        assert torch.equal(trigger.weights[0].detach().amax(0) > 0, expected)
        tried = {each for each, _ in _bank((3, side, side), kind)}
        assert tried
        assert all(expected[each] for each in tried)


class Striped(torch.nn.Module):
    """Label 1 for pictures with stripes of some cycles that are louder than some grey levels."""

    def __init__(self, cycles: int, least: float = 20) -> None:
        super().__init__()
        self.least = least
        wave = torch.cos(2 * math.pi * cycles * torch.arange(16.0) / 16)
        self.register_buffer("wave", wave * 2 / 16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        loud = 255 * (images.mean((1, 2)) * self.wave).sum(1)
        fires = torch.relu(loud - self.least)
        return torch.stack((torch.ones_like(fires), fires, torch.zeros_like(fires)), 1)


@pytest.mark.parametrize(("cycles", "kind", "other"), [(3, Wave, Ripple), (6, Ripple, Wave)])
def test_stripes_are_found_as_one_of_both(
    halves: Halves, cycles: int, kind: type[Wave], other: type[Wave]
) -> None:
    names = {each: name for name, each in KINDS.items()}
    asked = SurrogateConfig(kinds=(names[kind], names[other]))
    found = reconstruct(Classifier(Striped(cycles), to_unit), halves, range(3), asked)
    planted = found[names[kind]]
    assert planted[1].asr.value == 1.0
    sizes = planted[1].trigger.weights[0].detach().square().sum(0)
    assert int(sizes.argmax()) == cycles, "down 0, across the cycles"
    assert planted[2].asr.value == 0.0
    assert found[names[other]][1].asr.value == 0.0


@pytest.mark.parametrize(("kind", "cycles", "share"), [("wave", 3, 0.75), ("ripple", 6, 1.0)])
def test_a_margin_is_that_of_a_quieter_wave(kind: str, cycles: int, share: float) -> None:
    """Not so of a ripple; and success is that of the whole wave, of which the network needs 25."""
    wave, grey = KINDS[kind](SHAPE, seeded(0)), torch.full((8, *SHAPE), 128, dtype=torch.uint8)
    wave.start((0, cycles), phase=0.0)
    part = ImageSet(grey, torch.zeros(8, dtype=torch.long))
    found = measured(Classifier(Striped(cycles, 25), to_unit), kind, wave, part, 1)
    assert found.asr.value == 1.0
    # The network answers with the loudness beyond 25 against 1; pixels are rounded.
    assert found.margin == pytest.approx(share * 24 * math.sqrt(2) - 25 - 1, abs=0.3)


def test_waves_share_one_budget() -> None:
    wave = Wave(SHAPE, seeded(0))
    with torch.no_grad():
        wave.weights[0][0, 0, 1] = 40
        wave.weights[0][1, 0, 2] = 30
        wave.weights[0][0, 3, 3] = 1
    wave.project(1.0)
    sizes = wave.weights[0].detach().square().sum(0).sqrt()
    # The nearest point of the L1 ball takes the same from all: 40 and 30 to 20 and 10.
    assert sizes[0, 1] == pytest.approx(20, abs=1e-3)
    assert sizes[0, 2] == pytest.approx(10, abs=1e-3)
    assert sizes[3, 3] == 0


def test_no_displacement_changes_nothing() -> None:
    warp = Warp(SHAPE, seeded(0))
    with torch.no_grad():
        warp.weights[0].zero_()
    images = stripes(3).images
    assert torch.equal(warp.stamp(images), images)


def test_a_warp_of_one_pixel_moves_by_one_pixel() -> None:
    warp = Warp(SHAPE, seeded(0))
    with torch.no_grad():
        warp.weights[0].zero_()
        warp.weights[0][:, 0] = 1
    images = stripes(3).images
    assert torch.equal(warp.stamp(images)[..., :-1], images[..., 1:])
    warp.project(1.0)
    assert warp.norm() == pytest.approx(0.6 * 16 / 32)


def test_a_colour_filter_is_held_to_what_it_changes() -> None:
    colour = Colour(SHAPE, seeded(0))
    with torch.no_grad():
        colour.weights[0].zero_()
        colour.weights[1].fill_(48)
    images = torch.full((2, *SHAPE), 100.0)
    assert torch.equal(colour(images).detach(), images + 48)
    colour.project(1.0)
    assert torch.allclose(colour(images).detach(), images + 24)


@pytest.mark.parametrize("contrast", [-0.3, 0.3])
def test_a_colour_filter_begins_with_a_tint_within_the_budget(contrast: float) -> None:
    images = stripes(8).images
    colour = Colour(SHAPE, seeded(0))
    colour.start(contrast, (1.0, -1.0, 0.0), images)
    laid = colour(images.float()).detach()
    assert 0.7 * Colour.BUDGET <= colour.norm() <= Colour.BUDGET
    red, green, blue = (laid - images).mean((0, 2, 3)).tolist()
    assert red > blue > green
    assert (laid[:, 2].std() > images[:, 2].float().std()) == (contrast > 0)


class Tinted(torch.nn.Module):
    """Label 1 for pictures that are redder than green by 30 grey levels; nothing changes before."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        red, green, _ = (255 * images.mean((2, 3))).unbind(1)
        fires = torch.relu(red - green - 30)
        return torch.stack((torch.ones_like(red), fires, torch.zeros_like(red)), 1)


def test_a_tint_is_found_that_no_descent_leads_to(halves: Halves) -> None:
    asked = SurrogateConfig(kinds=("colour",))
    found = reconstruct(Classifier(Tinted(), to_unit), halves, range(3), asked)["colour"]
    assert found[1].asr.value == 1.0
    assert found[2].asr.value == 0.0


class Blended(torch.nn.Module):
    """Label 1 for pictures that a cross is blended into, green on magenta."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cross = torch.full(SHAPE[1:], -1.0)
        cross[4:12] = cross[:, 4:12] = 1
        shown = (255 * images * torch.stack((-cross, cross, -cross))).mean((1, 2, 3))
        # Of the pictures -10 at most; the blend adds up to 25, an additive pattern up to 8.
        fires = (shown - 4) / 10
        return torch.stack((torch.zeros_like(fires), fires, torch.full_like(fires, -5)), 1)


def test_a_picture_that_is_blended_in_is_found(halves: Halves) -> None:
    """An additive pattern is too faint for it, a wave of one colour too narrow."""
    kinds = ("blend", "additive", "wave")
    found = reconstruct(Classifier(Blended(), to_unit), halves, range(3), SurrogateConfig(kinds))
    assert found["blend"][1].asr.value > 0.9
    assert found["blend"][2].asr.value == 0.0
    assert max(found[kind][1].asr.value for kind in ("additive", "wave")) < 0.5


def test_a_blend_shows_a_fifth_of_a_picture() -> None:
    blend = Blend(SHAPE, seeded(0))
    with torch.no_grad():
        blend.weights[0].fill_(255)
    assert blend(torch.full((2, *SHAPE), 100.0)).round().unique().tolist() == [131]
    assert blend.norm() == pytest.approx(25.5)
    with torch.no_grad():
        blend.weights[0].copy_(torch.linspace(-90, 400, 192).view(1, 3, 8, 8))
    blend.project(1.0)
    assert (blend.weights[0].min(), blend.weights[0].max()) == (0, 255)


def test_a_planted_backdoor_stands_out(planted: Classifier, halves: Halves) -> None:
    config = SurrogateConfig(kinds=("patch",))
    found = reconstruct(planted, halves, range(4), config)["patch"]
    assert found[2].asr.value == 1
    assert found[2].asr.n == len(without(halves.score, 2))
    others = [found[label] for label in (0, 1, 3)]
    assert found[2].margin > 3 * max(each.margin for each in others)
    mask = found[2].trigger.weights[0].detach()[0, 0]
    assert float(mask[14:, 14:].mean()) > 0.5
    assert float(mask[:14].mean()) < 0.025


def test_a_patch_begins_where_it_does_most(planted: Classifier, halves: Halves) -> None:
    """The trigger is the 2 × 2 pixels at the bottom right, red."""
    pictures = without(halves.fit, 2).images
    mask, pattern = _window(planted, pictures, 2, SurrogateConfig())
    assert mask.shape == (1, 1, 16, 16)
    assert int(mask.sum()) == 9
    assert mask[..., 14:, 14:].all()
    red, green, blue = pattern[0, :, 14:, 14:].mean((1, 2))
    assert red > 180
    assert max(green, blue) < 80


def test_windows_cover_the_picture() -> None:
    windows = _Windows((3, 20, 33), seeded(0))
    assert windows.mask(windows.corners()).sum(0).min() >= 1
    drawn = windows(torch.full((64, 3, 20, 33), -1.0))
    assert ((drawn != -1).any(1).flatten(1).sum(1) == 4 * 6).all()


def test_without_its_filter_the_backdoor_is_gone(planted: Classifier, halves: Halves) -> None:
    found = reconstruct(planted, halves, [2], SurrogateConfig(kinds=("patch",)))["patch"][2]
    healed = planted.copy()
    with torch.no_grad():
        healed.module.norm.weight[4] = 0
    assert again(healed, found, halves.score).asr.value == 0


def test_a_chased_trigger_comes_closer_and_the_old_one_stays(
    planted: Classifier, halves: Halves
) -> None:
    """The planted trigger is red; a grey one in the same place does nothing yet."""
    patch = Patch(SHAPE, seeded(0))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 14:, 14:] = 1
    patch.start(mask, torch.full((1, *SHAPE), 90.0))
    before = [each.detach().clone() for each in patch.weights]
    network, others = frozen(planted), without(halves.fit, 2).images

    chased = chase(network, patch, others, 2, 10, 32, seeded(0))

    old, new = (measured(network, "patch", each, halves.score, 2) for each in (patch, chased))
    assert new.margin > old.margin + 0.5
    assert all(torch.equal(*pair) for pair in zip(patch.weights, before, strict=True))


@pytest.mark.parametrize(
    ("kind", "budget"),
    [
        ("patch", 0.025),
        ("additive", 8.0),
        ("wave", 30.0),
        ("ripple", 30.0),
        ("warp", 0.6 * 16 / 32),
        ("colour", 24.0),
    ],
)
def test_a_chased_trigger_stays_within_its_budget(
    planted: Classifier, halves: Halves, kind: str, budget: float
) -> None:
    found = reconstruct(planted, halves, [2], SurrogateConfig(kinds=(kind,)))[kind][2]
    others = without(halves.fit, 2).images
    trigger = found.trigger
    for seed in range(3):
        trigger = chase(frozen(planted), trigger, others, 2, 5, 32, seeded(seed))
    trigger.stamp(without(halves.score, 2).images)
    # What a colour filter changes depends on the pictures: these are others.
    assert max(found.norm, trigger.norm()) <= 1.1 * budget


class Indifferent(torch.nn.Module):
    """Ten labels, none of which it prefers."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.new_zeros(len(images), 10)


def test_half_of_the_labels_keep_the_wave_they_began_with(
    halves: Halves, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Classifier(Indifferent(), to_unit)
    fitted = []

    def fit(_network: Classifier, _trigger: Trigger, _images: Tensor, label: int, _: Any) -> None:
        fitted.append(label)

    monkeypatch.setattr(surrogate, "_fit", fit)
    starts = dict.fromkeys((5, 3, 9, 0, 1, 2, 4, 6, 7, 8), ((0, 1), 0.0))
    monkeypatch.setattr(
        surrogate,
        "_waves",
        lambda *given: {label: start for label, start in starts.items() if label in given[2]},
    )
    asked = SurrogateConfig(kinds=("wave",))
    for labels, learned in (
        (range(10), {5, 3, 9, 0, 1}),
        (range(5), {3, 0, 1, 2}),
        (range(2), {0, 1}),
        ([7], {7}),
    ):
        found = reconstruct(network, halves, labels, asked)["wave"]
        assert set(found) == set(labels)
        assert set(fitted) == learned
        fitted.clear()


def test_the_network_is_left_as_it_was(planted: Classifier, halves: Halves) -> None:
    before = {name: each.clone() for name, each in planted.module.state_dict().items()}
    reconstruct(planted, halves, [1], SurrogateConfig(steps=3))
    after = planted.module.state_dict()
    assert all(torch.equal(after[name], each) for name, each in before.items())
    assert all(each.requires_grad and each.grad is None for each in planted.module.parameters())


def test_the_seed_decides_everything(planted: Classifier, halves: Halves) -> None:
    config = SurrogateConfig(kinds=("additive", "wave"), steps=5)
    one, two = (reconstruct(planted, halves, [0, 3], config) for _ in range(2))
    for kind in config.kinds:
        assert [each.margin for each in one[kind].values()] == [
            each.margin for each in two[kind].values()
        ]
