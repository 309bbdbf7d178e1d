"""Heal a convicted network: silence what surrogates need, look for new ones, learn masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rnp_hub.guided import Step, follow
from rnp_hub.network import Classifier, ImageSet
from rnp_hub.progress import Progress, quiet
from rnp_hub.prune import silenced_copy
from rnp_hub.recover import Recovered
from rnp_hub.scan import ScanConfig, Scanned, as_pixels, clean_margin
from rnp_hub.sites import Site
from rnp_hub.soften import QUIET, Masks, masked_copy, soften
from rnp_hub.surrogate import Surrogate, SurrogateConfig, again, logits_of_all, reconstruct
from rnp_hub.verdict import LIVE, NATURAL, WORKING, is_doubtful, stands_out, telling

ROUNDS, SOFTENINGS = 3, 2
"""How often new surrogates are reconstructed while filters are cut, and masks learned."""
WORKS = 0.1
"""Surrogate ASR above which a backdoor is not called gone."""
ANEW = " anew"
"""Ends the kind of a surrogate that was reconstructed on the healed network."""
MAX_MASK = 0.2
"""Largest mask of a filter that the default recipe tries for its mask, set on small networks for
digits (docs/method.md)."""
HEAVIER = (2.0, 1.4, 1.0)
"""How much larger the weights of surrogates are that are tried where masks are learned again, since
some still work."""
WORTH = 0.5
"""Share of the pruned network's surrogate ASR to which softening must come down to be kept; and of
the original's, to which filters must that cost more than this share of what may be lost."""


@dataclass(frozen=True)
class Healed:
    """A network without the filters that its surrogates needed.

    Attributes:
        steps: the silenced filters in order, with accuracy and surrogate ASR after each; none where
            cutting did not help and masks did.
        masks: by which weights are multiplied besides; `None` where they would cost or leave too
            much, or nothing is to be gained.
        left: the surrogates of the scan, and those reconstructed last, on the healed network.
        residual: a surrogate still works, or a new one stands out.
    """

    steps: tuple[Step, ...]
    masks: Masks | None
    left: tuple[Surrogate, ...]
    residual: bool


def heal(
    original: Classifier,
    clean: ImageSet,
    sites: Sequence[Site],
    scanned: Scanned,
    recovered: Recovered,
    config: ScanConfig,
    progress: Progress = quiet,
) -> Healed:
    """Silence what the suspected label's surrogates need; learn masks where that leaves something,
    or may, and elsewhere where the slice does not miss anything then.

    Args:
        original: the network as it was pulled; left as it was.
        clean: the clean slice.
        sites: where filters can be masked.
        scanned: what the scan of this network found.
        recovered: the masks; low ones are tried besides.
        config: as in the scan, affordable for pictures of that size.
        progress: told what is going on.
    """
    original, clean = as_pixels(original, clean)
    besides = _besides(original, scanned, config.surrogate, progress)
    work = _Healing(original, clean, sites, scanned, config, progress, besides)
    found = work.pruned(recovered)
    if config.soften is None:
        return found.healed
    learn = work.softened if found.healed.residual or found.doubtful else work.mended
    return learn(found) or found.healed


def reviewed(
    healed: Healed, network: Classifier, clean: ImageSet, scanned: Scanned, config: ScanConfig
) -> Healed:
    """The same of a network that was changed again since: what is left now?

    New surrogates are compared with those of the original in the scale of its logits, which tuning
    may stretch.

    Args:
        healed: what was done to it before.
        network: as it is now.
        clean: the clean slice.
        scanned: what the scan of the original found.
        config: as in the scan.
    """
    network, clean = as_pixels(network, clean)
    work = _Healing(network, clean, (), scanned, config, quiet)
    held_out = scanned.halves.score
    unit = clean_margin(logits_of_all(network, held_out.images), held_out.labels)
    fresh = [
        replace(each, margin=each.margin * scanned.unit / unit)
        for each in work.fresh(network, ROUNDS + SOFTENINGS + 1)
    ]
    return work.healed(network, healed.steps, healed.masks, fresh)


