"""What may be done to a network after pruning: fine-tuning, and new BatchNorm statistics.

Both are off unless asked for, since they move weights that no filter's mask accounts for. They see
the clean slice alone. Silenced filters stay silenced, so that the network can be slimmed as exactly
as one that was only pruned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_hub.compute import seeded
from rnp_hub.errors import ConfigError
from rnp_hub.evaluate import accuracy
from rnp_hub.hooks import silence
from rnp_hub.network import Classifier, ImageSet, augment, batches, evaluation_mode
from rnp_hub.progress import Progress, quiet
from rnp_hub.sites import Site
from rnp_hub.tune import Tuning, cosine, tune


@dataclass(frozen=True)
class RefineConfig:
    """What to do.

    Attributes:
        fine_tune: epochs of fine-tuning on the slice; 0 for none.
        bn_stats: re-estimate the means and variances of all BatchNorm layers, after that.
        learning_rate: of SGD with momentum 0.9, falling to 0 along a cosine.
        passes: augmented copies of the slice that statistics are taken of.
        batch_size: of these, at most; of fine-tuning a `Tuning`'s.
        flip: mirrored pictures keep their label.
        seed: of batches, crops and flips.
    """

    fine_tune: int = 0
    bn_stats: bool = False
    learning_rate: float = 0.01
    passes: int = 4
    batch_size: int = 100
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.fine_tune < 0:
            raise ConfigError(f"{self.fine_tune} epochs of fine-tuning are too few; give 0 or more")


@dataclass(frozen=True)
class Refined:
    """A refined network.

    Attributes:
        classifier: a copy of the pruned one.
        config: what was done.
        accuracy: on the slice afterwards, in [0, 1].
    """

    classifier: Classifier
    config: RefineConfig
    accuracy: float


def check_refinable(module: nn.Module, config: RefineConfig) -> None:
    """Refuse before anything is done what could not be done afterwards.

    Raises:
        ConfigError: statistics shall be re-estimated, and the network keeps none.
    """
    if config.bn_stats and not _norms(module):
        raise ConfigError(
            f"{type(module).__name__} has no BatchNorm whose statistics could be re-estimated; "
            "leave out --bn-stats"
        )


def refine(
    classifier: Classifier,
    silenced: Mapping[Site, Sequence[int]],
    clean: ImageSet,
    config: RefineConfig,
    progress: Progress = quiet,
) -> Refined:
    """Refine a copy of a pruned network.

    Args:
        classifier: the pruned network; left as it was.
        silenced: its silenced filters, which stay so.
        clean: the clean slice, (n, C, H, W) with labels.
        config: see `RefineConfig`.
        progress: told how far fine-tuning is.
    """
    copy = classifier.copy()
    if config.fine_tune:
        _fine_tune(copy, silenced, clean, config, progress)
    if config.bn_stats:
        _re_estimate(copy, clean, config)
    return Refined(copy, config, accuracy(copy, clean))


def _fine_tune(
    classifier: Classifier,
    silenced: Mapping[Site, Sequence[int]],
    clean: ImageSet,
    config: RefineConfig,
    progress: Progress,
) -> None:
    epochs, peak = config.fine_tune, config.learning_rate
    tuning = Tuning(epochs, lambda epoch: cosine(peak, epoch, epochs), flip=config.flip)
    updates, done = epochs * math.ceil(len(clean) / tuning.batch_size), 0

    def updated() -> None:
        nonlocal done
        silence(classifier.module, silenced)
        done += 1
        progress("refine", min(1.0, done / updates), {})

    frozen = [each for each in classifier.module.parameters() if not each.requires_grad]
    classifier.module.requires_grad_(True)
    tune(classifier, clean, tuning, config.seed, updated=updated)
    for parameter in frozen:
        parameter.requires_grad_(False)


def _norms(module: nn.Module) -> list[_BatchNorm]:
    """BatchNorm layers that keep statistics."""
    every = (part for part in module.modules() if isinstance(part, _BatchNorm))
    return [norm for norm in every if norm.track_running_stats]


@torch.no_grad()
def _re_estimate(classifier: Classifier, clean: ImageSet, config: RefineConfig) -> None:
    """Replace running means and variances by means over batches, dropout off."""
    norms = _norms(classifier.module)
    before = [(norm.momentum, _statistics(norm)) for norm in norms]
    with evaluation_mode(classifier.module):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's word for the mean of all batches so far
            norm.train()
        for images in _augmented(clean, config):
            classifier.logits(images)
    for norm, (momentum, statistics) in zip(norms, before, strict=True):
        norm.momentum = momentum
        if not norm.num_batches_tracked:  # one that no picture passes, such as an auxiliary head's
            norm.load_state_dict(statistics, strict=False)


def _statistics(norm: _BatchNorm) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in norm.named_buffers()}


def _augmented(clean: ImageSet, config: RefineConfig) -> Iterator[Tensor]:
    """Batches of about equal size, since all weigh alike in the statistics."""
    generator = seeded(config.seed)
    size = math.ceil(len(clean) / math.ceil(len(clean) / config.batch_size))
    for _ in range(config.passes):
        for index in batches(len(clean), size, generator):
            yield augment(clean.images[index], generator, flip=config.flip)
