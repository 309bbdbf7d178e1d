"""RNP step 3: decide which filters of the *original* network to silence, from clean data alone.

Two rules. By a fixed `threshold`, as papers do it: every filter whose mask is at most that. By
accuracy, the default: filters go in mask order, one after the other, and pruning stops before the
first that takes clean accuracy on the slice more than `max_ca_drop` below where it started.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rnp_hub.errors import ConfigError
from rnp_hub.evaluate import accuracy
from rnp_hub.hooks import silence
from rnp_hub.network import Classifier, ImageSet
from rnp_hub.progress import Progress, quiet
from rnp_hub.recover import FilterMask, Recovered


@dataclass(frozen=True)
class PruneConfig:
    """Where to stop.

    Attributes:
        max_ca_drop: clean accuracy on the slice that may be lost, in [0, 1].
        threshold: silence every filter whose mask is at most this, in [0, 1], and look at
            nothing else; `None` for the rule by accuracy.
    """

    max_ca_drop: float = 0.02
    threshold: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_ca_drop", self.max_ca_drop), ("threshold", self.threshold)):
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} {value} must lie in [0, 1]")


@dataclass(frozen=True)
class Pruned:
    """The original network with filters silenced.

    Attributes:
        classifier: a copy, γ = 0 for every silenced filter.
        rule: `accuracy` or `threshold`.
        threshold: mask of the last filter that was silenced; `None` if none was.
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
) -> Pruned:
    """Silence filters of a copy of the original network.

    Args:
        original: the network as it was pulled; left as it was.
        recovered: the masks, from `recover`.
        clean: the clean slice, on which accuracy is watched.
        config: see `PruneConfig`.
        progress: told the accuracy and the number of filters.
    """
    config = config or PruneConfig()
    order = recovered.order()
    candidates = [each for each in order if each.value < 1]
    if config.threshold is not None:
        chosen = [each for each in order if each.value <= config.threshold]
        result = _silenced(original, chosen)
        accuracies = [accuracy(original, clean), accuracy(result, clean)]
    else:
        chosen, accuracies = _by_accuracy(original, candidates, clean, config, progress)
        result = _silenced(original, chosen)
    return Pruned(
        classifier=result,
        rule="accuracy" if config.threshold is None else "threshold",
        threshold=chosen[-1].value if chosen else None,
        silenced=_by_site(chosen, recovered),
        filters=len(order),
        accuracies=tuple(accuracies),
    )


def _by_accuracy(
    original: Classifier,
    candidates: Sequence[FilterMask],
    clean: ImageSet,
    config: PruneConfig,
    progress: Progress,
) -> tuple[list[FilterMask], list[float]]:
    trial = original.copy()
    accuracies = [accuracy(trial, clean)]
    # Half a picture of slack, so that 10 of 500 is a drop of 0.02 in floating point too.
    floor = accuracies[0] - config.max_ca_drop - 0.5 / len(clean)
    chosen: list[FilterMask] = []
    for each in candidates:
        silence(trial.module, {each.site: (each.index,)})
        accuracies.append(accuracy(trial, clean))
        if accuracies[-1] < floor:
            break
        chosen.append(each)
        lost = accuracies[0] - accuracies[-1]
        progress("prune", lost / max(config.max_ca_drop, 1e-9), _figures(accuracies, chosen))
    return chosen, accuracies


def _figures(accuracies: Sequence[float], chosen: Sequence[FilterMask]) -> dict[str, float]:
    return {"accuracy": accuracies[-1], "filters": len(chosen)}


def _silenced(original: Classifier, chosen: Sequence[FilterMask]) -> Classifier:
    result = original.copy()
    for each in chosen:
        silence(result.module, {each.site: (each.index,)})
    return result


def _by_site(chosen: Sequence[FilterMask], recovered: Recovered) -> dict[str, tuple[int, ...]]:
    """In the network's own order of sites."""
    found: dict[str, list[int]] = defaultdict(list)
    for each in chosen:
        found[each.site].append(each.index)
    return {site: tuple(sorted(found[site])) for site in recovered.masks if site in found}
