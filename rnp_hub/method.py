"""The method on any network: unlearn, recover, prune, slim. No Hub, no files.

>>> result = rnp_hub.sanitize(network, images, labels, transform=normalise)
>>> result.slim.module(normalise(images)).argmax(1)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from rnp_hub.compute import Compute, mark_memory, peak_since_mark_mib
from rnp_hub.errors import ConfigError, DataError
from rnp_hub.guided import GuidedConfig
from rnp_hub.heal import MAX_MASK, Healed, heal, reviewed
from rnp_hub.network import (
    Classifier,
    ImageSet,
    Transform,
    check_finite,
    on_cpu,
    to_unit_range,
)
from rnp_hub.progress import Progress, quiet
from rnp_hub.prune import PruneConfig, Pruned, at_sites, prune, pruned_of
from rnp_hub.recover import RecoverConfig, Recovered, recover
from rnp_hub.refine import RefineConfig, Refined, check_refinable, refine
from rnp_hub.scan import LARGE, ScanConfig, Scanned, as_pixels, scan
from rnp_hub.sites import Site, gate_sites
from rnp_hub.slim import EXAMPLES, Optimize, Slimmed, slim
from rnp_hub.soften import SoftenConfig
from rnp_hub.surrogate import SurrogateConfig
from rnp_hub.unlearn import UnlearnConfig, Unlearned, unlearn

RECIPES = ("default", "reference", "paper")
GUARD = 0.2
"""Share of `max_ca_drop` that one filter may cost in the default recipe, set on small networks for
digits (docs/method.md)."""
ON_THE_SLICE = 0.5
"""Share of `max_ca_drop` that may be lost on the slice: a network knows its training pictures
better, and loses about twice as much elsewhere (docs/method.md)."""
FORCED = 0.25
"""Share of what may be lost, in all and by one filter, where the suspicion is not grave: there is
nothing but accuracy to go by."""
LARGE_BATCH, LARGE_EPOCHS = 32, 5
"""How masks are learned on large pictures."""


@dataclass(frozen=True)
class SanitizeConfig:
    """Settings of all stages.

    Attributes:
        unlearn, recover, prune: of each stage.
        recipe: the name they came from.
        surrogate, guided: of a scan; `None` for a recipe that comes to no verdict.
        soften: masks after pruning; `None` where filters may only be silenced.
        refine: what is done to a network after pruning; `None` for nothing.
        force: prune a network too of which the suspicion is not grave.
    """

    unlearn: UnlearnConfig
    recover: RecoverConfig
    prune: PruneConfig
    recipe: str
    surrogate: SurrogateConfig | None = None
    guided: GuidedConfig | None = None
    soften: SoftenConfig | None = None
    refine: RefineConfig | None = None
    force: bool = False

    @property
    def scan(self) -> ScanConfig | None:
        """Settings of the scan; `None` for a recipe that comes to no verdict."""
        if self.surrogate is None or self.guided is None:
            return None
        return ScanConfig(self.unlearn, self.surrogate, self.guided, self.soften)

    def affordable(self, height: int, width: int) -> SanitizeConfig:
        """The same for small pictures, and for published recipes; less for large ones.

        See `ScanConfig.affordable`. Masks are learned in as many updates, on a quarter of the
        pictures each, and no more filters are tried by them than by surrogates.
        """
        if self.scan is None or height * width <= LARGE:
            return self
        scan = self.scan.affordable(height, width)
        recover = replace(
            self.recover,
            batch_size=min(self.recover.batch_size, LARGE_BATCH),
            epochs=min(self.recover.epochs, LARGE_EPOCHS),
        )
        pruning = replace(self.prune, tried=scan.guided.filters)
        return replace(self, **vars(scan), recover=recover, prune=pruning)

    @staticmethod
    def of(
        recipe: str = "default",
        *,
        seed: int = 0,
        flip: bool = True,
        max_ca_drop: float = 0.02,
        threshold: float | None = None,
        force: bool = False,
        soften: bool = True,
        fine_tune: int = 0,
        bn_stats: bool = False,
    ) -> SanitizeConfig:
        """The settings of a recipe.

        `default` scans first; what it convicts loses the filters that its surrogates need, and
        if `soften` is true, the others and kernels are given masks where that leaves something, or
        may, or where masks cost nothing; what it acquits is left alone. With a `threshold` there is
        no scan.
        `reference` has the numbers of the authors' code (stop at 20 %, weight decay 5e-4, clipping
        that clips nothing), `paper` those of the paper (stop at 10 %, weight decay 5e-2); both take
        ≤ 20 epochs of SGD at 0.01 and, since neither says where to stop, prune by accuracy.
        What any of them changed can be tuned for `fine_tune` epochs on the slice and have its
        BatchNorm statistics re-estimated there (`rnp_hub.refine`).

        Raises:
            ConfigError: an unknown recipe, or a value out of range.
        """
        published = UnlearnConfig(
            stop_accuracy=0.20,
            controlled=False,
            learning_rate=0.01,
            max_epochs=20,
            clip_norm=None,
        )
        unlearning = {
            "default": UnlearnConfig(),
            "reference": published,
            "paper": replace(published, stop_accuracy=0.10, weight_decay=5e-2),
        }
        if recipe not in unlearning:
            raise ConfigError(f"there is no recipe {recipe!r}; there is {', '.join(RECIPES)}")
        unlearn = replace(unlearning[recipe], seed=seed, flip=flip)
        recover, pruning = RecoverConfig(seed=seed, flip=flip), PruneConfig(max_ca_drop, threshold)
        after = RefineConfig(fine_tune, bn_stats, flip=flip, seed=seed)
        refining = after if fine_tune or bn_stats else None
        if recipe != "default" or threshold is not None:
            return SanitizeConfig(unlearn, recover, pruning, recipe, refine=refining)
        budget = ON_THE_SLICE * max_ca_drop
        return SanitizeConfig(
            unlearn,
            recover,
            PruneConfig(budget, guard=2 * GUARD * budget, max_mask=MAX_MASK),
            recipe,
            SurrogateConfig(seed=seed),
            GuidedConfig(budget, guard=2 * GUARD * budget, flip=flip, seed=seed),
            SoftenConfig(max_ca_drop=budget, utmost=max_ca_drop, flip=flip, seed=seed)
            if soften
            else None,
            refining,
            force,
        )


@dataclass(frozen=True)
class Sanitized:
    """A network without the filters that carried the backdoor.

    Attributes:
        module: the drop-in: the caller's architecture, weights of 0 for every silenced filter, and
            masks multiplied into others where the network was softened; all of them other
            than they were where it was refined.
        slim: the smaller network that computes the same, and the proof.
        unlearned, recovered, pruned: what each stage found; no masks are learned for a network that
            the verdict acquits.
        timing_s, memory_mib: seconds, and peak memory of the process, by stage.
        scanned, healed: of a recipe that comes to a verdict, and of a network that needed healing.
        refined: what was done after that; `None` where nothing was asked for or nothing pruned.
    """

    module: nn.Module
    slim: Slimmed
    unlearned: Unlearned
    recovered: Recovered | None
    pruned: Pruned
    timing_s: dict[str, float]
    memory_mib: dict[str, float]
    scanned: Scanned | None = None
    healed: Healed | None = None
    refined: Refined | None = None


T = TypeVar("T")


class Stopwatch:
    """Seconds, and MiB of memory at most, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.mib: dict[str, float] = {}

    def time(self, stage: str, work: Callable[[], T]) -> T:
        mark_memory()
        start = time.perf_counter()
        result = work()
        self.seconds[stage] = round(time.perf_counter() - start, 3)
        self.mib[stage] = round(peak_since_mark_mib(), 1)
        return result


