"""Scans that look for patches alone, for tests that mind what is done with a verdict and not what
it rests on. Six kinds of surrogates take six times as long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rnp_hub.network import Classifier
from rnp_hub.progress import Progress
from rnp_hub.surrogate import Halves, Surrogate, SurrogateConfig, reconstruct

PATCHES_ONLY = "RNP_HUB_TESTS_PATCHES_ONLY"
"""Environment variable that asks a worker of the tests for such scans."""


def reconstruct_patches(
    classifier: Classifier,
    halves: Halves,
    labels: Sequence[int],
    config: SurrogateConfig,
    progress: Progress,
) -> dict[str, dict[int, Surrogate]]:
    """In the place of `rnp_hub.scan.reconstruct`."""
    return reconstruct(classifier, halves, labels, replace(config, kinds=("patch",)), progress)
