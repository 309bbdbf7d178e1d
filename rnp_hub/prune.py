"""RNP step 3: decide which filters of the *original* network to silence, from clean data alone.

Three rules. By a fixed *threshold*, as papers do it: every filter whose mask is at most that. By
*accuracy*: filters go in mask order, one after the other, and pruning stops before the first that
takes clean accuracy on the slice more than `max_ca_drop` below where it started. *Guarded*: the
same, but a filter that costs much all by itself is put back and passed over, so that one filter the
clean task needs does not end the pruning before the backdoor's were reached.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rnp_hub.errors import ConfigError
from rnp_hub.evaluate import accuracy, classified_rightly
from rnp_hub.hooks import silence, silence_on_trial
from rnp_hub.network import Classifier, ImageSet
from rnp_hub.progress import Progress, quiet
from rnp_hub.recover import FilterMask, Recovered
from rnp_hub.sites import Site


@dataclass(frozen=True)
class PruneConfig:
    """Where to stop.

    Attributes:
        max_ca_drop: clean accuracy on the slice that may be lost, in [0, 1].
        threshold: silence every filter whose mask is at most this, in [0, 1], and look at
            nothing else; `None` for a rule by accuracy.
        guard: put a filter back that alone costs more than this, in [0, 1]; `None` to stop there.
        max_wrong: put a filter back with which more of the pictures that were right are wrong than
            this, in [0, 1], however many others are right instead; `None` for no limit.
        max_mask: filters with a mask above this are never tried by accuracy, in [0, 1].
        tried: filters that are tried by accuracy, at most; `None` for no limit.
    """

    max_ca_drop: float = 0.02
    threshold: float | None = None
    guard: float | None = None
    max_wrong: float | None = None
    max_mask: float = 1.0
    tried: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_ca_drop", "threshold", "guard", "max_wrong", "max_mask"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} {value} must lie in [0, 1]")

    @property
    def rule(self) -> str:
        if self.threshold is not None:
            return "threshold"
        return "accuracy" if self.guard is None else "guarded"


@dataclass(frozen=True)
class Pruned:
    """The original network with filters silenced.

    Attributes:
        classifier: a copy, weights of 0 for every silenced filter.
        rule: `threshold`, `accuracy` or `guarded`; `surrogates` where those chose (`rnp_hub.scan`),
            `none` where the verdict is that there is nothing to silence.
        threshold: largest mask among the silenced filters; `None` if none was silenced, or another
            rule than the masks chose.
        silenced: by site name, channel indices in ascending order.
        filters: how many there were to choose from.
        accuracies: on the slice, before the first filter and after each that was tried; under a
            fixed threshold only before and after.
    """

    classifier: Classifier
    rule: str
    threshold: float | None
    silenced: dict[str, tuple[int, ...]]
    filters: int
    accuracies: tuple[float, ...]

    @property
    def count(self) -> int:
        return sum(len(indices) for indices in self.silenced.values())


def prune(
    original: Classifier,
    recovered: Recovered,
    clean: ImageSet,
    config: PruneConfig | None = None,
    progress: Progress = quiet,
    watched: ImageSet | None = None,
) -> Pruned:
    """Silence filters of a copy of the original network.

    Args:
        original: the network as it was pulled; left as it was.
        recovered: the masks, from `recover`.
        clean: the clean slice, on which accuracy is watched.
        config: see `PruneConfig`.
        progress: told the accuracy and the number of filters.
        watched: pictures whose accuracy decides instead of the slice's.
    """
    config = config or PruneConfig()
    order = recovered.order()
    candidates = [each for each in order if each.value < 1 and each.value <= config.max_mask]
    if config.threshold is not None:
        chosen = [each for each in order if each.value <= config.threshold]
        accuracies = [accuracy(original, clean)]
    else:
        chosen, accuracies = _by_accuracy(
            original, candidates[: config.tried], recovered.sites, clean, config, progress,
            clean if watched is None else watched,
        )  # fmt: skip
    filters = [(each.site, each.index) for each in chosen]
    pruned = pruned_of(original, recovered.sites, filters, config.rule, accuracies)
    if config.threshold is not None:
        after = accuracy(pruned.classifier, clean)
        pruned = replace(pruned, accuracies=(*pruned.accuracies, after))
    return replace(pruned, threshold=chosen[-1].value if chosen else None)


def _by_accuracy(
    original: Classifier,
    candidates: Sequence[FilterMask],
    sites: Sequence[Site],
    clean: ImageSet,
    config: PruneConfig,
    progress: Progress,
    watched: ImageSet,
) -> tuple[list[FilterMask], list[float]]:
    trial = original.copy()
    before = classified_rightly(trial, watched)
    start = standing = float(before.float().mean())
    accuracies = [start if watched is clean else accuracy(trial, clean)]
    chosen = list[FilterMask]()
    # Half a picture of slack, so that 10 of 500 is a drop of 0.02 in floating point too.
    slack = 0.5 / len(watched)
    for each in candidates:
        put_back = silence_on_trial(trial.module, sites[each.layer], each.index)
        after = classified_rightly(trial, watched)
        found = float(after.float().mean())
        accuracies.append(found if watched is clean else accuracy(trial, clean))
        wrong = int((before & ~after).sum()) / max(int(before.sum()), 1)
        if (config.guard is not None and standing - found > config.guard + slack) or (
            config.max_wrong is not None and wrong > config.max_wrong + slack
        ):
            put_back()
            continue
        if start - found > config.max_ca_drop + slack:
            break
        standing = found
        chosen.append(each)
        lost = (start - standing) / max(config.max_ca_drop, 1e-9)
        progress("prune", lost, {"accuracy": standing, "filters": len(chosen)})
    return chosen, accuracies


def pruned_of(
    original: Classifier,
    sites: Sequence[Site],
    filters: Sequence[tuple[str, int]],
    rule: str,
    accuracies: Sequence[float],
) -> Pruned:
    """A copy of the original network with filters silenced, and which they are.

    Args:
        original: the network as it was pulled; left as it was.
        sites: where filters can be masked.
        filters: site and index of each.
        rule: what chose them.
        accuracies: on the slice, see `Pruned`.
    """
    result, silenced = silenced_copy(original, sites, filters), _by_site(filters, sites)
    count = sum(site.filters for site in sites)
    return Pruned(result, rule, None, silenced, count, tuple(accuracies))


def silenced_copy(
    original: Classifier, sites: Sequence[Site], filters: Sequence[tuple[str, int]]
) -> Classifier:
    """A copy of a network with filters silenced, by site and index."""
    result = original.copy()
    silence(result.module, at_sites(_by_site(filters, sites), sites))
    return result


def at_sites(
    silenced: Mapping[str, tuple[int, ...]], sites: Sequence[Site]
) -> dict[Site, tuple[int, ...]]:
    """Silenced filters by site instead of by its name."""
    return {site: silenced[site.name] for site in sites if site.name in silenced}


def _by_site(
    chosen: Iterable[tuple[str, int]], sites: Sequence[Site]
) -> dict[str, tuple[int, ...]]:
    """In the network's own order of sites."""
    found: dict[str, list[int]] = defaultdict(list)
    for name, index in chosen:
        found[name].append(index)
    return {site.name: tuple(sorted(found[site.name])) for site in sites if site.name in found}
