"""The verdict, on surrogates that are made up."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from rnp_hub.compute import Compute, seeded
from rnp_hub.evaluate import Rate
from rnp_hub.guided import Step, Trail
from rnp_hub.network import Classifier, to_unit_range
from rnp_hub.surrogate import Surrogate
from rnp_hub.trigger_kinds import Patch
from rnp_hub.unlearn import Unlearned
from rnp_hub.verdict import is_doubtful, judge, stands_out, suspicion, telling

UNIT = 4.0


def surrogate(kind: str, label: int, margin: float, asr: float = 0.9) -> Surrogate:
    trigger = Patch((3, 4, 4), seeded(0))
    return Surrogate(kind, label, trigger, 0.02, margin, Rate.of(round(100 * asr), 100))


def found(**margins: list[float]) -> dict[str, dict[int, Surrogate]]:
    return {
        kind: {label: surrogate(kind, label, margin) for label, margin in enumerate(of_kind)}
        for kind, of_kind in margins.items()
    }


def unlearned(*histogram: int) -> Unlearned:
    network = Classifier(torch.nn.Identity(), to_unit_range, Compute())
    return Unlearned(network, (1.0, 0.5), 20, 0, histogram)


def trail(*rates: float, accuracy: float = 1.0) -> Trail:
    steps = tuple(Step("norm", index, accuracy, rate) for index, rate in enumerate(rates[1:]))
    return Trail((accuracy, rates[0]), steps)


def test_the_label_that_is_furthest_ahead_in_any_kind() -> None:
    suspected = suspicion(found(patch=[1.0, 2.0, 0.0], additive=[5.0, 0.0, 3.0]), UNIT)
    assert suspected is not None
    assert (suspected.label, suspected.kind, suspected.gap) == (0, "additive", 2.0 / UNIT)
    assert [each.kind for each in suspected.surrogates] == ["additive"]


@pytest.mark.parametrize(
    ("patch", "followed"),
    [
        ([3.0, 2.0, 0.0], ["additive", "patch"]),  # a quarter ahead
        ([2.5, 2.0, 0.0], ["additive"]),  # an eighth, as in any network
        ([2.0, 3.0, 0.0], ["additive"]),  # another label's is better
    ],
)
def test_another_kind_is_followed_where_it_stands_out_too(
    patch: list[float], followed: list[str]
) -> None:
    suspected = suspicion(found(patch=patch, additive=[5.0, 0.0, 3.0]), UNIT)
    assert suspected is not None
    assert [each.kind for each in suspected.surrogates] == followed


def test_where_all_fail_the_best_of_them_is_looked_at() -> None:
    suspected = suspicion(found(patch=[-5.0, -4.0], warp=[-3.0, -2.0]), UNIT)
    assert suspected is not None
    assert (suspected.kind, suspected.label, suspected.gap) == ("warp", 1, 0.0)


def test_what_hardly_works_is_not_followed() -> None:
    surrogates = found(patch=[5.0, 0.0])
    surrogates["warp"] = {0: surrogate("warp", 0, 1.0, asr=0.29), 1: surrogate("warp", 1, 0.5)}
    suspected = suspicion(surrogates, UNIT)
    assert suspected is not None
    assert [each.kind for each in suspected.surrogates] == ["patch"]


def test_what_healing_ends_besides_has_to_work_and_lead_too() -> None:
    surrogates = found(patch=[5.0, 0.0], blend=[4.9, 4.0], warp=[1.0, 2.0], colour=[3.0, 0.0])
    surrogates["colour"][0] = surrogate("colour", 0, 3.0, asr=0.29)
    surrogates["wave"] = {0: surrogate("wave", 0, 5.0)}
    assert [each.kind for each in telling(surrogates, 0, UNIT)] == ["patch", "blend"]
    assert telling(surrogates, 7, UNIT) == []


@pytest.mark.parametrize(
    ("kind", "asr", "doubtful"),
    [("patch", 0.5, True), ("patch", 0.49, False), ("ripple", 1.0, False), ("wave", 1.0, False)],
)
def test_there_is_doubt_where_clean_networks_have_no_such(
    kind: str, asr: float, doubtful: bool
) -> None:
    assert is_doubtful(surrogate(kind, 0, 1.0, asr)) is doubtful


def test_one_that_fails_stands_out_nowhere() -> None:
    suspected = suspicion(found(patch=[-5.0, -40.0, -80.0], warp=[2.0, 1.0, -9.0]), UNIT)
    assert suspected is not None
    assert (suspected.kind, suspected.gap) == ("warp", 1.0 / UNIT)


@pytest.mark.parametrize(("second", "gap"), [(1.0, 1.0), (-1.5, 3.5), (-2.0, 4.0), (-9.0, 4.0)])
def test_others_fail_by_no_more_than_the_first_works(second: float, gap: float) -> None:
    suspected = suspicion(found(warp=[second, 2.0]), UNIT)
    assert suspected is not None
    assert (suspected.label, suspected.gap) == (1, gap / UNIT)


@pytest.mark.parametrize(("kind", "natural", "most"), [("wave", 1.5, 0.2), ("ripple", 5, 1.0)])
def test_waves_have_to_come_further_than_those_of_clean_networks(
    kind: str, natural: float, most: float
) -> None:
    """`most` is about the largest gap that a clean network was seen to have; the drop is 0.9."""
    for gap, convicted in ((0.6 * natural, True), (most, False)):
        suspected = suspicion(found(**{kind: [gap * UNIT, 0.0], "patch": [0.1, 0.0]}), UNIT)
        assert suspected is not None
        assert suspected.kind == kind
        verdict = judge(suspected, trail(1.0, 0.1), unlearned(50, 50))
        assert verdict.backdoored is convicted
    smaller = suspicion(found(**{kind: [0.9 * natural * UNIT, 0.0], "patch": [0.0, UNIT]}), UNIT)
    assert smaller is not None
    assert (smaller.kind, smaller.label) == ("patch", 1)


@pytest.mark.parametrize("surrogates", [{}, found(patch=[1.0])])
def test_a_label_alone_is_compared_with_nothing(
    surrogates: Mapping[str, Mapping[int, Surrogate]],
) -> None:
    assert suspicion(surrogates, UNIT) is None
    verdict = judge(None, None, unlearned(1, 1))
    assert (verdict.backdoored, verdict.label) == (None, None)
    assert verdict.doubt == "fewer than two labels can be compared"


@pytest.mark.parametrize(
    ("ahead", "rates", "backdoored", "score"),
    [
        (4.0, (1.0, 0.4, 0.0), True, 1.0),  # dies: the gap counts in full
        (4.0, (1.0, 0.9), None, 0.25),  # hardly dies: a quarter of it
        (4.0, (1.0,), None, 0.25),
        (6.0, (1.0,), None, 0.375),
        (8.0, (1.0,), True, 0.5),
        (1.2, (1.0, 0.0), None, 0.3),
        (0.7, (1.0, 0.0), False, 0.175),
        (2.0, (1.0, 0.5), None, 0.25),
    ],
)
def test_the_score_is_gap_times_drop(
    ahead: float, rates: tuple[float, ...], backdoored: bool | None, score: float
) -> None:
    suspected = suspicion(found(patch=[ahead, 0.0, -1.0]), UNIT)
    verdict = judge(suspected, trail(*rates), unlearned(1, 1, 1))
    assert verdict.backdoored is backdoored
    assert verdict.score == pytest.approx(score)
    assert verdict.label == (None if backdoored is False else 0)
    between = "from 0.5 on it is convicted, below 0.2 acquitted"
    assert verdict.doubt == (between if backdoored is None else None)


def test_the_gap_of_a_wave_counts_whether_it_dies_or_not() -> None:
    for rates in ((1.0,), (1.0, 0.0)):
        suspected = suspicion(found(wave=[0.9 * UNIT, 0.0, -UNIT]), UNIT)
        verdict = judge(suspected, trail(*rates), unlearned(1, 1, 1))
        assert (verdict.backdoored, verdict.score) == (True, pytest.approx(0.6))


@pytest.mark.parametrize(
    ("ahead", "rates", "score"),
    [(4.0, (1.0,), 0.5), (4.0, (1.0, 0.6), 0.5), (4.0, (1.0, 0.2), 0.8), (3.8, (1.0,), 0.475)],
)
def test_a_colour_counts_half_where_it_does_not_die(
    ahead: float, rates: tuple[float, ...], score: float
) -> None:
    suspected = suspicion(found(colour=[ahead, 0.0, -1.0]), UNIT)
    verdict = judge(suspected, trail(*rates), unlearned(1, 1, 1))
    assert verdict.score == pytest.approx(score)
    assert verdict.backdoored is (True if score >= 0.5 else None)


def test_a_network_that_is_often_wrong_is_not_convicted() -> None:
    suspected = suspicion(found(patch=[8.0, 0.0, 0.0]), UNIT)
    verdict = judge(suspected, trail(1.0, 0.0, accuracy=0.79), unlearned(1, 1, 1))
    assert (verdict.backdoored, verdict.label, verdict.score) == (None, 0, 2.0)
    assert not verdict.competent
    assert verdict.doubt == "the network is right about less than 80 % of the slice"
    weaker = judge(
        suspicion(found(patch=[1.2, 0.0, 0.0]), UNIT),
        trail(1.0, 0.0, accuracy=0.79),
        unlearned(1, 1, 1),
    )
    assert weaker.doubt == verdict.doubt, "it would not be convicted with a higher score either"
    enough = judge(suspected, trail(1.0, 0.0, accuracy=0.8), unlearned(1, 1, 1))
    assert enough.backdoored
    assert enough.competent


def test_a_lean_alone_forbids_an_acquittal() -> None:
    suspected = suspicion(found(patch=[0.1, 0.0, 0.0]), UNIT)
    assert judge(suspected, trail(1.0), unlearned(*[10] * 10)).backdoored is False
    assert judge(suspected, trail(1.0), unlearned(*[61] * 9, 351)).backdoored is False
    leaning = judge(suspected, trail(1.0), unlearned(*[60] * 9, 460))
    assert (leaning.backdoored, leaning.label, leaning.lean) == (None, 9, 0.46)
    assert leaning.doubt == "46 % of the slice leans to this label once half is unlearned"
    assert judge(suspected, trail(1.0), unlearned(10, 90)).backdoored is False


def test_a_surrogate_anew_is_alive_where_it_is_ahead_and_works() -> None:
    others = [surrogate("patch", 1, 1.0), surrogate("patch", 2, 0.5)]
    assert stands_out(surrogate("patch", 0, 2.0, asr=0.5), others, UNIT)
    assert not stands_out(surrogate("patch", 0, 2.0, asr=0.49), others, UNIT)
    assert not stands_out(surrogate("patch", 0, 1.7), others, UNIT)
