"""Softening: masks that take a trigger away where no filter may go, or where pruning was enough."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnp_hub.evaluate import Rate, accuracy
from rnp_hub.head import features, heads
from rnp_hub.heal import ROUNDS, SOFTENINGS, WORKS, Healed, _besides, heal
from rnp_hub.hooks import gates, scale
from rnp_hub.method import SanitizeConfig
from rnp_hub.network import Classifier
from rnp_hub.progress import quiet
from rnp_hub.prune import silenced_copy
from rnp_hub.recover import Recovered
from rnp_hub.scan import ScanConfig, Scanned, scan
from rnp_hub.sites import Site, gate_sites
from rnp_hub.soften import (
    QUIET,
    Masks,
    SoftenConfig,
    Softened,
    led_to,
    masked_copy,
    soften,
    strayed,
)
from rnp_hub.surrogate import Halves, Surrogate, SurrogateConfig, again, reconstruct
from rnp_hub.trigger_kinds import Trigger
from tests.networks import SmallResNet, randomised, stripes

CLEAN = stripes(160)
HALVES = Halves.of(CLEAN, seed=0)
CONFIG = SoftenConfig(flip=False, copies=0)
NO_MASKS = Recovered({}, {}, (), ())


@pytest.fixture(scope="module")
def surrogate(planted: Classifier) -> Surrogate:
    asked = SurrogateConfig(kinds=("patch",))
    return reconstruct(planted, HALVES, range(4), asked)["patch"][2]


def test_weights_times_a_mask_are_the_gate() -> None:
    """At a norm, at a layer's rows and at a layer's columns."""
    module = randomised(
        nn.Sequential(SmallResNet(classes=6), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 4))
    ).double()
    found = [*gate_sites(module), Site("1", 6, "output"), Site("3", 3, "input")]
    generator = torch.Generator().manual_seed(0)
    masks = {
        site: 2 * torch.rand(site.filters, generator=generator, dtype=torch.float64)
        for site in dict.fromkeys(found)
    }
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=generator)
    plain = module(x)
    with gates(module, masks):
        gated = module(x)
    scale(module, masks)
    assert {site.kind for site in masks} == {"norm", "output", "input"}
    assert torch.allclose(module(x), gated, rtol=0, atol=1e-12)
    assert not torch.allclose(plain, gated, atol=0.01)


def test_masks_of_filters_and_kernels_together_are_what_is_laid_on(
    planted: Classifier, planted_sites: tuple[Site, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = Masks(
        {site: 2 * torch.rand(site.filters, generator=generator) for site in planted_sites},
        {"look": torch.rand(5, 3, generator=generator)},
    )
    network = planted.copy()
    with masks.laid(network.module):
        laid = network.logits(CLEAN.images)
    assert torch.equal(network.logits(CLEAN.images), planted.logits(CLEAN.images))
    masks.multiply(network.module)
    torch.testing.assert_close(network.logits(CLEAN.images), laid, rtol=0, atol=1e-3)
    assert (network.logits(CLEAN.images) - planted.logits(CLEAN.images)).abs().max() > 1


def test_all_masks_that_are_not_one_have_moved() -> None:
    masks = Masks(
        {Site("norm", 4): torch.tensor([0, 0.5, 1.005, 2])},
        {"conv": torch.tensor([[1, 0.98], [0, 0.995]])},
    )
    assert (masks.moved_filters, masks.moved_kernels) == (3, 2)


def test_without_a_head_kernels_have_no_masks(
    planted: Classifier,
    planted_sites: tuple[Site, ...],
    surrogate: Surrogate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(CONFIG, doublings=0)
    monkeypatch.setattr("rnp_hub.soften.heads", lambda *_: [])
    learned = soften(planted, planted_sites, [], [surrogate], CLEAN, HALVES, config)
    assert learned is not None
    assert not learned.masks.kernels
    assert learned.masks.moved_filters > 0


def test_being_led_is_the_likelihood_of_another_label() -> None:
    """And has a slope where the label is as good as certain."""
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = -torch.log(1 - logits.softmax(1)[:, 2]).mean()
    assert led_to(logits, 2).item() == pytest.approx(expected.item(), rel=1e-12)

    certain = torch.tensor([[0.0, 90.0, 0.0]], requires_grad=True)
    led_to(certain, 1).backward()
    assert certain.grad is not None
    assert certain.grad.flatten().tolist() == pytest.approx([-0.5, 1.0, -0.5])


def test_the_trigger_dies_and_the_clean_task_lives(
    planted: Classifier, planted_sites: tuple[Site, ...], surrogate: Surrogate
) -> None:
    before = {name: each.clone() for name, each in planted.module.state_dict().items()}
    told = list[tuple[str, float]]()
    learned = soften(
        planted, planted_sites, [], [surrogate], CLEAN, HALVES, CONFIG,
        lambda stage, done, _: told.append((stage, done)),
    )  # fmt: skip
    assert learned is not None
    masks, softened = learned.masks, masked_copy(planted, learned.masks)
    assert learned.weight == CONFIG.weights[0]
    assert told[:: CONFIG.steps - 1][:2] == [("soften", 0.01), ("soften", 1.0)]
    assert surrogate.asr.value == 1.0
    assert again(softened, surrogate, HALVES.score).asr.value <= 0.05
    assert accuracy(softened, CLEAN) >= 0.98
    assert 1 <= masks.moved_filters <= 5
    assert all(bool(((mask >= 0) & (mask <= 2)).all()) for mask in masks.filters.values())
    assert masks.moved_kernels >= 1
    assert all(bool(((mask >= 0) & (mask <= 1)).all()) for mask in masks.kernels.values())
    assert all(
        torch.equal(planted.module.state_dict()[name], each) for name, each in before.items()
    )


def test_surrogates_are_learned_on_while_masks_are(
    planted: Classifier,
    planted_sites: tuple[Site, ...],
    surrogate: Surrogate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every ten of the hundred updates, from where they stood, and pictures carry them."""
    chased: list[Trigger] = []
    laid: set[int] = set()

    def chase(_network: Classifier, trigger: Trigger, *_: Any) -> Trigger:
        assert trigger is (chased[-1] if chased else surrogate.trigger)
        chased.append(copy.deepcopy(trigger))
        return chased[-1]

    def stamp(trigger: Trigger, images: Tensor) -> Tensor:
        laid.add(id(trigger))
        return images

    monkeypatch.setattr("rnp_hub.soften.chase", chase)
    monkeypatch.setattr(type(surrogate.trigger), "stamp", stamp)
    soften(planted, planted_sites, [], [surrogate], CLEAN, HALVES, replace(CONFIG, weights=(0.1,)))
    assert len(chased) == 9
    assert laid == {id(each) for each in (surrogate.trigger, *chased)}


