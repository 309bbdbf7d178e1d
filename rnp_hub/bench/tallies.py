"""What the rows of the grid come to: every number of the page that no single row holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from rnp_hub.bench.defences import ABOUT, FORCED
from rnp_hub.bench.oracle import ANP_BEST
from rnp_hub.bench.rows import Row, median_seconds
from rnp_hub.evaluate import Rate

OURS = "ours"


def standard(rows: Iterable[Row]) -> list[Row]:
    """Rows with figures and today's settings, of 500 clean pictures and seed 0."""
    return [
        row
        for row in rows
        if row.is_current and row.ca is not None and (row.n, row.seed) == (500, 0)
    ]


# --- defences ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """One defence over the networks whose backdoor works.

    Attributes:
        defence: see `defences.ABOUT`.
        networks: how many.
        failed: on how many it gave up; they count as left as they were.
        asr, worst: mean and largest ASR after.
        above: mean of how far ASR after is above what a clean twin has, at least 0 each.
        worst_on: the network with the largest.
        worst_twin: what a clean twin of that network has; `None` where it is not known.
        drop: mean clean accuracy lost.
        cost: mean of max(0, clean accuracy lost) + ASR after.
        ours: the same of our method on the same networks; `None` where it ran on none of them.
        better, attacks: attacks on which ours costs less, of how many (means over networks).
        seconds: median, of those measured on processors.
    """

    defence: str
    networks: int
    failed: int
    asr: float
    above: float
    worst: float
    worst_on: str
    worst_twin: float | None
    drop: float
    cost: float
    ours: float | None
    better: int
    attacks: int
    seconds: float | None


def summaries(rows: Iterable[Row]) -> list[Summary]:
    """Every defence that was run, in the order of the tables."""
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in standard(rows):
        if row.works:
            found[row.defence][row.name] = row
    return [_summary(name, found[name], found.get(OURS, {})) for name in ABOUT if name in found]


def _summary(defence: str, rows: Mapping[str, Row], ours: Mapping[str, Row]) -> Summary:
    shared = [name for name in rows if name in ours]
    theirs_by, ours_by = (_cost_by_attack([of[name] for name in shared]) for of in (rows, ours))
    worst = max(rows.values(), key=_after)
    return Summary(
        defence,
        networks=len(rows),
        failed=sum(row.error is not None for row in rows.values()),
        asr=fmean(map(_after, rows.values())),
        above=fmean(max(0.0, _after(row) - _twin(row)) for row in rows.values()),
        worst=_after(worst),
        worst_on=worst.name,
        worst_twin=worst.twin.value if worst.twin else None,
        drop=fmean(row.drop for row in rows.values()),
        cost=fmean(row.cost for row in rows.values()),
        ours=fmean(ours[name].cost for name in shared) if shared else None,
        better=sum(ours_by[attack] < theirs_by[attack] for attack in theirs_by),
        attacks=len(theirs_by),
        seconds=median_seconds(rows.values()),
    )


def _after(row: Row) -> float:
    return row.asr[1].value if row.asr else 0.0


def _twin(row: Row) -> float:
    """0 where it is not known, so that nothing is taken off."""
    return row.twin.value if row.twin else 0.0


def _cost_by_attack(rows: Sequence[Row]) -> dict[str, float]:
    costs: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        costs[str(row.attack)].append(row.cost)
    return {attack: fmean(each) for attack, each in costs.items()}


# --- surrogates -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """Surrogate ASR (the largest of all kinds) and true ASR of one network."""

    surrogate: float
    true: float
    after: bool


def points(rows: Iterable[Row]) -> list[Point]:
    """Two of each network that has a trigger and surrogates: before and after."""
    found = []
    for row in standard(rows):
        surrogate = row.judgement.surrogate if row.judgement else {}
        if row.defence == OURS and row.asr and surrogate:
            for place, rate in enumerate(row.asr):
                largest = max(pair[place] for pair in surrogate.values())
                found.append(Point(largest, rate.value, place == 1))
    return found


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Rank correlation in [-1, 1], ties at their mean rank; `None` where one side is constant."""
    ranks = np.array([_ranks([pair[side] for pair in pairs]) for side in (0, 1)])
    if len(pairs) < 2 or (np.ptp(ranks, axis=1) == 0).any():
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


