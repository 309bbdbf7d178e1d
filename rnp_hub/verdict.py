"""The verdict: is there a backdoor, for which label, and how sure is that?

Two questions are asked of the surrogates (`rnp_hub.surrogate`), in units of the margin that the
network has on clean pictures:

- *gap*: how much further does the best surrogate of one label come than that of any other? The
  other counts as at most as far from working as the first works. A loud ripple leads to some label
  in every network, so that it has to come five times as far; a wave, 1.5 times as far, and at
  three quarters of its size.
- *drop*: which share of its success is gone when a few filters are silenced that the clean task
  does not miss (`rnp_hub.guided`)? A backdoor dies of a handful of filters; a perturbation that
  every network has lives in all of them. That holds of no wave: planted or natural, it may die of
  one filter or of none (docs/method.md); and a colour, which none of the clean networks looked at
  obeys, counts half even where no filter may go.

The score is their product, with a least drop that counts: of a wave all, of a colour half. Where no
surrogate stands out, but half of the slice leans to one label while the other half is still right
(`rnp_hub.unlearn`), the trigger may be of a kind that no surrogate covers: that is undecided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rnp_hub.guided import Trail
from rnp_hub.surrogate import Surrogate
from rnp_hub.unlearn import Unlearned

BACKDOORED, CLEAN = 0.5, 0.2
"""Scores from which on, and below which, there is a verdict. Fixed on networks of a quarter of the
width, backdoored and clean: docs/method.md says on which."""

TANGIBLE = 0.45
"""Score from which on a network is healed, convicted or not: no clean network of the grid came so
far, and a score near the threshold is not the same on every processor (docs/evidence.md)."""

COMPETENT = 0.8
"""Accuracy on the slice below which nothing is convicted, and no weight touched for a lean: a
network that is often wrong is easily led to some label, leans more when it unlearns, and a few
filters are most of what it knows (docs/method.md)."""

STUBBORN = 0.25
"""Least drop that is counted: a gap that nothing closes still says something."""

MORE_STUBBORN: Mapping[str, float] = {"wave": 1.0, "colour": 0.5}
"""The same of kinds of which such a gap says more: of a wave all, of a colour half."""

NATURAL: Mapping[str, float] = {"wave": 1.5, "ripple": 5.0}
"""What the gap of a kind is divided by. Every clean network has a label that some loud ripple leads
to, by up to a clean margin ahead of all others. Few have one that a wave does at three quarters of
its size (docs/method.md)."""

WORKING = 0.5
"""Surrogate ASR from which on a surrogate that was reconstructed after healing works."""

LIVE = 0.3
"""Surrogate ASR from which on a surrogate is worth following."""

LEAN, FEW = 1 / 3, 5
"""Lean beyond an even share from which on there is no acquittal: of ten labels, one has 40 % of the
slice. With fewer labels than five half of a slice leans somewhere anyway."""


@dataclass(frozen=True)
class Suspicion:
    """The label that stands out most.

    Attributes:
        label: which.
        kind: the kind of surrogate in which it does.
        gap: by how much, in units of the clean margin, divided by `NATURAL`; at least 0.
        surrogates: those for the label that stand out and work, the most telling first.
    """

    label: int
    kind: str
    gap: float
    surrogates: tuple[Surrogate, ...]


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        backdoored: `None` for undecided.
        label: the suspected target; `None` where there is no suspicion.
        score: gap times drop, or times the least drop that counts; larger means more suspicious.
        gap, drop: see above.
        lean: share of the slice that leans to one label after unlearning, in [0, 1].
        leaning: that label.
        leans: the lean is more than clean networks have.
        competent: the network is right about as much of the slice as a conviction takes.
    """

    backdoored: bool | None
    label: int | None
    score: float
    gap: float
    drop: float
    lean: float
    leaning: int
    leans: bool = False
    competent: bool = True

    @property
    def doubt(self) -> str | None:
        """Why it is undecided, for a person; `None` where it is not."""
        if self.backdoored is not None:
            return None
        if self.label is None:
            return "fewer than two labels can be compared"
        if self.score >= CLEAN and not self.competent:
            return f"the network is right about less than {100 * COMPETENT:.0f} % of the slice"
        if self.score >= CLEAN:
            return f"from {BACKDOORED} on it is convicted, below {CLEAN} acquitted"
        return f"{100 * self.lean:.0f} % of the slice leans to this label once half is unlearned"