def test_features_are_at_home_where_they_were() -> None:
    """0 where nothing has moved, 1 where all are their mean; the scale does not matter."""
    wanted = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    assert strayed(wanted, wanted) == 0
    mean = wanted.mean(0).expand_as(wanted)
    assert strayed(mean, wanted).item() == pytest.approx(1)
    assert strayed(7 * mean, 7 * wanted).item() == pytest.approx(1)
    assert strayed(1.001 * wanted[:1], wanted[:1]).item() == pytest.approx(1, rel=1e-3)
    assert strayed(wanted[:1] * 0, wanted[:1] * 0) == 0


def test_features_of_clean_pictures_are_kept(
    planted: Classifier, planted_sites: tuple[Site, ...], surrogate: Surrogate
) -> None:
    """The more they count the less they move; without that masks learn the slice by heart."""

    def moved(weight: float) -> float:
        config = replace(
            CONFIG, feature_weight=weight, weights=(0.5,), doublings=0, max_ca_drop=1.0
        )
        learned = soften(planted, planted_sites, [], [surrogate], CLEAN, HALVES, config)
        assert learned is not None
        found = masked_copy(planted, learned.masks)
        with features(heads(planted, CLEAN.images[:2])) as before:
            planted.predict(CLEAN.images)
        with features(heads(found, CLEAN.images[:2])) as after:
            found.predict(CLEAN.images)
        return strayed(torch.cat(after), torch.cat(before)).item()

    assert moved(10) < 0.5 * moved(0)


def test_silenced_filters_stay_silenced(
    planted: Classifier, planted_sites: tuple[Site, ...], surrogate: Surrogate
) -> None:
    learned = soften(planted, planted_sites, [("norm", 4)], [surrogate], CLEAN, HALVES, CONFIG)
    assert learned is not None
    assert [
        float(mask[4]) for site, mask in learned.masks.filters.items() if site.name == "norm"
    ] == [0.0]


