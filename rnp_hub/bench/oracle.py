"""What peeks: the best that a defence could have done, had it known the trigger.

Kept apart from `defences`, none of which sees a triggered picture. Its rows are marked as such.
"""

from __future__ import annotations

from rnp_hub.bench.defences import Defended
from rnp_hub.evaluate import accuracy
from rnp_hub.network import Classifier, ImageSet, on_cpu
from rnp_hub.prune import PruneConfig, prune
from rnp_hub.recover import Recovered

ANP_BEST = "anp-best"
"""The only column of the tables that peeks."""

THRESHOLDS = tuple(step / 20 for step in range(19))
"""0 to 0.9, as ANP's authors sweep them."""


def anp_best(
    classifier: Classifier, clean: ImageSet, masks: Recovered, triggered: ImageSet, target: int
) -> Defended:
    """ANP at the threshold that loses least of accuracy and ASR together.

    Args:
        classifier: the network.
        clean: the slice, on which accuracy is watched.
        masks: see `anp.adversarial_masks`.
        triggered: pictures with the true trigger, none of the target's label.
        target: the label it asks for.
    """
    start = accuracy(classifier, clean)
    tried = [prune(classifier, masks, clean, PruneConfig(threshold=each)) for each in THRESHOLDS]

    def lost(place: int) -> float:
        hits = tried[place].classifier.predict(triggered.images) == target
        drop = start - accuracy(tried[place].classifier, clean)
        return max(0.0, drop) + float(hits.float().mean())

    best = tried[min(range(len(tried)), key=lost)]
    return Defended(on_cpu(best.classifier.module), best.count)