def suspicion(found: Mapping[str, Mapping[int, Surrogate]], unit: float) -> Suspicion | None:
    """The label whose surrogate comes furthest ahead of all others of its kind.

    Args:
        found: surrogates by kind and label.
        unit: the network's margin on clean pictures, in logits.

    Returns:
        `None` where fewer than two labels can be compared.
    """
    comparable = [by_label for by_label in found.values() if len(by_label) > 1]
    gaps = [
        (ahead(each, by_label.values(), unit), each)
        for by_label in comparable
        for each in by_label.values()
    ]
    if not gaps:
        return None
    gap, leader = max(
        ((gap / NATURAL.get(each.kind, 1.0), each) for gap, each in gaps),
        key=lambda pair: (pair[0], pair[1].margin),
    )
    live = [leader, *(each for each in telling(found, leader.label, unit) if each is not leader)]
    live.sort(key=lambda each: each.margin, reverse=True)
    return Suspicion(leader.label, leader.kind, gap, tuple(live))


def telling(
    found: Mapping[str, Mapping[int, Surrogate]], label: int, unit: float
) -> list[Surrogate]:
    """The surrogates for a label that work and are ahead of all others of their kind.

    Such show the same backdoor, and not what every network has. How far they are ahead is not
    divided: only one label in ten has the ripple that leads furthest.
    """
    return [
        by_label[label]
        for by_label in found.values()
        if label in by_label
        and len(by_label) > 1
        and by_label[label].asr.value >= LIVE
        and ahead(by_label[label], by_label.values(), unit) >= CLEAN
    ]


def ahead(surrogate: Surrogate, every: Iterable[Surrogate], unit: float) -> float:
    """By how much a surrogate is ahead of the best other label's of its kind, in clean margins."""
    # One that fails on average is no trigger, however far behind the others are; and of one that
    # barely works, the distance to those that fail is mostly theirs.
    own = max(0.0, surrogate.margin)
    other = max(each.margin for each in every if each.label != surrogate.label)
    return (own - max(other, -own)) / max(unit, 1e-9)


def judge(suspected: Suspicion | None, trail: Trail | None, unlearned: Unlearned) -> Verdict:
    """Weigh what was found.

    Args:
        suspected: the label that stands out.
        trail: what became of its surrogates when filters were silenced.
        unlearned: the network that unlearned, for its lean.
    """
    leaning = unlearned.suspect
    lean = unlearned.histogram[leaning] / max(sum(unlearned.histogram), 1)
    even = 1 / len(unlearned.histogram)
    leans = len(unlearned.histogram) >= FEW and lean - even >= LEAN * (1 - even)
    if suspected is None:
        return Verdict(None, None, 0.0, 0.0, 0.0, lean, leaning, leans)
    drop = _drop(trail)
    score = suspected.gap * max(drop, MORE_STUBBORN.get(suspected.kind, STUBBORN))
    competent = trail is None or trail.start[0] >= COMPETENT
    if score >= BACKDOORED and competent:
        found, label = True, suspected.label
    elif score >= CLEAN:
        found, label = None, suspected.label
    elif leans:
        found, label = None, leaning
    else:
        found, label = False, None
    return Verdict(found, label, score, suspected.gap, drop, lean, leaning, leans, competent)


def _drop(trail: Trail | None) -> float:
    if trail is None or trail.start[1] <= 0:
        return 0.0
    left = min([step.asr for step in trail.steps], default=trail.start[1])
    return max(0.0, 1 - left / trail.start[1])


def stands_out(fresh: Surrogate, others: Sequence[Surrogate], unit: float) -> bool:
    """Whether a surrogate is still ahead of any other label's, and works on half the pictures.

    Of a wave the margin is that of a quieter one; its success is its own.
    """
    ahead = all(fresh.margin > each.margin + CLEAN * unit for each in others)
    return fresh.asr.value >= WORKING and ahead


def is_doubtful(fresh: Surrogate) -> bool:
    """Whether a surrogate works on half the pictures, and is not of a kind that always does."""
    return fresh.asr.value >= WORKING and fresh.kind not in NATURAL