def test_what_the_clean_task_cannot_bear_is_not_taken(
    planted: Classifier, planted_sites: tuple[Site, ...], surrogate: Surrogate
) -> None:
    """Nothing but the trigger counts here, and so hard that the task is lost."""
    harsh = replace(CONFIG, weights=(1e4,), learning_rate=1.0, max_ca_drop=0.0)
    assert soften(planted, planted_sites, [], [surrogate], CLEAN, HALVES, harsh) is None
    gentle = replace(harsh, weights=(1e4, 0.1), learning_rate=0.05)
    assert soften(planted, planted_sites, [], [surrogate], CLEAN, HALVES, gentle) is not None


@pytest.mark.parametrize(
    ("kept", "taken"),
    [
        ((0.87, 0.891, 0.9), 2),
        ((0.87, 0.885, 0.892), 3),
        ((0.87, 0.885, 0.885), None),
    ],
)
def test_the_first_affordable_weight_is_taken(
    planted: Classifier,
    planted_sites: tuple[Site, ...],
    surrogate: Surrogate,
    monkeypatch: pytest.MonkeyPatch,
    kept: tuple[float, ...],
    taken: int | None,
) -> None:
    accuracies = iter((0.9, *kept))
    monkeypatch.setattr("rnp_hub.soften.accuracy", lambda *_: next(accuracies))
    learned: dict[float, Masks] = {number: Masks({}, {}) for number in (1, 2, 3)}
    monkeypatch.setattr("rnp_hub.soften._Lesson.learn", lambda _, weight, **__: learned[weight])
    monkeypatch.setattr("rnp_hub.soften.masked_copy", lambda *_: planted)
    config = replace(CONFIG, weights=(1, 2, 3), kernels=True, max_ca_drop=0.01)
    found = soften(planted, planted_sites, [], [surrogate], CLEAN, HALVES, config)
    assert (found and found.masks) is (learned[taken] if taken else None)


@pytest.mark.parametrize(
    ("kept", "strength", "tried", "taken"),
    [
        ((0.91, 0.905, 0.895), 0.5, [1, 2, 4], 2),  # the third would cost half a point
        ((0.91, 0.91, 0.91, 0.91), 0.5, [1, 2, 4], 4),  # no more often than allowed
        ((0.895, 0.91), 0.5, [1], 1),  # affordable, but not free
        ((0.85, 0.91, 0.91), 0.5, [1, 0.5], 0.5),  # too dear at first
        ((0.91, 0.91), 0.0, [1], 1),  # nothing is left to be ended
    ],
)
def test_heavier_surrogates_are_tried_while_masks_cost_nothing(
    planted: Classifier,
    planted_sites: tuple[Site, ...],
    surrogate: Surrogate,
    monkeypatch: pytest.MonkeyPatch,
    kept: tuple[float, ...],
    strength: float,
    tried: list[float],
    taken: float,
) -> None:
    accuracies, lessons = iter((0.9, *kept)), list[float]()

    def learn(_self: object, weight: float, *, kernels: bool) -> Masks:
        assert kernels
        lessons.append(weight)
        return Masks({}, {"look": torch.ones(5, 3)})

    still = replace(surrogate, asr=Rate.of(round(10 * strength), 10))
    monkeypatch.setattr("rnp_hub.soften.accuracy", lambda *_: next(accuracies))
    monkeypatch.setattr("rnp_hub.soften._Lesson.learn", learn)
    monkeypatch.setattr("rnp_hub.soften.again", lambda *_: still)
    config = replace(CONFIG, weights=(1, 0.5), kernels=True, doublings=2, max_ca_drop=0.01)
    found = soften(planted, planted_sites, [], [surrogate], CLEAN, HALVES, config)
    assert found is not None
    assert found.weight == taken
    assert lessons == tried