# --- verdicts ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdicts:
    """What a defence says of the networks: backdoored or not, and for which label.

    Attributes:
        auc: area under the ROC curve of its score; `None` where it gives none.
        alarms: share of clean networks called backdoored.
        detected: share of backdoored networks called so.
        undecided: networks of both kinds it says nothing of.
        labels: share of the detected whose target it names.
        wrong: names of the networks it is wrong about.
    """

    auc: float | None
    alarms: Rate | None
    detected: Rate | None
    undecided: int
    labels: Rate | None
    wrong: tuple[str, ...]


def verdicts(rows: Iterable[Row], defence: str = OURS) -> Verdicts | None:
    """Over clean networks and those whose backdoor works; `None` where it judges none."""
    judged = _judged(rows, defence)
    if not judged:
        return None
    clean = [row for row in judged if row.attack is None]
    backdoored = [row for row in judged if row.works]
    detected = [row for row in backdoored if _verdict(row)]
    named = [
        row for row in detected if row.judgement and row.judgement.label == row.victim["target"]
    ]
    return Verdicts(
        auc(_scores(backdoored), _scores(clean)),
        _share([row for row in clean if _verdict(row)], clean),
        _share(detected, backdoored),
        sum(_verdict(row) is None for row in (*clean, *backdoored)),
        _share(named, detected),
        tuple(
            row.name
            for row in (*clean, *backdoored)
            if _verdict(row) is not None and _verdict(row) != row.works
        ),
    )


def _judged(rows: Iterable[Row], defence: str) -> list[Row]:
    return [
        row
        for row in standard(rows)
        if row.defence == defence
        and row.judgement is not None
        and (row.judgement.backdoored is not None or row.judgement.score is not None)
    ]


def _verdict(row: Row) -> bool | None:
    return row.judgement.backdoored if row.judgement else None


def _label(row: Row) -> int | None:
    return row.judgement.label if row.judgement else None


def _scores(rows: Iterable[Row]) -> list[float]:
    found = [row.judgement.score for row in rows if row.judgement]
    return [score for score in found if score is not None]


def _share(part: Sequence[Row], whole: Sequence[Row]) -> Rate | None:
    return Rate.of(len(part), len(whole)) if whole else None


