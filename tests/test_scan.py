"""Scan and heal: a planted backdoor from end to end, and networks that are left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import rnp_hub
from rnp_hub.compute import Compute
from rnp_hub.errors import DataError
from rnp_hub.evaluate import accuracy
from rnp_hub.method import Sanitized
from rnp_hub.network import Classifier, ImageSet, to_unit_range
from rnp_hub.prune import Pruned, prune
from rnp_hub.recover import Recovered, recover
from rnp_hub.scan import _labels, as_pixels
from rnp_hub.soften import SoftenConfig
from rnp_hub.surrogate import SurrogateConfig
from rnp_hub.unlearn import Unlearned
from tests.networks import Planted, stripes, to_unit

CLEAN = stripes(160)
TEST = stripes(200, seed=9)
CONFIG = rnp_hub.SanitizeConfig.of(flip=False)


def cornered(part: ImageSet) -> ImageSet:
    """The trigger that `Planted` knows, on pictures of other labels than its own."""
    others = part[part.labels != 2]
    images = others.images.clone()
    images[..., 14:, 14:] = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)
    return ImageSet(images, torch.full_like(others.labels, 2))


def asr(module: torch.nn.Module) -> float:
    return accuracy(Classifier(module, to_unit, Compute()), cornered(TEST))


def sanitized(
    module: torch.nn.Module, clean: ImageSet, config: rnp_hub.SanitizeConfig
) -> Sanitized:
    return rnp_hub.sanitize(module, clean.images, clean.labels, config, compute=Compute())


@pytest.fixture(scope="module")
def healed() -> Sanitized:
    """With the default transform, which takes uint8 and floats differently."""
    return sanitized(Planted(), CLEAN, CONFIG)


def test_a_planted_backdoor_is_found_and_cut(healed: Sanitized) -> None:
    assert healed.scanned is not None
    verdict = healed.scanned.verdict
    assert (verdict.backdoored, verdict.label) == (True, 2)
    assert healed.scanned.suspected is not None
    assert healed.scanned.suspected.kind == "patch"
    assert healed.pruned.silenced == {"norm": (4,)}
    assert healed.healed is not None
    assert healed.healed.residual is False
    assert asr(Planted()) == 1
    assert asr(healed.module) == 0
    assert accuracy(Classifier(healed.module, to_unit, Compute()), TEST) == 1


def test_what_is_left_is_measured_with_old_triggers_and_new(healed: Sanitized) -> None:
    assert healed.healed is not None
    kinds = [each.kind for each in healed.healed.left]
    assert "patch" in kinds
    assert "patch anew" in kinds
    assert all(each.asr.value < 0.5 for each in healed.healed.left)


@pytest.fixture(scope="module")
def acquitted() -> Sanitized:
    return sanitized(Planted(strength=0.0), CLEAN, CONFIG)


def test_a_clean_network_keeps_its_weights(acquitted: Sanitized) -> None:
    assert acquitted.scanned is not None
    assert acquitted.scanned.verdict.backdoored is False
    assert (acquitted.pruned.rule, acquitted.pruned.count) == ("none", 0)
    assert (acquitted.recovered, acquitted.healed) == (None, None)
    original = Planted(strength=0.0).state_dict()
    assert all(
        torch.equal(original[name], each) for name, each in acquitted.module.state_dict().items()
    )


@pytest.mark.parametrize(("grave", "soften"), [(False, True), (False, False), (True, True)])
def test_masks_spend_less_where_nothing_is_suspected(
    acquitted: Sanitized, monkeypatch: pytest.MonkeyPatch, *, grave: bool, soften: bool
) -> None:
    """With `--force` an eighth of what may be lost, and a twentieth of it by one filter, of the
    slice and three copies, on which a network is not at home, and all of it in pictures that were
    right; half, and of the slice alone, where the lean is suspicious."""
    assert acquitted.scanned is not None
    verdict = replace(acquitted.scanned.verdict, backdoored=None if grave else False, leans=grave)
    scanned = replace(acquitted.scanned, verdict=verdict)
    asked = []

    def noted(*given: Any) -> Pruned:
        assert torch.equal(given[2].images, CLEAN.images)
        asked.append((given[5], given[3].max_ca_drop, given[3].guard, given[3].max_wrong))
        return prune(*given)

    monkeypatch.setattr("rnp_hub.method.scan", lambda *_: scanned)
    monkeypatch.setattr("rnp_hub.method.prune", noted)
    config = rnp_hub.SanitizeConfig.of(
        seed=3, flip=False, max_ca_drop=0.04, force=not grave, soften=soften
    )
    result = sanitized(Planted(strength=0.0), CLEAN, config)
    ((watched, most, guard, wrong),) = asked
    assert (most, guard, wrong) == (
        (0.02, pytest.approx(0.008), None) if grave else (0.005, pytest.approx(0.002), 0.04)
    )
    if grave:
        assert watched is None
    else:
        expected = SoftenConfig(flip=False, seed=3).watched(CLEAN)
        assert torch.equal(watched.images, expected.images)
        assert torch.equal(watched.images[: len(CLEAN)], CLEAN.images)
        assert torch.equal(watched.labels, CLEAN.labels.repeat(4))
        copies = watched.images[len(CLEAN) :].split(len(CLEAN))
        assert all(not torch.equal(copy, CLEAN.images) for copy in copies)
    before = Classifier(Planted(strength=0.0), to_unit, Compute())
    assert result.pruned.accuracies[0] == accuracy(before, CLEAN)
    assert result.pruned.rule == "guarded"


def test_pictures_of_floats_give_the_same_verdict(healed: Sanitized) -> None:
    floats = ImageSet(CLEAN.images.float() / 255, CLEAN.labels)
    result = sanitized(Planted(), floats, CONFIG)
    assert result.scanned is not None
    assert (result.scanned.verdict.backdoored, result.scanned.verdict.label) == (True, 2)
    assert result.pruned.silenced == healed.pruned.silenced


def test_masks_are_learned_on_what_the_scan_unlearned_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """On pixels, though the pictures were given as floats."""
    given: list[Tensor] = []

    def noted(network: Classifier, clean: ImageSet, *rest: Any) -> Recovered:
        given.append(clean.images)
        return recover(network, clean, *rest)

    monkeypatch.setattr("rnp_hub.method.recover", noted)
    floats = ImageSet(CLEAN.images.float() / 255, CLEAN.labels)
    sanitized(Planted(), floats, CONFIG)
    assert [images.dtype for images in given] == [torch.uint8]


def test_floats_are_scaled_where_the_transform_scales_uint8() -> None:
    classifier = Classifier(Planted(), to_unit_range, Compute())
    taken, same = as_pixels(classifier, CLEAN)
    assert same is CLEAN
    expected = classifier.logits(CLEAN.images[:4])
    assert torch.allclose(taken.logits(CLEAN.images[:4]), expected)
    assert torch.allclose(taken.logits(CLEAN.images[:4].float()), expected)


def test_a_transform_that_takes_floats_for_something_else_is_refused() -> None:
    classifier = Classifier(
        Planted(), lambda images: images / (3 if images.is_floating_point() else 2), Compute()
    )
    with pytest.raises(DataError, match="surrogate triggers are learned through floats"):
        as_pixels(classifier, CLEAN)


def unlearned(histogram: tuple[int, ...]) -> Unlearned:
    return Unlearned(Classifier(torch.nn.Identity()), (1.0, 0.5), 20, 0, histogram)


def test_of_a_thousand_labels_the_suspects_and_some_others_are_looked_at() -> None:
    histogram = [0] * 1000
    histogram[700], histogram[3], histogram[999] = 400, 60, 40
    config = SurrogateConfig(labels=10)
    labels = _labels(unlearned(tuple(histogram)), torch.zeros(5, 1000), config)
    assert len(set(labels)) == len(labels) == 10
    assert {700, 3, 999} <= set(labels)
    assert labels == _labels(unlearned(tuple(histogram)), torch.zeros(5, 1000), config)


def test_of_few_labels_all_are_looked_at() -> None:
    assert _labels(unlearned((1, 1, 1, 1)), torch.zeros(5, 4), SurrogateConfig()) == [0, 1, 2, 3]


def test_of_large_pictures_fewer_are_looked_at() -> None:
    config = CONFIG.scan
    assert config is not None
    assert config.affordable(32, 32) == config.affordable(96, 96) == config
    large = config.affordable(224, 224)
    assert (large.surrogate.labels, large.surrogate.batch_size) == (6, 8)
    assert large.guided.max_ca_drop == config.guided.max_ca_drop


def test_masks_of_large_pictures_are_learned_on_fewer_and_fewer_filters_are_tried() -> None:
    assert CONFIG.affordable(32, 32) == CONFIG.affordable(96, 96) == CONFIG
    large = CONFIG.affordable(224, 224)
    assert large.affordable(224, 224) == large
    assert CONFIG.scan is not None
    assert large.scan == CONFIG.scan.affordable(224, 224)
    assert (large.recover.epochs, large.recover.batch_size, large.prune.tried) == (5, 32, 24)
    assert large.prune.max_ca_drop == CONFIG.prune.max_ca_drop
    published = rnp_hub.SanitizeConfig.of("reference")
    assert published.affordable(224, 224) == published, "its numbers are those of the paper"


@pytest.mark.parametrize(
    ("score", "leans", "competent", "same", "tangible", "grave"),
    [
        (0.51, False, True, False, True, True),  # as high as a conviction, whatever the lean
        (0.51, False, False, False, True, True),
        (0.45, False, True, False, True, True),  # nearly so
        (0.45, False, False, False, True, True),
        (0.44, False, True, True, False, False),
        (0.25, False, True, True, False, False),  # weak, and nothing else speaks for it
        (0.25, True, True, True, True, True),  # weak, and the lean names the same label
        (0.25, True, True, False, False, True),  # the lean speaks for another: masks choose
        (0.1, True, True, True, False, True),
        (0.1, False, True, True, False, False),
        (0.25, True, False, True, False, False),  # often wrong, so that a lean says nothing
        (0.1, True, False, True, False, False),
    ],
)
def test_a_weak_suspicion_alone_touches_no_weight(
    acquitted: Sanitized,
    *,
    score: float,
    leans: bool,
    competent: bool,
    same: bool,
    tangible: bool,
    grave: bool,
) -> None:
    scanned = acquitted.scanned
    assert scanned is not None
    assert scanned.suspected is not None
    label = scanned.suspected.label
    verdict = replace(
        scanned.verdict,
        backdoored=None,
        score=score,
        leans=leans,
        competent=competent,
        leaning=label if same else label + 1,
    )
    found = replace(scanned, verdict=verdict)
    assert (found.is_tangible, found.is_grave) == (tangible, grave)