@pytest.mark.parametrize(
    ("kept", "tried"),
    [
        ((0.895,), [(1, True)]),  # affordable at once
        ((0.85, 0.84, 0.895), [(1, True), (1, False), (0.5, True)]),
        ((0.85, 0.87, 0.895), [(1, True), (1, False), (0.5, False)]),
        ((0.85, 0.895), [(1, True), (1, False)]),
    ],
)
def test_kernels_have_masks_unless_that_is_dearer(
    planted: Classifier,
    planted_sites: tuple[Site, ...],
    surrogate: Surrogate,
    monkeypatch: pytest.MonkeyPatch,
    kept: tuple[float, ...],
    tried: list[tuple[float, bool]],
) -> None:
    """Which is asked once, and only where the first masks cost too much."""
    accuracies, lessons = iter((0.9, *kept)), list[tuple[float, bool]]()

    def learn(_self: object, weight: float, *, kernels: bool) -> Masks:
        lessons.append((weight, kernels))
        return Masks({}, {"look": torch.ones(5, 3)} if kernels else {})

    monkeypatch.setattr("rnp_hub.soften.accuracy", lambda *_: next(accuracies))
    monkeypatch.setattr("rnp_hub.soften._Lesson.learn", learn)
    config = replace(CONFIG, weights=(1, 0.5), max_ca_drop=0.01)
    found = soften(planted, planted_sites, [], [surrogate], CLEAN, HALVES, config)
    assert found is not None
    assert lessons == tried
    assert (found.weight, bool(found.masks.kernels)) == tried[-1]


def scan_config(*, soften: bool = True) -> ScanConfig:
    config = SanitizeConfig.of(flip=False, soften=soften).scan
    assert config is not None
    return config


def healed_without_cutting(
    planted: Classifier, sites: tuple[Site, ...], scanned: Scanned, *, soften: bool = True
) -> Healed:
    """Pruning is not given a single filter."""
    config = scan_config(soften=soften)
    config = replace(config, guided=replace(config.guided, filters=0))
    return heal(planted, CLEAN, sites, replace(scanned, trail=None), NO_MASKS, config)


@pytest.fixture(scope="module")
def scanned(planted: Classifier, planted_sites: tuple[Site, ...]) -> Scanned:
    return scan(planted, CLEAN, planted_sites, scan_config())