def sanitize(
    module: nn.Module,
    clean_images: Tensor,
    clean_labels: Tensor,
    config: SanitizeConfig | None = None,
    *,
    transform: Transform = to_unit_range,
    output: str | int | None = None,
    compute: Compute | None = None,
    optimize: Optimize = "size",
    progress: Progress = quiet,
) -> Sanitized:
    """Find and cut the filters that carry a backdoor, from clean pictures alone.

    Args:
        module: any network with a gate site (`rnp_hub.sites`) whose output is logits (n, classes),
            or a tuple whose last element is, or has them under a name (`output`). It is left as it
            was.
        clean_images: (n, C, H, W), n ≥ 2, some hundreds of pictures that carry no trigger.
        clean_labels: (n,), integers in the order of the logits.
        config: see `SanitizeConfig.of`.
        transform: a batch of `clean_images` to what `module` takes (normalisation); uint8 is
            scaled to [0, 1] unless told otherwise. Pictures are cropped and flipped before it.
        output: which element of the module's output is the logits.
        compute: device and precision; chosen by the hardware unless given.
        optimize: of the slim network, see `slim.slim`.
        progress: told what is going on.

    Raises:
        ConfigError: BatchNorm statistics shall be re-estimated, and there are none.
        ModelError: the network has nothing to mask, broken weights, or other outputs than logits.
        DataError: pictures and labels do not fit each other or the network.
        ProofError: the slim network does not compute the same.
    """
    config = config or SanitizeConfig.of()
    compute = compute or Compute.choose()
    original = Classifier(module, transform, compute, output).copy()
    clean = ImageSet(clean_images.cpu(), clean_labels.long().cpu())
    sites = _check(original, clean)
    if config.refine is not None:
        check_refinable(original.module, config.refine)
    config = config.affordable(*clean.images.shape[2:])
    work = _Work(original, clean, sites, config, Stopwatch(), progress)
    found = work.published() if config.scan is None else work.scanned(config.scan)
    if config.refine is not None and found.changed:
        found = work.refined(found, config.refine)
    dense = on_cpu(found.pruned.classifier.module)
    example = transform(clean.images[:EXAMPLES])
    slimmed = work.watch.time(
        "slim",
        lambda: slim(dense, found.pruned.silenced, example, output=output, optimize=optimize),
    )
    watch = work.watch
    return Sanitized(dense, slimmed, **vars(found), timing_s=watch.seconds, memory_mib=watch.mib)


