"""Every defence of the grid: a network and the clean slice in, another network out.

None of them is told a trigger, the truth or a test picture; what needs those stands apart, in
`oracle`. Each is reimplemented from its paper with the settings published with it; where 500
pictures or two cores ask for others, docs/defences.md says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from rnp_hub.bench.anp import adversarial_masks
from rnp_hub.bench.cleanse import cleansed
from rnp_hub.bench.ibau import adversarially_unlearned
from rnp_hub.bench.tuning import distilled, fine_pruned, fine_tuned
from rnp_hub.compute import seeded
from rnp_hub.hooks import silence
from rnp_hub.method import SanitizeConfig, Sanitized, sanitize
from rnp_hub.network import Classifier, ImageSet, on_cpu
from rnp_hub.prune import PruneConfig, Pruned, prune
from rnp_hub.recover import Recovered, recover
from rnp_hub.sites import gate_sites
from rnp_hub.unlearn import unlearn

TWO_POINTS = 0.02
"""Clean accuracy on the slice that pruning by accuracy may cost."""
FIXED = 0.7
"""The threshold that BackdoorBench ships for RNP."""


@dataclass(frozen=True)
class Judgement:
    """What our own method says of a network besides healing it; `None` where it says nothing.

    Attributes:
        backdoored: the verdict; `None` for undecided.
        score: behind the verdict; larger means more suspicious.
        label: the suspected one.
        residual: something may be left.
        surrogate: surrogate ASR before and after, in [0, 1], by kind of trigger.
        kind: of the surrogate that stands out.
    """

    backdoored: bool | None = None
    score: float | None = None
    label: int | None = None
    residual: bool | None = None
    surrogate: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    kind: str | None = None


@dataclass(frozen=True)
class Defended:
    """What a defence made of a network.

    Attributes:
        module: on the CPU, in evaluation mode; the one it was given is left as it was.
        silenced: filters, or features of fine-pruning; `None` for a defence that silences none.
        judgement: of our own method.
        masks: what was learned of each filter, where the oracle has a use for it.
    """

    module: nn.Module
    silenced: int | None = None
    judgement: Judgement | None = None
    masks: Recovered | None = None


Defend = Callable[[Classifier, ImageSet, int], Defended]
"""A network, the clean slice and a seed; see `Defended`."""


def none(classifier: Classifier, _clean: ImageSet, _seed: int) -> Defended:
    """The network as it is."""
    return Defended(on_cpu(classifier.module))


def random_filters(count: int) -> Defend:
    """Silences `count` filters drawn from all sites alike."""

    def run(classifier: Classifier, clean: ImageSet, seed: int) -> Defended:
        result = classifier.copy()
        example = classifier.transform(clean.images[:2].to(classifier.compute.device))
        every = [
            (site, index)
            for site in gate_sites(result.module, example)
            for index in range(site.filters)
        ]
        for place in torch.randperm(len(every), generator=seeded(seed))[:count].tolist():
            site, index = every[place]
            silence(result.module, {site: (index,)})
        return Defended(on_cpu(result.module), count)

    return run


def ours(classifier: Classifier, clean: ImageSet, seed: int) -> Defended:
    """The default recipe."""
    return _sanitized(classifier, clean, SanitizeConfig.of(seed=seed))


def forced(classifier: Classifier, clean: ImageSet, seed: int) -> Defended:
    """The default recipe with `--force`, which prunes where the suspicion is not grave too."""
    result = _sanitized(classifier, clean, SanitizeConfig.of(seed=seed, force=True))
    return replace(result, judgement=None)  # the same as without `--force`


def _sanitized(classifier: Classifier, clean: ImageSet, config: SanitizeConfig) -> Defended:
    result = sanitize(
        classifier.module,
        clean.images,
        clean.labels,
        config,
        transform=classifier.transform,
        output=classifier.output,
        compute=classifier.compute,
    )
    return Defended(result.module, result.pruned.count, _judgement(result))


def _judgement(result: Sanitized) -> Judgement:
    """What the default recipe says; its surrogates before and after by kind."""
    assert result.scanned is not None
    verdict, suspected = result.scanned.verdict, result.scanned.suspected
    before = {each.kind: each.asr.value for each in suspected.surrogates} if suspected else {}
    left = result.healed.left if result.healed else ()
    after = {each.kind: each.asr.value for each in left if each.kind in before}
    pairs = {kind: (asr, after.get(kind, asr)) for kind, asr in before.items()}
    residual = result.healed.residual if result.healed else None
    kind = suspected.kind if suspected else None
    return Judgement(verdict.backdoored, verdict.score, verdict.label, residual, pairs, kind)


def rnp_fixed(classifier: Classifier, clean: ImageSet, seed: int) -> Defended:
    """RNP with the reference's numbers, pruned at a mask of 0.7."""
    config = SanitizeConfig.of("reference", seed=seed, threshold=FIXED)
    return _pruned(_reference(classifier, clean, config))


