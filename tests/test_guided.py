"""Pruning guided by surrogates: which filter goes, and when it stops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rnp_hub.guided import GuidedConfig, Step, Trail, follow
from rnp_hub.network import Classifier
from rnp_hub.sites import Site
from rnp_hub.surrogate import Halves, Surrogate, SurrogateConfig, reconstruct
from tests.networks import stripes

CLEAN = stripes(160)
HALVES = Halves.of(CLEAN, seed=0)
CONFIG = GuidedConfig(flip=False)
UNIT = 5.0


@pytest.fixture(scope="module")
def surrogates(planted: Classifier) -> dict[int, Surrogate]:
    return reconstruct(planted, HALVES, range(4), SurrogateConfig(kinds=("patch",)))["patch"]


def test_the_planted_filter_goes_and_nothing_else(
    planted: Classifier, planted_sites: tuple[Site, ...], surrogates: dict[int, Surrogate]
) -> None:
    before = {name: each.clone() for name, each in planted.module.state_dict().items()}
    trail = follow(planted, planted_sites, [surrogates[2]], CLEAN, HALVES, UNIT, CONFIG)
    assert trail.start == (1.0, 1.0)
    assert trail.best == (Step("norm", 4, 1.0, 0.0),)
    assert trail.steps == trail.best
    after = planted.module.state_dict()
    assert all(torch.equal(after[name], each) for name, each in before.items())
    assert not any(part._forward_hooks for part in planted.module.modules())


def test_what_the_clean_task_needs_stays(
    planted: Classifier, planted_sites: tuple[Site, ...], surrogates: dict[int, Surrogate]
) -> None:
    """A label without a backdoor: only its own filter would take its surrogate away."""
    loud = replace(surrogates[0], asr=surrogates[2].asr)
    trail = follow(planted, planted_sites, [loud], CLEAN, HALVES, UNIT, replace(CONFIG, goal=-1.0))
    assert ("norm", 0) not in [(step.site, step.index) for step in trail.steps]
    assert all(step.accuracy >= 0.99 for step in trail.steps)


def test_an_accuracy_that_may_go_is_not_gone_beyond(
    planted: Classifier, planted_sites: tuple[Site, ...], surrogates: dict[int, Surrogate]
) -> None:
    spend = replace(CONFIG, max_ca_drop=0.3, guard=0.3, goal=-1.0)
    trail = follow(planted, planted_sites, [surrogates[0]], CLEAN, HALVES, UNIT, spend)
    assert all(step.accuracy >= 0.7 for step in trail.steps)


def test_it_goes_on_after_what_is_silenced_already(
    planted: Classifier, planted_sites: tuple[Site, ...], surrogates: dict[int, Surrogate]
) -> None:
    trail = follow(
        planted, planted_sites, [surrogates[2]], CLEAN, HALVES, UNIT, CONFIG, after=[("norm", 4)]
    )
    assert trail.start == (1.0, 0.0)
    assert trail.steps == ()


def test_no_more_filters_than_are_allowed(
    planted: Classifier, planted_sites: tuple[Site, ...], surrogates: dict[int, Surrogate]
) -> None:
    config = replace(CONFIG, filters=0)
    assert follow(planted, planted_sites, [surrogates[2]], CLEAN, HALVES, UNIT, config).steps == ()


def test_the_best_of_a_trail_has_the_least_asr_with_the_fewest_filters() -> None:
    rates = [0.9, 0.4, 0.1, 0.1, 0.3]
    steps = tuple(Step("norm", index, 1.0, rate) for index, rate in enumerate(rates))
    assert Trail((1.0, 1.0), steps).best == steps[:3]
    assert Trail((1.0, 0.1), steps).best == ()
    assert Trail((1.0, 0.5), ()).best == ()