def _besides(
    original: Classifier, scanned: Scanned, config: SurrogateConfig, progress: Progress
) -> tuple[Surrogate, ...]:
    """Surrogates for the suspected label of the kinds by which nothing is judged, where they tell.

    They are to be ended with the others, but do not say whether that has been done: what is left of
    them may be what clean networks have.
    """
    assert scanned.suspected is not None
    label, halves = scanned.suspected.label, scanned.halves
    others = [each for each in next(iter(scanned.surrogates.values())) if each != label]
    own = reconstruct(original, halves, [label], replace(config, kinds=config.besides), progress)
    # Other labels are there to compare with, which only what works has to be.
    live = tuple(kind for kind, found in own.items() if found[label].asr.value >= LIVE)
    if not live:
        return ()
    beside = reconstruct(original, halves, others, replace(config, kinds=live), progress)
    found = {kind: {**own[kind], **by_label} for kind, by_label in beside.items()}
    return tuple(telling(found, label, scanned.unit))


@dataclass(frozen=True)
class _Pruned:
    """What cutting came to.

    Attributes:
        healed: without the filters that surrogates need.
        known: all surrogates that stood out.
        fresh: the new ones on the pruned network.
        doubtful: where none stands out any more, the new ones that work all the same, and the old
            ones that judge nothing.
    """

    healed: Healed
    known: Sequence[Surrogate]
    fresh: Sequence[Surrogate]
    doubtful: Sequence[Surrogate]