@dataclass(frozen=True)
class _Found:
    """What the stages before slimming found; see `Sanitized`."""

    unlearned: Unlearned
    recovered: Recovered | None
    pruned: Pruned
    scanned: Scanned | None = None
    healed: Healed | None = None
    refined: Refined | None = None

    @property
    def changed(self) -> bool:
        """Whether a weight is not that of the original."""
        softened = self.healed is not None and self.healed.masks is not None
        return softened or self.pruned.count > 0


@dataclass(frozen=True)
class _Work:
    """The stages before slimming, on one network."""

    original: Classifier
    clean: ImageSet
    sites: tuple[Site, ...]
    config: SanitizeConfig
    watch: Stopwatch
    progress: Progress

    def published(self) -> _Found:
        """As in the paper: unlearn, recover, prune by the masks. No verdict."""
        unlearned = self.watch.time(
            "unlearn",
            lambda: unlearn(self.original, self.clean, self.config.unlearn, self.progress),
        )
        recovered = self._recovered(unlearned, self.clean)
        return _Found(unlearned, recovered, self._by_masks(recovered, self.config.prune))

    def scanned(self, config: ScanConfig) -> _Found:
        """Scan, and heal where the suspicion is grave."""
        found = scan(self.original, self.clean, self.sites, config, self.progress, self.watch.time)
        if not (found.is_grave or self.config.force):
            start = found.trail.start[:1] if found.trail else ()
            pruned = pruned_of(self.original, self.sites, (), "none", start)
            return _Found(found.unlearned, None, pruned, found)
        # The scan unlearned on pixels, and that is what its network takes.
        pixels = as_pixels(self.original, self.clean)[1]
        recovered = self._recovered(found.unlearned, pixels)
        if not found.is_tangible:
            asked = self.config.prune if found.is_grave else self._cautious
            watched = None if found.is_grave else self._copies
            pruned = self._by_masks(recovered, asked, watched)
            return _Found(found.unlearned, recovered, pruned, found)
        healed = self.watch.time(
            "prune",
            lambda: heal(
                self.original, self.clean, self.sites, found, recovered, config, self.progress
            ),
        )
        filters = [step.filter for step in healed.steps]
        start = found.trail.start[:1] if found.trail else ()
        looks = (*start, *(step.accuracy for step in healed.steps))
        pruned = pruned_of(self.original, self.sites, filters, "surrogates", looks)
        if healed.masks is not None:
            healed.masks.multiply(pruned.classifier.module)
        return _Found(found.unlearned, recovered, pruned, found, healed)

    def refined(self, found: _Found, asked: RefineConfig) -> _Found:
        """The same, tuned further; what is left of the surrogates is measured again."""
        return self.watch.time("refine", lambda: self._refined(found, asked))

    def _refined(self, found: _Found, asked: RefineConfig) -> _Found:
        pruned, healed, scan = found.pruned, found.healed, self.config.scan
        silenced = at_sites(pruned.silenced, self.sites)
        result = refine(pruned.classifier, silenced, self.clean, asked, self.progress)
        if healed is not None and found.scanned is not None and scan is not None:
            healed = reviewed(healed, result.classifier, self.clean, found.scanned, scan)
        pruned = replace(pruned, classifier=result.classifier)
        return replace(found, pruned=pruned, healed=healed, refined=result)

    def _recovered(self, unlearned: Unlearned, clean: ImageSet) -> Recovered:
        return self.watch.time(
            "recover",
            lambda: recover(
                unlearned.classifier, clean, self.config.recover, self.progress, self.sites
            ),
        )

    def _by_masks(
        self, recovered: Recovered, asked: PruneConfig, watched: ImageSet | None = None
    ) -> Pruned:
        return self.watch.time(
            "prune",
            lambda: prune(self.original, recovered, self.clean, asked, self.progress, watched),
        )

    @property
    def _copies(self) -> ImageSet:
        """The slice and copies of it, which have to stay right too where nothing is suspected."""
        settings = self.config.unlearn
        copies = self.config.soften or SoftenConfig(flip=settings.flip, seed=settings.seed)
        return copies.watched(self.clean)

    @property
    def _cautious(self) -> PruneConfig:
        """Where the suspicion is not grave: what is hardly missed."""
        asked = self.config.prune
        guard = None if asked.guard is None else FORCED * asked.guard
        # Of a slice that a network knows by heart nothing is lost, and of its copies, which it has
        # never been good at, others may be right instead.
        wrong = asked.max_ca_drop / ON_THE_SLICE
        return replace(asked, max_ca_drop=FORCED * asked.max_ca_drop, guard=guard, max_wrong=wrong)


def _check(classifier: Classifier, clean: ImageSet) -> tuple[Site, ...]:
    check_finite(classifier.module)
    if clean.images.dim() != 4 or len(clean) < 2 or len(clean.images) != len(clean):
        raise DataError(
            f"clean pictures of shape {tuple(clean.images.shape)} and {len(clean)} labels do not "
            "fit; at least two pictures (n, C, H, W) and as many labels are needed"
        )
    with torch.no_grad():
        classifier.module.eval()
        classes = classifier.logits(clean.images[:2]).shape[1]
    low, high = int(clean.labels.min()), int(clean.labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"clean labels run from {low} to {high} but the network has {classes} outputs"
        )
    example = classifier.transform(clean.images[:2].to(classifier.compute.device))
    return gate_sites(classifier.module, example)