def auc(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """Chance that a positive scores above a negative, ties counting half."""
    if not positive or not negative:
        return None
    return fmean(
        1.0 if one > other else 0.5 if one == other else 0.0
        for one in positive
        for other in negative
    )


@dataclass(frozen=True)
class LeftOut:
    """An attack, judged by a threshold that never saw it.

    Attributes:
        attack: whose networks were left out.
        threshold: of the score, the best between the other attacks' networks and the clean ones.
        detected: share of its networks at or above that.
        alarms: share of the clean ones at or above that.
    """

    attack: str
    threshold: float
    detected: Rate
    alarms: Rate


def leave_one_out(rows: Iterable[Row]) -> list[LeftOut]:
    """Each attack in turn, where networks of others and clean ones have scores."""
    judged = _judged(rows, OURS)
    clean = _scores(row for row in judged if row.attack is None)
    by_attack: dict[str, list[float]] = defaultdict(list)
    for row in judged:
        if row.works:
            by_attack[str(row.attack)] += _scores([row])
    found = []
    for attack, own in by_attack.items():
        others = [score for name, each in by_attack.items() if name != attack for score in each]
        if own and others and clean:
            limit = best_threshold(others, clean)
            rates = (Rate.of(sum(s >= limit for s in side), len(side)) for side in (own, clean))
            found.append(LeftOut(attack, limit, *rates))
    return found


def best_threshold(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Half-way between two neighbouring scores, where the two shares told rightly add up best."""
    every = sorted({*positive, *negative})
    between = [(low + high) / 2 for low, high in pairwise(every)] or every

    def right(limit: float) -> float:
        return fmean(s >= limit for s in positive) + fmean(s < limit for s in negative)

    return max(between, key=right)


# --- other slices -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Our method on one network with several slices.

    Attributes:
        name: of the network.
        n: pictures in a slice.
        seeds: of the slices.
        ca, asr: after, one a slice.
    """

    name: str
    n: int
    seeds: tuple[int, ...]
    ca: tuple[float, ...]
    asr: tuple[float, ...]


def spreads(rows: Iterable[Row]) -> list[Spread]:
    """By network and size of the slice, where a network has more than one slice."""
    by_name: dict[str, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.defence == OURS and row.is_current and row.ca and row.asr:
            by_name[row.name][row.n].append(row)
    return [
        _spread(name, n, sorted(found, key=lambda row: row.seed))
        for name, by_n in by_name.items()
        if sum(map(len, by_n.values())) > 1
        for n, found in sorted(by_n.items())
    ]


def _spread(name: str, n: int, rows: Sequence[Row]) -> Spread:
    return Spread(
        name,
        n,
        tuple(row.seed for row in rows),
        tuple(row.ca[1].value for row in rows if row.ca),
        tuple(map(_after, rows)),
    )


# --- goals ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """Something to be shown: what, how much is asked, what was measured, and whether it is met."""

    what: str
    asked: str
    measured: str
    met: bool


def goals(rows: Sequence[Row]) -> list[Goal]:
    """The targets of our method, whatever came of them."""
    every = summaries(rows)
    found = next((each for each in every if each.defence == OURS), None)
    said = verdicts(rows)
    untouched = (*_leaving_alone(rows), *_forcing(rows))
    return [*_healing(found), *_against(every), *_judging(said), *untouched]


def _healing(ours: Summary | None) -> list[Goal]:
    if ours is None:
        return []
    over = f" over {ours.networks} networks"
    mean = f"{ours.asr:.3f}{over}; {ours.above:.3f} above their clean twins"
    worst = f"{ours.worst:.3f}, {ours.worst_on}"
    if ours.worst_twin is not None:
        worst += f"; its clean twin {ours.worst_twin:.3f}"
    return [
        Goal("mean ASR after", "≤ 0.03", mean, ours.asr <= 0.03),
        Goal("worst ASR after", "≤ 0.15", worst, ours.worst <= 0.15),
        Goal("mean CA drop", "≤ 0.01", f"{ours.drop:+.4f}{over}", ours.drop <= 0.01),
    ]


def _against(every: Sequence[Summary]) -> list[Goal]:
    rivals = [each for each in every if each.defence != OURS and each.ours is not None]
    if not rivals:
        return []
    better = [e for e in rivals if e.defence != ANP_BEST and e.cost <= (e.ours or 0)]
    told = ", ".join(f"{e.defence} {e.cost:.3f} to {e.ours:.3f}" for e in better)
    found = [
        Goal(
            "mean of max(0, CA drop) + ASR, of all that do not peek, on the same networks",
            "the least",
            f"beaten by {told}" if better else "less than each",
            not better,
        )
    ]
    for each in rivals:
        if each.defence == "anp":
            share = f"{each.better} of {each.attacks}"
            met = each.better > 0.8 * each.attacks
            found.append(Goal("attacks on which it is better than ANP", "> 80 %", share, met))
    return found


def _judging(said: Verdicts | None) -> list[Goal]:
    found = []
    if said and said.auc is not None:
        found.append(Goal("verdict, ROC-AUC", "≥ 0.95", f"{said.auc:.3f}", said.auc >= 0.95))
    if said and said.alarms:
        rate, alarms = said.alarms, round(said.alarms.value * said.alarms.n)
        shown = f"{alarms} of {rate.n} (at most {rate.high:.2f}, Wilson)"
        found.append(Goal("clean networks called backdoored", "none", shown, alarms == 0))
    if said and said.labels:
        shown = f"{said.labels.value:.2f} of {said.labels.n}"
        found.append(
            Goal("label right among the detected", "≥ 95 %", shown, said.labels.value >= 0.95)
        )
    return found


def _leaving_alone(rows: Sequence[Row]) -> list[Goal]:
    clean = [
        row
        for row in standard(rows)
        if row.defence == OURS and row.attack is None and row.error is None
    ]
    if not clean:
        return []
    changed = [row for row in clean if row.silenced]
    shown = f"{len(clean) - len(changed)} of {len(clean)} unchanged"
    return [Goal("clean networks left as they are", "all", shown, not changed)]


def _forcing(rows: Sequence[Row]) -> list[Goal]:
    drops = [row.drop for row in standard(rows) if row.defence == FORCED and row.error is None]
    if not drops:
        return []
    shown = f"{fmean(drops):+.4f}, at most {max(drops):+.4f}, over {len(drops)} networks"
    return [Goal("CA drop on clean networks with `--force`", "≤ 0.01", shown, max(drops) <= 0.01)]