def rnp_two_points(classifier: Classifier, clean: ImageSet, seed: int) -> Defended:
    """RNP with the reference's numbers, pruned until two points of accuracy are gone."""
    config = SanitizeConfig.of("reference", seed=seed, max_ca_drop=TWO_POINTS)
    return _pruned(_reference(classifier, clean, config))


def _reference(classifier: Classifier, clean: ImageSet, config: SanitizeConfig) -> Pruned:
    unlearned = unlearn(classifier, clean, config.unlearn)
    recovered = recover(unlearned.classifier, clean, config.recover)
    return prune(classifier, recovered, clean, config.prune)


def _pruned(result: Pruned, masks: Recovered | None = None) -> Defended:
    return Defended(on_cpu(result.classifier.module), result.count, masks=masks)


def ft(classifier: Classifier, clean: ImageSet, seed: int) -> Defended:
    """Fine-tuning."""
    return Defended(fine_tuned(classifier, clean, seed))


def fp(classifier: Classifier, clean: ImageSet, seed: int) -> Defended:
    """Fine-pruning."""
    return Defended(*fine_pruned(classifier, clean, seed))


def anp(classifier: Classifier, clean: ImageSet, seed: int) -> Defended:
    """Adversarial neuron pruning, until two points of accuracy are gone."""
    masks = adversarial_masks(classifier, clean, seed)
    return _pruned(prune(classifier, masks, clean, PruneConfig(TWO_POINTS)), masks)


def nad(classifier: Classifier, clean: ImageSet, seed: int) -> Defended:
    """Neural attention distillation."""
    return Defended(distilled(classifier, clean, seed))


def i_bau(classifier: Classifier, clean: ImageSet, seed: int) -> Defended:
    """Implicit backdoor adversarial unlearning."""
    return Defended(adversarially_unlearned(classifier, clean, seed))


def nc(classifier: Classifier, clean: ImageSet, seed: int) -> Defended:
    """Neural Cleanse, its verdict and its mitigation."""
    module, flagged = cleansed(classifier, clean, seed)
    return Defended(
        module, judgement=Judgement(bool(flagged), label=flagged[0] if flagged else None)
    )


DEFENCES: Mapping[str, Defend] = {
    "none": none,
    "ours": ours,
    "forced": forced,
    "rnp-0.7": rnp_fixed,
    "rnp-2pt": rnp_two_points,
    "ft": ft,
    "fp": fp,
    "anp": anp,
    "nad": nad,
    "i-bau": i_bau,
    "nc": nc,
}
"""All that need nothing but a network and the slice, by the name they have in the tables."""

FORCED = "forced"
"""Run on clean networks alone: what pruning costs a network that needs none."""

RANDOM = "random"
"""See `random_filters`; as many as `ours` silenced."""


@dataclass(frozen=True)
class About:
    """What the grid has to know of a defence.

    Attributes:
        source: the paper.
        seconds: of one core, on a CIFAR ResNet-18 of a quarter of the width and 500 pictures.
        version: of its settings; a row of another version is measured again.
    """

    source: str
    seconds: float
    version: int = 1


_RECIPE, _FORCED = 14, 15
"""Versions of the default recipe, and of it with `--force`."""

ABOUT: Mapping[str, About] = {
    "none": About("the network as it is", 0),
    "ours": About("rnp-hub, default recipe", 30, _RECIPE),
    "forced": About("rnp-hub with --force, on clean networks", 60, _FORCED),
    "random": About("as many random filters as ours", 1, _RECIPE),
    "rnp-0.7": About("Li et al. 2023, the reference's numbers, masks up to 0.7", 15),
    "rnp-2pt": About("Li et al. 2023, the reference's numbers, two points of accuracy", 20),
    "ft": About("fine-tuning", 65),
    "fp": About("fine-pruning, Liu et al. 2018", 65),
    "anp": About("Wu and Wang 2021, two points of accuracy", 60),
    "anp-best": About("Wu and Wang 2021, threshold chosen by the true trigger", 10),
    "nad": About("Li et al. 2021", 40),
    "i-bau": About("Zeng et al. 2022", 60),
    "nc": About("Wang et al. 2019, verdict and mitigation", 90),
}
"""Every column of the tables, in the order in which they are run."""