def test_where_nothing_is_to_be_gained_no_masks_are_learned(
    planted: Classifier,
    planted_sites: tuple[Site, ...],
    scanned: Scanned,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cutting cost nothing and ended all surrogates."""
    monkeypatch.setattr("rnp_hub.heal.soften", lambda *_: pytest.fail("masks are learned"))
    healed = heal(planted, CLEAN, planted_sites, scanned, NO_MASKS, scan_config())
    assert [step.filter for step in healed.steps] == [("norm", 4)]
    assert healed.masks is None
    assert not healed.residual


@pytest.mark.parametrize("allowed", [True, False])
def test_where_no_filter_may_go_masks_do(
    planted: Classifier, planted_sites: tuple[Site, ...], scanned: Scanned, *, allowed: bool
) -> None:
    healed = healed_without_cutting(planted, planted_sites, scanned, soften=allowed)
    assert healed.steps == ()
    assert (healed.masks is not None) == allowed
    assert healed.residual == (not allowed)


@pytest.mark.parametrize(
    ("kind", "left", "anew", "learned", "kept"),
    [
        ("patch", 0.3, 0.3, True, True),
        ("patch", 0.4, 0.3, True, False),  # the one it was learned against is too strong
        ("patch", 0.3, 0.4, True, False),  # another has taken its place
        ("ripple", 0.3, 0.3, False, False),  # every network has one
    ],
)
def test_masks_are_learned_where_a_new_surrogate_works_though_it_does_not_stand_out(
    planted: Classifier,
    planted_sites: tuple[Site, ...],
    scanned: Scanned,
    surrogate: Surrogate,
    monkeypatch: pytest.MonkeyPatch,
    *,
    kind: str,
    left: float,
    anew: float,
    learned: bool,
    kept: bool,
) -> None:
    """Against it too, for half the price; kept where nothing more than half as strong is left."""
    works = replace(surrogate, kind=kind, asr=Rate.of(6, 10), margin=-100.0)
    later = replace(works, asr=Rate.of(round(10 * anew), 10))
    lessons = list[Sequence[Surrogate]]()

    def strongest(_self: object, network: Classifier, found: Sequence[Surrogate]) -> float:
        if found == [works]:
            return left if lessons else 0.6
        return 0.0 if network is not planted else 1.0

    monkeypatch.setattr("rnp_hub.heal.soften", half_priced(lessons, planted_sites))
    monkeypatch.setattr("rnp_hub.heal._Healing.fresh", lambda *_: [later if lessons else works])
    monkeypatch.setattr("rnp_hub.heal._Healing._strongest", strongest)
    monkeypatch.setattr(
        "rnp_hub.heal._Healing.mended", lambda *_: pytest.fail("twice") if learned else None
    )
    config = scan_config()
    healed = heal(planted, CLEAN, planted_sites, scanned, NO_MASKS, config)
    assert [step.filter for step in healed.steps] == [("norm", 4)]
    assert [lesson[-1] is works for lesson in lessons] == [True] * learned
    assert (healed.masks is not None) == kept
    assert not healed.residual
    lessons.clear()
    unsoftened = heal(
        planted, CLEAN, planted_sites, scanned, NO_MASKS, replace(config, soften=None)
    )
    assert unsoftened.masks is None
    assert not lessons


@pytest.mark.parametrize(
    ("stays", "left", "learned", "kept"),
    [
        (0.6, 0.2, True, True),
        (0.6, 0.4, True, False),  # the masks do too little
        (0.4, 0.2, False, False),  # pruning has ended it as far as in clean networks
    ],
)
def test_masks_are_learned_where_what_judges_nothing_still_works(
    planted: Classifier,
    planted_sites: tuple[Site, ...],
    scanned: Scanned,
    surrogate: Surrogate,
    monkeypatch: pytest.MonkeyPatch,
    *,
    stays: float,
    left: float,
    learned: bool,
    kept: bool,
) -> None:
    """For half the price; and however strong it is, nothing is said to be left for it."""
    beside = replace(surrogate, kind="blend")
    lessons = list[Sequence[Surrogate]]()

    def strongest(_self: object, network: Classifier, found: Sequence[Surrogate]) -> float:
        if list(found) == [beside]:
            return left if lessons else stays
        assert beside not in found
        return 0.0 if network is not planted else 1.0

    dead = replace(surrogate, asr=Rate.of(0, 10), margin=-100.0)
    monkeypatch.setattr("rnp_hub.heal._besides", lambda *_: (beside,))
    monkeypatch.setattr("rnp_hub.heal.soften", half_priced(lessons, planted_sites))
    monkeypatch.setattr("rnp_hub.heal._Healing.fresh", lambda *_: [dead])
    monkeypatch.setattr("rnp_hub.heal._Healing._strongest", strongest)
    monkeypatch.setattr(
        "rnp_hub.heal._Healing.mended", lambda *_: pytest.fail("twice") if learned else None
    )
    healed = heal(planted, CLEAN, planted_sites, scanned, NO_MASKS, scan_config())
    assert [lesson.count(beside) for lesson in lessons] == [1] * learned
    assert (healed.masks is not None) == kept
    assert not healed.residual
    assert all("blend" not in each.kind for each in healed.left)


@pytest.mark.parametrize(
    ("cost", "before", "after", "learned", "kept"),
    [
        (0.01, {"patch": 0.0}, {"patch": 0.0}, True, True),
        (0.01, {"patch": 0.0}, {"patch": 0.01}, True, True),  # which hardly works
        (0.01, {"patch": 0.0}, {"patch": 0.02}, True, False),  # another trigger works better
        (0.0, {"patch": 0.02}, {"patch": 0.02}, True, True),
        (0.0, {"patch": 0.02}, {"patch": 0.03}, True, False),
        (0.0, {"patch": 0.01}, {"patch": 0.0}, False, False),  # nothing is to be gained
        (0.0, {"patch": 0.02, "additive": 0.0}, {"patch": 0.0, "additive": 0.02}, True, True),
        # What clean networks have too says nothing of the others, nor do they of it.
        (0.0, {"patch": 0.0, "ripple": 0.8}, {"patch": 0.02, "ripple": 0.8}, True, False),
        (0.0, {"patch": 0.4, "ripple": 0.0}, {"patch": 0.4, "ripple": 0.02}, True, False),
        (0.0, {"ripple": 0.8}, {"ripple": 0.8}, True, True),
        (0.01, {"blend": 0.0}, {"blend": 0.02}, True, False),
        (0.01, {"blend": 0.9}, {"blend": 0.9}, True, True),
    ],
)
def test_masks_that_cost_nothing_are_learned_where_pruning_was_enough(
    planted: Classifier,
    planted_sites: tuple[Site, ...],
    scanned: Scanned,
    surrogate: Surrogate,
    monkeypatch: pytest.MonkeyPatch,
    *,
    cost: float,
    before: Mapping[str, float],
    after: Mapping[str, float],
    learned: bool,
    kept: bool,
) -> None:
    """Against the surrogates of the scan and the blend that was looked for besides."""
    lessons = list[tuple[Any, ...]]()

    def learn(*given: Any) -> Softened:
        lessons.append(given)
        return Softened(without_the_planted(planted_sites), 1.5)

    def fresh(*_: object) -> list[Surrogate]:
        left = after if lessons else before
        return [
            replace(surrogate, kind=kind, asr=Rate.of(round(100 * asr), 100), margin=-100.0)
            for kind, asr in left.items()
        ]

    monkeypatch.setattr("rnp_hub.heal.soften", learn)
    monkeypatch.setattr("rnp_hub.heal._Healing.fresh", fresh)
    monkeypatch.setattr("rnp_hub.heal._Healing._cost", lambda *_: cost)
    healed = heal(planted, CLEAN, planted_sites, scanned, NO_MASKS, scan_config())
    assert len(lessons) == learned
    for _, _, silenced, against, _, _, config, _ in lessons:
        assert silenced == [step.filter for step in healed.steps] == [("norm", 4)]
        assert scanned.suspected is not None
        assert {*scanned.suspected.surrogates} < {*against}
        assert any(each.kind == "blend" for each in against)
        assert config.max_ca_drop == 0
    assert (healed.masks is not None) == kept
    assert not healed.residual


@pytest.mark.parametrize(
    ("value", "margin"),
    [
        (1.0, -100.0),  # an old surrogate is back
        (0.0, 100.0),  # a new one is as strong as before, but stands out now
        (None, -100.0),  # masks would cost something
    ],
)
def test_masks_with_which_something_is_left_do_not_replace_pruning_that_was_enough(
    planted: Classifier,
    planted_sites: tuple[Site, ...],
    scanned: Scanned,
    surrogate: Surrogate,
    monkeypatch: pytest.MonkeyPatch,
    *,
    value: float | None,
    margin: float,
) -> None:
    lessons = list[object]()

    def learn(*given: Any) -> Softened | None:
        lessons.append(given)
        return None if value is None else Softened(on_the_planted(value, planted_sites), 1.5)

    natural = replace(surrogate, kind="ripple", asr=Rate.of(8, 10))
    monkeypatch.setattr("rnp_hub.heal.soften", learn)
    monkeypatch.setattr(
        "rnp_hub.heal._Healing.fresh",
        lambda *_: [replace(natural, margin=margin if lessons else -100.0)],
    )
    healed = heal(planted, CLEAN, planted_sites, scanned, NO_MASKS, scan_config())
    assert len(lessons) == 1
    assert healed.masks is None
    assert not healed.residual


def test_where_pruning_was_enough_masks_take_nothing_from_the_slice(
    planted: Classifier,
    planted_sites: tuple[Site, ...],
    scanned: Scanned,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rnp_hub.heal._Healing._cost", lambda *_: 0.01)
    config = scan_config()
    assert config.soften is not None
    healed = heal(planted, CLEAN, planted_sites, scanned, NO_MASKS, config)
    assert healed.masks is not None
    watched = config.soften.watched(CLEAN)
    pruned = silenced_copy(planted, planted_sites, [step.filter for step in healed.steps])
    assert accuracy(masked_copy(planted, healed.masks), watched) >= accuracy(pruned, watched)
    assert all(each.asr.value <= QUIET for each in healed.left)
    unsoftened = heal(
        planted, CLEAN, planted_sites, scanned, NO_MASKS, replace(config, soften=None)
    )
    assert unsoftened.masks is None


def test_a_blend_is_looked_for_where_there_is_something_to_heal(
    planted: Classifier, scanned: Scanned
) -> None:
    """The planted filter answers a red corner, to which a red blend leads a little."""
    asked = SurrogateConfig(kinds=("patch",), besides=("blend",))
    (found,) = _besides(planted, scanned, asked, quiet)
    assert (found.kind, found.label) == ("blend", 2)
    assert found.asr.value >= 0.3
    assert _besides(planted, scanned, replace(asked, besides=()), quiet) == ()


def test_masks_are_learned_against_what_still_stands_out_in_the_last_round(
    planted: Classifier,
    planted_sites: tuple[Site, ...],
    scanned: Scanned,
    surrogate: Surrogate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [replace(surrogate, margin=100.0 + number) for number in range(ROUNDS)]
    later, lessons = iter(found), list[Sequence[Surrogate]]()
    monkeypatch.setattr("rnp_hub.heal._Healing.fresh", lambda *_: [next(later)])
    monkeypatch.setattr("rnp_hub.heal.follow", lambda *_, **__: scanned.trail)
    monkeypatch.setattr("rnp_hub.heal.soften", lambda *given: lessons.append(given[3]))
    healed = heal(planted, CLEAN, planted_sites, scanned, NO_MASKS, scan_config())
    assert healed.residual
    assert len(lessons) == 1
    assert list(lessons[0][-ROUNDS:]) == found


def test_masks_are_learned_again_where_something_is_left(
    planted: Classifier,
    planted_sites: tuple[Site, ...],
    scanned: Scanned,
    surrogate: Surrogate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the surrogates that were found on the network softened first, and larger weights."""
    lessons, asked = list[int](), list[SoftenConfig]()

    def half_heartedly(*given: Any) -> Softened:
        lessons.append(len(given[3]))
        asked.append(given[6])
        return Softened(weakest_masks(planted, planted_sites, surrogate), 0.2)

    monkeypatch.setattr("rnp_hub.heal.soften", half_heartedly)
    healed = healed_without_cutting(planted, planted_sites, scanned)
    assert healed.residual
    assert len(lessons) == SOFTENINGS == 2
    assert lessons[0] < lessons[1]
    assert asked[1].weights == pytest.approx([0.4, 0.28, 0.2])
    allowed = [each.max_ca_drop for each in asked]
    assert allowed == [0.02, 0.01], "what was healed once is not so urgent"
    assert [each.kernels for each in asked] == [None, False], "as in the first masks"


def test_where_learning_again_is_too_dear_the_first_masks_stay(
    planted: Classifier,
    planted_sites: tuple[Site, ...],
    scanned: Scanned,
    surrogate: Surrogate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lessons = [Softened(weakest_masks(planted, planted_sites, surrogate), 0.5), None]
    monkeypatch.setattr("rnp_hub.heal.soften", lambda *_: lessons.pop(0))
    healed = healed_without_cutting(planted, planted_sites, scanned)
    assert not lessons
    assert healed.masks is not None
    assert healed.residual


def test_masks_that_are_learned_again_and_do_less_do_not_replace_the_first(
    planted: Classifier,
    planted_sites: tuple[Site, ...],
    scanned: Scanned,
    surrogate: Surrogate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = weakest_masks(planted, planted_sites, surrogate)
    weaker = Masks({site: (1 + mask) / 2 for site, mask in first.filters.items()}, {})
    stronger = Masks({site: mask**2 for site, mask in first.filters.items()}, {})
    for second, taken in ((weaker, first), (stronger, stronger)):
        lessons = [Softened(first, 0.5), Softened(second, 1.0)]
        monkeypatch.setattr("rnp_hub.heal.soften", lambda *_, left=lessons: left.pop(0))
        healed = healed_without_cutting(planted, planted_sites, scanned)
        assert not lessons
        assert healed.masks is taken


def half_priced(
    lessons: list[Sequence[Surrogate]], sites: tuple[Site, ...]
) -> Callable[..., Softened]:
    """In place of `soften`: notes the surrogates, and that masks may cost half of what they may."""

    def learn(*given: Any) -> Softened:
        assert given[6].max_ca_drop == pytest.approx(0.005)
        lessons.append(list(given[3]))
        return Softened(without_the_planted(sites), 0.5)

    return learn


def without_the_planted(sites: tuple[Site, ...]) -> Masks:
    """A mask of 0 on the planted filter, and of 1 on all others."""
    return on_the_planted(0, sites)


def weakest_masks(planted: Classifier, sites: tuple[Site, ...], surrogate: Surrogate) -> Masks:
    """A mask on the planted filter that leaves the surrogate some of its success."""
    for value in torch.linspace(1, 0, 201).tolist():
        masks = on_the_planted(value, sites)
        left = again(masked_copy(planted, masks), surrogate, HALVES.score).asr.value
        if left <= 0.45:
            break
    assert left > WORKS
    return masks


def on_the_planted(value: float, sites: tuple[Site, ...]) -> Masks:
    """A mask on the planted filter, and of 1 on all others."""
    masks = {site: torch.ones(site.filters) for site in sites}
    next(mask for site, mask in masks.items() if site.name == "norm")[4] = value
    return Masks(masks, {})