@dataclass(frozen=True)
class _Healing:
    """One network that is healed."""

    original: Classifier
    clean: ImageSet
    sites: Sequence[Site]
    scanned: Scanned
    config: ScanConfig
    progress: Progress
    besides: tuple[Surrogate, ...] = ()

    def pruned(self, recovered: Recovered) -> _Pruned:
        """Without the filters that surrogates need, those of low mask tried with them."""
        steps = self.scanned.trail.best if self.scanned.trail else ()
        masked = [(each.site, each.index) for each in recovered.order() if each.value <= MAX_MASK]
        known = [*self._old, *self.besides]
        fresh: list[Surrogate] = []
        for number in range(1, ROUNDS + 1):
            fresh = self.fresh(self._without(steps), number)
            alive = self._alive(fresh)
            known += alive
            if not alive or number == ROUNDS:
                break
            trail = follow(
                self.original, self.sites, known, self.clean, self.scanned.halves,
                self.scanned.unit, self.config.guided, self.progress,
                after=[step.filter for step in steps], masked=masked,
            )  # fmt: skip
            if not trail.best:
                break
            steps = (*steps, *trail.best)
        network = self._without(steps)
        pruned = self.healed(network, steps, None, fresh)
        doubtful = [each for each in self._judges(fresh) if is_doubtful(each)]
        doubtful += [each for each in self.besides if self._strongest(network, [each]) >= WORKING]
        return _Pruned(pruned, known, fresh, [] if pruned.residual else doubtful)

    def softened(self, pruned: _Pruned) -> Healed | None:
        """With masks on the filters that stay and on kernels; `None` where that is too dear or no
        better.

        Where there are doubtful ones it is these that masks have to be better against, and what is
        reconstructed afterwards; and they may cost half as much, since nothing may be left. Where
        pruning left a surrogate that works on half of the pictures, the first masks may cost what
        it left of the utmost.
        """
        asked = self.config.soften
        assert asked is not None
        steps, known, doubtful = pruned.healed.steps, pruned.known, pruned.doubtful
        if doubtful:
            asked = replace(asked, max_ca_drop=WORTH * asked.max_ca_drop)
        standing = self._without(steps)
        known_judges = self._judges(known)
        left = self._strongest(standing, known_judges)
        useless = left > WORTH * self._strongest(self.original, known_judges)
        if useless and self._cost(steps) > WORTH * self.config.guided.max_ca_drop:
            steps = ()  # masks have it all to spend
        usual = asked
        if left >= WORKING:
            spare = asked.utmost - self._cost(steps)
            asked = replace(asked, max_ca_drop=max(asked.max_ca_drop, spare))
        judged = doubtful or known_judges
        most = WORTH * (self._strongest(standing, doubtful) if doubtful else left)
        best, met = None, [*known, *(each for each in doubtful if each not in known)]
        for number in range(1, SOFTENINGS + 1):
            learned = soften(
                self.original, self.sites, [step.filter for step in steps], met, self.clean,
                self.scanned.halves, asked, self.progress,
            )  # fmt: skip
            if learned is None:
                break
            found = masked_copy(self.original, learned.masks)
            if self._strongest(found, judged) > most:
                break
            fresh = self.fresh(found, ROUNDS + number)
            softened = self.healed(found, steps, learned.masks, fresh)
            if doubtful and (softened.residual or max(each.asr.value for each in fresh) > most):
                break
            best = softened
            if not best.residual:
                break
            working = [each for each in fresh if each.asr.value > WORKS]
            met += working
            # The next masks replace these where they are no worse, against the new ones too.
            judged = [*judged, *self._judges(working)]
            most = self._strongest(found, judged)
            heavier = tuple(factor * learned.weight for factor in HEAVIER)
            asked = replace(usual, weights=heavier, kernels=bool(learned.masks.kernels))
        return best

    def mended(self, pruned: _Pruned) -> Healed | None:
        """With masks that cost nothing where pruning was enough; `None` where nothing is to be
        gained, or surrogates are stronger then.

        Filters that stay take over what those that went did for clean pictures, whose features
        masks keep, and what surrogates do not show of the backdoor goes with what they do.
        """
        asked, steps = self.config.soften, pruned.healed.steps
        assert asked is not None
        quiet_already = all(each.asr.value <= QUIET for each in pruned.healed.left)
        if quiet_already and self._cost(steps) <= 0:
            return None
        learned = soften(
            self.original, self.sites, [step.filter for step in steps], pruned.known, self.clean,
            self.scanned.halves, replace(asked, max_ca_drop=0.0), self.progress,
        )  # fmt: skip
        if learned is None:
            return None
        found = masked_copy(self.original, learned.masks)
        fresh = self.fresh(found, ROUNDS + 1)
        mended = self.healed(found, steps, learned.masks, fresh)
        before = self._strongest_by_kind(pruned.healed, self._without(steps), pruned.fresh)
        after = self._strongest_by_kind(mended, found, fresh)
        stronger = any(asr > max(QUIET, before[kind]) for kind, asr in after.items())
        return None if stronger or mended.residual else mended

    def _cost(self, steps: Sequence[Step]) -> float:
        """Accuracy on the slice that some steps took."""
        if self.scanned.trail is None or not steps:
            return 0.0
        return self.scanned.trail.start[0] - steps[-1].accuracy

    @property
    def _old(self) -> tuple[Surrogate, ...]:
        assert self.scanned.suspected is not None
        return self.scanned.suspected.surrogates

    def _without(self, steps: Iterable[Step]) -> Classifier:
        return silenced_copy(self.original, self.sites, [step.filter for step in steps])

    def fresh(self, network: Classifier, number: int) -> list[Surrogate]:
        """New surrogates of the kinds that worked, for the suspected label alone."""
        kinds = tuple(dict.fromkeys(each.kind for each in (*self._old, *self.besides)))
        asked: SurrogateConfig = self.config.surrogate
        asked = replace(asked, kinds=kinds, seed=asked.seed + number)
        label = self._old[0].label
        found = reconstruct(network, self.scanned.halves, [label], asked)
        return [by_label[label] for by_label in found.values()]

    def _judges(self, found: Iterable[Surrogate]) -> list[Surrogate]:
        """Those of the kinds by which it is judged what is left."""
        return [each for each in found if each.kind not in self.config.surrogate.besides]

    def _alive(self, fresh: Iterable[Surrogate]) -> list[Surrogate]:
        """Those that still stand out among the other labels' of the scan."""
        return [
            each
            for each in self._judges(fresh)
            if stands_out(
                each,
                [
                    other
                    for label, other in self.scanned.surrogates[each.kind].items()
                    if label != each.label
                ],
                self.scanned.unit,
            )
        ]

    def _strongest(self, network: Classifier, surrogates: Iterable[Surrogate]) -> float:
        held_out = self.scanned.halves.score
        return max(again(network, each, held_out).asr.value for each in surrogates)

    def _strongest_by_kind(
        self, healed: Healed, network: Classifier, fresh: Sequence[Surrogate]
    ) -> dict[str, float]:
        """Surrogate ASR, old ones and new: of each kind that clean networks have too, which says
        nothing of the others, and of these together."""
        alone = (*NATURAL, *self.config.surrogate.besides)
        besides = [again(network, each, self.scanned.halves.score) for each in self.besides]
        result: dict[str, float] = {}
        for each in (*healed.left, *fresh, *besides):
            kind = each.kind.removesuffix(ANEW)
            kind = kind if kind in alone else "others"
            result[kind] = max(result.get(kind, 0.0), each.asr.value)
        return result

    def healed(
        self,
        network: Classifier,
        steps: tuple[Step, ...],
        masks: Masks | None,
        fresh: Sequence[Surrogate],
    ) -> Healed:
        old = [again(network, each, self.scanned.halves.score) for each in self._old]
        newest = [replace(each, kind=f"{each.kind}{ANEW}") for each in self._judges(fresh)]
        working = any(each.asr.value > WORKS for each in old)
        return Healed(steps, masks, (*old, *newest), working or bool(self._alive(fresh)))
